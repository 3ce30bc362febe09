"""What surrounds a step, with 16-bit tensors: norms, clipping, averages, loss scaling, and steps with all of them.

The oracle is torch's function, for every bit. With ``norm_dtype=torch.float32`` it is torch's function for norms of
float32 copies. Sums in another order usually round to the same 16 bits, so tensors whose norms are close to the middle
of two numbers tell them apart (`near_a_tie`).
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from configurations import NEEDS_FMA, TABLE, normal
from test_half import Wide, full_unless
from torch import Tensor
from torch.nn import Parameter
from torch.optim import swa_utils as torch_swa

import goptim
from goptim import _lists, swa_utils
from goptim.testing import assert_bit_equal

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

pytestmark = [
    NEEDS_FMA,
    pytest.mark.usefixtures("threads"),
]

HALVES = pytest.mark.parametrize("dtype", [BF16, F16], ids=["bfloat16", "float16"])
LENGTHS = [0, 1, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 100, 1003, (), (3, 0)]


@pytest.fixture
def in_go(monkeypatch):
    """The kinds of lists that ran in Go, each with its number of rows."""
    seen = []
    monkeypatch.setattr(_lists, "watch", lambda name, rows: seen.append((name, rows)))
    return seen


def near_a_tie(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A tensor whose norm is just below the middle of two numbers of its dtype."""
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.standard_normal(n)).to(dtype)
    at = random.permutation(n)[:4]
    x[at.tolist()] = 0
    least = torch.tensor(math.sqrt(float((x.double() ** 2).sum())) * 1.003 + 0.01).to(dtype)
    above = (least.view(torch.int16) + 1).view(dtype)
    rest = ((least.double() + above.double()) / 2).item() ** 2 - float((x.double() ** 2).sum())
    for i in at.tolist():
        value = torch.tensor(max(rest, 0) ** 0.5).to(dtype)
        if value.double().item() ** 2 > rest:
            value = (value.view(torch.int16) - 1).view(dtype) if value > 0 else value
        x[i] = value * (1 if random.random() < 0.5 else -1)
        rest -= value.double().item() ** 2
    return x


def tensors(dtype, lengths=LENGTHS, seed=0):
    return [normal(n if type(n) is tuple else (n,), dtype, seed + i) for i, n in enumerate(lengths)]


def parameters(grads):
    params = []
    for g in grads:
        p = Parameter(torch.empty_like(g))
        p.grad = g
        params.append(p)
    return params


def layouts(dtype):
    return [
        normal((4, 3), dtype, 0).t(),
        normal((2, 3, 4, 5), dtype, 1).to(memory_format=torch.channels_last),
        normal((99,), dtype, 2)[1:],
        normal((2, 4), dtype, 3)[1],
        normal((2, 3, 4), dtype, 4).permute(2, 0, 1),
    ]


def memory(dtype):
    """Gradients that share memory."""
    x = normal((301,), dtype, 0)
    return [x[:200], x[100:], x, x.view(torch.int16).view(dtype)[3:9]]


def special(dtype, *values):
    return [*tensors(dtype, [5, 40]), torch.tensor([1.0, *values, 2.0]).to(dtype)]


