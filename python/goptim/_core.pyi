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
def make_kind(
    number: int,
    scalars: tuple[tuple[str | None, int, int, bool, float | None], ...],
    states: tuple[tuple[str | None, int, int, bool], ...],
    step: str | None,
    integer: bool,
    leave: tuple[str, ...],
    /,
) -> object: ...
def step_groups(
    kind: object,
    layout: bytes | None,
    plain: tuple[type, ...],
    state: MutableMapping[Tensor, Any],
    groups: tuple[tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]], ...],
    threads: int,
    /,
) -> int | bytes: ...
def step_sparse(
    kind: object,
    group: dict[str, Any],
    extra: tuple[Any, ...],
    size: int,
    row: tuple[int, ...],
    step: float,
    threads: int,
    /,
) -> None: ...
def layouts() -> dict[str, Any]: ...
