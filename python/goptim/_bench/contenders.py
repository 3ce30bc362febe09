"""Who takes a step: goptim, torch's paths, torch's compiled step, DeepSpeed, and a pass over the same memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

import goptim
from goptim._bench import subjects

# torch's paths, by the flags that ask for them.
PATHS: dict[str, dict[str, bool]] = {
    "for": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "compile": {},
}
TITLES = {
    "goptim": "goptim",
    "for": "for-loop",
    "foreach": "foreach",
    "fused": "fused",
    "compile": "compiled",
    "deepspeed": "DeepSpeed",
    "bound": "memory's speed",
}
COMPILED = 200  # tensors: a step of more takes many minutes to compile
# DeepSpeed sets it, and then torch's own steps load NVML each time: small ones take twice as long.
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


class Missing(Exception):
    """There is no such contender here. The message says why; it is empty where torch itself has none."""


@dataclass
class Contender:
    """An optimizer with its own parameters, and the call that is timed."""

    optimizer: Optimizer
    parameters: list[Tensor]
    step: Callable[[], object]


def build(path: str, subject: subjects.Optimizer, parameters: list[Tensor]) -> Contender:
    """A contender with these parameters.

    Raises:
        Missing: it has no such optimizer, or is not installed.
    """
    optimizer: Optimizer
    if path == "goptim":
        optimizer = getattr(goptim, subject.cls)(parameters, **subject.options)
    elif path == "deepspeed":
        optimizer = _deepspeed(subject, parameters)
    else:
        cls = getattr(torch.optim, subject.cls)
        known = {k: on for k, on in PATHS[path].items() if k in inspect.signature(cls).parameters}
        if path in ("foreach", "fused") and not known:
            raise Missing
        optimizer = cls(parameters, **subject.options, **known)
    if path == "compile":
        return Contender(optimizer, parameters, _compiled(optimizer, len(parameters)))
    return Contender(optimizer, parameters, optimizer.step)


def _compiled(optimizer: Optimizer, tensors: int) -> Callable[[], object]:
    if tensors > COMPILED:
        raise Missing(f"compile: a step of more than {COMPILED} tensors would take many minutes to compile")
    from torch import _dynamo

    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it warns of the hooks that every step has
    _dynamo.reset()  # it stops compiling a step after a few optimizers
    step: Callable[[], object] = torch.compile(lambda: optimizer.step(), fullgraph=False)
    return step


def _deepspeed(subject: subjects.Optimizer, parameters: list[Tensor]) -> Optimizer:
    if "deepspeed" not in sys.modules and importlib.util.find_spec("deepspeed") is None:
        raise Missing("deepspeed: not measured, for it is not installed: pip install deepspeed")
    if subject.deepspeed is None:
        raise Missing("deepspeed: it has an equal of Adam, AdamW and Adagrad alone; its Lion has none here")
    module, name, options = subject.deepspeed
    with _same_environment(NVML):
        cls = getattr(importlib.import_module(module), name)
    torchs = inspect.signature(getattr(torch.optim, subject.cls)).parameters
    defaults = {k: torchs[k].default for k in inspect.signature(cls).parameters if k in torchs}
    options = {**defaults, **subject.options, **options}
    if parameters[0].dtype != torch.float32:
        options["fp32_optimizer_states"] = False  # as all others
    optimizer: Optimizer = cls(parameters, **options)
    return optimizer


@contextlib.contextmanager
def _same_environment(name: str) -> Iterator[None]:
    """Undo what happens to a variable."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@functools.cache
def bound_library() -> tuple[ctypes.CDLL | None, str]:
    """The pass over memory, compiled now; None, and why, where that cannot be."""
    chosen = os.environ.get("CC", "")
    compilers = [shlex.split(text) for text in (chosen, "gcc", "clang", "cc") if text]
    failure = "there is no C compiler: set CC, or install gcc or clang"
    for compiler in compilers:
        if not shutil.which(compiler[0]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "bound.so")
            flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", str(out)]
            command = [*compiler, *flags, str(Path(__file__).with_name("bound.c"))]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
                return ctypes.CDLL(str(out)), ""
            except subprocess.CalledProcessError as e:
                said = e.stderr.strip().partition("\n")[0] or f"exit status {e.returncode}"
                failure = f"{compiler[0]} cannot compile it: {said}"
            except (OSError, subprocess.SubprocessError) as e:
                failure = f"{compiler[0]} cannot compile it: {e}"
    return None, f"the memory bound is missing, for {failure}"


def bound_of(library: ctypes.CDLL, optimizer: Optimizer, threads: int) -> Callable[[], None]:
    """The pass over what the optimizer's next step reads and writes, for where pages lie makes a tenth of a time.

    Adafactor's states are left out: most have a number for a row or column.
    """
    columns, words, n_columns = array("Q"), array("q"), 0
    for p in optimizer.param_groups[0]["params"]:
        state = [s for s in optimizer.state[p].values() if s.dim()] if p in optimizer.state else []
        state = [] if isinstance(optimizer, goptim.Adafactor) else state
        tensors = [p, p.grad, *state]
        n_columns = len(tensors)
        columns.extend([t.data_ptr() for t in tensors] + [0] * (5 - n_columns))
        words.append(p.numel() * p.element_size() // 4)
    arguments = (
        ctypes.c_void_p(columns.buffer_info()[0]),
        ctypes.c_void_p(words.buffer_info()[0]),
        ctypes.c_int64(len(words)),
        ctypes.c_int(n_columns),
        ctypes.c_int(threads),
    )

    def run(keep: object = (columns, words)) -> None:
        library.bound(*arguments)

    return run
