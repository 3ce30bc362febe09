"""Lion, which torch.optim does not have."""

from __future__ import annotations

from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim._for_loop import ForLoop
from goptim._step import GoStep

__all__ = ["Lion"]


class LionForLoop(ForLoop):
    """lion_pytorch.Lion in operations of torch."""

    states = ("exp_avg",)
    reference = "lion_pytorch.Lion"
    other_arguments = ("use_triton", "decoupled_weight_decay")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        use_triton: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        if not lr >= 0 or (decoupled_weight_decay and lr == 0):
            least = "above 0 with decoupled_weight_decay" if decoupled_weight_decay else "at least 0"
            raise ValueError(f"Invalid learning rate: {lr}, expected {least}")
        for i, beta in enumerate(betas):
            if not 0 <= beta <= 1:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}, expected 0 to 1")
        if not weight_decay >= 0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}, expected at least 0")
        if use_triton:
            raise ValueError("Invalid use_triton: True, expected False: there is no kernel for GPUs")
        self._init_lr = lr
        self.decoupled_wd = decoupled_weight_decay
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @classmethod
    def replaces(cls, **arguments: Any) -> bool:
        return not arguments.get("use_triton")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_init_lr": self._init_lr, "decoupled_wd": self.decoupled_wd}

    @property
    def reason_unsaved(self) -> str | None:
        return "its decoupled_weight_decay is not in its groups" if self.decoupled_wd else None

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        lr, (beta1, beta2), m = group["lr"], group["betas"], self.state[p]["exp_avg"]
        weight_decay = group["weight_decay"] / self._init_lr if self.decoupled_wd else group["weight_decay"]
        p.mul_(1 - lr * weight_decay)
        p.add_(m.mul(beta1).add(p.grad, alpha=1 - beta1).sgn_(), alpha=-lr)
        m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class Lion(GoStep, LionForLoop):
    r"""Lion with its update in Go: the arguments, state and exact results of ``lion_pytorch.Lion``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        \theta_t &\leftarrow (1 - \gamma\lambda)\, \theta_{t-1}
        - \gamma\, \text{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t) \\
        m_t &\leftarrow \beta_2 m_{t-1} + (1-\beta_2) g_t

    The state of a parameter is ``exp_avg``, a tensor of its shape and dtype. Each class loads the other's state_dict.
    Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's
    operations. 16-bit parameters are computed in float32 and rounded once, and not after every operation.

    Chen et al., `Symbolic Discovery of Optimization Algorithms <https://arxiv.org/abs/2302.06675>`_, Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: weights of the average, in the direction of a step and from step to step, each in [0, 1].
        weight_decay: at least 0; multiplied by the learning rate.
        use_triton: must be False, since there is no kernel for GPUs.
        decoupled_weight_decay: divide ``weight_decay`` by the first learning rate, which must not be 0 then. It is not
            in ``param_groups``, and a state_dict does not have it. ``goptim.save_state`` rejects such an optimizer.

    Raises:
        ValueError: an argument is out of its range.
    """

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        options = super().options(group)
        if not self.decoupled_wd:
            return options
        weight_decay = options["weight_decay"]
        if isinstance(weight_decay, Real):  # also a NumPy number, which would be divided in its own precision
            weight_decay = float(weight_decay)
        return {**options, "weight_decay": weight_decay / self._init_lr}
