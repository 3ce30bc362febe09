"""AdamWScheduleFree, SGDScheduleFree and RAdamScheduleFree, which torch.optim does not have."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from goptim import _lists, _storage
from goptim._eligible import reason_of_optimizer
from goptim._for_loop import ForLoop
from goptim._kinds import kind_of
from goptim._parts import Part, bump_versions
from goptim._step import GoStep

__all__ = ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"]


class _Base(ForLoop):
    """What the classes of the package schedulefree have in common, in operations of torch."""

    entries: ClassVar[dict[str, Any]] = {
        "k": 0,
        "train_mode": False,
        "weight_sum": 0.0,
        "lr_max": -1.0,
        "scheduled_lr": 0.0,
    }
    paths = False  # foreach is True by default

    def _momentum(self, group: dict[str, Any]) -> Any:
        """The weight of the average in the parameters."""
        return group["betas"][0]

    def _scheduled(self, group: dict[str, Any]) -> tuple[Any, bool]:
        """The learning rate of the next step, and whether gradients are divided by the root of ``exp_avg_sq``."""
        k, warmup_steps = group["k"], group["warmup_steps"]
        return group["lr"] * ((k + 1) / warmup_steps if k < warmup_steps else 1.0), "exp_avg_sq" in self.states

    def advanced(self, group: dict[str, Any]) -> dict[str, Any]:
        """The entries of a group after the next step."""
        group = _with_floats(group)
        lr, _ = self._scheduled(group)
        lr_max = max(lr, group["lr_max"])
        weight_sum = group["weight_sum"] + self._weight(group, lr_max)
        return {"k": group["k"] + 1, "weight_sum": weight_sum, "lr_max": lr_max, "scheduled_lr": lr}

    def _weight(self, group: dict[str, Any], lr_max: Any) -> Any:
        """The weight of the next step in the average, which is not normalized."""
        return ((group["k"] + 1) ** group["r"]) * (lr_max ** group["weight_lr_power"])

    def _require_ready(self) -> None:
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError(
                f"{type(self).__name__}: not in train mode, expected a call of its method train() before step(), and "
                "after eval()"
            )

    def train(self) -> None:
        """Change the parameters to those to train with. It has no effect in train mode."""
        self._switch(True)

    def eval(self) -> None:
        """Change the parameters to the averages, which are evaluated and saved. It has no effect unless in train mode.

        Raises:
            ZeroDivisionError: the first beta is 0.
        """
        self._switch(False)

    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        for i, group in enumerate(self.param_groups):
            if bool(group["train_mode"]) == train:
                continue
            params = [p for p in group["params"] if "z" in self.state[p]]
            if params:
                momentum = self._momentum(group)
                self._interpolate(i, params, 1 - momentum if train else 1 - 1 / momentum)
            group["train_mode"] = train

    def _interpolate(self, i: int, params: list[Tensor], weight: Any) -> None:
        """Move parameters of group i towards their states ``z``."""
        self._lerp(params, [self.state[p]["z"] for p in params], weight)

    def _lerp(self, params: list[Tensor], zs: list[Tensor], weight: Any) -> None:
        for p, z in zip(params, zs, strict=True):
            p.lerp_(end=z.to(p.device), weight=weight)

    def _init_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.grad is not None and "z" not in self.state[p]:
                self.state[p]["z"] = p.detach().clone(memory_format=torch.preserve_format)
                for key in self.states[1:]:
                    self.state[p][key] = torch.zeros_like(p, memory_format=torch.preserve_format, requires_grad=False)

    def _update_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        new, entries = self.advanced(group), group
        group = _with_floats(group)
        lr, normalizes = self._scheduled(group)
        try:
            ck = self._weight(group, new["lr_max"]) / new["weight_sum"]
        except ZeroDivisionError:
            ck = 0
        step = lr * (self._momentum(group) * (1 - ck) - 1)
        for y in params:
            assert y.grad is not None
            g, z = y.grad, self.state[y]["z"]
            if "exp_avg_sq" in self.states:
                beta2, v = group["betas"][1], self.state[y]["exp_avg_sq"]
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                if normalizes:  # in place, since torch rounds complex quotients in another way otherwise
                    g = g.clone().div_(v.div(1 - beta2 ** (group["k"] + 1)).sqrt_().add_(group["eps"]))
            if group["weight_decay"] != 0:
                g = g.add(y, alpha=group["weight_decay"])
            y.lerp_(end=z, weight=ck).add_(g, alpha=step)
            z.sub_(g, alpha=lr)
        entries.update(new)


def _with_floats(group: dict[str, Any]) -> dict[str, Any]:
    """A copy of a group in which NumPy numbers and fractions are floats, so that Python computes as Go does."""
    plain = {key: _plain(group[key]) for key in group if key not in ("params", "param_names")}
    if "betas" in plain:
        plain["betas"] = tuple(map(_plain, plain["betas"]))
    return plain


def _plain(x: Any) -> Any:
    return float(x) if type(x) not in (int, bool, float) and isinstance(x, Real) else x


class AdamWScheduleFreeForLoop(_Base):
    """schedulefree.AdamWScheduleFree in operations of torch."""

    states = ("z", "exp_avg_sq")
    reference = "schedulefree.AdamWScheduleFree"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
    ) -> None:
        _check(lr=lr, eps=eps, weight_decay=weight_decay, warmup_steps=warmup_steps)
        _check_betas(betas)
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "r": r, "warmup_steps": warmup_steps}
        defaults |= {"weight_lr_power": weight_lr_power, "weight_decay": weight_decay, "foreach": foreach}
        super().__init__(params, defaults)


class SGDScheduleFreeForLoop(_Base):
    """schedulefree.SGDScheduleFree in operations of torch."""

    states = ("z",)
    reference = "schedulefree.SGDScheduleFree"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2,
        foreach: bool | None = True,
    ) -> None:
        _check(lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps)
        if not 0 < momentum < 1:
            raise ValueError(f"Invalid momentum value: {momentum}, expected above 0 and below 1")
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "r": r, "warmup_steps": warmup_steps}
        defaults |= {"weight_lr_power": weight_lr_power, "weight_decay": weight_decay, "foreach": foreach}
        super().__init__(params, defaults)

    def _momentum(self, group: dict[str, Any]) -> Any:
        return group["momentum"]


class RAdamScheduleFreeForLoop(_Base):
    """schedulefree.RAdamScheduleFree in operations of torch."""

    states = ("z", "exp_avg_sq")
    reference = "schedulefree.RAdamScheduleFree"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
        silent_sgd_phase: bool = True,
    ) -> None:
        _check(lr=lr, eps=eps, weight_decay=weight_decay)
        _check_betas(betas)
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "r": r, "weight_lr_power": weight_lr_power}
        defaults |= {"weight_decay": weight_decay, "foreach": foreach, "silent_sgd_phase": silent_sgd_phase}
        super().__init__(params, defaults)

    def _scheduled(self, group: dict[str, Any]) -> tuple[Any, bool]:
        beta2, t = group["betas"][1], group["k"] + 1
        power = beta2**t
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * power / (1 - power)
        rect = float(not group["silent_sgd_phase"])
        if rho > 4:
            rect = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
        return group["lr"] * rect, rho > 4


def _check(**arguments: Any) -> None:
    for name, value in arguments.items():
        if not value >= 0:
            label = {"lr": "learning rate", "eps": "epsilon value"}.get(name, f"{name} value")
            raise ValueError(f"Invalid {label}: {value}, expected at least 0")


def _check_betas(betas: tuple[float, float]) -> None:
    for i, beta in enumerate(betas):
        if not 0 <= beta < 1:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}, expected at least 0 and below 1")


class _Go(GoStep):
    """What goptim's classes have in common."""

    def _begin_step(self) -> None:
        self.torch_class._require_ready(self)  # type: ignore[attr-defined]

    def _require_ready(self) -> None:
        """Accept every group in torch's part of a step, in which the first one may be missing."""

    def _switch(self, train: bool) -> None:
        for i, group in enumerate(self.param_groups):
            if bool(group["train_mode"]) != train and _storage.given(group):
                self._check_stored(i, group)
        super()._switch(train)  # type: ignore[misc]

    def _stored(self, i: int) -> tuple[Part, list[Tensor]]:
        """Group i, and its parameters that torch cannot interpolate because of the group's storage."""
        group = self.param_groups[i]
        part = self.part_class(self, i, group, ((), {**GoStep.options(self, group), "foreach": None}, ()))
        return part, [p for p in group["params"] if "z" in self.state[p] and part.affected(p)]

    def _check_stored(self, i: int, group: dict[str, Any]) -> None:
        """Raise an error if parameters of group i would have to fall back to torch, which would store other values."""
        why = reason_of_optimizer(self)
        part, params = self._stored(i)
        for p in params:
            why_p = why or part.reason_of_group or part.reason_of(p, p.detach(), self.state[p])
            if why_p is not None:
                part.refuse(p, why_p)

    def _interpolate(self, i: int, params: list[Tensor], weight: Any) -> None:
        if not _storage.given(self.param_groups[i]):
            return super()._interpolate(i, params, weight)  # type: ignore[misc,no-any-return]
        part, stored = self._stored(i)
        for p in params:
            part.store(p)
        ids = set(map(id, stored))
        if rest := [p for p in params if id(p) not in ids]:
            super()._interpolate(i, rest, weight)  # type: ignore[misc]
        rows = []
        for p in stored:
            x, _, step, z, *_, extra, place = part._row(p, p.detach(), self.state[p])
            rows.append((x, x, step, z, None, extra, place))
        group = {"weight": weight, **_storage.given(part.options)}
        if rows and type(self._go(((tuple(rows), group, ()),), None, kind_of("ScheduleFreeSwitch"))) is not int:
            raise RuntimeError(f"{type(self).__name__}: a parameter or its state has changed meanwhile")
        bump_versions(part.written)

    def _lerp(self, params: list[Tensor], zs: list[Tensor], weight: Any) -> None:
        if _lists.fits_float32(weight):
            _lists.LERP.apply(params, zs, (weight,), lambda p, z: self.torch_class._lerp(self, p, z, weight))  # type: ignore[attr-defined]
        else:
            self.torch_class._lerp(self, params, zs, weight)  # type: ignore[attr-defined]


