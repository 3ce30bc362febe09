"""Adan, which torch.optim does not have."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop
from goptim._step import GoStep

__all__ = ["Adan"]


class AdanForLoop(ForLoop):
    """timm.optim.Adan in operations of torch."""

    states = ("exp_avg", "exp_avg_sq", "exp_avg_diff", "neg_pre_grad")
    late = ("neg_pre_grad",)
    entries: ClassVar[dict[str, Any]] = {"step": 0}
    reference = "timm.optim.Adan"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        caution: bool = False,
        foreach: bool | None = None,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require("epsilon value", eps)
        _timm.require_betas(betas)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "no_prox": no_prox,
            "caution": caution,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def restart_opt(self) -> None:
        """Set the averages and the numbers of steps to zero."""
        for group in self.param_groups:
            group["step"] = 0
            for p in group["params"]:
                if p.requires_grad:
                    self.state[p].update({key: torch.zeros_like(p) for key in self.states if key not in self.late})

    def advanced(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"step": group["step"] + 1}

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        g, state, step, lr, weight_decay = p.grad, self.state[p], group["step"] + 1, group["lr"], group["weight_decay"]
        beta1, beta2, beta3 = group["betas"]
        bias1, bias2, bias3 = (1.0 - beta**step for beta in (beta1, beta2, beta3))
        root = math.sqrt(bias3)
        if "neg_pre_grad" not in state or step == 1:
            state["neg_pre_grad"] = -g.clone()
        average, change = state["exp_avg"], state["neg_pre_grad"].add_(g)
        average.lerp_(g, 1 - beta1)
        state["exp_avg_diff"].mul_(beta2).add_(change, alpha=1 - beta2)
        change.mul_(beta2).add_(g)
        state["exp_avg_sq"].mul_(beta3).addcmul_(change, change, value=1 - beta3)
        denom = (state["exp_avg_sq"].sqrt() / root).add_(group["eps"])
        if group["caution"]:
            average = average * _timm.cautious(average, g)
        if group["no_prox"]:
            p.mul_(1 - lr * weight_decay)
        p.addcdiv_(average, denom, value=-(lr / bias1))
        p.addcdiv_(state["exp_avg_diff"], denom, value=-(lr * beta2 / bias2))
        if not group["no_prox"]:
            p.div_(1 + lr * weight_decay)
        change.zero_().add_(g, alpha=-1.0)


class Adan(GoStep, AdanForLoop):
    r"""Adan with its update in Go: the arguments, state and exact results of ``timm.optim.Adan``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1)\, g_t \\
        d_t &\leftarrow \beta_2 d_{t-1} + (1-\beta_2)\, (g_t - g_{t-1}), \quad g_0 = g_1 \\
        n_t &\leftarrow \beta_3 n_{t-1} + (1-\beta_3)\, \big(g_t + \beta_2 (g_t - g_{t-1})\big)^2 \\
        \theta_t &\leftarrow \frac{1}{1 + \gamma\lambda} \bigg(\theta_{t-1} - \gamma\,
        \frac{m_t / (1-\beta_1^t) + \beta_2\, d_t / (1-\beta_2^t)}{\sqrt{n_t / (1-\beta_3^t)} + \epsilon}\bigg)

    The state of a parameter is ``exp_avg`` (:math:`m`), ``exp_avg_sq`` (:math:`n`), ``exp_avg_diff`` (:math:`d`) and
    ``neg_pre_grad`` (:math:`-g_{t-1}`), of its shape and dtype. A group has the number of its steps, ``step``. Each
    class loads the other's state_dict. Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in
    Go; others are stepped by torch's operations. 16-bit parameters are computed in float32 and rounded once, and not
    after every operation.

    Xie et al., `Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models
    <https://arxiv.org/abs/2208.06677>`_, Algorithm 1. The paper's :math:`\beta` are 1 minus these.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: decay rates of the averages of gradients, of their changes and of squares, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: divides the parameter by 1 plus the learning rate times this.
        no_prox: multiply the parameter by 1 minus that product instead, before the update.
        caution: mask the elements of an update whose sign is not that of the gradient.
        foreach: has no effect on float32 and float64.

    Raises:
        ValueError: an argument is out of its range.
    """
