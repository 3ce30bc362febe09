"""Print what a step of LBFGS costs beside the closure: goptim beside torch.optim.

    python benchmarks/lbfgs.py [--n 100 …] [--history 10 …] [--threads 1 2] [--dtype float64] [--search] [--rounds 9]

A step is of ten iterations with a full history. Its closure sets a gradient and a loss that make every iteration go on,
and is timed itself, within the step, and taken off. Both are timed in one process, in turn; a figure is the best of all
rounds. Ratios of one run can be compared; times of two runs cannot.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch

import goptim

ITERATIONS = 10


def contender(
    cls: type[torch.optim.LBFGS], n: int, dtype: torch.dtype, history: int, search: str | None
) -> Callable[[], float]:
    """A step, which returns the time of one iteration without the closure."""
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
    args = parser.parse_args()
    dtype, search = getattr(torch, args.dtype), "strong_wolfe" if args.search else None
    print(f"torch {torch.__version__}, {dtype}, load average {os.getloadavg()[0]:.1f} when it began.\n")
    print("| elements | history | threads | an iteration, µs | torch, µs | ratio |\n|--:|--:|--:|--:|--:|--:|")
    for n in args.n:
        for history in args.history:
            steps = {cls: contender(cls, n, dtype, history, search) for cls in (goptim.LBFGS, torch.optim.LBFGS)}
            for threads in args.threads:
                torch.set_num_threads(threads)
                best = dict.fromkeys(steps, float("inf"))
                for _ in range(args.rounds * max(1, 100_000 // n)):
                    for cls, step in steps.items():
                        best[cls] = min(best[cls], step())
                ours, torchs = best.values()
                print(
                    f"| {n} | {history} | {threads} | {ours * 1e6:.0f} | {torchs * 1e6:.0f} | {torchs / ours:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
