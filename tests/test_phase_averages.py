"""Averages of lists of tensors against torch's operations."""

import contextlib
import math

import numpy as np
import pytest
import torch
from configurations import normal
from torch import Tensor
from torch.nn import Parameter
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn

import goptim
from goptim import _native
from goptim.testing import assert_bit_equal

F32, F64 = torch.float32, torch.float64
INTS = torch.int64


def zip_strict(*iterables):
    """stable_baselines3.common.utils.zip_strict."""
    sentinel = object()
    from itertools import zip_longest

    for combo in zip_longest(*iterables, fillvalue=sentinel):
        if sentinel in combo:
            raise ValueError("Iterables have different lengths")
        yield combo


def polyak_update(params, target_params, tau):
    """stable_baselines3.common.utils.polyak_update, of version 2."""
    with torch.no_grad():
        for param, target_param in zip_strict(params, target_params):
            target_param.data.mul_(1 - tau)
            torch.add(target_param.data, param.data, alpha=tau, out=target_param.data)


def torch_lerp(averages, params, decay):
    with torch.no_grad():
        for average, p in zip(averages, params, strict=True):
            get_ema_multi_avg_fn(decay)([average], [p], None)


def torch_mul_add(averages, params, decay):
    with torch.no_grad():
        for average, p in zip(averages, params, strict=True):
            average.detach().copy_(get_ema_avg_fn(decay)(average.detach(), p, None))


# Each form: goptim's function of averages, parameters and a number; torch's; how much a version counter increases.
FORMS = {
    "lerp": (goptim.ema_, torch_lerp, 1),
    "mul_add": (lambda a, p, x: goptim.ema_(a, p, x, form="mul_add"), torch_mul_add, 1),
    "polyak": (lambda a, p, x: goptim.polyak_update(p, a, x), lambda a, p, x: polyak_update(p, a, x), 0),
}
forms = pytest.mark.parametrize("form", FORMS)


class Other(Tensor):
    """A subclass that changes nothing."""


def pair(shape, dtype=F32, seed=0, change=lambda t: t):
    return [change(normal(shape, dtype, seed)), change(normal(shape, dtype, seed + 1000))]


def odd_strides():
    return [normal((3, 4), F32, 0), normal((4, 3), F32, 1).t()]


def overlapping():
    memory = normal((100,), F32, 0)
    return [memory[:60], memory[40:]]


def of_one_memory():
    """Pairs of which each reads what the one before wrote; the middle one falls back to torch."""
    memory = normal((40,), F32, 0)
    return [
        [memory[:10], memory[10:20]],
        [memory[20:30:2], memory[:5]],
        [memory[10:30], normal((20,), F32, 1)],
        [memory[30:], memory[20:30]],
    ]


def channels_last(t):
    return t.to(memory_format=torch.channels_last)


def inference():
    with torch.inference_mode():
        return pair((5,))


def with_values(*values):
    return lambda t: torch.cat([torch.tensor(values, dtype=t.dtype), t])