MIXED = {
    "all": lambda dtype: [*tensors(F32, [5, 9]), *tensors(BF16, [40, 3]), *tensors(F16, [7, ()]), *tensors(F32, [33])],
    "with float64": lambda dtype: [*tensors(dtype, [5, 9, ()]), *tensors(F64, [5])],
    "16 bits": lambda dtype: [*tensors(BF16, [50]), *tensors(F16, [50]), *tensors(BF16, [3])],
    "gaps": lambda dtype: [*tensors(dtype, [5, 100]), normal((6, 8), dtype, 7)[:, ::2], *tensors(dtype, [33])],
}
GRADIENTS = {
    "lengths": tensors,
    "long": lambda dtype: tensors(dtype, [70001, 3, 32768]),
    "layouts": layouts,
    "many": lambda dtype: tensors(dtype, [64] * 67),
    "one": lambda dtype: tensors(dtype, [33]),
    "of one memory": memory,
    "inf": lambda dtype: special(dtype, math.inf, -math.inf),
    "NaN": lambda dtype: special(dtype, math.nan),
    "overflow": lambda dtype: special(dtype, torch.finfo(dtype).max, torch.finfo(dtype).min),
    "zeros": lambda dtype: [torch.zeros(9, dtype=dtype), -torch.zeros(40, dtype=dtype)],
    "tiny": lambda dtype: [t * torch.finfo(dtype).tiny for t in tensors(dtype, [9, 40, 1])],
    **MIXED,
}
CALLS = {
    "clip": lambda f, p: f.clip_grad_norm_(p, 0.37),
    "clip a little": lambda f, p: f.clip_grad_norm_(p, 7.3),
    "do not clip": lambda f, p: f.clip_grad_norm_(p, 1e6),
    "clip by the largest": lambda f, p: f.clip_grad_norm_(p, 0.37, math.inf),
    "clip by the sum": lambda f, p: f.clip_grad_norm_(p, 0.37, 1.0),
    "clip in a loop": lambda f, p: f.clip_grad_norm_(p, 0.37, foreach=False),
    "norm": lambda f, p: f.get_total_norm([q.grad for q in p]),
    "norm by the largest": lambda f, p: f.get_total_norm([q.grad for q in p], math.inf),
    "scale": lambda f, p: f.clip_grads_with_norm_(p, 0.37, torch.tensor(3.3)),
    "scale in float64": lambda f, p: f.clip_grads_with_norm_(p, 0.37, torch.tensor(3.3, dtype=F64)),
    "scale in bfloat16": lambda f, p: f.clip_grads_with_norm_(p, 0.37, torch.tensor(3.3, dtype=BF16)),
    "value": lambda f, p: f.clip_grad_value_(p, 0.37),
    "value in a loop": lambda f, p: f.clip_grad_value_(p, 0.37, foreach=False),
    "large value": lambda f, p: f.clip_grad_value_(p, 1e5),
    "infinite value": lambda f, p: f.clip_grad_value_(p, math.inf),
}


def outcome(call, module, grads):
    """The result or the error of a call, the gradients, and how much their versions have grown."""
    params = parameters(grads)
    before = [g._version for g in grads]
    try:
        result = call(module, params)
    except (RuntimeError, TypeError) as e:
        return str(e), None, None
    return result, grads, [g._version - v for g, v in zip(grads, before, strict=True)]


@HALVES
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("gradients", full_unless([*GRADIENTS], ["lengths", "all", "NaN", "layouts"]))
def test_gradients(gradients, call, dtype, in_go):
    if not hasattr(torch.nn.utils, "get_total_norm") and (call.startswith("norm") or "scale" in call):
        pytest.skip("torch 2.6 does not have this function")
    theirs, ours = (outcome(CALLS[call], f, GRADIENTS[gradients](dtype)) for f in (torch.nn.utils, goptim))
    assert type(ours[0]) is type(theirs[0])
    assert ours[2] == theirs[2]
    if type(theirs[0]) is str:
        assert ours[0] == theirs[0]
        return
    if theirs[0] is not None:
        assert_bit_equal(ours[0], theirs[0], "the norm")
    assert_bit_equal(ours[1], theirs[1], "gradients")
    if gradients not in MIXED and "sum" not in call and not (dtype is F16 and call == "large value"):
        assert in_go
    if gradients not in MIXED and ("clip" in call and "sum" not in call and gradients != "lengths"):
        assert in_go == [("ClipGradNorm", len(ours[1]))]


@HALVES
@pytest.mark.parametrize("start", full_unless([*range(5, 75, 10)], [5, 25]))
def test_norms_near_ties(start, dtype):
    """Lanes, halves of vectors and tails: another order rounds a tenth of these norms differently."""
    for n in range(start, start + 10):
        xs = [near_a_tie(n, dtype, 100 * n + i) for i in range(9)]
        for x in xs:
            assert_bit_equal(goptim.get_total_norm([x]), torch.linalg.vector_norm(torch.linalg.vector_norm(x)))
            widened = goptim.get_total_norm([x], norm_dtype=F32)
            assert_bit_equal(widened, torch.linalg.vector_norm(x.float()))
        together = _lists.NORMS(xs, None, (2.0, _lists.order_of_norms(), False), _lists.EACH)
        assert_bit_equal(torch.tensor(together).to(dtype), torch.stack(torch._foreach_norm(xs)))
        widened = _lists.NORMS(xs, None, (2.0, _lists.order_of_norms(), True), _lists.EACH)
        assert_bit_equal(torch.tensor(widened), torch.stack(torch._foreach_norm([x.float() for x in xs])))


