"""ADOPT, which torch.optim does not have."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop
from goptim._step import GoStep

__all__ = ["ADOPT"]


class ADOPTForLoop(ForLoop):
    """timm.optim.Adopt in operations of torch."""

    states = ("step", "exp_avg", "exp_avg_sq")
    sparse = False
    reference = "timm.optim.Adopt"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_exp: float | None = 0.333,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        corrected_weight_decay: bool = False,
        *,
        caution: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require("epsilon", eps)
        _timm.require_betas(betas)
        _timm.require("weight_decay value", weight_decay)
        if clip_exp is not None and not math.isfinite(clip_exp):
            raise ValueError(f"Invalid clip_exp: {clip_exp}, expected a finite number or None")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "clip_exp": clip_exp,
            "decoupled": decoupled,
            "corrected_weight_decay": corrected_weight_decay,
            "max_lr_snapshot": _timm.largest_lr(lr, corrected_weight_decay),
            "caution": caution,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        lr, (beta1, beta2), weight_decay, state = group["lr"], group["betas"], group["weight_decay"], self.state[p]
        g = -p.grad if group["maximize"] else p.grad
        state["step"] += 1
        x, g, m, v = _timm.as_real(p, g, state["exp_avg"], state["exp_avg_sq"])
        if weight_decay != 0 and not group["decoupled"]:
            g = g.add(x, alpha=weight_decay)
        step = state["step"].item()
        if step == 1:
            v.addcmul_(g, g.conj())
            return
        if weight_decay != 0 and group["decoupled"]:
            _timm.add_scaled_(x, x, -_timm.decay_rate(group) * weight_decay)
        normed = g.div(torch.clamp(v.sqrt(), group["eps"]))
        if group["clip_exp"] is not None:
            bound = (step - 1) ** group["clip_exp"]
            normed.clamp_(-bound, bound)
        m.lerp_(normed, 1 - beta1)
        if group["caution"]:
            m = m * _timm.cautious(m, g)
        _timm.add_scaled_(x, m, -lr)
        v.mul_(beta2).addcmul_(g, g.conj(), value=1 - beta2)


class ADOPT(GoStep, ADOPTForLoop):
    r"""ADOPT with its update in Go: the arguments, state and exact results of ``timm.optim.Adopt``.

    For a parameter :math:`\theta` with gradient :math:`g_t`, from its second step on:

    .. math::
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1)\,
        \text{clip}\big(g_t / \max(\sqrt{v_{t-1}}, \epsilon),\ \pm (t-1)^\text{clip\_exp}\big) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, m_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2

    The first step only sets :math:`v = g^2`. The state of a parameter is ``step``, a tensor of no dimensions, and
    ``exp_avg`` and ``exp_avg_sq``, of its shape and dtype. Each class loads the other's state_dict. Float32, float64,
    bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's operations. 16-bit
    parameters are computed in float32 and rounded once, and not after every operation.

    Taniguchi et al., `ADOPT: Modified Adam Can Converge with Any β2 with the Optimal Rate
    <https://arxiv.org/abs/2411.02853>`_, Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: decay rates of the moments, each in [0, 1).
        eps: the smallest denominator, at least 0.
        clip_exp: exponent of the bound of normalized gradients; None for no bound.
        weight_decay: at least 0; added to the gradient, times the parameter.
        decoupled: shrink the parameter by the learning rate times ``weight_decay`` instead.
        corrected_weight_decay: multiply decoupled decay by ``lr**2 / max_lr`` instead of ``lr``, where ``max_lr`` is
            the learning rate at construction, which must be above 0 then.
        caution: mask the elements of an update whose sign is not that of the gradient.
        foreach: has no effect on float32 and float64.
        maximize: add the update instead of subtracting it.
        capturable: must be False at a step, since CUDA graphs are not supported.
        differentiable: torch steps such groups.

    Raises:
        ValueError: an argument is out of its range.
    """

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        options = super().options(group)
        clip_exp = options["clip_exp"]
        if clip_exp is None:
            return {**options, "clip_exp": math.inf}  # to Go: no bound
        if isinstance(clip_exp, float) and not math.isfinite(clip_exp):
            return {**options, "clip_exp": None}  # falls back to torch
        return options
