"""The parity table: one row per optimizer, with every combination of its flags. Add a row for a new optimizer.

Below it: what each is compared with, and parameters and gradients for the configurations, the same in every run.
"""

import functools
import inspect
import itertools
import operator
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import goptim
from goptim import _for_loop
from goptim._step import GoStep


def class_of(name: str) -> Any:
    """goptim's class of a name, which is TimmLion for goptim.timm.Lion."""
    return operator.attrgetter(_for_loop.name_in_goptim(name))(goptim)


def name_of(cls: type) -> str:
    """The name of a class of torch or goptim in Go's description."""
    return getattr(cls, "name_in_go", cls.__name__)


# The optimizers that torch.optim does not have, except AMSGrad, and all that torch.optim or goptim has.
BEYOND = [*_for_loop.CLASSES]
CLASSES = {name: class_of(name) for name in (*torch.optim.__all__, *BEYOND)}

ARM64 = platform.machine() in ("aarch64", "arm64")

# For tests that compare bits: torch's vector code fuses a product with the sum that uses it.
NEEDS_FMA = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX") and not ARM64,
    reason="torch fuses no products with sums on this CPU",
)
# For tests whose oracle is a fused optimizer of torch. Its code for arm64 also fuses products that it rounds on x86-64.
NEEDS_FUSED = pytest.mark.skipif(ARM64, reason="torch's fused optimizers have other results than its for-loop on arm64")

# Tests of all optimizers step without a call of train.
for _class in _for_loop.CLASSES.values():
    if "train_mode" in _class.entries:
        _class.entries["train_mode"] = True

# The optimizers that Go steps with a table of rows, and those of them that are elementwise.
IN_TABLES = [name for name, c in CLASSES.items() if isinstance(c, type) and issubclass(c, GoStep)]
# These take nothing but sparse gradients, and nothing but matrices: test_sparse.py, test_muon.py.
IN_TABLES = [name for name in IN_TABLES if name not in ("SparseAdam", "Muon")]
ELEMENTWISE = [name for name in IN_TABLES if class_of(name).elementwise]

# In their first step, torch's lerp has the weight 1. The sign of a zero then depends on its position in a tensor.
FULL_LERPS = ("OptimiAdam", "OptimiAdamW", "OptimiAdan", "OptimiRAdam", "StableAdamW")

# These have a state only with momentum.
MOMENTUM = ("SGD", "SGDW", "LARS", "OptimiSGD")

