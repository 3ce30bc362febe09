"""LARS, which torch.optim does not have."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop
from goptim._lists import order_of_norms
from goptim._step import GoStep

__all__ = ["LARS"]


class LARSForLoop(ForLoop):
    """timm.optim.Lars in operations of torch."""

    states = ("momentum_buffer",)
    when: ClassVar[dict[str, str]] = {"momentum_buffer": "momentum"}
    reference = "timm.optim.Lars"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        trust_coeff: float = 0.001,
        eps: float = 1e-8,
        trust_clip: bool = False,
        always_adapt: bool = False,
        foreach: bool | None = None,
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
            "trust_coeff": trust_coeff,
            "eps": eps,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def _init_group(self, group: dict[str, Any]) -> None:
        for p in group["params"] if group["momentum"] != 0 else ():
            if p.grad is not None:
                self.state[p]  # in the order of the parameters; the first step creates the buffer

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        g, momentum, weight_decay = p.grad, group["momentum"], group["weight_decay"]
        if weight_decay != 0 or group["always_adapt"]:
            g = g.add(p, alpha=weight_decay).mul_(_trust(p.norm(2.0), p.grad.norm(2.0), group))
        if momentum != 0:
            state = self.state[p]
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = torch.clone(g).detach()
            else:
                buffer.mul_(momentum).add_(g, alpha=1 - group["dampening"])
            g = g.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        p.add_(g, alpha=-group["lr"])


def _trust(of_param: Tensor, of_grad: Tensor, group: dict[str, Any]) -> Tensor:
    """The factor of a gradient from two norms."""
    trust = group["trust_coeff"] * of_param / (of_grad + of_param * group["weight_decay"] + group["eps"])
    trust = torch.where((of_param > 0) & (of_grad > 0), trust, 1.0)
    return torch.clamp(trust / group["lr"], max=1.0) if group["trust_clip"] else trust


class LARS(GoStep, LARSForLoop):
    r"""LARS with its update in Go: the arguments and exact results of ``timm.optim.Lars`` with ``foreach=False``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        r_t &= \eta\, \lVert\theta_{t-1}\rVert / (\lVert g_t\rVert + \lambda \lVert\theta_{t-1}\rVert + \epsilon)
        \text{, or 1 if a norm is 0} \\
        d_t &= r_t\, (g_t + \lambda\theta_{t-1}), \quad b_t \leftarrow \mu b_{t-1} + (1-\tau)\, d_t, \quad b_1 = d_1 \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, (d_t + \mu b_t \text{ if nesterov, else } b_t)

    Without weight decay, gradients are not adapted, unless ``always_adapt``. ``trust_clip`` (LARC) replaces :math:`r_t`
    by :math:`\min(r_t / \gamma, 1)`. The norms are those of torch, in its order. The state of a parameter is
    ``momentum_buffer``, of its shape and dtype, if there is momentum. Each class loads the other's state_dict. Float32,
    float64, bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's
    operations. 16-bit parameters are computed in float32 and rounded once, and not after every operation.

    You, Gitman & Ginsburg, `Large Batch Training of Convolutional Networks <https://arxiv.org/abs/1708.03888>`_,
    Algorithm 1.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        momentum: decay of the momentum buffer, at least 0.
        dampening: 1 - dampening multiplies a gradient in the buffer, except the first one.
        weight_decay: at least 0; added to the gradient, times the parameter.
        nesterov: Nesterov momentum, which requires a momentum and zero dampening.
        trust_coeff: factor of the ratio of the norms.
        eps: added to the norm of the gradient.
        trust_clip: divide the ratio by the learning rate, and bound it by 1.
        always_adapt: adapt gradients without weight decay too.
        foreach: has no effect on float32 and float64.

    Raises:
        ValueError: an argument is out of its range.
    """

    elementwise = False

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (order_of_norms(),)
