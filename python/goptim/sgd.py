"""Stochastic gradient descent."""

from __future__ import annotations

from torch.optim.sgd import sgd as sgd

from goptim import _empty, _originals
from goptim._step import GoStep


class SGD(GoStep, _originals.SGD):
    r"""torch.optim.SGD with its update in Go: the same arguments, state (``momentum_buffer``) and exact results.

    Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in Go; others fall back to torch.
    Gradients are dense, or, without momentum and weight decay, COO tensors that are sparse in the first dimension, as
    ``torch.nn.Embedding(…, sparse=True)`` creates; with other sparse gradients, a parameter falls back to torch.
    ``foreach`` and ``fused`` are accepted and checked as in torch. They only matter for 16-bit parameters, which fall
    back to torch with ``foreach=True``, and with both ``foreach=False`` and ``fused=False``. Then Go
    steps with the gradients of a repeated row one after another in float32, and rounds each element of the row once.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        b_t &\leftarrow g_1 \text{ at first, then } \mu b_{t-1} + (1-\tau) g_t \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, (b_t \text{; nesterov: } g_t + \mu b_t
        \text{; without momentum: } g_t)

    With the momentum of Sutskever et al., `On the importance of initialization and momentum in deep learning
    <https://proceedings.mlr.press/v28/sutskever13.html>`_, ICML 2013, in torch's form.
    """

    part_class = _empty.EmptyPart
