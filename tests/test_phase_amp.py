"""goptim.amp.GradScaler, and torch's under patch(), against torch's with torch's classes."""

import contextlib
import inspect
import math
import pickle

import pytest
import torch
from configurations import IN_TABLES, class_of, normal, oracle_of
from test_dropin import accepted, assert_same
from torch.nn import Parameter

import goptim
from goptim import _lists, _scaler
from goptim.testing import assert_bit_equal, ieee_sqrt

F32, F64, B16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
FUSED = ("Adam", "AdamW", "SGD", "Adagrad")

WAYS = [(name, fused) for name in IN_TABLES for fused in (None, True) if fused is None or name in FUSED]
ways = pytest.mark.parametrize(("name", "fused"), WAYS)


@pytest.fixture
def in_go(monkeypatch):
    """How many gradients each call of Go had."""
    seen = []
    own = _lists.ListKind.__call__

    def call(self, *args, **kwargs):
        done = own(self, *args, **kwargs)
        if self in (_scaler._UNSCALE, _scaler._DIVIDE):
            seen.append((self.name, done[0] if type(done) is tuple else done))
        return done

    monkeypatch.setattr(_lists.ListKind, "__call__", call)
    return seen


def params_like(dtypes=(F32, F32)):
    shapes = [(4, 3), (1003,), (70001,), (), (2, 3)]
    return [Parameter(normal(s, dtypes[i % 2], i)) for i, s in enumerate(shapes)]


def train(optimizer, scaler_class, dtypes=(F32, F32), scale=1000.0, bad=None, unscaled=False, steps=4, **options):
    """Steps of an optimizer with scaled gradients. In the step 1, one is bad. Returns everything that it can change."""
    params = params_like(dtypes)
    opt = optimizer(params, **options)
    scaler = scaler_class("cpu", init_scale=scale, growth_interval=2)
    seen = []
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = normal(p.shape, p.dtype, 10 * step + i)
        if step == 1 and bad is not None:
            params[1].grad[7] = bad
        if step == 2:
            params[0].grad = None
        versions = [p.grad._version for p in params if p.grad is not None]
        with ieee_sqrt():
            scaler.scale(torch.ones(()))
            if unscaled:
                scaler.unscale_(opt)
                torch.nn.utils.clip_grad_norm_(params, 0.1)
            assert scaler.step(opt) is None
        scaler.update()
        assert not hasattr(opt, "grad_scale")
        assert not hasattr(opt, "found_inf")
        counts = [p.grad._version - v for p, v in zip([p for p in params if p.grad is not None], versions, strict=True)]
        seen.append((scaler.get_scale(), [p.grad.clone() for p in params if p.grad is not None], counts))
    return opt, seen, scaler.state_dict()


class Dividing(torch.amp.GradScaler):
    """A scaler that divides gradients by the scale before a step of torch's for-loop, as torch's fused kernels do."""

    def step(self, optimizer):
        state = self._per_optimizer_states[id(optimizer)]
        ready = state["stage"].name == "READY"
        if ready:
            self._check_inf_per_device(optimizer)
        if not any(x.item() for x in state["found_inf_per_device"].values()):
            for p in [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]:
                if ready:
                    p.grad.data.div_(self._scale)
            optimizer.step()
        state["stage"] = type(state["stage"]).STEPPED


def compare(name, fused, **given):
    options = accepted(name, fused=fused, lr=0.0123)
    if not fused and B16 in given.get("dtypes", ()):  # or they run in Go, with other results
        options |= accepted(name, foreach=False) | {"fused": False}
    theirs = {**options, **({} if fused else accepted(name, foreach=False))}
    expected, expected_seen, expected_state = train(oracle_of(name), torch.amp.GradScaler, **given, **theirs)
    ours, seen, state = train(class_of(name), goptim.amp.GradScaler, **given, **options)
    for x, y in zip(seen, expected_seen, strict=True):
        assert x[0] == y[0]
        assert_bit_equal(x[1], y[1], "gradients")
        assert x[2] == y[2]
    assert state == expected_state
    if fused and name in ("Adam", "AdamW") and B16 not in given.get("dtypes", ()):
        # The states of torch's fused kernels have other bits than those of its for-loop.
        theirs |= {"fused": False, "foreach": False}
        expected, expected_seen, _ = train(oracle_of(name), Dividing, **given, **theirs)
        for x, y in zip(seen, expected_seen, strict=True):
            assert_bit_equal(x[1], y[1], "gradients")
    assert_same(ours, expected)


