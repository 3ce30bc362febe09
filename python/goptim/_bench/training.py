"""Times training iterations, and the share of the step, with torch's optimizers and goptim's."""

from __future__ import annotations

import copy
import inspect
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from goptim._bench import subjects
from goptim._bench.conditions import Watch

WARM_UP = 3


@dataclass(frozen=True)
class Model:
    """A network and its loss. ``build`` takes a scale and returns a network and a batch."""

    title: str
    build: Callable[[float], tuple[nn.Module, tuple[Tensor, ...]]]
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    rounds: float  # as a multiple of --rounds


@dataclass
class Row:
    """One model, one optimizer and one number of threads."""

    model: Model
    optimizer: str
    threads: int
    parameters: int = 0
    tensors: int = 0
    times: dict[str, list[tuple[float, float]]] = field(
        default_factory=dict
    )  # seconds of iterations and of their steps
    notes: list[str] = field(default_factory=list)

    def iteration(self, path: str) -> float:
        """The lower quartile of the iterations' seconds."""
        return _quartile([iteration for iteration, _ in self.times[path]])

    def step(self, path: str) -> float:
        """The lower quartile of the steps' seconds."""
        return _quartile([step for _, step in self.times[path]])

    def share(self, path: str) -> float:
        """The step's share of an iteration."""
        return self.step(path) / self.iteration(path)

    def gain(self, path: str) -> float:
        """The time of an iteration divided by its time with goptim."""
        return self.iteration(path) / self.iteration("goptim")

    def json(self) -> dict[str, Any]:
        return {
            "model": self.model.title,
            "parameters": self.parameters,
            "tensors": self.tensors,
            "optimizer": self.optimizer,
            "threads": self.threads,
            "seconds": {
                path: {
                    "iteration": self.iteration(path),
                    "step": self.step(path),
                    "share": self.share(path),
                    "rounds": len(times),
                }
                for path, times in self.times.items()
            },
            "notes": self.notes,
        }


def _quartile(times: list[float]) -> float:
    return statistics.quantiles(times, n=4, method="inclusive")[0] if len(times) > 1 else times[0]


class _Transformer(nn.Module):
    """A decoder of four layers over a thousand tokens."""

    def __init__(self, width: int, tokens: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.places = nn.Parameter(torch.zeros(context, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, tokens)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers(self.tokens(x) + self.places, mask=self.mask.to(self.places.dtype), is_causal=True)
        return self.head(hidden).flatten(0, 1)  # type: ignore[no-any-return]


def _transformer(scale: float) -> tuple[nn.Module, tuple[Tensor, ...]]:
    width, tokens, context = 4 * _scaled(64, scale), _scaled(1000, scale), _scaled(128, scale)
    x = torch.randint(tokens, (4, context))
    return _Transformer(width, tokens, context), (x, torch.randint(tokens, (4 * context,)))


class _Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _convnet(scale: float) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A ResNet of six blocks for images of 32 x 32."""
    width, batch = _scaled(64, scale), _scaled(16, scale)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for factor in (1, 2, 4):
        for block in range(2):
            layers.append(_Block(inputs, factor * width, 2 if factor > 1 and block == 0 else 1))
            inputs = factor * width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
    return model, (torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,)))


def _policy(scale: float) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A policy network for small control tasks of reinforcement learning."""
    width = _scaled(64, scale)
    model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4))
    return model, (torch.randn(64, 8), torch.randint(4, (64,)))


def _scaled(n: int, scale: float) -> int:
    return max(2, int(n * scale))


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x).float(), y)


MODELS = (
    Model("transformer, 4 layers of 256, 512 tokens", _transformer, _cross_entropy, 1),
    Model("ResNet of 6 blocks, 16 images of 32 x 32", _convnet, _cross_entropy, 2 / 3),
    Model("policy 8-64-64-4, 64 states", _policy, _cross_entropy, 20),
)


def rounds_of(model: Model, rounds: int) -> int:
    """The number of rounds: more for small models."""
    return max(2, round(rounds * model.rounds))


def measure(
    row: Row, rounds: int, dtype: torch.dtype, scale: float, watch: Watch, advance: Callable[[], object]
) -> None:
    """Fill a row with the seconds of the iterations of each implementation, interleaved."""
    torch.set_num_threads(row.threads)
    torch.manual_seed(0)
    built, batch = row.model.build(scale)
    built = built.to(dtype)
    batch = tuple(x.to(dtype) if x.is_floating_point() else x for x in batch)
    row.parameters, row.tensors = sum(p.numel() for p in built.parameters()), len(list(built.parameters()))
    subject = subjects.OPTIMIZERS[row.optimizer]
    torch_class, ours = subject.torch_class, subject.goptim_class
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {"default": torch_class}
    if "fused" in inspect.signature(torch_class).parameters:
        makers["fused"] = lambda parameters, **options: torch_class(parameters, **options, fused=True)
    makers["goptim"] = ours
    pairs = {}
    for path, make in makers.items():
        model = copy.deepcopy(built)
        pairs[path] = (model, make(model.parameters(), **subject.options))

    def iterate(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        start = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(row.model.loss(model, batch))
        before = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        return end - start, end - before

    for pair in pairs.values():
        for _ in range(WARM_UP):
            iterate(*pair)
    row.times = {path: [] for path in pairs}
    order, shuffle = list(pairs), random.Random(0).shuffle
    with watch():
        for _ in range(rounds_of(row.model, rounds)):
            shuffle(order)
            for path in order:
                row.times[path].append(iterate(*pairs[path]))
            advance()
