"""goptim.hf is bit-for-bit equal to the classes of the transformers package."""

import copy
import itertools
import math
import re

import pytest
import torch
from configurations import NEEDS_FMA, gradients, normal
from test_adafactor import SHAPES
from test_parity import FLOATS

import goptim.hf
from goptim._lists import order_of_norms
from goptim.testing import assert_bit_equal, ieee_sqrt

transformers = pytest.importorskip("transformers.optimization")

pytestmark = [
    NEEDS_FMA,
    pytest.mark.usefixtures("threads"),
]

VECTORS = [(n,) for n in (1, 3, 7, 8, 15, 16, 17, 33, 1003)] + [()]
RATES = [
    {},
    {"warmup_init": True},
    {"scale_parameter": False},
    {"lr": 0.0123, "relative_step": False},
    {"lr": 0.0123, "relative_step": False, "scale_parameter": False},
]
OTHERS = [
    {},
    {"beta1": 0.9, "weight_decay": 0.037, "clip_threshold": 0.7, "decay_rate": -0.5, "eps": (1e-20, 0.5)},
]
CONFIGURATIONS = [rate | other for rate, other in itertools.product(RATES, OTHERS)]


class Pair:
    """The same parameters with goptim's optimizer and with transformers'."""

    def __init__(self, values, options, dtype=None):
        self.params, self.expected = ([v.clone().requires_grad_() for v in values] for _ in range(2))
        self.ours = goptim.hf.Adafactor(self.params, **options)
        self.theirs = transformers.Adafactor(self.expected, **options)

    def step(self, grads=None, step=0):
        grads = gradients(self.params, step) if grads is None else grads
        for p, q, g in zip(self.params, self.expected, grads, strict=True):
            p.grad, q.grad = g, None if g is None else g.clone()
        self.ours.step()
        with ieee_sqrt():
            self.theirs.step()
        self.check()

    def check(self):
        assert_bit_equal(self.params, self.expected)
        ours, theirs = self.ours.state_dict()["state"], self.theirs.state_dict()["state"]
        assert_bit_equal(ours, theirs)
        assert [list(s) for s in ours.values()] == [list(s) for s in theirs.values()]


@pytest.fixture
def go_only(monkeypatch):
    def refuse(*_):
        raise AssertionError("torch steps, where Go should")

    monkeypatch.setattr(goptim.hf.HFAdafactor, "step", refuse)


@FLOATS
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_every_configuration(options, dtype, go_only):
    shapes = VECTORS + SHAPES if options in (CONFIGURATIONS[0], CONFIGURATIONS[-1]) else VECTORS + SHAPES[::5]
    pair = Pair([normal(shape, dtype, i) for i, shape in enumerate(shapes)], options)
    for step in range(6):
        pair.step(step=step)


@FLOATS
@pytest.mark.parametrize("options", [CONFIGURATIONS[0], CONFIGURATIONS[-1]], ids=str)
def test_one_element(options, dtype, go_only):
    """Its norm is its magnitude, also where its square is too large or too small a number."""
    large = 1e30 if dtype is torch.float32 else 1e200
    values = [torch.full(shape, x, dtype=dtype) for shape in [(), (1,), (1, 1)] for x in (large, 1 / large, -large)]
    pair = Pair(values, options)
    for _ in range(3):
        pair.step([v * 3 for v in values])


@pytest.mark.parametrize(
    ("n", "dtype"),
    [(1, torch.float64), (2, torch.float32), *(pytest.param(3, d, marks=pytest.mark.full) for d in FLOATS.args[1])],
)
def test_long_sums(n, dtype, threads, go_only):
    """From 32768 elements on, torch divides a sum over all threads."""
    threads(n)
    shapes = [
        (40_000, 1),
        (1, 40_000),
        (40_000, 4),
        (4, 40_000),
        (3, 40_000, 2),
        (2, 1, 40_000),
        (5_000, 37),
        (99_999,),
    ]
    pair = Pair([normal(shape, dtype, i) for i, shape in enumerate(shapes)], {})
    for step in range(3):
        pair.step(step=step)


