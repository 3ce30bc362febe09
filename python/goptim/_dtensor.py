"""DTensors, as used by FSDP2: each process steps its local shards with elementwise optimizers.

And the tensors that any tensor consists of.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_ORDINARY = (Tensor, Parameter)

# The methods that return the tensors of a sparse tensor.
_OF_SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def is_dtensor(t: Tensor) -> bool:
    """Whether t is a DTensor, and not of a derived class."""
    if type(t) in _ORDINARY:  # most are, and looking the module up takes longer
        return False
    module = sys.modules.get("torch.distributed.tensor")  # without it, there are no DTensors
    return module is not None and type(t) is getattr(module, "DTensor", None)


def local(t: Tensor) -> Tensor:
    """The local shard of a DTensor, after pending communication; any other tensor itself."""
    if not is_dtensor(t):
        return t
    part: Any = t._local_tensor  # type: ignore[attr-defined]  # to_local creates a view for autograd
    if type(part) is not Tensor:
        from torch.distributed._functional_collectives import AsyncCollectiveTensor

        if isinstance(part, AsyncCollectiveTensor):
            part.trigger_wait()  # type: ignore[no-untyped-call]
            return part.elem
    return part  # type: ignore[no-any-return]


def inner(t: Tensor) -> tuple[Tensor, ...]:
    """The tensors whose memory t uses: those in a sparse tensor or in a wrapper such as a DTensor, else t itself."""
    try:
        flatten: Callable[[], Any] | None = getattr(t, "__tensor_flatten__", None)
        if flatten is not None:
            return tuple(part for name in flatten()[0] for part in inner(getattr(t, name)))
        return tuple(getattr(t, name)() for name in _OF_SPARSE.get(t.layout, ())) or (t,)
    except Exception:  # a subclass may raise anything
        return (t,)


def like(t: Any, part: Tensor) -> Tensor:
    """A DTensor with another local shard and the placement of t."""
    return type(t).from_local(  # type: ignore[no-any-return]
        part, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride()
    )


def reason_of_shard(p: Any) -> str | None:
    """Why the local shard of a DTensor cannot be stepped on its own; None if it can."""
    if any(placement.is_partial() for placement in p.placements):
        return f"it is a DTensor placed as {p.placements}"
    return None


def reason_of_placement(p: Any, t: Any) -> str | None:
    """Why a gradient or state is sharded differently than its parameter; None if it is not.

    In this case torch redistributes it with collectives. A state may have another dtype than its parameter.
    """
    if t.placements != p.placements or t.device_mesh != p.device_mesh or _shard_order(t) != _shard_order(p):
        return f"is placed as {t.placements}, and the parameter as {p.placements}"
    a, b = local(p), local(t)
    if type(b) is not Tensor or (b.shape, b.dtype, b.device, b.layout) != (a.shape, t.dtype, a.device, a.layout):
        return f"is here a {type(b).__name__} of {b.dtype}, {b.layout} and shape {tuple(b.shape)}"
    return None


def _shard_order(t: Any) -> object:
    """The order in which mesh dimensions shard a dimension; torch before 2.10 has only one."""
    return getattr(t._spec, "shard_order", None)
