"""Train with every optimizer of goptim on two small tasks, and compare losses by steps and by seconds.

    python examples/which.py [--threads 1] [--plot which.png] [--update docs/which.md] [--quick] [--only AdamW ...]

The tasks are scikit-learn's scanned digits with a perceptron, and Python's own help as bytes with a transformer. Each
optimizer gets the same search for its learning rate. Every printed number is computed here.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
from bf16 import Size, Transformer, batch, loss_of, positive, texts
from digits import accuracy, digits, network
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

import goptim
from goptim._bench import pages

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MARK = "which"
AVERAGED = 50  # steps, over which losses are averaged
COARSE = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FINE = math.sqrt(10)  # the factor of the two rates around the best coarse one
REFERENCE = "AdamW"
HIGHLIGHTED = 8  # curves with a color

# Optimizers that neither task can be trained with alone, and why.
LEFT_OUT = {
    "Optimizer": "the base class",
    "AMSGrad": "Adam with another state",
    "LBFGS": "it needs the same examples in every evaluation",
    "Muon": "it is for matrices alone: see MuonWithAuxAdam",
    "SparseAdam": "it is for sparse gradients",
}

Make = Callable[[nn.Module, float], Optimizer]


def _with_adam(model: nn.Module, lr: float) -> Optimizer:
    """Muon for the matrices between the first and the last layer, and Adam for the rest."""
    named = [p for name, p in model.named_parameters() if p.ndim == 2]
    ends = {id(named[0]), id(named[-1]), *(id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding))}
    hidden = [p for p in model.parameters() if p.ndim == 2 and id(p) not in ends]
    of_hidden = set(map(id, hidden))
    others = [p for p in model.parameters() if id(p) not in of_hidden]
    groups = [{"params": hidden, "use_muon": True, "lr": lr}, {"params": others, "use_muon": False, "lr": lr / 10}]
    return goptim.MuonWithAuxAdam(groups)


# Optimizers that are not constructed with parameters and a learning rate, and what is constructed instead.
SPECIAL: dict[str, tuple[str, Make]] = {
    "MuonWithAuxAdam": ("MuonWithAuxAdam", _with_adam),
    "Lookahead": (
        "Lookahead around AdamW",
        lambda model, lr: goptim.Lookahead(goptim.AdamW(model.parameters(), lr=lr)),
    ),
    "SAM": ("SAM around AdamW", lambda model, lr: goptim.SAM(model.parameters(), goptim.AdamW, lr=lr)),
    "SGD": (
        "SGD with momentum 0.9",
        lambda model, lr: goptim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True),
    ),
}


@dataclass(frozen=True)
class Task:
    """Something to train."""

    name: str
    model: Callable[[], nn.Module]
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    validation: Callable[[nn.Module], tuple[float, float]]  # the loss, and the accuracy or 0
    steps: int
    searched: int  # the steps of a run that is for the search alone


@dataclass
class Run:
    """The result of a training run."""

    lr: float
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of CPU time from the beginning, at each step
    validation: float = math.inf
    accuracy: float = 0.0

    def averaged(self) -> list[float]:
        """The moving averages of the losses. They begin at the step AVERAGED."""
        n = min(AVERAGED, len(self.losses))
        return torch.tensor(self.losses, dtype=torch.float64).unfold(0, n, 1).mean(1).tolist()

    @property
    def reached(self) -> float:
        """The average of the last losses; infinite if one is not finite."""
        last = self.averaged()[-1]
        return last if math.isfinite(last) else math.inf

    def first_below(self, loss: float) -> int | None:
        """The number of steps after which the average is at most a loss."""
        averages = self.averaged()
        at = next((i for i, x in enumerate(averages) if x <= loss), None)
        return None if at is None else at + len(self.losses) - len(averages) + 1


def optimizers() -> dict[str, tuple[str, Make]]:
    """Every optimizer of goptim, with its title and how it is made."""
    found: dict[str, tuple[str, Make]] = {}
    for name in goptim.__all__:
        cls = getattr(goptim, name, None)
        if isinstance(cls, type) and issubclass(cls, Optimizer) and name not in LEFT_OUT:
            found[name] = SPECIAL.get(name) or (name, lambda model, lr, cls=cls: cls(model.parameters(), lr=lr))
    return found


def _digits(quick: bool) -> Task:
    x, y, test_x, test_y = digits()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        of = torch.Generator().manual_seed(1)
        while True:
            for rows in torch.randperm(len(x), generator=of).split(64)[:-1]:
                yield x[rows], y[rows]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    def validation(model: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            return loss(model, test_x, test_y).item(), accuracy(model, test_x, test_y)

    return Task("digits", network, batches, loss, validation, *((8, 4) if quick else (300, 100)))


def _text(quick: bool) -> Task:
    size = Size(16, 1, 2, 8) if quick else Size(64, 2, 4, 32)
    learned, other = texts()
    held = batch(other, 8 if quick else 512, size.context, torch.Generator().manual_seed(2))

    def model() -> nn.Module:
        torch.manual_seed(0)
        return Transformer(size)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        of = torch.Generator().manual_seed(1)
        while True:
            yield batch(learned, 16, size.context, of)

    def validation(model: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            return loss_of(model, *held).item(), 0.0

    return Task("text", model, batches, loss_of, validation, *((8, 4) if quick else (500, 120)))


def train(task: Task, make: Make, lr: float, steps: int) -> Run:
    """Train with fixed seeds. A run whose loss is not finite ends early."""
    model = task.model()
    optimizer = make(model, lr)
    run, switches = Run(lr), hasattr(optimizer, "train")
    if switches:
        optimizer.train()
    start = time.process_time()
    for x, y in itertools.islice(task.batches(), steps):

        def gradients(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = task.loss(model, x, y)
            loss.backward()
            return loss

        loss = gradients()
        optimizer.step(gradients) if isinstance(optimizer, goptim.SAM) else optimizer.step()
        run.losses.append(loss.item())
        run.seconds.append(time.process_time() - start)
        if not math.isfinite(run.losses[-1]):
            return run
    if switches:
        optimizer.eval()
    run.validation, run.accuracy = task.validation(model)
    return run


def searched(task: Task, make: Make, progress: tqdm[Any]) -> Run:
    """A run with the best learning rate of the search: those of COARSE, then the two around the best one."""
    tried: dict[float, float] = {}

    def try_all(rates: Iterable[float]) -> float:
        for lr in rates:
            if lr not in tried:
                tried[lr] = train(task, make, lr, task.searched).reached
                progress.update()
        return min(tried, key=lambda lr: tried[lr])

    best = try_all(COARSE)
    best = try_all((best / FINE, best * FINE))
    run = train(task, make, best, task.steps)
    progress.update()
    return run


def ordered(runs: dict[str, Run]) -> list[str]:
    return sorted(runs, key=lambda title: runs[title].reached)


def table(task: Task, runs: dict[str, Run]) -> list[str]:
    """A row for each optimizer, that with the smallest loss first."""
    reference = runs.get(REFERENCE) or next(iter(runs.values()))
    averages = reference.averaged()
    target = averages[len(averages) // 2]
    with_accuracy = any(run.accuracy for run in runs.values())
    columns = ["optimizer", "learning rate", "training loss", "validation loss", *(["accuracy"] * with_accuracy)]
    columns += [f"steps to {target:.3g}", f"seconds to {target:.3g}", "ms per step"]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    for title in ordered(runs):
        run = runs[title]
        at = run.first_below(target)
        cells = [title, f"{run.lr:.2g}", _number(run.reached), _number(run.validation)]
        cells += [f"{run.accuracy:.3f}"] * with_accuracy
        cells += ["", ""] if at is None else [str(at), f"{run.seconds[at - 1]:.2f}"]
        cells.append(f"{1e3 * run.seconds[-1] / len(run.seconds):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(x: float) -> str:
    return f"{x:.3f}" if math.isfinite(x) else "diverged"


def conditions(threads: int) -> str:
    rates = ", ".join(f"{lr:g}" for lr in COARSE)
    return (
        f"Learning rates: the best of {rates} and then of the two that are {FINE:.2f} times as small and as large, by "
        f"the training loss of a shorter run. Losses are averages of {AVERAGED} steps. goptim {goptim.__version__}, "
        f"torch {torch.__version__}, {threads} thread{'s' * (threads > 1)}."
    )


def report(tasks: list[Task], results: dict[str, dict[str, Run]], threads: int) -> str:
    lines = [conditions(threads)]
    for task in tasks:
        n = sum(p.numel() for p in task.model().parameters())
        lines += ["", f"**{task.name}**: {n:,} parameters, {task.steps} steps, {task.searched} in the search.", ""]
        lines += table(task, results[task.name])
    return "\n".join(lines)


def plot(path: Path, tasks: list[Task], results: dict[str, dict[str, Run]]) -> None:
    """For each task, the losses by steps and by seconds."""
    figure, grid = plt.subplots(len(tasks), 2, figsize=(12, 4.5 * len(tasks)), layout="constrained", squeeze=False)
    for task, row in zip(tasks, grid, strict=True):
        runs = results[task.name]
        finite = [title for title in ordered(runs) if math.isfinite(runs[title].reached)]
        for i, title in enumerate(finite):
            averages = runs[title].averaged()
            first = len(runs[title].losses) - len(averages)
            style = {"linewidth": 1.4, "label": title} if i < HIGHLIGHTED else {"linewidth": 0.6, "color": "lightgray"}
            style["zorder"] = len(finite) - i
            steps = range(first + 1, len(runs[title].losses) + 1)
            row[0].plot(steps, averages, **style)
            row[1].plot(runs[title].seconds[first:], averages, **style)
        losses = [loss for title in finite for loss in runs[title].averaged()]
        # Runs that diverge leave the picture.
        highest = max((runs[title].averaged()[0] for title in finite), default=1.0)
        for axes, what in zip(row, ("step", "seconds"), strict=True):
            axes.set_yscale("log")
            axes.set_ylim(min(losses, default=1.0) / 1.2, 1.2 * highest)
            axes.set_xlabel(what)
            axes.set_ylabel(f"training loss: {task.name}")
            axes.grid(alpha=0.3)
        row[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    known = optimizers()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--plot", type=Path, default=Path("which.png"), metavar="PNG", help="where to draw the losses")
    parser.add_argument("--update", type=Path, metavar="PAGE", help=f"put the tables between its <!-- {MARK} --> marks")
    parser.add_argument("--quick", action="store_true", help="smaller models and a few steps")
    parser.add_argument("--only", nargs="+", choices=known, metavar="OPTIMIZER", help="not all optimizers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = {name: known[name] for name in args.only or known}
    tasks = [_digits(args.quick), _text(args.quick)]
    results: dict[str, dict[str, Run]] = {task.name: {} for task in tasks}
    start = time.perf_counter()
    runs = len(tasks) * len(chosen) * (len(COARSE) + 3)
    with tqdm(total=runs, unit="run", disable=None) as progress:
        for task, (title, make) in itertools.product(tasks, chosen.values()):
            progress.set_description(f"{task.name}: {title:>24}")
            results[task.name][title] = searched(task, make, progress)
    text = report(tasks, results, args.threads)
    print(text)
    plot(args.plot, tasks, results)
    print(f"\nlosses: {args.plot}; {time.perf_counter() - start:.0f} seconds")
    if args.update:
        pages.put(args.update, MARK, text)


if __name__ == "__main__":
    main()
