"""The base of optimizers around another optimizer."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


class Wrapper(Optimizer):
    """An optimizer whose groups and state are those of another one.

    Args:
        base_optimizer: that optimizer.
        entries: entries of its groups that they get, unless they have them.
    """

    _base_optimizer: Optimizer
    _entries: dict[str, Any]

    def __init__(self, base_optimizer: Optimizer, entries: dict[str, Any]) -> None:
        if not isinstance(base_optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__}: base_optimizer is a {type(base_optimizer).__name__}, expected an Optimizer"
            )
        # Optimizer.__init__ would make groups and a state of its own.
        defaults = {**base_optimizer.defaults, **entries}
        Optimizer.__setstate__(self, {"_base_optimizer": base_optimizer, "_entries": entries})
        base_optimizer.defaults.clear()  # which __setstate__ may have added to
        base_optimizer.defaults.update(defaults)
        self._complete()

    def _complete(self) -> None:
        for group in self.param_groups:
            for key, value in self._entries.items():
                group.setdefault(key, value)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer."""
        return self._base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The state of the optimizer."""
        return self._base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self._base_optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the optimizer."""
        return self._base_optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._base_optimizer.defaults = defaults

    def __getstate__(self) -> dict[str, Any]:
        return {"_base_optimizer": self._base_optimizer, "_entries": self._entries}

    def state_dict(self) -> dict[str, Any]:
        """The state_dict of the optimizer."""
        return self._base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict, or one of the optimizer alone."""
        self._base_optimizer.load_state_dict(state_dict)
        self._complete()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer."""
        self._base_optimizer.add_param_group(param_group)
        self._complete()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, as the optimizer does."""
        self._base_optimizer.zero_grad(set_to_none)
