"""Print where a step of small tensors spends its time: AdamW, float32, 64 elements per tensor, one thread.

    python benchmarks/overhead.py [--tensors 1 20 1000] [--seconds 0.5] [--update docs/performance.md]

Each part is timed separately, with all of its memory in the cache. A figure is the best of many runs. A row that begins
with an ellipsis, or that names a function of torch, is the slower alternative to what goptim does.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import goptim
from goptim import _core, _native, _step
from goptim._bench import pages


def microseconds(run: Callable[[], object], seconds: float) -> float:
    """The best time of a call, measured in batches of at least a tenth of a millisecond."""
    run()
    start = time.perf_counter()
    run()
    batch, best = max(1, int(1e-4 / (time.perf_counter() - start))), float("inf")
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        for _ in range(batch):
            run()
        now = time.perf_counter()
        best = min(best, (now - start) / batch)
        if now > end:
            return best * 1e6


def with_gradients(n: int) -> list[torch.Tensor]:
    params = [torch.randn(64, requires_grad=True) for _ in range(n)]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


def parts(n: int, seconds: float) -> dict[str, float]:
    """The time of each part for n tensors, keyed by its name in the table."""
    ours = goptim.AdamW(with_gradients(n))
    fused = torch.optim.AdamW(with_gradients(n), fused=True)
    loop = torch.optim.AdamW(with_gradients(n), foreach=False)
    ours.step()
    groups = (ours._ask(ours.param_groups[0]),)
    rows = tuple(
        [(p, p.grad, *(s[k] for k in ("step", "exp_avg", "exp_avg_sq")), None, None) for p, s in ours.state.items()]
    )
    written = [t for p, s in ours.state.items() for t in (p, s["exp_avg"], s["exp_avg_sq"])]
    layout = _native.layout

    def recorded() -> None:
        with torch.autograd.profiler.record_function("Optimizer.step#AdamW.step"):
            pass

    def through_torch() -> None:
        _native.layout = lambda: None  # type: ignore[assignment]
        ours._go(((rows, *groups[0][1:]),), -1)
        _native.layout = layout

    return {
        what: microseconds(run, seconds)
        for what, run in {
            "goptim's step": ours.step,
            "torch's fused step": fused.step,
            "torch's for-loop": loop.step,
            "profiler record": lambda: _step.end_record(_step.begin_record("Optimizer.step#AdamW.step")),
            "… with torch's record_function": recorded,
            "the table of addresses, with all checks": lambda: ours._go(groups, -1),
            "… with torch's Python API": through_torch,
            "version counters with torch's increment_version": lambda: torch.autograd.graph.increment_version(written),
            "the table, version counters, and Go: checks, scalars, arithmetic": lambda: ours._go(groups),
        }.items()
    }


def lines(tensors: Sequence[int], seconds: float) -> Iterator[str]:
    yield f"{_core.Version()}, torch {torch.__version__}; load average {os.getloadavg()[0]:.1f} at the start."
    yield ""
    found = [parts(n, seconds) for n in tensors]
    yield f"| µs | {' | '.join(f'{n} x 64' for n in tensors)} |"
    yield f"|---|{'--:|' * len(tensors)}"
    for what in found[0]:
        yield f"| {what} | {' | '.join(f'{times[what]:.1f}' for times in found)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", nargs="+", type=int, default=[1, 20, 1000])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure")
    parser.add_argument("--update", type=Path, metavar="PAGE", help="put the table between its <!-- overhead --> marks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = "\n".join(lines(args.tensors, args.seconds))
    print(table)
    if args.update:
        pages.put(args.update, "overhead", table)


if __name__ == "__main__":
    main()