@HALVES
@pytest.mark.parametrize("count", full_unless([1, 2, 3], [2]))
def test_long_norms(count, dtype, threads):
    """torch divides the sum of a float16 tensor among its threads, from 32768 elements on."""
    threads(count)
    for n in (32767, 32768, 32769, 65537, 98305, 100003):
        x = near_a_tie(n, dtype, n)
        assert_bit_equal(goptim.get_total_norm([x]), torch.linalg.vector_norm(x), f"{n} elements")
        y = normal((n,), dtype, 3)
        assert_bit_equal(goptim.get_total_norm([x, y]), total([x, y]), f"2 x {n} elements")


@pytest.mark.full
@HALVES
def test_norms_of_many(dtype, threads):
    """More norms than torch adds on one thread."""
    threads(2)
    x = [t.reshape(()) for t in near_a_tie(32770, dtype, 0)]
    assert_bit_equal(goptim.get_total_norm(x), total(x))


@pytest.mark.full
def test_tiny_norms():
    """Squares of bfloat16 that are subnormal in float32: whether torch fuses them into the sum shows."""
    random = np.random.default_rng(2)
    for n in range(2, 70):
        for _ in range(10):
            x = torch.from_numpy(random.standard_normal(n) * 10 ** random.uniform(-23.5, -21.5)).to(BF16)
            assert_bit_equal(goptim.get_total_norm([x]), torch.linalg.vector_norm(x))


def total(grads):
    """torch's total norm, also of a version that does not have the function."""
    return torch.nn.utils.clip_grad_norm_(parameters([g.clone() for g in grads]), 1.0)


@HALVES
def test_coefficients(dtype):
    """The coefficient is rounded three times. Of a norm that is the largest number allowed it may be 1, or not."""
    encodings = torch.arange(1, 0x7C00 if dtype is F16 else 0x7F80, 97, dtype=torch.int16)
    norms = [*encodings.view(dtype), torch.tensor(math.inf).to(dtype), torch.tensor(math.nan).to(dtype)]
    for norm, most in itertools.product(norms[::3] + norms[-2:], (0.37, 1.0, 3.3, 1e4, 1e-6, 3e-4)):
        theirs, ours = (outcome(lambda f, p: f.clip_grad_norm_(p, most), f, [norm.clone().view(1)])  # noqa: B023
                        for f in (torch.nn.utils, goptim))  # fmt: skip
        assert_bit_equal(ours[1], theirs[1], f"norm {norm.item()}, max_norm {most}")


@HALVES
@pytest.mark.parametrize("norm_type", [2.0, math.inf, 1.0])
@pytest.mark.parametrize("gradients", full_unless([*GRADIENTS, "sixteen"], ["lengths", "all", "gaps"]))
def test_float32_norms(gradients, norm_type, dtype, in_go):
    def make():
        return tensors(dtype, [9, 5]) if gradients == "sixteen" else GRADIENTS[gradients](dtype)

    def widened(t):
        return t.float() if t.dtype in (BF16, F16) else t

    if gradients == "lengths" and norm_type == math.inf:
        return  # no norm of an empty tensor
    theirs = parameters(make())
    norm = torch.nn.utils.clip_grad_norm_(parameters([widened(p.grad).clone() for p in theirs]), 1e30, norm_type)
    for most in (0.37, norm.item(), 1e6):
        expected, ours = make(), parameters(make())
        coefficient = torch.clamp(most / (norm + 1e-6), max=1.0)
        assert norm.dtype is (F64 if gradients == "with float64" else F32)
        versions = [p.grad._version + 1 for p in ours]
        for g in expected:
            g.mul_(coefficient)
        result = goptim.clip_grad_norm_(ours, most, norm_type, norm_dtype=F32)
        assert_bit_equal(result, norm, "the norm")
        assert_bit_equal([p.grad for p in ours], expected, "gradients")
        assert [p.grad._version for p in ours] == versions or gradients == "of one memory"
        assert_bit_equal(goptim.get_total_norm(make(), norm_type, norm_dtype=F32), norm)
    if norm_type != 1 and gradients not in ("gaps", "with float64"):
        assert [name for name, _ in in_go] == ["ClipGradNorm", "GradNorm"] * 3  # also of several dtypes


