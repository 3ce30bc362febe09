"""The extension module: package bindings of the Go module, through gopy, and gather.c. Booleans are 0 or not 0.

A function of an optimizer steps tables (goptim/table.go says what these are) on at most `threads` threads. It returns
the number of rows, and raises RuntimeError with what Go says is wrong. An error whose text begins
with the name of another exception is one of that kind. Most functions step all groups at once, from the address of
the first on; bindings/bindings.go says what a group is.
"""

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

def Adam(groups: int, threads: int) -> int: ...
def AdamW(groups: int, threads: int) -> int: ...
def SGD(groups: int, threads: int) -> int: ...
def ASGD(groups: int, threads: int) -> int: ...
def Adadelta(groups: int, threads: int) -> int: ...
def Adafactor(groups: int, threads: int) -> int: ...
def HFAdafactor(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    eps1: float,
    eps2: float,
    clip_threshold: float,
    decay_rate: float,
    beta1: float,
    weight_decay: float,
    averages: int,
    scale_parameter: int,
    relative_step: int,
    warmup_init: int,
    fused_norms: int,
    only_check: int,
) -> int: ...
def Adagrad(groups: int, threads: int) -> int: ...
def Adamax(groups: int, threads: int) -> int: ...
def NAdam(groups: int, threads: int) -> int: ...
def RAdam(groups: int, threads: int) -> int: ...
def RMSprop(groups: int, threads: int) -> int: ...
def Rprop(groups: int, threads: int) -> int: ...
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
def MuonMomentum(
    table: int,
    rows: int,
    threads: int,
    momentum: float,
    nesterov: int,
) -> int: ...
def MuonUpdate(
    table: int,
    rows: int,
    threads: int,
    height: int,
    width: int,
    lr: float,
    weight_decay: float,
    adjust_lr: int,
) -> int: ...
def OpenMP(parallel: int, number: int) -> int: ...
def Version() -> str: ...
def pack(group: int, table: int, scalars: tuple[Any, ...], /) -> bool: ...
def gather(
    layout: bytes,
    plain: tuple[type, ...],
    params: list[Tensor],
    state: MutableMapping[Tensor, Any],
    at: int,
    step: str | None,
    keys: tuple[str | None, ...],
    numbers: int,
    table: int,
    written: list[Tensor],
    grads: list[Tensor],
    odd: list[Tensor],
    /,
) -> tuple[int, int, int]: ...
def bump(addresses: int, n: int, /) -> None: ...
