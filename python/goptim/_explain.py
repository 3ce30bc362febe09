"""Where each parameter of an optimizer goes, and why: the step's own rules, asked without a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import hf
from goptim._step import _PLAIN, _TORCH, WHY_SHARED, GoStep, why_compiling, why_torch
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

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    to: Literal["go", "torch", "error"]
    """Who steps it; ``"error"`` where a step would raise. Without a gradient: who would, if a plain one came."""

    reason: str
    """Why it is torch's, or the error; empty for Go's."""

    has_grad: bool
    """Whether it has a gradient now. A step leaves a parameter without one as it is."""


class Explanation(tuple[Row, ...]):
    """The rows of :func:`explain`, in the order of the parameters; as a string, a table."""

    __slots__ = ()

    def __str__(self) -> str:
        lines = [_HEADINGS, *(_cells(row) for row in self)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    why = "; ".join(filter(None, [row.reason, "" if row.has_grad else "it has no gradient now"]))
    shape = " x ".join(map(str, row.shape)) or "()"
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
    for i, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for j, p in enumerate(group["params"]):
            to: Literal["go", "torch", "error"]
            try:
                why = ask(i, j, p)
                to = "go" if why is None else "torch"
            except (ValueError, RuntimeError) as e:  # a step raises the same
                to, why = "error", str(e)
            name = names[j] if names else None
            yield Row(i, j, name, tuple(p.shape), p.dtype, p.device, to, why or "", p.grad is not None)


def _ask_parts(optimizer: GoStep) -> _Ask:
    why_all = why_compiling() or why_torch(optimizer)
    parts = [
        optimizer._part(optimizer, i, group, optimizer._ask(group)) for i, group in enumerate(optimizer.param_groups)
    ]

    codes = b"" if why_all else optimizer._go(tuple([part.given for part in parts]), -1)
    code = iter(codes if type(codes) is bytes else b"")

    def ask(i: int, j: int, p: Tensor) -> str | None:
        code_of_p = next(code, None)
        why = why_all or parts[i].why_group
        why = why or parts[i].why_torch(p, _gradient(p, optimizer.dense), optimizer.state.get(p, {}))
        return WHY_SHARED if why is None and p.grad is not None and code_of_p == _TORCH else why

    return ask


def _ask_hf(optimizer: hf.Adafactor) -> _Ask:
    why_groups = [optimizer._why_torch(group) for group in optimizer.param_groups]

    def ask(i: int, j: int, p: Tensor) -> str | None:
        group: dict[str, Any] = optimizer.param_groups[i]
        return optimizer._why_not(p, _gradient(p), group, f"parameter {j} of group {i}", why_groups[i])

    return ask


def _ask_lbfgs(optimizer: LBFGS) -> _Ask:
    why = why_compiling() or optimizer._why_torch() or optimizer._why_gradients()
    return lambda i, j, p: why


def _gradient(p: Tensor, dense: bool = True) -> Tensor:
    """The gradient of a parameter, or as plain a one as it could have, in memory that is there."""
    if p.grad is not None:
        return p.grad
    if type(p) not in _PLAIN:
        return p
    if dense or p.dim() == 0 or p.layout is not torch.strided:
        return p.detach()
    nowhere = torch.empty((1, 0), dtype=torch.int64, device=p.device)
    return torch.sparse_coo_tensor(nowhere, p.detach()[:0], p.shape, check_invariants=False)
