"""SGDW, which torch.optim does not have."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop
from goptim._step import GoStep

__all__ = ["SGDW"]


class SGDWForLoop(ForLoop):
    """timm.optim.SGDW in operations of torch."""

    states = ("momentum_buffer",)
    when: ClassVar[dict[str, str]] = {"momentum_buffer": "momentum"}
    reference = "timm.optim.SGDW"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require("momentum value", momentum)
        _timm.require("weight_decay value", weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "caution": caution,
            "corrected_weight_decay": corrected_weight_decay,
            "max_lr_snapshot": _timm.largest_lr(lr, corrected_weight_decay),
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _init_group(self, group: dict[str, Any]) -> None:
        for p in group["params"] if group["momentum"] != 0 else ():
            if p.grad is not None:
                self.state[p]  # in the order of the parameters; the first step creates the buffer

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        momentum = group["momentum"]
        g = -p.grad if group["maximize"] else p.grad
        p.mul_(1.0 - _timm.decay_rate(group) * group["weight_decay"])
        if momentum != 0:
            state = self.state[p]
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = torch.clone(g).detach()
            else:
                buffer.mul_(momentum).add_(g, alpha=1 - group["dampening"])
            update = g.add(buffer, alpha=momentum) if group["nesterov"] else buffer
            g = update * _timm.cautious(update, g) if group["caution"] else update
        p.add_(g, alpha=-group["lr"])


class SGDW(GoStep, SGDWForLoop):
    r"""SGDW with its update in Go: the arguments and exact results of ``timm.optim.SGDW``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        b_t &\leftarrow \mu b_{t-1} + (1-\tau)\, g_t, \quad b_1 = g_1 \\
        \theta_t &\leftarrow (1 - \gamma\lambda)\, \theta_{t-1}
        - \gamma\, (g_t + \mu b_t \text{ if nesterov, else } b_t)

    The state of a parameter is ``momentum_buffer``, of its shape and dtype, if there is momentum; without it, timm
    stores None under this key, and goptim nothing. Each class loads the other's state_dict. Float32, float64, bfloat16
    and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's operations. 16-bit
    parameters are computed in float32 and rounded once, and not after every operation.

    Loshchilov & Hutter, `Decoupled Weight Decay Regularization <https://arxiv.org/abs/1711.05101>`_, Algorithm 1.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        momentum: decay of the momentum buffer, at least 0.
        dampening: 1 - dampening multiplies a gradient in the buffer, except the first one.
        weight_decay: at least 0; multiplied by the learning rate.
        nesterov: Nesterov momentum, which requires a momentum and zero dampening.
        caution: mask the elements of an update whose sign is not that of the gradient.
        corrected_weight_decay: multiply the decay by ``lr**2 / max_lr`` instead of ``lr``, where ``max_lr`` is the
            learning rate at construction, which must be above 0 then.
        maximize: add the update instead of subtracting it.
        foreach: has no effect on float32 and float64.
        differentiable: torch steps such groups.

    Raises:
        ValueError: an argument is out of its range.
    """
