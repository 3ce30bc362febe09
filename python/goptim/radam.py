"""RAdam."""

from __future__ import annotations

from torch.optim.radam import radam as radam

from goptim import _originals
from goptim._step import GoStep


class RAdam(GoStep, _originals.RAdam):
    r"""torch.optim.RAdam with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step``, ``exp_avg`` and ``exp_avg_sq``. Float32, float64, bfloat16 and float16
    parameters of any shape on the CPU run in Go; others fall back to torch. ``foreach`` is accepted and checked as in
    torch. It only matters for 16-bit parameters, which fall back to torch with ``foreach=True``.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1}
        \text{ or, decoupled, } \theta_{t-1} \leftarrow \theta_{t-1} - \gamma\lambda\theta_{t-1} \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad v_t \leftarrow \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \\
        \rho_\infty &= 2/(1-\beta_2) - 1, \quad \rho_t = \rho_\infty - 2t\beta_2^t/(1-\beta_2^t) \\
        r_t &= \sqrt{\tfrac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}},
        \quad l_t = \sqrt{1-\beta_2^t}/(\sqrt{v_t}+\epsilon) \text{ if } \rho_t > 5, \text{ else both } 1 \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, r_t l_t\, m_t/(1-\beta_1^t)

    Liu et al., `On the Variance of the Adaptive Learning Rate and Beyond <https://arxiv.org/abs/1908.03265>`_,
    Algorithm 2.
    """

    torch_class = _originals.RAdam
