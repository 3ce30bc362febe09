"""Hyperparameters with which Python or torch cannot compute raise torch's exception before any write."""

import copy
import functools
import itertools
import math
import random
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from configurations import IN_TABLES, class_of, for_loop_flags, oracle_of
from rows import kind_named
from torch import Tensor
from torch.nn import Parameter

import goptim
import goptim.hf
from goptim.testing import ieee_sqrt

OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)

INF, NAN = math.inf, math.nan
VALUES = [0.0, 1.0, -1.0, 1e39, -1e39, 1e200, 1e-320, INF, -INF, NAN]

# Arguments with which numeric arguments are tested, if they have an effect on the formulas of scalars.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "Adam": [{}, {"weight_decay": 0.1, "amsgrad": True}],
    "AdamW": [{}, {"weight_decay": 0}],
    "Adagrad": [{}, {"lr_decay": 0.1}],
    "Adafactor": [{"eps": (1e-5, 1e-3)}, {"weight_decay": 0.1}],
    "ASGD": [{}, {"t0": 1}],
    "NAdam": [{}, {"decoupled_weight_decay": True, "weight_decay": 0.1}],
    "RAdam": [{}, {"decoupled_weight_decay": True, "weight_decay": 0.1, "betas": (0.9, 0.3)}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True}, {"centered": True}],
}


def numeric(name: str) -> tuple[str, ...]:
    """The numeric arguments of a class that a step reads, or tuples of them."""
    kind = kind_named(name)
    keys = dict.fromkeys(scalar.partition("[")[0] for scalar in kind["scalars"])
    # A clip_exp that is not finite falls back to torch.
    return tuple(key for key in keys if key not in kind["flags"] and key != "clip_exp")


def places(group: dict[str, Any], keys: tuple[str, ...]) -> list[tuple[str, int | None]]:
    """A group's numeric arguments: the key, and an index if it is a tuple."""
    found: list[tuple[str, int | None]] = []
    for key in keys:
        if isinstance(group[key], tuple):
            found += [(key, i) for i, x in enumerate(group[key]) if x is not None]
        else:
            found.append((key, None))
    return found


def put(group: dict[str, Any], place: tuple[str, int | None], x: float) -> None:
    key, i = place
    if i is None:
        group[key] = x
    else:
        group[key] = tuple(x if k == i else y for k, y in enumerate(group[key]))


def gradients(opt: torch.optim.Optimizer, step: int, kind: "Kind") -> None:
    for i, p in enumerate(p for group in opt.param_groups for p in group["params"]):
        generator = torch.Generator().manual_seed(100 * step + i)
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        if kind.sparse:
            rows = torch.randint(max(p.shape[0], 1), (min(kind.rows, p.shape[0]),), generator=generator)
            p.grad = torch.sparse_coo_tensor(rows[None], p.grad[: len(rows)], p.shape, check_invariants=False)


def build(kind: "Kind", cls: type, options: dict[str, Any], dtype: torch.dtype, steps: int) -> torch.optim.Optimizer:
    """An optimizer with two groups after some steps. The second group is to be corrupted."""
    groups = [
        [Parameter(torch.linspace(-2, 2, math.prod(s)).reshape(s).to(dtype)) for s in group] for group in kind.shapes
    ]
    opt: torch.optim.Optimizer = cls([{"params": group} for group in groups], **options)
    for step in range(steps):
        gradients(opt, step, kind)
        opt.step()
    gradients(opt, steps, kind)
    return opt


def everything(opt: torch.optim.Optimizer) -> list[Tensor]:
    """Everything that a step writes. A failed first step may leave an initial state."""
    params = [p for group in opt.param_groups for p in group["params"]]
    states = [t for p in params for t in opt.state.get(p, {}).values() if isinstance(t, Tensor)]
    return [t.detach().clone() for t in (*params, *states)]


def same(xs: list[Tensor], ys: list[Tensor]) -> bool:
    return len(xs) == len(ys) and all(
        torch.equal(x.nan_to_num(7, 8, 9), y.nan_to_num(7, 8, 9)) for x, y in zip(xs, ys, strict=True)
    )


def attempt(opt: torch.optim.Optimizer) -> str | None:
    try:
        opt.step()
    except Exception as e:
        return type(e).__name__
    return None


def compare(
    kind: "Kind", options: dict[str, Any], dtype: torch.dtype, steps: int, spoil: list[tuple[Any, float]]
) -> str:
    """The difference from torch; empty if there is none."""
    ours, theirs = (build(kind, cls, options, dtype, steps) for cls in (kind.ours, kind.theirs))
    good = copy.deepcopy({k: v for k, v in ours.param_groups[1].items() if k != "params"})
    for opt in (ours, theirs):
        for place, x in spoil:
            put(opt.param_groups[1], place, x)
    before = everything(ours)
    expected, got = attempt(theirs), attempt(ours)
    if expected == "KeyError":  # the state of another momentum
        return "" if got else "goptim takes what torch does not"
    if expected != got:
        return f"torch: {expected}, goptim: {got}"
    if expected is None:
        values = dict(spoil)
        if OLD and (math.isinf(values.get(("lr", None), 0)) or math.isnan(values.get(("eps", 0), 0))):
            return ""  # torch 2.6 multiplies by 1 - inf * 0, and clamps differently with NaN
        return "" if not kind.exact or same(everything(ours), everything(theirs)) else "other bits"
    if not same(before, everything(ours)[: len(before)]):
        return f"written in spite of {expected}"
    for opt in (ours, theirs := build(kind, kind.theirs, options, dtype, steps)):
        opt.param_groups[1].update(good)
        attempt(opt)
    return "" if same(everything(ours), everything(theirs)) else f"another step than torch's after {expected}"


