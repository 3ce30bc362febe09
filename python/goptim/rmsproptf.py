"""RMSprop as in TensorFlow, which torch.optim does not have."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop
from goptim._step import GoStep

__all__ = ["RMSpropTF"]


class RMSpropTFForLoop(ForLoop):
    """timm.optim.RMSpropTF in operations of torch."""

    states = ("step", "square_avg", "momentum_buffer", "grad_avg")
    initial: ClassVar[dict[str, float]] = {"square_avg": 1.0}
    when: ClassVar[dict[str, str]] = {"momentum_buffer": "momentum", "grad_avg": "centered"}
    sparse = False
    reference = "timm.optim.RMSpropTF"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0,
        momentum: float = 0.0,
        centered: bool = False,
        decoupled_decay: bool = False,
        corrected_weight_decay: bool = False,
        lr_in_momentum: bool = True,
        caution: bool = False,
        foreach: bool | None = None,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require("epsilon", eps)
        _timm.require("momentum", momentum)
        _timm.require("weight_decay", weight_decay)
        _timm.require("alpha value", alpha)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "decoupled_decay": decoupled_decay,
            "corrected_weight_decay": corrected_weight_decay,
            "max_lr_snapshot": _timm.largest_lr(lr, corrected_weight_decay),
            "lr_in_momentum": lr_in_momentum,
            "caution": caution,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        g, lr, weight_decay, state = p.grad, group["lr"], group["weight_decay"], self.state[p]
        square, weight = state["square_avg"], 1.0 - group["alpha"]
        state["step"] += 1
        if weight_decay != 0 and group["decoupled_decay"]:
            p.mul_(1.0 - _timm.decay_rate(group) * weight_decay)
        elif weight_decay != 0:
            g = g.add(p, alpha=weight_decay)
        square.add_(g.pow(2) - square, alpha=weight)
        if group["centered"]:
            average = state["grad_avg"]
            average.add_(g - average, alpha=weight)
            root = square.addcmul(average, average, value=-1).add(group["eps"]).sqrt_()
        else:
            root = square.add(group["eps"]).sqrt_()
        if not group["momentum"] > 0:
            _add_quotient_(p, g, root, -lr)
            return
        buffer = state["momentum_buffer"].mul_(group["momentum"])
        _add_quotient_(buffer, g, root, lr if group["lr_in_momentum"] else 1)
        if group["caution"]:
            buffer = buffer * _timm.cautious(buffer, g)
        if group["lr_in_momentum"]:
            p.add_(-buffer)
        else:
            _timm.add_scaled_(p, buffer, -lr)


def _add_quotient_(p: Tensor, a: Tensor, b: Tensor, scale: Any) -> None:
    """``p.addcdiv_(a, b, value=scale)``, also for a scale that is a Tensor."""
    if isinstance(scale, Tensor):
        p.add_(a / b * scale)
    else:
        p.addcdiv_(a, b, value=scale)


class RMSpropTF(GoStep, RMSpropTFForLoop):
    r"""RMSprop as in TensorFlow, in Go: the arguments, state and exact results of ``timm.optim.RMSpropTF``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        v_t &\leftarrow v_{t-1} + (1-\alpha)\, (g_t^2 - v_{t-1}), \quad v_0 = 1 \\
        a_t &\leftarrow a_{t-1} + (1-\alpha)\, (g_t - a_{t-1}) \text{ if centered, else } 0 \\
        b_t &\leftarrow \mu b_{t-1} + \gamma\, g_t / \sqrt{v_t - a_t^2 + \epsilon} \\
        \theta_t &\leftarrow \theta_{t-1} - b_t

    It differs from ``RMSprop`` of torch.optim in :math:`\epsilon`, which is under the root, in
    :math:`v_0`, and in the learning rate, which the momentum buffer contains if ``lr_in_momentum`` is set. The state of
    a parameter is ``step``, a tensor of no dimensions, and, of its shape and dtype, ``square_avg``, with momentum
    ``momentum_buffer``, and if centered ``grad_avg``. Each class loads the other's state_dict. Float32, float64,
    bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's operations. 16-bit
    parameters are computed in float32 and rounded once, and not after every operation.

    Tieleman & Hinton, Lecture 6.5, COURSERA: Neural Networks for Machine Learning (2012); centered, Graves, `Generating
    Sequences With Recurrent Neural Networks <https://arxiv.org/abs/1308.0850>`_.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        alpha: decay rate of the averages, at least 0.
        eps: added to the average of squares, at least 0.
        weight_decay: at least 0; added to the gradient, times the parameter.
        momentum: decay of the momentum buffer, at least 0.
        centered: divide by the deviation from the average gradient.
        decoupled_decay: shrink the parameter by the learning rate times ``weight_decay`` instead.
        corrected_weight_decay: multiply decoupled decay by ``lr**2 / max_lr`` instead of ``lr``, where ``max_lr`` is
            the learning rate at construction, which must be above 0 then.
        lr_in_momentum: the learning rate multiplies what is added to the momentum buffer, instead of the buffer.
        caution: mask the elements of an update whose sign is not that of the gradient.
        foreach: has no effect on float32 and float64.

    Raises:
        ValueError: an argument is out of its range.
    """
