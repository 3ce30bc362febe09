"""AdEMAMix, which torch.optim does not have."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _ademamix, _timm
from goptim._for_loop import ForLoop
from goptim._step import GoStep

__all__ = ["AdEMAMix"]


class AdEMAMixForLoop(ForLoop):
    """pytorch_optimizer.AdEMAMix in operations of torch."""

    states = ("exp_avg", "exp_avg_sq", "exp_avg_slow")
    sparse = complexes = False
    entries: ClassVar[dict[str, Any]] = {"step": 0}
    reference = "pytorch_optimizer.AdEMAMix"
    other_arguments = ("maximize",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        weight_decay: float = 0.0,
        weight_decouple: bool = False,
        fixed_decay: bool = False,
        alpha: float = 5.0,
        t_alpha_beta3: float | None = None,
        eps: float = 1e-8,
        maximize: bool = False,
        foreach: bool | None = None,
        **kwargs: Any,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require_betas(betas[:2])
        if not 0 <= betas[2] <= 1:
            raise ValueError(f"Invalid beta parameter at index 2: {betas[2]}, expected 0 to 1")
        _timm.require("alpha", alpha)
        if t_alpha_beta3 is not None:
            _timm.require("t_alpha_beta3", t_alpha_beta3)
        _timm.require("weight_decay value", weight_decay)
        _timm.require("epsilon value", eps)
        if kwargs:
            raise TypeError(f"Invalid argument: {', '.join(kwargs)}, which goptim's AdEMAMix does not have")
        self.maximize = maximize
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "weight_decouple": weight_decouple,
            "fixed_decay": fixed_decay,
            "alpha": alpha,
            "t_alpha_beta3": t_alpha_beta3,
            "eps": eps,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    @classmethod
    def replaces(cls, **arguments: Any) -> bool:
        return not arguments.get("kwargs")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "maximize": self.maximize}

    @property
    def reason_unsaved(self) -> str | None:
        return "its maximize is not in its groups" if self.maximize else None

    def advanced(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"step": group["step"] + 1}

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        g, state, step, lr, weight_decay = p.grad, self.state[p], group["step"] + 1, group["lr"], group["weight_decay"]
        (beta1, beta2, beta3), alpha, warmup = group["betas"], group["alpha"], group["t_alpha_beta3"]
        bias1 = 1.0 - math.pow(beta1, step)
        root = math.sqrt(1.0 - math.pow(beta2, step))
        if warmup is not None:
            alpha = min(step * alpha / warmup, alpha)
            beta3 = _ademamix.warm_beta(step, warmup, beta1, beta3)
        if self.maximize:
            g = -g
        if weight_decay != 0 and group["weight_decouple"]:
            p.mul_(1.0 - weight_decay * (1.0 if group["fixed_decay"] else lr))
        elif weight_decay > 0:
            g = g.add(p, alpha=weight_decay)
        average = state["exp_avg"].lerp_(g, 1.0 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        slow = state["exp_avg_slow"].lerp_(g, 1.0 - beta3)
        denom = square.sqrt().div_(root).add_(group["eps"])
        p.addcdiv_(average.div(bias1).add_(slow, alpha=alpha), denom, value=-lr)


class AdEMAMix(GoStep, AdEMAMixForLoop):
    r"""AdEMAMix with its update in Go: the arguments, state and exact results of ``pytorch_optimizer.AdEMAMix``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1)\, g_t \\
        s_t &\leftarrow \beta_3 s_{t-1} + (1-\beta_3)\, g_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\,
        \frac{m_t / (1-\beta_1^t) + \alpha\, s_t}{\sqrt{v_t / (1-\beta_2^t)} + \epsilon}

    The state of a parameter is ``exp_avg`` (:math:`m`), ``exp_avg_sq`` (:math:`v`) and ``exp_avg_slow`` (:math:`s`), of
    its shape and dtype. A group has the number of its steps, ``step``. Each class loads the other's state_dict.
    Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's
    operations. 16-bit parameters are computed in float32 and rounded once, and not after every operation. Gradients are
    not changed, where those of ``pytorch_optimizer`` include the weight decay after a step. The optimizer that
    transformers names ``ademamix`` is :class:`goptim.bitsandbytes.AdEMAMix`.

    Pagliardini, Ablin & Grangier, `The AdEMAMix Optimizer: Better, Faster, Older <https://arxiv.org/abs/2409.03137>`_,
    Algorithm 1.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: decay rates of the fast average and of squares, in [0, 1), and of the slow average, in [0, 1].
        weight_decay: at least 0; added to the gradient, times the parameter.
        weight_decouple: shrink the parameter by the learning rate times ``weight_decay`` instead.
        fixed_decay: with ``weight_decouple``, shrink it by ``weight_decay``.
        alpha: weight of the slow average, at least 0.
        t_alpha_beta3: the number of steps in which ``alpha`` and the decay rate of the slow average grow to their
            values; None for constant ones.
        eps: added to the denominator, at least 0.
        maximize: add the update instead of subtracting it. It is not in ``param_groups``, and a state_dict does not
            have it. ``goptim.save_state`` rejects such an optimizer.
        foreach: has no effect on float32 and float64.
        kwargs: must be empty: ``cautious`` and ``stable_adamw`` of ``pytorch_optimizer`` are not supported.

    Raises:
        TypeError: there are other arguments.
        ValueError: an argument is out of its range.
    """

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        options = _ademamix.warming(super().options(group), "t_alpha_beta3")
        return {**options, "maximize": self.maximize}
