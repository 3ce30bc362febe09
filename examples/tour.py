"""Train with every optimizer of goptim and torch: on scanned digits, and on two surfaces.

    python examples/tour.py [--out tour.png] [--steps 300] [--threads 1]

It prints the accuracy, whether weights and state are bit-for-bit equal to torch's, and the time of a step, and plots
the losses and the paths. Every number is computed here. The comparison is with torch's for-loop with correctly rounded
square roots (goptim.testing.ieee_sqrt).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
from digits import BATCH, accuracy, digits, network
from torch import Tensor, nn
from tqdm import tqdm

from goptim import _for_loop
from goptim.testing import assert_bit_equal, ieee_sqrt

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Stop:
    """One optimizer of the tour: the name of its class, its arguments, and exceptions."""

    ours: str
    family: str
    options: dict[str, Any]
    paths: tuple[float, float]  # learning rates on the two surfaces, where the usual one is too small
    counterpart: str = ""  # torch's class, if it is not the same name in torch.optim
    counterpart_options: dict[str, Any] = field(default_factory=dict)
    path_options: dict[str, Any] = field(default_factory=dict)
    task: str = "digits"
    vectors: tuple[str, dict[str, Any]] | None = None  # the optimizer of parameters that are not matrices

    @property
    def title(self) -> str:
        return self.ours.removeprefix("goptim.")

    def class_of(self, side: str) -> Any:
        """The class of goptim, or its counterpart; None if that is not installed."""
        return find(self.ours if side == "goptim" else self.counterpart or f"torch.optim.{self.title}")


def find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return None


GRADIENT, MOMENTS, HISTORY = "Along the gradient", "Adam and its kin", "Scaled by the gradients' history"
TOUR = [
    Stop("goptim.SGD", GRADIENT, {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}, (2e-3, 5e-3)),
    Stop("goptim.ASGD", GRADIENT, {"lr": 0.01, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6}, (2e-3, 1e-2)),
    Stop("goptim.Rprop", GRADIENT, {"lr": 0.01}, (0.05, 0.05)),
    Stop(
        "goptim.Muon",
        GRADIENT,
        {"lr": 0.02},
        (0.02, 0.02),
        vectors=("AdamW", {"lr": 0.001}),
        path_options={"weight_decay": 0.0},
    ),
    Stop(
        "goptim.LBFGS",
        GRADIENT,
        {"lr": 1.0, "max_iter": 20, "history_size": 100},
        (1.0, 1.0),
        task="closure",
        path_options={"line_search_fn": "strong_wolfe", "max_iter": 1, "max_eval": 25},
    ),
    Stop("goptim.Adam", MOMENTS, {"lr": 0.001}, (0.1, 0.1)),
    Stop("goptim.AdamW", MOMENTS, {"lr": 0.001, "weight_decay": 0.01}, (0.1, 0.1)),
    Stop(
        "goptim.AMSGrad",
        MOMENTS,
        {"lr": 0.001},
        (0.1, 0.1),
        counterpart="torch.optim.Adam",
        counterpart_options={"amsgrad": True},
    ),
    Stop("goptim.Adamax", MOMENTS, {"lr": 0.002}, (0.5, 0.2)),
    Stop("goptim.NAdam", MOMENTS, {"lr": 0.002}, (0.05, 0.1)),
    Stop("goptim.RAdam", MOMENTS, {"lr": 0.001}, (5e-3, 0.02)),
    Stop("goptim.SparseAdam", MOMENTS, {"lr": 0.001}, (0.1, 0.1), task="words"),
    Stop("goptim.Adagrad", HISTORY, {"lr": 0.01}, (0.5, 0.5)),
    Stop("goptim.Adadelta", HISTORY, {"lr": 1.0}, (5.0, 5.0)),
    Stop("goptim.RMSprop", HISTORY, {"lr": 0.01, "alpha": 0.99}, (0.02, 0.02)),
    Stop("goptim.Adafactor", HISTORY, {}, (0.05, 0.05)),
    Stop(
        "goptim.hf.Adafactor",
        HISTORY,
        {},
        (0.05, 0.05),
        counterpart="transformers.Adafactor",
        path_options={"relative_step": False},
    ),
]
# The optimizers that torch.optim does not have are compared with their for-loops.
TOUR += [
    Stop(f"goptim.{name}", MOMENTS, {}, (0.01, 0.01), counterpart=f"{cls.__module__}.{cls.__qualname__}")
    for name, cls in ((_for_loop.name_in_goptim(name), cls) for name, cls in _for_loop.CLASSES.items())
]
PATHS: dict[str, dict[str, bool]] = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@dataclass
class Run:
    """The result of a training run."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    accuracy: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Words(nn.Module):
    """A bag-of-words model: 64 words per image, one per pixel and shade, with an embedding of 10 scores per word."""

    def __init__(self) -> None:
        super().__init__()
        self.votes = nn.EmbeddingBag(64 * 17, 10, mode="sum", sparse=True, _weight=torch.zeros(64 * 17, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.votes((x * 16).long() + 17 * torch.arange(64))


def optimizers(stop: Stop, side: str, model: nn.Module, flags: dict[str, bool]) -> list[torch.optim.Optimizer]:
    """The optimizer of a model; two, if one supports only matrices."""
    cls = stop.class_of(side)
    options = stop.options | known(cls, flags) | (stop.counterpart_options if side == "torch" else {})
    if stop.vectors is None:
        return [cls(model.parameters(), **options)]
    name, others = stop.vectors
    other = find(f"{'goptim' if side == 'goptim' else 'torch.optim'}.{name}")
    return [
        cls([p for p in model.parameters() if p.dim() == 2], **options),
        other([p for p in model.parameters() if p.dim() != 2], **others, **known(other, flags)),
    ]


def in_torch(cls: Any) -> bool:
    """Whether a class is torch's. Others may have the argument fused without such a kernel."""
    return bool(cls.__module__.startswith("torch."))


def known(cls: Any, flags: dict[str, bool]) -> dict[str, bool]:
    return {flag: on for flag, on in flags.items() if flag in inspect.signature(cls).parameters}


def train(stop: Stop, side: str, flags: dict[str, bool], steps: int, bar: tqdm) -> Run:
    """Train with a fixed seed and the same batches in every run, and time the steps."""
    x, y, test_x, test_y = digits()
    model = Words() if stop.task == "words" else network()
    run = Run(model, optimizers(stop, side, model, flags))
    batches = batches_of(len(x), steps)
    for rows in batches if stop.task != "closure" else [torch.arange(len(x))] * evaluations(stop, steps):
        inside = 0.0

        def closure(rows: Tensor = rows) -> Tensor:
            nonlocal inside
            start = time.perf_counter()
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            inside += time.perf_counter() - start
            run.losses.append(loss.item())
            return loss

        if stop.task != "closure":
            closure()
            inside = 0.0
        start = time.perf_counter()
        for optimizer in run.optimizers:
            optimizer.step(closure) if stop.task == "closure" else optimizer.step()
        run.step_seconds.append(time.perf_counter() - start - inside)
        bar.update()
    run.accuracy = accuracy(model, test_x, test_y)
    return run


def batches_of(n: int, steps: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    while True:
        for rows in torch.randperm(n, generator=generator).split(BATCH):
            if steps == 0:
                return
            yield rows
            steps -= 1


def evaluations(stop: Stop, steps: int) -> int:
    """The number of steps. A step that evaluates the model several times counts as several."""
    return max(1, steps // int(stop.options.get("max_iter", 1)))


def equal(a: Run, b: Run) -> str:
    try:
        assert_bit_equal(a.model.state_dict(), b.model.state_dict())
        for p, q in zip(a.optimizers, b.optimizers, strict=True):
            assert_bit_equal(p.state_dict()["state"], q.state_dict()["state"])
    except AssertionError:
        pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
        return f"{max((p - q).abs().max().item() for p, q in pairs):.1e}"
    return "bits"


def tour(stops: list[Stop], steps: int) -> dict[str, Run]:
    """Train with all optimizers, print the table, and return goptim's runs."""
    plans = []
    for stop in stops:
        sides: dict[str, tuple[str, dict[str, bool]]] = {"goptim": ("goptim", {})}
        torch_class = stop.class_of("torch")
        if torch_class is not None:
            sides["oracle"] = ("torch", PATHS["for-loop"])
            sides |= {
                path: ("torch", flags)
                for path, flags in PATHS.items()
                if path == "for-loop"
                or (known(torch_class, flags) == flags and (path != "fused" or in_torch(torch_class)))
            }
        plans.append((stop, sides))
    lines, ours = [], {}
    total = sum(len(sides) * (evaluations(stop, steps) if stop.task == "closure" else steps) for stop, sides in plans)
    with tqdm(total=total, unit="step") as bar:
        for stop, sides in plans:
            runs = {}
            for side, (package, flags) in sides.items():
                bar.set_description(f"{stop.title}, {side}")
                if side == "oracle":
                    with ieee_sqrt():
                        runs[side] = train(stop, package, flags, steps, bar)
                else:
                    runs[side] = train(stop, package, flags, steps, bar)
            ours[stop.title] = runs["goptim"]
            same = equal(runs["goptim"], runs["oracle"]) if "oracle" in runs else "-"
            times = [
                f"{statistics.median(runs[path].step_seconds) * 1e6:.0f}" if path in runs else "-"
                for path in (*PATHS, "goptim")
            ]
            lines.append([stop.title, f"{runs['goptim'].accuracy:.4f}", same, *times])
    head = ["", "accuracy", "equal to torch", *PATHS, "goptim"]
    for line in (head, *lines):
        print(f"{line[0]:14}{line[1]:>10}{line[2]:>17}" + "".join(f"{cell:>10}" for cell in line[3:]))
    return ours


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def beale(x: Tensor, y: Tensor) -> Tensor:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


@dataclass(frozen=True)
class Surface:
    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    minimum: tuple[float, float]
    window: tuple[tuple[float, float], tuple[float, float]]


SURFACES = [
    Surface("Rosenbrock", rosenbrock, (-1.2, 1.0), (1.0, 1.0), ((-1.8, 1.8), (-0.6, 2.2))),
    Surface("Beale", beale, (1.0, 1.3), (3.0, 0.5), ((0.2, 4.2), (-1.2, 1.9))),
]
PATH_STEPS = 600


def walk(stop: Stop, surface: Surface, lr: float) -> list[tuple[float, float]]:
    """goptim's path from the start of the surface."""
    p = nn.Parameter(torch.tensor([surface.start]))
    optimizer = stop.class_of("goptim")([p], **stop.options | stop.path_options | {"lr": lr})
    path = [surface.start]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = surface.f(p[0, 0], p[0, 1])
        loss.backward()
        if stop.task == "words":
            p.grad = p.grad.to_sparse(1)
        return loss

    for _ in range(PATH_STEPS):
        if stop.task == "closure":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        path.append(tuple(p.detach()[0].tolist()))
    return path


# Okabe & Ito's palette, which is safe for colour-blind readers, and black.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def draw(out: Path, stops: list[Stop], runs: dict[str, Run]) -> None:
    families = {family: [stop for stop in stops if stop.family == family] for family in (GRADIENT, MOMENTS, HISTORY)}
    colours = {
        stop.title: c for group in families.values() for stop, c in zip(group, itertools.cycle(COLOURS), strict=False)
    }
    columns = 6
    rows = -(-len(stops) // columns)
    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(15, 5 + 4.7 * rows), layout="constrained")
    above, *below = figure.subfigures(3, 1, height_ratios=[5, 2.3 * rows, 2.3 * rows], hspace=0.02)

    above.suptitle("Training loss on scanned digits", fontsize=15, fontweight="bold")
    for axes, (family, group) in zip(above.subplots(1, 3, sharex=True, sharey=True), families.items(), strict=True):
        for i, stop in enumerate(group):
            style = ("-", "--", ":")[i % 3]  # so that identical curves are visible
            losses = smoothed(runs[stop.title].losses)
            axes.plot(losses, style, label=stop.title, color=colours[stop.title], linewidth=1.8)
        axes.set(yscale="log", title=family, xlabel="gradients seen", ylim=(3e-4, 10))
        axes.grid(alpha=0.25)
        axes.legend(
            frameon=False, ncols=4, handlelength=1.6, columnspacing=1, loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )
    above.axes[0].set_ylabel("cross entropy")

    for i, (surface, panel) in enumerate(zip(SURFACES, below, strict=True)):
        title = f"{PATH_STEPS} steps on {surface.name}'s function, from ● to ◆; the minimum is ☆"
        panel.suptitle(title, fontsize=15, fontweight="bold")
        grid = list(panel.subplots(rows, columns, sharex=True, sharey=True).flat)
        for axes, stop in zip(grid, stops, strict=False):
            path = walk(stop, surface, stop.paths[i])
            draw_path(axes, surface, path, colours[stop.title])
            axes.set_title(f"{stop.title}, lr {stop.paths[i]:g}", fontsize=11)
        for axes in grid[len(stops) :]:
            axes.axis("off")
    figure.savefig(out, dpi=100)


def smoothed(losses: list[float]) -> list[float]:
    """Running medians of the losses, which vary between batches."""
    return [statistics.median(losses[max(0, i - 4) : i + 5]) for i in range(len(losses))]


@functools.cache
def heights(surface: Surface) -> tuple[Tensor, Tensor, Tensor]:
    (left, right), (low, high) = surface.window
    y, x = torch.meshgrid(torch.linspace(low, high, 200), torch.linspace(left, right, 200), indexing="ij")
    return x, y, surface.f(x, y).clamp(min=1e-3).log()


def draw_path(axes: plt.Axes, surface: Surface, path: list[tuple[float, float]], colour: str) -> None:
    axes.contourf(*heights(surface), levels=14, cmap="Greys", alpha=0.45)
    axes.plot(*zip(*path, strict=True), color=colour, linewidth=1.6)
    axes.plot(*path[0], "o", color=colour, markersize=5)
    axes.plot(*path[-1], "D", color=colour, markersize=6, markeredgecolor="white")
    axes.plot(*surface.minimum, "*", color="white", markersize=13, markeredgecolor="black")
    axes.set(xlim=surface.window[0], ylim=surface.window[1])


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, at least {least}, got {text!r}")
        return int(text)

    return number


def picture(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected the name of a .png file in a folder that exists, got {text!r}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=picture, default="tour.png", help="where to draw losses and paths")
    parser.add_argument("--steps", type=at_least(1), default=300, help="of every training")
    parser.add_argument("--threads", type=at_least(1), default=1, help="of torch; a network this small wants one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()  # torch imports its compiler at the first step
    stops = [stop for stop in TOUR if stop.class_of("goptim") is not None]
    runs = tour(stops, args.steps)
    print(f"median µs a step, {args.steps} steps, torch {torch.__version__}, {args.threads} threads")
    draw(args.out, stops, runs)
    print(f"losses and paths: {args.out}")


if __name__ == "__main__":
    main()
