"""The parity table: one row per optimizer, with every combination of its flags. Add a row for a new optimizer.

Below it: what each is compared with, and parameters and gradients for the configurations, the same in every run.
"""

import functools
import inspect
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import goptim
from goptim import _for_loop
from goptim._step import GoStep

# The optimizers that torch.optim does not have, except AMSGrad, and all that torch.optim or goptim has.
BEYOND = [*_for_loop.CLASSES]
CLASSES = {name: getattr(goptim, name) for name in (*torch.optim.__all__, *BEYOND)}

# The optimizers that Go steps with a table of rows, and those of them that are elementwise.
IN_TABLES = [name for name, c in CLASSES.items() if isinstance(c, type) and issubclass(c, GoStep)]
# These take nothing but sparse gradients, and nothing but matrices: test_sparse.py, test_muon.py.
IN_TABLES = [name for name in IN_TABLES if name not in ("SparseAdam", "Muon")]
ELEMENTWISE = [name for name in IN_TABLES if getattr(goptim, name).elementwise]

FLAG = [False, True]
ADAM = [
    {
        "lr": 0.0123,
        "weight_decay": [0, 0.037],
        "betas": [(0.9, 0.999), (0.2, 0.95)],
        "amsgrad": FLAG,
        "maximize": FLAG,
    },
    {"betas": (0.5, 0.807)},  # (1 - 0.807**5) ** 0.5 differs from the square root, in C and Python
    {"betas": (0.5 + 1e-9, 0.9)},  # 1 - beta1 is less than 0.5 in float64, but not in float32
    {"betas": (0.0, 0.0), "eps": 0},
    {"lr": 3, "eps": 1e-3, "weight_decay": 0.3},  # 1 - lr * weight_decay depends on the rounding of the product
    {"lr": 0.0, "amsgrad": True},
]

# An optimizer's arguments, where a list has values to combine with all others; then some unusual configurations, as
# changes of the default one, which has the first of all values.
ROWS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "momentum": [0, 0.9],
            "nesterov": FLAG,
            "dampening": [0, 0.3],
            "maximize": FLAG,
        },
        {"lr": 1, "momentum": 0.9, "dampening": 1},
        {"lr": 1e3, "momentum": 2.5, "dampening": -0.5, "maximize": True},
        {"lr": 0.0, "momentum": 1, "weight_decay": 1},
    ],
    "Adam": [ADAM[0] | {"decoupled_weight_decay": FLAG}, *ADAM[1:]],
    "AdamW": ADAM,
    "AMSGrad": [{k: v for k, v in ADAM[0].items() if k != "amsgrad"}, *ADAM[1:-1]],
    "Adagrad": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "lr_decay": [0, 0.11],
            "initial_accumulator_value": [0, 0.3],
            "maximize": FLAG,
        },
        {"eps": 0, "initial_accumulator_value": 1e-3},
        {"lr": 0.0},
    ],
    "Adafactor": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "beta2_decay": [-0.8, -0.3],
            "eps": [(None, 1e-3), (1e-3, 0.1)],
            "d": [1.0, 1.7],
            "maximize": FLAG,
        },
        {"eps": (1e-30, 0)},
        {"eps": (0, 0), "lr": 3, "weight_decay": 0.3},
        {"lr": 0.0},
    ],
    "Adadelta": [
        {"lr": 0.123, "weight_decay": [0, 0.037], "rho": [0.9, 0.3], "maximize": FLAG},
        {"rho": 0, "eps": 1e-3},
        {"rho": 1, "eps": 0.1, "lr": 1},
    ],
    "Adamax": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "betas": [(0.9, 0.999), (0.2, 0.95)], "maximize": FLAG},
        {"betas": (0.5 + 1e-9, 0.9), "eps": 1e-3},
        {"betas": (0.0, 0.0)},
        {"lr": 0.0},
    ],
    "ASGD": [
        {
            "lr": 0.0123,
            "lambd": [1e-4, 0.11],
            "alpha": [0.75, 0.3],
            "t0": [1e6, 4],  # the average begins during the test
            "weight_decay": [0, 0.037],
            "maximize": FLAG,
        },
        {"t0": 0, "lambd": 0},
        {"t0": 2.5, "lambd": 3, "lr": 1.1, "alpha": 0},
    ],
    "Lion": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.99), (0.2, 0.5 + 1e-9)],
            "decoupled_weight_decay": FLAG,
        },
        {"betas": (0.0, 1.0)},
        {"betas": (1.0, 0.0), "lr": 3, "weight_decay": 0.3},
        {"lr": 0.0},
    ],
    "NAdam": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.999), (0.2, 0.95)],
            "momentum_decay": [4e-3, 0.3],
            "decoupled_weight_decay": FLAG,
            "maximize": FLAG,
        },
        {"betas": (0.5 + 1e-9, 0.9), "eps": 1e-3},
        {"betas": (0.0, 0.0), "momentum_decay": 0},
        {"lr": 3, "weight_decay": 0.3, "decoupled_weight_decay": True},
    ],
    "RAdam": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.999), (0.2, 0.95)],  # the rectification begins during the test
            "decoupled_weight_decay": FLAG,
            "maximize": FLAG,
        },
        {"betas": (0.5 + 1e-9, 0.9), "eps": 1e-3},
        {"betas": (0.0, 0.5)},  # the rectification never begins
        {"lr": 3, "weight_decay": 0.3, "decoupled_weight_decay": True},
    ],
    "RMSprop": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "alpha": [0.99, 0.3],
            "momentum": [0, 0.9],
            "centered": FLAG,
            "maximize": FLAG,
        },
        {"alpha": 0.5 + 1e-9, "centered": True, "eps": 1e-3},
        {"alpha": 0, "momentum": 2.5},
    ],
    "Rprop": [
        {"lr": 0.0123, "etas": [(0.5, 1.2), (0.1, 3.7)], "step_sizes": [(1e-6, 50), (5e-3, 0.02)], "maximize": FLAG},
        {"step_sizes": (1.0, 0.1)},  # the smallest is above the largest
        {"lr": 0.0},
    ],
}


