"""NAdam."""

from __future__ import annotations

from torch.optim.nadam import nadam as nadam

from goptim import _originals
from goptim._step import GoStep


class NAdam(GoStep, _originals.NAdam):
    r"""torch.optim.NAdam with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step``, ``mu_product``, ``exp_avg`` and ``exp_avg_sq``. Float32, float64, bfloat16 and
    float16 parameters of any shape on the CPU run in Go; others fall back to torch. ``foreach`` is accepted and checked
    as in torch. It only matters for 16-bit parameters, which fall back to torch with ``foreach=True``.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1}
        \text{ or, decoupled, } \theta_{t-1} \leftarrow \theta_{t-1} - \gamma\lambda\theta_{t-1} \\
        \mu_t &= \beta_1 (1 - \tfrac12\, 0.96^{t \psi}), \quad \Pi_t = \Pi_{t-1}\mu_t \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad v_t \leftarrow \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma \Big(\frac{\mu_{t+1} m_t}{1-\Pi_t\mu_{t+1}}
        + \frac{(1-\mu_t) g_t}{1-\Pi_t}\Big) \Big/ \Big(\sqrt{v_t/(1-\beta_2^t)} + \epsilon\Big)

    Dozat, `Incorporating Nesterov Momentum into Adam <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_,
    ICLR 2016 workshop, Algorithm 2.
    """

    torch_class = _originals.NAdam
