"""What torch-optimi's optimizers have in common, in operations of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from goptim import _storage, _timm
from goptim._for_loop import ForLoop
from goptim._parts import Asked, Part
from goptim._step import GoStep


def defaults_of(
    lr: float,
    weight_decay: float,
    decouple_lr: bool,
    max_lr: float | None,
    kahan_sum: bool | None,
    foreach: bool | None,
    triton: bool | None,
    gradient_release: bool,
    **more: Any,
) -> dict[str, Any]:
    """The entries of a group that are arguments.

    Raises:
        ValueError: an argument is out of its range, or not supported.
    """
    _timm.require("learning rate", lr)
    _timm.require("weight decay", weight_decay)
    if decouple_lr and max_lr is None:
        max_lr = lr
    if max_lr is not None:
        _timm.require("maximum learning rate", max_lr)
    for name, value in (("triton", triton), ("gradient_release", gradient_release)):
        if value:
            raise ValueError(f"Invalid {name}: {value}, expected False: goptim does not support it")
    return {
        "lr": lr,
        **more,
        "weight_decay": weight_decay,
        "decouple_lr": decouple_lr,
        "max_lr": max_lr,
        "kahan_sum": kahan_sum,
        "foreach": foreach,
        "triton": triton,
        "gradient_release": gradient_release,
    }


def compensates(group: dict[str, Any]) -> bool:
    """Whether 16-bit parameters of a group have a compensation, as in torch-optimi by default."""
    return bool(not _storage.given(group) if group["kahan_sum"] is None else group["kahan_sum"])


def debiased(beta: Any, step: int) -> Any:
    """The decay rate of a step with which an average that starts at zero is unbiased."""
    return (beta**step - beta) / (beta**step - 1)


def decay_of(group: dict[str, Any], lr: Any) -> Any:
    """The factor of a parameter for decoupled weight decay."""
    rate = lr / group["max_lr"] if group["decouple_lr"] else lr
    return 1 - rate * group["weight_decay"]


def rate_of(group: dict[str, Any]) -> Any:
    """What the weight decay is multiplied by if it is decoupled."""
    return group["lr"] / group["max_lr"] if group["decouple_lr"] else group["lr"]


def decay_(p: Tensor, group: dict[str, Any]) -> Tensor:
    """Decay a parameter. Returns its gradient, or a new tensor to which the decay is added."""
    assert p.grad is not None
    weight_decay = group["weight_decay"]
    if weight_decay == 0:
        return p.grad
    if not (group["decouple_lr"] or group.get("decouple_wd", True)):
        return p.grad.add(p, alpha=weight_decay)
    factor = decay_of(group, group["lr"])
    if factor != 0:  # torch-optimi does not multiply by 0
        p.mul_(factor)
    return p.grad


def add_(p: Tensor, compensation: Tensor | None, add: Callable[[Tensor], Any]) -> None:
    """Add an update to a parameter, or to what its 16 bits lack, and then that to the parameter."""
    if compensation is None:
        add(p)
        return
    add(compensation)
    before = p.detach().clone()
    p.add_(compensation)
    compensation.add_(before.sub_(p))


def add_quotient_(p: Tensor, m: Tensor, denom: Tensor, scale: Any, compensation: Tensor | None) -> None:
    """Add an update that is a quotient."""
    add_(p, compensation, lambda t: t.addcdiv_(m, denom, value=scale))


def options_of(group: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options of a group for Go. torch steps 16-bit parameters that have a compensation."""
    most: Any = options["max_lr"] if options["decouple_lr"] else 0.0
    if options["decouple_lr"] and (most is None or (isinstance(most, (int, float)) and most == 0)):
        most = ""  # a number that Go cannot use, so that the group falls back
    return {**options, "max_lr": most, **({"foreach": True} if compensates(group) else {})}


class CompensatedPart(Part):
    @cached_property
    def reason_of_narrow(self) -> str | None:
        if compensates(self.group):
            return f"kahan_sum={self.group['kahan_sum']!r}: torch-optimi rounds 16-bit parameters after every operation"
        return super().reason_of_narrow


class Loop(ForLoop):
    """The base of the for-loops."""

    absent = ("kahan_comp",)
    entries: ClassVar[dict[str, Any]] = {"setup": False}
    parts: ClassVar[dict[str, tuple[str, ...]]] = {"betas": ("beta1", "beta2")}
    sparse = False

    @classmethod
    def replaces(cls, **arguments: Any) -> bool:
        return not arguments.get("triton") and not arguments.get("gradient_release")

    @property
    def reason_unsaved(self) -> str | None:
        held = any(isinstance(state.get("kahan_comp"), Tensor) for state in self.state.values())
        return "its kahan_comp is a tensor, which Go's optimizers do not have" if held else None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose largest learning rate is its first one, if it needs one and does not give it."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["decouple_lr"] and group["max_lr"] is None:
            group["max_lr"] = group["lr"]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for of in self.state.values():
            if any(key in of for key in self.states):
                of.setdefault("kahan_comp", None)

    def _restore_scalars(self, given: dict[str, Any]) -> None:
        """Nothing: they have the dtype of their parameter, to which torch converts them."""

    def _init_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.grad is None or self.state[p]:
                continue
            state = self.state[p]
            for key in self.order or self.states:
                state[key] = self._initial_in(group, key, p)
            state["kahan_comp"] = None
            if p.dtype in _storage.NARROW and compensates(group):
                state["kahan_comp"] = torch.zeros_like(p, requires_grad=False)

    def _initial_in(self, group: dict[str, Any], key: str, p: Tensor) -> Any:
        """A new state."""
        if key == "eps_sq":
            return torch.tensor(float(group["eps"]) ** 2, dtype=p.dtype, device=p.device)
        return torch.zeros_like(p, requires_grad=False)

    def options_in_go(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options in Go that are entries of a group with another type."""
        return {}

    def advanced(self, group: dict[str, Any]) -> dict[str, Any]:
        """The entries of a group after the next step."""
        new: dict[str, Any] = {"setup": True}
        if not group["setup"]:
            if group["triton"] is None and group["foreach"] is None:
                new["triton"] = False
            if compensates(group) and any(p.grad is not None and p.dtype in _storage.NARROW for p in group["params"]):
                new["kahan_sum"] = True
        return new


class Counting(Loop):
    """The base of those whose groups have a step count, a tensor of no dimensions after the first step."""

    entries: ClassVar[dict[str, Any]] = {"setup": False, "step": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            if not isinstance(group["step"], Tensor) and (group["setup"] or group["step"] > 0):
                group["setup"], group["step"] = True, _count(group["step"])

    def steps_of(self, group: dict[str, Any]) -> int:
        """The number of steps of a group so far."""
        return int(group["step"]) if group["setup"] else 0

    def advanced(self, group: dict[str, Any]) -> dict[str, Any]:
        return {**super().advanced(group), "step": _count(self.steps_of(group) + 1)}

    def options_in_go(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"step": self.steps_of(group)}


class GoOptimi(GoStep):
    """The base of the classes whose update runs in Go, before their for-loop, a Loop."""

    part_class = CompensatedPart

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        """A copy of the options, since torch's part of a step may change the group before Go's part."""
        loop: Any = self
        options = options_of(group, super().options(group))
        return {**options, **loop.options_in_go(group), "advanced": loop.advanced(group)}

    def _finish_step(self, groups: list[dict[str, Any]], asked: Sequence[Asked]) -> None:
        for group, (_, options, _) in zip(groups, asked, strict=True):
            group.update(options["advanced"])


def _count(n: int) -> Tensor:
    return torch.tensor(int(n), dtype=torch.int32, device="cpu")