@FLOATS
@pytest.mark.parametrize("one", [0.0, 1e-40, 1e-25, 1e19, math.inf, math.nan])
@pytest.mark.parametrize("shape", [(529,), (23, 40), (5, 6, 7)], ids=str)
@pytest.mark.covering
def test_special_values(shape, one, dtype, go_only):
    for scale in (0.0, 1e-30, 1.0):
        pair = Pair([normal(shape, dtype, 0)], CONFIGURATIONS[1])
        for step in range(3):
            (g,) = gradients(pair.params, step)
            g *= scale
            g.view(-1)[step :: 31 + g.numel() // 3] = one
            pair.step([g])


@FLOATS
@pytest.mark.parametrize("options", [*RATES[:3], {"weight_decay": 0.037}], ids=str)
def test_late_steps(options, dtype, go_only):
    """The rate of a relative step is the inverse square root from step 10000 on, with or without a warm-up."""
    pair = Pair([normal(shape, dtype, i) for i, shape in enumerate([(5, 7), (9,)])], options)
    pair.step()
    for step in (9_997, 30_000, 1_000_000):
        for opt in (pair.ours, pair.theirs):
            for state in opt.state.values():
                state["step"] = step
        for _ in range(4):
            pair.step()


@FLOATS
def test_scale_of_a_parameter_at_its_least(dtype, go_only):
    """The choice between the two decides which products torch rounds."""
    for least in (1e-3, 1e-2, 0.3):
        x = torch.tensor(2 * least, dtype=dtype)  # three zeros are added, so this is twice the root mean square
        for end in (0, 1, 10):
            value = torch.stack([*torch.zeros(3, dtype=dtype), x.nextafter(torch.full_like(x, end)) if end < 10 else x])
            for rate in RATES[:2]:
                pair = Pair([value, value.view(2, 2)], rate | {"eps": (1e-30, least), "weight_decay": 0.037})
                pair.step([torch.ones(4, dtype=dtype), torch.ones(2, 2, dtype=dtype)])


@FLOATS
def test_a_column_sum_of_five_bits_a_level(dtype, threads, go_only):
    """From 2^19 rows on, a level of torch's sum has more rows."""
    threads(1)
    pair = Pair([normal((rows, 4), dtype, 0) for rows in (1 << 19, 600_000)], {})
    pair.step()


@FLOATS
def test_no_weight_decay_of_infinities_and_zeros(dtype, go_only):
    """0 times an infinity is NaN, and -0 plus 0 is 0."""
    values = torch.tensor([-0.0, 0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    for options in ({}, {"weight_decay": 0.037}):
        pair = Pair([values, values[:2].clone()], options | {"scale_parameter": False})
        for _ in range(2):
            pair.step([torch.zeros_like(values), torch.zeros_like(values[:2])])


@pytest.mark.parametrize("decay", [0.0, 0.037, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype, decay):
    pair = Pair(
        [normal((5, 7), torch.float32, 0).to(dtype), normal((9,), torch.float32, 1).to(dtype)],
        CONFIGURATIONS[1] | {"weight_decay": decay},
    )
    for step in range(4):
        pair.step(step=step)


def test_unsupported_parameters():
    params = [normal((5, 7), torch.float32, 0).t(), normal((4, 3), torch.float64, 1), normal((6,), torch.float32, 2)]
    pair = Pair(params, CONFIGURATIONS[1])
    for step in range(4):
        grads = gradients(pair.params, step)
        if step % 2:
            grads[1] = None
        pair.step(grads)


def test_state_goes_both_ways():
    for first, second in (("ours", "theirs"), ("theirs", "ours")):
        pair = Pair([normal((5, 7), torch.float32, 0), normal((9,), torch.float32, 1)], CONFIGURATIONS[-1])
        for step in range(3):
            pair.step(step=step)
        getattr(pair, second).load_state_dict(copy.deepcopy(getattr(pair, first).state_dict()))
        for step in range(3, 6):
            pair.step(step=step)


def test_hyperparameters_change_between_steps():
    pair = Pair([normal((5, 7), torch.float32, 0), normal((9,), torch.float32, 1)], CONFIGURATIONS[-1])
    for step, options in enumerate(CONFIGURATIONS[1::2]):
        for opt in (pair.ours, pair.theirs):
            opt.param_groups[0].update(options)
        pair.step(step=step)


def test_schedule_of_transformers(go_only):
    pair = Pair([normal((5, 7), torch.float32, 0)], {"warmup_init": True})
    schedules = [transformers.AdafactorSchedule(opt) for opt in (pair.ours, pair.theirs)]
    for step in range(4):
        pair.step(step=step)
        rates = []
        for schedule in schedules:
            schedule.step()
            rates.append([float(lr) for lr in schedule.get_last_lr()])
        assert rates[0] == rates[1]


def test_arguments_are_checked_as_transformers_do():
    for options in ({"lr": 0.1}, {"warmup_init": True, "relative_step": False}):
        with pytest.raises(ValueError, match="relative_step=True") as expected:
            transformers.Adafactor([torch.zeros(1)], **options)
        with pytest.raises(ValueError, match=re.escape(str(expected.value))):
            goptim.hf.Adafactor([torch.zeros(1)], **options)


def test_errors_come_before_any_write():
    p, q = (normal((4, 5), torch.float32, i).requires_grad_() for i in range(2))
    opt = goptim.hf.Adafactor([p, q])
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    opt.step()
    before, steps = p.detach().clone(), opt.state[p]["step"]
    opt.state[q]["exp_avg_sq_col"] = torch.ones(4)
    with pytest.raises(
        ValueError,
        match=r"parameter 1 of group 0, of .*: its state 'exp_avg_sq_col' has shape \(4,\), expected \(5,\)",
    ):
        opt.step()
    q.grad = torch.ones_like(q).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        opt.step()
    assert_bit_equal(p.detach(), before)
    assert opt.state[p]["step"] == steps


def test_closure_and_hooks():
    p = normal((4, 5), torch.float32, 0).requires_grad_()
    opt = goptim.hf.Adafactor([p])
    calls = []
    opt.register_step_post_hook(lambda *_: calls.append("hook"))

    def closure():
        opt.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        calls.append("closure")
        return loss

    before = (p.detach() ** 2).sum()
    assert opt.step(closure).item() == before.item()
    assert calls == ["closure", "hook"]
    saved = (p * p).sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_memory_shared_by_what_go_and_torch_step(order):
    """A matrix and its transpose, which is not contiguous, are stepped in order."""

    def make(cls):
        torch.default_generator.manual_seed(0)
        memory = torch.randn(6, 5)
        params = [torch.nn.Parameter(memory), torch.nn.Parameter(memory.t())]
        opt = cls([params[i] for i in order], lr=0.1, relative_step=False, weight_decay=0.3)
        with ieee_sqrt():
            for _ in range(3):
                for p in params:
                    p.grad = torch.randn(p.shape)
                opt.step()
        return [(p.detach(), opt.state[p]) for p in params]

    assert_bit_equal(make(goptim.hf.Adafactor), make(transformers.Adafactor))


def test_a_gradient_that_is_the_parameters_memory():
    def make(cls):
        p = torch.nn.Parameter(normal((6, 5), torch.float32, 0))
        p.grad = p.detach()
        opt = cls([p], lr=0.1, relative_step=False, weight_decay=0.3)
        with ieee_sqrt():
            for _ in range(3):
                opt.step()
        return p.detach(), opt.state[p]

    assert_bit_equal(make(goptim.hf.Adafactor), make(transformers.Adafactor))


def test_a_gradient_without_its_memory_is_refused():
    p = torch.nn.Parameter(torch.ones(6))
    p.grad = torch.ones(6)
    opt = goptim.hf.Adafactor([p])
    p.grad.untyped_storage().resize_(8)
    with pytest.raises(ValueError, match="the storage of its gradient has 8 bytes, expected at least 24"):
        opt.step()
    assert (p == 1).all()
    assert p not in opt.state


def test_groups_share_a_state():
    """Each step of one counts."""

    def make(cls):
        params = [torch.nn.Parameter(normal((6, 5), torch.float32, i)) for i in range(3)]
        opt = cls([{"params": params[:1]}, {"params": params[1:]}])
        with ieee_sqrt():
            for step in range(3):
                for p, g in zip(params, gradients(params, step), strict=True):
                    p.grad = g
                opt.step()
                opt.state[params[2]] = opt.state[params[1]] = opt.state[params[0]]
        return [p.detach() for p in params], dict(opt.state[params[2]])

    (params, state), expected = make(goptim.hf.Adafactor), make(transformers.Adafactor)
    assert state["step"] == 7
    assert_bit_equal((params, state), expected)


def test_all_by_torchs_operations(monkeypatch):
    """As in a forked child, or where the extension cannot be loaded."""
    monkeypatch.setattr("goptim._step.reason_of_optimizer", lambda _: "it is a test")
    monkeypatch.setattr(goptim.hf.Adafactor, "_go", None)
    pair = Pair([normal((5, 7), torch.float32, 0), normal((9,), torch.float32, 1)], CONFIGURATIONS[1])
    for step in range(3):
        pair.step(step=step)
    pair.params[1].grad = torch.ones(9).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        pair.ours.step()
    pair.check()


@pytest.mark.parametrize("options", [{}, {"beta1": 0.9}], ids=str)
def test_usual_parameters_are_read_in_c(options, monkeypatch):
    """Python judges the parameters of the first step, which do not have states, and none of those after it."""
    reason_of = goptim.hf._HFPart.reason_of
    judged = []
    monkeypatch.setattr(goptim.hf._HFPart, "reason_of", lambda *args: judged.append(1) or reason_of(*args))
    pair = Pair([normal(shape, torch.float32, i) for i, shape in enumerate(((3, 5), (7,), (2, 3, 4), ()))], options)
    for i in range(4):
        pair.step(step=i)
    assert len(judged) == 4


@pytest.mark.parametrize("step", [-1, 1.0, True, None, 1 << 70], ids=str)
def test_an_unexpected_step_falls_back(step):
    """Only an int from 0 on runs in Go. transformers computes with others, or raises."""
    pair = Pair(
        [normal((3, 5), torch.float32, 0), normal((7,), torch.float32, 1)],
        {"relative_step": False, "lr": 0.01, "scale_parameter": False},
    )
    pair.step()
    for opt in (pair.ours, pair.theirs):
        opt.state[opt.param_groups[0]["params"][1]]["step"] = step
    try:
        pair.theirs.step()
    except Exception as e:
        with pytest.raises(type(e)):
            pair.ours.step()
    else:
        pair.ours.step()
        pair.check()


def test_a_state_with_another_shape_is_refused():
    pair = Pair([normal((3, 5), torch.float32, 0)], {})
    pair.step()
    [state] = pair.ours.state.values()
    state["exp_avg_sq_row"] = state["exp_avg_sq_row"].unsqueeze(-1)
    with pytest.raises(ValueError, match=r"'exp_avg_sq_row' has shape \(3, 1\), expected \(3,\)"):
        pair.ours.step()


def test_a_default_device():
    """A step does not create tensors on the default device."""
    order_of_norms.cache_clear()
    pair = Pair([normal((3, 4), torch.float32, 0), normal((5,), torch.float32, 1)], {})
    pair.step()
    grads = gradients(pair.params, 1)
    with torch.device("meta"):
        pair.step(grads)
