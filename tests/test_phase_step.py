"""step(max_grad_norm=, ema=, zero_grad=) against separate calls of torch's functions around torch's step."""

import collections
import contextlib
import copy
import math
import pickle

import pytest
import torch
from configurations import class_of, normal, oracle_of
from test_dropin import WITH_STATE, for_loop
from torch import Tensor
from torch.nn import Parameter
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

import goptim
from goptim import _native
from goptim._around import Around
from goptim._step import GoStep
from goptim.testing import assert_bit_equal, ieee_sqrt

F32, F64, B16 = torch.float32, torch.float64, torch.bfloat16

CLASSES = [
    name
    for name in torch.optim.__all__
    if isinstance(class_of(name), type) and issubclass(class_of(name), GoStep) and name != "SparseAdam"
]
# Their gradients are clipped in place.
IN_PLACE = ("Adafactor", "Muon")
ONE_CALL = [name for name in CLASSES if name not in IN_PLACE]

every = pytest.mark.parametrize("name", CLASSES)
some = pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor"])
dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
# The limits of norms, for gradients of small_params: some coefficients are below 1, and 1.
LIMITS = {"below": 0.5, "above": 1e6, "zero": 0.0, "inf": math.inf}
limits = pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)


class Other(Tensor):
    """A subclass that changes nothing."""


def params_like(name, dtype=F32, seed=0):
    shapes = [(5, 3), (3, 7)] if name == "Muon" else [(4, 3), (1003,), (), (0,), (2, 3, 4), (2100,)]
    if name == "Adafactor":
        shapes.remove((0,))  # it divides by the number of elements
    return [Parameter(normal(s, dtype, seed + i)) for i, s in enumerate(shapes)]


class Both:
    """The same parameters with an optimizer of goptim, and with torch's of the same name."""

    def __init__(self, name, make, decay=0.9, groups=lambda params: params, **options):
        self.params, self.expected = make(), make()
        options = WITH_STATE.get(name, {}) | options
        theirs = oracle_of(name)
        self.ours = class_of(name)(groups(self.params), **copy.deepcopy(options))
        self.theirs = theirs(groups(self.expected), **for_loop(theirs, copy.deepcopy(options)))
        self.ema = goptim.EMA(self.params, decay)
        self.averages = [p.detach().clone(memory_format=torch.preserve_format) for p in self.expected]
        self.average = get_ema_multi_avg_fn(decay)

    def fill(self, grads):
        for params in (self.params, self.expected):
            for p, g in zip(params, copy.deepcopy(grads), strict=True):
                p.grad = g

    def step(self, limit=None, ema=False, zero=False, **given):
        """A step of each, whose results are compared."""
        keywords = given or {"max_grad_norm": limit, "ema": self.ema if ema else None, "zero_grad": zero}
        before = copy.deepcopy([p.grad for p in self.params])
        with ieee_sqrt():
            assert self.ours.step(**keywords) is None
            if limit is not None:
                norm = torch.nn.utils.clip_grad_norm_(self.expected, limit)
                assert_bit_equal(self.ours.grad_norm, norm)
            clipped = copy.deepcopy([p.grad for p in self.expected])
            self.theirs.step()
        if ema:
            with torch.no_grad():
                for average, p in zip(self.averages, self.expected, strict=True):
                    self.average([average], [p], None)
        if zero:
            self.theirs.zero_grad(set_to_none=False)
        self.compare()
        return before, clipped

    def compare(self):
        assert_bit_equal(self.params, self.expected, "parameters")
        assert_bit_equal(list(self.ema.averages), self.averages, "averages")
        ours, theirs = ([opt.state[p] for p in params if opt.state.get(p)] for opt, params in self.pairs())
        assert_bit_equal([dict(x) for x in ours], [dict(x) for x in theirs], "states")

    def pairs(self):
        return (self.ours, self.params), (self.theirs, self.expected)

    def grads(self):
        return [p.grad for p in self.params]


def gradients(params, step, scale=1.0):
    return [normal(p.shape, p.dtype, 100 * step + i) * scale for i, p in enumerate(params)]


