"""Sparse gradients, for example of embeddings: which ones run in Go, and the step of one parameter."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from goptim import _native
from goptim._kinds import Kind

# Scalars from 0 to this value raise no errors in Python or torch, also in float32. Decay rates are below 1.
LARGE = 1e18

# The numbers of dtypes in gather.c.
_DTYPES = {torch.float32: 1, torch.float64: 2, torch.bfloat16: 3, torch.float16: 4}

# With at least this many integers, builds of torch with fbgemm use a radix sort.
_RADIX = 1 << 15


def reason_of_sparse(p: Tensor, g: Tensor, sums: bool) -> str | None:
    """Why a supported parameter falls back because of a sparse COO gradient; None if it does not.

    torch sums repeated rows if the values are not contiguous. Go does the same only if ``sums`` is true.
    """
    if type(g) is not Tensor:
        return f"its gradient is a {type(g).__name__}, a tensor subclass"
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
    kind: Kind,
    p: Tensor,
    g: Tensor,
    states: list[Tensor],
    count: float,
    options: dict[str, Any],
    extra: list[Tensor],
    place: int,
) -> None:
    """Step in Go the rows of one parameter that have a gradient. There must be at least one.

    extra is the master copy or the compensation, if there is one. place is the index of the parameter in the optimizer.
    """
    indices, values = g._indices().contiguous(), g._values().contiguous().resolve_neg()
    order = _order(g) if kind.sums else None
    torch.autograd.graph.increment_version([p, *states, *extra])
    stored = [p, *states, *extra]
    tensors = [*stored, indices, values, *(() if order is None else (order,))]
    # Storages are referenced and provide the addresses: other code may change a tensor's storage during the call.
    storages = [t.untyped_storage() for t in tensors]
    rows, width = p.shape[0], p.numel() // p.shape[0]
    for t, storage, n in zip(tensors, storages, [*[rows * width] * len(stored), *[0] * 3], strict=False):
        if storage.nbytes() < (t.storage_offset() + max(n, t.numel())) * t.element_size():
            raise RuntimeError("a parameter, its gradient or its state has changed during the step")
    at = [s.data_ptr() + t.storage_offset() * t.element_size() for t, s in zip(tensors, storages, strict=True)]
    columns, more, rest = at[: 1 + len(states)], at[1 + len(states) : len(stored)], at[len(stored) :]
    of_row = (*columns, *[0] * (2 - len(states)), rows, width, sum(more), place)
    row = (*of_row, *rest, *[0] * (order is None), values.shape[0])
    _call(kind, p, row, count, options, torch.get_num_threads())


def check(kind: Kind, p: Tensor, count: float, options: dict[str, Any]) -> None:
    """Raise the errors of a step's scalars, by a step in Go that changes nothing."""
    _call(kind, p, (0, 0, 0, 0, 1, *[0] * 6), count, options, 1)


def _call(kind: Kind, p: Tensor, row: tuple[int, ...], count: float, options: dict[str, Any], threads: int) -> None:
    core: Any = _native.core()
    core.step_sparse(kind.handle, options, (), _DTYPES[p.dtype], row, count, threads)


def _order(g: Tensor) -> Tensor | None:
    """The order in which torch's coalesce adds repeated rows; None if it is the original order."""
    n = g._nnz()
    if n < 2 or g.is_coalesced() or (n >= _RADIX and _sorts_by_radix()):
        return None
    return g._indices()[0].sort(0)[1]


@functools.cache
def _sorts_by_radix() -> bool:
    """Whether torch sorts many integers stably by default."""
    repeated = torch.arange(_RADIX, device="cpu") % 1000
    return torch.equal(repeated.sort()[1], repeated.sort(stable=True)[1])
