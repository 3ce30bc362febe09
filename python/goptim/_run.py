"""``python -m goptim run``: runs an unmodified program with torch.optim's optimizers in Go, and prints a report."""

from __future__ import annotations

import argparse
import atexit
import builtins
import importlib.machinery
import os
import runpy
import sys
import threading
import types
import weakref
from collections import Counter
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from goptim import _around, _functions, _lists, _native, _parts, _patch, _scaler, _step, _storage, lbfgs


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run`` to the subcommands of ``python -m goptim``."""
    parser = commands.add_parser(
        "run",
        help="run a program with torch.optim's optimizers in Go",
        description="Run an unmodified Python program with torch.optim's optimizers in Go. At the end, print to stderr "
        "what ran in Go, what fell back to torch, and why.",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print no report")
    parser.add_argument(
        "-m", "--module", action="store_true", help="the program is the name of a module, as in python -m"
    )
    parser.add_argument("program", help="a file, or with -m a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the program")
    parser.set_defaults(call=_run)


def _run(options: argparse.Namespace) -> None:
    _patch.patch()
    if not options.quiet:
        _Report().begin()
    _patch_children()
    main = types.ModuleType("__main__")
    vars(main)["__builtins__"] = builtins
    if sys.version_info < (3, 14):  # newer versions do not define the variable in the main module
        vars(main)["__annotations__"] = {}
    ours = sys.modules["__main__"]  # keep a reference, since its code is running
    try:
        for name, module in list(sys.modules.items()):
            if module is ours:  # multiprocessing refers to it as __mp_main__
                sys.modules[name] = main
        sys.orig_argv[:] = _original_arguments(options)
        if options.module:
            _run_module(options.program, options.arguments)
        else:
            _run_file(main, options.program, options.arguments)
    except BaseException as e:
        _hide_our_frames(e, ours)
        raise


def _patch_children() -> None:
    """Make the Python processes that this one starts patch torch.optim when they import it."""
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_children")
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *(path for path in others if path and path != folder)])
    os.environ["GOPTIM_RUN"] = sys.prefix


def _original_arguments(options: argparse.Namespace) -> list[str]:
    """The sys.orig_argv of ``python program …``, with the options of Python itself."""
    words, ours = sys.orig_argv, sys.argv[1:]
    program = [*(["-m"] if options.module else []), options.program, *options.arguments]
    *python, last = words[: max(len(words) - len(ours), 0)] or [""]
    if [*python, last, *ours] != words or not python:  # main was called from Python
        return words
    if last == "goptim":
        last = python.pop()  # -m, possibly combined with other options
    last = last.removesuffix("goptim").removesuffix("m")
    return [*python, *([last] if last.startswith("-") and last != "-" else []), *program]


def _run_file(main: types.ModuleType, path: str, arguments: list[str]) -> None:
    """Run a file like ``python path …``."""
    sys.argv[:] = [path, *arguments]
    if os.path.isdir(path) or _is_archive(path):
        _set_first_path(os.path.abspath(path))
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
        return
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as e:
        print(
            f"{sys.executable}: can't open file {os.path.abspath(path)!r}: [Errno {e.errno}] {e.strerror}",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    main.__file__ = os.path.abspath(path)
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", main.__file__)
    vars(main)["__cached__"] = None
    exec(compile(source, main.__file__, "exec", dont_inherit=True), vars(main))


def _is_archive(path: str) -> bool:
    import zipfile

    return not path.endswith((".py", ".pyw")) and zipfile.is_zipfile(path)


def _set_first_path(folder: str) -> None:
    """Replace the current folder, which ``python -m`` put first in sys.path, by the program's."""
    if not getattr(sys.flags, "safe_path", False):  # safe_path puts no folder there
        sys.path[0] = folder


def _run_module(name: str, arguments: list[str]) -> None:
    """Run a module like ``python -m name …``."""
    sys.argv[:] = ["-m", *arguments]
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def _hide_our_frames(error: BaseException, ours: types.ModuleType) -> None:
    """Make the printed traceback begin in the program, as without goptim."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in (
        __file__,
        ours.__file__,
        runpy.__file__,
        "<frozen runpy>",
    ):
        frames = frames.tb_next
    hook = sys.excepthook  # the program may have replaced it

    def show(kind: Any, error: Any, _: Any) -> None:
        hook(kind, error.with_traceback(frames), frames)

    sys.excepthook = show


class _Count:
    """Counts the steps of one optimizer, or the calls of one function."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.steps = 0
        self.go = self.torch = 0  # the largest number of parameters in a step
        self.go_updates = 0
        self.reasons: Counter[str] = Counter()  # of updates that fell back to torch
        self.stored: Counter[str] = Counter()  # the largest number of parameters by the keywords of _storage.py
        self.keys: Any = None  # those of the last step

    def add(self, go: int, reasons: list[str]) -> None:
        """Count a step or a call: what ran in Go, and the reasons of what did not."""
        self.steps += 1
        self.go, self.torch = max(self.go, go), max(self.torch, len(reasons))
        self.go_updates += go
        self.reasons.update(reasons)

    def add_storage(self, optimizer: Optimizer) -> None:
        """Count the parameters that are stored in another way than torch's."""
        keys = [(tuple(_storage.given(group).items()), len(group["params"])) for group in optimizer.param_groups]
        if keys != self.keys and any(given for given, _ in keys):
            found = Counter(_storage.in_effect(group, p) for group in optimizer.param_groups for p in group["params"])
            del found[""]
            self.stored |= found
        self.keys = keys


