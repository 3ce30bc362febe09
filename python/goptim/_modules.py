"""The modules of torch.optim under the name of goptim: a program may replace the one name by the other in its text.

A module without a class of ours is torch's own. Ours have all other names from torch's, private ones too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

from goptim import _originals

_THEIRS, _OURS = "torch.optim.", "goptim."


def add_modules() -> None:
    """Complete goptim's modules by those of torch.optim that are loaded."""
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
    """Have a module of ours answer for all names of torch's."""
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
