"""torch.optim's classes, made to build goptim's optimizers: for programs that nobody wants to edit.

The classes stay where and what they are. Only their ``__init__`` changes: what is being built as exactly
``torch.optim.AdamW`` becomes a ``goptim.AdamW`` first. So it does not matter where a program has the class from (an
import of long ago, an alias, a dict, a ``functools.partial``), and ``isinstance`` and ``issubclass`` answer as ever.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch.optim import Optimizer

from goptim import _originals

# Each class of torch.optim that is patched, with its own __init__ and ours.
_patched: dict[type[Optimizer], tuple[Callable[..., None], Callable[..., None]]] = {}
_lock = threading.RLock()


class Patch:
    """What :func:`patch` returns: at the end of its ``with``, things are as they were before that call."""

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
    """From now on, building an optimizer of torch.optim builds goptim's of that name, in the whole process.

    It holds wherever the class was imported, under whatever name, before or after. Optimizers that exist already stay
    torch's, and so do copies of them and those that are unpickled. Classes derived from torch.optim's stay as they are:
    what they override need not fit another step. To patch twice is to patch once.

    Returns:
        For ``with goptim.patch():``, which undoes it at the end, unless it was in force before.
    """
    with _lock:
        was = bool(_patched)
        if not was:
            for theirs, ours in twins().items():
                init: Callable[..., None] = theirs.__init__
                hook = _becoming(theirs, ours, init)
                _patched[theirs] = init, hook
                theirs.__init__ = hook  # type: ignore[method-assign]
        return Patch(was)


def unpatch() -> None:
    """Let torch.optim's classes build their own optimizers again; those built in between stay goptim's."""
    with _lock:
        for theirs, (init, hook) in _patched.items():
            if theirs.__init__ is hook:  # else somebody wrapped it, and what is below does nothing any more
                theirs.__init__ = init  # type: ignore[method-assign]
        _patched.clear()


def twins() -> dict[type[Optimizer], type[Optimizer]]:
    """Our class for each of torch.optim's that we have one for."""
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