class _Report:
    """Counts what all optimizers and replaced functions of this process update in Go and in torch."""

    def __init__(self) -> None:
        self.counts: list[_Count] = []
        self.of: weakref.WeakKeyDictionary[Optimizer, _Count] = weakref.WeakKeyDictionary()
        # By class and arguments of step: why some of a step took separate calls, or None.
        self.around: dict[tuple[str, tuple[str, ...]], Counter[str | None]] = {}
        self.functions: dict[str, _Count] = {}
        self.infinite = 0
        self.lock = threading.Lock()
        self.process = os.getpid()

    def begin(self) -> None:
        """Start to count, and print at exit, after the output of the program's own exit handlers."""
        _parts.watch = self.add
        _functions.watch, _lists.watch = self.add_call, _functions.count_rows
        _around.watch, _scaler.watch = self.add_around, self.add_infinite
        register_optimizer_step_post_hook(self.add_foreign)
        atexit.register(self.print)

    def add(self, optimizer: Optimizer, go: int, reasons: list[str]) -> None:
        with self.lock:
            count = self.of.get(optimizer)
            if count is None:
                count = self.of[optimizer] = _Count(type(optimizer).__qualname__)
                self.counts.append(count)
            count.add(go, reasons)
            if isinstance(optimizer, _step.GoStep):
                count.add_storage(optimizer)

    def add_call(self, name: str, go: int, reasons: list[str]) -> None:
        """Count a call of a replaced function."""
        with self.lock:
            self.functions.setdefault(name, _Count(name)).add(go, reasons)

    def add_around(self, optimizer: Optimizer, arguments: tuple[str, ...], why: str | None) -> None:
        """Count a step with arguments for what surrounds it."""
        with self.lock:
            self.around.setdefault((type(optimizer).__qualname__, arguments), Counter())[why] += 1

    def add_infinite(self) -> None:
        """Count a call of a GradScaler that has found a gradient that is not finite."""
        with self.lock:
            self.infinite += 1

    def add_foreign(self, optimizer: Optimizer, *_: object) -> None:
        """Count a step of an optimizer that is not goptim's."""
        if isinstance(optimizer, (_step.GoStep, lbfgs.LBFGS)):
            return
        replaced = _patch.patched()
        base = next((c for c in type(optimizer).__mro__ if c in replaced), None)
        if base is None:
            why = "its optimizer is not a class of torch.optim"
        elif base is type(optimizer):
            why = "its optimizer was copied, unpickled, or constructed before the patch"
            if base not in _patch.replacements():
                why += ", or with arguments that goptim's class does not have"
        else:
            package = "torch.optim" if base.__module__.startswith("torch.optim.") else base.__module__.partition(".")[0]
            why = f"its optimizer is derived from {package}.{base.__name__} and may override what goptim does not call"
        self.add(optimizer, 0, [why for group in optimizer.param_groups for p in group["params"]])

    def print(self) -> None:
        if os.getpid() == self.process and sys.stderr is not None:
            print(self, file=sys.stderr)

    def __str__(self) -> str:
        lines = [] if self.counts else ["goptim: no optimizer took a step"]
        for kind in dict.fromkeys(count.kind for count in self.counts):
            counts = [count for count in self.counts if count.kind == kind]
            steps = sum(count.steps for count in counts)
            lines += _lines(f"{kind}: {_many(len(counts), 'optimizer')}, {_many(steps, 'step')}", "parameter", counts)
            for (of, arguments), whys in self.around.items():
                if of == kind:
                    lines += _lines_around(f"{kind}.step({', '.join(arguments)})", whys)
            stored = sum((count.stored for count in counts), Counter[str]())
            lines += [f"goptim:   {_many(n, 'parameter')} with {keys}" for keys, n in stored.items()]
        for name, count in self.functions.items():
            lines += _lines(f"{name}: {_many(count.steps, 'call')}", "tensor", [count])
            if name == "GradScaler" and self.infinite:
                lines.append(f"goptim:   {_many(self.infinite, 'call')} found a gradient that is not finite")
        if any(count.go_updates for count in self.counts) and (slow := _native.reason_slow()) is not None:
            lines.append(f"goptim: each update in Go took about 20 µs longer than usual: {slow}")
        return "\n".join(lines)


def _lines(line: str, thing: str, counts: list[_Count]) -> list[str]:
    """The lines of the report for an optimizer's class or for a function."""
    go, others = sum(count.go for count in counts), sum(count.torch for count in counts)
    updates = sum(count.go_updates for count in counts)
    reasons = sum((count.reasons for count in counts), Counter[str]())
    if go or not others:
        line += f"; in Go: {_many(go, thing)} ({_many(updates, 'update')})"
    if others:
        line += f"; fell back to torch: {_many(others, thing)} ({_many(reasons.total(), 'update')}):"
    return [f"goptim: {line}", *(f"goptim:   {_many(n, 'update')}: {why}" for why, n in reasons.most_common())]


def _lines_around(line: str, whys: Counter[str | None]) -> list[str]:
    """The lines of the report for steps with arguments for what surrounds them."""
    apart = {why: n for why, n in whys.most_common() if why is not None}
    line += f": {_many(whys.total(), 'step')}"
    if whys[None]:
        line += f"; in one call of Go: {_many(whys[None], 'step')}"
    if apart:
        line += f"; in several calls: {_many(sum(apart.values()), 'step')}:"
    return [f"goptim: {line}", *(f"goptim:   {_many(n, 'step')}: {why}" for why, n in apart.items())]


def _many(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
