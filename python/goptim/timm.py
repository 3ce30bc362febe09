"""Optimizers of timm, under its names and with its arguments and exact results. timm is not needed.

Those that timm does not compute differently than goptim's class of the same name are that class.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._adopt import ADOPT as Adopt
from goptim._for_loop import ForLoop
from goptim._step import GoStep
from goptim.adamwlegacy import AdamWLegacy as AdamWLegacy
from goptim.adan import Adan as Adan
from goptim.lamb import LAMB as Lamb
from goptim.laprop import LaProp as LaProp
from goptim.lars import LARS as Lars
from goptim.nadamw import NAdamW as NAdamW
from goptim.rmsproptf import RMSpropTF as RMSpropTF
from goptim.sgdw import SGDW as SGDW

__all__ = ["SGDW", "AdamWLegacy", "Adan", "Adopt", "LaProp", "Lamb", "Lars", "Lion", "NAdamW", "RMSpropTF"]


class TimmLionForLoop(ForLoop):
    """timm.optim.Lion in operations of torch."""

    states = ("exp_avg",)
    sparse = False
    reference = "timm.optim.Lion"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require_betas(betas)
        _timm.require("weight_decay value", weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "caution": caution,
            "corrected_weight_decay": corrected_weight_decay,
            "max_lr_snapshot": _timm.largest_lr(lr, corrected_weight_decay),
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        beta1, beta2 = group["betas"]
        x, g, m = _timm.as_real(p, -p.grad if group["maximize"] else p.grad, self.state[p]["exp_avg"])
        x.mul_(1 - _timm.decay_rate(group) * group["weight_decay"])
        update = m.lerp(g, 1 - beta1).sign_()
        if group["caution"]:
            update.mul_(_timm.cautious(update, g))
        _timm.add_scaled_(x, update, -group["lr"])
        m.lerp_(g, 1 - beta2)


class Lion(GoStep, TimmLionForLoop):
    r"""Lion with its update in Go: the arguments, state and exact results of ``timm.optim.Lion``.

    It is :class:`goptim.Lion`, with averages that are rounded differently and other arguments. The state of a parameter
    is ``exp_avg``, a tensor of its shape and dtype. Each class loads the other's state_dict. For a parameter
    :math:`\theta` with gradient :math:`g_t`:

    .. math::
        \theta_t &\leftarrow (1 - \gamma\lambda)\, \theta_{t-1}
        - \gamma\, \text{sign}(m_{t-1} + (1-\beta_1) (g_t - m_{t-1})) \\
        m_t &\leftarrow m_{t-1} + (1-\beta_2) (g_t - m_{t-1})

    Chen et al., `Symbolic Discovery of Optimization Algorithms <https://arxiv.org/abs/2302.06675>`_, Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: weights of the average, in the direction of a step and from step to step, each in [0, 1).
        weight_decay: at least 0; multiplied by the learning rate.
        caution: mask the elements of an update whose sign is not that of the gradient.
        corrected_weight_decay: multiply the decay by ``lr**2 / max_lr`` instead of ``lr``, where ``max_lr`` is the
            learning rate at construction, which must be above 0 then.
        maximize: add the update instead of subtracting it.
        foreach: has no effect on float32 and float64.

    Raises:
        ValueError: an argument is out of its range.
    """
