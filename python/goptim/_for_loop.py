"""Optimizers that torch.optim does not have, in operations of torch.

Such a class is the fallback of goptim's class, which is derived from it, and what its tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

# The classes by the names of goptim's classes.
CLASSES: dict[str, type[ForLoop]] = {}


class ForLoop(Optimizer):
    """An optimizer whose step updates one parameter after another.

    A derived class ``<Name>ForLoop`` is the fallback of goptim's ``<Name>``, and its ``__name__`` is that name: Go's
    description, messages and profilers have it.
    """

    states: ClassVar[tuple[str, ...]] = ()
    """The keys of a parameter's state: tensors like the parameter, which are zero at first."""

    reference: ClassVar[str] = ""
    """The class of another package with the same arguments and results, such as ``package.Class``."""

    @property
    def reason_unsaved(self) -> str | None:
        """Why a file cannot contain the optimizer's state and hyperparameters."""
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = cls.__name__.removesuffix("ForLoop")
        if name != cls.__name__ and ForLoop in cls.__bases__:
            cls.__name__ = name
            CLASSES[name] = cls

    def _init_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.grad is not None and not self.state[p]:
                self.state[p].update({key: torch.zeros_like(p, requires_grad=False) for key in self.states})

    def _check(self, p: Tensor) -> None:
        """Raise an error for a parameter that cannot be stepped."""

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        """Update a parameter by its gradient, in place."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters by their gradients, in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, _ in work:
            self._check(p)
        for group in self.param_groups:
            self._init_group(group)
        for p, group in work:
            self._update(p, group)
        return loss
