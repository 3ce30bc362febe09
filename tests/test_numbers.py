"""Hyperparameters of other real number types than float: Go computes with float(x) if torch accepts x."""

import operator
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from configurations import IN_TABLES, TABLE, class_of, for_loop_flags, oracle_of
from torch import Tensor
from torch.nn import Parameter

import goptim
from goptim import _originals, _sparse
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = pytest.mark.usefixtures("threads")
every = pytest.mark.parametrize("name", [*IN_TABLES, *(["Muon"] if "Muon" in _originals.CLASSES else [])])


class Real:
    """An object with only __float__, which torch does not accept as a number."""

    def __init__(self, x):
        self.x = x

    def __float__(self):
        return self.x


def params_of(name):
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (4, 6))]


def run(make, numbers, options, steps=7):
    """Take steps with some of the group's values replaced; return parameters and states."""
    generator = torch.Generator().manual_seed(1)
    params = params_of("")
    opt = make(params, **options)
    opt.param_groups[0].update(numbers)
    with ieee_sqrt():
        for _ in range(steps):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            opt.step()
    return params, list(opt.state.values())


def error_of(*args):
    try:
        run(*args)
    except Exception as e:
        return type(e), str(e)


def converted(group, to):
    """All real hyperparameters of a group, converted to another type, and their values as floats."""
    theirs = {}
    for key, x in group.items():
        if isinstance(x, float) or (type(x) is int and key not in ("ns_steps", "slice_p")):
            theirs[key] = to(x)
        elif isinstance(x, tuple) and None not in x:
            theirs[key] = tuple(map(to, x))
    floats = {k: tuple(map(float, x)) if isinstance(x, tuple) else float(x) for k, x in theirs.items()}
    return theirs, floats


def options_of(name):
    return TABLE[name][-1].options if name in TABLE else {}


def torch_optimizer(name):
    return lambda params, **options: oracle_of(name)(params, **options, **for_loop_flags(name))


NUMPY = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "longdouble": np.longdouble,
    "array of no dimensions": np.array,
}


@every
@pytest.mark.parametrize("of", NUMPY)
@pytest.mark.covering("of", "name")
def test_numpy_scalars(name, of, watched):
    """Every hyperparameter at once: torch's exact results with the same values as floats."""
    ours, theirs = class_of(name), torch_optimizer(name)
    group = ours(params_of(name), **options_of(name)).param_groups[0]
    numbers, floats = converted({k: v for k, v in group.items() if k != "params"}, NUMPY[of])
    assert "lr" in numbers
    refused = error_of(theirs, numbers, options_of(name))
    if refused is not None:
        assert error_of(ours, numbers, options_of(name)) == refused
        assert name == "Rprop" or of in ("longdouble", "array of no dimensions")
        return
    watched.clear()
    actual = run(ours, numbers, options_of(name))
    assert watched == [(2, [])] * 7
    assert_bit_equal(actual, run(theirs, floats, options_of(name)))


@pytest.fixture
def watched(monkeypatch):
    """The parameters in Go of each step, and the reasons why others fell back."""
    from goptim import _parts

    seen = []
    monkeypatch.setattr(_parts, "watch", lambda opt, n, reasons: seen.append((n, reasons)))
    return seen


