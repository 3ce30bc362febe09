"""Which parameters gather.c and Python step in Go, which fall back, and what gather.c does with unexpected input."""

import contextlib
import gc
import random
import sys
import tracemalloc
import warnings

import configurations
import numpy as np
import pytest
import torch
from configurations import ELEMENTWISE, accepts_complex
from torch.nn import Buffer, Parameter

import goptim
from goptim import _core, _native
from goptim._step import ASK
from goptim.testing import assert_bit_equal, ieee_sqrt

NAMES = [*ELEMENTWISE]
OPTIONS = {
    "SGD with momentum": {"momentum": 0.9},
    "Adam with amsgrad": {"amsgrad": True},
    "RMSprop with momentum": {"momentum": 0.9},
    "RMSprop with centered": {"centered": True},
}
NAMES += OPTIONS

every = pytest.mark.parametrize("name", NAMES)
# torch's own sparse Adagrad causes it.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


@pytest.fixture(params=["gather.c", "Python"])
def way(request, monkeypatch):
    """Both ways to gather, in turn."""
    if request.param == "Python":
        monkeypatch.setattr(_native, "layout", lambda: None)
    else:
        assert _native.layout() is not None
    return request.param


def plain(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype)


def imag_of_conj():
    """A dense negative view of one element."""
    t = torch.randn(1, dtype=torch.complex64).conj().imag
    assert t.is_neg()
    return t


def unaligned():
    memory = bytearray(b"x" + torch.randn(8).numpy().tobytes())
    return torch.from_numpy(np.frombuffer(memory, dtype=np.uint8)[1:].view(np.float32))


def copy_on_write():
    t = torch._lazy_clone(plain(3, 4))
    assert torch._C._is_cow_tensor(t)
    return t


