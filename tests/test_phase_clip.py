"""goptim's functions for gradients against those of torch.nn.utils: results, versions, errors and warnings."""

import contextlib
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from configurations import normal
from torch import Tensor
from torch.nn import Parameter

import goptim
from goptim import _core, _lists, _native
from goptim.testing import assert_bit_equal

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

BOTH = (torch.nn.utils, goptim)
F32, F64 = torch.float32, torch.float64


class Other(Tensor):
    """A subclass that changes nothing."""


def many(*shapes, dtype=F32, seed=0):
    return [normal(shape if type(shape) is tuple else (shape,), dtype, seed + i) for i, shape in enumerate(shapes)]


def few(dtype=F32):
    return many((4, 3), 7, 1, (2, 3, 4), dtype=dtype)


def with_graph():
    w = torch.ones(5, requires_grad=True)
    return w * normal((5,), F32, 0)


def duplicates():
    g = normal((1003,), F32, 0)
    return [g, normal((3,), F32, 1), g]


def overlapping():
    memory = normal((4003,), F32, 0)
    return [memory[:3000], memory[1000:], memory[5:9], memory]


def of_one_memory():
    """Gradients of several dtypes that share memory, some of which fall back to torch."""
    memory = normal((64,), F32, 0)
    return [memory[:40], memory.view(torch.float16)[20:90:3], memory.view(F64), memory[::2], memory[3:60]]


def inference():
    with torch.inference_mode():
        return [normal((5,), F32, 0)]


def set_values(t, *values):
    t.view(-1)[: len(values)] = torch.tensor(values, dtype=t.dtype)
    return t


# Gradients, and how many of them run in Go.
GRADIENTS = {
    "none": (list, 0),
    "no gradients": (lambda: [None, None], 0),
    "few": (few, 4),
    "float64": (lambda: few(F64), 4),
    "some without": (lambda: [None, *few(), None], 4),
    "lengths": (lambda: many(0, 1, 3, 8, 9, 15, 1003), 7),
    "float64 lengths": (lambda: many(0, 1, 3, 4, 5, 15, 1003, dtype=F64), 7),
    "long": (lambda: many(70001, 3, 16384), 3),
    "float64 long": (lambda: many(70001, 3, dtype=F64), 2),
    "many": (lambda: many(*[64] * 129), 129),
    "without dimensions": (lambda: many((), 3, ()), 3),
    "one empty": (lambda: many((3, 0)), 1),
    "transposed": (lambda: [normal((4, 3), F32, 0).t(), normal((40, 31), F64, 0).float().t()], 2),
    "channels last": (lambda: [normal((2, 3, 4, 5), F32, 0).to(memory_format=torch.channels_last)], 1),
    "permuted": (lambda: [normal((2, 3, 4, 2, 3, 2, 2), F64, 0).permute(6, 0, 5, 1, 4, 2, 3)], 1),
    "views": (lambda: [normal((9,), F32, 0)[3:7], normal((2, 4), F32, 0)[1], normal((5,), F32, 0)[2:3]], 3),
    "columns": (lambda: [*few(), normal((3, 8), F32, 9)[:, ::2], *few()], 8),
    "rows": (lambda: [normal((70, 1003), F32, 9)[::2], normal((3,), F32, 1)], 1),
    "expanded": (lambda: [normal((3,), F32, 0), normal((4,), F32, 1).expand(3, 4)], 1),
    "expanded by 1": (lambda: [normal((4,), F32, 1).expand(1, 4)], 1),
    "both dtypes": (lambda: [*few(), *few(F64), *few()], 12),
    "another dtype at the end": (lambda: [*few(), normal((3,), F64, 9)], 5),
    "both dtypes without dimensions": (lambda: [*many(*[()] * 40), normal((), F64, 1), normal((), F32, 2)], 42),
    "bfloat16": (lambda: many(5, 1003, dtype=torch.bfloat16), 2),
    "with bfloat16": (lambda: [*few(), *many(5, 1003, dtype=torch.bfloat16), *few()], 10),
    "with float16": (lambda: [*many(5, 100, dtype=torch.float16), *few(), *few(F64)], 10),
    "with complex": (lambda: [*few(), normal((5,), torch.complex64, 0), *few(F64)], 8),
    "conjugated": (lambda: [*few(), normal((5,), torch.complex64, 0).conj()], 4),
    "negated": (lambda: [*few(), torch._neg_view(normal((5,), F32, 0)), *few()], 8),
    "sparse": (lambda: [normal((5, 2), F32, 0).relu().to_sparse(1)], 0),
    "with sparse": (lambda: [*few(), normal((5, 2), F32, 0).relu().to_sparse(1)], 4),
    "with a subclass": (lambda: [*few(), normal((5,), F32, 5).as_subclass(Other), *few()], 8),
    "with a parameter": (lambda: [*few(), Parameter(normal((5,), F32, 5))], 4),
    "copied on write": (lambda: [*few(), torch._lazy_clone(normal((5,), F32, 5))], 4),
    "meta": (lambda: [torch.empty(3, device="meta")], 0),
    "requires a gradient": (lambda: [normal((5,), F32, 0).requires_grad_(), *few()], 5),
    "with a graph": (lambda: [with_graph(), *few()], 5),
    "inference": (inference, 0),
    "the same twice": (duplicates, 3),
    "overlapping": (overlapping, 4),
    "of one memory": (of_one_memory, 3),
    "inf": (lambda: [*few(), set_values(normal((9,), F32, 0), 1, math.inf, -math.inf)], 5),
    "NaN": (lambda: [set_values(normal((9,), F32, 0), 1, math.nan), *few()], 5),
    "all infinite": (lambda: [torch.full((9,), math.inf), torch.full((3,), -math.inf)], 2),
    "overflow": (lambda: [torch.full((9,), 1e30), *few()], 5),
    "zeros": (lambda: [torch.zeros(9), -torch.zeros(4)], 2),
    "tiny": (lambda: [torch.full((9,), 1e-42), torch.full((3,), 1e-30)], 2),
    "float64 tiny": (lambda: [torch.full((9,), 1e-320, dtype=F64), torch.full((3,), 1e-160, dtype=F64)], 2),
}

