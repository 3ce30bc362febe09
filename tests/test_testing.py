"""goptim.testing: IEEE square roots, and comparisons that detect every difference."""

import math

import numpy as np
import pytest
import torch

from goptim.testing import assert_bit_equal, ieee_sqrt, ulp_distance

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@FLOATS
def test_ieee_sqrt_is_rounded_correctly(dtype):
    x = torch.rand(20_000, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 10
    x[:5] = torch.tensor([0.0, -0.0, torch.inf, torch.finfo(dtype).tiny / 8, torch.finfo(dtype).max], dtype=dtype)
    exact = torch.tensor([math.sqrt(v) for v in x.tolist()], dtype=torch.float64).to(dtype)  # float64 has enough digits
    in_place = x.clone()
    with ieee_sqrt():
        assert_bit_equal(x.sqrt(), exact)
        assert in_place.sqrt_() is in_place
        assert_bit_equal(x[0].sqrt(), exact[0])  # 0-dim
        assert_bit_equal(x.view(100, 200).t().sqrt(), exact.view(100, 200).t())
        assert torch.tensor([-1.0, torch.nan], dtype=dtype).sqrt().isnan().all()
        assert_bit_equal(torch.nn.Parameter(x).sqrt(), exact)
    assert_bit_equal(in_place, exact)
    assert_bit_equal(exact, torch.from_numpy(np.sqrt(x.numpy())))
    with ieee_sqrt():
        assert x.sqrt().dtype == dtype


def test_ieee_sqrt_leaves_other_tensors_to_torch():
    for x in (
        torch.tensor([2.0], dtype=torch.bfloat16),
        torch.tensor([2]),
        torch.tensor([2j]),
        torch.ones(2, device="meta"),
    ):
        expected = x.sqrt()
        with ieee_sqrt():
            got = x.sqrt()
        assert (got.dtype, got.device, got.shape) == (expected.dtype, expected.device, expected.shape)
        if not x.is_meta:
            assert_bit_equal(got, expected)


def _fail():
    with ieee_sqrt():
        raise ZeroDivisionError


def test_ieee_sqrt_restores():
    before = torch.Tensor.sqrt, torch.Tensor.sqrt_
    with pytest.raises(ZeroDivisionError):
        _fail()
    assert (torch.Tensor.sqrt, torch.Tensor.sqrt_) == before
    with ieee_sqrt(), ieee_sqrt():
        assert torch.Tensor.sqrt is not before[0]
    assert (torch.Tensor.sqrt, torch.Tensor.sqrt_) == before


def _flip_a_bit(x, i):
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    x = x.clone()
    x.view(integer).view(-1)[i] ^= 1
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("i", [0, 6, 11])
def test_one_flipped_bit_differs(dtype, i):
    x = torch.arange(12, dtype=dtype).view(3, 4)
    assert_bit_equal(x, x.clone())
    assert_bit_equal({"a": [x]}, {"a": (x,)})
    with pytest.raises(
        AssertionError, match=rf"x\['a'\]\[0\]: 1 of 12 elements differ; the first at \[{i // 4}, {i % 4}\].* 1 ulp"
    ):
        assert_bit_equal({"a": [_flip_a_bit(x, i)]}, {"a": [x]}, "x")


NAN = torch.tensor(torch.nan)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.zeros(2), torch.zeros(2)),
        (torch.zeros(0), torch.zeros(0)),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan])),
        (-NAN, NAN),
        (_flip_a_bit(NAN, 0), NAN),
        (torch.zeros(3, 2).t(), torch.zeros(2, 3)),
        (torch.nn.Parameter(torch.ones(2)), torch.ones(2)),
        (torch.tensor([1, 2]), torch.tensor([1, 2])),
        (torch.tensor([1 + 2j, torch.nan]), torch.tensor([1 + 2j, torch.nan])),
        (math.nan, math.nan),
        ({"a": 1, "b": None}, {"a": 1, "b": None}),
        ("text", "text"),
    ],
    ids=repr,
)
def test_equal(actual, expected):
    assert_bit_equal(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.tensor([-0.0]), torch.tensor([0.0])),
        (torch.tensor([torch.nan]), torch.tensor([1.0])),
        (torch.tensor([1.0]), torch.tensor([torch.nan])),
        (torch.zeros(2, dtype=torch.float64), torch.zeros(2)),
        (torch.zeros(1, 2), torch.zeros(2)),
        (torch.zeros(()), torch.zeros(1)),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([complex(0.0, -0.0)]), torch.tensor([complex(0.0, 0.0)])),
        (0.0, torch.tensor(0.0)),
        (torch.tensor(0.0), 0.0),
        (-0.0, 0.0),
        (1, 1.0),
        (math.nan, 0.0),
        (1, 2),
        ("text", "next"),
        (None, 0),
        ({}, {"a": 1}),
        ({"a": 1}, {}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": {"c": torch.tensor([-0.0])}}, {"a": 1, "b": {"c": torch.tensor([0.0])}}),
        ([1], [1, 2]),
        ([1], 1),
        ({"a": 1}, [1]),
        ([1], {"a": 1}),
    ],
    ids=repr,
)
def test_different(actual, expected):
    with pytest.raises(AssertionError, match=r"^x"):
        assert_bit_equal(actual, expected, "x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_ulp_distance(dtype):
    def distance(a, b):
        return ulp_distance(torch.tensor([1.0, a], dtype=dtype), torch.tensor([1.0, b], dtype=dtype))

    limits = torch.finfo(dtype)
    least = limits.tiny * limits.eps
    assert distance(1.0, 1.0) == 0
    assert distance(1.0, 1.0 + limits.eps) == 1
    assert distance(1.0, 1.0 - limits.eps / 2) == 1
    assert distance(-1.0, -1.0 - 2 * limits.eps) == 2
    assert distance(0.0, -0.0) == 0
    assert distance(least, -least) == 2
    assert distance(limits.max, torch.inf) == 1
    assert distance(torch.nan, torch.nan) == 0
    assert distance(torch.nan, 1.0) > 100
    assert distance(1.0, torch.nan) > 100
    assert distance(1.0, 2.0) == round(1 / limits.eps)


def test_ulp_distance_needs_the_same_dtype_and_shape():
    for other in (torch.zeros(2, dtype=torch.float64), torch.zeros(3), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="the same floating-point dtype and shape"):
            ulp_distance(torch.zeros(2), other)
    with pytest.raises(ValueError, match="the same floating-point dtype and shape"):
        ulp_distance(torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))
    assert ulp_distance(torch.zeros(0), torch.zeros(0)) == 0
    assert ulp_distance(torch.arange(6.0).view(2, 3).t(), torch.arange(6.0).view(2, 3).t()) == 0