# A parameter, its gradient, and where it is stepped.
ZOO = {
    "plain": (lambda: plain(3, 4), lambda: plain(3, 4), "Go"),
    "float64": (lambda: plain(5, dtype=torch.float64), lambda: plain(5, dtype=torch.float64), "Go"),
    "no dimensions": (lambda: plain(), lambda: plain(), "Go"),
    "a view of one element": (lambda: plain(5)[3], lambda: plain(7)[2:3].squeeze(), "Go"),
    "empty": (lambda: plain(0), lambda: plain(0), "Go"),
    "empty, of 3 dimensions": (lambda: plain(3, 0, 4), lambda: plain(3, 0, 4), "Go"),
    "empty, of other strides": (lambda: plain(4, 0).t(), lambda: plain(0, 4), "Go"),
    "25 dimensions": (lambda: plain(*[1, 2, 1, 1, 1] * 5), lambda: plain(*[1, 2, 1, 1, 1] * 5), "Go"),
    "views with an offset": (lambda: plain(9)[3:7], lambda: plain(2, 4)[1], "Go"),
    "unaligned": (unaligned, unaligned, "Go"),
    "channels last": (
        lambda: plain(2, 3, 4, 5).to(memory_format=torch.channels_last),
        lambda: plain(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "Go",
    ),
    "channels last 3d": (
        lambda: plain(2, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
        lambda: plain(2, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
        "Go",
    ),
    "transposed": (lambda: plain(4, 3).t(), lambda: plain(4, 3).t(), "Go"),
    "permuted": (lambda: plain(2, 3, 4).permute(1, 2, 0), lambda: plain(2, 3, 4).permute(1, 2, 0), "Go"),
    "unusual strides of size 1": (
        lambda: plain(40).as_strided((1, 3, 1, 2), (7, 2, 5, 1)),
        lambda: plain(40).as_strided((1, 3, 1, 2), (1, 2, 40, 1)),
        "Go",
    ),
    "one element of unusual strides": (lambda: plain(9).as_strided((1, 1), (7, 3)), lambda: plain(1, 1), "Go"),
    "gradient needs a gradient": (lambda: plain(3, 4), lambda: plain(3, 4).requires_grad_(), "Go"),
    "copied on write": (copy_on_write, copy_on_write, "Go"),
    "gradient transposed": (lambda: plain(3, 4), lambda: plain(4, 3).t(), "torch"),
    "gradient permuted": (lambda: plain(2, 2, 2), lambda: plain(2, 2, 2).permute(2, 0, 1), "torch"),
    "gradient expanded": (lambda: plain(3, 4), lambda: plain(4).expand(3, 4), "torch"),
    "expanded scalar gradient": (lambda: plain(3, 4), lambda: plain(1, 1).expand(3, 4), "torch"),
    "gradient non-dense": (lambda: plain(3, 4), lambda: plain(3, 8)[:, ::2], "torch"),
    "gradient sparse": (lambda: plain(3, 4), lambda: plain(3, 4).relu().to_sparse(), "torch"),
    "gradient of zeros without memory": (lambda: plain(3, 4), lambda: torch._efficientzerotensor(3, 4), "torch"),
    "non-dense": (lambda: plain(6, 4)[::2], lambda: plain(6, 4)[::2], "torch"),
    "columns": (lambda: plain(3, 8)[:, :4], lambda: plain(3, 8)[:, :4], "torch"),
    "expanded": (lambda: plain(4).expand(3, 4), lambda: plain(3, 4), "torch"),
    "overlapping itself": (lambda: plain(9).as_strided((3, 3), (2, 1)), lambda: plain(3, 3), "torch"),
    "negated, of one element": (imag_of_conj, lambda: plain(1), "torch"),
    "gradient negated, of one element": (lambda: plain(1), imag_of_conj, "torch"),
    "both negated, of one element": (imag_of_conj, imag_of_conj, "torch"),
    "gradient negated": (lambda: plain(3, 4), lambda: torch._neg_view(plain(3, 4)), "torch"),
    "negated": (lambda: torch._neg_view(plain(3, 4)), lambda: plain(3, 4), "torch"),
    "complex": (lambda: plain(3, dtype=torch.complex64), lambda: plain(3, dtype=torch.complex64), "torch"),
    "complex, gradient conjugated": (
        lambda: plain(3, dtype=torch.complex64),
        lambda: plain(3, dtype=torch.complex64).conj(),
        "torch",
    ),
    "integers": (lambda: torch.arange(3), lambda: torch.arange(3), "torch"),
    "meta": (lambda: torch.empty(3, device="meta"), lambda: torch.empty(3, device="meta"), "torch"),
    "a Buffer": (lambda: Buffer(plain(3)), lambda: plain(3), "Go"),
    "gradient is a Parameter": (lambda: plain(3), lambda: Parameter(plain(3)), "torch"),
}


def both_classes(name):
    """torch's class and goptim's."""
    return configurations.both_classes(name.split()[0])


def make(name, *whats):
    """goptim's and torch's optimizer over the same members of the zoo, with gradients."""
    opts = []
    for cls in both_classes(name):
        torch.default_generator.manual_seed(0)
        params, grads = [], []
        for what in whats:
            param, grad, _ = ZOO[what]
            p = param()
            params.append(Parameter(p, p.is_floating_point() or p.is_complex()) if type(p) is torch.Tensor else p)
            grads.append(grad())
        opts.append(cls(params, lr=0.1, **OPTIONS.get(name, {})))
        for p, g in zip(params, grads, strict=True):
            p.grad = g
    return opts


def complex_of(name):
    """The complex parameter of the zoo, or another one that falls back for a class that rejects it."""
    return "complex" if accepts_complex(both_classes(name)[0]) else "columns"


def params_of(opt):
    return opt.param_groups[0]["params"]


def asked(opt):
    return tuple(opt._ask(group) for group in opt.param_groups)


def takers(opt):
    """Where each parameter with a gradient would be stepped."""
    groups = asked(opt)
    codes = opt._go(groups, ASK)
    if type(codes) is int:
        return ["Go"] * codes
    parts = opt._sort(opt.param_groups, groups, codes)
    ours = {id(p) for part in parts for p in part.go_params}
    return ["Go" if id(p) in ours else "torch" for part in parts for p in part.stepped]


def step(opt):
    """The error of a step, or None."""
    try:
        with ieee_sqrt():
            opt.step()
    except (RuntimeError, NotImplementedError) as e:
        return type(e), str(e)
    return None


def values(x):
    """The parameters and states, for comparison."""
    if isinstance(x, dict):
        return {key: values(v) for key, v in x.items()}
    if not isinstance(x, torch.Tensor) or x.is_meta:
        return str(x)
    if x.is_nested:
        return [values(t) for t in x.unbind()]
    return x.detach().to_dense() if x.is_sparse else x.detach().resolve_neg()


@every
@pytest.mark.parametrize("what", ZOO)
@pytest.mark.covering("what way", "name way", "name")
def test_zoo(name, what, way):
    expected, ours = make(name, what)
    for i in range(3):
        assert takers(ours) == [ZOO[what][2]], f"step {i}"
        assert step(ours) == step(expected)
        assert_bit_equal(*([values(p) for p in params_of(opt)] for opt in (ours, expected)), f"step {i}: parameters")
        assert_bit_equal(
            *([values(dict(s)) for s in opt.state.values()] for opt in (ours, expected)), f"step {i}: states"
        )


@every
def test_nested_tensors(name, way):
    if name in ("Adagrad", "Rprop"):
        pytest.skip("torch cannot make its state, for want of full_like")
    runs = []
    for cls in both_classes(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that they are a prototype
            p = Parameter(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
        torch.nested.to_padded_tensor(p, 0.0).sum().backward()
        opt = cls([p], **OPTIONS.get(name, {}))
        runs.append(([step(opt) for _ in range(3)], values(p), values(dict(opt.state[p]))))
    (expected_errors, *expected), (errors, *ours) = runs
    assert errors == expected_errors
    assert_bit_equal(ours, expected)


@every
def test_both_ways_support_the_same(name, monkeypatch):
    for zoo in (
        *([what] for what in ZOO),
        ["plain", complex_of(name), "empty", "channels last", "no dimensions", "non-dense"],
    ):
        _, opt = make(name, *zoo)
        for _ in range(3):
            expected = takers(opt)
            with monkeypatch.context() as patch:
                patch.setattr(_native, "layout", lambda: None)
                assert takers(opt) == expected, zoo
            step(opt)


@every
def test_every_tensor_that_is_written_counts_it_once(name, way):
    _, opt = make(name, "plain", "float64", complex_of(name), "no dimensions", "gradient transposed")
    opt.step()
    in_go, keys = [params_of(opt)[i] for i in (0, 1, 3)], keys_of(opt)
    written = [t for p in in_go for t in (p, *(opt.state[p][key] for key in keys)) if isinstance(t, torch.Tensor)]
    others = [p.grad for p in in_go]
    before = [t._version for t in (*written, *others)]
    step(opt)
    assert [t._version for t in written] == [n + 1 for n in before[: len(written)]]
    assert [t._version for t in others] == before[len(written) :]


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float16], ids=str)
@pytest.mark.covering("dtype way", "name dtype")
def test_dtypes_of_step(name, dtype, way):
    """torch counts in float64 with that default dtype. Integers fall back."""
    expected, ours = make(name, "plain", "plain")
    for opt in (ours, expected):
        step(opt)
        for state in opt.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].to(dtype)
        for _ in range(2):
            step(opt)
    assert_bit_equal(*([values(p) for p in params_of(opt)] for opt in (ours, expected)))
    assert_bit_equal(*([values(dict(s)) for s in opt.state.values()] for opt in (ours, expected)))


OURS = object()


def keys_of(opt):
    """The keys of the states, in their order in a row."""
    group = opt.param_groups[0]
    return [s.key for s in opt.kind.states_of(opt.options(group), opt.extra(group)) if s is not None]


PLAIN = (torch.Tensor, Parameter)


def gather(opt, params=None, layout=OURS, plain=PLAIN, kind=None, state=None, group=None, extra=None):
    """The codes of gather.c, without a step."""
    given = opt.param_groups[0]
    return _core.step_groups(
        opt.kind.handle if kind is None else kind,
        _native.layout() if layout is OURS else layout,
        plain,
        opt.state if state is None else state,
        (
            (
                tuple(params_of(opt) if params is None else params),
                given if group is None else group,
                opt.extra(given) if extra is None else extra,
            ),
        ),
        0,
    )


class Hostile:
    """An object in the list of parameters that runs a function when its gradient is read."""

    def __init__(self, do):
        self.do = do

    @property
    def grad(self):
        return self.do()


# One class per form of state: no state, one, two and three tensors, and scalar states before them.
@pytest.mark.parametrize("name", ["SGD", "SGD with momentum", "Adam", "Adam with amsgrad", "NAdam", "ASGD"])
def test_no_reference_is_leaked(name):
    _, opt = make(name, "plain", "complex", "no dimensions", "one element of unusual strides", "gradient sparse")
    *params, sparse = params_of(opt)
    grad, sparse.grad = sparse.grad, None
    step(opt)
    sparse.grad = grad
    params += [Parameter(plain(2)), Parameter(plain(2))]
    params[-1].grad = plain(2)  # one has no gradient, and this one does not have a state
    missing = object()
    hostile = [params[0], Hostile(lambda: {}[missing])]
    group, types = opt.param_groups[0], (torch.Tensor, Parameter)
    group["lr"] = float("12345.678")  # a number of its own
    grads = [p.grad for p in params if p.grad is not None]
    states = [t for state in opt.state.values() for t in (state, *state.values())]
    watched = [*params, sparse, *grads, *states, opt.state, group, group["lr"], opt.kind.handle, types, params, hostile]
    watched += [missing, _native.layout()]
    p = params[0]
    row = opt.part_class(opt, 0, opt.param_groups[0], opt._ask(opt.param_groups[0]))._row(p, p.grad, opt.state[p])
    watched += [row, *(t for t in row if t is not None)]

    def many(times):
        for i in range(times):
            gather(opt, params, plain=types)
            gather(opt, [row], plain=types)
            if i % 100 == 0:
                gather(opt, [sparse], plain=types)
                with contextlib.suppress(KeyError):
                    gather(opt, hostile, plain=types)
        gc.collect()
        return [sys.getrefcount(x) for x in watched]

    expected = many(10)
    tracemalloc.start()
    assert many(10) == expected
    before, _ = tracemalloc.get_traced_memory()
    objects = len(gc.get_objects())
    assert many(1_000) == expected
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 10_000  # one leaked object per row would be 16,000
    assert abs(len(gc.get_objects()) - objects) < 100


def test_gather_rejects_bad_input():
    _, opt = make("Adam", "plain")
    step(opt)
    [p] = params_of(opt)
    for wrong in (
        {"layout": object()},
        {"layout": b""},
        {"layout": _native.layout()[8:]},
        {"group": object()},
        {"group": type("Group", (dict,), {})(opt.param_groups[0])},
        {"extra": [1.0]},
        {"plain": ()},
        {"plain": (int,) * 5},
        {"plain": (1,)},
    ):
        with pytest.raises(ValueError, match="expected a layout, up to four types, and groups of"):
            gather(opt, **wrong)
    with pytest.raises(AttributeError, match="grad"):
        gather(opt, params=[object()])
    with pytest.raises(ValueError, match="a row of 2, expected 7"):
        gather(opt, params=[(p, p.grad)])
    with pytest.raises(TypeError, match="a <class 'int'> in a row, expected a tensor"):
        gather(opt, params=[(p, 1, *[None] * 5)])
    kind = _core.make_kind(0, (), (("a", 0, -1, False),) * 2, "step", True, (), None, False, False)
    with pytest.raises(TypeError, match="step None, expected an int"):
        gather(opt, params=[(p, p.grad, *[None] * 4)], kind=kind)
    with pytest.raises(TypeError, match="takes exactly 6 arguments"):
        _core.step_groups(1)
    with pytest.raises(ValueError, match="PyCapsule_GetPointer called with"):
        gather(opt, kind=1)
    group = opt.param_groups[0]
    with pytest.raises(KeyError, match="'lr'"):
        gather(opt, group={key: x for key, x in group.items() if key != "lr"})
    for betas in ((0.9,), (0.9, 0.99, 0.999), [0.9], 0.9, None, "ab", (0.9, None), np.array([0.9, 0.99])):
        assert gather(opt, group=group | {"betas": betas}) == b"\2"
    for wrong in (
        ((("lr", -1, 0, False, None),) * 29, (), ()),
        ((), (("a", 0, -1, False),) * 7, ()),
        ((), (("a", 10, -1, False),), ()),
        ((), (("a", 7, -1, False),) * 2, ()),  # one float at most
        ((), (("a", 0, 28, False),), ()),
        ((), (), ("a",) * 7),
    ):
        with pytest.raises(ValueError, match="make_kind"):
            _core.make_kind(0, *wrong[:2], None, False, wrong[2], None, False, False)
    with pytest.raises(TypeError):
        _core.make_kind(0, (("lr", -1),), (), None, False, (), None, False, False)


def test_a_row_with_mismatched_tensors_is_rejected():
    """Whatever Python passes in a row, Go never writes outside a tensor's memory."""
    _, opt = make("Adam", "plain")
    step(opt)
    [p] = params_of(opt)
    good = (p, p.grad, *opt.state[p].values(), None, None)
    for layout in (_native.layout(), None):
        small = plain(3, 4)
        small.untyped_storage().resize_(8)
        assert gather(opt, params=[good], layout=layout) == 1
        for i, wrong in [
            (1, plain(11)),
            (1, small),
            (1, plain(12, dtype=torch.float64)),
            (2, plain(2)),
            (3, plain(13)),
            *([(0, torch.ones(12).to(torch.int32))] if layout else []),  # else its size is all that counts
            (4, torch.ones(12, dtype=torch.bfloat16)),
            (3, small),
        ]:
            assert gather(opt, params=[(*good[:i], wrong, *good[i + 1 :])], layout=layout) == b"\3", (i, wrong)


def test_a_row_beside_a_parameter_without_a_layout():
    """The parameter's fields are not read, because their offsets are unknown."""
    _, opt = make("Adam", "plain", "plain")
    step(opt)
    p, q = params_of(opt)
    row = (p, p.grad, *opt.state[p].values(), None, None)
    assert gather(opt, params=[row, q], layout=None) == b"\0\3"


def test_gather_leaves_unexpected_states_to_python():
    _, opt = make("Adam", "plain")
    [p] = params_of(opt)
    step(opt)
    assert gather(opt) == 1
    good = opt.state[p]
    keys = keys_of(opt)
    for bad in (
        *(
            good | {key: value}
            for key in (*keys, "step")
            for value in (
                None,
                "junk",
                1.0,
                plain(7),
                Parameter(good[key]),
                good[key].to("meta"),
                good[key].to_sparse(),
            )
        ),
        *({k: v for k, v in good.items() if k != key} for key in good),
        {},
        None,
        [],
    ):
        assert gather(opt, state={p: bad}) in (b"\2", b"\3")
    assert gather(opt, state={}) == b"\3"
    assert gather(opt, state=[]) == b"\3"


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("kind", [list, type("Mine", (list,), {})])
@pytest.mark.parametrize(
    "change",
    [list.clear, lambda params: params.extend(params[:1] * 50), lambda params: params.__delitem__(slice(1, None))],
    ids=["empty", "longer", "shorter"],
)
def test_list_of_parameters_that_changes_under_gather(name, kind, change):
    """Reading a gradient and reading a flag change the list, which is read once."""

    class Flag:
        def __bool__(self):
            change(params)
            return False

    _, opt = make(name, *["plain"] * 3)
    step(opt)
    a, b, c = params_of(opt)
    group = opt.param_groups[0]
    params = group["params"] = kind([a, Hostile(lambda: change(params)), b, c])
    opt.step()
    params = group["params"] = kind([a, b, c])
    group["maximize"] = Flag()
    before = [p.detach().clone() for p in (a, b, c)]
    opt.step()
    assert not any(torch.equal(p, x) for p, x in zip((a, b, c), before, strict=True))


@every
@pytest.mark.parametrize("order", ["reversed", "shuffled", "late"])
@pytest.mark.covering("order way", "name")
def test_order_of_state(name, order, way):
    """gather.c first looks for a state after that of the previous parameter, and must find it anywhere."""
    expected, ours = make(name, *["plain"] * 70)
    for opt in (ours, expected):
        params = params_of(opt)
        late = [p.grad for p in params[::3]] if order == "late" else []
        for p, _ in zip(params[::3], late, strict=False):
            p.grad = None
        step(opt)
        for p, g in zip(params[::3], late, strict=False):
            p.grad = g
        if order != "late":
            items = list(opt.state.items())[::-1]
            if order == "shuffled":
                random.Random(0).shuffle(items)
            opt.state.clear()
            opt.state.update(items)
        params[40].grad = params[41].grad = params[42].grad = params[43].grad = None
        for _ in range(2):
            step(opt)
    assert_bit_equal(*([values(p) for p in params_of(opt)] for opt in (ours, expected)))


def test_search_continues_in_the_next_group(monkeypatch):
    opt = goptim.Adam([{"params": [Parameter(plain(2)) for _ in range(3)]} for _ in range(4)])
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = plain(2)
    opt.step()
    monkeypatch.setattr(
        torch.Tensor, "__hash__", lambda t: pytest.fail("a state is looked for by its parameter's hash")
    )
    opt.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scalar_states(dtype, way):
    """Scalar states, which may have another dtype, come before the state tensors."""
    expected, ours = make("ASGD", "plain", "float64")
    for opt in (expected, ours):
        step(opt)
        for p in params_of(opt):
            opt.state[p]["eta"] = opt.state[p]["eta"].to(dtype)
    assert takers(ours) == ["Go", "Go"]
    for _ in range(2):
        for opt in (expected, ours):
            step(opt)
    assert_bit_equal(*([values(p) for p in params_of(opt)] for opt in (ours, expected)))
    ours.state[params_of(ours)[0]]["eta"] = torch.tensor([1.0])
    assert takers(ours) == ["torch", "Go"]
