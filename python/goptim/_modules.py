"""The modules of torch.optim under the name of goptim, so that a program can replace one name by the other in its text.

Modules without a class of goptim are torch's. goptim's modules also have all other names of torch's, including private
ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

from goptim import _originals

_THEIRS, _OURS = "torch.optim.", "goptim."


def add_modules() -> None:
    """Add the loaded modules of torch.optim to goptim."""
    package = sys.modules["goptim"]
    for name, theirs in list(sys.modules.items()):
        if name.startswith(_THEIRS) and isinstance(theirs, ModuleType):
            short = name.removeprefix(_THEIRS)
            ours = sys.modules.setdefault(_OURS + short, theirs)
            if ours is theirs:
                setattr(package, short, theirs)
            else:
                complete(ours, theirs)


def complete(ours: ModuleType, theirs: ModuleType) -> None:
    """Make all names of a module of torch available in goptim's."""
    added = [name for name in getattr(ours, "__all__", ()) if not hasattr(theirs, name)]
    names = getattr(theirs, "__all__", None) or [name for name in dir(theirs) if not name.startswith("_")]
    vars(ours).update(
        __all__=[*names, *added],
        __getattr__=_getter(ours.__name__, theirs),
        __dir__=lambda: sorted({*vars(ours), *dir(theirs)}),
    )


def _getter(name: str, theirs: ModuleType) -> Callable[[str], object]:
    def __getattr__(attribute: str) -> object:
        try:
            found = getattr(theirs, attribute)
        except AttributeError:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}") from None
        for short, original in _originals.CLASSES.items():
            if found is original:
                return getattr(sys.modules["goptim"], short)
        return found

    return __getattr__
