"""Adagrad."""

from __future__ import annotations

from torch.optim.adagrad import adagrad as adagrad

from goptim import _empty, _originals
from goptim._step import GoStep


class Adagrad(GoStep, _originals.Adagrad):
    r"""torch.optim.Adagrad with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step`` and ``sum``. Float32, float64, bfloat16 and float16 parameters of any shape on
    the CPU run in Go; others fall back to torch. Gradients are dense, or COO tensors that are sparse in the first
    dimension, as ``torch.nn.Embedding(…, sparse=True)`` creates. ``foreach`` and ``fused`` are accepted and checked as
    in torch. They only matter for 16-bit parameters, which fall back to torch with ``foreach=True``, and with both
    ``foreach=False`` and ``fused=False``. For 16 bits, Go sums the gradients of a repeated row in float32,
    and rounds each element of the row once.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1},
        \quad \tilde\gamma = \gamma/(1+(t-1)\eta) \\
        s_t &\leftarrow s_{t-1} + g_t^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \tilde\gamma\, g_t/(\sqrt{s_t}+\epsilon)

    Duchi, Hazan & Singer, `Adaptive Subgradient Methods for Online Learning and Stochastic Optimization
    <https://jmlr.org/papers/v12/duchi11a.html>`_, JMLR 12 (2011), with a diagonal matrix.
    """

    part_class = _empty.EmptyPart
