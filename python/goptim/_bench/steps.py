"""Times the steps of all implementations, interleaved in one process."""

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

LEAST = 5  # rounds of an implementation, however slow, if --patience allows
SLOW = 0.5  # seconds per row and implementation; slower implementations skip some rounds
WARM_UP = 2


@dataclass
class Row:
    """One optimizer, one list of shapes and one number of threads."""

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
        """Its name in messages."""
        return f"{self.optimizer}, {self.shapes.title}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def best(self, path: str) -> float:
        return min(self.seconds[path])

    def ratio(self, path: str) -> float | None:
        """The best time divided by goptim's; None if the implementation does not exist."""
        return self.best(path) / self.best("goptim") if path in self.seconds else None

    @property
    def spread(self) -> float | None:
        """The memory bound's median time divided by its best; None for small tensors."""
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
    """A step takes longer than --patience allows."""

    def __init__(self, seconds: float, patience: float, least: str = "") -> None:
        super().__init__(f"a step takes {least}{seconds:.2g} s here, and --patience is {patience:g}")


def rounds_of(shapes: subjects.Shapes, rounds: int) -> int:
    """The number of rounds: more for small tensors, fewer for large ones."""
    return max(2, round(rounds * min(4.0, max(1 / 8, (1 << 24) / shapes.elements))))


def turns_of(seconds: float, rounds: int, patience: float) -> int:
    """The number of rounds in which an implementation steps, given the seconds of one step."""
    least = max(1, min(LEAST, int(patience / seconds)))
    return min(rounds, max(least, int(SLOW / seconds)))


def measure(
    row: Row, against: Sequence[str], rounds: int, patience: float, watch: Watch, advance: Callable[[], object]
) -> None:
    """Fill a row with the seconds of each step of each implementation.

    Raises:
        MemoryError: there is not enough memory for all implementations.
        TooSlow: goptim's step takes more than ``patience`` seconds. Other implementations are left out in this case.
    """
    torch.set_num_threads(row.threads)
    torch.manual_seed(0)
    subject = subjects.OPTIMIZERS[row.optimizer]
    gradients = [torch.randn(shape, dtype=row.dtype) for shape in row.shapes.shapes]
    check_memory(gradients, against)
    if row.shapes.large:
        _try_a_part(subject, max(gradients, key=torch.Tensor.numel), row.shapes.elements, patience)
    found = dict(_warm(row, subject, ["goptim", *against], gradients, patience))
    ours = found["goptim"][0]
    library = (
        None if row.optimizer == "Muon" else contenders.bound_library()[0]
    )  # matrix products are not limited by memory bandwidth
    turns = {path: turns_of(seconds, rounds, patience) for path, (_, seconds) in found.items()}
    if library is not None:
        turns["bound"] = rounds
    row.seconds = {path: [] for path in turns}
    order, shuffle = list(turns), random.Random(0).shuffle
    with watch():
        for i in range(rounds):
            shuffle(order)  # so that no implementation always follows the same one
            for path in order:
                n = turns[path]
                if (i + 1) * n // rounds == i * n // rounds:
                    continue  # the steps of a slow implementation are spread over all rounds
                contender = found[path][0] if path in found else ours
                with _fresh(contender, gradients):
                    passes: tuple[Callable[[], object], ...] = (contender.step,)
                    if path == "bound" and library is not None:
                        passes = contenders.bound_of(library, ours.optimizer, row.threads)
                    row.seconds[path].append(min(map(_seconds_of, passes)))
            advance()


def _seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _try_a_part(subject: subjects.Optimizer, largest: torch.Tensor, elements: int, patience: float) -> None:
    """Step a quarter of a tensor, to find out quickly whether a step takes too long.

    The time of a step grows at least in proportion to the elements; with Muon's matrix products it grows faster. The
    second step counts, since the first one does work that is shared by later steps.
    """
    part = [largest[: max(1, len(largest) // 4)].contiguous()]
    contender = contenders.build("goptim", subject, [part[0].clone().requires_grad_()])
    times = [_time(contender, part) for _ in range(2)]
    least = times[-1] * elements / part[0].numel()
    if least > patience:
        raise TooSlow(least, patience, "at least ")


def _time(contender: Contender, gradients: list[torch.Tensor]) -> float:
    """The seconds that a step takes."""
    with _fresh(contender, gradients):
        return _seconds_of(contender.step)


def _warm(
    row: Row, subject: subjects.Optimizer, paths: Sequence[str], gradients: list[torch.Tensor], patience: float
) -> Iterator[tuple[str, tuple[Contender, float]]]:
    """Build the implementations and take their first steps. Yield each with the seconds of the last step."""
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
            taken = (f"{n} of {len(gradients)} tensors fall back to torch: {why}" for why, n in reasons.items())
            row.notes += [f"{row.optimizer}: goptim: {text}" for text in taken]
        yield path, (contender, times[-1])


def _said(e: BaseException) -> str:
    """An error in one line, with its cause, which is where DeepSpeed reports compiler errors."""
    first = next(iter(str(e).strip().splitlines()), "")
    said = f"{type(e).__name__}: {textwrap.shorten(first, 240)}"
    return f"{said} ({_said(e.__cause__)})" if e.__cause__ else said


@contextlib.contextmanager
def _fresh(contender: Contender, gradients: list[torch.Tensor]) -> Iterator[None]:
    """Give the parameters freshly allocated gradients, as a backward pass does."""
    for p, gradient in zip(contender.parameters, gradients, strict=True):
        p.grad = gradient.clone()
    yield
    for p in contender.parameters:
        p.grad = None


def check_memory(gradients: list[torch.Tensor], against: Sequence[str]) -> None:
    """Raise MemoryError before the system runs out of memory."""
    need = sum(g.nbytes for g in gradients) * (3 * (1 + len(against)) + 4)  # includes temporaries
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
        if need > free:
            raise MemoryError(
                f"about {need / 2**30:.1f} GiB are needed, and {free / 2**30:.1f} are free: list fewer in --against"
            )
