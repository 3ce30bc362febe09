"""The optimizers that torch.optim does not have are bit-for-bit equal to the classes of the packages that have them."""

import copy
import importlib
import inspect

import pytest
import torch
from configurations import BEYOND, TABLE, gradients, normal
from stacks import load

import goptim
from goptim import _for_loop
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = pytest.mark.usefixtures("threads")

STEPS = 12
CONFIGURATIONS = [configuration for name in BEYOND for configuration in TABLE[name]]
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
every = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)


def reference_of(name):
    package, _, attribute = _for_loop.CLASSES[name].reference.rpartition(".")
    load(package.partition(".")[0])
    return getattr(importlib.import_module(package), attribute)


def made(cls, params, options):
    """An optimizer with these options: in its groups, if the constructor rejects them."""
    try:
        return cls(params, **options)
    except (AssertionError, ValueError):
        opt = cls(params)
        for group in opt.param_groups:
            group.update(options)
        return opt


class Three:
    """The same parameters with the reference, goptim's class and its for-loop."""

    def __init__(self, configuration, values):
        name = configuration.optimizer
        self.classes = (reference_of(name), getattr(goptim, name), _for_loop.CLASSES[name])
        self.params = [[v.clone().requires_grad_() for v in values] for _ in self.classes]
        self.opts = [made(cls, p, configuration.options) for cls, p in zip(self.classes, self.params, strict=True)]
        self.configuration, self.steps = configuration, 0

    def step(self, grads=None):
        grads = gradients(self.params[0], self.steps) if grads is None else grads
        for opt, params in zip(self.opts, self.params, strict=True):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            with ieee_sqrt():
                opt.step()
            assert_bit_equal([p.grad for p in params], grads)
        self.steps += 1
        expected, *others = ((p, opt.state_dict()["state"]) for p, opt in zip(self.params, self.opts, strict=True))
        for other in others:
            assert_bit_equal(other, expected, f"step {self.steps}")

    def exchange(self):
        """Continue each with a new optimizer that has another one's state."""
        saved = [copy.deepcopy(opt.state_dict()) for opt in self.opts]
        self.opts = [
            made(cls, params, self.configuration.options) for cls, params in zip(self.classes, self.params, strict=True)
        ]
        for opt, state in zip(self.opts, [*saved[1:], saved[0]], strict=True):
            opt.load_state_dict(state)


@FLOATS
@every
def test_every_configuration(configuration, dtype, threads):
    values = [normal((n,), dtype, n) for n in (37, 1, 0, 1003)]
    values += [normal((33, 31), dtype, 1).t(), normal((3, 5, 7, 9), dtype, 2).permute(2, 0, 3, 1)]
    values += [normal((40, 6), dtype, 3)[:, ::2], normal((2, 3), dtype, 4).to(torch.bfloat16)]
    if not configuration.odd:
        values.append(normal((70_001,), dtype, 5))
    three = Three(configuration, values)
    for step in range(STEPS):
        threads(1 + step % 2)
        three.step()
        if step % 4 == 3:
            three.exchange()


@FLOATS
@every
def test_special_values(configuration, dtype):
    """All pairs of special values as parameter and gradient, and as states."""
    limits = torch.finfo(dtype)
    some = [0.0, limits.tiny, limits.tiny * limits.eps, 1e-25, 1.0, limits.max, torch.inf]
    some = torch.tensor([*some, *(-x for x in some), torch.nan], dtype=dtype)
    values, grads = torch.cartesian_prod(some, some).t().contiguous()
    three = Three(configuration, [values])
    for step in range(STEPS):
        three.step([grads.roll(step)])
        for opt in three.opts:
            for state in opt.state.values():
                for k, t in enumerate(state.values()):
                    if t.shape == values.shape:
                        t[step::7] = values.roll(5 * step + 29 * k)[step::7]


@every
def test_changed_hyperparameters(configuration):
    three = Three(configuration, [normal((37,), torch.float32, 0)])
    for other in (*TABLE[configuration.optimizer], {"lr": -0.1}, {"weight_decay": -0.5}, {"betas": (1.75, -0.5)}):
        options = other if isinstance(other, dict) else other.options
        for opt in three.opts:
            opt.param_groups[0].update({k: v for k, v in options.items() if k in opt.param_groups[0]})
        three.step()


@pytest.mark.parametrize("name", BEYOND)
def test_arguments(name):
    expected, actual = (inspect.signature(cls).parameters for cls in (reference_of(name), getattr(goptim, name)))
    assert [(p.name, p.default) for p in actual.values()] == [(p.name, p.default) for p in expected.values()]


@pytest.mark.parametrize("name", BEYOND)
def test_parameters_that_fall_back(name):
    """Complex and 16-bit numbers, and gradients that torch adds to a dense tensor."""
    three = Three(
        TABLE[name][0], [normal((4, 3), dtype, 0) for dtype in (torch.complex64, torch.float16, torch.float32)]
    )
    for step in range(STEPS):
        three.step([normal((4, 3), dtype, step) for dtype in (torch.complex64, torch.float16, torch.float32)])
