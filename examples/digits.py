"""Train a network on scikit-learn's scanned digits, once with torch.optim and once with goptim, and compare.

    python examples/digits.py [--optimizer AdamW] [--epochs 20] [--plot digits.png]

Both use the same seed and batches. Every printed number is computed here.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SETTINGS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4},
    "Adam": {"lr": 1e-3},
    "AdamW": {"lr": 1e-3, "weight_decay": 0.01},
}
BATCH = 64


@dataclass
class Run:
    """The result of a training run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    accuracy: float = 0.0
    step_seconds: float = 0.0
    steps: int = 0
    losses: list[float] = field(default_factory=list)


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """1797 handwritten digits of 8 x 8 pixels, scaled to [0, 1]: three quarters for training, one for testing."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y, cut = x[order], y[order], len(x) * 3 // 4
    return x[:cut], y[:cut], x[cut:], y[cut:]


def network() -> nn.Module:
    """A network from 64 pixels to 10 digits, with the same weights in every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def train(title: str, module: object, name: str, epochs: int, **options: object) -> Run:
    """Train with a fixed seed and an optimizer of a module, and time its step."""
    x, y, test_x, test_y = digits()
    model = network()
    run = Run(model, getattr(module, name)(model.parameters(), **SETTINGS[name], **options))
    batches = torch.Generator().manual_seed(1)
    for _ in tqdm(range(epochs), desc=f"{title:>30}", unit="epoch"):
        for rows in torch.randperm(len(x), generator=batches).split(BATCH):
            run.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            start = time.perf_counter()
            run.optimizer.step()
            run.step_seconds += time.perf_counter() - start
            run.steps += 1
            run.losses.append(loss.item())
    run.accuracy = accuracy(model, test_x, test_y)
    return run


def bit_equal(a: Run, b: Run) -> str:
    try:
        assert_bit_equal(a.model.state_dict(), b.model.state_dict(), "weights")
        assert_bit_equal(a.optimizer.state_dict()["state"], b.optimizer.state_dict()["state"], "state")
    except AssertionError as e:
        return f"NO: {e}"
    return "yes"


def largest_difference(a: Run, b: Run) -> float:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


def plot(path: str, runs: dict[str, Run]) -> None:
    for (title, run), style in zip(runs.items(), ("-", "--"), strict=True):
        plt.plot(run.losses, style, label=title, linewidth=1)
    plt.yscale("log")
    plt.xlabel("step")
    plt.ylabel("training loss")
    plt.legend()
    plt.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", choices=SETTINGS, default="AdamW")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--plot", default="digits.png", help="where to draw the loss curves")
    args = parser.parse_args()
    name, epochs = args.optimizer, args.epochs

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()  # torch imports its compiler at the first step
    stock = train(f"torch.optim.{name}", torch.optim, name, epochs)
    fused = train(f"torch.optim.{name}(fused=True)", torch.optim, name, epochs, fused=True)
    ours = train(f"goptim.{name}", goptim, name, epochs)
    with ieee_sqrt():
        oracle = train("torch.optim, sqrt rounded", torch.optim, name, epochs)
    plot(args.plot, {f"torch.optim.{name}": stock, f"goptim.{name}": ours})

    print(f"\n{stock.steps} steps of {name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':24}{'test accuracy':>16}{'µs a step()':>16}")
    for title, run in (("torch.optim", stock), ("torch.optim, fused", fused), ("goptim", ours)):
        print(f"{title:24}{run.accuracy:>16.4f}{run.step_seconds / run.steps * 1e6:>16.1f}")
    print(f"step() is {stock.step_seconds / ours.step_seconds:.1f} times as fast as torch.optim's", end="")
    print(f", {fused.step_seconds / ours.step_seconds:.1f} times as fast as its fused one's")
    print(f"every weight and state equal to torch's bit for bit, its sqrt rounded correctly: {bit_equal(ours, oracle)}")
    print(f"largest difference of a weight from torch as installed: {largest_difference(ours, stock):.2e}")
    print(f"loss curves: {args.plot}")


if __name__ == "__main__":
    main()