@pytest.fixture
def calls(monkeypatch):
    """For each step, whether Go did everything in one call."""
    done = []
    own = Around._step

    def _step(self, asked):
        done.append(own(self, asked))
        return done[-1]

    monkeypatch.setattr(Around, "_step", _step)
    return done


@every
@dtypes
@limits
@pytest.mark.parametrize("around", ["clip", "all"])
@pytest.mark.covering
def test_results(name, dtype, limit, around, calls):
    both = Both(name, lambda: params_like(name, dtype))
    for step in range(4):
        grads = gradients(both.params, step)
        if step == 2:
            grads[1] = None
        both.fill(grads)
        before, clipped = both.step(limit, ema=around == "all", zero=around == "all")
        if around == "all":
            assert all(g is None or not g.any() for g in both.grads())
        else:
            assert_bit_equal(both.grads(), clipped if name in IN_PLACE else before, "gradients")
    assert calls == ([False] * 4 if name in IN_PLACE else [name == "Adagrad", True, True, True])


@every
@pytest.mark.parametrize("keyword", ["ema", "zero"])
def test_one_keyword(name, keyword, calls):
    both = Both(name, lambda: params_like(name))
    for step in range(3):
        both.fill(gradients(both.params, step))
        before, _ = both.step(**{keyword: True})
        expected = [torch.zeros_like(g) for g in before] if keyword == "zero" else before
        assert_bit_equal(both.grads(), expected, "gradients")
    assert both.ours.grad_norm is None
    assert calls[1:] == [name not in IN_PLACE] * 2


@pytest.mark.parametrize(
    ("name", "dtype", "threads", "limit"),
    [("AdamW", F32, 1, 1.0), ("SGD", F32, 2, 1.0), ("RAdam", F64, 2, 1.0), ("ASGD", F32, 2, 1e9)],
)
def test_large(name, dtype, threads, limit, calls):
    """Rows longer than the engine's chunks, and not a multiple of a block."""
    was = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shapes = (40009, 3, 700001, 64, 1024, 2048, 5000)
        both = Both(name, lambda: [Parameter(normal((n,), dtype, n)) for n in shapes])
        for step in range(2):
            both.fill(gradients(both.params, step))
            both.step(limit, ema=True, zero=True)
            assert not any(g.any() for g in both.grads())
    finally:
        torch.set_num_threads(was)
    assert calls == [False, True]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.999, 1.0])
@dtypes
def test_decays(decay, dtype):
    both = Both("AdamW", lambda: params_like("AdamW", dtype), decay)
    for step in range(3):
        both.fill(gradients(both.params, step))
        both.step(ema=True)


@some
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e30, 1e-30])
def test_extreme_gradients(name, value):
    both = Both(name, lambda: params_like(name))
    for step in range(3):
        grads = gradients(both.params, step)
        if step == 1:
            grads[1].view(-1)[7] = value
            grads[0].view(-1)[0] = -value
        both.fill(grads)
        both.step(1.0, ema=True)


@some
def test_no_gradients(name):
    both = Both(name, lambda: params_like(name))
    both.step(1.0, ema=True, zero=True)
    assert both.ours.grad_norm == 0


def layouts():
    """Parameters of which some fall back to torch."""
    t = lambda *shape, dtype=F32: normal(shape, dtype, sum(shape))  # noqa: E731
    return {
        "transposed": lambda: [t(3, 4).t(), t(5)],
        "channels last": lambda: [t(2, 3, 4, 5).to(memory_format=torch.channels_last), t(5)],
        "both dtypes": lambda: [t(3), t(4, dtype=F64), t(1003), t(5, dtype=F64)],
        "both dtypes without dimensions": lambda: [t(), t(4, dtype=F64), t(7)],
        "with gaps": lambda: [t(30), t(8, 4)[:, ::2], t(1003)],
        "all with gaps": lambda: [t(8, 4)[:, ::2]],
        "subclass": lambda: [t(30), t(9).as_subclass(Other), t(1003)],
    }


