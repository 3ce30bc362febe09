"""RMSprop."""

from __future__ import annotations

from torch.optim.rmsprop import rmsprop as rmsprop

from goptim import _originals
from goptim._step import GoStep


class RMSprop(GoStep, _originals.RMSprop):
    r"""torch.optim.RMSprop with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step`` and ``square_avg``, with ``momentum`` also ``momentum_buffer``, and with
    ``centered`` also ``grad_avg``. Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in Go;
    others fall back to torch. ``foreach`` is accepted and checked as in torch. It only matters for 16-bit parameters,
    which fall back to torch with ``foreach=True``.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        v_t &\leftarrow \alpha v_{t-1} + (1-\alpha) g_t^2,
        \quad \bar g_t \leftarrow \alpha \bar g_{t-1} + (1-\alpha) g_t \text{ if centered} \\
        d_t &= g_t / (\sqrt{v_t - \bar g_t^2 \text{ if centered}} + \epsilon),
        \quad b_t \leftarrow \mu b_{t-1} + d_t \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma b_t \text{ with momentum } \mu,
        \text{ else } \theta_{t-1} - \gamma d_t

    Tieleman & Hinton, Lecture 6.5 of COURSERA: Neural Networks for Machine Learning (2012); centered: Graves,
    `Generating Sequences With Recurrent Neural Networks <https://arxiv.org/abs/1308.0850>`_, equations 38 to 45.
    """
