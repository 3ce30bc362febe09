"""RAdam."""

from __future__ import annotations

from typing import Any

import torch

from goptim._step import GoStep


class RAdam(GoStep, torch.optim.RAdam):
    """torch.optim.RAdam with its update in Go: the same arguments, state and bits.

    The state of a parameter is ``step``, ``exp_avg`` and ``exp_avg_sq``. Parameters are float32 or float64 tensors
    of any shape on the CPU; others are updated by torch's own step. ``foreach`` is accepted and checked as torch
    does; Go's one path serves all.

    Liu et al., `On the Variance of the Adaptive Learning Rate and Beyond <https://arxiv.org/abs/1908.03265>`_,
    Algorithm 2.
    """

    twin = torch.optim.RAdam

    def columns(self, group: dict[str, Any]) -> tuple[str | None, ...]:
        return ("exp_avg", "exp_avg_sq")

    def scalars(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            bool(group["decoupled_weight_decay"]),
            bool(group["maximize"]),
        )