@ways
@pytest.mark.parametrize("dtypes", [(F32, F32), (F64, F64), (F32, F64)], ids=["float32", "float64", "both"])
@pytest.mark.parametrize("bad", [None, math.inf, math.nan])
@pytest.mark.covering
def test_steps(name, fused, dtypes, bad, in_go):
    """The scale is not a power of two, so dividing differs from multiplying with the inverse."""
    compare(name, fused, dtypes=dtypes, bad=bad)
    kinds = [(kind, n) for n in (5, 5, 4, 5) for kind in ("Unscale", "Divide")]
    if bad is not None:
        del kinds[3]  # torch skips the step
    divides = fused and getattr(
        oracle_of(name)([Parameter(torch.ones(1))], fused=True), "_step_supports_amp_scaling", 0
    )
    assert in_go == [x for x in kinds if divides or x[0] == "Unscale"]  # torch 2.6's fused Adagrad does not divide


@ways
def test_unscaled_and_clipped_before(name, fused, in_go):
    compare(name, fused, bad=-math.inf, unscaled=True)
    assert in_go == [("Unscale", n) for n in (5, 5, 4, 5)]


@ways
def test_scale_of_one(name, fused):
    compare(name, fused, scale=1.0, steps=1)


@pytest.mark.parametrize(("name", "fused"), [("AdamW", None), ("AdamW", True), ("SGD", None), ("SGD", True)])
@pytest.mark.parametrize("bad", [None, math.inf])
def test_bfloat16(name, fused, bad, in_go):
    """Go unscales them, but torch steps all gradients of the optimizer if it divides them."""
    compare(name, fused, dtypes=(F32, B16), bad=bad, scale=1024.0)
    assert {type(x) for kind, x in in_go if kind == "Unscale"} == {int}
    assert {type(x) for kind, x in in_go if kind == "Divide"} <= {bytes}


@pytest.mark.parametrize("fused", [None, True])
def test_gradients_with_other_strides(fused):
    """Go divides all of them, and torch steps the one whose layout Go does not support."""
    results = []
    for cls, scaler_class in ((torch.optim.Adagrad, torch.amp.GradScaler), (goptim.Adagrad, goptim.amp.GradScaler)):
        params = [Parameter(normal((3, 4), F32, 0)), Parameter(normal((9,), F32, 1))]
        opt, scaler = cls(params, fused=fused), scaler_class("cpu", init_scale=1000.0)
        for step in range(3):
            params[0].grad = normal((4, 3), F32, step).t()
            params[1].grad = normal((9,), F32, 10 + step)
            scaler.scale(torch.ones(()))
            with ieee_sqrt():
                scaler.step(opt)
            scaler.update()
        results.append([*params, *(p.grad for p in params), opt.state_dict()["state"]])
    assert_bit_equal(*results)


def test_explain():
    params = params_like()
    opt = goptim.AdamW(params, fused=True)
    opt.grad_scale, opt.found_inf = torch.full((), 2.0), torch.zeros(())
    assert {row.to for row in goptim.explain(opt)} == {"go"}
    params[3].grad = torch.zeros(()).to_sparse()
    assert {row.reason for row in goptim.explain(opt)} == {"a GradScaler passes its scale to the optimizer"}
    opt.param_groups[0]["fused"], params[3].grad = False, None
    assert {row.to for row in goptim.explain(opt)} == {"torch"}


def test_new_momentum_buffer_of_a_skipped_step():
    """torch's fused SGD leaves it uninitialized if the first step is skipped; goptim's creates it in the next step."""
    results = []
    for infinite_first in (False, True):
        p = Parameter(normal((9,), F32, 0))
        opt, scaler = goptim.SGD([p], lr=0.1, momentum=0.9, fused=True), goptim.amp.GradScaler(init_scale=4.0)
        for step in range(infinite_first, 3):
            scaler.scale(torch.ones(()))
            p.grad = torch.full((9,), math.inf) if infinite_first and step == 1 else normal((9,), F32, step)
            scaler.step(opt)
            if infinite_first and step == 1:
                assert not opt.state
            scaler.update(4.0)
        if not infinite_first:
            q = Parameter(normal((9,), F32, 0))
            opt = torch.optim.SGD([q], lr=0.1, momentum=0.9)
            for step in range(3):
                q.grad = normal((9,), F32, step) / 4
                opt.step()
            assert_bit_equal(p, q)
        results.append(p)