@every
@pytest.mark.parametrize(
    "make", [Fraction, Decimal, Real, np.int64, np.bool_, str, lambda x: None], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("which", ["lr", "weight_decay"])
@pytest.mark.covering("make which", "name which")
def test_other_types_are_supported_if_torch_accepts_them(name, make, which, watched):
    """One hyperparameter at a time: torch's error, or the exact result with the float."""
    if which not in class_of(name)(params_of(name)).defaults:
        pytest.skip(f"it has no {which}")
    value = make(1) if which == "lr" else make(0.25) if make not in (np.int64, np.bool_) else make(1)
    errors = []
    for optimizer in (torch_optimizer(name), class_of(name)):
        try:
            outcome = run(optimizer, {which: value}, {})
            errors.append(None)
        except Exception as e:
            errors.append((type(e), str(e)))
    assert errors[1] == errors[0]
    if errors[0] is None:
        assert watched[-1] == (2, [])
        assert_bit_equal(outcome, run(torch_optimizer(name), {which: float(value)}, {}))


@every
def test_sequences_of_other_types(name, watched):
    """Pairs as lists, arrays and tuples of NumPy scalars."""
    group = class_of(name)(params_of(name)).param_groups[0]
    pairs = {k: v for k, v in group.items() if isinstance(v, tuple) and None not in v}
    for make in (list, np.array, lambda x: [np.float32(y) for y in x]):
        numbers = {k: make(v) for k, v in pairs.items()}
        floats = {k: tuple(map(float, v)) for k, v in numbers.items()}
        if (refused := error_of(torch_optimizer(name), numbers, {})) is not None:
            assert name == "Rprop"  # torch assigns them to elements
            assert error_of(class_of(name), numbers, {}) == refused
            continue
        watched.clear()
        actual = run(class_of(name), numbers, {})
        assert watched == [(2, [])] * 7
        assert_bit_equal(actual, run(torch_optimizer(name), floats, {}))


def test_constructors():
    """A constructor accepts what torch's accepts, with the same errors."""
    for lr in (np.float32(1e-2), np.float64(1e-2), np.int64(1), Fraction(1, 100), -np.float32(1), "x"):
        for kwargs in ({"lr": lr}, {"lr": 0.1, "weight_decay": lr}):
            outcomes = []
            for cls in (torch.optim.AdamW, goptim.AdamW):
                try:
                    outcomes.append(repr(cls([torch.ones(2)], **kwargs)))
                except Exception as e:
                    outcomes.append((type(e), str(e)))
            assert outcomes[0] == outcomes[1]


def test_a_tensor_falls_back(watched):
    run(goptim.AdamW, {"lr": torch.tensor(0.1)}, {})
    assert {n for n, _ in watched} == {0}
    assert "lr is a Tensor" in watched[0][1][0]


@pytest.mark.parametrize("lr", [-(1 << 63) - 1, -(1 << 63), (1 << 63) - 1, 1 << 63])
def test_integers_around_64_bits(lr, watched):
    """torch computes with larger integers too if it negates them."""
    assert_bit_equal(run(goptim.SGD, {"lr": lr}, {}), run(torch_optimizer("SGD"), {"lr": lr}, {}))
    assert watched == [(2, [])] * 7


def test_an_invalid_value_is_tried_again(watched):
    """The result is cached by type, and an error for a value applies only to that value."""
    with pytest.raises(RuntimeError, match="overflow"):
        run(goptim.SGD, {"lr": np.longdouble(1e39)}, {})
    run(goptim.SGD, {"lr": np.longdouble(0.1)}, {})
    assert watched[-1] == (2, [])


def test_an_integer_after_a_larger_one():
    """Whether torch accepts an integer beyond 64 bits depends on its value."""
    for base in (goptim.SGD, torch_optimizer("SGD")):
        run(base, {"lr": 1 << 63}, {})
        with pytest.raises((OverflowError, RuntimeError)):
            run(base, {"lr": (1 << 63) + 1}, {})


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients(name, monkeypatch, go):
    calls = []
    call = _sparse._call
    monkeypatch.setattr(_sparse, "_call", lambda *args: calls.append(call(*args)))
    runs = []
    for optimizer, lr in (
        (getattr(torch.optim, name), float(np.float32(0.1))),
        (class_of(name), np.float32(0.1)),
    ):
        p = Parameter(torch.ones(5, 3))
        opt = optimizer([p])
        opt.param_groups[0]["lr"] = lr
        with ieee_sqrt():
            for i in range(3):
                p.grad = torch.sparse_coo_tensor(
                    torch.tensor([[i]]), torch.ones(1, 3) * i, (5, 3), check_invariants=False
                )
                opt.step()
        runs.append((p, dict(opt.state[p])))
    assert_bit_equal(*runs)
    assert len(calls) + sum(go) == 3  # read by Python and by gather.c


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs(search, watched):
    numbers = {
        "lr": np.float32(0.3), "tolerance_grad": np.float64(1e-7), "tolerance_change": np.float32(1e-9),
        "max_iter": np.int64(6), "max_eval": np.int32(9), "history_size": np.int64(4),
    }  # fmt: skip
    plain = {k: int(x) if isinstance(x, np.integer) else float(x) for k, x in numbers.items()}
    runs = []
    for options in (numbers, plain):
        p = Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64))
        opt = goptim.LBFGS([p], line_search_fn=search, **options)

        def closure(p=p):
            p.grad = p.detach() ** 3 + p.detach()
            return float((p.detach() ** 4 / 4 + p.detach() ** 2 / 2).sum())

        for _ in range(3):
            opt.step(closure)
        runs.append((p, dict(opt.state[p])))
    assert_bit_equal(*runs)
    assert watched == [(1, [])] * 6


def test_lbfgs_with_what_torch_rejects():
    for options in ({"lr": Fraction(1, 2)}, {"lr": Real(0.5)}, {"tolerance_change": Decimal(1)}, {"max_iter": 2.5}):
        errors = []
        for cls in (torch.optim.LBFGS, goptim.LBFGS):
            p = Parameter(torch.ones(2))
            opt = cls([p])
            opt.param_groups[0].update(options)

            def closure(p=p):
                p.grad = 2 * p.detach()
                return float(p.detach().square().sum())

            try:
                opt.step(closure)
                errors.append(None)
            except TypeError as e:
                errors.append(str(e))
        assert errors[0] == errors[1], options


def test_hf_adafactor(watched):
    floats = {"lr": float(np.float32(1e-3)), "clip_threshold": 1.5, "decay_rate": float(np.float32(-0.8)), "beta1": 0.5}
    fixed = {"relative_step": False, "lr": 1e-3, "beta1": 0.9}
    expected = run(goptim.hf.Adafactor, floats, fixed)
    numbers = {k: np.float32(x) for k, x in floats.items()} | {"eps": np.array([1e-30, 1e-3])}
    assert_bit_equal(run(goptim.hf.Adafactor, numbers, fixed), expected)
    assert watched == [(2, [])] * 14


def test_explain(watched):
    opt = goptim.AdamW(params_of(""))
    opt.param_groups[0]["lr"] = np.float32(0.1)
    assert {row.to for row in goptim.explain(opt)} == {"go"}
    assert not isinstance(opt.param_groups[0]["lr"], (float, Tensor))  # the group keeps the original value
    assert operator.index(len(opt.state)) == 0