# Pairs of an average and a parameter, and how many run in Go.
PAIRS = {
    "none": (list, 0),
    "lengths": (lambda: [pair((n,), seed=n) for n in (0, 1, 3, 8, 15, 1003)], 6),
    "float64 lengths": (lambda: [pair((n,), F64, n) for n in (0, 1, 3, 8, 15, 1003)], 6),
    "long": (lambda: [pair((70001,)), pair((3,), F64)], 2),
    "many": (lambda: [pair((64,), seed=n) for n in range(129)], 129),
    "both dtypes": (lambda: [pair((5,)), pair((5,), F64), pair((5,))], 3),
    "shapes": (
        lambda: [pair(()), pair((2, 3)), pair((2, 3, 4, 5), change=channels_last), pair((3, 4), change=Tensor.t)],
        4,
    ),
    "parameters": (lambda: [pair((3,), change=Parameter), [Parameter(normal((3,), F32, 0)), normal((3,), F32, 1)]], 2),
    "other strides": (lambda: [pair((5,)), odd_strides(), pair((5,))], 2),
    "other strides of size 1": (lambda: [[normal((1, 4), F32, 0), normal((4, 1), F32, 1).t()]], 1),
    "gaps": (lambda: [pair((5,)), pair((5, 4), change=lambda t: t[:, ::2]), pair((5,))], 2),
    "parameter expanded": (lambda: [[normal((3, 4), F32, 0), normal((4,), F32, 1).expand(3, 4)]], 0),
    "parameter broadcast": (lambda: [pair((5,)), [normal((3, 4), F32, 0), normal((4,), F32, 1)], pair((5,))], 2),
    "average broadcast": (lambda: [pair((5,)), [normal((4,), F32, 0), normal((3, 4), F32, 1)], pair((5,))], 2),
    "other shapes": (lambda: [pair((5,)), [normal((4,), F32, 0), normal((3,), F32, 1)], pair((5,))], 1),
    "average wider": (lambda: [pair((5,)), [normal((4,), F64, 0), normal((4,), F32, 1)], pair((5,))], 2),
    "average narrower": (lambda: [pair((5,)), [normal((4,), F32, 0), normal((4,), F64, 1)], pair((5,))], 2),
    "bfloat16": (lambda: [pair((5,)), pair((100,), torch.bfloat16), pair((5,))], 3),
    "of bfloat16": (lambda: [pair((5,)), [normal((4,), F32, 0), normal((4,), torch.bfloat16, 1)], pair((5,))], 2),
    "complex": (lambda: [pair((5,)), pair((5,), torch.complex64), pair((5,))], 2),
    "negated": (lambda: [pair((5,)), pair((5,), change=torch._neg_view)], 1),
    "integers": (lambda: [pair((5,)), [torch.tensor([7, 100]), torch.tensor([1000, 2])], pair((5,))], 2),
    "integers of no dimensions": (lambda: [pair((5,)), [torch.tensor(7), torch.tensor(1000)], pair((5,))], 2),
    "Booleans": (lambda: [[torch.tensor([True]), torch.tensor([False])]], 0),
    "subclass": (lambda: [pair((5,)), pair((5,), change=lambda t: t.as_subclass(Other)), pair((5,))], 2),
    "sparse": (lambda: [pair((5, 2), change=lambda t: t.relu().to_sparse())], 0),
    "copied on write": (lambda: [pair((5,)), pair((5,), change=torch._lazy_clone)], 1),
    "meta": (lambda: [pair((5,), change=lambda t: t.to("meta"))], 0),
    "one on meta": (lambda: [pair((5,)), [normal((5,), F32, 0), torch.empty(5, device="meta")]], 1),
    "inference": (lambda: [inference()], 0),
    "requires a gradient": (lambda: [pair((5,), change=lambda t: t.requires_grad_())], 1),
    "with a graph": (lambda: [pair((5,), change=lambda t: t.requires_grad_() * 2)], 1),
    "itself": (lambda: [pair((5,)), [normal((70,), F32, 0)] * 2, pair((5,))], 2),
    "the same average twice": (
        lambda: [[a := normal((7,), F32, 0), normal((7,), F32, 1)], [a, normal((7,), F32, 2)]],
        2,
    ),
    "overlapping": (lambda: [pair((5,)), overlapping()], 1),
    "of one memory": (of_one_memory, 3),
    "special values": (
        lambda: [pair((9,), d, change=with_values(math.inf, -math.inf, math.nan, 0.0, -0.0)) for d in (F32, F64)],
        2,
    ),
    "zeros": (lambda: [[torch.tensor([0.0, -0.0, 0.0, -0.0]), torch.tensor([0.0, 0.0, -0.0, -0.0])]], 1),
    "infinities": (lambda: [[torch.tensor([math.inf, 1.0, math.inf]), torch.tensor([1.0, math.inf, -math.inf])]], 1),
    "tiny": (lambda: [pair((9,), change=lambda t: t * 1e-40), pair((9,), F64, change=lambda t: t * 1e-310)], 2),
    "huge": (lambda: [pair((9,), change=lambda t: t * 1e38), pair((9,), F64, change=lambda t: t * 1e308)], 2),
}
NUMBERS = [0, 1, 0.0, 1.0, 0.005, 0.25, 0.5, 0.5 + 1e-9, 0.75, 0.999, 1 - 1e-12, 1e-30]


