"""A step of every contender, interleaved round by round in one process."""

from __future__ import annotations

import contextlib
import random
import statistics
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import goptim
from goptim._bench import contenders, subjects
from goptim._bench.conditions import Watch
from goptim._bench.contenders import Contender, Missing

LEAST = 5  # rounds of a contender, however slow, if there is patience for them
SLOW = 0.5  # seconds after which a contender has had its share of a row's time: it sits out some rounds
WARM_UP = 2


@dataclass
class Row:
    """One optimizer on one list of shapes with so many threads."""

    optimizer: str
    shapes: subjects.Shapes
    threads: int
    dtype: torch.dtype
    in_go: int = 0  # tensors
    seconds: dict[str, list[float]] = field(default_factory=dict)
    compile_seconds: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.optimizer}, {self.shapes.title}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def best(self, path: str) -> float:
        return min(self.seconds[path])

    def ratio(self, path: str) -> float | None:
        """How many times goptim's time; None for a contender that has none."""
        return self.best(path) / self.best("goptim") if path in self.seconds else None

    @property
    def spread(self) -> float | None:
        """Of the memory bound on large tensors, the median to the best."""
        times = self.seconds.get("bound") if self.shapes.large else None
        return statistics.median(times) / min(times) if times else None

    def json(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer,
            "shapes": self.shapes.title,
            "tensors": len(self.shapes.shapes),
            "elements": self.shapes.elements,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "tensors_in_go": self.in_go,
            "compile_seconds": self.compile_seconds,
            "seconds": {
                path: {"best": min(times), "median": statistics.median(times), "rounds": len(times)}
                for path, times in self.seconds.items()
            },
            "notes": self.notes,
        }


class TooSlow(Exception):
    """A step takes longer than there is patience for."""

    def __init__(self, seconds: float, patience: float, least: str = "") -> None:
        super().__init__(f"a step takes {least}{seconds:.2g} s here, and --patience is {patience:g}")


def rounds_of(shapes: subjects.Shapes, rounds: int) -> int:
    """More of small tensors, fewer of large ones."""
    return max(2, round(rounds * min(4.0, max(1 / 8, (1 << 24) / shapes.elements))))


def turns_of(seconds: float, rounds: int, patience: float) -> int:
    """In how many of a row's rounds a contender steps, whose step takes so long."""
    least = max(1, min(LEAST, int(patience / seconds)))
    return min(rounds, max(least, int(SLOW / seconds)))


def measure(
    row: Row, against: Sequence[str], rounds: int, patience: float, watch: Watch, advance: Callable[[], object]
) -> None:
    """Fill a row with the seconds that each contender took in each of its rounds.

    Raises:
        MemoryError: there is not enough for all contenders.
        TooSlow: goptim's step takes more than ``patience`` seconds. Others that do are left out of the row.
    """
    torch.set_num_threads(row.threads)
    torch.manual_seed(0)
    subject = subjects.OPTIMIZERS[row.optimizer]
    gradients = [torch.randn(shape, dtype=row.dtype) for shape in row.shapes.shapes]
    _check_memory(gradients, against)
    if row.shapes.large:
        _try_a_part(subject, max(gradients, key=torch.Tensor.numel), row.shapes.elements, patience)
    found = dict(_warm(row, subject, ["goptim", *against], gradients, patience))
    ours = found["goptim"][0]
    library = None if row.optimizer == "Muon" else contenders.bound_library()[0]  # products are not bound by memory
    turns = {path: turns_of(seconds, rounds, patience) for path, (_, seconds) in found.items()}
    if library is not None:
        turns["bound"] = rounds
    row.seconds = {path: [] for path in turns}
    order, shuffle = list(turns), random.Random(0).shuffle
    with watch():
        for i in range(rounds):
            shuffle(order)  # so that nobody always follows the same one
            for path in order:
                n = turns[path]
                if (i + 1) * n // rounds == i * n // rounds:
                    continue  # a slow one's turns are spread over all rounds
                contender = found[path][0] if path in found else ours
                with _fresh(contender, gradients):
                    step = contender.step
                    if path == "bound" and library is not None:
                        step = contenders.bound_of(library, ours.optimizer, row.threads)
                    start = time.perf_counter()
                    step()
                    row.seconds[path].append(time.perf_counter() - start)
                    if path == "bound":
                        step()  # the second time restores the values
            advance()


