"""The optimizers that torch.optim does not have are bit-for-bit equal to the classes of the packages that have them."""

import contextlib
import copy
import importlib
import inspect

import pytest
import torch
from configurations import BEYOND, TABLE, class_of, gradients, normal
from stacks import load

from goptim import _for_loop, _storage
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = [
    pytest.mark.usefixtures("threads"),
    # from torch-optimi and torch-adopt
    pytest.mark.filterwarnings("ignore:You are using weight_decay up to"),
    pytest.mark.filterwarnings("ignore:Use _accelerator_graph_capture_health_check", "ignore:.*_utils.is_compiling"),
]

STEPS = 12
OVERWRITING = ("optimi", "schedulefree", "prodigyopt", "pytorch_optimizer")  # packages that overwrite gradients
FIXED = {"OptimiSGD": ("dampening", "torch_init"), "Prodigy": ("slice_p",)}
UNORDERED = ("Adan", "SGDW", "RMSpropTF", "LAMB")  # with caution, timm compares complex numbers, which is an error
# These compute float64 in float32, which goptim's do not.
SINGLE = [name for name in BEYOND if _for_loop.CLASSES[name].reference.startswith("bitsandbytes.")]
# Without complex parameters.
REAL = ("AdEMAMix", "BitsandbytesAdEMAMix", "BitsandbytesLion", "OptimiLion", "Prodigy", "StableAdamW")
CONFIGURATIONS = [configuration for name in BEYOND for configuration in TABLE[name]]
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
exact = pytest.mark.parametrize(
    ("configuration", "dtype"),
    [
        pytest.param(c, dtype, id=f"{c}-{name}")
        for c in CONFIGURATIONS
        for name, dtype in DTYPES.items()
        if name in (("float32", "bfloat16", "float16") if c.optimizer in SINGLE else ("float32", "float64"))
    ],
)
every = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)


def reference_of(name):
    package, _, attribute = _for_loop.CLASSES[name].reference.rpartition(".")
    load(package.partition(".")[0])
    return getattr(importlib.import_module(package), attribute)


def package_of(cls):
    return cls.__module__.partition(".")[0]


def made(cls, params, options):
    """An optimizer with these options, ready to step: in its groups, if the constructor rejects them."""
    if "foreach" in inspect.signature(cls).parameters:
        options = {**options, "foreach": False}
    if "triton" in inspect.signature(cls).parameters:  # torch-optimi's are for GPUs
        options = {**options, "triton": False}
    try:
        opt = cls(params, **options)
    except (AssertionError, ValueError):
        opt = cls(params)
        for group in opt.param_groups:
            group.update(options)
    if hasattr(opt, "train"):
        opt.train()
    return opt


def states_of(opt):
    """All states but those that are None, which timm's SGDW stores without momentum, in the order of the parameters."""
    states = {i: {k: x for k, x in s.items() if x is not None} for i, s in opt.state_dict()["state"].items()}
    return {i: s for i, s in sorted(states.items()) if s}


def tensors_of(state):
    """The states of a parameter in goptim's order. bitsandbytes stacks two of them."""
    if "state1" not in state:
        return list(state.values())
    averages = list(state["state1"]) if "state2" in state else [state["state1"]]
    return [state["step"], averages[0], *([state["state2"], averages[1]] if "state2" in state else [])]


@contextlib.contextmanager
def ordered_dot():
    """Give torch a dot product whose order of additions is known, as that of Prodigy in goptim is."""
    dot = torch.dot
    torch.dot = lambda a, b: (a * b).sum()
    try:
        yield
    finally:
        torch.dot = dot


class Three:
    """The same parameters with the reference, goptim's class and its for-loop."""

    def __init__(self, configuration, values):
        name = configuration.optimizer
        self.classes = (reference_of(name), class_of(name), _for_loop.CLASSES[name])
        self.params = [[v.clone().requires_grad_() for v in values] for _ in self.classes]
        self.opts = [made(cls, p, configuration.options) for cls, p in zip(self.classes, self.params, strict=True)]
        self.configuration, self.steps = configuration, 0

    def step(self, grads=None):
        grads = gradients(self.params[0], self.steps) if grads is None else grads
        for opt, params in zip(self.opts, self.params, strict=True):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            with ieee_sqrt(), ordered_dot():
                opt.step()
            if opt is not self.opts[0] or package_of(self.classes[0]) not in OVERWRITING:
                assert_bit_equal([p.grad for p in params], grads)
        self.steps += 1
        expected, *others = ((p, states_of(opt)) for p, opt in zip(self.params, self.opts, strict=True))
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