def version(t):
    with contextlib.suppress(RuntimeError):  # inference tensors do not have one
        return t._version


def outcome(update, pairs, x, mode=contextlib.nullcontext):
    """What an update does: its error, all tensors, and how much their versions increase."""
    tensors = [t for both in pairs for t in both]
    before = [version(t) for t in tensors]
    error = None
    try:
        with mode():
            assert update([a for a, _ in pairs], [p for _, p in pairs], x) is None
    except Exception as e:
        error = type(e), str(e)
    return (
        error,
        [
            (t.to_dense() if t.is_sparse else t).detach().as_subclass(Tensor).resolve_neg()
            for t in tensors
            if not t.is_meta
        ],
        [None if v is None else version(t) - v for t, v in zip(tensors, before, strict=True)],
        [(type(t), type(t.grad_fn), t.requires_grad) for t in tensors],
    )


def check(form, make, x, mode=contextlib.nullcontext):
    ours, theirs, _ = FORMS[form]
    (error, tensors, *rest), expected = outcome(ours, make(), x, mode), outcome(theirs, make(), x, mode)
    assert error == expected[0]
    if form == "lerp" and 1 - x == 1:  # torch's vector and scalar code differ in the sign of zeros
        tensors, expected = [t + 0.0 for t in tensors], (error, [t + 0.0 for t in expected[1]], *expected[2:])
    assert_bit_equal(tensors, expected[1], "tensors")
    assert rest == list(expected[2:])
    return error


@forms
@pytest.mark.parametrize("pairs", PAIRS)
def test_everything_is_torchs(pairs, form, threads, lists):
    make, n = PAIRS[pairs]
    check(form, make, 0.995)
    lists.clear()
    if check(form, make, 0.25) is None:
        assert sum(lists) == n - (pairs == "bfloat16" and form == "polyak")


@forms
@pytest.mark.parametrize("x", NUMBERS)
def test_numbers(x, form, threads):
    for pairs in ("lengths", "float64 lengths", "special values", "zeros", "infinities", "tiny", "huge", "integers"):
        check(form, PAIRS[pairs][0], x)


UNUSUAL = [
    *(2.5, -1.0, 2, 1e39, -1e39, 1e300, 10**30, 10**400, math.inf, math.nan, True, "x", None),
    *(np.float32(0.3), np.float64(0.3), torch.tensor(0.3)),
]


@pytest.mark.parametrize("x", UNUSUAL, ids=repr)
def test_unusual_tau(x):
    for make in (lambda: [pair((5,)), pair((5,))], lambda: [pair((5,), F64)], lambda: [pair((5,)), pair((5,), F64)]):
        check("polyak", make, x)


@pytest.mark.parametrize("x", [np.float32(0.3), np.float64(0.3), torch.tensor(0.3), True], ids=repr)
@pytest.mark.parametrize("form", ["lerp", "mul_add"])
def test_unusual_decay(x, form):
    check(form, lambda: [pair((5,)), pair((5,), F64)], x)


@pytest.mark.parametrize("x", [-1e-9, 1 + 1e-9, 2, math.inf, math.nan])
@pytest.mark.parametrize("form", ["lerp", "mul_add"])
def test_decay_out_of_range(x, form):
    a, p = pair((5,))
    with pytest.raises(ValueError, match=r"Invalid decay value .* in \[0,1\] range"):
        goptim.ema_([a], [p], x, form=form)
    assert_bit_equal(a, pair((5,))[0])


def test_bad_arguments():
    a, p = pair((5,))
    with pytest.raises(ValueError, match="ema_: form 'mean', expected 'lerp' or 'mul_add'"):
        goptim.ema_([a], [p], 0.9, form="mean")
    with pytest.raises(ValueError, match="ema_: 1 averages, expected as many as parameters, which are 2"):
        goptim.ema_([a], [p, p], 0.9)
    for targets, params in (([a], [p, p]), ([a, a], [p])):
        with pytest.raises(ValueError, match="Iterables have different lengths"):
            goptim.polyak_update(params, targets, 0.9)
    assert_bit_equal(a, pair((5,))[0])