@pytest.mark.parametrize("fused", [None, True])
def test_clipping_in_the_step(fused):
    """A step that gets a scale divides the gradients by it first, and then clips them."""
    results = []
    for one_call in (False, True):
        params = params_like()
        opt, scaler = goptim.AdamW(params, fused=fused), goptim.amp.GradScaler(init_scale=1000.0)
        ema = goptim.EMA(params, 0.9)
        for step in range(4):
            for i, p in enumerate(params):
                p.grad = normal(p.shape, p.dtype, 10 * step + i) * (math.inf if step == 1 else 1)
            scaler.scale(torch.ones(()))
            if one_call:
                scaler.step(opt, max_grad_norm=0.1, ema=ema)
            else:
                if fused:  # as the step does; unscale_ multiplies by the inverse
                    for p in params:
                        p.grad /= scaler.get_scale()
                    torch.nn.utils.clip_grad_norm_(params, 0.1)
                    if step != 1:
                        opt.step()
                else:
                    scaler.unscale_(opt)
                    torch.nn.utils.clip_grad_norm_(params, 0.1)
                    scaler.step(opt)
                if step != 1:
                    ema.update()
            if not fused or one_call:
                scaler.update()
            elif step == 1:
                scaler.scale(torch.ones(()))
                scaler._scale *= 0.5
        results.append([*params, *ema.averages, opt.state_dict()["state"]])
    assert_bit_equal(*results)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_the_rule_of_fused_adam(name):
    """Its gradients are those of torch's fused kernel, and its step that of torch's for-loop with these gradients."""

    def params_of():
        return [Parameter(normal((1003,), dtype, i)) for i, dtype in enumerate((F32, F64))]

    params, fused, looped = params_of(), params_of(), params_of()
    loop = getattr(torch.optim, name)(looped, foreach=False, fused=False)
    opts = [
        (class_of(name)(params, fused=True), goptim.amp.GradScaler(init_scale=1000.0)),
        (getattr(torch.optim, name)(fused, fused=True), torch.amp.GradScaler("cpu", init_scale=1000.0)),
    ]
    for step in range(3):
        for opt, scaler in opts:
            for i, p in enumerate(opt.param_groups[0]["params"]):
                p.grad = normal(p.shape, p.dtype, 10 * step + i)
            scaler.scale(torch.ones(()))
            with ieee_sqrt():
                scaler.step(opt)
            scaler.update()
        assert_bit_equal([p.grad for p in params], [p.grad for p in fused])
        for p, q in zip(looped, fused, strict=True):
            p.grad = q.grad.clone()
        with ieee_sqrt():
            loop.step()
        assert_bit_equal(params, looped)
        assert_bit_equal([opts[0][0].state[p] for p in params], [loop.state[p] for p in looped])
    averages = [torch.cat([opt.state[p]["exp_avg"].double() for p in opt.state]) for opt, _ in opts]
    assert_bit_equal(*averages)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("of", ["goptim", "patch"])
def test_skipped_steps_clear_gradients(fused, of):
    """Otherwise they would stay infinite, and the next step would be skipped too."""
    p = Parameter(torch.zeros(3))
    opt, ema = goptim.AdamW([p], fused=fused), goptim.EMA([p], 0.5)
    with goptim.patch() if of == "patch" else contextlib.nullcontext():
        scaler = torch.amp.GradScaler("cpu") if of == "patch" else goptim.amp.GradScaler()
        for infinite in (True, False):
            for unscaled in (False, True):
                scaler.scale(torch.ones(()))
                p.grad = torch.full((3,), math.inf if infinite else 1.0)
                before = p.detach().clone()
                if unscaled:
                    scaler.unscale_(opt)
                scaler.step(opt, max_grad_norm=1.0, ema=ema, zero_grad=True)
                scaler.update()
                assert p.grad.tolist() == [0.0] * 3
                assert torch.equal(p, before) == infinite
        assert not torch.equal(ema.averages[0], torch.zeros(3))
        p.grad = torch.full((3,), math.inf)
        scaler.scale(torch.ones(()))
        scaler.step(opt, zero_grad=False)
        assert p.grad.tolist() == [math.inf] * 3


def outcome(f):
    try:
        return f()
    except (RuntimeError, ValueError, AssertionError, TypeError) as e:
        return type(e), str(e)


def misused(optimizer, scaler_class, dtype, fused):
    """The errors of calls in a wrong order or with unsupported gradients, and the tensors afterwards."""
    p, q = Parameter(normal((5,), dtype, 0)), Parameter(normal((5,), F32, 1))
    opt, scaler = optimizer([p, q], fused=fused), scaler_class("cpu")

    def step():
        return outcome(lambda: scaler.step(opt))

    def unscale():
        return outcome(lambda: scaler.unscale_(opt))

    said = [step(), unscale()]  # before the first scale
    scaler.scale(torch.ones(()))
    said += [step(), outcome(scaler.update)]  # without gradients
    p.grad, q.grad = normal((5,), dtype, 2), normal((5,), F32, 3)
    said += [unscale(), unscale(), step(), step(), outcome(lambda: scaler.step(opt, closure=lambda: None)), unscale()]
    return said, [p.detach(), q.detach(), p.grad, q.grad]


