"""Sparse gradients, for example of embeddings: which ones run in Go, and the step of one parameter."""

from __future__ import annotations

import functools
import struct
from array import array
from typing import Any

import torch
from torch import Tensor

from goptim import _native

# Python and torch can compute with all numbers from 0 to this one, also in float32. Decay rates are below 1.
LARGE = 1e18

# The layouts of Go's sparseRow (goptim/sparse.go) and Group (internal/steps), and the dtype codes in them.
_SCALARS = 16
_ROW, _GROUP = struct.Struct("=10qd"), struct.Struct(f"=4q{_SCALARS}d")
_DTYPES = {torch.float32: 1, torch.float64: 2}

# From this number on, torch's builds with fbgemm use a radix sort for integers.
_RADIX = 1 << 15


def why_not(p: Tensor, g: Tensor, sums: bool) -> str | None:
    """Why a supported parameter falls back because of a sparse COO gradient; None if it does not.

    torch sums repeated rows if the values are not contiguous. Go does the same only if ``sums`` is true.
    """
    if type(g) is not Tensor:
        return f"its gradient is a {type(g).__name__}, not a plain tensor"
    if not g.is_cpu or g.dtype != p.dtype or g.shape != p.shape:
        return f"its gradient is {g.dtype} on {g.device}, sparse, of shape {tuple(g.shape)}"
    if g.sparse_dim() != 1:
        return f"its gradient is sparse over {g.sparse_dim()} dimensions"
    if not p.is_contiguous():
        return "its gradient is sparse and it is not contiguous"
    indices, values = g._indices(), g._values()
    if not (indices.shape[1] < 2 or indices.stride(1) != 0) or not (sums or values.is_contiguous()):
        return "its sparse gradient is not contiguous"
    return None


def wrong_row(p: Tensor, g: Tensor) -> int | None:
    """An index in a gradient that is out of range of the parameter's rows; None if there is none."""
    indices = g._indices()
    if indices.numel() == 0:
        return None
    low, high = (int(x) for x in indices.aminmax())
    return low if low < 0 else high if high >= p.shape[0] else None


def step(
    kind: int,
    p: Tensor,
    g: Tensor,
    states: list[Tensor],
    count: float,
    sums: bool,
    scalars: tuple[Any, ...],
) -> None:
    """Step the rows of one parameter that have a gradient in Go. There must be at least one."""
    indices, values = g._indices().contiguous(), g._values().contiguous().resolve_neg()
    order = _order(g) if sums else None
    torch.autograd.graph.increment_version([p, *states])
    tensors = [p, *states, indices, values, *(() if order is None else (order,))]
    # Storages are referenced and provide the addresses: other code may change a tensor's storage during the call.
    storages = [t.untyped_storage() for t in tensors]
    rows, width = p.shape[0], p.numel() // p.shape[0]
    for t, storage, n in zip(tensors, storages, [*[rows * width] * (1 + len(states)), *[0] * 3], strict=False):
        if storage.nbytes() < (t.storage_offset() + max(n, t.numel())) * t.element_size():
            raise RuntimeError("a parameter, its gradient or its state has changed during the step")
    at = [s.data_ptr() + t.storage_offset() * t.element_size() for t, s in zip(tensors, storages, strict=True)]
    parameter, of_states, rest = at[0], at[1 : 1 + len(states)], at[1 + len(states) :]
    row = _ROW.pack(
        parameter,
        *of_states,
        *[0] * (2 - len(states)),
        rows,
        width,
        _DTYPES[p.dtype],
        *rest,
        *[0] * (order is None),
        values.shape[0],
        count,
    )
    _call(kind, row, scalars, torch.get_num_threads())


def check(kind: int, p: Tensor, count: float, scalars: tuple[Any, ...]) -> None:
    """Compute the scalars of a step in Go without a step, to raise their errors."""
    _call(kind, _ROW.pack(0, 0, 0, 0, 1, _DTYPES[p.dtype], 0, 0, 0, 0, count), scalars, 1)


def _call(kind: int, row: bytes, scalars: tuple[Any, ...], threads: int) -> None:
    """Step a group of one row in Go."""
    core: Any = _native.core()
    table = array("B", row)
    rest = [0.0] * (_SCALARS - len(scalars))
    group = array("B", _GROUP.pack(0, table.buffer_info()[0], 1, len(scalars), *scalars, *rest))
    _native.call(core.Step, kind, group.buffer_info()[0], threads)


def _order(g: Tensor) -> Tensor | None:
    """The order in which torch's coalesce adds repeated rows; None if it is the original order."""
    n = g._nnz()
    if n < 2 or g.is_coalesced() or (n >= _RADIX and _sorts_by_radix()):
        return None
    return g._indices()[0].sort(0)[1]


@functools.cache
def _sorts_by_radix() -> bool:
    """Whether torch sorts many integers stably by default."""
    repeated = torch.arange(_RADIX) % 1000
    return torch.equal(repeated.sort()[1], repeated.sort(stable=True)[1])
