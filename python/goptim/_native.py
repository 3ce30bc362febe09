"""The Go extension: loaded when the first optimizer is constructed, and not used where it cannot work."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import re
import signal
import struct
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from goptim import _layout

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise ImportError("goptim does not support free-threaded builds of Python: use a build with the GIL")

# The oldest and the newest tested version of torch.
TESTED = ((2, 6), (2, 15))

_loaded: ModuleType | None = None
_forked = False
_reason_unavailable: str | None = None  # why the extension could not be loaded
_layout_found: bytes | None = None
_reason_slow: str | None = None  # why the layout could not be found
_openmp_asked = False
_openmp_found = False

_lock = threading.RLock()
_next_try: dict[str, float] = {}
_PAUSE = {"core": 60.0, "layout": 1.0}  # seconds between tries

_PF_FORKNOEXEC = 0x40  # from Linux's include/linux/sched.h: forked without an exec since

# Resources that Go's runtime needs. It ends the process if they are not available.
_ADDRESSES = 4 << 30  # bytes; Go reserves 1.9 GiB and uses little of it; the rest is for the program
_THREADS = 16  # Go starts six or seven, and more for its garbage collector
_MANY_THREADS = 64  # if so many can be started, no limit is near
_MAP_NORESERVE = 0x4000  # from Linux's mman.h
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
_SCARCE_TEXTS = "|".join([*map(os.strerror, sorted(_SCARCE)), "failed to map segment"])

# Linux's struct sigaction.
_HANDLER, _FLAGS, _AT_FLAGS, _SA_ONSTACK = struct.Struct("=Q"), struct.Struct("=I"), 136, 0x08000000
_GOS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE}  # Go has handlers for these
_SYNCHRONOUS = _GOS | {signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS}


def layout() -> bytes | None:
    """The offsets of the fields of torch's tensors, for the extension; None if they are unknown."""
    if _layout_found is None:
        _try("layout", _find_layout)
    return _layout_found


def _find_layout() -> None:
    global _layout_found, _reason_slow
    if _layout_found is None:
        try:
            _layout_found, _reason_slow = _layout.find(), None
        except _layout.UnknownError as e:
            _reason_slow = str(e)


def reason_slow() -> str | None:
    """Why tensors are read through Python, which takes about 20 µs per parameter; None if they are not."""
    layout()
    return _reason_slow


def core() -> ModuleType | None:
    """The extension; None if it cannot be used, and then reason_unavailable returns the reason.

    Go's runtime does not survive a fork, because only the forking thread continues in the child. Loading it starts
    threads, and Python 3.12 and later warn about threads at a fork. So it is loaded when the first optimizer is
    constructed.
    """
    if _forked:
        return None
    if not _openmp_asked:
        _try("core", _load)
    return _loaded


def in_use() -> bool:
    """Whether this process has loaded the extension, which the first optimizer does, and can use it."""
    return _loaded is not None and not _forked


def reason_unavailable() -> str:
    """Why core returns None."""
    return "this process was forked after goptim was used" if _forked else _reason_unavailable or "goptim is not loaded"


def forked() -> bool:
    """Whether this process was forked from one that had loaded the extension."""
    return _forked


def _try(what: str, do: Callable[[], None]) -> None:
    """Call a function that may lack a resource: in one thread at a time, and with pauses, as it takes milliseconds."""
    with _lock:
        if time.monotonic() < _next_try.get(what, 0):
            return
        do()
        _next_try[what] = time.monotonic() + _PAUSE[what]


def _load() -> None:
    global _reason_unavailable, _openmp_asked, _openmp_found
    if _openmp_asked:
        return
    if _loaded is None:
        with _signals_kept():
            why = _import()
        if why is not None:
            first, _reason_unavailable = _reason_unavailable is None, why
            if first:
                warnings.warn(f"goptim falls back to torch: {why}", RuntimeWarning, stacklevel=2)
            return
        _reason_unavailable = None
        _warn_of_newer_torch()
    assert _loaded is not None
    with contextlib.suppress(OSError):
        found = _gomp()
        _loaded.OpenMP(*found)
        _openmp_asked, _openmp_found = True, all(found)


def _import() -> str | None:
    """Import the extension, or return the reason why it cannot be imported."""
    global _loaded
    why, threads = _reason_no_room()
    if why is not None:
        return why
    try:
        from goptim import _core
    except (ImportError, OSError, MemoryError) as e:
        if isinstance(e, MemoryError) or getattr(e, "errno", 0) in _SCARCE or re.search(_SCARCE_TEXTS, str(e)):
            return f"its extension cannot be loaded: {e or type(e).__name__}"
        raise ImportError(f"goptim's extension cannot be loaded: {e}. In a checkout, `make build` compiles it.") from e
    _core.Version()  # waits until Go's runtime has started
    _core.Reserve(threads or 0)
    _loaded = _core
    return None


def _reason_no_room() -> tuple[str | None, int | None]:
    """Why Go's runtime would end the process when it starts; or how many threads it should start in advance.

    The resources are tried out, because there are many limits: of the process, the user, the control group, the system.
    """
    if sys.platform != "linux":
        return None, None
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    try:
        reserved = mmap.mmap(-1, _ADDRESSES, flags=flags, prot=0)
    except (OSError, MemoryError, OverflowError):
        return f"less than {_ADDRESSES >> 30} GiB of address space are left (ulimit -v); Go reserves 2", None
    with reserved:
        started = _start_threads(_MANY_THREADS)
    if started < _THREADS:
        why = f"only {started} more threads can be started (ulimit -u, or pids.max of a control group); Go starts six"
        return why, None
    import resource

    if started == _MANY_THREADS and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return None, None
    return None, min(os.cpu_count() or 1, started - 8)


