"""NAdam."""

from __future__ import annotations

from typing import Any

import torch

from goptim._step import GoStep


class NAdam(GoStep, torch.optim.NAdam):
    """torch.optim.NAdam with its update in Go: the same arguments, state and bits.

    The state of a parameter is ``step``, ``mu_product``, ``exp_avg`` and ``exp_avg_sq``. Parameters are float32 or
    float64 tensors of any shape on the CPU; others are updated by torch's own step. ``foreach`` is accepted and
    checked as torch does; Go's one path serves all.

    Dozat, `Incorporating Nesterov Momentum into Adam <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_,
    ICLR 2016 workshop, Algorithm 2.
    """

    twin = torch.optim.NAdam
    numbers = 1

    def columns(self, group: dict[str, Any]) -> tuple[str | None, ...]:
        return ("mu_product", "exp_avg", "exp_avg_sq")

    def scalars(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["momentum_decay"],
            bool(group["decoupled_weight_decay"]),
            bool(group["maximize"]),
        )
