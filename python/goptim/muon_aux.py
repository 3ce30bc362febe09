"""MuonWithAuxAdam, which torch.optim does not have: Muon for matrices of hidden layers, Adam for other parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from goptim._eligible import NARROW
from goptim._for_loop import ForLoop, counterpart
from goptim._kinds import Kind, kind_of
from goptim._parts import GO, NO_GRADIENT, PYTHON, Asked, Part
from goptim._step import ASK, CHECK, GoStep

__all__ = ["MuonWithAuxAdam"]

# The options of a group, with their defaults, if it has use_muon and if not.
_OPTIONS: dict[bool, dict[str, Any]] = {
    True: {"lr": 0.02, "momentum": 0.95, "weight_decay": 0},
    False: {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0},
}

# The coefficients of the Newton-Schulz iteration, their number, and the smallest norm.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7

# Go's constant for a learning rate that is not adjusted to the shape (LRAdjustment in goptim/muon.go).
_NO_ADJUSTMENT = 3

# Numbers up to this one do not overflow in a step.
_LARGE = 1e18


class _InTorch(ForLoop):
    """muon.SingleDeviceMuonWithAuxAdam in operations of torch."""

    sparse = False

    def __init__(self, param_groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(param_groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with the defaults of the options that it does not have.

        Raises:
            ValueError: the group does not have ``use_muon``, or has a key that such a group does not have.
        """
        if isinstance(param_group, dict):
            where = f"{type(self).__name__}: group {len(self.param_groups)}"
            muon = param_group.get("use_muon")
            if not isinstance(muon, bool):
                found = "no use_muon" if muon is None else f"use_muon {muon!r}"
                raise ValueError(f"{where}: {found}, expected True or False")
            options = _OPTIONS[muon]
            for key in param_group.keys() - options.keys() - {"params", "use_muon", "param_names"}:
                raise ValueError(f"{where}: {key}, expected {', '.join(options)} with use_muon={muon}")
            for key, value in options.items():
                param_group.setdefault(key, value)
        super().add_param_group(param_group)

    def _complete_gradients(self) -> None:
        """Give every parameter a gradient, as the package does: without one, its average still moves it."""
        for i, group in enumerate(self.param_groups):
            for p in group["params"] if group["use_muon"] else ():
                _require_matrix(self, i, p)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)

    def _init_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.grad is None or self.state[p]:
                continue
            keys = ("momentum_buffer",) if group["use_muon"] else ("exp_avg", "exp_avg_sq")
            self.state[p].update({key: torch.zeros_like(p, requires_grad=False) for key in keys})
            if not group["use_muon"]:
                self.state[p]["step"] = 0

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        g, state, lr = p.grad, self.state[p], group["lr"]
        if group["use_muon"]:
            momentum = state["momentum_buffer"].lerp_(g, 1 - group["momentum"])
            update = _orthogonalized(g.lerp(momentum, group["momentum"]))
        else:
            state["step"] += 1
            (beta1, beta2), step = group["betas"], state["step"]
            m = state["exp_avg"].lerp_(g, 1 - beta1)
            v = state["exp_avg_sq"].lerp_(g.square(), 1 - beta2)
            update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + group["eps"])
        p.mul_(1 - lr * group["weight_decay"])
        p.add_(update, alpha=-lr)


_InTorch.__name__ = "MuonWithAuxAdam"


def _require_matrix(optimizer: Any, index: int, p: Tensor) -> None:
    if p.dim() < 2:
        i = next(i for i, q in enumerate(optimizer.param_groups[index]["params"]) if q is p)
        raise ValueError(
            f"{type(optimizer).__name__}: parameter {i} of group {index}, of shape {tuple(p.shape)} and {p.dtype}: "
            "expected at least two dimensions with use_muon=True"
        )


def _orthogonalized(update: Tensor) -> Tensor:
    """The nearest matrix with equal singular values, approximately, of each matrix of an update; scaled by its shape.

    It is in bfloat16. The filters of a convolution, with four dimensions, are the rows of one matrix, but the scale is
    that of its last two dimensions.
    """
    rows, cols = update.shape[-2:]
    x = (update.reshape(len(update), -1) if update.dim() == 4 else update).bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + _EPS)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + (c * gram) @ gram) @ x
    if tall:
        x = x.mT
    scaled: Tensor = x.mul_(max(1, rows / cols) ** 0.5)
    return scaled.reshape(update.shape)


