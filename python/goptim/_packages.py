"""Classes that are derived from goptim's and from another package's, so that ``isinstance`` is true for both.

Such a class is created when it is first used. Its name in this module is the package's for it, so that pickle finds it,
in a process that has not patched anything too: ``goptim._packages.schedulefree.AdamWScheduleFree``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from torch.optim import Optimizer

from goptim import _for_loop


def replaces(reference: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether goptim's class replaces the class ``reference`` of another package when it gets these arguments."""
    for_loop = _for_loop_of(reference)
    try:
        arguments = inspect.signature(for_loop).bind(*args, **kwargs).arguments
    except TypeError:  # other arguments, as in other versions of the package
        return False
    return bool(for_loop.replaces(**{key: value for key, value in arguments.items() if key != "params"}))


@functools.cache
def class_of(reference: str) -> type[Optimizer]:
    """The class that is derived from goptim's and from ``reference``, such as ``package.Class``.

    Raises:
        ImportError: the package is not installed.
    """
    found = _for_loop_of(reference)
    ours: Any = _for_loop.IN_GO.get(getattr(found, "name_in_go", found.__name__), found)
    package, _, name = reference.rpartition(".")
    theirs = getattr(importlib.import_module(package), name)
    # The package's methods expect its constructor, so they must not override those that goptim inherits from torch.
    overridden = {name for base in theirs.__mro__[: theirs.__mro__.index(Optimizer)] for name in vars(base)}
    inherited = {
        name: method
        for name, method in vars(Optimizer).items()
        if name in overridden and inspect.getattr_static(ours, name) is method and not name.startswith("__")
    }
    names = {**inherited, "__module__": __name__, "__qualname__": reference, "__doc__": ours.__doc__}
    made: Any = type(ours)
    cls: type[Optimizer] = made(ours.__name__, (ours, theirs), names)
    if not _can_become(theirs, cls):  # CPython decides by the first base, so it is one of theirs without methods
        own = [c for c in ours.__mro__ if c not in theirs.__mro__]
        of_theirs: Any = type(theirs)
        first = of_theirs(theirs.__name__, (theirs,), {})
        cls = made(ours.__name__, (first, *own, theirs), names)
    return cls


def _can_become(theirs: type, cls: type) -> bool:
    """Whether CPython lets an instance of a class become one of another class."""
    try:
        instance: Any = object.__new__(theirs)
        instance.__class__ = cls
    except TypeError:
        return False
    return True


def _for_loop_of(reference: str) -> Any:
    for cls in _for_loop.counterparts().values():
        if cls.reference == reference:
            return cls
    raise AttributeError(f"no optimizer of goptim has the arguments and results of {reference}")


class _Names:
    """Looks up classes by the attributes of packages and modules."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _find(f"{self._prefix}.{name}")


def _find(reference: str) -> Any:
    references = [cls.reference for cls in _for_loop.counterparts().values()]
    if reference in references:
        return class_of(reference)
    if any(known.startswith(f"{reference}.") for known in references):
        return _Names(reference)
    raise AttributeError(f"module {__name__!r} has no attribute {reference!r}")


def __getattr__(name: str) -> Any:
    return _find(name)