# The equivalents in torch.optim of optimizers that it does not have under the same name.
ORACLES = {"AMSGrad": functools.partial(torch.optim.Adam, amsgrad=True)}


def oracle_of(optimizer: str) -> Any:
    """What an optimizer is compared with: torch's class, or the for-loop of one that torch.optim does not have."""
    found = (ORACLES | _for_loop.CLASSES).get(optimizer) or getattr(torch.optim, optimizer, None)
    if found is None:
        raise LookupError(
            f"{optimizer}, a row of tests/configurations.py, is not in torch.optim, and {optimizer}ForLoop is not in "
            f"python/goptim/{optimizer.lower()}.py or not imported by python/goptim/__init__.py"
        )
    return found


def twins(optimizer: str) -> tuple[Any, Any]:
    """torch's class and goptim's."""
    return oracle_of(optimizer), getattr(goptim, optimizer)


def for_loop_flags(optimizer: str) -> dict[str, bool]:
    """The flags that select torch's for-loop, where a class has others."""
    return {flag: False for flag in ("foreach", "fused") if _takes(optimizer, flag)}


@dataclass(frozen=True)
class Configuration:
    """An optimizer's name in goptim and torch.optim, and keyword arguments."""

    optimizer: str
    options: dict[str, Any]
    name: str
    odd: bool = False

    def __str__(self) -> str:
        return self.name

    def ours(self, params: Iterable[Any], **flags: Any) -> torch.optim.Optimizer:
        return getattr(goptim, self.optimizer)(params, **self.options, **flags)

    def torchs(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """torch's optimizer with its for-loop implementation."""
        return oracle_of(self.optimizer)(params, **self.options, **for_loop_flags(self.optimizer))

    def go_takes(self, value: Tensor) -> bool:
        """Whether Go supports a parameter of this shape. torch's Adafactor fails for one without elements."""
        return self.optimizer != "Adafactor" or (value.numel() > 0 and value.is_contiguous())

    def path_flags(self) -> list[str]:
        """The flags that select an implementation in torch, and have no effect in goptim."""
        return [*for_loop_flags(self.optimizer)]


def _takes(optimizer: str, option: str) -> bool:
    return option in inspect.signature(oracle_of(optimizer)).parameters


def _configurations(optimizer: str, arguments: dict[str, Any], *odd: dict[str, Any]) -> Iterator[Configuration]:
    """A row's configurations that torch accepts: the default one first, that with every flag last."""
    if not _takes(optimizer, "decoupled_weight_decay"):  # torch 2.6
        arguments = {k: v for k, v in arguments.items() if k != "decoupled_weight_decay"}
    choices = [[(k, x) for x in (v if isinstance(v, list) else [v])] for k, v in arguments.items()]
    plain, *flagged = map(dict, itertools.product(*choices))
    odds = [plain | changes for changes in odd]
    for options in (plain, *odds, *flagged):
        said = [k if v is True else f"{k}={v}".replace(" ", "") for k, v in options.items() if v != plain.get(k)]
        configuration = Configuration(optimizer, options, "-".join([optimizer, *(said or ["plain"])]), options in odds)
        try:
            configuration.torchs([torch.zeros(1)])
        except ValueError:
            continue
        yield configuration


TABLE = {optimizer: list(_configurations(optimizer, *row)) for optimizer, row in ROWS.items()}
CONFIGURATIONS = [configuration for row in TABLE.values() for configuration in row]

# For tests that are not about flags: the default configuration of every optimizer and that with every flag.
FEW = [row[i] for row in TABLE.values() for i in (0, -1)]


def needs_late_state(optimizer: str) -> None:
    """Skip a test with a parameter that has no state after the constructor, if torch cannot step it."""
    if optimizer == "Adagrad" and "len(state)" not in inspect.getsource(torch.optim.Adagrad._init_group):
        pytest.skip("this torch makes Adagrad's state in the constructor alone")


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Normally distributed values, the same in every run."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def gradients(params: list[Tensor], step: int) -> list[Tensor]:
    """New gradients for a step, with the strides of the parameters and a magnitude that changes between steps."""
    scale = 10.0 ** (step % 3 - 1)
    return [torch.empty_like(p).copy_(normal(p.shape, p.dtype, 100 * step + i) * scale) for i, p in enumerate(params)]