@some
@pytest.mark.parametrize("kind", layouts())
@pytest.mark.parametrize("limit", [1.0, 1e6])
def test_layouts(name, kind, limit):
    def make():
        return [t.requires_grad_() if type(t) is Other else Parameter(t) for t in layouts()[kind]()]

    both = Both(name, make)
    for step in range(3):
        grads = [
            g if type(p) is Other else torch.empty_like(p.detach()).copy_(g)
            for p, g in zip(both.params, gradients(both.params, step), strict=True)
        ]
        both.fill(grads)
        before, clipped = both.step(limit, ema=True)
        whole = name in IN_PLACE or "without dimensions" in kind
        for p, g, was, cut in zip(both.params, both.grads(), before, clipped, strict=True):
            in_go = (
                not whole
                and type(p) is Parameter
                and p.storage_offset() + p.numel() == len(p.untyped_storage()) // p.element_size()
            )
            assert_bit_equal(g, was if in_go else cut, "gradient")
        both.fill(grads)
        both.step(limit, ema=True, zero=True)
        assert not any(g.any() for g in both.grads())


@some
def test_gradients_with_other_strides(name):
    both = Both(name, lambda: [Parameter(normal((3, 4), F32, 0)), Parameter(normal((9,), F32, 1))])
    for step in range(3):
        grads = gradients(both.params, step)
        grads[0] = grads[0].t().contiguous().t()
        both.fill(grads)
        both.step(0.1, ema=True, zero=True)


def shared_gradient():
    a, b, c = (Parameter(normal((70,), F32, i)) for i in range(3))
    a.grad = b.grad = normal((70,), F32, 3)
    c.grad = normal((70,), F32, 4)
    return [a, b, c]


def overlapping_gradients():
    params = [Parameter(normal((70,), F32, i)) for i in range(2)]
    memory = normal((100,), F32, 3)
    params[0].grad, params[1].grad = memory[:70], memory[30:]
    return params


def gradient_in_parameter():
    memory = normal((140,), F32, 0)
    a, b = Parameter(memory[:70]), Parameter(normal((70,), F32, 1))
    a.grad, b.grad = normal((70,), F32, 2), memory[:70]
    return [a, b]


def overlapping_parameters():
    memory = normal((140,), F32, 0)
    params = [Parameter(memory[:70]), Parameter(memory[35:105])]
    for i, p in enumerate(params):
        p.grad = normal((70,), F32, 2 + i)
    return params


def own_gradient():
    p = Parameter(normal((70,), F32, 0))
    p.grad = p.detach()
    return [p, *shared_gradient()]


