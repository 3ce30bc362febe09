"""Tools to compare goptim, or a whole training run, with torch bit for bit.

::

    with goptim.testing.ieee_sqrt():
        train(expected_model, torch.optim.AdamW(expected_model.parameters(), foreach=False))
        train(model, goptim.AdamW(model.parameters()))
    goptim.testing.assert_bit_equal(model.state_dict(), expected_model.state_dict())
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from goptim import _dtensor

__all__ = ["assert_bit_equal", "ieee_sqrt", "ulp_distance"]

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


@contextlib.contextmanager
def ieee_sqrt() -> Iterator[None]:
    """A context in which square roots of tensors and of lists of tensors round correctly, as IEEE 754 requires.

    The builds of torch on PyPI compute square roots of float32 and float64 tensors on the CPU with Intel's MKL, which
    is one ulp off for up to one value in six, differently on AMD and Intel. goptim, torch's fused optimizers, and
    builds of torch without MKL round correctly, and in this context so do ``Tensor.sqrt`` and ``sqrt_`` of torch's
    for-loop, and ``torch._foreach_sqrt`` and ``_foreach_sqrt_``. The context applies to the whole process, not to one
    thread, and needs NumPy. Each process computes the roots of its local shard of a
    DTensor.
    """
    import numpy as np

    sqrt, sqrt_ = torch.Tensor.sqrt, torch.Tensor.sqrt_

    def exact(x: Tensor) -> Tensor:
        if _dtensor.is_dtensor(x):
            return _dtensor.like(x, exact(_dtensor.local(x)))
        if type(x) not in (Tensor, torch.nn.Parameter) or not x.is_cpu or x.dtype not in (torch.float32, torch.float64):
            return sqrt(x)
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))

    def exact_(x: Tensor) -> Tensor:
        return x.copy_(exact(x))

    def each(xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(x.sqrt() for x in xs)

    def each_(xs: Sequence[Tensor]) -> None:
        for x in xs:
            x.sqrt_()

    module: Any = torch
    lists = module._foreach_sqrt, module._foreach_sqrt_
    torch.Tensor.sqrt, torch.Tensor.sqrt_ = exact, exact_  # type: ignore[method-assign, assignment]
    module._foreach_sqrt, module._foreach_sqrt_ = each, each_
    try:
        yield
    finally:
        torch.Tensor.sqrt, torch.Tensor.sqrt_ = sqrt, sqrt_  # type: ignore[method-assign]
        module._foreach_sqrt, module._foreach_sqrt_ = lists


def assert_bit_equal(actual: Any, expected: Any, name: str = "") -> None:
    """Raise AssertionError unless both are bit-for-bit equal.

    Args:
        actual, expected: tensors of any shape, numbers, or nested mappings and sequences of them, such as the
            ``state_dict()`` of a model or an optimizer. Tensors must also agree in dtype and shape, and zeros in their
            sign. A NaN equals any other NaN.
        name: their name in the message.
    """
    if isinstance(expected, Tensor):
        if not isinstance(actual, Tensor):
            raise AssertionError(f"{name}: expected a tensor, got {type(actual).__name__}")
        if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
            raise AssertionError(
                f"{name}: expected {expected.dtype} of shape {tuple(expected.shape)}, "
                f"got {actual.dtype} of shape {tuple(actual.shape)}"
            )
        actual, expected = actual.detach(), expected.detach()
        if _same_bits(actual, expected):
            return
        wrong = _different(actual, expected)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            a, e = actual[at].item(), expected[at].item()
            apart = f"; {ulp_distance(actual, expected)} ulp at most" if expected.dtype in _BITS else ""
            raise AssertionError(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} elements differ; the first at {list(at)}: "
                f"expected {e!r}, got {a!r}{apart}"
            )
    elif isinstance(expected, Mapping):
        if not isinstance(actual, Mapping) or list(actual) != list(expected):
            keys = list(actual) if isinstance(actual, Mapping) else type(actual).__name__
            raise AssertionError(f"{name}: expected the keys {list(expected)}, got {keys}")
        for key in expected:
            assert_bit_equal(actual[key], expected[key], f"{name}[{key!r}]")
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        if not isinstance(actual, Sequence) or len(actual) != len(expected):
            raise AssertionError(f"{name}: expected {len(expected)} items, got {actual!r}")
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_bit_equal(a, e, f"{name}[{i}]")
    elif isinstance(expected, float):
        same = isinstance(actual, float) and (
            struct.pack("d", actual) == struct.pack("d", expected) or (math.isnan(actual) and math.isnan(expected))
        )
        if not same:
            raise AssertionError(f"{name}: expected {expected!r}, got {actual!r}")
    elif actual != expected:
        raise AssertionError(f"{name}: expected {expected!r}, got {actual!r}")


def ulp_distance(a: Tensor, b: Tensor) -> int:
    """The largest distance between elements of a and b, in representable numbers.

    Args:
        a, b: tensors with the same floating-point dtype and shape. The distance of two NaNs, and of zeros with
            different signs, is 0. The distance of a NaN and a number is that of their bits.
    """
    if a.dtype != b.dtype or a.shape != b.shape or a.dtype not in _BITS:
        raise ValueError(
            f"expected two tensors with the same floating-point dtype and shape, got {a.dtype} and {b.dtype}"
        )
    both_nan = a.isnan() & b.isnan()
    gap = (_ordered(a) - _ordered(b)).abs()
    return int(gap[~both_nan].max()) if (~both_nan).any() else 0


def _ordered(x: Tensor) -> Tensor:
    """Integers in the order of the floats. Adjacent floats map to consecutive integers."""
    bits = x.detach().contiguous().view(_BITS[x.dtype]).to(torch.int64)
    lowest = torch.iinfo(_BITS[x.dtype]).min
    return torch.where(bits < 0, lowest - bits, bits)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether both have the same bits, NaNs included. Much faster than finding the different elements."""
    bits = _BITS.get(a.dtype)
    return bits is not None and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def _different(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype.is_complex:
        return _different(torch.view_as_real(a), torch.view_as_real(b)).any(-1)
    if a.dtype not in _BITS:
        return a != b
    bits = _BITS[a.dtype]
    return (a.contiguous().view(bits) != b.contiguous().view(bits)) & ~(a.isnan() & b.isnan())
