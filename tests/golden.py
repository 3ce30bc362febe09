"""Writes goptim/testdata/golden.json, from which the Go tests know torch's bits: `python tests/golden.py`.

A case is a configuration's options, under the names of the Go options in lower case, and the parameters after every
step, from torch's for-loop with IEEE square roots. Numbers are bits, in hexadecimal, one after the other. A case with a
shape takes as many of the numbers as that has.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import torch
from configurations import Configuration
from torch import Tensor

from goptim.testing import ieee_sqrt

PATH = Path(__file__).parents[1] / "goptim" / "testdata" / "golden.json"
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"weight_decay": 0.037, "maximize": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "maximize": True}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.037}),
    ("Adam", {"weight_decay": 0.037, "maximize": True}),
    ("Adam", {"weight_decay": 0.037, "amsgrad": True, "betas": (0.2, 0.807)}),
    ("AdamW", {"weight_decay": 0.037, "maximize": True, "eps": 1e-6}),
    ("AdamW", {"weight_decay": 0.037, "amsgrad": True, "betas": (0.8, 0.9)}),
    ("Adagrad", {"weight_decay": 0.037, "lr_decay": 0.11, "maximize": True}),
    ("Adagrad", {"initial_accumulator_value": 0.3, "eps": 1e-6}),
    ("Adadelta", {"weight_decay": 0.037, "rho": 0.3, "maximize": True}),
    ("Adamax", {"weight_decay": 0.037, "betas": (0.2, 0.95), "maximize": True}),
    ("ASGD", {"weight_decay": 0.037, "lambd": 0.11, "t0": 2, "alpha": 0.3, "maximize": True}),
    ("NAdam", {"weight_decay": 0.037, "momentum_decay": 0.3, "maximize": True}),
    ("NAdam", {"weight_decay": 0.037, "momentum_decay": 4e-3, "decoupled_weight_decay": True}),
    ("RAdam", {"weight_decay": 0.037, "betas": (0.2, 0.95), "maximize": True}),
    ("RAdam", {"weight_decay": 0.037, "betas": (0.9, 0.999), "decoupled_weight_decay": True}),
    ("RMSprop", {"weight_decay": 0.037, "alpha": 0.3, "maximize": True}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("Rprop", {"etas": (0.1, 3.7), "step_sizes": (5e-3, 0.02), "maximize": True}),
]
SHAPES = [(36,), (4, 9), (2, 1, 18), (9, 2, 2), (36, 1), (2, 18)]
CASES += [("Adafactor", {"weight_decay": 0.037, "d": 1.7, "shape": shape}) for shape in SHAPES]
CASES += [("Adafactor", {"beta2_decay": -0.3, "eps": (1e-3, 0.1), "maximize": True, "shape": (2, 18)})]
STEPS = 6
LENGTH = 37  # two of the widest vectors, and a rest
DTYPES = {"float32": (torch.float32, torch.int32, 8), "float64": (torch.float64, torch.int64, 16)}


def text() -> str:
    """What golden.json holds."""
    uniform = random.Random(1).uniform  # the same in every Python
    start = torch.tensor([uniform(-1, 1) for _ in range(LENGTH)], dtype=torch.float64)
    scales = [10.0 ** (step % 3 - 1) for step in range(STEPS)]
    grads = [torch.tensor([uniform(-s, s) for _ in range(LENGTH)], dtype=torch.float64) for s in scales]
    data: dict[str, Any] = {
        name: {"start": _bits(start, name), "grads": [_bits(g, name) for g in grads]} for name in DTYPES
    }
    data["cases"] = [_case(name, {"lr": 0.0123, **options}, start, grads) for name, options in CASES]
    return json.dumps(data, indent=1) + "\n"


def _case(name: str, options: dict[str, Any], start: Tensor, grads: list[Tensor]) -> dict[str, Any]:
    options = dict(options)
    shape = options.pop("shape", (LENGTH,))
    n = math.prod(shape)
    configuration = Configuration(name, options, name)
    case: dict[str, Any] = {
        "optimizer": configuration.optimizer,
        "options": {k.replace("_", ""): v for k, v in configuration.options.items()},
    }
    if shape != (LENGTH,):
        case["shape"] = shape
    for name, (dtype, _, _) in DTYPES.items():
        p = start[:n].to(dtype, copy=True).view(shape).requires_grad_()
        optimizer = configuration.torchs([p])
        case[name] = []
        for g in grads:
            p.grad = g[:n].to(dtype).view(shape)
            with ieee_sqrt():
                optimizer.step()
            case[name].append(_bits(p, name))
    return case


def _bits(x: Tensor, name: str) -> str:
    dtype, integer, digits = DTYPES[name]
    mask = 16**digits - 1
    return "".join(f"{i & mask:0{digits}x}" for i in x.detach().flatten().to(dtype).view(integer).tolist())


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text())
