"""Patches torch.optim's classes to construct goptim's optimizers, for programs that cannot be edited.

The classes stay the same objects. Only their ``__init__`` changes: an instance of exactly ``torch.optim.AdamW`` becomes
a ``goptim.AdamW`` first. So it does not matter how a program refers to the class (an earlier import, an alias, a dict,
a ``functools.partial``), and ``isinstance`` and ``issubclass`` work as before.

So do the classes of other packages that have counterparts in goptim, such as ``schedulefree.AdamWScheduleFree``, when
the program imports the package. An instance becomes one of a class that is derived from both (_packages.py).
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch.optim import Optimizer

from goptim import _for_loop, _functions, _originals, _packages, _scaler, _storage

# The patched classes, with their original and their patched __init__.
_patched: dict[type[Optimizer], tuple[Callable[..., None], Callable[..., None]]] = {}


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

    The same holds for classes of other packages that goptim's are compared with (the table in the README, and
    ``goptim.hf`` excepted), before or after the program imports such a package. goptim does not import it. Such an
    optimizer is an instance of both classes.

    The functions around a step are replaced too, for optimizers of both: torch.nn.utils' clipping, the updates of
    torch.optim.swa_utils.AveragedModel and of timm's ModelEmaV3, and stable-baselines3's polyak_update. They run in Go
    once an optimizer of goptim has been constructed.

    Returns:
        A context manager for ``with goptim.patch():``. Its end removes the patch, unless it was active before.
    """
    with _functions.lock:
        was = bool(_patched)
        if not was:
            for theirs, ours in replacements().items():
                _patch_class(theirs, functools.partial(_itself, ours))
            _functions.replace()
            _scaler.patch()
            modules: dict[str, list[str]] = {}
            for name, cls in _for_loop.counterparts().items():
                modules.setdefault(cls.reference.rpartition(".")[0], []).append(name)
            for module, names in modules.items():
                _functions.after_import(module, functools.partial(_patch_package, names))
        return Patch(was)


def unpatch() -> None:
    """Make torch.optim's classes construct their own optimizers again, and restore all functions.

    Existing optimizers do not change.
    """
    with _functions.lock:
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


def patched() -> list[type[Optimizer]]:
    """The classes that are patched now: those of torch.optim, and those of packages that have been imported."""
    return list(_patched)


def _patch_package(names: list[str], module: types.ModuleType) -> None:
    """Patch the counterparts of goptim's classes in a module of another package."""
    for name in names:
        reference = _for_loop.counterparts()[name].reference
        theirs = getattr(module, reference.rpartition(".")[2], None)
        if isinstance(theirs, type) and issubclass(theirs, Optimizer) and theirs not in _patched:
            _patch_class(theirs, functools.partial(_counterpart, reference))


def _itself(ours: type[Optimizer], args: tuple[Any, ...], kwargs: dict[str, Any]) -> type[Optimizer]:
    return ours


def _counterpart(reference: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> type[Optimizer] | None:
    return _packages.class_of(reference) if _packages.replaces(reference, args, kwargs) else None


def _patch_class(
    theirs: type[Optimizer], choose: Callable[[tuple[Any, ...], dict[str, Any]], type[Optimizer] | None]
) -> None:
    """Make a class construct optimizers of the class that ``choose`` returns for the arguments, if it is not None."""
    init: Callable[..., None] = theirs.__init__

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        ours = None
        # Other packages' classes do not have the keywords of goptim's.
        if type(self) is theirs and theirs in _patched and not kwargs.keys() & _storage.KEYS:
            ours = choose(args, kwargs)
        if ours is None:
            init(self, *args, **kwargs)
        else:
            self.__class__ = ours
            ours.__init__(self, *args, **kwargs)

    _patched[theirs] = init, __init__
    theirs.__init__ = __init__  # type: ignore[method-assign]
