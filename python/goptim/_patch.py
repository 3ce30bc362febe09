"""Patches torch.optim's classes to construct goptim's optimizers, for programs that cannot be edited.

The classes stay the same objects. Only their ``__init__`` changes: an instance of exactly ``torch.optim.AdamW`` becomes
a ``goptim.AdamW`` first. So it does not matter how a program refers to the class (an earlier import, an alias, a dict,
a ``functools.partial``), and ``isinstance`` and ``issubclass`` work as before.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch.optim import Optimizer

from goptim import _functions, _originals, _scaler

# The patched classes of torch.optim, with their original and their patched __init__.
_patched: dict[type[Optimizer], tuple[Callable[..., None], Callable[..., None]]] = {}
_lock = threading.RLock()


class Patch:
    """The result of :func:`patch`, a context manager whose end restores the state before that call."""

    def __init__(self, was: bool) -> None:
        self._was = was

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._was:
            unpatch()


def patch() -> Patch:
    """Make constructing an optimizer of torch.optim construct goptim's of the same name, in the whole process.

    It does not matter where the class was imported, under which name, and when. Existing optimizers stay torch's, and
    so do their copies and unpickled optimizers. Classes derived from torch.optim's are not patched, since their
    overrides may not work with another step. Patching twice has no further effect.

    The functions around a step are replaced too, for optimizers of both: torch.nn.utils' clipping, the updates of
    torch.optim.swa_utils.AveragedModel and of timm's ModelEmaV3, and stable-baselines3's polyak_update. They run in Go
    once an optimizer of goptim has been constructed.

    Returns:
        A context manager for ``with goptim.patch():``. Its end removes the patch, unless it was active before.
    """
    with _lock:
        was = bool(_patched)
        if not was:
            for theirs, ours in replacements().items():
                init: Callable[..., None] = theirs.__init__
                hook = _becoming(theirs, ours, init)
                _patched[theirs] = init, hook
                theirs.__init__ = hook  # type: ignore[method-assign]
            _functions.replace()
            _scaler.patch()
        return Patch(was)


def unpatch() -> None:
    """Make torch.optim's classes construct their own optimizers again, and restore all functions.

    Existing optimizers do not change.
    """
    with _lock:
        for theirs, (init, hook) in _patched.items():
            if theirs.__init__ is hook:  # otherwise it was wrapped, and the wrapped hook has no effect from now on
                theirs.__init__ = init  # type: ignore[method-assign]
        _patched.clear()
        _functions.restore()
        _scaler.unpatch()


def replacements() -> dict[type[Optimizer], type[Optimizer]]:
    """The classes of torch.optim, each with its counterpart in goptim."""
    package = sys.modules["goptim"]  # which imports this module
    return {theirs: getattr(package, name) for name, theirs in _originals.CLASSES.items()}


def _becoming(theirs: type[Optimizer], ours: type[Optimizer], init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is theirs and theirs in _patched:
            self.__class__ = ours
            ours.__init__(self, *args, **kwargs)
        else:
            init(self, *args, **kwargs)

    return __init__
