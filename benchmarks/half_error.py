"""Print how far training in 16 bits is from float64, for every optimizer that steps 16-bit parameters in Go.

    python benchmarks/half_error.py [--optimizer AdamW …] [--steps 1000] [--seeds 3] [--update docs/half.md]

The problem is a sum of parabolas with noisy gradients. The gradient of parameter i is
h[i] * (w[i] - target[i]) + noise, with a normal random start and target, a curvature h[i] between 0.01 and 1 that is
uniform on a logarithmic scale, and normal noise of standard deviation 0.1. All types can represent the start. Every
run with a seed has the same noise, computes gradients in float64 from its own parameters, and rounds them to its type.

The error is the root mean square of the differences from the parameters of torch's for-loop in float64, divided by the
root mean square of those parameters, over all elements and seeds.
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import goptim
from goptim._bench import pages, subjects
from goptim._bench.command import Progress

MARK = "half_error"
SHAPE = (64, 64)
NOISE = 0.1
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# Learning rates with which a thousand steps of the problem come close to the minimum. Others have their default.
RATES = {
    "SGD": 0.1, "SGD momentum": 0.01, "Adam": 0.01, "AdamW": 0.01, "AdamW amsgrad": 0.01, "Adagrad": 0.1,
    "Adamax": 0.01, "NAdam": 0.01, "RAdam": 0.01, "RMSprop": 0.01, "RMSprop momentum, centered": 0.001, "ASGD": 0.1,
    "Lion": 0.003, "Muon": 0.02, "AdamWScheduleFree": 0.01, "RAdamScheduleFree": 0.01, "SGDScheduleFree": 0.1,
    "ADOPT": 0.01, "NAdamW": 0.01, "RMSpropTF": 0.01, "SGDW": 0.1,
}  # fmt: skip
# Adafactor's default depends on the type of the parameters.
OPTIONS = {"Adafactor": {"eps": (1e-8, 1e-3)}}


@dataclass(frozen=True)
class Way:
    """A column: the type of parameters, and the optimizer."""

    title: str
    dtype: torch.dtype
    torch: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def make(self, subject: subjects.Optimizer, options: dict[str, Any], params: list[Tensor]) -> torch.optim.Optimizer:
        """Create the optimizer.

        Raises:
            ValueError: goptim's class does not have the options of this column.
        """
        if not self.torch:
            optimizer: torch.optim.Optimizer = subject.goptim_class(params, **options, **dict(self.options))
            return optimizer
        cls = subject.torch_class
        flags = {flag: False for flag in ("foreach", "fused") if flag in inspect.signature(cls).parameters}
        for_loop: torch.optim.Optimizer = cls(params, **options, **flags)
        return for_loop


REFERENCE = Way("float64", F64, torch=True)
WAYS = [
    Way("bfloat16: for-loop", BF16, torch=True),
    Way("goptim", BF16),
    Way("stochastic", BF16, options=(("rounding", "stochastic"), ("seed", 0))),
    Way("Kahan", BF16, options=(("rounding", "kahan"),)),
    Way("master weights", BF16, options=(("master_weights", True),)),
    Way("and float32 states", BF16, options=(("master_weights", True), ("state_dtype", F32))),
    Way("float16: for-loop", F16, torch=True),
    Way("goptim", F16),
    Way("float32: bfloat16 states", F32, options=(("state_dtype", BF16),)),
    Way("goptim", F32),
]


@dataclass(frozen=True)
class Problem:
    """The problem of a seed."""

    start: Tensor
    target: Tensor
    curvature: Tensor
    noise: Tensor

    @classmethod
    def of(cls, seed: int, steps: int) -> Problem:
        of = torch.Generator().manual_seed(seed)
        start, target = (torch.randn(SHAPE, generator=of, dtype=F64) for _ in range(2))
        curvature = 10 ** (-2 * torch.rand(SHAPE, generator=of, dtype=F64))
        noise = NOISE * torch.randn((steps, *SHAPE), generator=of, dtype=F64)
        return cls(start.to(BF16).to(F16).to(F64), target, curvature, noise)

    def solve(self, way: Way, make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Tensor:
        """The parameters after all steps, in float64."""
        p = torch.nn.Parameter(self.start.to(way.dtype, copy=True))
        optimizer = make([p])
        if hasattr(optimizer, "train"):  # Schedule-Free
            optimizer.train()
        for noise in self.noise:
            p.grad = (self.curvature * (p.detach().to(F64) - self.target) + noise).to(way.dtype)
            optimizer.step()
        if hasattr(optimizer, "eval"):  # Schedule-Free
            optimizer.eval()
        return p.detach().to(F64)


def runs_in_go(subject: subjects.Optimizer) -> bool:
    p = torch.nn.Parameter(torch.zeros(SHAPE, dtype=BF16))
    return goptim.explain(subject.goptim_class([p], **subject.options))[0].to == "go"


def errors(name: str, problems: list[Problem], progress: Progress) -> dict[Way, float | None]:
    """The error of every column, or None if the optimizer does not have its options."""
    subject = subjects.OPTIMIZERS[name]
    options = subject.options | OPTIONS.get(name, {}) | ({"lr": RATES[name]} if name in RATES else {})
    solved: dict[Way, Tensor | None] = {}
    for way in (REFERENCE, *WAYS):
        progress.begin(f"{name}, {way.title}")
        try:
            found = [problem.solve(way, lambda ps, way=way: way.make(subject, options, ps)) for problem in problems]
            solved[way] = torch.stack(found)
        except ValueError:
            if not way.options:
                raise
            solved[way] = None
        progress.advance()
    expected = solved.pop(REFERENCE)
    return {way: None if w is None else ((w - expected).norm() / expected.norm()).item() for way, w in solved.items()}


def cell(error: float | None) -> str:
    if error is None:
        return ""
    return "not finite" if not math.isfinite(error) else f"{error:.2g}"


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1, got {text!r}")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", nargs="+", choices=subjects.OPTIMIZERS, default=subjects.MEASURED)
    parser.add_argument("--steps", type=positive, default=1000)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument(
        "--update", type=Path, metavar="PAGE", help="put the table between its <!-- half_error --> marks"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    problems = [Problem.of(seed, args.steps) for seed in range(args.seeds)]
    names = [name for name in args.optimizer if runs_in_go(subjects.OPTIMIZERS[name])]
    n = math.prod(SHAPE)
    lines = [
        f"{n:,} parameters, {args.steps:,} steps, seeds 0 to {args.seeds - 1}; torch {torch.__version__}; "
        f"goptim {goptim.__version__}.",
        "",
        f"| optimizer | learning rate | {' | '.join(way.title for way in WAYS)} |",
        f"|---|--:|{'--:|' * len(WAYS)}",
    ]
    progress = Progress(len(names) * (len(WAYS) + 1))
    progress.print("\n".join(lines))
    for name in names:
        rate = RATES.get(name, inspect.signature(subjects.OPTIMIZERS[name].goptim_class).parameters["lr"].default)
        found = errors(name, problems, progress)
        lines.append(f"| {name} | {rate:g} | {' | '.join(map(cell, found.values()))} |")
        progress.print(lines[-1])
    progress.close()
    if args.update:
        pages.put(args.update, MARK, "\n".join(lines))


if __name__ == "__main__":
    main()