# Calls, and whether they run in Go.
CALLS = {
    "clip": (lambda f, p: f.clip_grad_norm_(p, 0.37), True),
    "do not clip": (lambda f, p: f.clip_grad_norm_(p, 1e6), True),
    "clip by the largest": (lambda f, p: f.clip_grad_norm_(p, 0.37, "inf"), True),
    "clip by the sum": (lambda f, p: f.clip_grad_norm_(p, 0.37, 1), False),
    "clip by the smallest": (lambda f, p: f.clip_grad_norm_(p, 0.37, -math.inf), False),
    "clip if finite": (lambda f, p: f.clip_grad_norm_(p, 0.37, error_if_nonfinite=True), True),
    "clip in a loop": (lambda f, p: f.clip_grad_norm_(p, 0.37, foreach=False), True),
    "clip with foreach": (lambda f, p: f.clip_grad_norm_(p, 0.37, foreach=True), True),
    "norm": (lambda f, p: f.get_total_norm([q.grad for q in p if q.grad is not None]), True),
    "norm by the largest": (
        lambda f, p: f.get_total_norm([q.grad for q in p if q.grad is not None], math.inf, True, False),
        True,
    ),
    "norm by the sum": (lambda f, p: f.get_total_norm([q.grad for q in p if q.grad is not None], 1.0), False),
    "scale": (lambda f, p: f.clip_grads_with_norm_(p, 0.37, torch.tensor(3.3)), True),
    "scale in float64": (lambda f, p: f.clip_grads_with_norm_(p, 0.37, torch.tensor(3.3, dtype=F64)), True),
    "scale in bfloat16": (
        lambda f, p: f.clip_grads_with_norm_(p, 0.37, torch.tensor(3.3, dtype=torch.bfloat16), False),
        True,
    ),
    "value": (lambda f, p: f.clip_grad_value_(p, 0.37), True),
    "value in a loop": (lambda f, p: f.clip_grad_value_(p, 0.37, foreach=False), True),
}


def parameters(gradients):
    params = []
    for g in gradients:
        p = Parameter(torch.empty(0))
        if g is not None:  # torch checks less of a gradient that is assigned to data
            p = Parameter(
                torch.empty_like(g, requires_grad=False) if g.layout is torch.strided else torch.zeros(g.shape)
            )
            p.grad = g
        params.append(p)
    return params


def version(g):
    with contextlib.suppress(RuntimeError):  # inference tensors do not have one
        return g._version


