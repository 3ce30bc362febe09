"""A run continues exactly from its saved state, in the other library and in a copy of the optimizer."""

import copy
import io
import pickle

import pytest
import torch
from configurations import CONFIGURATIONS, FEW, both_classes, gradients, normal
from torch import Tensor

import goptim
from goptim import _for_loop
from goptim.testing import assert_bit_equal

HALF = 5
SHAPES = ((1,), (17,), (8, 5))


@pytest.fixture(autouse=True)
def ieee_sqrt():
    with goptim.testing.ieee_sqrt():
        yield


def _start() -> list[Tensor]:
    return [normal(shape, torch.float32, i).requires_grad_() for i, shape in enumerate(SHAPES)]


def _run(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: range) -> None:
    for step in steps:
        for p, g in zip(params, gradients(params, step), strict=True):
            p.grad = g
        optimizer.step()


def _through_a_file(x, *, weights_only=True):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def _finish_in(package, configuration, params, state_dict):
    """Continue a run from its parameters and a saved state, and return the result."""
    params = [p.detach().clone().requires_grad_() for p in params]
    optimizer = getattr(configuration, package)(params)
    optimizer.load_state_dict(state_dict)
    _run(optimizer, params, range(HALF, 2 * HALF))
    return params, optimizer.state_dict()["state"]


@pytest.mark.parametrize("name", _for_loop.CLASSES)
@pytest.mark.parametrize("how", ["load_state_dict", "pickle"])
def test_state_of_a_version_without_options(name, how):
    """Options that a saved group does not have are off, as in other packages' classes."""
    for cls in both_classes(name):
        params = [p for p in _start() if p.ndim]
        optimizer = cls(params)
        new = dict(optimizer.param_groups[0])
        _run(optimizer, params, range(2))
        expected = [dict(group) for group in optimizer.param_groups]
        kept = {key: value for key, value in expected[0].items() if value is new.get(key, 0)}
        off = [key for key, value in kept.items() if value is None or value is False]
        off += ["max_lr_snapshot"] * ("max_lr_snapshot" in expected[0])
        for group in optimizer.param_groups:
            for key in off:
                del group[key]
        if how == "pickle":
            restored = pickle.loads(pickle.dumps(optimizer))
            params = restored.param_groups[0]["params"]
        else:
            flags = {key: True for key in off if key in ("caution", "nesterov", "maximize", "decouple_lr")}
            flags |= {"momentum": 0.9} if "nesterov" in flags else {}
            restored = cls(params, **flags)
            restored.load_state_dict(optimizer.state_dict())
        found = [dict(group) for group in restored.param_groups]
        assert [{**group, "params": 0} for group in found] == [{**group, "params": 0} for group in expected]
        _run(restored, params, range(2, 3))


@pytest.mark.parametrize(("one", "other"), [("ours", "theirs"), ("theirs", "ours")])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
@pytest.mark.covering
def test_other_library_continues(configuration, one, other):
    params = _start()
    optimizer = getattr(configuration, one)(params)
    _run(optimizer, params, range(HALF))
    ours, theirs = (
        _finish_in(package, configuration, params, _through_a_file(optimizer.state_dict())) for package in (one, other)
    )
    assert_bit_equal(theirs, ours)
    _run(optimizer, params, range(HALF, 2 * HALF))
    assert_bit_equal(theirs, (params, optimizer.state_dict()["state"]))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "torch.save": lambda x: _through_a_file(x, weights_only=False),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("configuration", FEW, ids=str)
@pytest.mark.covering(1)
def test_copied_optimizer_continues(configuration, duplicate):
    params = _start()
    optimizer = configuration.ours(params)
    _run(optimizer, params, range(HALF))
    other_params, other = duplicate((params, optimizer))
    assert type(other) is type(optimizer)
    assert_bit_equal(other.state_dict(), optimizer.state_dict())
    _run(other, other_params, range(HALF, 2 * HALF))
    _run(optimizer, params, range(HALF, 2 * HALF))
    assert_bit_equal(other_params, params)
    assert_bit_equal(other.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("number", [int, float])
@pytest.mark.parametrize("configuration", FEW, ids=str)
@pytest.mark.covering(1)
def test_step_that_is_a_number(configuration, number):
    """A step count as a Python number, as saved by torch before 1.12."""
    params = _start()
    optimizer = configuration.theirs(params)
    _run(optimizer, params, range(HALF))
    old = copy.deepcopy(optimizer.state_dict())
    for state in old["state"].values():
        if "step" in state:
            state["step"] = number(state["step"])
    assert_bit_equal(
        *(_finish_in(package, configuration, params, copy.deepcopy(old)) for package in ("ours", "theirs"))
    )
