"""Rprop."""

from __future__ import annotations

from torch.optim.rprop import rprop as rprop

from goptim import _originals
from goptim._step import GoStep


class Rprop(GoStep, _originals.Rprop):
    r"""torch.optim.Rprop with its update in Go: the same arguments, state and bits.

    The state of a parameter is ``step``, ``prev`` and ``step_size``. Parameters are float32 or float64 tensors of
    any shape on the CPU; others are updated by torch's own step. ``foreach`` is accepted and checked as torch does;
    Go's one path serves all.

    .. math::
        \eta_t &\leftarrow \min(\max(\eta_{t-1} f, \Gamma_{\min}), \Gamma_{\max}), \quad f = \eta_+, \eta_-, 1
        \text{ for } g_t g_{t-1} > 0, < 0, = 0 \\
        g_t &\leftarrow 0 \text{ where } g_t g_{t-1} < 0, \quad \theta_t \leftarrow \theta_{t-1} - \eta_t\,
        \text{sign}(g_t)

    Riedmiller & Braun, `A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm
    <https://doi.org/10.1109/ICNN.1993.298623>`_, ICNN 1993.
    """
