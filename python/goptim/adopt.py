"""ADOPT under the name of its authors' package, torch-adopt, and with its arguments and exact results.

The package is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _timm
from goptim._for_loop import ForLoop
from goptim._parts import Part
from goptim._step import GoStep

__all__ = ["ADOPT"]


def _fourth_root(step: float) -> Any:
    return step**0.25


class AdoptADOPTForLoop(ForLoop):
    """adopt.ADOPT in operations of torch."""

    states = ("step", "exp_avg", "exp_avg_sq")
    sparse = False
    reference = "adopt.ADOPT"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_lambda: Callable[[Any], float] | None = _fourth_root,
        weight_decay: float = 0.0,
        decouple: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        _timm.require("learning rate", lr)
        _timm.require("epsilon", eps)
        _timm.require_betas(betas)
        _timm.require("weight_decay value", weight_decay)
        if fused:
            raise RuntimeError("Invalid fused: True, expected False or None")
        self.clip_lambda = clip_lambda
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple": decouple,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "clip_lambda": self.clip_lambda}

    @property
    def reason_unsaved(self) -> str | None:
        return None if self.clip_lambda is _fourth_root else "its clip_lambda is a function"

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        lr, (beta1, beta2), weight_decay, state = group["lr"], group["betas"], group["weight_decay"], self.state[p]
        g = -p.grad if group["maximize"] else p.grad
        step = state["step"].item()
        if weight_decay != 0 and not group["decouple"]:
            g = g.add(p, alpha=weight_decay)
        x, g, m, v = _timm.as_real(p, g, state["exp_avg"], state["exp_avg_sq"])
        state["step"] += 1
        if step == 0:
            v.addcmul_(g, g.conj())
            return
        if weight_decay != 0 and group["decouple"]:
            _timm.add_scaled_(x, x, -lr * weight_decay)
        normed = g.div(torch.clamp(v.sqrt(), group["eps"]))
        if self.clip_lambda is not None:
            bound = self.clip_lambda(step)
            normed.clamp_(-bound, bound)
        m.lerp_(normed, 1 - beta1)
        _timm.add_scaled_(x, m, -lr)
        v.mul_(beta2).addcmul_(g, g.conj(), value=1 - beta2)


class _ADOPTPart(Part):
    @cached_property
    def reason_of_group(self) -> str | None:
        if self.optimizer.clip_lambda is not _fourth_root:  # type: ignore[attr-defined]
            return "its clip_lambda is not the default"
        return super().reason_of_group


class ADOPT(GoStep, AdoptADOPTForLoop):
    r"""ADOPT with its update in Go: the arguments, state and exact results of ``adopt.ADOPT`` of torch-adopt.

    It is :class:`goptim.ADOPT` with another bound of normalized gradients. For a parameter :math:`\theta` with gradient
    :math:`g_t`, from its second step on:

    .. math::
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1)\,
        \text{clip}\big(g_t / \max(\sqrt{v_{t-1}}, \epsilon),\ \pm \sqrt[4]{t-1}\big) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, m_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2

    The first step only sets :math:`v = g^2`. The state of a parameter is ``step``, a tensor of no dimensions, and
    ``exp_avg`` and ``exp_avg_sq``, of its shape and dtype. Each class loads the other's state_dict.

    Taniguchi et al., `ADOPT: Modified Adam Can Converge with Any β2 with the Optimal Rate
    <https://arxiv.org/abs/2411.02853>`_, Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: decay rates of the moments, each in [0, 1).
        eps: the smallest denominator, at least 0.
        clip_lambda: the bound of normalized gradients, a function of the number of steps before; None for no bound.
            With any but the default, torch steps the parameters. It is not in ``param_groups``, and a state_dict does
            not have it. ``goptim.save_state`` rejects such an optimizer.
        weight_decay: at least 0; added to the gradient, times the parameter.
        decouple: shrink the parameter by the learning rate times ``weight_decay`` instead.
        foreach: has no effect on float32 and float64.
        maximize: add the update instead of subtracting it.
        capturable: must be False at a step, since CUDA graphs are not supported.
        differentiable: torch steps such groups.
        fused: must not be True.

    Raises:
        RuntimeError: ``fused`` is True.
        ValueError: an argument is out of its range.
    """

    part_class = _ADOPTPart

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        options = super().options(group)
        return options if self.clip_lambda is _fourth_root else {**options, "eps": None}  # falls back to torch
