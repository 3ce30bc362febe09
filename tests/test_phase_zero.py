"""zero_grad of goptim's optimizers against torch's."""

import contextlib

import pytest
import torch
from configurations import normal
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import goptim
import goptim.hf
from goptim import _native
from goptim._wrapper import Wrapper
from goptim._zero import ZeroGrad
from goptim.testing import assert_bit_equal

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

F32, F64 = torch.float32, torch.float64
CLASSES = [c for c in vars(goptim).values() if isinstance(c, type) and issubclass(c, ZeroGrad)]
CLASSES += [goptim.hf.Adafactor]


class Other(Tensor):
    """A subclass that changes nothing."""


def few(dtype=F32):
    return [normal(shape, dtype, i) for i, shape in enumerate(((4, 3), (7,), (), (0,), (2, 3, 4), (70001,)))]


def shared():
    memory = normal((40,), F32, 0)
    return [memory[:20], memory[10:], memory.view(F64)[3:], memory.view(torch.half)[::2]]


def needing(*, graph):
    t = normal((5,), F32, 0).requires_grad_()
    return t * 2 if graph else t


def view_of_base_with_graph():
    base = normal((6,), F32, 0)
    view = base[:4]
    base.mul_(torch.ones(6, requires_grad=True))
    return view


def inference():
    with torch.inference_mode():
        return normal((5,), F32, 0)


# Gradients, and how many run in Go.
GRADIENTS = {
    "none": (list, 0),
    "no gradients": (lambda: [None, None], 0),
    "few": (lambda: [None, *few(), None], 6),
    "both dtypes": (lambda: [*few(), *few(F64)], 12),
    "many": (lambda: [normal((64,), F32, i) for i in range(129)], 129),
    "strides": (
        lambda: [normal((4, 3), F32, 0).t(), normal((2, 3, 4, 5), F32, 0).to(memory_format=torch.channels_last)],
        2,
    ),
    "special values": (lambda: [torch.tensor([torch.inf, torch.nan, -0.0, 1e-42])], 1),
    "gaps": (lambda: [*few(), normal((3, 8), F32, 0)[:, ::2], *few()], 12),
    "expanded": (lambda: [normal((4,), F32, 0).expand(3, 4), *few()], 6),
    "other dtypes": (
        lambda: [*few(), *(normal((5,), F32, 0).to(d) for d in (torch.half, torch.bfloat16, torch.cfloat))],
        8,
    ),
    "sparse": (lambda: [*few(), normal((5, 2), F32, 0).relu().to_sparse(1)], 6),
    "subclass": (lambda: [*few(), normal((5,), F32, 0).as_subclass(Other)], 6),
    "copied on write": (lambda: [*few(), torch._lazy_clone(normal((5,), F32, 0))], 6),
    "negated": (lambda: [*few(), torch._neg_view(normal((5,), F32, 0))], 6),
    "meta": (lambda: [*few(), torch.empty(5, device="meta")], 6),
    "inference": (lambda: [*few(), inference()], 6),
    "requires a gradient": (lambda: [*few(), needing(graph=False), *few()], 12),
    "with a graph": (lambda: [*few(), needing(graph=True), *few()], 12),
    "a view of a graph": (lambda: [*few(), needing(graph=True)[2:]], 6),
    "a view of a base with a graph": (lambda: [*few(), view_of_base_with_graph()], 6),
    "the same twice": (lambda: [g := normal((5,), F32, 0), g], 2),
    "of one memory": (shared, 3),
}


def optimizer(cls, gradients, groups=1, **flags):
    params = []
    for g in gradients:
        shape = (0,) if g is None else g.shape
        like = {} if g is None or g.dtype not in (F64, torch.half, torch.bfloat16, torch.cfloat) else {"dtype": g.dtype}
        p = Parameter(torch.zeros(shape, device=None if g is None else g.device, **like))
        p.grad = g
        params.append(p)
    params = params or [Parameter(torch.zeros(1))]
    if groups > 1:
        params = [{"params": params[i::groups]} for i in range(groups)]
    if cls is goptim.MuonWithAuxAdam:
        params = [{**(p if isinstance(p, dict) else {"params": p}), "use_muon": False} for p in params]
    return cls(params, **flags)


def version(g):
    with contextlib.suppress(RuntimeError):  # inference tensors do not have one
        return g._version


def outcome(zero, opt, *args, mode=contextlib.nullcontext, **kwargs):
    params = [p for group in opt.param_groups for p in group["params"]]
    grads = [p.grad for p in params]
    before = [version(g) for g in grads if g is not None]
    error = None
    try:
        with mode():
            assert zero(opt, *args, **kwargs) is None
    except Exception as e:
        error = type(e), str(e)
    kept = [p.grad is g for p, g in zip(params, grads, strict=True)]
    grads = [g for g in grads if g is not None]
    return (
        [
            (g.to_dense() if g.is_sparse else g).detach().as_subclass(Tensor).resolve_neg()
            for g in grads
            if not g.is_meta
        ],
        error,
        kept,
        [(g.requires_grad, type(g.grad_fn), g.is_leaf) for g in grads],
        [None if v is None else version(g) - v for g, v in zip(grads, before, strict=True)],
    )


def check(cls, make, *args, groups=1, mode=contextlib.nullcontext, flags=None, **kwargs):
    actual, expected = (
        outcome(zero, optimizer(cls, make(), groups, **(flags or {})), *args, mode=mode, **kwargs)
        for zero in (cls.zero_grad, Optimizer.zero_grad)
    )
    assert actual[1] == expected[1]
    if expected[1] is None:  # otherwise torch may have changed some gradients
        assert_bit_equal(actual[0], expected[0], "gradients")
        assert actual[2:] == expected[2:]


