"""Patches torch.optim in the Python processes that a program started by ``python -m goptim run`` starts.

The variable PYTHONPATH begins with this folder there, so that Python imports this file at its start. Nothing is patched
until the process imports torch, and goptim is not imported before. Another ``sitecustomize`` is imported as ever.
"""

from __future__ import annotations

import importlib.util
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # to import typing would take longer than all the rest
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_FOLDER = os.path.dirname(os.path.abspath(__file__))


class _Finder:
    """Has modules patched when they have been imported: torch, and goptim, which imports torch first."""

    def __init__(self) -> None:
        self.names = {"torch", "goptim"}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.names:
            return None
        self.names.remove(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            _call_after(spec.loader, _patch)
        return spec


def _call_after(loader: Any, then: Callable[[], None]) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        execute(module)
        then()

    loader.exec_module = exec_module


def _patch() -> None:
    if "goptim" in sys.modules and not hasattr(sys.modules["goptim"], "patch"):
        return  # goptim is being imported, which comes back here
    package = os.path.dirname(os.path.dirname(_FOLDER))
    sys.path.append(package)  # where the parent has goptim from, unless this process has it from elsewhere
    try:
        import goptim

        goptim.patch()
    except ImportError as e:
        print(f"goptim run: torch.optim stays as it is in process {os.getpid()}: {e}", file=sys.stderr)
    finally:
        if package in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(package)]


def _import_next() -> None:
    """Import the sitecustomize that Python would have found without this folder."""
    ours = sys.modules.pop(__name__)
    try:
        importlib.import_module(__name__)
    except ImportError as e:
        if e.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, ours)


sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != _FOLDER]
if os.environ.get("GOPTIM_RUN") == sys.prefix:  # the parent's Python
    sys.meta_path.insert(0, _Finder())
if __name__ == "sitecustomize":
    _import_next()
