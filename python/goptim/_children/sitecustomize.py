"""Patches torch.optim in the child processes of a program under ``python -m goptim run``.

Their PYTHONPATH begins with this folder, so Python imports this file when it starts. The patch waits until the process
imports torch, and goptim is not imported earlier. Another ``sitecustomize`` is imported as usual.
"""

from __future__ import annotations

import importlib.util
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take longer than everything else
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_FOLDER = os.path.dirname(os.path.abspath(__file__))


class _Finder:
    """Calls _patch after the import of torch, or of goptim, which imports torch first."""

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
        return  # goptim is being imported, and this function is called again afterwards
    package = os.path.dirname(os.path.dirname(_FOLDER))
    sys.path.append(package)  # the parent's goptim, unless this process has another one
    try:
        import goptim

        goptim.patch()
    except ImportError as e:
        print(f"goptim run: torch.optim is not patched in process {os.getpid()}: {e}", file=sys.stderr)
    finally:
        if package in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(package)]


def _import_next() -> None:
    """Import the sitecustomize that Python would find without this folder."""
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
