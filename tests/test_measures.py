"""Steps whose scalars depend on a mean or a norm over a parameter: masks, bounds of updates and trust ratios."""

import pytest
import torch
from configurations import both_classes, gradients, normal
from torch import Tensor
from torch.nn import Parameter

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt


def run(optimizer, make, grads, steps: int = 3, **options) -> list[Tensor]:
    params = make()
    opt = optimizer(params, **options)
    for step in range(steps):
        for p, g in zip(params, grads(params, step), strict=True):
            p.grad = g
        with ieee_sqrt():
            opt.step()
    return [t for p in params for t in (p.detach(), *(s for s in opt.state[p].values()))]


@pytest.mark.parametrize("name", ["AdamWLegacy", "NAdamW"])
def test_a_threshold_of_zero_falls_back(name):
    """torch divides by it."""
    torch_class, ours = both_classes(name)

    def make():
        return [Parameter(normal((3, 4), torch.float32, 0))]

    options = {"clipping_threshold": 0, "caution": True}
    assert_bit_equal(run(ours, make, gradients, **options), run(torch_class, make, gradients, **options))
    [row] = goptim.explain(ours(make(), **options))
    assert row.to == "torch"


@pytest.mark.full
@pytest.mark.parametrize("n", [1, 2])
def test_more_elements_than_float32_counts(n, threads):
    """From 2**24 on, torch's sum of a mask is rounded, in an order that depends on its number of threads."""
    threads(n)
    torch_class, ours = both_classes("AdamWLegacy")

    def make():
        return [Parameter(torch.ones(21_000_001))]

    def grads(params, step):
        g = torch.ones_like(params[0])
        g[::7] = -1
        return [g]

    options = {"caution": True, "clipping_threshold": 0.5}
    assert_bit_equal(run(ours, make, grads, 2, **options), run(torch_class, make, grads, 2, **options))


def test_all_parameters_fall_back_together():
    """LAMB divides gradients by the norm of all."""
    torch_class, ours = both_classes("LAMB")

    def make():
        return [Parameter(normal((3, 4), torch.float32, 0)), Parameter(normal((6, 4), torch.float32, 1)[::2])]

    assert_bit_equal(run(ours, make, gradients), run(torch_class, make, gradients))
    params = make()
    for p in params:
        p.grad = torch.ones_like(p)
    assert [row.to for row in goptim.explain(ours(params))] == ["torch", "torch"]


@pytest.mark.parametrize("averaging", [False, True])
def test_a_scalar_that_is_narrower_than_the_norm(averaging):
    """LAMB's quotient of the gradient and the norm has the dtype of the norm, and torch cannot average it."""
    torch_class, ours = both_classes("LAMB")

    def run_of(optimizer, dtypes, **options):
        def make():
            return [Parameter(normal(s, dtype, i)) for i, (s, dtype) in enumerate(zip([(), (9,)], dtypes, strict=True))]

        try:
            return run(optimizer, make, gradients, grad_averaging=averaging, **options)
        except RuntimeError as e:
            return str(e)

    for dtypes in ([torch.float32, torch.float64], [torch.float64, torch.float32]):
        for options in ({}, {"max_grad_norm": None}):
            expected = run_of(torch_class, dtypes, **options)
            narrower = dtypes[0] is torch.float32 and not options
            assert isinstance(expected, str) == (narrower and averaging)
            actual = run_of(ours, dtypes, **options)
            if isinstance(expected, str):
                assert actual == expected
            else:
                assert_bit_equal(actual, expected)
