"""Optimizers of torch-optimi, under its names and with its arguments and exact results. torch-optimi is not needed.

Those that torch-optimi does not compute differently than goptim's class of the same name are that class. The results
are those of its for-loop, with ``foreach=False`` and ``triton=False``. Weight decay that is added to a gradient is not
written to it, which torch-optimi does.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _optimi, _storage, _timm
from goptim.stableadamw import StableAdamW as StableAdamW

__all__ = ["SGD", "Adam", "AdamW", "Adan", "Lion", "RAdam", "StableAdamW"]


class _Adam(_optimi.Counting):
    """The base of the for-loops of Adam and AdamW."""

    states = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        eps: float = 1e-6,
        decouple_wd: bool = False,
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
            decouple_wd=decouple_wd,
        )
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        state, step = self.state[p], self.steps_of(group) + 1
        beta1, beta2 = (_optimi.debiased(group[key], step) for key in ("beta1", "beta2"))
        g, m, v = _optimi.decay_(p, group), state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        _optimi.add_quotient_(p, m, v.sqrt().add_(group["eps"]), -group["lr"], state["kahan_comp"])


class OptimiAdamForLoop(_Adam):
    """optimi.Adam in operations of torch."""

    reference = "optimi.Adam"


class Adam(_optimi.GoOptimi, OptimiAdamForLoop):
    r"""Adam with its update in Go: the arguments, state and exact results of ``optimi.Adam``.

    For a parameter :math:`\theta` with gradient :math:`g_t`, where
    :math:`\hat\beta = (\beta^t - \beta) / (\beta^t - 1)`:

    .. math::
        g'_t &\leftarrow g_t + \lambda\, \theta_{t-1} \text{ unless the decay is decoupled} \\
        m_t &\leftarrow \hat\beta_1 m_{t-1} + (1-\hat\beta_1)\, g'_t, \quad
        v_t \leftarrow \hat\beta_2 v_{t-1} + (1-\hat\beta_2)\, {g'_t}^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, m_t / (\sqrt{v_t} + \epsilon)

    The state of a parameter is ``exp_avg`` and ``exp_avg_sq``, of its shape and dtype, and ``kahan_comp``, which is
    None. A group has the entries ``beta1``, ``beta2``, ``setup`` and, after the first step, the number of steps in
    ``step``, a tensor. Each class loads the other's state_dict. Float32 and float64 parameters of any shape on the CPU
    run in Go; others are stepped by torch's operations.

    torch-optimi also writes the sum of gradient and decay, :math:`g'_t`, to ``p.grad``. goptim does not write to
    gradients.

    16-bit parameters are stepped by torch's operations too, with the compensation of torch-optimi in ``kahan_comp``,
    unless ``kahan_sum`` is False or one of goptim's own keywords is given, such as ``rounding="kahan"``. Then they run
    in Go, computed in float32 and rounded once.

    Kingma & Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, Algorithm 1.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0. torch-optimi has no default.
        betas: decay rates of the moments, each in [0, 1).
        weight_decay: at least 0; added to the gradient, times the parameter, unless it is decoupled.
        eps: added to the denominator, at least 0.
        decouple_wd: shrink the parameter by the learning rate times the decay instead.
        decouple_lr: shrink the parameter by ``lr / max_lr`` times the decay, which should be far smaller.
        max_lr: the largest learning rate of a schedule; by default, the one at construction.
        kahan_sum: whether 16-bit parameters have a compensation; None is True.
        foreach: has no effect on float32 and float64.
        triton: must not be True.
        gradient_release: must be False.

    Raises:
        ValueError: an argument is out of its range, or ``triton`` or ``gradient_release`` is True.
    """


class OptimiAdamWForLoop(_Adam):
    """optimi.AdamW in operations of torch."""

    entries: ClassVar[dict[str, Any]] = {**_Adam.entries, "decouple_wd": True}
    reference = "optimi.AdamW"

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
        super().__init__(
            params,
            lr,
            betas,
            weight_decay,
            eps,
            True,
            decouple_lr,
            max_lr,
            kahan_sum,
            foreach,
            triton,
            gradient_release,
        )


class AdamW(_optimi.GoOptimi, OptimiAdamWForLoop):
    r"""AdamW with its update in Go: the arguments, state and exact results of ``optimi.AdamW``.

    For a parameter :math:`\theta` with gradient :math:`g_t`, where
    :math:`\hat\beta = (\beta^t - \beta) / (\beta^t - 1)`:

    .. math::
        m_t &\leftarrow \hat\beta_1 m_{t-1} + (1-\hat\beta_1)\, g_t, \quad
        v_t \leftarrow \hat\beta_2 v_{t-1} + (1-\hat\beta_2)\, {g_t}^2 \\
        \theta_t &\leftarrow (1 - \gamma\lambda)\, \theta_{t-1} - \gamma\, m_t / (\sqrt{v_t} + \epsilon)

    The state of a parameter is ``exp_avg`` and ``exp_avg_sq``, of its shape and dtype, and ``kahan_comp``, which is
    None. A group has the entries ``beta1``, ``beta2``, ``setup`` and, after the first step, the number of steps in
    ``step``, a tensor. Each class loads the other's state_dict. Float32 and float64 parameters of any shape on the CPU
    run in Go; others are stepped by torch's operations.

    16-bit parameters are stepped by torch's operations too, with the compensation of torch-optimi in ``kahan_comp``,
    unless ``kahan_sum`` is False or one of goptim's own keywords is given, such as ``rounding="kahan"``. Then they run
    in Go, computed in float32 and rounded once.

    Loshchilov & Hutter, `Decoupled Weight Decay Regularization <https://arxiv.org/abs/1711.05101>`_, Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0. torch-optimi has no default.
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


class OptimiLionForLoop(_optimi.Loop):
    """optimi.Lion in operations of torch."""

    states = ("exp_avg",)
    complexes = False
    reference = "optimi.Lion"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        kahan_sum: bool | None = None,
        foreach: bool | None = None,
        triton: bool | None = None,
        gradient_release: bool = False,
    ) -> None:
        _timm.require_betas(betas)
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
        )
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        g, m, lr = _optimi.decay_(p, group), self.state[p]["exp_avg"], group["lr"]
        update = m.lerp(g, 1 - group["beta1"]).sign_()
        m.lerp_(g, 1 - group["beta2"])
        _optimi.add_(p, self.state[p]["kahan_comp"], lambda t: t.add_(update, alpha=-lr))