def outcome(call, module, params, mode=contextlib.nullcontext):
    """Everything that a call does: its result, error and warnings, and the gradients and their versions."""
    grads = [p.grad for p in params]
    before = [version(g) for g in grads if g is not None]
    result = error = None
    with warnings.catch_warnings(record=True) as warned, mode():
        warnings.simplefilter("always")
        try:
            result = call(module, params)
        except Exception as e:
            error = type(e), str(e)
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    grads = [g for g in grads if g is not None]
    return {
        "result": result,
        "error": error,
        "warnings": [(w.category.__name__, str(w.message)) for w in warned],
        "kind": (type(result), getattr(result, "device", None), getattr(result, "requires_grad", None)),
        "inference": isinstance(result, Tensor) and result.is_inference(),
        "gradients": [
            g.to_dense().detach() if g.is_sparse else g.detach().resolve_conj() for g in grads if not g.is_meta
        ],
        "graphs": [(type(g.grad_fn).__name__, g.requires_grad) for g in grads],
        "versions": [None if v is None else version(g) - v for g, v in zip(grads, before, strict=True)],
    }


def check(call, make, mode=contextlib.nullcontext, name=""):
    """Compare a call of goptim's function with one of torch's, and return torch's error. The name is for messages."""
    theirs, ours = (outcome(call, module, parameters(make()), mode) for module in BOTH)
    assert ours["error"] == theirs["error"], name
    for what in theirs if theirs["error"] is None else ():  # torch may have changed some gradients before an error
        if what in ("result", "gradients"):
            same(ours[what], theirs[what], what, name)
        else:
            assert ours[what] == theirs[what], (name, what)
    return theirs["error"]


def same(ours, theirs, what, name=""):
    if what == "gradients" or (isinstance(theirs, Tensor) and not theirs.is_meta):
        assert_bit_equal(plain(ours), plain(theirs), f"{name} {what}")
    elif not isinstance(theirs, Tensor):
        assert ours is theirs is None, name


def plain(x):
    """Tensors without their class and their negative bit."""
    return [plain(t) for t in x] if isinstance(x, list) else x.as_subclass(Tensor).resolve_neg()