def test_float32_norms_do_not_overflow():
    """A float16 gradient whose norm is above 65504 becomes 0 with torch's coefficient."""
    theirs, ours = (parameters([torch.full((70001,), 300.0, dtype=F16)]) for _ in range(2))
    assert goptim.clip_grad_norm_(theirs, 1.0).isinf()
    assert not theirs[0].grad.any()
    norm = goptim.clip_grad_norm_(ours, 1.0, norm_dtype=F32)
    assert abs(norm.item() / (300 * 70001**0.5) - 1) < 1e-3
    assert abs(ours[0].grad.float().norm().item() - 1) < 1e-3


def test_norm_dtype_is_checked():
    g = torch.ones(3, dtype=BF16)
    for dtype in (F64, BF16, "float32"):
        for call in (
            lambda d: goptim.clip_grad_norm_(parameters([g]), 1.0, norm_dtype=d),
            lambda d: goptim.get_total_norm([g], norm_dtype=d),
            lambda d: goptim.SGD(parameters([g])).step(max_grad_norm=1.0, norm_dtype=d),
        ):
            with pytest.raises(ValueError, match=r"norm_dtype is .*, expected torch.float32 or None"):
                call(dtype)
    assert_bit_equal(g, torch.ones(3, dtype=BF16))


def pairs(dtype):
    """Averages and parameters, with numbers of all sizes."""
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    random = torch.randperm(65536, generator=torch.Generator().manual_seed(1))
    averages = [*tensors(dtype, seed=0), *layouts(dtype), every.clone(), normal((70001,), dtype, 5)]
    return averages, [*tensors(dtype, seed=50), *layouts(dtype), every[random], normal((70001,), dtype, 6)]


WEIGHTS = [0.0, 0.005, 0.1, 0.4999, 0.5, 0.9, 0.999, 1.0]


@HALVES
@pytest.mark.parametrize("weight", full_unless(WEIGHTS, [0.005, 0.9]))
@pytest.mark.parametrize("count", full_unless([1, 2], [2]))
def test_averages(count, weight, dtype, threads, in_go):
    threads(count)
    for form in ("lerp", "mul_add"):
        (expected, params), (averages, _) = pairs(dtype), pairs(dtype)
        if form == "lerp":
            torch._foreach_lerp_(expected, params, 1 - weight)
        else:
            expected = [weight * a + (1 - weight) * p for a, p in zip(expected, params, strict=True)]
        goptim.ema_(averages, params, weight, form)
        assert_bit_equal(averages, expected, form)
    assert in_go == [("Lerp", len(params)), ("MulAdd", len(params))]
    (expected, params), (targets, _) = pairs(dtype), pairs(dtype)
    for t, p in zip(expected, params, strict=True):
        t.mul_(1 - weight)
        torch.add(t, p, alpha=weight, out=t)
    goptim.polyak_update(params, targets, weight)
    assert_bit_equal(targets, expected, "polyak")


@HALVES
def test_averages_of_several_dtypes(dtype):
    def make():
        kinds = F32, dtype, BF16, F64, F16, dtype
        return tuple([normal((40,), d, 9 * k + i) for i, d in enumerate(kinds)] for k in range(2))

    for form in ("lerp", "mul_add"):
        (expected, params), (averages, _) = make(), make()
        for a, p in zip(expected, params, strict=True):
            a.copy_(a.lerp(p, 1 - 0.9) if form == "lerp" else 0.9 * a + (1 - 0.9) * p)
        goptim.ema_(averages, params, 0.9, form)
        assert_bit_equal(averages, expected, form)