def _start_threads(n: int) -> int:
    """Start up to n threads at the same time, end them, and return how many started."""
    libc = ctypes.CDLL(None)
    semaphore, threads = (ctypes.c_long * 8)(), (ctypes.c_ulong * n)()
    libc.sem_init(semaphore, 0, 0)
    started = 0
    while started < n and not libc.pthread_create(ctypes.byref(threads, 8 * started), None, libc.sem_wait, semaphore):
        started += 1
    for _ in range(started):
        libc.sem_post(semaphore)
    for thread in threads[:started]:
        libc.pthread_join(ctypes.c_ulong(thread), None)
    return started


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Preserve signal handlers and masks while Go's runtime starts.

    Its threads inherit the mask of the thread that loads it. Asynchronous signals are blocked there, so the program's
    threads receive them as before. Go also replaces the handlers of SIGPIPE and SIGURG, which an extension without
    preemption by signals does not need; and a SIGPIPE that is ignored, as in Python, stays ignored in executed
    programs. Go's handlers of faults stay, because they turn a fault in Go into an exception.
    """
    if sys.platform != "linux":
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _SYNCHRONOUS)
    before = {number: action for number in signal.valid_signals() - _GOS if (action := _action(number)) is not None}
    try:
        yield
    finally:
        for number, action in before.items():
            now = _action(number)
            if now is not None and now[: _HANDLER.size] != action[: _HANDLER.size]:
                if _HANDLER.unpack_from(action)[0] > 1:  # neither SIG_DFL nor SIG_IGN
                    _FLAGS.pack_into(action, _AT_FLAGS, _FLAGS.unpack_from(action, _AT_FLAGS)[0] | _SA_ONSTACK)
                ctypes.CDLL(None).sigaction(number, ctypes.byref(action), None)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _action(number: int) -> ctypes.Array[ctypes.c_char] | None:
    """The C struct sigaction of a signal."""
    action = ctypes.create_string_buffer(256)
    return None if ctypes.CDLL(None).sigaction(number, None, ctypes.byref(action)) else action


def call(function: Callable[..., int], *args: Any) -> None:
    """Call a function of the extension, and raise its errors with their proper types."""
    try:
        function(*args)
    except RuntimeError as e:
        kind, _, message = str(e).partition(": ")
        if kind not in _EXCEPTIONS:
            raise
        raise _EXCEPTIONS[kind](message) from None


# Python's arithmetic exceptions, whose names Go puts at the beginning of an error's text.
_EXCEPTIONS = {e.__name__: e for e in (ZeroDivisionError, OverflowError, ValueError, TypeError)}


def _warn_of_newer_torch() -> None:
    """Warn, once per process, if torch is newer than the tested versions."""
    major, minor = map(int, re.findall(r"\d+", torch.__version__)[:2])
    if (major, minor) > TESTED[1]:
        oldest, newest = (".".join(map(str, version)) for version in TESTED)
        warnings.warn(
            f"goptim is tested with torch {oldest} to {newest}, and this is torch {torch.__version__}: goptim's "
            "results may differ from those of its optimizers",
            stacklevel=2,
        )


def _gomp() -> tuple[int, int]:
    """The addresses of GOMP_parallel and omp_get_thread_num in torch's OpenMP; 0 if there is none, or if it would hang.

    It hangs in a process that was forked from one that had used it. There, steps run on Go's own threads.

    Raises:
        OSError: no file descriptor is free.
    """
    if sys.platform != "linux":  # torch for macOS has LLVM's OpenMP, which lacks these functions there
        return 0, 0
    try:
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
        if not flags & _PF_FORKNOEXEC:
            site = Path(torch.__file__).parent
            # torch 2.6 for arm64 has it next to its own folder.
            for path in (*site.glob("lib/libgomp*.so*"), *site.parent.glob("torch.libs/libgomp*.so*")):
                gomp = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
                found = [ctypes.cast(f, ctypes.c_void_p).value for f in (gomp.GOMP_parallel, gomp.omp_get_thread_num)]
                return found[0] or 0, found[1] or 0
    except (OSError, AttributeError, ValueError) as e:
        if getattr(e, "errno", None) in _SCARCE:
            raise
    return 0, 0


def platform_line() -> str:
    """The platform, and what goptim uses on it, in one line."""
    here = f"{sys.platform}, {platform.machine()}, torch {torch.__version__}"
    found = core()
    if found is None:
        return f"{here}; goptim falls back to torch: {reason_unavailable()}"
    go, _, bits = found.Version().partition(" simd=")
    vectors = f"vectors of {bits} bits" if int(bits) else "no vectors"
    threads = "the threads of torch's OpenMP" if _openmp_found else "Go's own threads"
    return f"{here}; {go.partition('-')[0]}, {vectors}, {threads}"


def _after_fork_in_child() -> None:
    global _forked, _lock
    _forked = _loaded is not None
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
