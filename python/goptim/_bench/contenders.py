"""The implementations that are compared: goptim, torch's, torch's compiled step, DeepSpeed, and the memory bound."""

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
from goptim._for_loop import ForLoop

# torch's implementations, with the flags that select them.
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
    "bound": "share of bandwidth",
}
COMPILED = 200  # tensors; a step of more takes many minutes to compile
COLUMNS = 6  # addresses per tensor that bound.c reads
# DeepSpeed sets this variable, which makes torch load NVML in each step: small steps take twice as long.
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


class Missing(Exception):
    """An implementation does not exist here. The message is the reason; it is empty if torch does not have one."""


@dataclass
class Contender:
    """An optimizer with its own parameters, and the call to time."""

    optimizer: Optimizer
    parameters: list[Tensor]
    step: Callable[[], object]


def build(path: str, subject: subjects.Optimizer, parameters: list[Tensor]) -> Contender:
    """An implementation of an optimizer, with these parameters.

    Raises:
        Missing: there is no such implementation, or it is not installed.
    """
    optimizer: Optimizer
    if path == "goptim":
        optimizer = subject.goptim_class(parameters, **subject.options)
    elif path == "deepspeed":
        optimizer = _deepspeed(subject, parameters)
    else:
        cls = subject.torch_class
        known = {k: on for k, on in PATHS[path].items() if k in inspect.signature(cls).parameters}
        if path in ("foreach", "fused") and (not known or issubclass(cls, ForLoop)):
            raise Missing
        optimizer = cls(parameters, **subject.options, **known)
    if hasattr(optimizer, "train"):  # Schedule-Free
        optimizer.train()
    if path == "compile":
        return Contender(optimizer, parameters, _compiled(optimizer, len(parameters)))
    return Contender(optimizer, parameters, optimizer.step)


def _compiled(optimizer: Optimizer, tensors: int) -> Callable[[], object]:
    if tensors > COMPILED:
        raise Missing(f"compile: a step of more than {COMPILED} tensors would take many minutes to compile")
    from torch import _dynamo

    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it warns about the hooks of every step
    _dynamo.reset()  # otherwise it stops compiling steps after a few optimizers
    step: Callable[[], object] = torch.compile(lambda: optimizer.step(), fullgraph=False)
    return step


def _deepspeed(subject: subjects.Optimizer, parameters: list[Tensor]) -> Optimizer:
    if "deepspeed" not in sys.modules and importlib.util.find_spec("deepspeed") is None:
        raise Missing("deepspeed: not measured because it is not installed: pip install deepspeed")
    if subject.deepspeed is None:
        raise Missing("deepspeed: only Adam, AdamW and Adagrad have a counterpart")
    module, name, options = subject.deepspeed
    with _same_environment(NVML):
        cls = getattr(importlib.import_module(module), name)
    known = inspect.signature(subject.torch_class).parameters
    defaults = {k: known[k].default for k in inspect.signature(cls).parameters if k in known}
    options = {**defaults, **subject.options, **options}
    if parameters[0].dtype != torch.float32:
        options["fp32_optimizer_states"] = False  # as in all other implementations
    optimizer: Optimizer = cls(parameters, **options)
    return optimizer


@contextlib.contextmanager
def _same_environment(name: str) -> Iterator[None]:
    """Restore an environment variable at the end."""
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
    """The compiled pass over memory and an empty string; or None and the reason why it cannot be compiled."""
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
    return None, f"the memory bound is missing: {failure}"


def bound_of(library: ctypes.CDLL, optimizer: Optimizer, threads: int) -> tuple[Callable[[], None], ...]:
    """Two passes over the memory that the optimizer's next step reads and writes.

    The first one uses the vectors that the compiler prefers, and the other one the widest. Both together restore the
    values.

    It uses the same addresses, since page placement changes times by a tenth. Adafactor's states are left out: most
    have one element per row or column of the parameter.
    """
    columns, words, n_columns = array("Q"), array("q"), 0
    for p in optimizer.param_groups[0]["params"]:
        state = [s for s in optimizer.state.get(p, {}).values() if isinstance(s, Tensor) and s.dim()]
        state = [] if isinstance(optimizer, goptim.Adafactor) else state
        tensors = [p, p.grad, *state]
        n_columns = len(tensors)
        columns.extend([t.data_ptr() for t in tensors] + [0] * (COLUMNS - n_columns))
        words.append(p.numel() * p.element_size() // 4)
    arguments = (
        ctypes.c_void_p(columns.buffer_info()[0]),
        ctypes.c_void_p(words.buffer_info()[0]),
        ctypes.c_int64(len(words)),
        ctypes.c_int(n_columns),
        ctypes.c_int(threads),
    )

    def run(wide: bool, keep: object = (columns, words)) -> None:
        library.bound(*arguments, ctypes.c_int(wide))

    return functools.partial(run, False), functools.partial(run, True)
