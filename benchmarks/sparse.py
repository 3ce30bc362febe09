"""Print the time of a step with sparse gradients, in goptim and torch.optim.

    python benchmarks/sparse.py [--optimizer SparseAdam …] [--case "1M x 64, 100k" …] [--threads 1 2] [--rounds 30]
                                [--update docs/benchmarks.md]

Both take turns in one process, with gradients freshly created before every step, as an embedding's backward pass does.
A figure is the best of all rounds. Compare ratios within one run, not times of two runs.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

import goptim
from goptim._bench import conditions, pages
from goptim._bench.command import Progress

OPTIMIZERS = ["SparseAdam", "Adagrad", "SGD"]

# Rows, columns, the number of indices, their distribution, and whether the gradient is coalesced.
CASES: dict[str, tuple[int, int, int, str, bool]] = {
    "1M x 64, 100k": (1_000_000, 64, 100_000, "uniform", False),
    "1M x 64, 100k Zipf": (1_000_000, 64, 100_000, "zipf", False),
    "1M x 64, 100k coalesced": (1_000_000, 64, 100_000, "uniform", True),
    "1M x 16, 100k": (1_000_000, 16, 100_000, "uniform", False),
    "1M x 16, 100k Zipf": (1_000_000, 16, 100_000, "zipf", False),
    "250k x 256, 50k": (250_000, 256, 50_000, "uniform", False),
    "250k x 256, 50k Zipf": (250_000, 256, 50_000, "zipf", False),
    "1M x 64, 10k": (1_000_000, 64, 10_000, "uniform", False),
    "1M x 64, 100": (1_000_000, 64, 100, "uniform", False),
    "1M x 64, 100 coalesced": (1_000_000, 64, 100, "uniform", True),
    "1000 x 16, 4k": (1000, 16, 4000, "uniform", False),
    "1000 x 16, 4k coalesced": (1000, 16, 4000, "uniform", True),
    "10 x 8, 4": (10, 8, 4, "uniform", False),
    "10 x 8, 4 coalesced": (10, 8, 4, "uniform", True),
}


def indices_of(rows: int, n: int, drawn: str) -> Tensor:
    """Random rows: uniform, or Zipf-distributed with exponent 1, with the frequent rows spread over the table."""
    if drawn == "uniform":
        return torch.randint(0, rows, (n,))
    ranks = (torch.rand(n, dtype=torch.float64) * torch.tensor(rows).log()).exp().long().clamp(1, rows) - 1
    return torch.randperm(rows)[ranks]


def rounds_of(case: str, rounds: int) -> int:
    """The number of rounds: twenty times as many for a small case."""
    _, width, n, *_ = CASES[case]
    return rounds if n * width > 1e6 else 20 * rounds


def measure(
    name: str, case: str, threads: int, rounds: int, watch: conditions.Watch, progress: Progress
) -> tuple[float, float]:
    """The best seconds of a step, in goptim and torch."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows, width, n, drawn, coalesced = CASES[case]
    optimizers = []
    for module in (goptim, torch.optim):
        p = torch.randn(rows, width, requires_grad=True)
        optimizers.append(getattr(module, name)([p], lr=1e-3))
    values, best = torch.randn(n, width), [float("inf")] * 2
    progress.begin(f"{name}, {case}, {threads} threads")
    with watch():
        for i in range(rounds_of(case, rounds) + 1):
            indices = indices_of(rows, n, drawn)[None]
            for k, optimizer in enumerate(optimizers):
                [p] = optimizer.param_groups[0]["params"]
                p.grad = torch.sparse_coo_tensor(indices.clone(), values.clone(), p.shape, check_invariants=False)
                if coalesced:
                    p.grad = p.grad.coalesce()
                start = time.perf_counter()
                optimizer.step()
                seconds = time.perf_counter() - start
                if i > 0:
                    best[k] = min(best[k], seconds)
            if i > 0:
                progress.advance()
    return best[0], best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30, help="for a large case; small ones take twenty times as many")
    parser.add_argument("--update", type=Path, metavar="PAGE", help="put the table between its <!-- sparse --> marks")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse invariant checks")

    found, watch = conditions.conditions(), conditions.Watch()
    lines = [
        conditions.sentence(found, torch.float32),
        "",
        "| optimizer | embedding, indices | threads | µs per step | torch, µs | speedup |",
        "|---|---|--:|--:|--:|--:|",
    ]
    progress = Progress(len(args.optimizer) * len(args.threads) * sum(rounds_of(c, args.rounds) for c in args.case))
    progress.print("\n".join(lines))
    for name in args.optimizer:
        for case in args.case:
            for threads in args.threads:
                ours, theirs = measure(name, case, threads, args.rounds, watch, progress)
                figures = f"{ours * 1e6:.0f} | {theirs * 1e6:.0f} | {theirs / ours:.2f}"
                lines.append(f"| {name} | {case} | {threads} | {figures} |")
                progress.print(lines[-1])
    progress.close()
    lines += ["", conditions.judged(watch, found, max(args.threads))]
    print("\n".join(lines[-2:]))
    if args.update:
        pages.put(args.update, "sparse", "\n".join(lines))


if __name__ == "__main__":
    main()
