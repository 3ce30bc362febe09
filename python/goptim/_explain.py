"""Where each parameter of an optimizer goes, and why: the step's own rules, asked without a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from goptim import _native, hf
from goptim._eligible import PLAIN, SHARED, reason_compiling, reason_of_optimizer
from goptim._parts import TORCH, Part
from goptim._step import ASK, GoStep
from goptim.lbfgs import LBFGS

_HEADINGS = ("parameter", "name", "shape", "dtype", "device", "to", "why")


@dataclass(frozen=True)
class Row:
    """One parameter of an optimizer, and who would step it."""

    group: int
    """Which of ``param_groups`` it is in."""

    index: int
    """Its place among the group's ``params``."""

    name: str | None
    """Its name, where the optimizer was given named parameters."""

    shape: tuple[int, ...] | None
    """None of a nested tensor, and of a lazy parameter until a forward pass gives it one."""

    dtype: torch.dtype
    device: torch.device

    to: Literal["go", "torch", "error"]
    """Who steps it; ``"error"`` where a step would raise. Without a gradient: who would, if a plain one came."""

    reason: str
    """Why it is torch's, or the error; empty for Go's."""

    has_grad: bool
    """Whether it has a gradient now. A step leaves a parameter without one as it is."""

    slow: str = ""
    """Why a step reads the tensor through Python, which takes some 20 µs per parameter; empty if it does not."""


class Explanation(tuple[Row, ...]):
    """The rows of :func:`explain`, in the order of the parameters; as a string, a table."""

    __slots__ = ()

    def __str__(self) -> str:
        lines = [_HEADINGS, *(_cells(row) for row in self)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    slow = row.slow and f"slowly, because {row.slow}"
    why = "; ".join(filter(None, [row.reason, slow, "" if row.has_grad else "it has no gradient now"]))
    shape = "none" if row.shape is None else " x ".join(map(str, row.shape)) or "()"
    dtype = str(row.dtype).removeprefix("torch.")
    return (f"{row.group}.{row.index}", row.name or "", shape, dtype, str(row.device), row.to, why)


def explain(optimizer: Optimizer) -> Explanation:
    """Say for each parameter of one of goptim's optimizers whether a step now would be Go's or torch's, and why.

    It asks the rules that the step itself follows, with the gradients and the state that there are, and changes
    nothing. What is about to change, it cannot know: gradients that a closure will leave, say.

    Args:
        optimizer: of a class of goptim, or of one derived from such.

    Returns:
        A row for each parameter, in the order of ``param_groups``; ``print`` makes a table of them.

    Raises:
        TypeError: the optimizer is not one of goptim's.
    """
    if isinstance(optimizer, GoStep):
        ask = _ask_parts(optimizer)
    elif isinstance(optimizer, LBFGS):
        ask = _ask_lbfgs(optimizer)
    elif isinstance(optimizer, hf.Adafactor):
        ask = _ask_hf(optimizer)
    else:
        kind = type(optimizer)
        raise TypeError(
            f"explain: expected an optimizer of goptim, got a {kind.__module__}.{kind.__qualname__}, none of whose "
            "parameters go to Go"
        )
    return Explanation(_rows(optimizer, ask))


# Asked for a parameter, by its group and its place there: why it is torch's; None if it is Go's. Or it raises.
_Ask = Callable[[int, int, Tensor], str | None]


def _rows(optimizer: Optimizer, ask: _Ask) -> Iterator[Row]:
    slow = (_native.why_slow() or "") if isinstance(optimizer, GoStep) else ""
    for i, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for j, p in enumerate(group["params"]):
            to: Literal["go", "torch", "error"]
            try:
                why = ask(i, j, p)
                to = "go" if why is None else "torch"
            except Exception as e:  # a step raises the same
                to, why = "error", str(e) or type(e).__name__
            name = names[j] if names and j < len(names) else None
            shape = None if is_lazy(p) or (p.is_nested and p.layout is torch.strided) else tuple(p.shape)
            of_go = slow if to == "go" else ""
            yield Row(i, j, name, shape, p.dtype, p.device, to, why or "", p.grad is not None, of_go)


def _ask_parts(optimizer: GoStep) -> _Ask:
    why_all = reason_compiling() or reason_of_optimizer(optimizer)

    @functools.cache
    def part(i: int) -> Part:
        group = optimizer.param_groups[i]
        return optimizer.part_class(optimizer, i, group, optimizer._with_floats(group, optimizer._ask(group)))

    @functools.cache
    def codes() -> dict[tuple[int, int], int]:
        """What gather.c answers, by group and place; nothing where a group cannot be asked about."""
        try:
            parts = [part(i) for i in range(len(optimizer.param_groups))]
            answer = optimizer._go(tuple([x.given for x in parts]), ASK)
        except Exception:
            return {}
        places = [(i, j) for i, x in enumerate(parts) for j in range(len(x.params))]
        return dict(zip(places, answer, strict=True)) if type(answer) is bytes else {}

    def ask(i: int, j: int, p: Tensor) -> str | None:
        why = why_all or part(i).reason_of_group or _why_lazy(p)
        why = why or part(i).reason_of(p, _gradient(p, not optimizer.kind.sparse), optimizer.state.get(p, {}))
        return SHARED if why is None and p.grad is not None and codes().get((i, j)) == TORCH else why

    return ask


def _ask_hf(optimizer: hf.Adafactor) -> _Ask:
    def ask(i: int, j: int, p: Tensor) -> str | None:
        group: dict[str, Any] = optimizer.param_groups[i]
        reason_of_group = optimizer._reason_of_group(group) or _why_lazy(p)
        return optimizer._reason_of(p, _gradient(p), group, f"parameter {j} of group {i}", reason_of_group)

    return ask


def _ask_lbfgs(optimizer: LBFGS) -> _Ask:
    @functools.cache
    def why() -> str | None:
        return reason_compiling() or optimizer._current_reason()

    return lambda i, j, p: why()


def _why_lazy(p: Tensor) -> str | None:
    return "it is lazy, and has no shape yet" if is_lazy(p) else None


def _gradient(p: Tensor, dense: bool = True) -> Tensor:
    """The gradient of a parameter, or as plain a one as it could have, in memory that is there."""
    if p.grad is not None:
        return p.grad
    if type(p) not in PLAIN:
        return p
    if dense or p.dim() == 0 or p.layout is not torch.strided or p.is_nested or p.is_quantized:
        return p.detach()
    nowhere = torch.empty((1, 0), dtype=torch.int64, device=p.device)
    return torch.sparse_coo_tensor(nowhere, p.detach()[:0], p.shape, check_invariants=False)
