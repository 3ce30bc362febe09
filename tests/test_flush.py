"""With subnormal numbers flushed to zero, results are bit-for-bit those of torch's for-loop on one thread.

tests/test_processes.py tests other threads.
"""

import contextlib

import pytest
import torch
from configurations import CONFIGURATIONS, FEW

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = [
    pytest.mark.skipif(
        not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
        reason="torch fuses no products with sums on this CPU",
    ),
    pytest.mark.usefixtures("threads"),
]
LENGTHS = (1, 7, 16, 33, 515)
STEPS = 6


@contextlib.contextmanager
def flushing():
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def values(dtype, seed, n):
    """Subnormal numbers, numbers with subnormal products or squares, zeros, and others."""
    generator = torch.Generator().manual_seed(seed)
    tiny = torch.finfo(dtype).tiny
    scales = torch.tensor([1.0, tiny, tiny * 0.01, tiny**0.5, tiny * 3, 0.0], dtype=dtype)
    kinds = torch.randint(len(scales), (n,), generator=generator)
    return torch.randn(n, generator=generator, dtype=dtype) * scales[kinds]


# A lerp with weight 1 adds a product with a zero, whose sign differs between torch's vectors and its scalar tail.
SIGNS_DIFFER = {(0.0, 0.0), (0.0, 0.5)}
REST = [c for c in CONFIGURATIONS if c not in FEW and c.options.get("betas") not in SIGNS_DIFFER]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("configuration", [*FEW, *(pytest.param(c, marks=pytest.mark.full) for c in REST)], ids=str)
def test_subnormal_numbers_are_flushed(configuration, dtype):
    params, expected = (
        [torch.nn.Parameter(values(dtype, n, n)) for n in LENGTHS] for optimizer in (goptim, torch.optim)
    )
    with flushing(), ieee_sqrt():
        ours, torchs = configuration.ours(params), configuration.torchs(expected)
    for i in range(STEPS):
        for j, (p, q) in enumerate(zip(params, expected, strict=True)):
            p.grad, q.grad = (values(dtype, 100 * i + j, p.numel()) for _ in range(2))
        with flushing(), ieee_sqrt():
            ours.step()
            torchs.step()
        assert_bit_equal(params, expected, f"step {i}")
        state, theirs = (o.state_dict()["state"] for o in (ours, torchs))
        assert_bit_equal(state, theirs, f"step {i}: state")
