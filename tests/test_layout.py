"""The experiment by which goptim learns where torch keeps what of a tensor, and what becomes of one that fails.

That gather.c then reads what torch says is tests/test_gather.py's.
"""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode

import goptim
from goptim import _layout, _native
from goptim.testing import assert_bit_equal, ieee_sqrt


class Counting(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} asks a mode of the user's")


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


PLACES = {
    "anywhere": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "a default device": lambda: torch.device("meta"),
    "a default dtype": lambda: default_dtype(torch.float64),
    "a mode of the user's": Counting,
}


@pytest.mark.parametrize("place", PLACES)
def test_found_wherever_a_step_is_taken(place):
    expected, random = _layout.find(), torch.get_rng_state()
    assert expected is not None
    with PLACES[place]():
        found = _layout.find()
    assert found == expected
    assert torch.equal(torch.get_rng_state(), random)


def steps(optimizer):
    """Of parameters of each dtype, with torch's random numbers for gradients."""
    torch.manual_seed(0)
    params = [torch.randn(3, 4, dtype=dtype).requires_grad_() for dtype in (torch.float32, torch.float64)]
    opt = optimizer(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        with ieee_sqrt():
            opt.step()
    return params, [dict(s) for s in opt.state.values()]


FAILURES = {
    "memory that cannot be read": ("_MEMORY", "/nowhere"),
    "tensors that are all alike": ("_plain_tensors", lambda: [torch.zeros(3) for _ in range(3)]),
    "odd tensors that cannot be told": ("_odd_tensors", lambda: [_layout._plain_tensors()]),
    "memory whose guard cannot be told": ("_guarded_storages", lambda: [torch.zeros(3).untyped_storage()]),
    "dtypes that cannot be told": ("_DTYPES", [torch.float32, torch.float64, torch.float32]),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_without_a_layout_steps_are_the_same(failure, monkeypatch):
    name, value = FAILURES[failure]
    assert None not in (_layout.find(), _native.layout())
    monkeypatch.setattr(_layout, name, value)
    assert _layout.find() is None
    expected = steps(goptim.AdamW)
    monkeypatch.setattr(_native, "layout", _layout.find)
    assert_bit_equal(steps(goptim.AdamW), expected)


@pytest.mark.parametrize("which", ["the parameter", "its gradient", "its state 'exp_avg'"])
@pytest.mark.parametrize("size", [0, 8])
def test_a_storage_made_too_small(which, size):
    """As FSDP leaves parameters between uses. torch would write behind it, or crash."""
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    opt = goptim.Adam([p, q], lr=1.0)
    for t in (p, q):
        t.grad = torch.ones(4)
    opt.step()
    before = p.detach().clone()
    small = {"the parameter": q, "its gradient": q.grad}.get(which, opt.state[q]["exp_avg"])
    small.untyped_storage().resize_(size)
    with pytest.raises(ValueError, match=f"the storage of {which} has {size} bytes, expected at least 16"):
        opt.step()
    assert torch.equal(p, before)
