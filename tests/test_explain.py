"""goptim.explain predicts what a step does, and changes nothing."""

import operator
import platform
import re
import sys

import numpy as np
import pytest
import torch
from configurations import BEYOND, ELEMENTWISE, IN_TABLES, accepts_complex, that_fall_back
from test_dropin import NAMES, SUPPORT, WITH_STATE, Logged, Operations, Quiet, both_classes, leaf, transposed
from torch.nn import Parameter

import goptim
from goptim import _native, _originals, _parts
from goptim.testing import assert_bit_equal

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


@pytest.fixture
def watched(monkeypatch):
    """The counts of each step: the parameters in Go, and the reasons of the others."""
    seen = []
    monkeypatch.setattr(_parts, "watch", lambda opt, n, reasons: seen.append((n, sorted(reasons))))
    return seen


def picture(opt):
    """Everything that explain might change."""
    tensors = [t for group in opt.param_groups for p in group["params"] for t in (p, p.grad) if t is not None]
    tensors += [t for state in opt.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    states = [(id(p), [(key, id(value)) for key, value in state.items()]) for p, state in opt.state.items()]
    return [(id(t), None if t.is_inference() else t._version) for t in tensors], states, list(vars(opt))


def explained(opt):
    before = picture(opt)
    rows = goptim.explain(opt)
    assert picture(opt) == before
    assert len(rows) == sum(len(group["params"]) for group in opt.param_groups)
    assert all(bool(row.reason) == (row.to != "go") for row in rows)
    return rows


def check(opt, watched, steps=2, step=None):
    """Compare explain with steps, and return its rows after the last of them."""
    for _ in range(steps):
        rows = [row for row in explained(opt) if row.has_grad]
        watched.clear()
        (step or opt.step)()
        says = [row.reason for row in rows if row.to == "torch"]
        assert watched == [(sum(row.to == "go" for row in rows), sorted(says))]
    return explained(opt)


def with_gradients(params, grad=torch.randn_like):
    for p in params:
        p.grad = grad(p)
    return params


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("what", SUPPORT)
@pytest.mark.covering("what", "name")
def test_who_steps_what(name, what, go, watched):
    make, grad, in_go = SUPPORT[what]
    opt = both_classes(name)[1](with_gradients(that_fall_back(name, make()), grad), **WITH_STATE.get(name, {}))
    rows = check(opt, watched)
    assert sum(row.to == "go" for row in rows) == in_go
    assert go == [in_go] * 2 * bool(in_go)


@pytest.mark.parametrize("name", IN_TABLES)
def test_without_the_extensions_gather(name, go, watched, monkeypatch):
    monkeypatch.setattr(_native, "layout", lambda: None)
    gaps = Parameter(torch.randn(6, 4)[::2])
    opt = both_classes(name)[1](with_gradients([leaf(3, 4), gaps]), **WITH_STATE.get(name, {}))
    assert [row.to for row in check(opt, watched)] == ["torch" if opt.together else "go", "torch"]
    assert go == ([] if opt.together else [1, 1])


def quiet(p):
    return torch.randn_like(p).as_subclass(Quiet)


# A parameter, its gradient, arguments, and a part of the reason.
REASONS = {
    "16 bit": (lambda: leaf(3, 4, dtype=torch.bfloat16), torch.randn_like, {"foreach": True}, "foreach=True"),
    "complex": (lambda: leaf(3, 4, dtype=torch.complex64), torch.randn_like, {}, "complex64"),
    "subclass": (lambda: torch.randn(3, 4).as_subclass(Quiet).requires_grad_(), torch.randn_like, {}, "a Quiet"),
    "gaps": (lambda: Parameter(torch.randn(6, 4)[::2]), torch.randn_like, {}, "gaps"),
    "gradient's subclass": (lambda: leaf(3, 4), quiet, {}, "its gradient is a Quiet"),
    "gradient's layout": (lambda: leaf(3, 4), transposed, {}, "different strides"),
    "gradient's gaps": (lambda: leaf(3, 4), lambda p: torch.randn(6, 4)[::2], {}, "different strides"),
    "gradient negative": (
        lambda: leaf(3, 4),
        lambda p: torch.randn(3, 4, dtype=torch.complex64).conj().imag,
        {},
        "negative",
    ),
    "differentiable": (
        lambda: leaf(3, 4).requires_grad_(False),
        torch.randn_like,
        {"differentiable": True},
        "differentiable",
    ),
    "Tensor lr": (lambda: leaf(3, 4), torch.randn_like, {"lr": torch.tensor(0.1)}, "lr is a Tensor"),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("why", REASONS)
@pytest.mark.covering("why", "name")
def test_reasons(name, why, go, watched):
    make, grad, kwargs, word = REASONS[why]
    if name in BEYOND and why in ("differentiable", "16 bit"):
        pytest.skip("it does not have this flag")
    opt = both_classes(name)[1](with_gradients([p := make()], grad), **kwargs, **WITH_STATE.get(name, {}))
    [row] = check(opt, watched) if accepts_complex(name) or not p.is_complex() else explained(opt)
    assert row.to == "torch"
    assert word in row.reason
    assert go == []


@pytest.mark.parametrize("name", NAMES)
def test_states(name, go, watched):
    opt = both_classes(name)[1](with_gradients([p := leaf(3, 4)]), **WITH_STATE.get(name, {}))
    assert explained(opt)[0].to == "go"
    opt.step()
    key = next(key for key, t in opt.state[p].items() if isinstance(t, torch.Tensor) and t.dim())
    kept = opt.state[p][key]
    opt.state[p][key] = kept.as_subclass(Quiet)
    [row] = check(opt, watched, steps=1)
    assert f"its state {key!r} is a Quiet" in row.reason
    opt.state[p][key] = torch.zeros(7)
    [row] = explained(opt)
    assert row.to == "error"
    with pytest.raises(ValueError, match="has shape"):
        opt.step()
    assert go == [1]


@pytest.mark.parametrize("name", NAMES)
def test_whole_steps(name, go, watched, monkeypatch):
    opt = both_classes(name)[1](with_gradients([leaf(3, 4)]))
    with Operations():
        [row] = explained(opt)
        assert row.reason == "a dispatch mode is active"
        check(opt, watched, steps=1)
    opt.found_inf = torch.zeros(())
    [row] = explained(opt)
    assert row.reason == "a GradScaler passes its scale to the optimizer"
    del opt.found_inf
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert explained(opt)[0].reason == "the step is being compiled"
    with monkeypatch.context() as patch:
        patch.setattr(_native, "_forked", True)
        assert "forked" in check(opt, watched, steps=1)[0].reason
    assert go == []


@pytest.mark.parametrize("name", NAMES)
def test_without_gradients(name, go, watched):
    eps = {"eps": (1e-30, 1e-3)} if name == "Adafactor" else {}  # otherwise it follows from the only dtype
    opt = both_classes(name)[1]([("w", leaf(3, 4)), ("h", leaf(3, dtype=torch.complex64))], **eps)
    w, h = check(opt, watched, steps=1)
    assert (w.name, w.to, w.has_grad) == ("w", "go", False)
    assert (h.name, h.to, h.has_grad) == ("h", "torch", False)
    assert go == []


def sparse(rows=(1, 2), of=5):
    indices = torch.tensor([list(rows)])
    return lambda p: torch.sparse_coo_tensor(
        indices, torch.randn(len(rows), *p.shape[1:], dtype=p.dtype), (of, *p.shape[1:])
    )


@pytest.mark.parametrize(
    ("name", "kwargs", "shape", "word"),
    [
        ("SGD", {}, (5, 3), ""),
        ("SGD", {"momentum": 0.9}, (5, 3), "sparse_coo"),
        ("SGD", {}, (5,), "vector"),
        ("Adagrad", {}, (5, 3), ""),
        ("Adagrad", {}, (5,), "vector"),
        ("SparseAdam", {}, (5, 3), ""),
        ("SparseAdam", {}, (5,), ""),
    ],
)
def test_sparse_gradients(name, kwargs, shape, word, watched):
    opt = both_classes(name)[1](with_gradients([leaf(*shape)], sparse()), **kwargs)
    [row] = check(opt, watched)
    assert row.to == ("torch" if word else "go")
    assert word in row.reason
    [p] = opt.param_groups[0]["params"]
    p.grad = None
    [row] = explained(opt)
    assert row.to == ("torch" if kwargs else "go")  # the buffer is sparse now
    if not word:
        p.grad = torch.sparse_coo_tensor([[7]], torch.ones(1, *shape[1:]), shape, check_invariants=False)
        [row] = explained(opt)
        assert (row.to, "index 7" in row.reason) == ("error", True)


def test_sparse_adam_and_a_dense_gradient():
    opt = goptim.SparseAdam(with_gradients([leaf(5, 3)]))
    [row] = explained(opt)
    assert (row.to, row.reason) == ("torch", "its gradient is dense")


@pytest.mark.parametrize("name", ["Adafactor", "hf.Adafactor"])
def test_adafactors(name, watched):
    make = goptim.hf.Adafactor if name.startswith("hf") else goptim.Adafactor
    params = [leaf(3, 4), Parameter(torch.randn(4, 3).t()), torch.randn(2).as_subclass(Quiet).requires_grad_()]
    opt = make(with_gradients(params, lambda p: torch.randn_like(p, memory_format=torch.preserve_format)))
    rows = check(opt, watched)
    assert [row.to for row in rows] == ["go", "torch", "torch"]
    assert rows[1].reason == "it is not contiguous"
    assert "Quiet" in rows[2].reason
    params[0].grad = None
    assert [row.to for row in explained(opt)] == ["go", "torch", "torch"]
    if name.startswith("hf"):
        params[0].grad = sparse(of=3)(params[0])
        assert [row.to for row in explained(opt)] == ["error", "torch", "torch"]


def test_hf_adafactor_with_a_tensor_for_lr(watched):
    opt = goptim.hf.Adafactor(with_gradients([leaf(3, 4)]), lr=torch.tensor(0.1), relative_step=False)
    [row] = check(opt, watched)
    assert row.reason == "its group's lr is a Tensor"


def test_muon(watched):
    if not hasattr(goptim, "Muon"):
        pytest.skip("this torch has no Muon")
    opt = goptim.Muon(with_gradients([leaf(3, 4), Parameter(torch.randn(6, 4)[::2])]))
    assert [row.to for row in check(opt, watched)] == ["go", "torch"]


@pytest.mark.parametrize(
    ("make", "kwargs", "word"),
    [
        (lambda: [leaf(3, 4), leaf(2)], {}, ""),
        (lambda: [leaf(3, 4), leaf(2, dtype=torch.float64)], {}, "parameter 1 is not"),
        (lambda: [Parameter(torch.randn(6, 4)[::2])], {}, "parameter 0 is not"),
        (lambda: [leaf(3, 4, dtype=torch.bfloat16)], {}, ""),
        (lambda: [leaf(3, 4)], {"lr": torch.tensor(0.1)}, "an argument"),
    ],
)
def test_lbfgs(make, kwargs, word, watched):
    opt = goptim.LBFGS(params := make(), **kwargs)

    def closure():
        opt.zero_grad()
        loss = sum(p.float().pow(2).sum() for p in params)
        loss.backward()
        return loss

    assert {row.has_grad for row in explained(opt)} == {False}
    closure()
    rows = check(opt, watched, step=lambda: opt.step(closure))
    assert {row.to for row in rows} == {"torch" if word else "go"}
    assert all(word in row.reason for row in rows)


def test_lbfgs_with_an_unsupported_gradient(monkeypatch):
    monkeypatch.setattr(Logged, "seen", [])
    opt = goptim.LBFGS(with_gradients([leaf(3, 4)], lambda p: torch.randn_like(p).as_subclass(Logged)))
    [row] = explained(opt)
    assert row.to == "torch"
    assert "gradients" in row.reason


def test_a_table():
    opt = goptim.SGD(
        [
            {"params": [("body.weight", leaf(3, 4)), ("scale", leaf())]},
            {"params": [("head", leaf(2, dtype=torch.cfloat))]},
        ]
    )
    assert str(goptim.explain(opt)).splitlines() == [
        "parameter  name         shape  dtype      device  to     why",
        "0.0        body.weight  3 x 4  float32    cpu     go     it has no gradient now",
        "0.1        scale        ()     float32    cpu     go     it has no gradient now",
        "1.0        head         2      complex64  cpu     torch  it is torch.complex64; it has no gradient now",
        f"on {goptim.explain(opt).platform}",
    ]
    go = _native.core().Version().partition(" ")[0].partition("-")[0]
    here = re.escape(f"{sys.platform}, {platform.machine()}, torch {torch.__version__}; {go}, ")
    assert re.fullmatch(here + "(vectors of (128|256|512) bits|no vectors), .* threads.*", goptim.explain(opt).platform)


class Derived(torch.optim.AdamW):
    pass


@pytest.mark.parametrize("make", [torch.optim.AdamW, Derived, lambda params: 3], ids=["torch", "derived", "a number"])
def test_other_optimizers_are_rejected(make):
    with pytest.raises(TypeError, match="explain: expected an optimizer of goptim, got a"):
        goptim.explain(make([leaf(3)]))


class Ours(goptim.AdamW):
    pass


def test_derived_classes(watched):
    assert [row.to for row in check(Ours(with_gradients([leaf(3)])), watched)] == ["go"]


def lazy_in_the_middle():
    linear = torch.nn.LazyLinear(2)
    return [leaf(3, 4), linear.weight, linear.bias]


# What every step accepts without gradients, with the classes that accept it.
ACCEPTED = {
    "lazy": lazy_in_the_middle,
    "lazy, named": lambda: [("w", leaf(3, 4)), *torch.nn.LazyLinear(2).named_parameters()],
    "meta": lambda: [Parameter(torch.ones(2, 2, device="meta"))],
    "nested": lambda: [Parameter(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))],
    "jagged": lambda: [
        Parameter(torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(3, 2)], layout=torch.jagged))
    ],
    "sparse": lambda: [torch.ones(2, 2).to_sparse().requires_grad_()],
    "compressed": lambda: [torch.ones(2, 2).to_sparse_csr().requires_grad_()],
    "quantized": lambda: [torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)],
    "integers": lambda: [torch.ones(2, 2, dtype=torch.int64)],
    "no elements": lambda: [leaf(0, 2)],
    "no parameters": lambda: [leaf(2, 2)],
}
EVERY = [*(c.__name__ for c in _originals.CLASSES.values()), "hf.Adafactor"]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("what", ACCEPTED)
@pytest.mark.filterwarnings(
    "ignore:Sparse CSR", "ignore:The PyTorch API of nested", "ignore:.*quantize", "ignore:.*deprecated"
)
@pytest.mark.covering("what", "name")
def test_whatever_a_step_accepts(name, what):
    make = operator.attrgetter(name)(goptim)
    try:
        opt = make(ACCEPTED[what]())
        if what == "no parameters":
            opt.param_groups[0]["params"].clear()
    except (ValueError, RuntimeError, NotImplementedError) as e:
        pytest.skip(f"refused: {e}")
    rows = goptim.explain(opt)
    assert str(rows)
    assert {row.to for row in rows} <= {"go", "torch"}
    if name == "LBFGS":
        return
    opt.step()
    if what.startswith("lazy"):
        assert [row.to for row in rows[:2]] == ["go" if name != "SparseAdam" else rows[0].to, "torch"]
        assert rows[1].reason == "it is lazy and does not have a shape yet"
        assert rows[1].shape is None
        assert "none" in str(rows)