@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("gradients", GRADIENTS)
def test_everything_is_torchs(gradients, flags):
    if any(g is not None and (g.dtype not in (F32, F64) or g.is_meta) for g in GRADIENTS[gradients][0]()):
        flags = {"foreach": True} if flags else {}  # torch rejects fused for such parameters
    check(goptim.SGD, GRADIENTS[gradients][0], set_to_none=False, flags=flags)
    check(goptim.SGD, GRADIENTS[gradients][0], flags=flags)
    check(goptim.SGD, GRADIENTS[gradients][0], False, groups=2, flags=flags)
    check(goptim.SGD, GRADIENTS[gradients][0], True, groups=2, flags=flags)


@pytest.mark.parametrize("gradients", GRADIENTS)
def test_supported_gradients_run_in_go(gradients, lists):
    make, n = GRADIENTS[gradients]
    for groups in (1, 2):
        opt = optimizer(goptim.SGD, make(), groups)
        if outcome(Optimizer.zero_grad, optimizer(goptim.SGD, make()), False)[1] is None:
            lists.clear()
            opt.zero_grad(set_to_none=False)
            assert sum(lists) == n


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_every_class(cls, lists):
    make = (lambda: [normal((4, 3), F32, 0)]) if cls.__name__ == "Muon" else few
    n = len(make())
    check(cls, make, set_to_none=False)
    assert lists == [n]
    check(cls, make)


def test_every_class_is_tested():
    named = {c for c in vars(goptim).values() if isinstance(c, type) and issubclass(c, Optimizer)}
    around = {goptim.Lookahead, goptim.SAM}  # which call that of the optimizer
    assert named - {Optimizer} <= set(CLASSES) | around
    assert all(c.zero_grad is Wrapper.zero_grad for c in around)
    assert len(CLASSES) > 14


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("none", [False, True])
def test_modes(none, mode):
    check(goptim.AdamW, few, none, mode=mode)


@pytest.mark.parametrize("missing", ["layout", "core"])
def test_without_a_layout_and_without_go(missing, monkeypatch, lists):
    make = GRADIENTS["with a graph"][0]
    opts = [optimizer(goptim.SGD, make()) for _ in range(2)]
    monkeypatch.setattr(_native, missing, lambda: None)
    actual, expected = outcome(goptim.SGD.zero_grad, opts[0], False), outcome(Optimizer.zero_grad, opts[1], False)
    assert_bit_equal(actual[0], expected[0])
    assert actual[1:] == expected[1:]
    assert not lists


def test_dispatch_modes_see_torchs_operations(lists):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names = []
    opt = optimizer(goptim.SGD, few())
    with Names():
        opt.zero_grad(set_to_none=False)
    assert names.count("aten.zero_.default") == len(few())
    assert not lists


@pytest.mark.parametrize("none", [False, True])
def test_profilers_see_torchs_record(none):
    def names(opt, zero):
        with torch.profiler.profile() as profile:
            zero(opt, none)
        return [e.name for e in profile.events() if "Optimizer" in e.name]

    class Mine(goptim.SGD):
        pass

    for cls in (goptim.SGD, Mine):
        expected = names(optimizer(cls, few()), Optimizer.zero_grad)
        assert (
            names(optimizer(cls, few()), cls.zero_grad) == expected == [f"Optimizer.zero_grad#{cls.__name__}.zero_grad"]
        )


def test_record_ends_after_an_error():
    opt = optimizer(goptim.SGD, few())
    opt.param_groups[0]["params"].append(3)
    kept = []  # an error keeps the frames, and their variables, from which it came
    for none in (False, True):
        with torch.profiler.profile() as profile:
            for zero in (Optimizer.zero_grad, goptim.SGD.zero_grad):
                with pytest.raises(AttributeError, match="'int' object has no attribute 'grad'") as error:
                    zero(opt, none)
                kept.append(error.value)
            torch.ones(1).neg()
        events = profile.events()
        [after] = [e.time_range.start for e in events if e.name == "aten::neg"]
        ends = [e.time_range.end for e in events if e.name.startswith("Optimizer.zero_grad")]
        assert len(ends) == 2
        assert max(ends) <= after


def test_overrides_and_replacements(monkeypatch, lists):
    class Mine(goptim.SGD):
        def zero_grad(self, set_to_none=True):
            calls.append(set_to_none)
            super().zero_grad(set_to_none=False)

    calls = []
    opt = optimizer(Mine, few())
    opt.zero_grad()
    assert calls == [True]
    assert lists == [len(few())]
    assert all(not p.grad.any() for p in opt.param_groups[0]["params"])
    monkeypatch.setattr(Optimizer, "zero_grad", lambda self, set_to_none=True: calls.append("replaced"))
    opt.zero_grad()
    assert calls == [True, True, "replaced"]


def test_unusual_groups():
    for params in (tuple, lambda x: dict.fromkeys(x).keys()):
        opts = [optimizer(goptim.SGD, few()) for _ in range(2)]
        for opt in opts:
            opt.param_groups[0]["params"] = params(opt.param_groups[0]["params"])
        actual, expected = outcome(goptim.SGD.zero_grad, opts[0], False), outcome(Optimizer.zero_grad, opts[1], False)
        assert_bit_equal(actual[0], expected[0])
        assert actual[1:] == expected[1:]


def test_unpickled_optimizers():
    import copy
    import pickle

    opt = optimizer(goptim.SGD, few())
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        for p, g in zip(other.param_groups[0]["params"], few(), strict=True):
            p.grad = g
        vars(other).pop("_zero_grad_profile_name", None)  # torch 2.6's __setstate__ may not set it
        other.zero_grad(set_to_none=False)
        assert all(not p.grad.any() for p in other.param_groups[0]["params"])
