"""The measured optimizers, and the shapes of their parameters."""

from __future__ import annotations

import importlib
import math
import operator
import sys
from dataclasses import dataclass
from typing import Any

import torch

from goptim import _for_loop

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Optimizer:
    """A class of goptim and its arguments.

    ``deepspeed`` is the module and class of the counterpart in DeepSpeed, if any, and the arguments that torch's class
    does not have.
    """

    cls: str  # of goptim, or in Go's description
    options: dict[str, Any]
    deepspeed: tuple[str, str, dict[str, Any]] | None = None

    @property
    def torch_class(self) -> Any:
        """The class of torch.optim, or the for-loop of one that torch.optim does not have."""
        return _for_loop.CLASSES.get(self.cls) or getattr(torch.optim, self.cls)

    @property
    def goptim_class(self) -> Any:
        return operator.attrgetter(_for_loop.name_in_goptim(self.cls))(sys.modules["goptim"])


_DEEPSPEED_ADAM = ("deepspeed.ops.adam", "DeepSpeedCPUAdam")
OPTIMIZERS = {
    "SGD": Optimizer("SGD", {"lr": 1e-3}),
    "SGD momentum": Optimizer("SGD", {"lr": 1e-3, "momentum": 0.9}),
    "Adam": Optimizer("Adam", {}, (*_DEEPSPEED_ADAM, {"adamw_mode": False})),
    "AdamW": Optimizer("AdamW", {}, (*_DEEPSPEED_ADAM, {"adamw_mode": True})),
    "AdamW amsgrad": Optimizer("AdamW", {"amsgrad": True}),
    "Adagrad": Optimizer("Adagrad", {}, ("deepspeed.ops.adagrad", "DeepSpeedCPUAdagrad", {})),
    "Adadelta": Optimizer("Adadelta", {}),
    "Adamax": Optimizer("Adamax", {}),
    "NAdam": Optimizer("NAdam", {}),
    "RAdam": Optimizer("RAdam", {}),
    "RMSprop": Optimizer("RMSprop", {}),
    "RMSprop momentum, centered": Optimizer("RMSprop", {"momentum": 0.9, "centered": True}),
    "Rprop": Optimizer("Rprop", {}),
    "ASGD": Optimizer("ASGD", {}),
    "Adafactor": Optimizer("Adafactor", {}),
    "Muon": Optimizer("Muon", {}),
    **{_for_loop.name_in_goptim(name): Optimizer(name, {}) for name in _for_loop.CLASSES},
}
if not hasattr(torch.optim, "Muon"):  # before torch 2.9
    del OPTIMIZERS["Muon"]
# What is measured by default: not those of modules such as goptim.timm, which use the kernels of others.
MEASURED = [name for name in OPTIMIZERS if "." not in name]


def _resnet50() -> list[Shape]:
    """The parameters of torchvision's ResNet-50, in order."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for kernel in ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [kernel, kernel[:1], kernel[:1]]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def _gpt2() -> list[Shape]:
    """The parameters of transformers' GPT-2 small, in order. The head shares the embedding's weights."""
    width = 768
    norm: list[Shape] = [(width,), (width,)]
    attention: list[Shape] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *(norm + attention + norm + mlp) * 12, *norm]


def _policy() -> tuple[Shape, ...]:
    """The parameters of an actor and a critic, each with three layers of 64 and a head, but for the last biases."""
    layers: list[Shape] = [(64, 8), (64,), (64, 64), (64,), (64, 64), (64,)]
    return (*layers, (4, 64), *layers, (1, 64))


@dataclass(frozen=True)
class Shapes:
    """The shapes of the parameters of a step, and their title in tables."""

    title: str
    shapes: tuple[Shape, ...]
    scale: float = 1.0

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes))

    @property
    def large(self) -> bool:
        """Whether memory bandwidth limits a step, rather than per-tensor overhead."""
        return self.elements / self.scale >= len(self.shapes) << 15

    @property
    def matrices(self) -> bool:
        return all(len(shape) == 2 for shape in self.shapes)

    def scaled(self, scale: float) -> Shapes:
        """The same shapes with their first dimensions scaled."""
        shapes = tuple((max(1, int(n * scale)), *rest) for n, *rest in (shape or (1,) for shape in self.shapes))
        return self if scale == 1 else Shapes(self.title, shapes, scale)


SHAPES = {
    "big": Shapes("8 x 2M", ((1 << 21,),) * 8),
    "matrices": Shapes("8 x 1024 x 1024", ((1024, 1024),) * 8),
    "resnet50": Shapes("ResNet-50", tuple(_resnet50())),
    "gpt2": Shapes("GPT-2", tuple(_gpt2())),
    "small": Shapes("1000 x 1024", ((1024,),) * 1000),
    "small-matrices": Shapes("100 x 64 x 64", ((64, 64),) * 100),
    "tiny": Shapes("1000 x 64", ((64,),) * 1000),
    "few": Shapes("20 x 64", ((64,),) * 20),
    "policy": Shapes("policy of 14 tensors", _policy()),
}
_EVERY_SIZE = ("SGD", "SGD momentum", "AdamW", "AdamW amsgrad")


def default_shapes(optimizer: str) -> list[Shapes]:
    """The default shapes of an optimizer: all sizes for the most common ones, a large and a small one for others."""
    if optimizer == "Muon":
        names = ["matrices", "small-matrices"]
    elif optimizer == "Adafactor":
        names = ["resnet50", "matrices", "small"]
    else:
        names = ["big", "small", "tiny", "few"] if optimizer in _EVERY_SIZE else ["big", "small"]
    return [SHAPES[name] for name in names]


def shapes_of(text: str) -> Shapes:
    """The shapes of a name, or of ``module:attribute``: a module, a callable that returns one, or a list of shapes.

    Raises:
        ValueError: the name is unknown, or the attribute does not exist or is something else.
    """
    if text in SHAPES:
        return SHAPES[text]
    name, colon, attribute = text.partition(":")
    if not colon or not name or not attribute:
        raise ValueError(f"expected one of {', '.join(SHAPES)} or package.module:attribute, got {text!r}")
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, SyntaxError) as e:
        raise ValueError(f"{text!r} cannot be imported: {e}") from e
    if callable(found) and not isinstance(found, torch.nn.Module):
        try:
            found = found()
        except Exception as e:
            raise ValueError(f"calling {text!r} without arguments raised {type(e).__name__}: {e}") from e
    shapes = _shapes(found)
    if not shapes:
        raise ValueError(
            f"{text!r} is a {type(found).__name__}: expected a torch.nn.Module that has parameters, a function or "
            "class that returns one, or a list of shapes"
        )
    return Shapes(text, shapes)


def _shapes(found: Any) -> tuple[Shape, ...]:
    """The shapes of a module's parameters or of a list; empty for anything else."""
    if isinstance(found, torch.nn.Module):
        return tuple(tuple(p.shape) for p in found.parameters() if p.requires_grad)
    try:
        shapes = tuple((s,) if isinstance(s, int) else tuple(map(int, s)) for s in found)
    except (TypeError, ValueError):
        return ()
    return shapes if all(n > 0 for shape in shapes for n in shape) else ()