@some
@pytest.mark.parametrize(
    "make",
    [shared_gradient, overlapping_gradients, gradient_in_parameter, overlapping_parameters, own_gradient],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("around", [(1.0, False, False), (None, True, False), (None, False, True), (1.0, True, True)])
def test_shared_memory(name, make, around):
    both = Both(name, make)
    for step in range(3):
        for _, params in both.pairs():
            with torch.no_grad():
                for i, p in enumerate(params):
                    p.grad.copy_(normal(p.shape, p.dtype, 10 * step + i))
        both.step(*around)
        assert_bit_equal([p.grad for p in both.params if around[2]], [p.grad for p in both.expected if around[2]])


@some
@pytest.mark.parametrize("start", [0, 30])
def test_average_shares_memory_with_a_parameter(name, start):
    results = []
    for one_call in (False, True):
        memory = [normal((100,), F32, i) for i in range(3)]
        params = [Parameter(m[:70]) for m in memory]
        opt = class_of(name)(params)
        ema = goptim.EMA(params, 0.9)
        ema.averages = (memory[1][start : start + 70], ema.averages[1], memory[0][start : start + 70])
        for step in range(3):
            for p, g in zip(params, gradients(params, step), strict=True):
                p.grad = g
            if one_call:
                opt.step(ema=ema)
            else:
                opt.step()
                ema.update()
        results.append([*params, *ema.averages])
    assert_bit_equal(*results)


@some
def test_averages_of_other_parameters(name):
    """The averages are of some parameters of the optimizer, and of others."""
    params = params_like(name)
    opt = class_of(name)(params)
    apart = [Parameter(normal((9,), F32, 50)), Parameter(normal((5,), B16, 51))]
    averaged = [apart[0], *params[2:4], apart[1], params[0]]
    ema = goptim.EMA(averaged, 0.9)
    expected = [a.clone() for a in ema.averages]
    for step in range(4):
        for p, g in zip(params, gradients(params, step), strict=True):
            p.grad = g if step != 2 or p is not params[2] else None
        opt.step(ema=ema)
        goptim.ema_(expected, averaged, 0.9)
        assert_bit_equal(list(ema.averages), expected)
        with torch.no_grad():
            for p in apart:
                p += 1
        if step == 1:
            opt.add_param_group({"params": [apart[0]]})
            apart.pop(0)


@some
def test_sparse_gradients(name):
    """torch does not clip some sparse gradients; the others are clipped in place."""
    theirs = oracle_of(name)

    def run(cls, step):
        params = [Parameter(normal((6, 3), F32, 0)), Parameter(normal((5,), F32, 1))]
        options = for_loop(theirs, {}) if cls is theirs else {}
        opt, outcomes = cls(params, **options), []
        for i in range(3):
            params[0].grad = torch.sparse_coo_tensor([[0, 3]], normal((2, 3), F32, i), (6, 3), check_invariants=False)
            params[1].grad = normal((5,), F32, 30 + i)
            try:
                with ieee_sqrt():
                    step(opt, params)
                outcomes.append("stepped")
            except (RuntimeError, NotImplementedError) as e:
                outcomes.append((type(e), str(e)))
        return [p.detach() for p in params], outcomes

    def separately(opt, params):
        torch.nn.utils.clip_grad_norm_(params, 0.1)
        opt.step()

    ours, said = run(class_of(name), lambda opt, params: opt.step(max_grad_norm=0.1))
    expected, expected_says = run(theirs, separately)
    assert said == expected_says
    assert_bit_equal(ours, expected)


def test_groups_and_options():
    groups = lambda params: [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "maximize": True}]  # noqa: E731
    both = Both("AdamW", lambda: params_like("AdamW"), groups=groups, weight_decay=0.1)
    for step in range(3):
        both.fill(gradients(both.params, step))
        both.step(1.0, ema=True, zero=True)


@pytest.mark.parametrize("name", [*ONE_CALL, "Adafactor"])
def test_versions(name):
    """The counters that show autograd a write: those of separate calls, without the clipping."""
    params = params_like(name)
    opt = class_of(name)(params, **WITH_STATE.get(name, {}))
    ema = goptim.EMA(params, 0.9)
    for step in range(3):
        for p, g in zip(params, gradients(params, step), strict=True):
            p.grad = g
        before = [t._version for p, a in zip(params, ema.averages, strict=True) for t in (p, a)]
        opt.step(max_grad_norm=1.0, ema=ema, zero_grad=True)
        after = [t._version for p, a in zip(params, ema.averages, strict=True) for t in (p, a)]
        assert [y - x for x, y in zip(before, after, strict=True)] == [1] * len(before)
        assert [p.grad._version for p in params] == [1 + (name in IN_PLACE) for p in params]


@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_with_a_graph_are_detached():
    params = [Parameter(normal((5,), F32, 0)), Parameter(normal((6,), F32, 1))]
    opt = goptim.AdamW(params)
    for _ in range(2):
        sum((p**3).sum() for p in params).backward(create_graph=True)
        assert params[0].grad.requires_grad
        opt.step(zero_grad=True)
        for p in params:
            assert not p.grad.requires_grad
            assert not p.grad.any()
            p.grad = None


@some
def test_closure_hooks_and_arguments(name):
    p = Parameter(normal((5,), F32, 0))
    opt = class_of(name)([p])
    seen = []
    opt.register_step_pre_hook(lambda opt, args, kwargs: seen.append(("pre", args[1:], dict(kwargs))))
    opt.register_step_post_hook(lambda opt, args, kwargs: seen.append(("post", p.grad.abs().sum().item())))

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    loss = opt.step(closure, max_grad_norm=1.0, zero_grad=True)
    assert loss == (normal((5,), F32, 0) ** 2).sum()
    assert seen == [("pre", (closure,), {"max_grad_norm": 1.0, "zero_grad": True}), ("post", 0.0)]
    opt.register_step_pre_hook(lambda opt, args, kwargs: (args, {"max_grad_norm": 2.0}))
    p.grad = normal((5,), F32, 1)
    opt.step()
    assert opt.grad_norm == p.grad.norm() or name in IN_PLACE
    scheduler = torch.optim.lr_scheduler.LinearLR(opt)  # it replaces step
    opt.step(max_grad_norm=1.0)
    scheduler.step()