# Element types, numbers of steps before the one with an error, and of how many cases one is tested: in the core, each
# case is tested after one of these numbers of steps.
WHEN = pytest.mark.parametrize(
    ("dtype", "steps", "of"),
    [
        (torch.float32, (0, 5), 3),
        (torch.float64, (1,), 3),
        pytest.param(torch.float32, (0, 5), 1, marks=pytest.mark.full),
        pytest.param(torch.float64, (1,), 1, marks=pytest.mark.full),
    ],
    ids=["float32-0,5", "float64-1", "float32-all", "float64-all"],
)


@WHEN
@pytest.mark.parametrize("name", IN_TABLES)
def test_errors_are_torchs(name: str, dtype: torch.dtype, steps: tuple[int, ...], of: int) -> None:
    kind = Kind(class_of(name), functools.partial(oracle_of(name), **for_loop_flags(name)))
    keys = tuple(key for key in numeric(name) if key not in ("k", "step"))  # counts, which are never floats
    check(kind, keys, VARIANTS.get(name, [{}]), dtype, steps, of)


@WHEN
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
def test_sparse_errors_are_torchs(name: str, dtype: torch.dtype, steps: tuple[int, ...], of: int) -> None:
    keys = {"SGD": ("lr",), "Adagrad": ("lr", "lr_decay", "eps"), "SparseAdam": ("lr", "betas", "eps")}[name]
    shapes = [[(3, 5), (17, 2)], [(4, 3), (9, 1)]]
    kind = Kind(class_of(name), getattr(torch.optim, name), shapes, sparse=True)
    check(kind, keys, [{}], dtype, steps, of)
    for second, rows in (((4, 3), 0), ((4, 3, 2), 0), ((0, 3), 0), ((4, 0), 0), ((4, 0), 3)):  # without elements
        empty = kind._replace(shapes=[[(3, 5)], [second]], rows=rows)
        check(empty, keys, [{}], dtype, steps, of, [-1.0, -0.25, 1e39, NAN])


@WHEN
def test_muons_errors_are_torchs(dtype: torch.dtype, steps: tuple[int, ...], of: int) -> None:
    muon = pytest.importorskip("goptim.muon").Muon
    kind = Kind(muon, torch.optim.Muon, [[(3, 5), (7, 2)], [(4, 3), (3, 4)]])
    keys = ("lr", "momentum", "weight_decay", "eps", "ns_coefficients")
    check(kind, keys, [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"}], dtype, steps, of)


def test_muon_of_nothing() -> None:
    kind = Kind(pytest.importorskip("goptim.muon").Muon, torch.optim.Muon, [[(3, 5)], [(3, 4), (3, 0)]])
    ours, theirs = (build(kind, cls, {}, torch.float32, 0) for cls in (kind.ours, kind.theirs))
    before = everything(ours)
    assert attempt(ours) == attempt(theirs) == "ZeroDivisionError"
    assert same(before, everything(ours)[: len(before)])


@WHEN
def test_errors_are_transformers(dtype: torch.dtype, steps: tuple[int, ...], of: int) -> None:
    theirs = pytest.importorskip("transformers.optimization").Adafactor
    keys = ("eps", "clip_threshold", "decay_rate", "weight_decay")
    own = {"relative_step": False, "lr": 1e-2}
    check(
        Kind(goptim.hf.Adafactor, theirs), keys, [{}, {"scale_parameter": False, "weight_decay": 0.1}], dtype, steps, of
    )
    options = own | {"beta1": 0.9, "weight_decay": 0.1}
    check(Kind(goptim.hf.Adafactor, theirs), ("lr", "beta1", *keys), [options], dtype, steps, of)


class Kind(NamedTuple):
    """An optimizer and torch's counterpart, and their parameters."""

    ours: Any
    theirs: Any
    shapes: Sequence[Sequence[tuple[int, ...]]] = (((3, 5), (17,)), ((4, 3), (9,)))
    sparse: bool = False
    exact: bool = True
    rows: int = 3  # of a sparse gradient


def check(
    kind: Kind,
    keys: tuple[str, ...],
    variants: list[dict[str, Any]],
    dtype: torch.dtype,
    steps_before: Sequence[int],
    of: int,
    values: Sequence[float] = VALUES,
) -> None:
    chance = random.Random(1)
    wrong = []
    with warnings.catch_warnings(), ieee_sqrt():
        warnings.simplefilter("ignore")
        for options in variants:
            group = kind.theirs([Parameter(torch.ones(1, 1, dtype=dtype))], **options).param_groups[0]
            found = places(group, keys)
            cases = [[(place, x)] for place in found for x in values]
            pairs = itertools.combinations(found, 2)
            two = [[(a, x), (b, y)] for a, b in pairs for x in values for y in values]
            cases += chance.sample(two, min(20, len(two)))
            for steps in steps_before:
                for spoil in cases[steps % of :: of]:
                    difference = compare(kind, options, dtype, steps, spoil)
                    if difference:
                        wrong.append(f"{options} after {steps} steps, {spoil}: {difference}")
    assert not wrong, f"{len(wrong)} cases:\n" + "\n".join(wrong[:40])
