"""Print the time of an iteration of LBFGS without the closure, in goptim and torch.optim.

    python benchmarks/lbfgs.py [--n 100 …] [--history 10 …] [--threads 1 2] [--dtype float64] [--search] [--rounds 10]
                               [--update docs/benchmarks.md]

A step has ten iterations with a full history. The closure returns a gradient and a loss that never stop the iterations.
Its time is measured separately and subtracted. Both implementations take turns in one process, and a figure is the best
of all rounds. Compare ratios within one run, not times of two runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

import goptim
from goptim._bench import conditions, pages
from goptim._bench.command import Progress

ITERATIONS = 10


def contender(
    cls: type[torch.optim.LBFGS], n: int, dtype: torch.dtype, history: int, search: str | None
) -> Callable[[], float]:
    """A function that takes a step and returns the seconds of one iteration without the closure."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(n, dtype=dtype))
    curvature = torch.linspace(1, 10, n, dtype=dtype)
    p.grad = torch.empty_like(p)
    opt = cls(
        [p], lr=0.01, max_iter=ITERATIONS, max_eval=1000, history_size=history, line_search_fn=search,
        tolerance_grad=-1, tolerance_change=-1,
    )  # fmt: skip
    spent, evaluations, loss = 0.0, 0, 0.0

    def closure() -> float:
        nonlocal spent, evaluations, loss
        start = time.perf_counter()
        evaluations += 1
        loss -= 1.0
        torch.mul(p.detach(), curvature, out=p.grad)
        spent += time.perf_counter() - start
        return loss

    def step() -> float:
        nonlocal spent
        spent = 0.0
        start = time.perf_counter()
        opt.step(closure)
        return (time.perf_counter() - start - spent) / ITERATIONS

    while len(opt.state[p].get("ro", ())) < history:
        step()
        with torch.no_grad():
            p.normal_()
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", nargs="+", type=int, default=[100, 10_000, 1_000_000])
    parser.add_argument("--history", nargs="+", type=int, default=[10, 30, 100])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--search", action="store_true", help="with the line search")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--update", type=Path, metavar="PAGE", help="put the table between its <!-- lbfgs --> marks")
    args = parser.parse_args()
    dtype, search = getattr(torch, args.dtype), "strong_wolfe" if args.search else None
    found, watch = conditions.conditions(), conditions.Watch()
    lines = [
        conditions.sentence(found, dtype),
        "",
        "| elements | history | threads | µs per iteration | torch, µs | speedup |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    rounds = {n: args.rounds * max(1, 100_000 // n) for n in args.n}
    progress = Progress(len(args.history) * len(args.threads) * sum(rounds.values()))
    progress.print("\n".join(lines))
    for n in args.n:
        for history in args.history:
            steps = {cls: contender(cls, n, dtype, history, search) for cls in (goptim.LBFGS, torch.optim.LBFGS)}
            for threads in args.threads:
                torch.set_num_threads(threads)
                progress.begin(f"{n} elements, history {history}, {threads} threads")
                best = dict.fromkeys(steps, float("inf"))
                with watch():
                    for _ in range(rounds[n]):
                        for cls, step in steps.items():
                            best[cls] = min(best[cls], step())
                        progress.advance()
                ours, theirs = best.values()
                figures = f"{ours * 1e6:.0f} | {theirs * 1e6:.0f} | {theirs / ours:.2f}"
                lines.append(f"| {n} | {history} | {threads} | {figures} |")
                progress.print(lines[-1])
    progress.close()
    lines += ["", conditions.judged(watch, found, max(args.threads))]
    print("\n".join(lines[-2:]))
    if args.update:
        pages.put(args.update, "lbfgs", "\n".join(lines))


if __name__ == "__main__":
    main()
