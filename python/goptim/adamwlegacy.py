"""AdamW with timm's options, which torch.optim does not have."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop
from goptim._lists import order_of_norms
from goptim._step import GoStep

__all__ = ["AdamWLegacy"]


class AdamWLegacyForLoop(ForLoop):
    """timm.optim.AdamWLegacy in operations of torch."""

    states = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    when: ClassVar[dict[str, str]] = {"max_exp_avg_sq": "amsgrad"}
    sparse = False
    reference = "timm.optim.AdamWLegacy"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        clipping_threshold: float | None = None,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require("epsilon", eps)
        _timm.require_betas(betas)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "caution": caution,
            "corrected_weight_decay": corrected_weight_decay,
            "max_lr_snapshot": _timm.largest_lr(lr, corrected_weight_decay),
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "clipping_threshold": clipping_threshold,
        }
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        lr, (beta1, beta2), state = group["lr"], group["betas"], self.state[p]
        g = -p.grad if group["maximize"] else p.grad
        x, g, m, v = _timm.as_real(p, g, state["exp_avg"], state["exp_avg_sq"])
        state["step"] += 1
        x.mul_(1.0 - _timm.decay_rate(group) * group["weight_decay"])
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if group["amsgrad"]:
            (most,) = _timm.as_real(state["max_exp_avg_sq"])
            v = torch.maximum(most, v, out=most)
        step = state["step"].item()
        step_size = lr / (1 - beta1**step)
        root = (1 - beta2**step) ** 0.5
        denom = (v.sqrt() / root).add_(group["eps"])
        if group["clipping_threshold"] is not None:
            _timm.clip_(denom, g, group["clipping_threshold"])
        if group["caution"]:
            m = m * _timm.cautious(m, g)
        x.addcdiv_(m, denom, value=-step_size)


class AdamWLegacy(GoStep, AdamWLegacyForLoop):
    r"""AdamW with timm's options, in Go: the arguments, state and exact results of ``timm.optim.AdamWLegacy``.

    For a parameter :math:`\theta` with gradient :math:`g_t`, as in AdamW:

    .. math::
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \quad
        v_t \leftarrow \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2 \\
        d_t &= \sqrt{v_t / (1-\beta_2^t)} + \epsilon \\
        \theta_t &\leftarrow (1 - \gamma\lambda)\, \theta_{t-1} - \frac{\gamma}{1-\beta_1^t}\, m_t / d_t

    ``caution`` replaces :math:`m_t` by :math:`m_t\, \phi_t / \max(\bar\phi_t, 10^{-3})`, where :math:`\phi_t` is 1 for
    elements with :math:`m_t g_t > 0`, and otherwise 0. ``clipping_threshold``, :math:`c`, multiplies :math:`d_t` by
    :math:`\max(1, \text{rms}(g_t / d_t) / c)`. The mean and the norm are those of torch, in its order.

    The state of a parameter is ``step``, a tensor of no dimensions, and ``exp_avg``, ``exp_avg_sq`` and, with
    ``amsgrad``, ``max_exp_avg_sq``, of its shape and dtype. Each class loads the other's state_dict. Float32, float64,
    bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's operations. 16-bit
    parameters are computed in float32 and rounded once, and not after every operation.

    Loshchilov & Hutter, `Decoupled Weight Decay Regularization <https://arxiv.org/abs/1711.05101>`_, Algorithm 2; Liang
    et al., `Cautious Optimizers <https://arxiv.org/abs/2411.16085>`_, Algorithm 1; Wortsman et al., `Stable and
    low-precision training for large-scale vision-language models <https://arxiv.org/abs/2304.13013>`_; Defazio, `Why
    Gradients Rapidly Increase Near the End of Training <https://arxiv.org/abs/2506.02285>`_.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: decay rates of the moments, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: multiplied by the learning rate.
        amsgrad: divide by the largest second moment so far.
        caution: mask the elements of an update whose sign is not that of the gradient.
        corrected_weight_decay: multiply the decay by ``lr**2 / max_lr`` instead of ``lr``, where ``max_lr`` is the
            learning rate at construction, which must be above 0 then.
        maximize: add the update instead of subtracting it.
        foreach: has no effect on float32 and float64.
        capturable: must be False at a step, since CUDA graphs are not supported.
        clipping_threshold: largest root mean square of an update; None for no bound.

    Raises:
        ValueError: an argument is out of its range.
    """

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        return _timm.bounded(super().options(group))

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (order_of_norms(),)