@some
def test_attributes(name):
    both = Both(name, lambda: params_like(name))
    both.ours.max_grad_norm, both.ours.ema = 0.5, both.ema
    for step in range(3):
        both.fill(gradients(both.params, step))
        both.step(0.5, ema=True, **{"closure": None})
    both.fill(gradients(both.params, 3))
    both.step(0.25, ema=True, max_grad_norm=0.25)
    both.ours.max_grad_norm = both.ours.ema = None
    both.fill(gradients(both.params, 4))
    both.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_attributes_are_copied(name, copied):
    params = params_like(name)
    opt = class_of(name)(params, lr=0.1)
    opt.max_grad_norm, opt.ema = 0.5, goptim.EMA(params, 0.9)
    assert set(opt.state_dict()) == {"state", "param_groups"}
    other, results = copied(opt), []
    assert other.ema.params == tuple(other.param_groups[0]["params"])
    for of in (opt, other):
        for p, g in zip(of.param_groups[0]["params"], gradients(params, 0), strict=True):
            p.grad = g
        of.step()
        results.append([*of.param_groups[0]["params"], *of.ema.averages, of.grad_norm])
    assert_bit_equal(*results)
    plain = copied(class_of(name)(params))
    assert plain.max_grad_norm is plain.ema is None
    assert not {"max_grad_norm", "ema"} & vars(plain).keys()


@pytest.mark.parametrize("value", [-1, math.nan, "1x", None.__class__, torch.ones(2), -math.inf, 1j])
def test_invalid_norms(value):
    [p] = params = [Parameter(normal((5,), F32, 0))]
    opt = goptim.AdamW(params)
    p.grad = torch.ones(5)
    with pytest.raises(ValueError, match=r"AdamW.step: max_grad_norm is .*, expected a number of at least 0"):
        opt.step(lambda: pytest.fail("called"), max_grad_norm=value)
    opt.max_grad_norm = value
    with pytest.raises(ValueError, match="max_grad_norm"):
        opt.step()
    assert_bit_equal(p.detach(), normal((5,), F32, 0))
    assert not opt.state


def test_other_invalid_arguments():
    [p] = params = [Parameter(normal((5,), F32, 0))]
    opt = goptim.AdamW(params)
    p.grad = torch.ones(5)
    with pytest.raises(TypeError, match=r"AdamW.step: ema is a float, expected a goptim.EMA"):
        opt.step(ema=0.9)
    with pytest.raises(TypeError, match=r"AdamW.step: zero_grad is a NoneType, expected a bool"):
        opt.step(zero_grad=None)
    with pytest.raises(TypeError, match="max_grad_norm"):
        goptim.LBFGS(params).step(lambda: torch.zeros(()), max_grad_norm=1.0)
    assert not opt.state


def test_errors_of_the_step_write_nothing():
    params = [Parameter(normal((5,), F32, 0)), Parameter(normal((6,), F32, 1))]
    opt = goptim.AdamW(params, lr=0.1)
    ema = goptim.EMA(params, 0.9)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    opt.state[params[1]]["exp_avg"] = torch.ones(7)
    everything = lambda: [*params, *(p.grad for p in params), *ema.averages, *opt.state[params[0]].values()]  # noqa: E731
    before = copy.deepcopy(everything())
    with pytest.raises(ValueError, match="exp_avg"):
        opt.step(max_grad_norm=0.1, ema=ema, zero_grad=True)
    assert_bit_equal(everything(), before)
    opt = goptim.Adam(params, lr=0.1, betas=(0.9, 0.999))
    opt.step()
    opt.param_groups[0]["betas"] = (1.0, 0.9)  # 1 - beta1**t is 0
    before = copy.deepcopy([*params, *(p.grad for p in params), *ema.averages])
    versions = [t._version for t in (*params, *ema.averages)]
    with pytest.raises(ZeroDivisionError):
        opt.step(max_grad_norm=0.1, ema=ema, zero_grad=True)
    assert_bit_equal([*params, *(p.grad for p in params), *ema.averages], before)
    assert [t._version for t in (*params, *ema.averages)] == versions