FORMS = {
    "swa": dict,
    "swa, many": lambda: {"multi_avg_fn": torch_swa.get_swa_multi_avg_fn()},
    "ema, many": lambda: {"multi_avg_fn": torch_swa.get_ema_multi_avg_fn(0.9)},
    "ema, one": lambda: {"avg_fn": torch_swa.get_ema_avg_fn(0.9)},
}


@HALVES
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("buffers", [False, True])
def test_averaged_models(buffers, form, dtype, in_go):
    if buffers and form == "swa, many":
        return  # torch raises an error for the buffer of integers
    model = torch.nn.Sequential(torch.nn.Linear(33, 70), torch.nn.BatchNorm1d(70), torch.nn.Linear(70, 3, dtype=dtype))
    model[0].to(dtype)
    theirs = torch_swa.AveragedModel(model, use_buffers=buffers, **FORMS[form]())
    ours = swa_utils.AveragedModel(model, use_buffers=buffers, **FORMS[form]())
    for at in (0, 1, 2, 3, 999, 70001):
        theirs.n_averaged.fill_(at)
        ours.n_averaged.fill_(at)
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(normal(p.shape, p.dtype, at + i))
        theirs.update_parameters(model)
        ours.update_parameters(model)
        assert_bit_equal(ours.state_dict(), theirs.state_dict(), f"after {at}")
    assert {name for name, _ in in_go} == {"Copy", {"swa": "SWA", "ema, one": "MulAdd"}.get(form, "Lerp")}


@HALVES
def test_zero_grad(dtype, in_go):
    params = parameters(GRADIENTS["all"](dtype))
    goptim.SGD(params).zero_grad(set_to_none=False)
    assert in_go == [("Zero", len(params))]
    assert_bit_equal([p.grad for p in params], [torch.zeros_like(p.grad) for p in params])


@HALVES
@pytest.mark.parametrize("scale", [1.0, 65536.0, 3.0, 0.25])
@pytest.mark.parametrize("bad", [None, math.inf, math.nan])
@pytest.mark.parametrize("allowed", [False, True])
def test_unscale(allowed, bad, scale, dtype, in_go):
    results = []
    for scaler_class, cls in ((torch.amp.GradScaler, torch.optim.SGD), (goptim.amp.GradScaler, goptim.SGD)):
        params = parameters([*tensors(dtype, [1, 33, 70001]), *tensors(F32, [9]), *layouts(dtype)])
        if bad is not None:
            params[1].grad[7] = bad
        inverse, found = torch.tensor(1 / scale), torch.zeros(())
        scaler = scaler_class("cpu")
        try:
            found = scaler._unscale_grads_(cls(params, lr=1.0), inverse, found, allowed)
        except ValueError as e:
            found = str(e)
        results.append((found, [p.grad for p in params]))
    theirs, ours = results
    assert ours[0] == theirs[0]
    assert type(ours[0]) is (str if dtype is F16 and not allowed else dict)
    assert_bit_equal(ours[1], theirs[1])
    assert in_go == ([("Unscale", 9)] if type(ours[0]) is dict else [])


def leaves(values):
    return [v.detach().clone().requires_grad_() for v in values]


def trained(configuration, dtypes, separate, norm_dtype=None, steps=4, most=0.5, lengths=(5, 64, 1003, 70001)):
    """Parameters, averages and gradients after steps with all that surrounds them, in one call or in separate ones."""
    kinds = itertools.cycle(dtypes)
    values = [normal((n,), next(kinds), i) for i, n in enumerate(lengths)]
    params = leaves(values)
    opt = configuration.ours(params)
    ema = goptim.EMA(params, 0.9)
    norms = []
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = None if (step + i) % 5 == 4 else normal(p.shape, p.dtype, 100 * step + i)
        limit = 1e6 if step == 2 else most
        if separate:
            norms.append(goptim.clip_grad_norm_(params, limit, norm_dtype=norm_dtype))
            opt.step()
            ema.update()
            opt.zero_grad(set_to_none=False)
        else:
            before = [None if p.grad is None else p.grad.clone() for p in params]
            opt.step(max_grad_norm=limit, ema=ema, zero_grad=step != 3, norm_dtype=norm_dtype)
            norms.append(opt.grad_norm)
            if step == 3 and (len(dtypes) == 1 or norm_dtype is not None):
                assert_bit_equal([p.grad for p in params if p.grad is not None], [g for g in before if g is not None])
        assert step == 3 or all(p.grad is None or not p.grad.any() for p in params)
    return params, opt.state_dict()["state"], list(ema.averages), norms


