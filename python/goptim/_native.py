"""The Go extension, loaded late and never used where it cannot work."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from goptim import _layout

# The oldest and the newest torch that the tests run with.
TESTED = ((2, 6), (2, 15))

_loaded: ModuleType | None = None
_forked = False
_PF_FORKNOEXEC = 0x40  # of Linux's include/linux/sched.h: a fork without an exec since


@functools.cache
def layout() -> bytes | None:
    """Where torch keeps what of a tensor, for the extension to read it there; None if that is not known."""
    return _layout.find()


def core() -> ModuleType | None:
    """The extension; None in a process forked from one that had loaded it.

    Go's runtime does not survive a fork: only the forking thread goes on in the child. It starts threads when it is
    loaded, which Python 3.12 and later warn about at a fork, so it is loaded when the first optimizer is built.
    """
    global _loaded
    if _forked:
        return None
    if _loaded is None:
        try:
            from goptim import _core
        except ImportError as e:
            raise ImportError(
                f"goptim's extension cannot be loaded: {e}. In a checkout, `make build` compiles it."
            ) from e
        _loaded = _core
        _warn_of_newer_torch()
        _core.OpenMP(*_gomp())
    return _loaded


def call(function: Callable[..., int], *args: Any) -> None:
    """Call a function of the extension, and raise its errors as what they are."""
    try:
        function(*args)
    except RuntimeError as e:
        kind, _, message = str(e).partition(": ")
        if kind not in _EXCEPTIONS:
            raise
        raise _EXCEPTIONS[kind](message) from None


# The exceptions of Python's arithmetic that Go names at the beginning of an error's text.
_EXCEPTIONS = {e.__name__: e for e in (ZeroDivisionError, OverflowError, ValueError, TypeError)}


def _warn_of_newer_torch() -> None:
    """Warn, once in a process, where torch may have changed what the tests hold us to."""
    major, minor = map(int, re.findall(r"\d+", torch.__version__)[:2])
    if (major, minor) > TESTED[1]:
        oldest, newest = (".".join(map(str, version)) for version in TESTED)
        warnings.warn(
            f"goptim is tested with torch {oldest} to {newest}, and this is torch {torch.__version__}: its optimizers "
            "may compute other bits than goptim's",
            stacklevel=2,
        )


def _gomp() -> tuple[int, int]:
    """Where the OpenMP that came with torch has GOMP_parallel and omp_get_thread_num; 0 if it has none, or would hang.

    It hangs in a process forked from one that has used it. Where that may be, Go's own threads step.
    """
    with contextlib.suppress(OSError, AttributeError, ValueError):
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
        if not flags & _PF_FORKNOEXEC:
            for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
                gomp = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
                found = [ctypes.cast(f, ctypes.c_void_p).value for f in (gomp.GOMP_parallel, gomp.omp_get_thread_num)]
                return found[0] or 0, found[1] or 0
    return 0, 0


def _after_fork_in_child() -> None:
    global _forked
    _forked = _loaded is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
