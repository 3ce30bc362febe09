"""StableAdamW, which torch.optim does not have."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _optimi, _timm

__all__ = ["StableAdamW"]


class StableAdamWForLoop(_optimi.Counting):
    """optimi.StableAdamW in operations of torch."""

    states = ("exp_avg", "exp_avg_sq", "eps_sq")
    scalars = ("eps_sq",)
    reference = "optimi.StableAdamW"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-2,
        eps: float = 1e-6,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        kahan_sum: bool | None = None,
        foreach: bool | None = None,
        triton: bool | None = None,
        gradient_release: bool = False,
    ) -> None:
        _timm.require_betas(betas)
        _timm.require("epsilon", eps)
        defaults = _optimi.defaults_of(
            lr,
            weight_decay,
            decouple_lr,
            max_lr,
            kahan_sum,
            foreach,
            triton,
            gradient_release,
            beta1=betas[0],
            beta2=betas[1],
            eps=eps,
        )
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        g, state, step = p.grad, self.state[p], self.steps_of(group) + 1
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(g, 1 - _optimi.debiased(group["beta1"], step))
        beta2 = _optimi.debiased(group["beta2"], step)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        rms = g.pow(2).div_(v.maximum(state["eps_sq"])).mean().sqrt().item()
        lr = group["lr"] / max(1, rms)
        if group["weight_decay"] != 0:
            p.mul_(_optimi.decay_of(group, lr))
        _optimi.add_quotient_(p, m, v.sqrt().add_(group["eps"]), -lr, state["kahan_comp"])


class StableAdamW(_optimi.GoOptimi, StableAdamWForLoop):
    r"""StableAdamW with its update in Go: the arguments, state and exact results of ``optimi.StableAdamW``.

    For a parameter :math:`\theta` with gradient :math:`g_t`, where
    :math:`\hat\beta = (\beta^t - \beta) / (\beta^t - 1)`:

    .. math::
        m_t &\leftarrow \hat\beta_1 m_{t-1} + (1-\hat\beta_1)\, g_t, \quad
        v_t \leftarrow \hat\beta_2 v_{t-1} + (1-\hat\beta_2)\, g_t^2 \\
        \gamma_t &= \gamma / \max\Big(1,\ \sqrt{\text{mean}\big(g_t^2 / \max(v_t, \epsilon^2)\big)}\Big) \\
        \theta_t &\leftarrow (1 - \gamma_t\lambda)\, \theta_{t-1} - \gamma_t\, m_t / (\sqrt{v_t} + \epsilon)

    The mean is that of torch, in its order. The state of a parameter is ``exp_avg`` and ``exp_avg_sq``, of its shape
    and dtype, ``eps_sq``, a tensor of no dimensions and that dtype, and ``kahan_comp``, which is None. A group has the
    entries ``beta1``, ``beta2``, ``setup`` and, after the first step, the number of steps in ``step``, a tensor. Each
    class loads the other's state_dict. Float32 and float64 parameters of any shape on the CPU run in Go; others are
    stepped by torch's operations.

    16-bit parameters are stepped by torch's operations too, with the compensation of torch-optimi in ``kahan_comp``,
    unless ``kahan_sum`` is False or one of goptim's own keywords is given, such as ``rounding="kahan"``. Then they run
    in Go, computed in float32 and rounded once.

    Wortsman et al., `Stable and low-precision training for large-scale vision-language models
    <https://arxiv.org/abs/2304.13013>`_, Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: decay rates of the moments, each in [0, 1).
        weight_decay: at least 0; multiplied by the learning rate.
        eps: added to the denominator, at least 0.
        decouple_lr: multiply the decay by ``lr / max_lr`` instead of ``lr``, so ``weight_decay`` should be far smaller.
        max_lr: the largest learning rate of a schedule; by default, the one at construction.
        kahan_sum: whether 16-bit parameters have a compensation; None is True.
        foreach: has no effect on float32 and float64.
        triton: must not be True.
        gradient_release: must be False.

    Raises:
        ValueError: an argument is out of its range, or ``triton`` or ``gradient_release`` is True.
    """

    elementwise = False