# The first step of these initializes the state, and does not change the parameter.
STARTS_LATE = [name for name in IN_TABLES if class_of(name).__name__ == "ADOPT"]

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
    "SGDW": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "momentum": [0, 0.9], "nesterov": FLAG, "caution": FLAG},
        {"momentum": 0.9, "dampening": 0.3, "maximize": True, "caution": True},
        {"lr": 1.1, "corrected_weight_decay": True, "weight_decay": 0.3, "momentum": 2.5, "dampening": -0.5},
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
    "LAMB": [
        {
            "lr": 0.0123,
            "bias_correction": True,
            "grad_averaging": True,
            "max_grad_norm": 1.0,
            "weight_decay": [0, 0.037],
            "decoupled_decay": FLAG,
            "trust_clip": FLAG,
            "always_adapt": FLAG,
            "caution": FLAG,
        },
        {"betas": (0.2, 0.95), "max_grad_norm": None, "grad_averaging": False, "weight_decay": 0.3},
        {
            "betas": (0.5 + 1e-9, 0.9),
            "eps": 1e-3,
            "bias_correction": False,
            "max_grad_norm": 1e3,
            "weight_decay": 0.037,
        },
        {"lr": 1.1, "weight_decay": 0.3, "decoupled_decay": True, "corrected_weight_decay": True, "max_grad_norm": 0.1},
        {"betas": (0.0, 0.0), "eps": 0, "grad_averaging": False},
    ],
    "LARS": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "momentum": [0, 0.9],
            "nesterov": FLAG,
            "trust_clip": FLAG,
            "always_adapt": FLAG,
        },
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.3, "trust_coeff": 0.7, "eps": 0},
        {"lr": 0.0, "weight_decay": 1, "trust_clip": True},
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
    "AdoptADOPT": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "decouple": FLAG},
        {"betas": (0.2, 0.95), "maximize": True, "weight_decay": 0.037},
        {"betas": (0.5 + 1e-9, 0.9), "eps": 0.1},
    ],
    "TimmLion": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.99), (0.2, 0.5 + 1e-9)],
            "maximize": FLAG,
            "caution": FLAG,
        },
        {"betas": (0.0, 0.5)},
        {"corrected_weight_decay": True, "weight_decay": 0.3, "lr": 3},
    ],
    "ADOPT": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "decoupled": FLAG,
            "caution": FLAG,
        },
        {"betas": (0.2, 0.95), "clip_exp": -0.7, "maximize": True, "weight_decay": 0.037, "caution": True},
        {"clip_exp": None, "betas": (0.5 + 1e-9, 0.9), "eps": 0.1},
        {"corrected_weight_decay": True, "decoupled": True, "weight_decay": 0.3, "lr": 3},
    ],
    "AdEMAMix": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "weight_decouple": FLAG,
            "t_alpha_beta3": [None, 5],  # the averages are slow during the test
            "maximize": FLAG,
        },
        {"betas": (0.2, 0.95, 0.5 + 1e-9), "weight_decouple": True, "fixed_decay": True, "weight_decay": 0.3},
        {"betas": (0.5 + 1e-9, 0.9, 1.0), "eps": 1e-3, "alpha": 0.3},
        {"betas": (0.0, 0.0, 0.0), "eps": 0, "lr": 3},
        {"lr": 0.0, "t_alpha_beta3": 2.5},
    ],
    "BitsandbytesAdEMAMix": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "t_alpha": [None, 5], "t_beta3": [None, 7]},
        {"betas": (0.2, 0.95, 0.5 + 1e-9), "alpha": -0.3, "t_alpha": 2.5, "weight_decay": 0.3},
        {"betas": (0.0, 0.0, 0.0), "eps": 0, "lr": 3},
        {"lr": 0.0},
    ],
    "BitsandbytesLion": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "betas": [(0.9, 0.99), (0.2, 0.5 + 1e-9)]},
        {"betas": (0.0, 0.0), "lr": 3, "weight_decay": 0.3},
        {"lr": 0.0},
    ],
    "Adan": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "no_prox": FLAG, "caution": FLAG},
        {"betas": (0.2, 0.95, 0.5), "weight_decay": 0.037, "caution": True},
        {"betas": (0.5 + 1e-9, 0.9, 0.99), "eps": 1e-3},
        {"betas": (0.0, 0.0, 0.0), "eps": 0, "weight_decay": 0.3, "lr": 3},
        {"lr": 0.0},
    ],
    "LaProp": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "caution": FLAG},
        {"betas": (0.2, 0.95), "weight_decay": 0.3, "caution": True, "corrected_weight_decay": True, "lr": 1.1},
        {"betas": (0.0, 0.0), "eps": 1e-3},
        {"lr": 0.0},
    ],
    "Prodigy": [
        {"d0": 0.0123, "decouple": [True, False], "weight_decay": [0, 0.037], "slice_p": [1, 3]},
        {
            "betas": (0.2, 0.95),
            "beta3": 0.7,
            "use_bias_correction": True,
            "lr": 0.5,
            "d_coef": 3.0,
            "growth_rate": 1.02,
        },
        {"betas": (0.0, 0.9), "safeguard_warmup": True, "weight_decay": 0.3, "decouple": False, "eps": 1e-3},
        {"betas": (0.0, 0.5), "d0": 1e-6, "lr": 3, "weight_decay": 0.3},
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
    "AdamWLegacy": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "amsgrad": FLAG,
            "caution": FLAG,
            "clipping_threshold": [None, 0.9],
        },
        {"betas": (0.2, 0.95), "corrected_weight_decay": True, "weight_decay": 0.3, "maximize": True, "caution": True},
        {"betas": (0.5 + 1e-9, 0.9), "eps": 1e-3, "clipping_threshold": 0.3, "maximize": True},
        {"betas": (0.0, 0.0), "eps": 0, "clipping_threshold": 1e3, "caution": True},
    ],
    "NAdamW": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "maximize": FLAG,
            "caution": FLAG,
            "clipping_threshold": [None, 0.9],
        },
        {"betas": (0.2, 0.95), "weight_decay": 0.037, "caution": True, "corrected_weight_decay": True, "lr": 1.1},
        {"betas": (0.5 + 1e-9, 0.9), "eps": 1e-3},
        {"betas": (0.0, 0.0), "eps": 0},
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
    "AdamWScheduleFree": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.999), (0.3, 0.95)],
            "warmup_steps": [0, 5],
            "r": [0.0, 0.7],
        },
        {"betas": (0.0, 0.0), "eps": 0, "weight_lr_power": 0.5},
        {"lr": 3, "eps": 1e-3, "weight_decay": 0.3, "weight_lr_power": 0, "r": 2, "warmup_steps": 2.5},
        {"lr": 0.0},  # ck is 0, since all weights are
    ],
    "SGDScheduleFree": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "momentum": [0.9, 0.3], "warmup_steps": [0, 5], "r": [0.0, 0.7]},
        {"lr": 1.7, "weight_decay": 0.3, "weight_lr_power": 0, "r": 2, "warmup_steps": 2.5},
        {"lr": 0.0},
    ],
    "RAdamScheduleFree": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.999), (0.3, 0.95)],  # the rectification begins during the test
            "r": [0.0, 0.7],
            "silent_sgd_phase": [True, False],
        },
        {"betas": (0.0, 0.5), "eps": 1e-3, "silent_sgd_phase": False},  # the rectification never begins
        {"lr": 3, "weight_decay": 0.3, "weight_lr_power": 0, "r": 2},
    ],
    "StableAdamW": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.99), (0.2, 0.95)],
            "decouple_lr": FLAG,
        },
        {"betas": (0.5 + 1e-9, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        {"betas": (0.0, 0.0), "eps": 1.0, "lr": 3},
        {"lr": 0.0123, "max_lr": 0.7, "decouple_lr": True, "weight_decay": 0.3},
    ],
    "OptimiAdam": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.99), (0.2, 0.95)],
            "decouple_wd": FLAG,
            "decouple_lr": FLAG,
        },
        {"betas": (0.5 + 1e-9, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        {"betas": (0.0, 0.0), "eps": 1.0, "lr": 3},
        {"max_lr": 0.7, "decouple_lr": True, "weight_decay": 0.3},
        {"lr": 0.5, "decouple_wd": True, "weight_decay": 2.0},  # the factor of the parameter is 0, so it is not used
    ],
    "OptimiAdamW": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.99), (0.2, 0.95)],
            "decouple_lr": FLAG,
        },
        {"betas": (0.5 + 1e-9, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        {"max_lr": 0.7, "decouple_lr": True, "weight_decay": 0.3},
    ],
    "OptimiLion": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.99), (0.2, 0.5 + 1e-9)],
            "decouple_lr": FLAG,
        },
        {"betas": (0.0, 0.5)},
        {"max_lr": 0.7, "decouple_lr": True, "weight_decay": 0.3, "lr": 3},
        {"lr": 0.5, "weight_decay": 2.0},  # the factor of the parameter is 0, so it is not used
    ],
    "OptimiSGD": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "momentum": [0, 0.9],
            "dampening": FLAG,
            "decouple_wd": FLAG,
            "decouple_lr": FLAG,
        },
        {"momentum": 0.3, "dampening": True, "torch_init": True, "weight_decay": 0.3},
        {"momentum": 0.9, "dampening": True, "torch_init": True, "decouple_wd": True, "weight_decay": 0.3},
        {"momentum": 0.5 + 1e-9, "dampening": True},
        {"dampening": True, "torch_init": True, "weight_decay": 0.3},  # a state that is not used
        {"momentum": 0.3, "max_lr": 0.7, "decouple_lr": True, "weight_decay": 0.3, "torch_init": True},
        {"lr": 0.5, "decouple_wd": True, "weight_decay": 2.0},  # the factor of the parameter is 0, so it is not used
    ],
    "OptimiRAdam": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "betas": [(0.9, 0.99), (0.2, 0.95)],  # the rectification begins during the test
            "decouple_wd": FLAG,
            "decouple_lr": FLAG,
        },
        {"betas": (0.5 + 1e-9, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        {"betas": (0.0, 0.5)},  # the rectification never begins
        {"max_lr": 0.7, "decouple_lr": True, "weight_decay": 0.3},
    ],
    "OptimiAdan": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "decouple_lr": FLAG},
        {"betas": (0.2, 0.95, 0.5), "weight_decay": 0.037},
        {"betas": (0.5 + 1e-9, 0.9, 0.99), "eps": 1e-3, "adam_wd": True, "weight_decay": 0.3},
        {"betas": (0.0, 0.5 + 1e-9, 0.0), "eps": 1.0, "weight_decay": 0.3, "lr": 3},
        {"max_lr": 0.7, "decouple_lr": True, "weight_decay": 0.3},
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
    "RMSpropTF": [
        {
            "lr": 0.0123,
            "weight_decay": [0, 0.037],
            "momentum": [0, 0.9],
            "centered": FLAG,
            "lr_in_momentum": [True, False],
            "caution": FLAG,
        },
        {"alpha": 0.3, "weight_decay": 0.037, "decoupled_decay": True, "corrected_weight_decay": True, "lr": 1.1},
        {"alpha": 0.3, "momentum": 0.5, "eps": 1e-3, "caution": True, "decoupled_decay": True, "weight_decay": 0.3},
    ],
    "RMSpropTFLike": [
        {"lr": 0.0123, "weight_decay": [0, 0.037], "momentum": [0, 0.9], "centered": FLAG},
        {"alpha": 0.3, "momentum": 0.5, "eps": 1e-3, "centered": True},
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


def both_classes(optimizer: str) -> tuple[Any, Any]:
    """torch's class and goptim's."""
    return oracle_of(optimizer), class_of(optimizer)


def that_fall_back(optimizer: Any, params: list[Any]) -> list[Any]:
    """Parameters, of which complex ones become real ones with gaps for a class, or its name, that rejects them."""
    return params if accepts_complex(optimizer) else [_with_gaps(p) if p.is_complex() else p for p in params]


def accepts_complex(optimizer: Any) -> bool:
    """Whether a class, or that of a name, accepts complex parameters."""
    return getattr(class_of(optimizer) if isinstance(optimizer, str) else optimizer, "complexes", True)


def _with_gaps(p: Tensor) -> Tensor:
    gapped = torch.view_as_real(p.detach()).select(-1, 0)
    return torch.nn.Parameter(gapped) if isinstance(p, torch.nn.Parameter) else gapped


def for_loop_flags(optimizer: str) -> dict[str, bool]:
    """The flags that select torch's for-loop, where a class has others."""
    return {flag: False for flag in ("foreach", "fused") if _has_option(optimizer, flag)}


def in_16_bits(configuration: "Configuration") -> "Configuration":
    """A configuration with which 16-bit parameters run in Go: without the compensation of torch-optimi."""
    if not _has_option(configuration.optimizer, "kahan_sum"):
        return configuration
    return replace(configuration, options={**configuration.options, "kahan_sum": False})


@dataclass(frozen=True)
class Configuration:
    """An optimizer's name in goptim and torch.optim, and keyword arguments."""

    optimizer: str
    options: dict[str, Any]
    name: str
    unusual: bool = False

    def __str__(self) -> str:
        return self.name

    def ours(self, params: Iterable[Any], **flags: Any) -> torch.optim.Optimizer:
        return class_of(self.optimizer)(params, **self.options, **flags)

    def theirs(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """torch's optimizer with its for-loop implementation."""
        return oracle_of(self.optimizer)(params, **self.options, **for_loop_flags(self.optimizer))

    def runs_in_go(self, value: Tensor) -> bool:
        """Whether Go supports a parameter of this layout. torch's Adafactor fails for one without elements."""
        if self.optimizer not in ("Adafactor", "Prodigy"):
            return True
        return value.is_contiguous() and (value.numel() > 0 or self.optimizer == "Prodigy")

    def path_flags(self) -> list[str]:
        """The flags that select an implementation in torch, and have no effect in goptim."""
        return [x for x in for_loop_flags(self.optimizer) if x != "fused" or self.optimizer not in BEYOND]


def _has_option(optimizer: str, option: str) -> bool:
    return option in inspect.signature(oracle_of(optimizer)).parameters


def _configurations(optimizer: str, arguments: dict[str, Any], *unusual: dict[str, Any]) -> Iterator[Configuration]:
    """A row's configurations that torch accepts: the default one first, that with every flag last."""
    if not _has_option(optimizer, "decoupled_weight_decay"):  # torch 2.6
        arguments = {k: v for k, v in arguments.items() if k != "decoupled_weight_decay"}
    choices = [[(k, x) for x in (v if isinstance(v, list) else [v])] for k, v in arguments.items()]
    plain, *flagged = map(dict, itertools.product(*choices))
    variants = [plain | changes for changes in unusual]
    for options in (plain, *variants, *flagged):
        said = [k if v is True else f"{k}={v}".replace(" ", "") for k, v in options.items() if v != plain.get(k)]
        name = "-".join([optimizer, *(said or ["plain"])])
        configuration = Configuration(optimizer, options, name, options in variants)
        try:
            configuration.theirs([torch.zeros(1)])
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
    return [torch.empty_like(p).copy_(_gradient(p.shape, p.dtype, step, i)) for i, p in enumerate(params)]


@functools.lru_cache(maxsize=4096)
def _gradient(shape: tuple[int, ...], dtype: torch.dtype, step: int, i: int) -> Tensor:
    return normal(shape, dtype, 100 * step + i) * 10.0 ** (step % 3 - 1)
