"""SAM, sharpness-aware minimization around an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from goptim import _lists
from goptim._eligible import NARROW
from goptim._fallback import threads_after_fork
from goptim._for_loop import counterpart
from goptim._pass import InTorch, Pass
from goptim._wrapper import Wrapper
from goptim.clip import norms_of

__all__ = ["SAM"]

_KEY = "old_p"


class _PerturbInTorch(InTorch):
    key = _KEY

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        self.state[p][self.key].copy_(p)
        factor = torch.pow(p, 2) if group["adaptive"] else 1.0
        p.add_(factor * p.grad * group["scale"])


class _Perturb(Pass, _PerturbInTorch):
    torch_class = _PerturbInTorch


_Perturb.__name__ = _PerturbInTorch.__name__ = "SAM"


@counterpart("pytorch_optimizer.SAM")
class SAM(Wrapper):
    r"""Sharpness-aware minimization around an optimizer, with its passes in Go: the arguments, state and exact results
    of ``pytorch_optimizer.SAM``.

    The optimizer steps by the gradients at perturbed parameters, for gradients :math:`g`:

    .. math::
        \hat\theta = \theta + \rho\, s\, g / (\lVert s' g \rVert + \epsilon)

    where :math:`s = s' = 1`, or with ``adaptive`` :math:`s = \theta^2` and :math:`s' = |\theta|`. The norm is that of
    the gradients of all groups together, in float32. ::

        loss_of(batch).backward()
        optimizer.first_step(zero_grad=True)
        loss_of(batch).backward()
        optimizer.second_step(zero_grad=True)

    Each group has ``rho`` and ``adaptive``. Between the two steps, ``old_p`` in the state of a parameter has its value.
    Groups, state and state_dict are the optimizer's.

    Float32, float64, bfloat16 and float16 parameters on the CPU run in Go; others are perturbed by torch's operations.
    For 16-bit parameters, the perturbed parameter is computed in float32 and rounded once, and not after every
    operation.

    Foret, Kleiner, Mobahi & Neyshabur, `Sharpness-Aware Minimization for Efficiently Improving Generalization
    <https://arxiv.org/abs/2010.01412>`_, Algorithm 1; Kwon, Kim, Park & Choi, `ASAM <https://arxiv.org/abs/2102.11600>`_,
    for ``adaptive``.

    Args:
        params: parameters, named parameters or groups of them.
        base_optimizer: the class of the optimizer, of goptim or any other.
        rho: the length of the perturbation, at least 0.
        adaptive: scale the perturbation of an element by its square.
        use_gc: subtract the mean of each gradient with two or more dimensions, over all but the first one, after the
            norm has been computed. It is done in torch, in place.
        perturb_eps: added to the norm, at least 0.
        foreach: an argument of the optimizer.
        kwargs: other arguments of the optimizer.

    Raises:
        ValueError: rho or perturb_eps is negative.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        use_gc: bool = False,
        perturb_eps: float = 1e-12,
        foreach: bool | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (("rho", rho), ("perturb_eps", perturb_eps)):
            if not value >= 0:
                raise ValueError(f"Invalid {name} value: {value}, expected at least 0")
        if foreach is not None:
            kwargs["foreach"] = foreach
        entries = {"rho": rho, "adaptive": adaptive, "foreach": foreach}
        super().__init__(base_optimizer(params, **kwargs), entries)
        self.use_gc, self.perturb_eps = use_gc, perturb_eps

    @classmethod
    def replaces(cls, **arguments: Any) -> bool:
        """Whether :func:`goptim.patch` replaces an optimizer of the package with these arguments."""
        return not arguments.get("foreach")  # which multiplies in another order

    @property
    def base_optimizer(self) -> Optimizer:
        """The optimizer."""
        return self._base_optimizer

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "use_gc": self.use_gc, "perturb_eps": self.perturb_eps}

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Perturb the parameters by the current gradients.

        Args:
            zero_grad: reset the gradients afterwards.
        """
        norm = self._norm()
        for p in self._params() if self.use_gc else ():
            if p.grad is not None and p.grad.dim() > 1:
                p.grad.sub_(p.grad.mean(dim=tuple(range(1, p.grad.dim())), keepdim=True))
        passes: list[dict[str, Any]] = []
        for group in self.param_groups:
            scale = group["rho"] / norm
            of_type: dict[Any, list[Tensor]] = {}
            for p in group["params"]:
                of_type.setdefault(p.dtype, []).append(p)
            for dtype, params in of_type.items():
                factor = scale.to(dtype).item()
                passes.append({"params": params, "scale": factor, "adaptive": bool(group["adaptive"])})
        _Perturb.run(self, passes)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False, **keywords: Any) -> None:
        """Restore the parameters, and step the optimizer by the current gradients.

        Args:
            zero_grad: reset the gradients afterwards.
            keywords: those of the optimizer's step, such as ``max_grad_norm``.
        """
        pairs = [(p, self.state[p].pop(_KEY)) for p in self._params() if _KEY in self.state.get(p, ())]
        if pairs:
            params, olds = map(list, zip(*pairs, strict=True))
            with threads_after_fork():
                _lists.COPY.apply(params, olds, (), _copy)
        self._base_optimizer.step(**keywords)
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None, **keywords: Any) -> Any:
        """Both steps, by the current gradients and by those that the closure computes at the perturbed parameters.

        Args:
            closure: resets the gradients, computes them anew and returns the loss.
            keywords: those of the optimizer's step, such as ``max_grad_norm``.

        Returns:
            What the closure returned.

        Raises:
            ValueError: there is no closure.
        """
        if closure is None:
            raise ValueError(
                f"{type(self).__name__}: step without a closure, expected one that computes the gradients again"
            )
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            loss = closure()
        self.second_step(**keywords)
        return loss

    def _params(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _norm(self) -> Tensor:
        """The norm of all gradients, weighted in groups that are adaptive, plus perturb_eps."""
        grads = [
            _weighted(p.grad, p) if group["adaptive"] else p.grad
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        device = next(self._params()).device
        norms = [norm.to(device, torch.float32) for norm in norms_of(grads)]
        squares = torch.stack(norms).square_().sum() if norms else torch.zeros((), device=device)
        return torch.full_like(squares, math.sqrt(squares.item())).add_(self.perturb_eps)


def _weighted(g: Tensor, p: Tensor) -> Tensor:
    return (g.float() if g.dtype in NARROW else g) * p.abs()


def _copy(params: list[Tensor], olds: list[Tensor]) -> None:
    for p, old in zip(params, olds, strict=True):
        p.copy_(old)
