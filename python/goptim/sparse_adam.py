"""SparseAdam: Adam on the rows that have a gradient."""

from __future__ import annotations

from typing import Any

import torch

from goptim import _originals
from goptim._step import GoStep


class SparseAdam(GoStep, _originals.SparseAdam):
    r"""torch.optim.SparseAdam with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step``, a Python int, ``exp_avg`` and ``exp_avg_sq``. Gradients are COO tensors that
    are sparse in the first dimension, as ``torch.nn.Embedding(…, sparse=True)`` creates, coalesced or not. Go sums
    repeated rows. Contiguous float32, float64, bfloat16 and float16 parameters on the CPU run in Go; others fall back
    to torch. For 16 bits, Go sums and computes in float32, and rounds each element of a row and its moments once.
    torch rounds after every operation, and after every addition of a repeated row.

    .. math::
        m_t &\leftarrow m_{t-1} + (1-\beta_1)(g_t - m_{t-1}),
        \quad v_t \leftarrow v_{t-1} + (1-\beta_2)(g_t^2 - v_{t-1}) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}\, m_t/(\sqrt{v_t}+\epsilon)

    Lazy Adam, after Kingma & Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_,
    Algorithm 1: rows without a gradient, and their moments, stay.
    """

    def _init_group(self, group: dict[str, Any]) -> None:
        """Create states as torch's step does."""
        for p in group["params"]:
            self.state[p]["step"] = 0
            for key in ("exp_avg", "exp_avg_sq"):
                self.state[p][key] = torch.zeros_like(p, memory_format=torch.preserve_format)