def _try_a_part(subject: subjects.Optimizer, largest: torch.Tensor, elements: int, patience: float) -> None:
    """Step a quarter of a tensor, so that nobody waits minutes to learn that a step takes minutes.

    The time of all elements is at least in proportion: that of Muon's matrix products grows faster. It is the second
    step's, for the first prepares what others share.
    """
    part = [largest[: max(1, len(largest) // 4)].contiguous()]
    contender = contenders.build("goptim", subject, [part[0].clone().requires_grad_()])
    times = [_time(contender, part) for _ in range(2)]
    least = times[-1] * elements / part[0].numel()
    if least > patience:
        raise TooSlow(least, patience, "at least ")


def _time(contender: Contender, gradients: list[torch.Tensor]) -> float:
    """The seconds of a step."""
    with _fresh(contender, gradients):
        start = time.perf_counter()
        contender.step()
        return time.perf_counter() - start


def _warm(
    row: Row, subject: subjects.Optimizer, paths: Sequence[str], gradients: list[torch.Tensor], patience: float
) -> Iterator[tuple[str, tuple[Contender, float]]]:
    """Build contenders and have each take its first steps; give the seconds of the last."""
    for path in paths:
        try:
            contender = contenders.build(path, subject, [g.clone().requires_grad_() for g in gradients])
            begin = time.perf_counter()
            times = [_time(contender, gradients) for _ in range(WARM_UP)]
            if times[-1] > patience:
                raise TooSlow(times[-1], patience)
        except Missing as e:
            row.notes += [str(e)] if str(e) else []
            continue
        except Exception as e:
            if path == "goptim":
                raise
            if isinstance(e, TooSlow):
                row.notes.append(f"{row.title}: {path}: not measured: {e}")
            else:
                row.notes.append(f"{row.optimizer}: {path}: {_said(e)}")
            continue
        if path == "compile":
            row.compile_seconds = time.perf_counter() - begin
        if path == "goptim":
            with _fresh(contender, gradients):
                reasons = Counter(r.reason for r in goptim.explain(contender.optimizer) if r.to != "go")
            row.in_go = len(gradients) - reasons.total()
            taken = (f"torch takes {n} of {len(gradients)} tensors: {why}" for why, n in reasons.items())
            row.notes += [f"{row.optimizer}: goptim: {text}" for text in taken]
        yield path, (contender, times[-1])


def _said(e: BaseException) -> str:
    """An error in a line, with its cause: DeepSpeed says there why its C++ could not be compiled."""
    first = next(iter(str(e).strip().splitlines()), "")
    said = f"{type(e).__name__}: {textwrap.shorten(first, 240)}"
    return f"{said} ({_said(e.__cause__)})" if e.__cause__ else said


@contextlib.contextmanager
def _fresh(contender: Contender, gradients: list[torch.Tensor]) -> Iterator[None]:
    """Gradients that were allocated just now, as a backward pass leaves them."""
    for p, gradient in zip(contender.parameters, gradients, strict=True):
        p.grad = gradient.clone()
    yield
    for p in contender.parameters:
        p.grad = None


def _check_memory(gradients: list[torch.Tensor], against: Sequence[str]) -> None:
    """Raise before the system would have to kill something."""
    need = sum(g.nbytes for g in gradients) * (3 * (1 + len(against)) + 4)  # and a slow step's temporaries
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
        if need > free:
            raise MemoryError(
                f"about {need / 2**30:.1f} GiB are needed, and {free / 2**30:.1f} are free: name fewer in --against"
            )