@pytest.mark.parametrize("dtype", [F16, F32])
@pytest.mark.parametrize("fused", [None, True])
def test_errors(dtype, fused):
    expected_says, expected = misused(torch.optim.AdamW, torch.amp.GradScaler, dtype, fused)
    said, ours = misused(goptim.AdamW, goptim.amp.GradScaler, dtype, fused)
    assert said == expected_says
    assert_bit_equal(ours, expected)
    assert any("already been called" in str(x) for x in said)


@pytest.mark.parametrize("fused", [None, True])
def test_float16(fused):
    p, q = Parameter(normal((5,), F32, 0)), Parameter(normal((5,), F16, 1))
    opt, scaler = goptim.AdamW([p, q], fused=fused), goptim.amp.GradScaler()
    scaler.scale(torch.ones(()))
    p.grad, q.grad = torch.ones(5), torch.ones(5, dtype=F16)
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.unscale_(opt)
    assert_bit_equal([p.grad, q.grad], [torch.ones(5), torch.ones(5, dtype=F16)])


def test_several_optimizers():
    results = []
    for cls, scaler_class in ((torch.optim.Adagrad, torch.amp.GradScaler), (goptim.Adagrad, goptim.amp.GradScaler)):
        params = params_like()
        opts = [cls(params[:2], foreach=False), cls(params[2:], fused=True)]
        scaler = scaler_class("cpu", init_scale=1000.0)
        for step in range(3):
            for i, p in enumerate(params):
                p.grad = normal(p.shape, p.dtype, 10 * step + i) * (math.nan if step == i == 1 else 1)
            scaler.scale(torch.ones(()))
            with ieee_sqrt():
                for opt in opts:
                    scaler.step(opt)
            scaler.update()
        states = [opt.state_dict()["state"] for opt in opts]
        results.append([*params, *(p.grad for p in params), scaler.state_dict(), *states])
    assert_bit_equal(*results)


def test_sparse_gradients():
    results = []
    for cls, scaler_class in ((torch.optim.SGD, torch.amp.GradScaler), (goptim.SGD, goptim.amp.GradScaler)):
        p = Parameter(normal((6, 3), F32, 0))
        opt, scaler = cls([p], lr=0.1, foreach=False), scaler_class("cpu", init_scale=1000.0)
        p.grad = torch.sparse_coo_tensor([[0, 3, 0]], normal((3, 3), F32, 1), (6, 3), check_invariants=False)
        scaler.scale(torch.ones(()))
        scaler.step(opt)
        results.append([p, p.grad.to_dense()])
    assert_bit_equal(*results)


def test_drop_in():
    theirs, ours = (list(inspect.signature(c).parameters) for c in (torch.amp.GradScaler, goptim.amp.GradScaler))
    assert ours == theirs
    scaler = goptim.amp.GradScaler(init_scale=8.0)
    assert scaler.is_enabled()
    assert isinstance(scaler, torch.amp.GradScaler)
    scaler.scale(torch.ones(()))
    copied = pickle.loads(pickle.dumps(scaler))
    assert copied.state_dict() == scaler.state_dict()
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()
    p = Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    off = goptim.amp.GradScaler(enabled=False)
    off.unscale_(opt := goptim.SGD([p], lr=0.5))
    off.step(opt)
    assert p.tolist() == [0.5] * 3
    assert off.state_dict() == {}


class OwnScaler(torch.amp.GradScaler):
    """A class of a program, which clips as it unscales."""

    def _unscale_grads_(self, optimizer, *args):
        found = super()._unscale_grads_(optimizer, *args)
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.1)
        return found


@pytest.mark.parametrize("cls", [torch.amp.GradScaler, OwnScaler])
def test_patched(cls, in_go):
    before = torch.amp.GradScaler._unscale_grads_
    expected, expected_seen, expected_state = train(torch.optim.AdamW, cls, bad=math.inf, foreach=False)
    assert in_go == []
    with goptim.patch():
        ours, seen, state = train(torch.optim.AdamW, cls, bad=math.inf, foreach=False)
        kept = torch.amp.GradScaler._unscale_grads_
        assert in_go == [("Unscale", n) for n in (5, 5, 4, 5)]
        with goptim.patch():
            pass
        assert torch.amp.GradScaler._unscale_grads_ is kept
    assert torch.amp.GradScaler._unscale_grads_ is before
    assert type(ours) is goptim.AdamW
    assert state == expected_state
    assert_bit_equal([x[1] for x in seen], [x[1] for x in expected_seen])
    assert_same(ours, expected)


def test_patched_with_an_optimizer_of_torch(in_go):
    """It stays torch's: nothing loads Go for it."""
    p = Parameter(torch.ones(3))
    opt = torch.optim.SGD([p], lr=0.5)
    with goptim.patch():
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        p.grad = torch.ones(3)
        scaler.scale(torch.ones(()))
        scaler.step(opt)
    assert p.grad.tolist() == [0.25] * 3
    assert in_go == []
