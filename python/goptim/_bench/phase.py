"""Times what surrounds a step: clipping, the step, an average of the parameters and clearing of the gradients."""

from __future__ import annotations

import inspect
import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import goptim
from goptim import _originals
from goptim._bench import steps, subjects
from goptim._bench.conditions import Watch

PARTS = ("clip", "step", "average", "zero")
ONE_CALL = "goptim, one call"
DECAY, MAX_NORM = 0.999, 1.0  # random gradients are longer, so they are clipped

Parts = tuple[Callable[[], object], ...]


@dataclass
class Row:
    """One optimizer, one list of shapes and one number of threads."""

    optimizer: str
    shapes: subjects.Shapes
    threads: int
    dtype: torch.dtype
    seconds: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)  # of each round's parts
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.optimizer}, {self.shapes.title}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def best(self, path: str) -> float:
        """The least seconds of all parts together, in one round."""
        return min(map(sum, self.seconds[path]))

    def part(self, path: str, name: str) -> float:
        """The least seconds of a part."""
        return min(times[PARTS.index(name)] for times in self.seconds[path])

    def ratio(self, path: str, ours: str) -> float | None:
        """The best time divided by goptim's; None if the implementation does not exist."""
        return self.best(path) / self.best(ours) if path in self.seconds else None

    def json(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer,
            "shapes": self.shapes.title,
            "tensors": len(self.shapes.shapes),
            "elements": self.shapes.elements,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "seconds": {
                path: {
                    "best": self.best(path),
                    "median": statistics.median(map(sum, times)),
                    "parts": {} if path == ONE_CALL else {name: self.part(path, name) for name in PARTS},
                    "rounds": len(times),
                }
                for path, times in self.seconds.items()
            },
            "notes": self.notes,
        }


@dataclass
class _Contender:
    parameters: list[Tensor]
    parts: Parts


def _torch_calls(subject: subjects.Optimizer, parameters: list[Tensor], **flags: bool) -> _Contender:
    optimizer = subject.torch_class(parameters, **subject.options, **flags)
    averages = [p.detach().clone() for p in parameters]
    average: Callable[..., object] = _originals.SWA["get_ema_multi_avg_fn"](DECAY)
    clip = _originals.DECORATED["clip_grad_norm_"]
    return _Contender(
        parameters,
        (
            lambda: clip(parameters, MAX_NORM),
            optimizer.step,
            lambda: average(averages, parameters, torch.tensor(1)),
            lambda: optimizer.zero_grad(set_to_none=False),
        ),
    )


def _goptim_calls(subject: subjects.Optimizer, parameters: list[Tensor]) -> _Contender:
    optimizer = subject.goptim_class(parameters, **subject.options)
    averages = [p.detach().clone() for p in parameters]
    return _Contender(
        parameters,
        (
            lambda: goptim.clip_grad_norm_(parameters, MAX_NORM),
            optimizer.step,
            lambda: goptim.ema_(averages, parameters, DECAY),
            lambda: optimizer.zero_grad(set_to_none=False),
        ),
    )


def _in_one_call(subject: subjects.Optimizer, parameters: list[Tensor]) -> _Contender:
    optimizer = subject.goptim_class(parameters, **subject.options)
    averages = goptim.EMA(parameters, DECAY)
    return _Contender(parameters, (lambda: optimizer.step(max_grad_norm=MAX_NORM, ema=averages, zero_grad=True),))


def measure(row: Row, rounds: int, watch: Watch, advance: Callable[[], object]) -> None:
    """Fill a row with the seconds of each part of each implementation, interleaved.

    Before each round the gradients get the same values, as a backward pass adds to gradients of zeros.
    """
    torch.set_num_threads(row.threads)
    torch.manual_seed(0)
    subject = subjects.OPTIMIZERS[row.optimizer]
    gradients = [torch.randn(shape, dtype=row.dtype) for shape in row.shapes.shapes]
    steps.check_memory(gradients, ["default", "fused", ONE_CALL])

    def parameters() -> list[Tensor]:
        made = [g.clone().requires_grad_() for g in gradients]
        for p in made:
            p.grad = torch.zeros_like(p)
        return made

    found = {"default": _torch_calls(subject, parameters())}
    if "fused" in inspect.signature(subject.torch_class).parameters:
        found["fused"] = _torch_calls(subject, parameters(), fused=True)
    found["goptim"] = _goptim_calls(subject, parameters())
    found[ONE_CALL] = _in_one_call(subject, parameters())
    row.seconds = {path: [] for path in found}
    order, shuffle = list(found), random.Random(0).shuffle
    with watch():
        for i in range(-steps.WARM_UP, rounds):
            shuffle(order)
            for path in order:
                contender = found[path]
                torch._foreach_copy_([p.grad for p in contender.parameters if p.grad is not None], gradients)
                at = [time.perf_counter()]
                for part in contender.parts:
                    part()
                    at.append(time.perf_counter())
                if i >= 0:
                    row.seconds[path].append(tuple(end - start for start, end in itertools.pairwise(at)))
            if i >= 0:
                advance()