class Lion(_optimi.GoOptimi, OptimiLionForLoop):
    r"""Lion with its update in Go: the arguments, state and exact results of ``optimi.Lion``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        \theta_t &\leftarrow (1 - \gamma\lambda)\, \theta_{t-1}
        - \gamma\, \text{sign}\big(\beta_1 m_{t-1} + (1-\beta_1)\, g_t\big) \\
        m_t &\leftarrow \beta_2 m_{t-1} + (1-\beta_2)\, g_t

    The state of a parameter is ``exp_avg``, of its shape and dtype, and ``kahan_comp``, which is None. A group has the
    entries ``beta1``, ``beta2`` and ``setup``. Each class loads the other's state_dict. Float32 and float64 parameters
    of any shape on the CPU run in Go; others are stepped by torch's operations.

    16-bit parameters are stepped by torch's operations too, with the compensation of torch-optimi in ``kahan_comp``,
    unless ``kahan_sum`` is False or one of goptim's own keywords is given, such as ``rounding="kahan"``. Then they run
    in Go, computed in float32 and rounded once.

    Chen et al., `Symbolic Discovery of Optimization Algorithms <https://arxiv.org/abs/2302.06675>`_, Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0. torch-optimi has no default.
        betas: weights of the average, in the direction and over time, each in [0, 1).
        weight_decay: at least 0; multiplied by the learning rate.
        decouple_lr: multiply the decay by ``lr / max_lr`` instead of ``lr``, so ``weight_decay`` should be far smaller.
        max_lr: the largest learning rate of a schedule; by default, the one at construction.
        kahan_sum: whether 16-bit parameters have a compensation; None is True.
        foreach: has no effect on float32 and float64.
        triton: must not be True.
        gradient_release: must be False.

    Raises:
        ValueError: an argument is out of its range, or ``triton`` or ``gradient_release`` is True.
    """


