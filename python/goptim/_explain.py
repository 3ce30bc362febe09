"""Whether each parameter of an optimizer is stepped in Go or by torch, and why: the rules of a step without a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from goptim import _native, _storage
from goptim._eligible import (
    PLAIN,
    SCALED,
    SHARED,
    WITH_GROUP,
    WITH_OTHERS,
    looks_up,
    reason_compiling,
    reason_of_optimizer,
)
from goptim._parts import TORCH, Part
from goptim._scaler import divides
from goptim._step import ASK, GoStep
from goptim.lbfgs import LBFGS

_HEADINGS = ("parameter", "name", "shape", "dtype", "device", "to", "why")


@dataclass(frozen=True)
class Row:
    """One parameter of an optimizer, and where it would be stepped."""

    group: int
    """The index of its group in ``param_groups``."""

    index: int
    """Its index in the group's ``params``."""

    name: str | None
    """Its name, if the optimizer was given named parameters."""

    shape: tuple[int, ...] | None
    """None for a nested tensor, and for a lazy parameter before its first forward pass."""

    dtype: torch.dtype
    device: torch.device

    to: Literal["go", "torch", "error"]
    """Where it is stepped, or ``"error"`` if a step would raise. Without a gradient, a dense one is assumed."""

    reason: str
    """Why it falls back to torch, or the error; empty if it runs in Go."""

    has_grad: bool
    """Whether it has a gradient now. A step does not change a parameter without one."""

    slow: str = ""
    """Why a step reads the tensor through Python, which takes about 20 µs per parameter; empty if it does not."""

    storage: str = ""
    """The keywords of ``docs/half.md`` that have an effect on it, as in a call; empty if there are none."""


class Explanation(tuple[Row, ...]):
    """The rows of :func:`explain`, in the order of the parameters. Its string is a table and the platform."""

    __slots__ = ()

    @property
    def platform(self) -> str:
        """The system, the machine, the version of torch, and the vectors and threads that steps in Go use."""
        return _native.platform_line()

    def __str__(self) -> str:
        lines = [_HEADINGS, *(_cells(row) for row in self)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        return "\n".join((*table, f"on {self.platform}"))


def _cells(row: Row) -> tuple[str, ...]:
    slow = row.slow and f"slowly, because {row.slow}"
    stored = row.storage and f"with {row.storage}"
    why = "; ".join(filter(None, [row.reason, stored, slow, "" if row.has_grad else "it has no gradient now"]))
    shape = "none" if row.shape is None else " x ".join(map(str, row.shape)) or "()"
    dtype = str(row.dtype).removeprefix("torch.")
    return (f"{row.group}.{row.index}", row.name or "", shape, dtype, str(row.device), row.to, why)


def explain(optimizer: Optimizer) -> Explanation:
    """Return for each parameter whether a step would now run in Go or fall back to torch, and why.

    It applies the rules of a step to the current gradients and state, and changes nothing. It does not know about
    future changes, such as gradients that a closure will compute.

    Args:
        optimizer: an instance of a class of goptim, or of a derived class.

    Returns:
        A row per parameter, in the order of ``param_groups``. ``print`` shows them as a table.

    Raises:
        TypeError: the optimizer is not one of goptim's.
    """
    if isinstance(optimizer, GoStep):
        ask = _ask_parts(optimizer)
    elif isinstance(optimizer, LBFGS):
        ask = _ask_lbfgs(optimizer)
    else:
        kind = type(optimizer)
        raise TypeError(f"explain: expected an optimizer of goptim, got a {kind.__module__}.{kind.__qualname__}")
    return Explanation(_rows(optimizer, ask))


# Takes a parameter's group, its index and itself. Returns why it falls back to torch, or None; or raises.
_Ask = Callable[[int, int, Tensor], str | None]


def _rows(optimizer: Optimizer, ask: _Ask) -> Iterator[Row]:
    slow = (_native.reason_slow() or "") if isinstance(optimizer, GoStep) else ""
    for i, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for j, p in enumerate(group["params"]):
            to: Literal["go", "torch", "error"]
            try:
                why = ask(i, j, p)
                to = "go" if why is None else "torch"
            except Exception as e:  # a step raises the same error
                to, why = "error", str(e) or type(e).__name__
            name = names[j] if names and j < len(names) else None
            shape = None if is_lazy(p) or (p.is_nested and p.layout is torch.strided) else tuple(p.shape)
            of_go = slow if to == "go" else ""
            stored = _storage.in_effect(group, p) if to == "go" else ""
            yield Row(i, j, name, shape, p.dtype, p.device, to, why or "", p.grad is not None, of_go, stored)


def _ask_parts(optimizer: GoStep) -> _Ask:
    reason_of_all = reason_compiling() or reason_of_optimizer(optimizer)
    if reason_of_all is SCALED and divides(optimizer):
        reason_of_all = None

    @functools.cache
    def part(i: int) -> Part:
        group = optimizer.param_groups[i]
        return optimizer.part_class(optimizer, i, group, optimizer._with_floats(group, optimizer._ask(group)))

    @functools.cache
    def codes() -> dict[tuple[int, int], int]:
        """The codes of gather.c by group and index; empty if a group cannot be checked."""
        try:
            parts = [part(i) for i in range(len(optimizer.param_groups))]
            answer = optimizer._go(tuple([x.given for x in parts]), ASK)
        except Exception:
            return {}
        places = [(i, j) for i, x in enumerate(parts) for j in range(len(x.params))]
        return dict(zip(places, answer, strict=True)) if type(answer) is bytes else {}

    def reason_of_parameter(i: int, j: int, p: Tensor) -> str | None:
        if reason_of_all is not None:
            optimizer._refuse_param(i, p, reason_of_all)
            return reason_of_all
        why = part(i).reason_of_group or _reason_lazy(p)
        why = why or part(i).reason_of(p, _gradient(p, not optimizer.kind.sparse), optimizer.state.get(p, {}))
        if why is None and p.grad is not None and codes().get((i, j)) == TORCH and part(i).is_stored(p):
            why = SHARED
        if why is not None:
            part(i).refuse(p, why)
        return why

    @functools.cache
    def reason_with_group() -> str | None:
        """Why all parameters fall back."""
        together = optimizer.together
        groups = [(i, group) for i, group in enumerate(optimizer.param_groups) if together or looks_up(group)]
        params = [(i, j, p) for i, group in groups for j, p in enumerate(group["params"]) if p.grad is not None]
        why = WITH_OTHERS if together else WITH_GROUP
        return why if any(reason_of_parameter(*place) for place in params) else None

    return lambda i, j, p: reason_of_parameter(i, j, p) or reason_with_group()


def _ask_lbfgs(optimizer: LBFGS) -> _Ask:
    @functools.cache
    def why() -> str | None:
        return reason_compiling() or optimizer._current_reason()

    return lambda i, j, p: why()


def _reason_lazy(p: Tensor) -> str | None:
    return "it is lazy and does not have a shape yet" if is_lazy(p) else None


def _gradient(p: Tensor, dense: bool = True) -> Tensor:
    """The gradient of a parameter, or a supported one that uses existing memory."""
    if p.grad is not None:
        return p.grad
    if type(p) not in PLAIN:
        return p
    if dense or p.dim() == 0 or p.layout is not torch.strided or p.is_nested or p.is_quantized:
        return p.detach()
    nowhere = torch.empty((1, 0), dtype=torch.int64, device=p.device)
    return torch.sparse_coo_tensor(nowhere, p.detach()[:0], p.shape, check_invariants=False)