class _Part(Part):
    """A group of either half. The step count of Adam is a Python int."""

    def reason_of(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        if self.group["use_muon"]:
            _require_matrix(self.optimizer, self.index, p)
        why = super().reason_of(p, g, state)
        if why is None and not self.group["use_muon"] and state and not _is_count(state.get("step")):
            return f"its step is {state.get('step')!r}"
        return why


def _is_count(step: Any) -> bool:
    return type(step) is int and step >= 0


@counterpart("muon.SingleDeviceMuonWithAuxAdam")
class MuonWithAuxAdam(GoStep, _InTorch):
    r"""Muon for some groups and Adam for others, with its elementwise work in Go.

    It has the arguments, state and exact results of ``muon.SingleDeviceMuonWithAuxAdam`` (package muon-optimizer).

    A group with ``use_muon=True`` has matrices, for a gradient :math:`g_t`:

    .. math::
        B_t &= \mu B_{t-1} + (1 - \mu) g_t \\
        \theta_t &= (1 - \gamma\lambda) \theta_{t-1}
        - \gamma \sqrt{\max(1, \text{rows}/\text{cols})}\; \mathrm{NS}((1 - \mu) g_t + \mu B_t)

    NS divides by the norm plus :math:`10^{-7}`, and repeats five times
    :math:`X \leftarrow aX + (bXX^T + c(XX^T)^2)X` in bfloat16. These products, which take nearly all of the time, are
    torch's own, so the results are exact. A parameter of four dimensions, such as the filters of a convolution, is a
    matrix with the first dimension as its rows. One of three or of more than four is a batch of matrices.

    A group with ``use_muon=False`` has any parameters:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \\
        \theta_t &= (1 - \gamma\lambda) \theta_{t-1}
        - \gamma \frac{m_t / (1-\beta_1^t)}{\sqrt{v_t / (1-\beta_2^t)} + \epsilon}

    The state of a parameter is ``momentum_buffer``, or ``exp_avg``, ``exp_avg_sq`` and ``step``, a Python int. Each
    class loads the other's state_dict. As in the package, a parameter without a gradient gets one of zeros. Otherwise
    gradients stay as they are: the package's step overwrites those of matrices. Float32, float64, bfloat16 and float16
    parameters on the CPU run in Go; others are stepped by torch's operations. For 16-bit parameters, everything except
    the products is computed in float32, and each stored element is rounded once.

    ``goptim.save_state`` and the keywords of docs/half.md do not support this class.

    Jordan et al., `Muon: An optimizer for hidden layers in neural networks
    <https://kellerjordan.github.io/posts/muon/>`_ (2024).

    Args:
        param_groups: groups, each with ``params`` and ``use_muon``. With ``use_muon=True`` the options are ``lr``
            (0.02), ``momentum`` (0.95) and ``weight_decay`` (0), and otherwise ``lr`` (3e-4), ``betas`` ((0.9, 0.95)),
            ``eps`` (1e-10) and ``weight_decay`` (0).

    Raises:
        ValueError: a group does not have ``use_muon``, or has another key; or, from ``step``, a parameter of a group
            with ``use_muon`` has fewer than two dimensions.
    """

    stored = False

    torch_class = _InTorch
    elementwise = False
    part_class = _Part

    def __init__(self, param_groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(param_groups)

    @property
    def reason_unsaved(self) -> str | None:
        return "its groups have different states"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _InTorch.add_param_group(self, param_group)

    def _complete_gradients(self) -> None:
        _InTorch._complete_gradients(self)

    @property
    def kind(self) -> Kind:
        return kind_of("MuonMomentum")

    def kind_in(self, group: dict[str, Any]) -> Kind:
        return kind_of("MuonMomentum" if group["use_muon"] else "AuxAdam")

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        options = {key: group[key] for key in group}  # as the group looks them up
        return {**options, "nesterov": True, "step": 1}

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (group["lr"], group["weight_decay"]) if group["use_muon"] else ()

    def _go(self, groups: tuple[Asked, ...], threads: int | None = None, kind: Kind | None = None) -> Any:
        """Step the halves in the order of the groups, with one call of Go for consecutive groups of Adam."""
        runs = [(muon, list(some)) for muon, some in itertools.groupby(self._counted(groups), _has_muon)]
        answers = [self._half_of(muon, some, ASK) for muon, some in runs]
        if not all(type(answer) is int for answer in answers):
            return self._codes(groups, runs, answers)
        if threads == ASK:
            return sum(answers)
        for muon, some in runs:
            if muon:
                for _, (params, options, extra) in some:
                    _check_scalars(map(_param_of, params), options, extra)
            else:
                self._half_of(muon, some, CHECK)
        for muon, some in runs if threads != CHECK else ():
            if muon:
                for _, (params, options, extra) in some:
                    for x in params:
                        self._step_matrix(x, options, extra)
            else:
                self._half_of(muon, some, threads)
                for _, (params, _, _) in some:
                    for x in params:
                        self.state[_param_of(x)]["step"] += 1
        return sum(answers)

    def _half_of(self, muon: bool, some: list[tuple[list[int], Asked]], threads: int | None) -> Any:
        kind = kind_of("MuonMomentum" if muon else "AuxAdam")
        return super()._go(tuple([asked for _, asked in some]), threads, kind)

    def _counted(self, groups: tuple[Asked, ...]) -> Iterator[tuple[list[int], Asked]]:
        """The groups, those of Adam split by the number of the step, each with the places of its parameters."""
        first = 0
        seen: dict[int, int] = {}  # a parameter that occurs twice is stepped twice
        for params, options, extra in groups:
            if options["use_muon"]:
                yield list(range(first, first + len(params))), (params, options, extra)
            else:
                by_step: dict[int, list[int]] = {}
                for i, x in enumerate(params):
                    p = _param_of(x)
                    step = (self.state.get(p) or {}).get("step", 0)
                    earlier = seen[id(p)] = seen.get(id(p), -1) + 1
                    by_step.setdefault(step + earlier + 1 if _is_count(step) else 0, []).append(i)
                for step, places in by_step.items():
                    some = tuple([params[i] for i in places])
                    yield [first + i for i in places], (some, {**options, "step": step}, extra)
            first += len(params)

    def _codes(self, groups: tuple[Asked, ...], runs: list[Any], answers: list[Any]) -> bytes:
        """A code for each parameter, where some are not supported."""
        params = [_param_of(x) for group in groups for x in group[0]]
        codes = bytearray(GO if p.grad is not None else NO_GRADIENT for p in params)
        for (_, some), answer in zip(runs, answers, strict=True):
            places = [place for places, _ in some for place in places]
            if type(answer) is not int:
                for place, code in zip(places, answer, strict=True):
                    codes[place] = code
            for of, (_, options, _) in some:
                if not options["use_muon"] and options["step"] == 0:  # which is not a count
                    for place in of:
                        codes[place] = PYTHON
        return bytes(codes)

    @torch.no_grad()
    def _step_matrix(self, x: Any, options: dict[str, Any], extra: tuple[Any, ...]) -> None:
        """A step of one parameter: its momentum in Go, the matrix products in torch, the update in Go."""
        p = _param_of(x)
        if p.grad is None or not p.numel():
            return
        update = torch.empty_like(p, dtype=torch.bfloat16 if p.dtype in NARROW else p.dtype, requires_grad=False)
        row = x if type(x) is tuple else (p, p.grad, None, self.state[p]["momentum_buffer"], None, None)
        rows = ((*row[:4], update, *row[5:]),)
        self._call("MuonMomentum", rows, options, ())
        update.copy_(_orthogonalized(update))
        lr, weight_decay = extra
        options = {"lr": lr, "weight_decay": weight_decay, "adjust_lr_fn": _NO_ADJUSTMENT}
        self._call("MuonUpdate", rows, options, (1, 1))

    def _call(self, name: str, rows: tuple[Any, ...], options: dict[str, Any], extra: tuple[Any, ...]) -> None:
        done = super()._go(((rows, options, extra),), None, kind_of(name))
        if type(done) is not int:
            raise RuntimeError(
                f"{type(self).__name__}: a parameter, its gradient or its state has changed during the step"
            )


def _param_of(x: Any) -> Tensor:
    """The parameter of an argument for gather.c, which may be a row."""
    return x[0] if type(x) is tuple else x  # type: ignore[no-any-return]


def _has_muon(counted: tuple[list[int], Asked]) -> bool:
    return bool(counted[1][1]["use_muon"])


@torch.no_grad()
def _check_scalars(params: Iterable[Tensor], options: dict[str, Any], extra: tuple[Any, ...]) -> None:
    """Raise what torch's operations raise where they cannot compute with a group's numbers."""
    lr, momentum = extra[0], options["momentum"]
    if abs(lr) <= _LARGE and abs(momentum) <= _LARGE:
        return
    for dtype in {torch.float32 if p.dtype in NARROW else p.dtype for p in params}:
        one = torch.ones((), dtype=dtype, device="cpu")
        one.lerp(one, 1 - momentum).lerp(one, momentum).add(one, alpha=-lr)