@exact
def test_every_configuration(configuration, dtype, threads):
    values = [normal((n,), dtype, n) for n in (37, 1, 0, 1003)]
    values += [normal((33, 31), dtype, 1).t(), normal((3, 5, 7, 9), dtype, 2).permute(2, 0, 3, 1)]
    values += [normal((40, 6), dtype, 3)[:, ::2]]
    unordered = configuration.options.get("caution") and configuration.optimizer in UNORDERED
    if not unordered and configuration.optimizer not in REAL:
        values += [normal((2, 3), dtype, 4).to(torch.complex64)]
    if not configuration.unusual:
        values.append(normal((70_001,), dtype, 5))
    three = Three(configuration, values)
    for step in range(STEPS):
        threads(1 + step % 2)
        three.step()
        if step % 4 == 3:
            three.exchange()


@exact
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
                for k, t in enumerate(tensors_of(state)):
                    if isinstance(t, torch.Tensor) and t.shape == values.shape:
                        t[step::7] = values.roll(5 * step + 29 * k)[step::7].to(t.dtype)


@every
def test_changed_hyperparameters(configuration):
    three = Three(configuration, [normal((37,), torch.float32, 0)])
    for opt in three.opts:
        if opt.param_groups[0].get("max_lr_snapshot") == 0:  # corrected weight decay would be divided by it
            opt.param_groups[0]["max_lr_snapshot"] = 0.5
    # There are no states for their other values.
    fixed = {*_for_loop.CLASSES[configuration.optimizer].when.values(), *FIXED.get(configuration.optimizer, ())}
    for other in (*TABLE[configuration.optimizer], {"lr": -0.1}, {"weight_decay": -0.5}, {"betas": (1.75, -0.5)}):
        options = other if isinstance(other, dict) else other.options
        length = len(three.opts[0].param_groups[0].get("betas", ()))
        if "betas" in options:
            options = {**options, "betas": (*options["betas"], 0.7)[:length]}
        for opt in three.opts:
            group = opt.param_groups[0]
            group.update({k: v for k, v in options.items() if k in group.keys() - fixed})
            if 0.0 in group.get("betas", ()):  # whose logarithm a warmup would need
                group.update({k: None for k in ("t_beta3", "t_alpha_beta3") if k in group})
        three.step()


@pytest.mark.parametrize("name", BEYOND)
def test_arguments(name):
    expected, actual = (inspect.signature(cls).parameters for cls in (reference_of(name), class_of(name)))
    actual = [p for p in actual.values() if p.name not in _storage.KEYS]
    assert [p.name for p in actual] == [p.name for p in expected.values()]
    for ours, theirs in zip((p.default for p in actual), (p.default for p in expected.values()), strict=True):
        if theirs is inspect.Parameter.empty:
            continue
        if inspect.isfunction(theirs):  # a function of the step
            ours, theirs = ([f(x) for x in range(9)] for f in (ours, theirs))
        assert ours == theirs


@pytest.mark.parametrize("name", SINGLE)
def test_float64_where_the_reference_has_float32(name):
    three = Three(TABLE[name][0], [normal((1003,), torch.float64, 0)])
    for step in range(STEPS):
        grads = [g.float().double() for g in gradients(three.params[0], step)]
        for opt, (p,) in zip(three.opts, three.params, strict=True):
            p.grad = grads[0].clone()
            with ieee_sqrt():
                opt.step()
    theirs, *ours = (p for (p,) in three.params)
    assert_bit_equal(*ours)
    torch.testing.assert_close(ours[0], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in BEYOND if name not in REAL])
def test_parameters_that_fall_back(name):
    """Complex numbers, beside others."""
    three = Three(TABLE[name][0], [normal((4, 3), dtype, 0) for dtype in (torch.complex64, torch.float32)])
    for step in range(STEPS):
        three.step([normal((4, 3), dtype, step) for dtype in (torch.complex64, torch.float32)])
