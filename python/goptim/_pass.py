"""One operation of Go on the parameters of an optimizer that have a gradient, and on a tensor in their state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

from goptim._for_loop import ForLoop
from goptim._kinds import Kind, kind_of
from goptim._step import GoStep


class InTorch(ForLoop):
    """The operation in operations of torch: a step of an optimizer with this state."""

    key: ClassVar[str]
    """The key of the state. At first it is a copy of the parameter."""

    def _init_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.grad is not None and self.key not in self.state[p]:
                self.state[p][self.key] = p.detach().clone(memory_format=torch.preserve_format)


class Pass(GoStep, InTorch):
    """The operation in Go. A derived class has the name of its kind in Go."""

    @property
    def kind(self) -> Kind:
        return kind_of(type(self).__name__)

    @classmethod
    @torch.no_grad()
    def run(cls, optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
        """Apply it to parameters of an optimizer.

        Args:
            groups: dicts with ``params`` and the options of the kind.
        """
        step = object.__new__(cls)
        step.state, step.param_groups = optimizer.state, groups
        for group in groups:
            step._init_group(group)
        step._step(None)
