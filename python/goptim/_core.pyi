"""The extension module: package bindings of the Go module, through gopy, and gather.c. Booleans are 0 or not 0.

`step_groups` steps the parameters of groups; its docstring says how. `Step` steps tables of rows at an address
(bindings/bindings.go, goptim/table.go) on at most `threads` threads, returns the number of rows, and raises
RuntimeError with what Go says is wrong.
"""

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

def Kind(name: str) -> int: ...
def Step(kind: int, groups: int, threads: int) -> int: ...
def SparseSGD(
    param: int,
    state1: int,
    state2: int,
    rows: int,
    width: int,
    float64s: int,
    indices: int,
    values: int,
    order: int,
    count: int,
    threads: int,
    step: float,
    lr: float,
    maximize: int,
) -> int: ...
def SparseAdagrad(
    param: int,
    state1: int,
    state2: int,
    rows: int,
    width: int,
    float64s: int,
    indices: int,
    values: int,
    order: int,
    count: int,
    threads: int,
    step: float,
    lr: float,
    lr_decay: float,
    eps: float,
    maximize: int,
) -> int: ...
def SparseAdam(
    param: int,
    state1: int,
    state2: int,
    rows: int,
    width: int,
    float64s: int,
    indices: int,
    values: int,
    order: int,
    count: int,
    threads: int,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    maximize: int,
) -> int: ...
def LBFGS(machine: int, size: int, threads: int) -> int: ...
def OpenMP(parallel: int, number: int) -> int: ...
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
