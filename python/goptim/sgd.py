"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch

from goptim._step import GoStep


class SGD(GoStep, torch.optim.SGD):
    """torch.optim.SGD with its update in Go: the same arguments, state (``momentum_buffer``) and bits.

    Parameters are float32 or float64 tensors of any shape on the CPU; others, and sparse gradients, are updated by
    torch's own step. ``foreach`` and ``fused`` are accepted and checked as torch does; Go's one path serves all.

    With the momentum of Sutskever et al., `On the importance of initialization and momentum in deep learning
    <https://proceedings.mlr.press/v28/sutskever13.html>`_, ICML 2013, in torch's form.
    """

    twin = torch.optim.SGD
    counts = False

    def columns(self, group: dict[str, Any]) -> tuple[str | None, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def scalars(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            bool(group["nesterov"]),
            bool(group["maximize"]),
        )