def test_a_lazy_parameter_that_a_closure_gives_a_shape():
    """LBFGS begins its step before the closure runs."""
    module = torch.nn.LazyLinear(2)
    opt = goptim.LBFGS(module.parameters())

    def closure():
        opt.zero_grad()
        loss = module(torch.ones(3, 4)).square().sum()
        loss.backward()
        return loss

    rows = goptim.explain(opt)
    assert {row.to for row in rows} == {"torch"}
    opt.step(closure)
    assert {row.to for row in goptim.explain(opt)} == {"go"}


def test_a_group_that_a_step_rejects():
    """Its rows have the error, and other rows are unaffected."""
    opt = goptim.SGD([{"params": [leaf(2)]}, {"params": [leaf(3)]}])
    del opt.param_groups[0]["momentum"]
    one, two = goptim.explain(opt)
    assert (one.to, two.to) == ("error", "go")
    assert "momentum" in one.reason


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_group_without_an_option_of_later_versions(name):
    """A group that an earlier torch saved does not have decoupled_weight_decay; the class says what it is."""
    opts = [getattr(goptim, name)([Parameter(torch.ones(3))], weight_decay=0.1) for _ in range(2)]
    opts[1].param_groups[0].pop("decoupled_weight_decay", None)
    opts[0].param_groups[0]["lr"] = 2.0**-10
    opts[1].param_groups[0]["lr"] = np.float32(2.0**-10)
    for opt in opts:
        opt.param_groups[0]["params"][0].grad = torch.ones(3)
        opt.step()
        assert [row.to for row in goptim.explain(opt)] == ["go"]
    assert_bit_equal(*([p for group in opt.param_groups for p in group["params"]] for opt in opts))


