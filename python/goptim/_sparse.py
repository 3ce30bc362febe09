"""Sparse gradients, as of embeddings: which of them Go takes, and the step of one parameter."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from goptim import _native
from goptim._kinds import Kind

# Python and torch can compute with all numbers from 0 to this one, in float32 as well; decay rates are below 1.
LARGE = 1e18

# From so many on, torch's builds with fbgemm sort integers by radix.
_RADIX = 1 << 15


def why_not(p: Tensor, g: Tensor, sums: bool) -> str | None:
    """Why Go does not take a sparse COO gradient of a parameter that it takes; None if it does.

    torch adds up the rows of values that are not contiguous: only where ``sums`` says that all are, this is the same.
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
    """An index in a gradient of a row that its parameter has not."""
    indices = g._indices()
    if indices.numel() == 0:
        return None
    low, high = (int(x) for x in indices.aminmax())
    return low if low < 0 else high if high >= p.shape[0] else None


def step(kind: Kind, p: Tensor, g: Tensor, states: list[Tensor], count: float, options: dict[str, Any]) -> None:
    """Have Go step the rows of one parameter that have a gradient, of which there are some."""
    indices, values = g._indices().contiguous(), g._values().contiguous().resolve_neg()
    order = _order(g) if kind.sums else None
    torch.autograd.graph.increment_version([p, *states])
    tensors = [p, *states, indices, values, *(() if order is None else (order,))]
    # Storages are held, and asked for the addresses: other code may give a tensor another one before Go has returned.
    storages = [t.untyped_storage() for t in tensors]
    rows, width = p.shape[0], p.numel() // p.shape[0]
    for t, storage, n in zip(tensors, storages, [*[rows * width] * (1 + len(states)), *[0] * 3], strict=False):
        if storage.nbytes() < (t.storage_offset() + max(n, t.numel())) * t.element_size():
            raise RuntimeError("a parameter, its gradient or its state has changed during the step")
    at = [s.data_ptr() + t.storage_offset() * t.element_size() for t, s in zip(tensors, storages, strict=True)]
    columns, rest = at[: 1 + len(states)], at[1 + len(states) :]
    row = (*columns, *[0] * (2 - len(states)), rows, width, *rest, *[0] * (order is None), values.shape[0])
    _call(kind, p, row, count, options, torch.get_num_threads())


def check(kind: Kind, p: Tensor, count: float, options: dict[str, Any]) -> None:
    """Have Go compute the scalars of a step that moves nothing, for their errors."""
    _call(kind, p, (0, 0, 0, 0, 1, 0, 0, 0, 0), count, options, 1)


def _call(kind: Kind, p: Tensor, row: tuple[int, ...], count: float, options: dict[str, Any], threads: int) -> None:
    core: Any = _native.core()
    core.step_sparse(kind.handle, options, (), p.element_size(), row, count, threads)


def _order(g: Tensor) -> Tensor | None:
    """The order in which torch's coalesce adds rows that repeat; None if that is the one in which they come."""
    n = g._nnz()
    if n < 2 or g.is_coalesced() or (n >= _RADIX and _sorts_by_radix()):
        return None
    return g._indices()[0].sort(0)[1]


@functools.cache
def _sorts_by_radix() -> bool:
    """Whether torch sorts many integers in a way that leaves equal ones in order, without being asked to."""
    repeated = torch.arange(_RADIX) % 1000
    return torch.equal(repeated.sort()[1], repeated.sort(stable=True)[1])
