"""The extension module: package bindings of the Go module, through gopy, and gather.c. Booleans are 0 or not 0.

`step_groups` steps the parameters of groups; its docstring says how. `Step` steps tables of rows at an address
(internal/steps, goptim/internal/engine/row.go) on at most `threads` threads, returns the number of rows, and raises
RuntimeError with what Go says is wrong, or the exception whose name the text begins with.
"""

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

def Kind(name: str) -> int: ...
def Describe() -> str: ...
def Step(kind: int, groups: int, threads: int) -> int: ...
def LBFGS(machine: int, size: int, threads: int) -> int: ...
def OpenMP(parallel: int, number: int) -> int: ...
def Reserve(threads: int) -> int: ...
def Version() -> str: ...
def step_groups(
    kind: int,
    form: int,
    layout: bytes | None,
    plain: tuple[type, ...],
    state: MutableMapping[Tensor, Any],
    step: str | None,
    numbers: int,
    groups: tuple[tuple[tuple[Any, ...], tuple[str | None, ...], tuple[Any, ...] | None], ...],
    threads: int,
    /,
) -> int | bytes: ...
