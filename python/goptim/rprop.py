"""Rprop."""

from __future__ import annotations

from typing import Any

import torch

from goptim._step import GoStep


class Rprop(GoStep, torch.optim.Rprop):
    """torch.optim.Rprop with its update in Go: the same arguments, state and bits.

    The state of a parameter is ``step``, ``prev`` and ``step_size``. Parameters are float32 or float64 tensors of
    any shape on the CPU; others are updated by torch's own step. ``foreach`` is accepted and checked as torch does;
    Go's one path serves all.

    Riedmiller & Braun, `A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm
    <https://doi.org/10.1109/ICNN.1993.298623>`_, ICNN 1993.
    """

    twin = torch.optim.Rprop

    def columns(self, group: dict[str, Any]) -> tuple[str | None, ...]:
        return ("prev", "step_size")

    def scalars(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (
            group["lr"],
            *group["etas"],
            *group["step_sizes"],
            bool(group["maximize"]),
        )
