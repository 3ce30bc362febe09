"""LAMB, which torch.optim does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop, dtype_of_counts
from goptim._lists import order_of_norms
from goptim._parts import Asked
from goptim._step import GoStep

__all__ = ["LAMB"]


class LAMBForLoop(ForLoop):
    """timm.optim.Lamb in operations of torch."""

    states = ("exp_avg", "exp_avg_sq")
    entries: ClassVar[dict[str, Any]] = {"step": 0.0}
    sparse = False
    reference = "timm.optim.Lamb"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
        caution: bool = False,
        decoupled_decay: bool = False,
        corrected_weight_decay: bool = False,
        foreach: bool | None = None,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require("epsilon", eps)
        _timm.require("weight_decay", weight_decay)
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "grad_averaging": grad_averaging,
            "max_grad_norm": max_grad_norm,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
            "caution": caution,
            "decoupled_decay": decoupled_decay,
            "corrected_weight_decay": corrected_weight_decay,
            "max_lr_snapshot": _timm.largest_lr(lr, corrected_weight_decay),
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def _divisor(self) -> Tensor | None:
        """What gradients are divided by, so that the norm of all is at most ``max_grad_norm`` of the constructor."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.defaults["max_grad_norm"] is None or not grads:
            return None
        norms = torch.stack([torch.linalg.vector_norm(g) for g in grads])
        norm = torch.linalg.vector_norm(norms)
        return torch.clamp(norm / self.defaults["max_grad_norm"], min=1.0)

    def advanced(self, group: dict[str, Any]) -> dict[str, Any]:
        """The entries of a group after the next step."""
        return {"step": torch.as_tensor(group.get("step", 0.0), dtype=dtype_of_counts(), device="cpu") + 1}

    def _update_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        group.update(self.advanced(group))
        divisor, step, (beta1, beta2) = self._divisor(), group["step"].item(), group["betas"]
        lr, weight_decay, trust_clip = group["lr"], group["weight_decay"], group["trust_clip"]
        weight = 1 - beta1 if group["grad_averaging"] else 1.0
        correction1 = correction2 = 1.0
        if group["bias_correction"]:
            correction1, correction2 = 1 - beta1**step, 1 - beta2**step
        for p in params:
            assert p.grad is not None
            m, v = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
            g = p.grad if divisor is None else p.grad / divisor
            if weight == 1 - beta1:
                m.lerp_(g, weight)
            else:
                m.mul_(beta1).add_(g, alpha=weight)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            update = (m / correction1).div_((v.sqrt() / correction2**0.5).add_(group["eps"]))
            if group["caution"]:
                update.mul_(_timm.cautious(update, g))
            if weight_decay != 0 and group["decoupled_decay"]:
                _timm.add_scaled_(p, p, -_timm.decay_rate(group) * weight_decay)
            elif weight_decay != 0:
                update.add_(p, alpha=weight_decay)
            if weight_decay != 0 or group["always_adapt"]:
                update.mul_(_trust(p.norm(2.0), update.norm(2.0), trust_clip))
            _timm.add_scaled_(p, update, -lr)


def _trust(of_param: Tensor, of_update: Tensor, clip: bool) -> Tensor:
    """The factor of an update from two norms."""
    trust = torch.where((of_param > 0) & (of_update > 0), of_param / of_update, 1.0)
    return torch.clamp(trust, max=1.0) if clip else trust


class LAMB(GoStep, LAMBForLoop):
    r"""LAMB in Go: the arguments, state and exact results of ``timm.optim.Lamb`` with ``foreach=False``.

    For a parameter :math:`\theta` with gradient :math:`g_t`, where :math:`G_t` is the norm of all gradients:

    .. math::
        g_t &\leftarrow g_t / \max(G_t / \text{max\_grad\_norm}, 1) \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \quad
        v_t \leftarrow \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2 \\
        u_t &= \frac{m_t}{1-\beta_1^t} \Big/ \Big(\sqrt{v_t / (1-\beta_2^t)} + \epsilon\Big) + \lambda\theta_{t-1} \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, \frac{\lVert\theta_{t-1}\rVert}{\lVert u_t\rVert}\, u_t

    The quotient of the norms is 1 if one of them is 0, and without weight decay, unless ``always_adapt``. With
    ``trust_clip`` (LAMBC), it is at most 1. The norms are those of torch, in its order. If one parameter falls back,
    all do. They also do if the norm is bounded and a parameter of no dimensions has a narrower dtype than others: the
    step raises torch's error then, as timm's does, unless ``grad_averaging`` is False. ``timm`` has other
    results with ``foreach=True``, which have other roundings.

    The state of a parameter is ``exp_avg`` and ``exp_avg_sq``, of its shape and dtype. The number of steps is the entry
    ``step`` of a group: a number at first, and then a tensor of no dimensions. Each class loads the other's state_dict.
    Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's
    operations. 16-bit parameters are computed in float32 and rounded once, and not after every operation.

    You et al., `Large Batch Optimization for Deep Learning: Training BERT in 76 minutes
    <https://arxiv.org/abs/1904.00962>`_, Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        bias_correction: divide the moments by 1 - beta**t.
        betas: decay rates of the moments.
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; added to the update, times the parameter.
        grad_averaging: multiply the gradient in the first moment by 1 - beta.
        max_grad_norm: largest norm of the gradients of all groups; None for no bound. That of groups is not used.
        trust_clip: bound the quotient of the norms by 1.
        always_adapt: scale updates without weight decay too.
        caution: mask the elements of an update whose sign is not that of the gradient.
        decoupled_decay: shrink the parameter by the learning rate times ``weight_decay`` instead.
        corrected_weight_decay: multiply decoupled decay by ``lr**2 / max_lr`` instead of ``lr``, where ``max_lr`` is
            the learning rate at construction, which must be above 0 then.
        foreach: has no effect on float32 and float64.

    Raises:
        ValueError: an argument is out of its range.
    """

    elementwise = False
    together = True

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        """A copy of the options, since torch's part of a step may change the group before Go's part."""
        options = super().options(group)
        most = self.defaults["max_grad_norm"]
        if (isinstance(most, (int, float)) and most == 0) or (most is not None and self._widens(group)):
            most = ""  # a number that Go cannot use, so that the group falls back
        advanced = self.advanced(options)
        return {
            **options,
            "max_grad_norm": 0.0 if most is None else most,
            "step": advanced["step"].item() - 1,
            "advanced": advanced,
        }

    def _widens(self, group: dict[str, Any]) -> bool:
        """Whether a gradient of no dimensions has a narrower dtype than the norm of all, which its quotient has then.

        torch raises an error for it in an average, and has other results than Go without ``grad_averaging``.
        """
        narrow = {p.dtype for p in group["params"] if (g := p.grad) is not None and g.dim() == 0}
        if not narrow:
            return False
        dtypes = {p.dtype for other in self.param_groups for p in other["params"] if p.grad is not None}
        return any(torch.promote_types(a, b) != a for a in narrow for b in dtypes)

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (order_of_norms(),)

    def _finish_step(self, groups: list[dict[str, Any]], asked: Sequence[Asked]) -> None:
        for group, (_, options, _) in zip(groups, asked, strict=True):
            group.update(options["advanced"])