class OptimiRAdamForLoop(_optimi.Counting):
    """optimi.RAdam in operations of torch."""

    states = ("exp_avg", "exp_avg_sq")
    reference = "optimi.RAdam"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        eps: float = 1e-6,
        decouple_wd: bool = False,
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
            decouple_wd=decouple_wd,
        )
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        state, step, lr = self.state[p], self.steps_of(group) + 1, group["lr"]
        beta1, beta2 = (_optimi.debiased(group[key], step) for key in ("beta1", "beta2"))
        rect = _rectification(group["beta2"], step)
        g, m, v = _optimi.decay_(p, group), state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if rect is None:
            _optimi.add_(p, state["kahan_comp"], lambda t: t.add_(m, alpha=-lr))
        else:
            _optimi.add_quotient_(p, m, v.sqrt().add_(group["eps"]), -lr * rect, state["kahan_comp"])


def _rectification(beta2: Any, step: int) -> float | None:
    """The factor of the learning rate; None if the variance of the second moment is not tractable."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * (beta2**step) / (1 - beta2**step)
    if not rho > 5:
        return None
    return math.sqrt(((rho - 4) * (rho - 2) * rho_inf) / ((rho_inf - 4) * (rho_inf - 2) * rho))


class RAdam(_optimi.GoOptimi, OptimiRAdamForLoop):
    r"""RAdam with its update in Go: the arguments, state and exact results of ``optimi.RAdam``.

    For a parameter :math:`\theta` with gradient :math:`g_t`, where
    :math:`\hat\beta = (\beta^t - \beta) / (\beta^t - 1)`:

    .. math::
        g'_t &\leftarrow g_t + \lambda\, \theta_{t-1} \text{ unless the decay is decoupled} \\
        m_t &\leftarrow \hat\beta_1 m_{t-1} + (1-\hat\beta_1)\, g'_t, \quad
        v_t \leftarrow \hat\beta_2 v_{t-1} + (1-\hat\beta_2)\, {g'_t}^2 \\
        \rho_t &= \rho_\infty - 2t\beta_2^t / (1-\beta_2^t), \quad \rho_\infty = 2 / (1-\beta_2) - 1 \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, m_t \, \frac{1}{\sqrt{v_t} + \epsilon}
        \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}
        \text{ if } \rho_t > 5, \text{ else } \theta_{t-1} - \gamma\, m_t

    The state of a parameter is ``exp_avg`` and ``exp_avg_sq``, of its shape and dtype, and ``kahan_comp``, which is
    None. A group has the entries ``beta1``, ``beta2``, ``setup`` and, after the first step, the number of steps in
    ``step``, a tensor. Each class loads the other's state_dict. Float32 and float64 parameters of any shape on the CPU
    run in Go; others are stepped by torch's operations.

    torch-optimi also writes the sum of gradient and decay, :math:`g'_t`, to ``p.grad``. goptim does not write to
    gradients.

    16-bit parameters are stepped by torch's operations too, with the compensation of torch-optimi in ``kahan_comp``,
    unless ``kahan_sum`` is False or one of goptim's own keywords is given, such as ``rounding="kahan"``. Then they run
    in Go, computed in float32 and rounded once.

    Liu et al., `On the Variance of the Adaptive Learning Rate and Beyond <https://arxiv.org/abs/1908.03265>`_,
    Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0. torch-optimi has no default.
        betas: decay rates of the moments, each in [0, 1).
        weight_decay: at least 0; added to the gradient, times the parameter, unless it is decoupled.
        eps: added to the denominator, at least 0.
        decouple_wd: shrink the parameter by the learning rate times the decay instead.
        decouple_lr: shrink the parameter by ``lr / max_lr`` times the decay, which should be far smaller.
        max_lr: the largest learning rate of a schedule; by default, the one at construction.
        kahan_sum: whether 16-bit parameters have a compensation; None is True.
        foreach: has no effect on float32 and float64.
        triton: must not be True.
        gradient_release: must be False.

    Raises:
        ValueError: an argument is out of its range, or ``triton`` or ``gradient_release`` is True.
    """


class OptimiSGDForLoop(_optimi.Loop):
    """optimi.SGD in operations of torch."""

    states = ("exp_avg",)
    when: ClassVar[dict[str, str]] = {"exp_avg": "momentum"}
    parts: ClassVar[dict[str, tuple[str, ...]]] = {}
    sparse = True
    reference = "optimi.SGD"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0,
        weight_decay: float = 0,
        dampening: bool = False,
        decouple_wd: bool = False,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        torch_init: bool = False,
        kahan_sum: bool | None = None,
        foreach: bool | None = None,
        triton: bool | None = None,
        gradient_release: bool = False,
    ) -> None:
        _timm.require("momentum", momentum, below=1.0)
        defaults = _optimi.defaults_of(
            lr,
            weight_decay,
            decouple_lr,
            max_lr,
            kahan_sum,
            foreach,
            triton,
            gradient_release,
            momentum=momentum,
            dampening=dampening,
            decouple_wd=decouple_wd,
            torch_init=torch_init,
        )
        super().__init__(params, defaults)

    def _init_group(self, group: dict[str, Any]) -> None:
        first = group["dampening"] and group["torch_init"]  # also without momentum, where it has no effect
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self._state_of(p)
            narrow = p.dtype in _storage.NARROW and _optimi.compensates(group)
            new: dict[str, Any] = {}
            if state.get("exp_avg") is None and (group["momentum"] != 0 or (first and not state)):
                new["exp_avg"] = self._first(group, p) if first else torch.zeros_like(p, requires_grad=False)
            if "kahan_comp" not in state and (new or narrow):
                new["kahan_comp"] = torch.zeros_like(p, requires_grad=False) if narrow else None
            if new:
                self.state[p].update(new)

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        """The state of a parameter, which has none without momentum."""
        state: dict[str, Any] = self.state[p] if p in self.state else {}  # noqa: SIM401 for a dict with its own lookup
        return state

    def _first(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """The gradient, with coupled weight decay."""
        assert p.grad is not None
        new = torch.clone(p.grad).detach()
        if group["weight_decay"] != 0 and not group["decouple_lr"] and not group["decouple_wd"]:
            if p.dtype in _storage.NARROW and not _optimi.compensates(group):  # as in Go, where it is rounded once
                return new.copy_(new.float().add_(p.float(), alpha=group["weight_decay"]))
            new.add_(p, alpha=group["weight_decay"])
        return new

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        g, momentum, state, lr = _optimi.decay_(p, group), group["momentum"], self._state_of(p), group["lr"]
        update = g if momentum == 0 else state["exp_avg"]
        if momentum != 0 and group["dampening"]:
            update.lerp_(g, 1 - momentum)
        elif momentum != 0:
            update.mul_(momentum).add_(g)
        _optimi.add_(p, state.get("kahan_comp"), lambda t: t.add_(update, alpha=-lr))


class SGD(_optimi.GoOptimi, OptimiSGDForLoop):
    r"""SGD with its update in Go: the arguments, state and exact results of ``optimi.SGD``.

    For a parameter :math:`\theta` with gradient :math:`g_t`:

    .. math::
        g'_t &\leftarrow g_t + \lambda\, \theta_{t-1} \text{ unless the decay is decoupled} \\
        m_t &\leftarrow \mu m_{t-1} + (1-\mu)\, g'_t \text{ if dampening, else } \mu m_{t-1} + g'_t \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\, m_t

    The state of a parameter is ``exp_avg``, of its shape and dtype, if there is momentum, and ``kahan_comp``, which is
    None; without momentum, torch-optimi stores None under both keys, and goptim nothing. A group has the entry
    ``setup``. Each class loads the other's state_dict. Float32 and float64 parameters of any shape on the CPU run in
    Go; others are stepped by torch's operations.

    torch-optimi also writes the sum of gradient and decay, :math:`g'_t`, to ``p.grad``. goptim does not write to
    gradients.

    16-bit parameters are stepped by torch's operations too, with the compensation of torch-optimi in ``kahan_comp``,
    unless ``kahan_sum`` is False or one of goptim's own keywords is given, such as ``rounding="kahan"``. Then they run
    in Go, computed in float32 and rounded once.

    Sutskever, Martens, Dahl & Hinton, `On the importance of initialization and momentum in deep learning
    <https://proceedings.mlr.press/v28/sutskever13.html>`_.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0. torch-optimi has no default.
        momentum: decay of ``exp_avg``, in [0, 1); 0 disables it.
        weight_decay: at least 0; added to the gradient, times the parameter, unless it is decoupled.
        dampening: multiply the gradient by 1 minus the momentum, so that ``exp_avg`` is an average.
        decouple_wd: shrink the parameter by the learning rate times the decay instead.
        decouple_lr: shrink the parameter by ``lr / max_lr`` times the decay, which should be far smaller.
        max_lr: the largest learning rate of a schedule; by default, the one at construction.
        torch_init: with dampening, ``exp_avg`` is the gradient at first instead of zero.
        kahan_sum: whether 16-bit parameters have a compensation; None is True.
        foreach: has no effect on float32 and float64.
        triton: must not be True.
        gradient_release: must be False.

    Raises:
        ValueError: an argument is out of its range, or ``triton`` or ``gradient_release`` is True.
    """

    def _complete_gradients(self) -> None:
        """Create the states that torch-optimi creates without momentum, although it does not use them."""
        if any(group["momentum"] == 0 and group["dampening"] and group["torch_init"] for group in self.param_groups):
            with torch.no_grad():
                for group in self.param_groups:  # all of them, in the order of the parameters
                    self._init_group(group)


class OptimiAdanForLoop(_optimi.Counting):
    """optimi.Adan in operations of torch."""

    states = ("exp_avg", "exp_avg_sq", "exp_avg_diff", "prev_grad")
    order = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "prev_grad")
    parts: ClassVar[dict[str, tuple[str, ...]]] = {"betas": ("beta1", "beta2", "beta3")}
    reference = "optimi.Adan"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        weight_decay: float = 2e-2,
        eps: float = 1e-6,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        adam_wd: bool = False,
        kahan_sum: bool | None = False,
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
            beta3=betas[2],
            eps=eps,
            adam_wd=adam_wd,
        )
        super().__init__(params, defaults)

    def _initial_in(self, group: dict[str, Any], key: str, p: Tensor) -> Any:
        new = super()._initial_in(group, key, p)
        return new.copy_(p.grad).mul_(-1) if key == "prev_grad" else new

    def advanced(self, group: dict[str, Any]) -> dict[str, Any]:
        new = super().advanced(group)
        if not group["setup"] and new.get("kahan_sum", group["kahan_sum"]):
            new["adam_wd"] = False
        return new

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        g, state, step, lr, beta = p.grad, self.state[p], self.steps_of(group) + 1, group["lr"], group["beta2"]
        beta1, beta2, beta3 = (_optimi.debiased(group[key], step) for key in ("beta1", "beta2", "beta3"))
        divisor = 1 + _optimi.rate_of(group) * group["weight_decay"] if group["weight_decay"] != 0 else 0
        m, d, v, change = state["exp_avg"], state["exp_avg_diff"], state["exp_avg_sq"], state["prev_grad"].add_(g)
        m.lerp_(g, 1 - beta1)
        d.lerp_(change, 1 - beta2)
        change.mul_(beta).add_(g)
        v.mul_(beta3).addcmul_(change, change, value=1 - beta3)
        change.copy_(g).mul_(-1)
        denom = v.sqrt().add_(group["eps"])

        def add(t: Tensor) -> None:
            t.addcdiv_(m, denom, value=-lr)
            t.addcdiv_(d, denom, value=-lr * beta)

        _optimi.add_(p, state["kahan_comp"], add)
        if divisor != 0:
            p.div_(divisor)


class Adan(_optimi.GoOptimi, OptimiAdanForLoop):
    r"""Adan with its update in Go: the arguments, state and exact results of ``optimi.Adan``.

    For a parameter :math:`\theta` with gradient :math:`g_t`, where
    :math:`\hat\beta = (\beta^t - \beta) / (\beta^t - 1)`:

    .. math::
        m_t &\leftarrow \hat\beta_1 m_{t-1} + (1-\hat\beta_1)\, g_t \\
        d_t &\leftarrow \hat\beta_2 d_{t-1} + (1-\hat\beta_2)\, (g_t - g_{t-1}), \quad g_0 = g_1 \\
        n_t &\leftarrow \hat\beta_3 n_{t-1} + (1-\hat\beta_3)\, \big(g_t + \beta_2 (g_t - g_{t-1})\big)^2 \\
        \theta_t &\leftarrow \frac{1}{1 + \gamma\lambda} \bigg(\theta_{t-1} - \gamma\,
        \frac{m_t + \beta_2\, d_t}{\sqrt{n_t} + \epsilon}\bigg)

    The state of a parameter is ``exp_avg`` (:math:`m`), ``exp_avg_diff`` (:math:`d`), ``exp_avg_sq`` (:math:`n`) and
    ``prev_grad`` (:math:`-g_{t-1}`), of its shape and dtype, and ``kahan_comp``, which is None. A group has the entries
    ``beta1``, ``beta2``, ``beta3``, ``setup`` and, after the first step, the number of steps in ``step``, a tensor.
    Each class loads the other's state_dict. Float32 and float64 parameters of any shape on the CPU run in Go; others
    are stepped by torch's operations.

    16-bit parameters run in Go, computed in float32 and rounded once. With ``kahan_sum``, and none of goptim's own
    keywords such as ``rounding="kahan"``, they are stepped by torch's operations, with the compensation of torch-optimi
    in ``kahan_comp``.

    Xie et al., `Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models
    <https://arxiv.org/abs/2208.06677>`_, Algorithm 1. The paper's :math:`\beta` are 1 minus these.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0. torch-optimi has no default.
        betas: decay rates of the averages of gradients, of their changes and of squares, each in [0, 1).
        weight_decay: at least 0; divides the parameter by 1 plus the learning rate times this.
        eps: added to the denominator, at least 0.
        decouple_lr: multiply the decay by ``lr / max_lr`` instead of ``lr``, so ``weight_decay`` should be far smaller.
        max_lr: the largest learning rate of a schedule; by default, the one at construction.
        adam_wd: has no effect, as in torch-optimi 0.3.3, whose step does not read it.
        kahan_sum: whether 16-bit parameters have a compensation; None is True.
        foreach: has no effect on float32 and float64.
        triton: must not be True.
        gradient_release: must be False.

    Raises:
        ValueError: an argument is out of its range, or ``triton`` or ``gradient_release`` is True.
    """