@pytest.mark.parametrize("gradients", GRADIENTS)
def test_everything_is_torchs(gradients, threads, lists):
    make, n = GRADIENTS[gradients]
    for call, (do, go) in CALLS.items():
        lists.clear()
        error = check(do, make, name=call)
        # The dtype of the coefficient matters for gradients without dimensions.
        if error is None and go and not ("scale" in call and "without dimensions" in gradients):
            assert sum(lists) >= n, call  # in mixed lists, norms and products count


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("n", [1, 3, 1003, 70001, pytest.param(3_000_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("count", [1, 2])
def test_threads(count, n, dtype, threads):
    threads(count)
    for call in ("clip", "do not clip", "clip by the largest", "norm", "value", "scale"):
        theirs, ours = (outcome(CALLS[call][0], module, parameters(many(n, 7, n, dtype=dtype))) for module in BOTH)
        same(ours["result"], theirs["result"], "result")
        same(ours["gradients"], theirs["gradients"], "gradients")
        assert ours["versions"] == theirs["versions"]


@pytest.mark.parametrize("norm_type", [2, "inf", 1])
@pytest.mark.parametrize("gradients", ["inf", "NaN", "all infinite", "overflow"])
@pytest.mark.parametrize("more", [list, lambda: many(5, dtype=torch.bfloat16)], ids=["Go", "mixed"])
def test_nothing_changes_if_the_norm_is_not_finite(more, gradients, norm_type):
    def make():
        return [*GRADIENTS[gradients][0](), *more()]

    if gradients == "overflow" and norm_type != 2:
        return  # this norm is finite
    said = []
    for module in BOTH:
        params = parameters(make())
        with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped") as error:
            module.clip_grad_norm_(params, 0.37, norm_type, error_if_nonfinite=True)
        said.append(str(error.value))
        assert_bit_equal([p.grad for p in params], make())
        assert [p.grad._version for p in params] == [g._version for g in make()]
    assert said[0] == said[1]


@pytest.mark.parametrize("dtype", [F32, F64])
def test_coefficients_around_one(dtype):
    """The largest norm that is not clipped, and its neighbors."""
    grads = many(7, 3, dtype=dtype)
    norm = torch.nn.utils.get_total_norm(grads)
    ones = set()
    for step in range(-12, 13):
        most = norm + 1e-6
        for _ in range(abs(step)):
            most = torch.nextafter(most, torch.tensor(math.copysign(math.inf, step), dtype=dtype))
        results = []
        for module in BOTH:
            params = parameters(many(7, 3, dtype=dtype))
            results.append([module.clip_grad_norm_(params, most.item()), *(p.grad for p in params)])
        assert_bit_equal(results[1], results[0])
        ones.add(torch.equal(results[0][1], grads[0]))
    assert ones == {True, False}


def test_gradients_are_not_written_if_the_coefficient_is_1():
    """A signalling NaN would become quiet. torch writes it."""
    g = torch.tensor([0x7F800001, 0x3F800000], dtype=torch.int32).view(F32)
    p = parameters([g])
    goptim.clip_grads_with_norm_(p, 1.0, torch.tensor(0.5))
    assert g.view(torch.int32)[0] == 0x7F800001
    assert g._version == 1


NUMBERS = [
    *(0.0, -1.0, 1e300, -1e300, 1e39, 3.4028235e38, math.inf, -math.inf, math.nan, 1, True, "3", 10**400),
    *(np.float32(0.37), np.float64(0.37), np.int64(2), Fraction(1, 3), None, "x", [1.0], 1j),
    *(torch.tensor(0.37), torch.tensor([2.0]), torch.tensor([1.0, 2.0])),
]
ORDERS = [0, -1.0, 3, 0.5, "2", "inf", "-inf", math.nan, True, np.float32(2), torch.tensor(2.0), None, "x"]
NORMS = [
    *map(torch.tensor, ([3.3], [3.3, 3.3], 7, 3 + 1j, math.nan, math.inf, 0.0)),
    *(3.3, None, np.float32(3)),
    *(torch.tensor(3.3, requires_grad=True), torch.empty((), device="meta")),
    *(torch.tensor(3.3).as_subclass(Other), Parameter(torch.tensor(3.3))),
]


@pytest.mark.parametrize("x", NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.covering
def test_limits(name, x, dtype):
    more = [torch.tensor(3.3)] if name == "clip_grads_with_norm_" else []

    def call(module, params):
        return getattr(module, name)(params, x, *more)

    check(call, lambda: few(dtype))


@pytest.mark.parametrize("x", ORDERS, ids=repr)
@pytest.mark.parametrize("name", ["clip_grad_norm_", "get_total_norm"])
def test_norm_types(name, x):
    def call(module, params):
        if name == "get_total_norm":
            return module.get_total_norm([p.grad for p in params], x)
        return module.clip_grad_norm_(params, 0.37, x)

    check(call, few)


@pytest.mark.parametrize("x", NORMS, ids=str)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_norms_that_are_given(x, dtype):
    check(lambda module, params: module.clip_grads_with_norm_(params, 0.37, x), lambda: few(dtype))


FORMS = {
    "list": list,
    "tuple": tuple,
    "generator": lambda params: (p for p in params),
    "iterator": iter,
    "dict values": lambda params: dict(enumerate(params)).values(),
    "tensor": lambda params: params[0],
    "empty list": lambda params: [],
    "empty generator": lambda params: (p for p in ()),
    "empty iterator": lambda params: iter(()),
    "of other objects": lambda params: [*params, 3],
    "not iterable": lambda params: 3,
    "None": lambda params: None,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"])
def test_forms_of_parameters(name, form):
    more = {"get_total_norm": [], "clip_grads_with_norm_": [0.37, torch.tensor(3.3)]}.get(name, [0.37])

    def call(module, params):
        if name == "get_total_norm":
            params = [p.grad for p in params]
        return getattr(module, name)(FORMS[form](params), *more)

    check(call, few)


def test_warning_is_attributed_to_the_caller():
    for module in BOTH:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            module.clip_grad_norm_((p for p in ()), 1.0)
        assert {w.filename for w in warned} <= {__file__}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("call", ["clip", "norm", "value", "scale"])
def test_modes(mode, call):
    check(CALLS[call][0], few, mode)


def test_default_dtype_and_device(double_default):
    check(CALLS["clip"][0], few)
    check(CALLS["clip"][0], list)
    with torch.device("meta"):
        theirs, ours = (module.get_total_norm(few()) for module in BOTH)
    assert ours.device == theirs.device
    assert ours.dtype == theirs.dtype


def test_dispatch_modes_see_torchs_operations():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names = [*getattr(self, "names", []), str(function)]
            return function(*args, **(kwargs or {}))

    for call in CALLS.values():
        seen = []
        for module in BOTH:
            with Names() as names:
                call[0](module, parameters(few()))
            seen.append(names.names)
        assert seen[0] == seen[1]


@pytest.mark.parametrize("call", CALLS)
def test_without_a_layout(call, monkeypatch, lists):
    """Everything falls back to torch."""
    monkeypatch.setattr(_native, "layout", lambda: None)
    check(CALLS[call][0], lambda: [None, *few(), *few(F64)])
    assert not lists


@pytest.mark.parametrize("call", CALLS)
def test_without_go(call, monkeypatch, lists):
    monkeypatch.setattr(_native, "core", lambda: None)
    check(CALLS[call][0], lambda: [None, *few(), *few(F64)])
    assert not lists


def test_device_without_foreach(monkeypatch):
    """The error is torch's, but precedes all writes."""
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda device: False)
    monkeypatch.setattr("goptim.clip._device_has_foreach_support", lambda device: False)
    for call in ("clip with foreach",):
        check(CALLS[call][0], lambda: [*few(), *many(5, dtype=torch.bfloat16)])


@pytest.mark.full
@pytest.mark.parametrize("call", ["clip", "norm", "value"])
def test_compilation(call):
    """Compiled, a call is traced into one graph of torch's operations."""

    def compiled(module, params):
        return torch.compile(lambda params: CALLS[call][0](module, params), backend="eager", fullgraph=True)(params)

    check(compiled, few)


def test_changes_during_a_call():
    """A list that Python code changes while gather.c reads it."""
    params = parameters(many(*[3] * 40))

    class Changing:
        @property
        def grad(self):
            params.clear()
            return None

    params[20:20] = [Changing()]
    kept = list(params)
    goptim.clip_grad_norm_(params, 0.1)
    assert not params
    expected = parameters(many(*[3] * 40))
    torch.nn.utils.clip_grad_norm_(expected, 0.1)
    assert_bit_equal([p.grad for p in kept if type(p) is Parameter], [p.grad for p in expected])


def step_lists(**changes):
    arguments = {
        "kind": _core.Kind("Scale"),
        "results": 0,
        "layout": _native.layout(),
        "plain": (Tensor, Parameter),
        "tensors": [torch.ones(3)],
        "others": None,
        "flags": 0,
        "scalars": (2.0,),
        "versions": 1,
        "threads": 1,
    }
    return _core.step_lists(*(arguments | changes).values())


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"kind": "Scale"}, TypeError, "argument 1"),
        ({"kind": 10**6}, RuntimeError, "expected one of"),
        ({"results": 5}, ValueError, "up to 4 results"),
        ({"layout": b"x"}, ValueError, "expected a layout"),
        ({"plain": (3,)}, ValueError, "up to four types"),
        ({"tensors": {}}, TypeError, "expected a list or tuple"),
        ({"others": {}}, TypeError, "expected a list or tuple"),
        ({"others": [torch.ones(3)] * 2}, ValueError, "1 tensors with 2 others"),
        ({"others": [torch.ones(3)], "flags": 2}, ValueError, "expected as many"),
        ({"scalars": ("x",)}, TypeError, "expected numbers"),
        ({"scalars": (1.0,) * 16}, RuntimeError, "has 16 scalars, expected 1"),
        ({"scalars": (1.0,) * 29}, ValueError, "expected up to 28"),
        ({"scalars": (1.0,) * 26, "results": 4}, ValueError, "expected up to 28"),
        ({"scalars": ()}, RuntimeError, "scalars"),
        ({"versions": -1}, ValueError, "step_lists"),
        ({"flags": 2, "tensors": [3]}, AttributeError, "grad"),
    ],
)
def test_step_lists_rejects_bad_input(changes, error, says):
    tensors = changes.setdefault("tensors", [torch.ones(3)])
    with pytest.raises(error, match=says):
        step_lists(**changes)
    if type(tensors) is list and isinstance(tensors[0], Tensor):
        assert tensors[0].tolist() == [1, 1, 1]
        assert tensors[0]._version == 0


def test_results_of_step_lists():
    kind, scalars = _core.Kind("GradNorm"), (2.0, _lists.order_of_norms(), False)
    assert step_lists(kind=kind, results=1, scalars=scalars) == (1, 1, float(torch.ones(3).norm()))
    for tensors, flags in (([], 0), ([torch.ones(3)] * 9, 2)):
        assert step_lists(kind=kind, results=1, scalars=scalars, tensors=tensors, flags=flags) == (0, 0, 0.0)
        assert step_lists(tensors=tensors, flags=flags) == 0


def test_step_lists_takes_no_references():
    import gc
    import sys

    tensors = many(*[3] * 40)
    params = parameters(tensors)
    held = [*tensors, params, params[0]]
    for flags, some in ((0, tensors), (2, params), (0, [*tensors, 3]), (0, [*tensors, tensors[0].half()])):
        before = [sys.getrefcount(x) for x in held]
        for _ in range(3):
            step_lists(flags=flags, tensors=some)
            step_lists(flags=flags, tensors=tuple(some))
        gc.collect()
        assert [sys.getrefcount(x) for x in held] == before
