"""Adam, AdamW, and AMSGrad as an option of both."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.adam import adam as adam
from torch.optim.optimizer import ParamsT

from goptim import _originals
from goptim._step import GoStep

__all__ = ["AMSGrad", "Adam", "AdamW", "adam"]


class Adam(GoStep, _originals.Adam):
    r"""torch.optim.Adam with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step``, ``exp_avg``, ``exp_avg_sq`` and, with ``amsgrad``, ``max_exp_avg_sq``.
    Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in Go; others fall back to torch.
    ``foreach`` and ``fused`` are accepted and checked as in torch. They only matter for 16-bit parameters, which fall
    back to torch with ``foreach=True``, and with both ``foreach=False`` and ``fused=False``.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad v_t \leftarrow \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \\
        \hat m_t &= m_t/(1-\beta_1^t), \quad \hat v_t = v_t/(1-\beta_2^t)
        \text{; amsgrad: } \max_{s \le t} v_s/(1-\beta_2^t) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, \hat m_t/(\sqrt{\hat v_t} + \epsilon)

    Kingma & Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, Algorithm 1;
    amsgrad: Reddi, Kale & Kumar, `On the Convergence of Adam and Beyond
    <https://openreview.net/forum?id=ryQu7f-RZ>`_, Algorithm 2.
    """


class AMSGrad(Adam):
    r"""Adam with ``amsgrad=True``, under the name of its paper. torch.optim has it only as this option.

    The arguments, the state (``step``, ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``) and the exact results are those
    of ``torch.optim.Adam(…, amsgrad=True)``. Each loads the other's state_dict.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad v_t \leftarrow \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \\
        v_t^{\max} &\leftarrow \max(v_{t-1}^{\max}, v_t) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, \frac{m_t}{1-\beta_1^t} \Big/
        \Big(\sqrt{v_t^{\max}/(1-\beta_2^t)} + \epsilon\Big)

    Reddi, Kale & Kumar, `On the Convergence of Adam and Beyond <https://openreview.net/forum?id=ryQu7f-RZ>`_, Algorithm
    2, with Adam's bias correction.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: decay rates of the moments, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0.
        flags: the keyword arguments of torch.optim.Adam that follow ``amsgrad``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        **flags: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, True, **flags)


# As in torch: from 2.7 on, AdamW is an Adam.
_AdamWBase = Adam if issubclass(_originals.AdamW, _originals.Adam) else GoStep


class AdamW(_AdamWBase, _originals.AdamW):  # type: ignore[misc, valid-type]
    r"""torch.optim.AdamW with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step``, ``exp_avg``, ``exp_avg_sq`` and, with ``amsgrad``, ``max_exp_avg_sq``.
    Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in Go; others fall back to torch.
    ``foreach`` and ``fused`` are accepted and checked as in torch. They only matter for 16-bit parameters, which fall
    back to torch with ``foreach=True``, and with both ``foreach=False`` and ``fused=False``.

    .. math::
        \theta_t &\leftarrow \theta_{t-1} - \gamma\lambda\theta_{t-1},
        \quad g_t \leftarrow \pm\nabla f_t(\theta_{t-1}) \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad v_t \leftarrow \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \\
        \hat m_t &= m_t/(1-\beta_1^t), \quad \hat v_t = v_t/(1-\beta_2^t)
        \text{; amsgrad: } \max_{s \le t} v_s/(1-\beta_2^t) \\
        \theta_t &\leftarrow \theta_t - \gamma\, \hat m_t/(\sqrt{\hat v_t} + \epsilon)

    Loshchilov & Hutter, `Decoupled Weight Decay Regularization <https://arxiv.org/abs/1711.05101>`_, Algorithm 2.
    """

    torch_class = _originals.AdamW