def test_keywords_in_effect():
    """Rows that run in Go name the keywords that have an effect on them, and a refused step is not counted."""
    half, single, double = (Parameter(torch.ones(3, dtype=d)) for d in (torch.bfloat16, torch.float32, torch.float64))
    with_gradients([half, single, double])
    options = {"rounding": "stochastic", "seed": 5, "state_dtype": torch.bfloat16}
    opt = goptim.SGD([half, single, double], momentum=0.9, **options)
    rows = explained(opt)
    assert [row.storage for row in rows] == [
        "state_dtype=torch.bfloat16, rounding='stochastic', seed=5",
        "state_dtype=torch.bfloat16",
        "",
    ]
    assert "with state_dtype=torch.bfloat16, rounding='stochastic', seed=5" in str(rows)
    opt.param_groups[0].update(rounding="kahan", state_dtype=None)
    assert [row.storage for row in explained(opt)] == ["rounding='kahan'", "", ""]
    opt.param_groups[0].update(rounding="nearest", master_weights=False)
    assert [row.storage for row in explained(opt)] == ["", "", ""]


def test_refused_steps_are_not_counted(watched, monkeypatch):
    p, q = with_gradients([Parameter(torch.ones(3, dtype=torch.bfloat16)), Parameter(torch.ones(3))])
    opt = goptim.SGD([q, p], rounding="kahan", foreach=True)
    with pytest.raises(ValueError, match="foreach=True"):
        opt.step()
    opt.param_groups[0]["foreach"] = None
    with monkeypatch.context() as m:
        m.setattr("goptim._step.reason_of_optimizer", lambda _: "it is a test")
        with pytest.raises(ValueError, match="it is a test"):
            opt.step()
    assert not watched
    opt.step()
    assert watched == [(2, [])]
