"""LaProp, which torch.optim does not have."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop
from goptim._step import GoStep

__all__ = ["LaProp"]


class LaPropForLoop(ForLoop):
    """timm.optim.LaProp in operations of torch."""

    states = ("step", "exp_avg_lr_1", "exp_avg_lr_2", "exp_avg", "exp_avg_sq")
    order = ("step", "exp_avg", "exp_avg_lr_1", "exp_avg_lr_2", "exp_avg_sq")
    numbers: ClassVar[dict[str, int | float]] = {"exp_avg_lr_1": 0.0}
    scalars = ("exp_avg_lr_2",)
    sparse = False
    reference = "timm.optim.LaProp"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 4e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        foreach: bool | None = None,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require("epsilon", eps)
        _timm.require_betas(betas)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "caution": caution,
            "corrected_weight_decay": corrected_weight_decay,
            "max_lr_snapshot": _timm.largest_lr(lr, corrected_weight_decay),
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        lr, (beta1, beta2), weight_decay, state = group["lr"], group["betas"], group["weight_decay"], self.state[p]
        state["step"] += 1
        state["exp_avg_lr_1"] = state["exp_avg_lr_1"] * beta1 + (1 - beta1) * lr
        state["exp_avg_lr_2"].mul_(beta2).add_(1 - beta2)
        x, g, m, v = _timm.as_real(p, p.grad, state["exp_avg"], state["exp_avg_sq"])
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        normed = g / v.div(state["exp_avg_lr_2"]).sqrt_().add_(group["eps"])
        _timm.add_scaled_(m.mul_(beta1), normed, lr * (1 - beta1))
        if group["caution"]:
            m = m * _timm.cautious(m, g)
        _timm.add_scaled_(x, m, -_share(lr, state["exp_avg_lr_1"]))
        if weight_decay != 0:
            _timm.add_scaled_(x, x, -_timm.decay_rate(group) * weight_decay)


def _share(lr: Any, average: Any) -> Any:
    """The learning rate divided by the average of learning rates; 0 if that is 0."""
    if isinstance(average, Tensor):
        return torch.where(average != 0, lr / torch.where(average != 0, average, 1.0), 0.0)
    return lr / average if average != 0 else 0.0


class LaProp(GoStep, LaPropForLoop):
    r"""LaProp with its update in Go: the arguments, state and exact results of ``timm.optim.LaProp``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        v_t &\leftarrow \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2 \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1)\, \gamma_t\, \frac{g_t}{\sqrt{v_t / c_t} + \epsilon} \\
        \theta_t &\leftarrow \theta_{t-1} - \frac{\gamma_t}{l_t}\, m_t

    where :math:`c_t` and :math:`l_t` are the same averages of ones and of the learning rates :math:`\gamma_t`. Then
    :math:`\gamma_t\lambda\theta_t` is subtracted for weight decay :math:`\lambda`.

    The state of a parameter is ``step`` and ``exp_avg_lr_2`` (:math:`c`), tensors of no dimensions, ``exp_avg_lr_1``
    (:math:`l`), a float, and ``exp_avg`` and ``exp_avg_sq``, of its shape and dtype. Each class loads the other's
    state_dict. Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped
    by torch's operations. 16-bit parameters are computed in float32 and rounded once, and not after every operation.

    Ziyin, Wang & Ueda, `LaProp: Separating Momentum and Adaptivity in Adam <https://arxiv.org/abs/2002.04839>`_,
    Algorithm 1.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: decay rates of the moments, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: multiplied by the learning rate; applied after the update.
        caution: mask the elements of an update whose sign is not that of the gradient.
        corrected_weight_decay: multiply the decay by ``lr**2 / max_lr`` instead of ``lr``, where ``max_lr`` is the
            learning rate at construction, which must be above 0 then.
        foreach: has no effect on float32 and float64.

    Raises:
        ValueError: an argument is out of its range.
    """
