"""SparseAdam: Adam on the rows that have a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from goptim import _native
from goptim._step import _DTYPES, _PLAIN, _bump_versions, _undecorated


class SparseAdam(torch.optim.SparseAdam):
    """torch.optim.SparseAdam with its update in Go: the same arguments, state and bits.

    The state of a parameter is ``step``, a Python int, ``exp_avg`` and ``exp_avg_sq``. Gradients are sparse COO tensors
    over a parameter's first dimension, as ``torch.nn.Embedding(…, sparse=True)`` makes them, coalesced or not; rows
    that come more than once are added up in Go. Parameters are contiguous float32 or float64 tensors on the CPU;
    others are updated by torch's own step.

    Lazy Adam, after Kingma & Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_,
    Algorithm 1: rows without a gradient, and their moments, stay.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _native.core()
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the rows that have a gradient, in place.

        Args:
            closure: re-evaluates the model and returns the loss; it runs with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient is dense, or names a row that its parameter has not.
        """
        if torch.compiler.is_compiling() or _native.core() is None or torch._C._len_torch_dispatch_stack():
            return _undecorated(torch.optim.SparseAdam)(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups, everything = self.param_groups, [group["params"] for group in self.param_groups]
        taken = [[p for p in group["params"] if p.grad is not None and self._go_takes(p, group)] for group in groups]
        for group, mine in zip(groups, taken, strict=True):
            ours = {id(p) for p in mine}
            group["params"] = [p for p in group["params"] if id(p) not in ours]
        try:
            if any(p.grad is not None for group in groups for p in group["params"]):
                _undecorated(torch.optim.SparseAdam)(self)
        finally:
            for group, params in zip(groups, everything, strict=True):
                group["params"] = params
        for group, mine in zip(groups, taken, strict=True):
            for p in mine:
                self._go_step(p, group)
        return loss

    def _go_takes(self, p: Tensor, group: dict[str, Any]) -> bool:
        g, state = p.grad, self.state.get(p, {})
        assert g is not None
        if not (
            isinstance(group["lr"], (float, int))
            and type(p) in _PLAIN
            and p.layout is torch.strided
            and p.dtype in _DTYPES
            and p.is_cpu
            and p.dim() > 0
            and p.is_contiguous()
            and not p.is_neg()
            and type(g) is Tensor
            and g.layout is torch.sparse_coo
            and g.is_cpu
            and g.dtype == p.dtype
            and g.shape == p.shape
            and g.sparse_dim() == 1
        ):
            return False
        return not state or (
            type(state.get("step")) is int
            and all(
                type(t) is Tensor
                and t.layout is torch.strided
                and t.is_cpu
                and t.dtype == p.dtype
                and t.shape == p.shape
                and t.is_contiguous()
                for t in (state.get("exp_avg"), state.get("exp_avg_sq"))
            )
        )

    def _go_step(self, p: Tensor, group: dict[str, Any]) -> None:
        g, state = p.grad, self.state[p]
        assert g is not None
        with torch.no_grad():
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            indices, values = g._indices().contiguous(), g._values().contiguous().resolve_neg()
            # Rows that repeat are added in this order, by torch's coalesce too; it is not that in which they come.
            order = None if g.is_coalesced() else indices[0].sort(0)[1]
        step, count = state["step"] + 1, values.shape[0]
        if p.numel() and count:
            written = [p, state["exp_avg"], state["exp_avg_sq"]]
            core = _native.core()
            assert core is not None
            core.SparseAdam(
                *(t.data_ptr() for t in written),
                p.shape[0],
                p.numel() // p.shape[0],
                p.dtype is torch.float64,
                indices.data_ptr(),
                values.data_ptr(),
                0 if order is None else order.data_ptr(),
                count,
                torch.get_num_threads(),
                step,
                group["lr"],
                *group["betas"],
                group["eps"],
                bool(group.get("maximize", False)),
            )
            _bump_versions(written)
        state["step"] = step
