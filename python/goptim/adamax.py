"""Adamax."""

from __future__ import annotations

from torch.optim.adamax import adamax as adamax

from goptim import _originals
from goptim._step import GoStep


class Adamax(GoStep, _originals.Adamax):
    r"""torch.optim.Adamax with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step``, ``exp_avg`` and ``exp_inf``. Float32, float64, bfloat16 and float16 parameters
    of any shape on the CPU run in Go; others fall back to torch. ``foreach`` is accepted and checked as in torch. It
    only matters for 16-bit parameters, which fall back to torch with ``foreach=True``.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1) g_t,
        \quad u_t \leftarrow \max(\beta_2 u_{t-1}, |g_t|+\epsilon) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, m_t / ((1-\beta_1^t) u_t)

    Kingma & Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, Algorithm 2.
    """
