"""RMSprop as in Stable-Baselines3, which torch.optim does not have."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop
from goptim._step import GoStep

__all__ = ["RMSpropTFLike"]


class RMSpropTFLikeForLoop(ForLoop):
    """RMSpropTFLike of stable_baselines3 in operations of torch."""

    states = ("step", "square_avg", "momentum_buffer", "grad_avg")
    initial: ClassVar[dict[str, float]] = {"square_avg": 1.0}
    numbers: ClassVar[dict[str, int | float]] = {"step": 0}
    when: ClassVar[dict[str, str]] = {"momentum_buffer": "momentum", "grad_avg": "centered"}
    sparse = False
    reference = "stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require("epsilon value", eps)
        _timm.require("momentum value", momentum)
        _timm.require("weight_decay value", weight_decay)
        _timm.require("alpha value", alpha)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("momentum", 0)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        g, alpha, state = p.grad, group["alpha"], self.state[p]
        state["step"] += 1
        if group["weight_decay"] != 0:
            g = g.add(p, alpha=group["weight_decay"])
        square = state["square_avg"].mul_(alpha).addcmul_(g, g, value=1 - alpha)
        if group["centered"]:
            average = state["grad_avg"].mul_(alpha).add_(g, alpha=1 - alpha)
            square = square.addcmul(average, average, value=-1)
        root = square.add(group["eps"]).sqrt_()
        if group["momentum"] > 0:
            buffer = state["momentum_buffer"].mul_(group["momentum"]).addcdiv_(g, root)
            p.add_(buffer, alpha=-group["lr"])
        else:
            p.addcdiv_(g, root, value=-group["lr"])


class RMSpropTFLike(GoStep, RMSpropTFLikeForLoop):
    r"""RMSprop of Stable-Baselines3 with its update in Go: the arguments, state and exact results of
    ``stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        v_t &\leftarrow \alpha v_{t-1} + (1-\alpha)\, g_t^2, \quad v_0 = 1 \\
        a_t &\leftarrow \alpha a_{t-1} + (1-\alpha)\, g_t \text{ if centered, else } 0 \\
        b_t &\leftarrow \mu b_{t-1} + g_t / \sqrt{v_t - a_t^2 + \epsilon} \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma b_t

    It differs from ``RMSprop`` of torch.optim in :math:`\epsilon`, which is under the root, and in :math:`v_0`. The
    state of a parameter is ``step``, an int, and, of its shape and dtype, ``square_avg``, with momentum
    ``momentum_buffer``, and if centered ``grad_avg``. Each class loads the other's state_dict. Float32, float64,
    bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's operations. 16-bit
    parameters are computed in float32 and rounded once, and not after every operation.

    Tieleman & Hinton, Lecture 6.5 - RMSprop, COURSERA: Neural Networks for Machine Learning, 2012; centered: Graves,
    `Generating Sequences With Recurrent Neural Networks <https://arxiv.org/abs/1308.0850>`_, equations 38 to 45.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        alpha: decay rate of the averages, at least 0.
        eps: added to the average of squares, under the root; at least 0.
        weight_decay: at least 0; added to the gradient, times the parameter.
        momentum: decay of the momentum buffer, at least 0; 0 disables it.
        centered: divide by the deviation from the average gradient.

    Raises:
        ValueError: an argument is out of its range.
    """