class AdamWScheduleFree(_Go, AdamWScheduleFreeForLoop):
    r"""Schedule-Free AdamW with its update in Go: the arguments, state and exact results of
    ``schedulefree.AdamWScheduleFree``.

    In train mode the parameters are :math:`y`, and in eval mode the averages :math:`x`. With the gradient
    :math:`g_t` at :math:`y_t`:

    .. math::
        v_t &\leftarrow \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \\
        d_t &\leftarrow g_t / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon) + \lambda y_t \\
        z_{t+1} &\leftarrow z_t - \gamma_t d_t \\
        x_{t+1} &\leftarrow (1-c_t)\, x_t + c_t\, z_{t+1} \\
        y_{t+1} &\leftarrow (1-\beta_1)\, z_{t+1} + \beta_1\, x_{t+1}

    where :math:`c_t` is the share of this step in the sum of :math:`t^r \max_{s \le t} \gamma_s^p`, and
    :math:`\gamma_t` grows linearly during the warm-up.

    Call :meth:`train` before the first step and after :meth:`eval`, and :meth:`eval` before the model is evaluated or
    saved. The state of a parameter is ``z`` and ``exp_avg_sq``, tensors of its shape and dtype. A group also has the
    entries ``k`` (the number of steps), ``train_mode``, ``weight_sum``, ``lr_max`` and ``scheduled_lr``, which are in
    a state_dict. Each class loads the other's. Gradients stay as they are: the package's step overwrites them with
    :math:`d_t`.

    Float32, float64, bfloat16 and float16 parameters of any shape on the CPU run in Go; others are stepped by torch's
    operations. 16-bit parameters are computed in float32 and rounded once, and not after every operation.

    torch.distributed.checkpoint initializes states with a step whose learning rate is 0. That step needs train mode, as
    with the package, and counts in ``k`` until a state is loaded.

    Defazio, Yang, Mehta, Mishchenko, Khaled & Cutkosky, `The Road Less Scheduled <https://arxiv.org/abs/2405.15682>`_,
    Algorithm 1.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: the weight of :math:`x` in :math:`y`, and the decay rate of the second moment, each in [0, 1).
        eps: added to the denominator.
        weight_decay: at least 0; the parameters are added to the normalized gradient, times this.
        warmup_steps: the number of steps in which the learning rate grows.
        r: power of the number of a step in its weight in the average.
        weight_lr_power: power of the largest learning rate so far in that weight.
        foreach: has no effect.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: from ``step``, if the first group is not in train mode.
    """


