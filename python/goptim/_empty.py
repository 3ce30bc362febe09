"""Sparse gradients without elements: a step changes no parameter, but torch still computes with its scalars."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from goptim import _sparse
from goptim._fallback import undecorated_step
from goptim._parts import Part


class EmptyPart(Part):
    """One group's part of a step, for optimizers in which torch does not skip empty sparse gradients."""

    def check_sparse(self, p: Tensor, g: Tensor) -> None:
        super().check_sparse(p, g)
        if (not p.numel() or not g._nnz()) and not all(0 <= x <= _sparse.LARGE for x in self.scalars):
            self._try_torch(p, g)

    @torch.no_grad()
    def _try_torch(self, p: Tensor, g: Tensor) -> None:
        """Raise the error that torch raises, by a step of torch on a parameter with one row."""
        n, width = min(1, g._nnz()), min(1, math.prod(p.shape[1:]))
        torch_class: Any = self.optimizer.torch_class
        with torch.device("cpu"):
            q = torch.zeros(1, width, dtype=p.dtype)
            indices = torch.zeros(1, n, dtype=torch.int64)
            q.grad = torch.sparse_coo_tensor(indices, q[:n], q.shape, check_invariants=False)
            optimizer = torch_class([q])
            optimizer.param_groups[0].update(
                {key: value for key, value in self.group.items() if key not in ("params", "param_names")}
            )
            for key in self.scalar_states:
                if key in (state := self.optimizer.state.get(p, {})):
                    optimizer.state[q][key] = state[key].clone()
            undecorated_step(torch_class)(optimizer)
