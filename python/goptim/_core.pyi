"""The extension module: package bindings of the Go module, through gopy, and gather.c. Booleans are 0 or not 0.

A function of an optimizer steps a table (goptim/table.go says what that is): `rows` rows at the address `table`, on at
most `threads` threads. It returns the number of rows, and raises RuntimeError with what Go says is wrong.
"""

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

def Adam(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    amsgrad: int,
    maximize: int,
    decoupled_weight_decay: int,
) -> int: ...
def AdamW(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    amsgrad: int,
    maximize: int,
) -> int: ...
def SGD(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: int,
    maximize: int,
) -> int: ...
def ASGD(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    lambd: float,
    alpha: float,
    t0: float,
    weight_decay: float,
    maximize: int,
    float64_default: int,
) -> int: ...
def Adadelta(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    rho: float,
    eps: float,
    weight_decay: float,
    maximize: int,
) -> int: ...
def Adafactor(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    beta2_decay: float,
    eps1: float,
    eps2: float,
    d: float,
    weight_decay: float,
    maximize: int,
    fused_norms: int,
) -> int: ...
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
) -> int: ...
def Adagrad(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    lr_decay: float,
    weight_decay: float,
    eps: float,
    maximize: int,
) -> int: ...
def Adamax(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: int,
) -> int: ...
def NAdam(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum_decay: float,
    decoupled_weight_decay: int,
    maximize: int,
) -> int: ...
def RAdam(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: int,
    maximize: int,
) -> int: ...
def RMSprop(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: int,
    maximize: int,
) -> int: ...
def Rprop(
    table: int,
    rows: int,
    threads: int,
    lr: float,
    eta_minus: float,
    eta_plus: float,
    min_step: float,
    max_step: float,
    maximize: int,
) -> int: ...
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