class SGDScheduleFree(_Go, SGDScheduleFreeForLoop):
    r"""Schedule-Free SGD with its update in Go: the arguments, state and exact results of
    ``schedulefree.SGDScheduleFree``.

    It is :class:`AdamWScheduleFree` with momentum for :math:`\beta_1` and

    .. math::
        d_t \leftarrow g_t + \lambda y_t

    The state of a parameter is ``z``.

    Defazio et al., `The Road Less Scheduled <https://arxiv.org/abs/2405.15682>`_, equations 2 to 4.

    Args:
        momentum: the weight of :math:`x` in :math:`y`, above 0 and below 1.
        params, lr, weight_decay, warmup_steps, r, weight_lr_power, foreach: those of :class:`AdamWScheduleFree`.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: from ``step``, if the first group is not in train mode.
    """


class RAdamScheduleFree(_Go, RAdamScheduleFreeForLoop):
    r"""Schedule-Free RAdam with its update in Go: the arguments, state and exact results of
    ``schedulefree.RAdamScheduleFree``.

    It is :class:`AdamWScheduleFree` with the rectification of :class:`RAdam` instead of a warm-up. In the first steps,
    while the variance is not tractable, gradients are not divided. Then, for a learning rate :math:`\gamma`,

    .. math::
        \rho_t &\leftarrow \rho_\infty - 2 t \beta_2^t / (1-\beta_2^t), \quad \rho_\infty = 2 / (1-\beta_2) - 1 \\
        \gamma_t &\leftarrow \gamma \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}
        {(\rho_\infty-4)(\rho_\infty-2)\rho_t}} \quad \text{if } \rho_t > 4

    Defazio et al., `The Road Less Scheduled <https://arxiv.org/abs/2405.15682>`_, Algorithm 1; Liu et al., `On the
    Variance of the Adaptive Learning Rate and Beyond <https://arxiv.org/abs/1908.03265>`_, Algorithm 2.

    Args:
        silent_sgd_phase: do not move the parameters in the first steps, in which the variance is not tractable.
        params, lr, betas, eps, weight_decay, r, weight_lr_power, foreach: those of :class:`AdamWScheduleFree`.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: from ``step``, if the first group is not in train mode.
    """