SOME = [TABLE[name][-1] for name in ("AdamW", "SGD", "NAdam", "RMSprop", "Rprop")]


@pytest.mark.parametrize("norm_dtype", [None, F32])
@pytest.mark.parametrize("dtypes", [(BF16,), (F16,), (BF16, F32), (BF16, F16)], ids=str)
@pytest.mark.parametrize(
    "configuration", [c if c.optimizer in ("AdamW", "SGD") else pytest.param(c, marks=pytest.mark.full) for c in SOME]
)
def test_steps_in_one_call(configuration, dtypes, norm_dtype, in_go):
    expected = trained(configuration, dtypes, True, norm_dtype)
    in_go.clear()
    assert_bit_equal(trained(configuration, dtypes, False, norm_dtype), expected)
    if len(dtypes) == 1 or norm_dtype is not None:
        once = sum(name == "GradNorm" for name, _ in in_go)  # the first step creates states
        assert once == 1
        assert not any(name == "Scale" for name, _ in in_go)


@pytest.mark.parametrize("count", [1, 2])
@HALVES
def test_steps_are_torchs(dtype, count, threads):
    """All that surrounds a step by torch, and the step on float32 copies as in test_half.py."""
    threads(count)
    configuration = TABLE["AdamW"][0]
    values = [normal((n,), dtype, i) for i, n in enumerate((5, 64, 1003, 70001))]
    params = leaves(values)
    opt, oracle = configuration.ours(params), Wide(configuration, values)
    ema = goptim.EMA(params, 0.9)
    averages = [v.clone() for v in values]
    for step in range(4):
        grads = [normal(p.shape, dtype, 100 * step + i) for i, p in enumerate(params)]
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        opt.step(max_grad_norm=0.5, ema=ema, zero_grad=True)
        norm = torch.nn.utils.clip_grad_norm_(parameters(grads), 0.5)
        oracle.step(grads)
        torch._foreach_lerp_(averages, oracle.narrow_params(), 1 - 0.9)
        assert_bit_equal(opt.grad_norm, norm)
        assert_bit_equal([p.detach() for p in params], oracle.narrow_params(), "parameters")
        assert_bit_equal(list(ema.averages), averages, "averages")


@HALVES
def test_clipped_gradients_of_parameters_in_torch(dtype):
    """A parameter that falls back to torch: gradients in Go are scaled as they are read, and rounded."""
    results = []
    for separate in (True, False):
        params = leaves([normal((40,), dtype, 0), normal((9,), dtype, 1)])
        params.append(Parameter(normal((6, 8), dtype, 2)[:, ::2]))
        for i, p in enumerate(params):
            p.grad = torch.empty_strided(p.shape, p.stride(), dtype=dtype).copy_(normal(p.shape, dtype, 5 + i))
        opt = goptim.SGD(params, lr=0.1, momentum=0.9)
        if separate:
            goptim.clip_grad_norm_(params, 0.3)
            opt.step()
        else:
            opt.step(max_grad_norm=0.3)
        results.append(([p.detach() for p in params], opt.state_dict()["state"]))
    assert_bit_equal(results[1], results[0])


def test_the_attribute_is_kept():
    opt = goptim.SGD([torch.ones(3, dtype=BF16, requires_grad=True)])
    opt.max_grad_norm, opt.norm_dtype = 0.5, F32
    opt.param_groups[0]["params"][0].grad = torch.ones(3, dtype=BF16)
    again = copy.deepcopy(opt)
    again.step()
    assert again.grad_norm.dtype is F32
    assert "norm_dtype" not in again.state_dict()
