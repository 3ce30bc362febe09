"""Train a small transformer in pure bfloat16, with each way of rounding weights, and in float32, and compare.

    python examples/bf16.py [--steps 1000] [--threads 2] [--plot bf16.png] [--update docs/half.md] [--quick]

The text is Python's own help (pydoc_data.topics), read as bytes. Weights, activations, gradients and states are
bfloat16, and the loss is computed in float32. Every run has the same initial weights, rounded to its type, and the same
batches.
Every printed number is computed here.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import goptim
from goptim._bench import pages

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MARK = "bf16"
# With this rate an update is smaller than half the distance of most weights to the next number in bfloat16.
LEARNING_RATE = 1e-4
BATCH = 16
AVERAGED = 100  # steps, over which the curves are averaged
QUICK = 12  # steps

F32, BF16 = torch.float32, torch.bfloat16
# The type of the weights and the arguments of goptim.AdamW.
WAYS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (F32, {}),
    "bfloat16, nearest": (BF16, {}),
    "bfloat16, stochastic": (BF16, {"rounding": "stochastic", "seed": 0}),
    "bfloat16, Kahan": (BF16, {"rounding": "kahan"}),
    "bfloat16, master weights": (BF16, {"master_weights": True}),
    "bfloat16, master weights, float32 states": (BF16, {"master_weights": True, "state_dtype": F32}),
}


@dataclass(frozen=True)
class Size:
    width: int = 128
    layers: int = 2
    heads: int = 4
    context: int = 64


@dataclass
class Run:
    """The result of a training run."""

    losses: list[float] = field(default_factory=list)
    validation: float = 0.0  # loss on text that was not trained on
    weights: float = 0.0  # bytes per parameter
    states: float = 0.0
    moved: float = 0.0  # the share of weights that the last step changed


class Block(nn.Module):
    """Causal attention and a perceptron, each after a norm and added to its input."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, self.heads = size.width, size.heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.before(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """Scores for the byte after each byte of a text."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, size.width), nn.Embedding(size.context, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.layers)))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, 256)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.bytes(x) + self.places.weight)))


def texts() -> tuple[Tensor, Tensor]:
    """Python's help as bytes: nine tenths to train on, and the rest."""
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]


def batch(text: Tensor, n: int, context: int, of: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random pieces of a text, and for each byte the one after it."""
    starts = torch.randint(len(text) - context, (n, 1), generator=of)
    pieces = text[starts + torch.arange(context + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).float().flatten(0, 1), y.flatten())


def per_parameter(tensors: list[Tensor], elements: int) -> float:
    return sum(t.nbytes for t in tensors) / elements


def train(title: str, steps: int, size: Size) -> Run:
    """Train with fixed seeds."""
    dtype, keywords = WAYS[title]
    torch.manual_seed(0)
    model = Transformer(size).to(dtype)
    params = list(model.parameters())
    optimizer = goptim.AdamW(params, lr=LEARNING_RATE, **keywords)
    learned, other = texts()
    run, of = Run(), torch.Generator().manual_seed(1)
    for _ in tqdm(range(steps), desc=f"{title:>40}", unit="step", leave=False, disable=None):
        loss = loss_of(model, *batch(learned, BATCH, size.context, of))
        loss.backward()
        before = [p.detach().clone() for p in params] if len(run.losses) == steps - 1 else []
        optimizer.step()
        optimizer.zero_grad()
        run.losses.append(loss.item())
    assert all(row.to == "go" for row in goptim.explain(optimizer)), goptim.explain(optimizer)
    n = sum(p.numel() for p in params)
    run.moved = sum((p != q).sum().item() for p, q in zip(params, before, strict=True)) / n
    run.weights = per_parameter(params, n)
    run.states = per_parameter([t for state in optimizer.state.values() for t in state.values() if t.dim()], n)
    with torch.no_grad():
        run.validation = loss_of(model, *batch(other, 256, size.context, torch.Generator().manual_seed(2))).item()
    return run


def averaged(losses: list[float]) -> Tensor:
    """The moving average."""
    n = min(AVERAGED, len(losses))
    return torch.tensor(losses, dtype=torch.float64).unfold(0, n, 1).mean(1)


def plot(path: Path, runs: dict[str, Run]) -> None:
    """The losses, and their differences from those of float32."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    single = averaged(runs["float32"].losses)
    steps = range(len(runs["float32"].losses) - len(single) + 1, len(runs["float32"].losses) + 1)
    for title, run in runs.items():
        style = {"color": "black", "linestyle": ":"} if title == "float32" else {}
        left.plot(steps, averaged(run.losses), label=title, linewidth=1.3, **style)
        right.plot(steps, averaged(run.losses) - single, label=title, linewidth=1.3, **style)
    for axes, what in ((left, "training loss"), (right, "difference from float32")):
        axes.set_xlabel("step")
        axes.set_ylabel(f"{what}, average of {AVERAGED} steps")
        axes.grid(alpha=0.3)
    left.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def table(runs: dict[str, Run], elements: int, size: Size, threads: int) -> list[str]:
    """What was trained, and a row for each run."""
    steps = len(runs["float32"].losses)
    last = min(AVERAGED, steps)
    lines = [
        f"{elements:,} parameters in {size.layers} layers of {size.width}, {steps:,} steps of {BATCH} pieces of "
        f"{size.context} bytes, AdamW with a learning rate of {LEARNING_RATE:g}; {sum(map(len, texts())):,} bytes of "
        f"text from Python {platform.python_version()}; torch {torch.__version__}, {threads} threads; "
        f"goptim {goptim.__version__}.",
        "",
        f"| weights | bytes per parameter: weights | states | together | training loss, last {last} steps | "
        "validation loss | weights changed by the last step |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for title, run in runs.items():
        memory = [f"{b:g}" for b in (run.weights, run.states, run.weights + run.states)]
        losses = [f"{sum(run.losses[-last:]) / last:.3f}", f"{run.validation:.3f}"]
        lines.append(f"| {' | '.join([title, *memory, *losses, f'{run.moved:.0%}'])} |")
    return lines


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
    parser.add_argument("--steps", type=positive, default=1000)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--plot", type=Path, default=Path("bf16.png"), metavar="PNG", help="where to draw the losses")
    parser.add_argument("--update", type=Path, metavar="PAGE", help=f"put the table between its <!-- {MARK} --> marks")
    parser.add_argument("--quick", action="store_true", help=f"a smaller model and {QUICK} steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size, steps = (Size(32, 1, 2, 16), QUICK) if args.quick else (Size(), args.steps)
    runs = {title: train(title, steps, size) for title in WAYS}
    lines = "\n".join(table(runs, sum(p.numel() for p in Transformer(size).parameters()), size, args.threads))
    print(lines)
    plot(args.plot, runs)
    print(f"\nlosses: {args.plot}")
    if args.update:
        pages.put(args.update, MARK, lines)


if __name__ == "__main__":
    main()
