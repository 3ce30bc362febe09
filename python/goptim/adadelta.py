"""Adadelta."""

from __future__ import annotations

from torch.optim.adadelta import adadelta as adadelta

from goptim import _originals
from goptim._step import GoStep


class Adadelta(GoStep, _originals.Adadelta):
    r"""torch.optim.Adadelta with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step``, ``square_avg`` and ``acc_delta``. Float32, float64, bfloat16 and float16
    parameters of any shape on the CPU run in Go; others fall back to torch. ``foreach`` is accepted and checked as in
    torch. It only matters for 16-bit parameters, which fall back to torch with ``foreach=True``.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        v_t &\leftarrow \rho v_{t-1} + (1-\rho) g_t^2 \\
        \Delta_t &= g_t\,\sqrt{u_{t-1}+\epsilon}/\sqrt{v_t+\epsilon} \\
        u_t &\leftarrow \rho u_{t-1} + (1-\rho) \Delta_t^2, \quad \theta_t \leftarrow \theta_{t-1} - \gamma \Delta_t

    Zeiler, `ADADELTA: An Adaptive Learning Rate Method <https://arxiv.org/abs/1212.5701>`_, Algorithm 1, with a
    learning rate.
    """