@forms
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("n", [1, 1003, 70001, pytest.param(3_000_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.covering
def test_threads(count, n, dtype, form, threads):
    threads(count)
    for x in (0.005, 0.9):
        check(form, lambda: [pair((n,), dtype), pair((7,), dtype), pair((n,), dtype, 7)], x)


@forms
def test_memory_in_two_storages(form, threads):
    """The second pair reads what the first one has written, with any number of threads."""
    n = 400_000
    memory, params = normal((3 * n,), F32, 0), [normal((2 * n,), F32, i) for i in (1, 2)]

    def make():  # a thread for each pair would find the second half of the first one's average unchanged
        numbers = memory.clone().numpy()
        return [[torch.from_numpy(numbers[: 2 * n]), params[0]], [params[1].clone(), torch.from_numpy(numbers[n:])]]

    threads(2)
    check(form, make, 0.25)


@forms
def test_iterables(form):
    ours, theirs, _ = FORMS[form]
    for change in (iter, tuple, lambda x: (t for t in x), lambda x: dict(enumerate(x)).values()):
        expected, actual = ([pair((5,)), pair((3,))] for _ in range(2))
        theirs(change([a for a, _ in expected]), change([p for _, p in expected]), 0.25)
        ours(change([a for a, _ in actual]), change([p for _, p in actual]), 0.25)
        assert_bit_equal(actual, expected)


def test_single_tensors():
    a, p = pair((5, 4))
    expected = a.lerp(p, 1 - 0.9)
    goptim.ema_(a, p, 0.9)
    assert_bit_equal(a, expected)


@forms
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes(mode, form):
    check(form, lambda: [pair((5,)), pair((3,), change=Parameter)], 0.25, mode)


@forms
def test_versions(form):
    a, p = pair((5,))
    FORMS[form][0]([a], [p], 0.25)
    assert (a._version, p._version) == (FORMS[form][2], 0)


@forms
@pytest.mark.parametrize("missing", ["layout", "core"])
def test_without_a_layout_and_without_go(missing, form, monkeypatch, lists):
    monkeypatch.setattr(_native, missing, lambda: None)
    check(form, lambda: [pair((5,)), pair((3,), F64)], 0.25)
    assert not lists


@forms
def test_dispatch_modes_see_torchs_operations(form, lists):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    seen = []
    check(form, lambda: [pair((5,))], 0.25, Seeing)
    assert seen
    assert not lists


@pytest.mark.full
@forms
def test_compilation(form):
    """Compiled, an update is traced into one graph of torch's operations."""
    ours, theirs, _ = FORMS[form]
    expected, actual = ([pair((5,)), pair((3,), F64)] for _ in range(2))
    theirs([a for a, _ in expected], [p for _, p in expected], 0.25)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    compiled([a for a, _ in actual], [p for _, p in actual], 0.25)
    assert_bit_equal(actual, expected)


def test_polyak_of_batch_norm_statistics():
    """What stable-baselines3 does to a target network with batch normalization."""
    nets = [[torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)) for _ in range(2)] for _ in range(2)]
    for net, target in nets:
        torch.default_generator.manual_seed(0)
        for module in (net, target):
            for t in module.state_dict().values():
                t.copy_(torch.rand(t.shape) * 3)
    for update, (net, target) in zip((polyak_update, goptim.polyak_update), nets, strict=True):
        update(net.parameters(), target.parameters(), 0.005)
        statistics = [[t for n, t in m.named_buffers() if "running_" in n] for m in (net, target)]
        update(*statistics, 1.0)
        update(net.buffers(), target.buffers(), 1)
        with pytest.raises(RuntimeError, match="result type Float can't be cast"):
            update(net.buffers(), target.buffers(), 1.0)
    for (name, t), expected in zip(nets[1][1].state_dict().items(), nets[0][1].state_dict().values(), strict=True):
        assert_bit_equal(t, expected, name)
