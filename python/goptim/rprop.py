"""Rprop."""

from __future__ import annotations

from torch.optim.rprop import rprop as rprop

from goptim import _originals
from goptim._step import GoStep


class Rprop(GoStep, _originals.Rprop):
    r"""torch.optim.Rprop with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step``, ``prev`` and ``step_size``. Float32, float64, bfloat16 and float16 parameters
    of any shape on the CPU run in Go; others fall back to torch. ``foreach`` is accepted and checked as in torch. It
    only matters for 16-bit parameters, which fall back to torch with ``foreach=True``.

    .. math::
        \eta_t &\leftarrow \min(\max(\eta_{t-1} f, \Gamma_{\min}), \Gamma_{\max}), \quad f = \eta_+, \eta_-, 1
        \text{ for } g_t g_{t-1} > 0, < 0, = 0 \\
        g_t &\leftarrow 0 \text{ where } g_t g_{t-1} < 0, \quad \theta_t \leftarrow \theta_{t-1} - \eta_t\,
        \text{sign}(g_t)

    Riedmiller & Braun, `A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm
    <https://doi.org/10.1109/ICNN.1993.298623>`_, ICNN 1993.
    """