class Modes(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


@some
@pytest.mark.parametrize("where", ["dispatch mode", "forked", "own zero_grad", "own update"])
def test_steps_that_fall_back(name, where, monkeypatch):
    both = Both(name, lambda: params_like(name))
    called = []

    class Own(goptim.EMA):
        def update(self):
            called.append(False)
            super().update()

    for step in range(3):
        both.fill(gradients(both.params, step))
        with monkeypatch.context() as patch:
            if where == "forked":
                patch.setattr(_native, "_forked", True)
            if where == "dispatch mode":
                with Modes():
                    both.step(1.0, ema=True, zero=True)
                continue
            called.clear()
            if where == "own zero_grad":
                kind = type(both.ours)
                patch.setattr(kind, "zero_grad", lambda self, set_to_none: called.append(set_to_none), raising=False)
            if where == "own update":
                patch.setattr(both.ema, "__class__", Own)
            both.step(1.0, ema=True, zero=True)
            assert called == [False] * where.startswith("own")


@pytest.mark.full
def test_compiled():
    def train(opt, params):
        opt.step(max_grad_norm=0.5, zero_grad=True)

    torch.compiler.reset()
    both = Both("SGD", lambda: params_like("SGD"))
    compiled = torch.compile(train, backend="eager")
    for step in range(2):
        both.fill(gradients(both.params, step))
        compiled(both.ours, both.params)
        torch.nn.utils.clip_grad_norm_(both.expected, 0.5)
        both.theirs.step()
        for p, q in zip(both.params, both.expected, strict=True):
            torch.testing.assert_close(p, q)
            assert not p.grad.any()


def test_profiler_records():
    both = Both("AdamW", lambda: params_like("AdamW"))
    both.fill(gradients(both.params, 0))
    with torch.profiler.profile() as profile:
        both.ours.step(max_grad_norm=1.0)
    assert "Optimizer.step#AdamW.step" in {e.key for e in profile.key_averages()}


def test_fused_kernel_of_a_fallback():
    """A parameter that falls back is stepped by torch's fused kernel if the user asks for it, and not otherwise."""
    for fused in (None, False, True):
        results = []
        for cls in (goptim.AdamW, torch.optim.AdamW):
            params = [Parameter(normal((1003,), dtype, 0)) for dtype in (B16, F32)]
            opt = cls(params, lr=torch.tensor(0.0123), fused=fused)
            with torch.profiler.profile() as profile, ieee_sqrt():
                for step in range(3):
                    for p, g in zip(params, gradients(params, step), strict=True):
                        p.grad = g
                    opt.step()
            results.append([p.detach() for p in params])
            kernels = {e.key for e in profile.key_averages()}
            assert ("aten::_fused_adamw_" in kernels) == bool(fused)
        assert_bit_equal(*results)


# The averages on their own.


def test_ema():
    params = params_like("AdamW")
    ema = goptim.EMA(params, 0.75)
    assert_bit_equal(list(ema.averages), [p.detach() for p in params])
    start = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p in params:
            p += 1
    moved = [p.detach().clone() for p in params]
    ema.update()
    expected = [a.lerp(p, 0.25) for a, p in zip(start, moved, strict=True)]
    assert_bit_equal(list(ema.averages), expected)
    with contextlib.suppress(KeyError), ema.average_parameters():
        assert_bit_equal([p.detach() for p in params], expected)
        assert_bit_equal(list(ema.averages), moved)
        raise KeyError
    assert_bit_equal([p.detach() for p in params], moved)
    assert_bit_equal(list(ema.averages), expected)
    others = [torch.zeros_like(p) for p in params]
    ema.copy_to(others)
    assert_bit_equal(others, expected)
    ema.copy_to()
    assert_bit_equal([p.detach() for p in params], expected)
    assert all(p.requires_grad and not a.requires_grad for p, a in zip(params, ema.averages, strict=True))


def test_ema_with_other_tensors():
    """A program may set the attributes, and copy or pickle averages with their model."""
    both = Both("AdamW", lambda: params_like("AdamW"))
    both.fill(gradients(both.params, 0))
    both.step(1.0, ema=True)
    kept = both.ema.averages
    before = copy.deepcopy(kept)
    both.ema.averages = tuple([a.clone() for a in kept])
    both.fill(gradients(both.params, 1))
    both.step(1.0, ema=True)
    assert_bit_equal(kept, before)
    both.params, both.ema = pickle.loads(pickle.dumps((both.params, both.ema)))
    both.ours.param_groups[0]["params"] = both.params
    both.ours.state = collections.defaultdict(
        dict, zip(both.params, copy.deepcopy(list(both.ours.state.values())), strict=True)
    )
    both.fill(gradients(both.params, 2))
    both.step(1.0, ema=True)


class Watched(Tensor):
    """A subclass that sees torch's functions."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        seen.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs or {})


seen = []


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.t().contiguous().t(),
        lambda a: torch.stack([a, a], -1)[..., 0],
        lambda a: a.as_subclass(Watched),
    ],
    ids=["other strides", "gaps", "subclass"],
)
def test_averages_that_do_not_run_in_go(change, calls):
    results = []
    for ours in (True, False):
        p = Parameter(normal((4, 3), F32, 0))
        opt, ema = goptim.SGD([p]), goptim.EMA([p], 0.9)
        ema.averages = (change(ema.averages[0]),)
        for step in range(2):
            p.grad = normal((4, 3), F32, step)
            seen.clear()
            opt.step(ema=ema if ours else None)
            if not ours:
                ema.averages[0].lerp_(p.detach(), 1 - 0.9)
            assert ("lerp_" in str(seen)) == (type(ema.averages[0]) is Watched)
        results.append([p.detach(), ema.averages[0].as_subclass(Tensor)])
    assert_bit_equal(*results)
    assert calls == [False] * 2


@pytest.mark.parametrize("change", [Tensor.double, lambda a: a[:1]])
def test_averages_of_another_dtype_or_shape(change):
    p = Parameter(normal((4, 3), F32, 0))
    opt, ema = goptim.SGD([p]), goptim.EMA([p], 0.9)
    ema.averages = (change(ema.averages[0]).clone(),)
    before, p.grad = ema.averages[0].clone(), normal((4, 3), F32, 1)
    with pytest.raises(RuntimeError, match=r"expected dtype|The size of tensor|broadcast"):
        opt.step(ema=ema)
    assert_bit_equal(ema.averages[0], before)


def test_versions_if_memory_is_shared():
    """The first call of Go writes nothing, so that only the second one counts."""
    p, q = (Parameter(normal((5,), F32, i)) for i in range(2))
    p.grad = q.grad = normal((5,), F32, 2)
    goptim.SGD([p, q]).step(max_grad_norm=0.1)
    assert (p._version, q._version, p.grad._version) == (1, 1, 2)


@pytest.mark.parametrize("averages", [(), [None], None, (None, None)], ids=repr)
def test_step_groups_rejects_averages(averages):
    p = Parameter(torch.ones(3))
    opt = goptim.SGD([p])
    p.grad = torch.ones(3)
    around = Around(opt, None, None, goptim.EMA([p], 0.9), False)
    with pytest.raises(ValueError, match="expected a tuple of 1"):
        around._call((opt._ask(opt.param_groups[0]),), (4, 0, 0.0, 1.0, 0.1, averages))
    assert p.tolist() == [1.0] * 3


def test_ema_state(tmp_path):
    params = params_like("AdamW")
    ema = goptim.EMA(params, 0.75)
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    other = goptim.EMA([p + 1 for p in params], 0.5)
    other.load_state_dict(torch.load(tmp_path / "ema.pt"))
    assert other.decay == 0.75
    assert_bit_equal(list(other.averages), list(ema.averages))
    with pytest.raises(ValueError, match="expected"):
        goptim.EMA(params[:2], 0.5).load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match=r"EMA.copy_to: 1 parameters, expected 6"):
        ema.copy_to(params[:1])
    for decay in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="decay"):
            goptim.EMA(params, decay)
        with pytest.raises(ValueError, match="decay"):
            ema.decay = decay
    assert ema.decay == 0.75
