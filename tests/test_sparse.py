"""Sparse gradients have torch's exact results: parameters, state, errors, and what falls back."""

import copy
import ctypes
import gc
import itertools
import mmap
import struct
import sys

import numpy as np
import pytest
import torch
from torch.nn import Parameter

import goptim
from goptim import _core, _layout, _native, _sparse
from goptim._kinds import sparse_kind_of
from goptim._step import GoStep
from goptim.testing import assert_bit_equal, ieee_sqrt

# Creating a sparse tensor warns, also within torch's own step.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
OPTIONS = {
    "SparseAdam": [
        {"lr": 0.0123},
        {"lr": 0.0123, "maximize": True},
        {"betas": (0.5, 0.807), "eps": 1e-3},
        {"betas": (0.0, 0.0)},
        {"lr": 3, "betas": (0.2, 0.95), "maximize": True},
    ],
    "Adagrad": [
        {"lr": 0.0123},
        {"lr": 0.0123, "maximize": True, "lr_decay": 0.11},
        {"eps": 1e-3, "initial_accumulator_value": 0.3},
        {"lr": 0.0, "eps": 0, "initial_accumulator_value": 1e-3},
    ],
    "SGD": [{"lr": 0.0123}, {"lr": 3, "maximize": True}, {"lr": 0.0}],
}
every = pytest.mark.parametrize("name", OPTIONS)
WHOSE = ["the parameter", "its gradient", "the indices of its gradient", "its state"]
CASES = [(name, options) for name, row in OPTIONS.items() for options in row]
configurations = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


def ours(name, params, **options):
    return getattr(goptim, name)(params, **options)


def theirs(name, params, **options):
    """torch's optimizer with its for-loop implementation."""
    return getattr(torch.optim, name)(params, **options, **({} if name == "SparseAdam" else {"foreach": False}))


def normal(shape, dtype, seed):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def gradient(shape, rows, dtype, seed):
    """A sparse gradient of some rows, unordered and possibly repeated."""
    values = normal((len(rows), *shape[1:]), dtype, seed) * 10.0 ** (seed % 3 - 1)
    indices = torch.as_tensor(rows, dtype=torch.int64)[None]
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


def some_rows(n, seed):
    """Nearly all of n rows, half of them repeated."""
    return torch.randint(0, max(n, 1), (n,), generator=torch.Generator().manual_seed(1000 + seed))


def run(make, name, shapes, dtype, steps=10, between=lambda i, opt: None, rows=some_rows, grad=gradient, **options):
    params = [Parameter(normal(shape, dtype, i)) for i, shape in enumerate(shapes)]
    opt = make(name, params, **options)
    with ieee_sqrt():
        for step in range(steps):
            for i, p in enumerate(params):
                p.grad = grad(p.shape, rows(p.shape[0], 10 * step + i), dtype, 10 * step + i)
            opt.step()
            opt = between(step, opt) or opt
    return opt


def everything(opt):
    return [(p, dict(opt.state.get(p, {}))) for group in opt.param_groups for p in group["params"]]


def assert_runs_equal(*args, **kwargs):
    assert_bit_equal(*(everything(run(make, *args, **kwargs)) for make in (ours, theirs)))


@pytest.fixture
def in_c(monkeypatch):
    """The number of indices of each sparse gradient that gather.c reads for a step."""
    calls = []

    def counting(*args, step_groups=_core.step_groups):
        params = [p for group, *_ in args[4] for p in group if isinstance(p, torch.Tensor)]
        grads = [p.grad for p in params if p.grad is not None and p.grad.is_sparse]
        done = step_groups(*args)
        if type(done) is int and args[5] > 0:
            calls.extend(g._nnz() for g in grads)
        return done

    monkeypatch.setattr(_core, "step_groups", counting)
    return calls


@pytest.fixture
def go(monkeypatch, in_c):
    """The number of indices of each sparse gradient in Go, which gather.c or Python reads."""

    def counting(kind, p, row, *rest, call=_sparse._call):
        in_c.append(row[-1])
        call(kind, p, row, *rest)

    monkeypatch.setattr(_sparse, "_call", counting)
    return in_c


def without_sparse(monkeypatch):
    """Let Python read sparse gradients, as if their fields had not been found."""
    layout = _layout.Layout(*struct.unpack(f"<{len(_layout.Layout._fields)}q", _native.layout()))
    assert layout.sparse != 0
    other = struct.pack(f"<{len(layout)}q", *layout._replace(sparse=0))
    monkeypatch.setattr(_native, "layout", lambda: other)


@pytest.fixture(params=["gather.c", "Python"])
def way(request, monkeypatch):
    """Both ways to read sparse gradients, in turn."""
    if request.param == "Python":
        without_sparse(monkeypatch)
    return request.param


@FLOATS
@configurations
@pytest.mark.covering(1)
def test_every_configuration(name, options, dtype, go, way):
    shapes = [*itertools.product((1, 7, 40), (1, 3, 8, 16, 17, 33)), (5,), (3, 4, 5), (6, 2, 1, 3), (2, 0), (0, 3)]
    assert_runs_equal(name, shapes, dtype, **options)
    assert len(go) == 10 * (len(shapes) - (2 if name == "SparseAdam" else 3))


@pytest.mark.parametrize(
    ("name", "dtype", "n"),
    [
        ("SparseAdam", torch.float32, 2),
        ("Adagrad", torch.float64, 2),
        ("SGD", torch.float32, 2),
        ("SGD", torch.float64, 1),
    ],
)
def test_threads(name, n, dtype, threads):
    threads(n)
    assert_runs_equal(name, [(20_011, 67), (50_003, 16)], dtype, steps=3)


@every
@pytest.mark.parametrize("n", [1, 2, 16, 17, 40, 1000, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 100_000])
@pytest.mark.covering
def test_order_of_repeated_rows(name, n, go, way):
    """torch's coalesce adds repeated rows in the order of its sort, which depends on the number of rows."""
    for repeats in (2, 3, 300):
        assert_runs_equal(
            name,
            [(n // repeats + 1, 3)],
            torch.float32,
            steps=1,
            rows=lambda rows, seed: torch.randint(0, rows, (n,), generator=torch.Generator().manual_seed(seed)),
        )
    assert go == [n, n, n]


@pytest.mark.parametrize("radix", [False, True])
@pytest.mark.parametrize("n", [17, (1 << 15) - 1, 1 << 15])
def test_order_without_radix_sort(n, radix, monkeypatch):
    """If Go does not know torch's order, as in a build of torch without radix sort, Python passes it."""
    monkeypatch.setattr(_sparse, "_sorts_by_radix", lambda: radix)
    g = gradient((5, 2), torch.arange(n) % 5, torch.float32, 0)
    order = _sparse._order(g)
    assert (order is None) == (radix and n >= 1 << 15)
    if order is not None:
        assert torch.equal(order, g._indices()[0].sort(0)[1])
    assert _sparse._order(g.coalesce()) is None


@FLOATS
@configurations
@pytest.mark.covering(1)
def test_special_values(name, options, dtype):
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, -1e-310, 3e38, 1.0]
    g = torch.tensor(special, dtype=dtype).repeat(4)[:, None] * torch.tensor([1.0, 1.0, -1.0], dtype=dtype)
    opts = []
    for make in (ours, theirs):
        p = Parameter(torch.linspace(-1, 1, 75, dtype=dtype).reshape(25, 3))
        p.data[::4, 1] = -0.0
        p.grad = torch.sparse_coo_tensor(torch.arange(36)[None] % 25, g, p.shape)
        opts.append(make(name, [p], **options))
        with ieee_sqrt():
            for _ in range(3):
                opts[-1].step()
    assert_bit_equal(*map(everything, opts))


@FLOATS
@every
@pytest.mark.parametrize("maximize", [False, True])
def test_rows_that_cancel(name, dtype, maximize):
    """The sign of a sum that is zero is the sign of that of negated gradients, which a zero parameter shows."""
    zeros = torch.tensor([0.0, -0.0, 1.0], dtype=dtype)
    pairs = torch.tensor([[1.0, -1.0], [0.0, 0.0], [-0.0, -0.0], [0.0, -0.0], [-0.0, 0.0], [-2.0, 2.0]], dtype=dtype)
    runs = []
    for make in (ours, theirs):
        p = Parameter(zeros[:, None].expand(3, len(pairs)).clone())
        opt = make(name, [p], lr=0.1, maximize=maximize)
        for n in (2, 3, 17):
            values = torch.cat([pairs.T.repeat(n // 2, 1), pairs[: n % 2, :1].expand(-1, len(pairs)) * 0])
            indices = torch.arange(3).repeat_interleave(n)[None]
            p.grad = torch.sparse_coo_tensor(indices, values.repeat(3, 1), p.shape, check_invariants=True)
            with ieee_sqrt():
                opt.step()
        runs.append(everything(opt))
    assert_bit_equal(*runs)


@every
@pytest.mark.parametrize("rows", [[], [0], [6] * 50, [6] * 40_000, list(range(7)), [6, 5, 4, 3, 2, 1, 0]], ids=len)
@pytest.mark.covering("rows way", "name")
def test_indices(name, rows, way):
    """Without indices the step still counts. A repeated row is summed in torch's order."""
    assert_runs_equal(name, [(7, 5)], torch.float32, rows=lambda n, seed: rows)


# Gradients whose indices or values have unusual strides.
LAYOUTS = {
    "values transposed": lambda i, v: (i, v.t().contiguous().t()),
    "values apart": lambda i, v: (i, v.repeat_interleave(2, 0)[::2]),
    "values expanded": lambda i, v: (i, v[:1].expand_as(v)),
    "all values one": lambda i, v: (i, v[:1, :1].expand_as(v)),
    "indices apart": lambda i, v: (i.repeat_interleave(3, 1)[:, ::3], v),
    "indices expanded": lambda i, v: (i[:, :1].expand_as(i), v),
    "negative bit": lambda i, v: (i, torch.complex(v, v).conj().imag),
}


@every
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.covering("layout maximize", "name")
def test_layouts(name, layout, maximize):
    def grad(shape, rows, dtype, seed):
        g = gradient(shape, rows, dtype, seed)
        return torch.sparse_coo_tensor(*LAYOUTS[layout](g._indices(), g._values()), shape)

    assert_runs_equal(name, [(30, 5), (50, 16)], torch.float32, steps=3, grad=grad, maximize=maximize)


@every
def test_coalesced_gradients_and_gradients_that_come_and_go(name):
    opts = []
    for make in (ours, theirs):
        params = [Parameter(torch.ones(9, 4)), Parameter(torch.ones(5, 2))]
        opt = make(name, [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}])
        with ieee_sqrt():
            for i in range(6):
                params[0].grad = gradient((9, 4), [3, 1, 3], torch.float32, i).coalesce()
                params[1].grad = gradient((5, 2), [4, 0], torch.float32, i) if i % 2 else None
                opt.step()
        opts.append(everything(opt))
    assert_bit_equal(*opts)


@pytest.mark.parametrize("name", ["Adagrad", "SGD"])
def test_dense_and_sparse_gradients_in_one_optimizer(name, go, way):
    """Every group has a parameter with dense gradients, one with sparse ones, and one with both in turn."""

    def train(make):
        shapes = [(4, 3), (40, 16), (11, 5)]
        groups = [[Parameter(normal(shape, torch.float32, i)) for i, shape in enumerate(shapes)] for _ in range(2)]
        opt = make(name, [{"params": groups[0]}, {"params": groups[1], "lr": 0.3}])
        with ieee_sqrt():
            for step in range(8):
                for k, (dense, sparse, either) in enumerate(groups):
                    dense.grad = normal(dense.shape, torch.float32, step + k)
                    sparse.grad = gradient(sparse.shape, some_rows(40, step), torch.float32, step + k)
                    either.grad = gradient(either.shape, some_rows(11, step), torch.float32, step + k)
                    if (step + k) % 3 == 0:
                        either.grad = either.grad.to_dense()
                opt.step()
        return everything(opt)

    assert_bit_equal(train(ours), train(theirs))
    assert len(go) == 8 + 8 + 5 + 6


@every
@pytest.mark.parametrize("change", ["torch to ours", "ours to torch", "ours to ours"])
def test_state_dict(name, change):
    first, second = {
        "torch to ours": (theirs, ours),
        "ours to torch": (ours, theirs),
        "ours to ours": (ours, ours),
    }[change]

    def between(i, opt):
        if i != 4:
            return None
        other = second(name, opt.param_groups[0]["params"])
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        return other

    changed = run(first, name, [(11, 6)], torch.float64, between=between)
    assert_bit_equal(everything(changed), everything(run(theirs, name, [(11, 6)], torch.float64)))


@every
def test_double_steps(name, double_default):
    assert_runs_equal(name, [(11, 6)], torch.float32)


# Unsupported gradients.
UNSUPPORTED = {
    "transposed": (lambda: (torch.ones(3, 5).t(), [[1, 1]], torch.ones(2, 3))),
    "two sparse dimensions": lambda: (torch.ones(5, 3), [[1, 1], [0, 2]], torch.ones(2)),
}


@every
@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_falls_back(name, what, go):
    opts = []
    for make in (ours, theirs):
        value, indices, grad = UNSUPPORTED[what]()
        unsupported, plain = Parameter(value), Parameter(torch.ones(4, 2))
        unsupported.grad = torch.sparse_coo_tensor(indices, grad, value.shape)
        plain.grad = gradient((4, 2), [3, 0], torch.float32, 0)
        opts.append(make(name, [unsupported, plain]))
        with ieee_sqrt():
            for _ in range(3):
                opts[-1].step()
    assert_bit_equal(*map(everything, opts))
    assert go == [2] * 3


@pytest.mark.parametrize(("name", "key"), [("SparseAdam", "exp_avg"), ("Adagrad", "sum")])
def test_unexpected_states_fall_back(name, key, go):
    def between(i, opt):
        if i == 2:
            [p] = opt.param_groups[0]["params"]
            opt.state[p][key] = opt.state[p][key].t().contiguous().t()

    assert_runs_equal(name, [(11, 6)], torch.float32, steps=5, between=between)
    assert len(go) == 3


@pytest.mark.parametrize("momentum", [0.9, -0.5])
def test_momentum_falls_back(momentum, go):
    """torch has a sparse momentum buffer."""

    def train(make):
        p = Parameter(torch.ones(9, 4))
        opt = make("SGD", [p], lr=0.1)
        opt.param_groups[0]["momentum"] = momentum
        for i in range(3):
            p.grad = gradient(p.shape, [3, 1, 3], torch.float32, i)
            opt.step()
        return p, opt.state[p]["momentum_buffer"].to_dense()

    assert_bit_equal(train(ours), train(theirs))
    assert go == []


def error_of(opt):
    try:
        opt.step()
    except Exception as e:
        return type(e), str(e)
    raise AssertionError("no error")


CLASSES = {name: c for name in torch.optim.__all__ if isinstance(c := getattr(goptim, name), type)}
REFUSED = [
    *((name, {}, True) for name, c in CLASSES.items() if issubclass(c, GoStep) and name not in OPTIONS),
    ("SparseAdam", {}, False),
    ("Adagrad", {"weight_decay": 0.1}, True),
    ("SGD", {"weight_decay": 0.1}, True),
    ("Adagrad", {"fused": True}, True),
    ("SGD", {"fused": True}, True),
]


@pytest.mark.parametrize(("name", "options", "sparse"), REFUSED, ids=str)
def test_what_torch_rejects(name, options, sparse, go):
    """The same error, before supported parameters of the same step are written."""
    errors = []
    for module in (goptim, torch.optim):
        good, bad = Parameter(torch.ones(3, 2)), Parameter(torch.ones(3, 2))
        opt = getattr(module, name)([good, bad], **options)
        good.grad, bad.grad = gradient((3, 2), [1, 1], torch.float32, 0), torch.ones(3, 2)
        if sparse:
            good.grad, bad.grad = bad.grad, good.grad
        errors.append(error_of(opt))
        if module is goptim:
            assert (good == 1).all()
            assert (bad == 1).all()
    assert errors[0] == errors[1]
    assert go == []


def test_options_that_torch_rejects():
    for module in (goptim, torch.optim):
        with pytest.raises(ValueError, match="Invalid learning rate: 0"):
            module.SparseAdam([Parameter(torch.ones(2, 2))], lr=0.0)
        with pytest.raises(ValueError, match="SparseAdam requires dense parameter tensors"):
            module.SparseAdam([torch.ones(2, 2).to_sparse().requires_grad_()])


@every
@pytest.mark.parametrize("rows", [[1, 4], [-1, 1], [1 << 62], [-(1 << 63)]], ids=str)
def test_rows_out_of_range(name, rows, go):
    """torch would write outside the parameter. goptim raises before any write."""
    good, dense, bad = Parameter(torch.ones(4, 2)), Parameter(torch.ones(3)), Parameter(torch.ones(4, 2))
    good.grad = gradient((4, 2), [1], torch.float32, 0)
    dense.grad = None if name == "SparseAdam" else torch.ones(3)
    bad.grad = torch.sparse_coo_tensor([rows], torch.ones(len(rows), 2), (4, 2), check_invariants=False)
    opt = ours(name, [{"params": [good, dense]}, {"params": [bad]}])
    wrong = next(row for row in rows if not 0 <= row < 4)
    says = rf"{name}: parameter 0 of group 1, of shape .*: index {wrong} in its gradient, expected one of 4 rows"
    with pytest.raises(ValueError, match=says):
        opt.step()
    assert all((p == 1).all() for p in (good, dense, bad))
    assert go == []
    bad.grad = gradient((4, 2), [1], torch.float32, 0)
    opt.step()
    assert len(go) == 2


@every
def test_closure_hooks_and_versions(name, way):
    p = Parameter(torch.ones(4, 2))
    opt = ours(name, [p])
    log = []
    opt.register_step_pre_hook(lambda *args: log.append("before"))
    opt.register_step_post_hook(lambda *args: log.append("after"))

    def closure():
        assert torch.is_grad_enabled()
        p.grad = gradient((4, 2), [1, 1, 0], torch.float32, 0)
        return 7

    saves_p = p.pow(2).sum()
    assert opt.step(closure) == 7
    assert log == ["before", "after"]
    assert torch.is_grad_enabled()
    assert not p.grad.is_coalesced()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saves_p.backward()
    tensors = [t for t in opt.state[p].values() if isinstance(t, torch.Tensor)]
    tensors.append(p)
    read = [p.grad, p.grad._indices(), p.grad._values()]
    versions, of_read = ([t._version for t in ts] for ts in (tensors, read))
    opt.step()
    assert [t._version for t in tensors] == [v + 1 for v in versions]
    assert [t._version for t in read] == of_read


@every
@pytest.mark.parametrize("bag", [False, True])
def test_embedding(name, bag, go, way):
    runs = []
    for make in (ours, theirs):
        torch.default_generator.manual_seed(0)
        module = torch.nn.EmbeddingBag if bag else torch.nn.Embedding
        embedding = module(50, 12, sparse=True)
        opt = make(name, embedding.parameters(), lr=0.05)
        with ieee_sqrt():
            for _ in range(20):
                words = torch.randint(0, 50, (30, 2))
                opt.zero_grad()
                (embedding(words).sum(-1) - 1).pow(2).mean().backward()
                opt.step()
        runs.append(embedding.weight)
    assert_bit_equal(*runs)
    assert go == [60] * 20


def coo(values, shape, rows=None, coalesced=False):
    """A sparse gradient with these values, of rows that are unordered and repeated unless given or coalesced."""
    n = len(values)
    if rows is None:
        rows = range(n) if coalesced else [(3 * i + 1) % (shape[0] - 1) for i in range(n)]
    indices = torch.as_tensor(list(rows), dtype=torch.int64)[None]
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)._coalesced_(coalesced)


def view_of_indices(g):
    indices = torch.cat([torch.full((1, 2), -1), g._indices()], 1)[:, 2:]
    return torch.sparse_coo_tensor(indices, g._values(), g.shape, check_invariants=False)


def cow(g):
    """A gradient whose values are copied on write."""
    values = torch._lazy_clone(g._values().clone())
    assert torch._C._is_cow_tensor(values)
    return torch.sparse_coo_tensor(g._indices(), values, g.shape, check_invariants=False)


R = normal  # random values
F32, F64 = torch.float32, torch.float64
# A shape and a gradient of this shape, and who reads it: "gather.c" or "Python" for a step in Go, else "torch".
GRADIENTS = {
    "repeated rows": ((9, 4), lambda s: coo(R((20, 4), F32, s), (9, 4)), "gather.c"),
    "coalesced": ((9, 4), lambda s: coo(R((6, 4), F32, s), (9, 4), coalesced=True), "gather.c"),
    "one row": ((9, 4), lambda s: coo(R((1, 4), F32, s), (9, 4)), "gather.c"),
    "all rows": ((9, 4), lambda s: coo(R((9, 4), F32, s), (9, 4), range(9)), "gather.c"),
    "float64": ((9, 3), lambda s: coo(R((20, 3), F64, s), (9, 3)), "gather.c"),
    "3 dimensions": ((9, 2, 3), lambda s: coo(R((20, 2, 3), F32, s), (9, 2, 3)), "gather.c"),
    "5 dimensions": ((9, 2, 1, 2, 1), lambda s: coo(R((7, 2, 1, 2, 1), F32, s), (9, 2, 1, 2, 1)), "gather.c"),
    "7 dimensions": (
        (9, 2, 1, 2, 1, 1, 2),
        lambda s: coo(R((7, 2, 1, 2, 1, 1, 2), F32, s), (9, 2, 1, 2, 1, 1, 2)),
        "gather.c",
    ),
    "values with an offset": ((9, 4), lambda s: coo(R((23, 4), F32, s)[3:], (9, 4)), "gather.c"),
    "indices with an offset": ((9, 4), lambda s: view_of_indices(coo(R((20, 4), F32, s), (9, 4))), "gather.c"),
    "requires a gradient": ((9, 4), lambda s: coo(R((20, 4), F32, s), (9, 4)).requires_grad_(), "gather.c"),
    "part of a graph": ((9, 4), lambda s: coo(R((20, 4), F32, s).requires_grad_(), (9, 4)), "gather.c"),
    "many rows": ((3000, 1), lambda s: coo(R((2000, 1), F32, s), (3000, 1), range(2000)), "gather.c"),
    "many rows, each twice": (
        (1500, 2),
        lambda s: coo(R((2000, 2), F32, s), (1500, 2), (i % 1000 for i in range(2000))),
        "gather.c",
    ),
    "inside inference": ((9, 4), lambda s: inference(coo, R((20, 4), F32, s), (9, 4)), "Python"),
    "copied on write": ((9, 4), lambda s: cow(coo(R((20, 4), F32, s), (9, 4))), "Python"),
    "values transposed": ((9, 4), lambda s: coo(R((4, 20), F32, s).t(), (9, 4)), ("Python", "torch")),
    "no row": ((9, 4), lambda s: coo(R((0, 4), F32, s), (9, 4)), None),
    "a vector": ((9,), lambda s: coo(R((20,), F32, s), (9,)), ("gather.c", "torch")),
}


def inference(make, *args):
    with torch.inference_mode():
        return make(*args)


@every
@pytest.mark.parametrize("what", GRADIENTS)
@pytest.mark.covering("what", "name")
def test_who_reads_a_gradient(name, what, in_c, monkeypatch):
    """And the results are torch's, with and without a dense gradient and another sparse one beside it."""
    if what == "inside inference" and name != "SGD":
        pytest.skip("torch has an assertion that fails")
    shape, make, reader = GRADIENTS[what]
    if isinstance(reader, tuple):  # SGD does not sum, and only SparseAdam steps vectors
        reader = reader[name == "SGD" if what == "values transposed" else name != "SparseAdam"]
    in_python = []
    monkeypatch.setattr(
        _sparse, "_call", lambda *args, call=_sparse._call: (in_python.append(args[2][-1]), call(*args))
    )
    for others in (False, True):
        in_c.clear(), in_python.clear()
        runs = []
        for cls in (ours, theirs):
            p = Parameter(normal(shape, make(0).dtype, 1))
            params = [p, *([Parameter(torch.ones(7, 3))] * others)]
            if others and name != "SparseAdam":
                params.insert(0, Parameter(torch.ones(5)))
                params[0].grad = torch.ones(5)
            opt = cls(name, params, lr=0.3)
            with ieee_sqrt():
                for i in range(4):
                    p.grad = make(i)
                    if others:
                        params[-1].grad = coo(normal((5, 3), F32, i), (7, 3))
                    opt.step()
            runs.append(everything(opt))
        assert_bit_equal(*runs)
        n = make(0)._nnz()
        first = name == "SparseAdam"  # whose first step creates states
        beside = [5] if others else []
        if reader == "gather.c":
            assert in_c == [n, *beside] * (4 - first)
            assert in_python == [n, *beside] * first
        else:
            assert in_c == []
            assert in_python == [*([n] if reader == "Python" else []), *beside] * 4


def memory_apart(name, sharing):
    """Two parameters with sparse gradients, and a dense one if the class allows it, that share some memory."""
    memory = torch.arange(24.0).reshape(6, 4) / 7
    p, q, r = (Parameter(t) for t in (memory.clone(), memory.clone() + 1, memory.clone() + 2))
    g, h, d = coo(normal((5, 4), F32, 1), (6, 4)), coo(normal((5, 4), F32, 2), (6, 4)), normal((6, 4), F32, 3)
    if sharing == "parameters":
        q.data = p.data
    elif sharing == "parts of parameters":
        both = torch.arange(28.0).reshape(7, 4)
        p.data, q.data = both[:6], both[1:]
    elif sharing == "a parameter and its values":
        g = coo(p.data[1:], (6, 4))
    elif sharing == "a parameter and the values of another":
        h = coo(p.data[1:], (6, 4))
    elif sharing == "a dense parameter":
        r.data = q.data
    elif sharing == "a dense parameter and values":
        h = coo(r.data[1:], (6, 4))
    elif sharing == "a dense gradient":
        d = p.data
    elif sharing == "indices":
        h = torch.sparse_coo_tensor(g._indices(), h._values(), (6, 4), check_invariants=False)
    elif sharing == "a gradient":
        h = g
    elif sharing == "values and a dense gradient":
        d = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
        h = coo(d[1:], (6, 4))
    opt_params = [p, q] if name == "SparseAdam" else [p, r, q]
    return opt_params, [g, h] if name == "SparseAdam" else [g, d, h]


READ_ONLY = ("nothing", "indices", "a gradient", "values and a dense gradient")
WRITTEN = (
    "parameters",
    "parts of parameters",
    "a parameter and its values",
    "a parameter and the values of another",
    "a dense parameter",
    "a dense parameter and values",
    "a dense gradient",
)


@every
@pytest.mark.parametrize("sharing", READ_ONLY + WRITTEN)
def test_shared_memory(name, sharing, in_c, threads):
    """gather.c steps rows in another order only if none of them reads what another writes."""
    dense = "dense" in sharing and name == "SparseAdam"
    if dense:
        pytest.skip("it has no dense gradients")
    runs = []
    for cls in (ours, theirs):
        params, grads = memory_apart(name, sharing)
        opt = cls(name, params, lr=0.1)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        with ieee_sqrt():
            for _ in range(3):
                opt.step()
        runs.append(everything(opt))
    assert_bit_equal(*runs)
    assert in_c == ([5, 5] * (3 - (name == "SparseAdam")) if sharing in READ_ONLY else [])


@pytest.mark.parametrize("where", ["two states", "a state and a parameter", "two steps", "a step and values"])
def test_shared_states(where, in_c):
    runs = []
    for cls in (ours, theirs):
        p, q = Parameter(torch.ones(6, 4)), Parameter(torch.ones(6, 4))
        opt = cls("Adagrad", [p, q], lr=0.1)
        p.grad, q.grad = coo(normal((5, 4), F32, 1), (6, 4)), coo(normal((5, 4), F32, 2), (6, 4))
        if where == "two states":
            opt.state[q]["sum"] = opt.state[p]["sum"]
        elif where == "a state and a parameter":
            opt.state[q]["sum"] = p.data
        elif where == "two steps":
            opt.state[q]["step"] = opt.state[p]["step"]
        else:
            values = torch.ones(5, 4)
            q.grad, opt.state[p]["step"] = coo(values, (6, 4)), values[3, 2]
        with ieee_sqrt():
            for _ in range(3):
                opt.step()
        runs.append(everything(opt))
    assert_bit_equal(*runs)
    assert in_c == []


LEFT_TO_PYTHON = {
    "lr": lambda opt, p: opt.param_groups[0].update(lr=1e19),
    "betas": lambda opt, p: opt.param_groups[0].update(betas=(0.5, 1.0)),
    "weight_decay": lambda opt, p: opt.param_groups[0].update(weight_decay=0.1),
    "momentum": lambda opt, p: opt.param_groups[0].update(momentum=0.1),
    "fused": lambda opt, p: opt.param_groups[0].update(fused=True),
    "a group of another class": lambda opt, p: opt.param_groups.__setitem__(
        0, type("Group", (dict,), {})(opt.param_groups[0], fused=True)
    ),
    "a state of another class": lambda opt, p: opt.state.__setitem__(p, type("State", (dict,), {})(opt.state[p])),
    "a step that is a bool": lambda opt, p: opt.state[p].update(step=True),
    "a large step": lambda opt, p: opt.state[p].update(step=1 << 60),
    "a negative step": lambda opt, p: opt.state[p].update(step=-1),
    "integers": lambda opt, p: opt.state[p].update(step=torch.tensor(3)),
    "a state of another shape": lambda opt, p: [
        opt.state[p].update({k: torch.ones(2)}) for k in ("sum", "exp_avg") if k in opt.state[p]
    ],
    "a state that is not contiguous": lambda opt, p: [
        opt.state[p].update({k: torch.ones(4, 6).t()}) for k in ("sum", "exp_avg") if k in opt.state[p]
    ],
}


@every
@pytest.mark.parametrize("what", LEFT_TO_PYTHON)
def test_what_is_left_to_python(name, what, in_c):
    """The results and errors are torch's, or those of a step that Python prepares, and gather.c has no part in it."""
    runs = []
    for reader in ("gather.c", "Python", "torch"):
        p = Parameter(torch.ones(6, 4))
        opt = (theirs if reader == "torch" else ours)(name, [p], lr=0.1)
        with pytest.MonkeyPatch.context() as patch, ieee_sqrt():
            if reader == "Python":
                without_sparse(patch)
            p.grad = coo(normal((5, 4), F32, 1), (6, 4))
            opt.step()
            in_c.clear()
            LEFT_TO_PYTHON[what](opt, p)
            try:
                opt.step()
                error = None
            except Exception as e:
                error = type(e), str(e)
        runs.append((error, everything(opt), list(in_c)))
    changes = {
        "SGD": ("lr", "weight_decay", "momentum", "fused", "a group of another class"),
        "Adagrad": LEFT_TO_PYTHON.keys() - {"betas", "momentum"},
        "SparseAdam": LEFT_TO_PYTHON.keys() - {"weight_decay", "momentum"},
    }[name]
    assert runs[0][2] == ([] if what in changes else [5])
    assert str(runs[0][0]) == str(runs[1][0])
    if name == "SGD" and what == "momentum":
        return  # the buffer is sparse
    assert_bit_equal(runs[0][1], runs[1][1])
    if runs[2][0] is None and runs[0][0] is None:
        assert_bit_equal(runs[0][1], runs[2][1])


def test_a_sparse_gradient_after_dense_ones():
    """torch's Adam rejects it in every step, not only in the first one."""
    errors = []
    for module in (goptim, torch.optim):
        p = Parameter(torch.ones(4, 3))
        opt = module.Adam([p])
        p.grad = torch.ones(4, 3)
        opt.step()
        before = p.detach().clone()
        p.grad = coo(torch.ones(2, 3), (4, 3))
        errors.append(error_of(opt))
        assert torch.equal(p, before)
    assert errors[0] == errors[1]


class Mode(torch.overrides.TorchFunctionMode):
    """Calls a function whenever torch sorts."""

    def __init__(self, do):
        super().__init__()
        self.do = do

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == "sort":
            changed = self.do()
            if changed is not None:
                return changed
        return function(*args, **(kwargs or {}))


def two_with_repeats(cls, name="Adagrad"):
    """Two parameters: the second has rows that occur three times, so its gradient is sorted."""
    p, q = Parameter(torch.ones(30, 4)), Parameter(torch.ones(30, 4))
    opt = cls(name, [p, q], lr=0.1)
    for _ in range(2):
        p.grad = coo(normal((20, 4), F32, 1), (30, 4), range(20))
        q.grad = coo(normal((24, 4), F32, 2), (30, 4), [i % 4 for i in range(24)])
        if name == "SparseAdam" and not opt.state:
            with ieee_sqrt():
                opt.step()
    return opt, p, q


@pytest.mark.parametrize("name", ["Adagrad", "SparseAdam"])
def test_rows_that_become_repeated_during_the_step(name, in_c):
    """Sorting the indices of one parameter runs Python code, which changes those of another."""
    runs = []
    for cls in (ours, theirs):
        opt, p, _ = two_with_repeats(cls, name)

        def repeat(p=p):
            p.grad._indices().copy_(torch.arange(20)[None] % 3)

        with ieee_sqrt():
            if cls is ours:
                in_c.clear()
                with Mode(repeat):
                    opt.step()
            else:
                repeat()
                opt.step()
        runs.append(everything(opt))
    assert_bit_equal(*runs)
    assert in_c == []


@pytest.mark.parametrize("name", ["Adagrad", "SparseAdam"])
@pytest.mark.parametrize("change", ["values", "a row", "an order"])
def test_changes_during_the_step_do_not_reach_go(name, change):
    """Everything is read again after Python code has run, and is an error if it does not fit."""
    opt, p, q = two_with_repeats(ours, name)
    before = [t.detach().clone() for t in (p, q)]

    def do():
        if change == "values":
            p.grad._values().untyped_storage().resize_(0)
        elif change == "a row":
            p.grad._indices().fill_(30)
        else:
            return "x", "y"
        return None

    with Mode(do), pytest.raises((RuntimeError, ValueError, AttributeError)):
        opt.step()
    assert_bit_equal([p, q], [Parameter(t) for t in before])


@pytest.mark.parametrize(("name", "what"), [(n, w) for n in OPTIONS for w in WHOSE if n != "SGD" or "state" not in w])
def test_a_storage_that_has_been_freed(name, what):
    """An error names it before anything is written, also of parameters before it."""
    opt, p, q = two_with_repeats(ours, name)
    opt.step()
    of = {
        "the parameter": lambda: q,
        "its gradient": lambda: q.grad._values(),
        "the indices of its gradient": lambda: q.grad._indices(),
        "its state": lambda: opt.state[q]["sum" if name == "Adagrad" else "exp_avg"],
    }
    of[what]().untyped_storage().resize_(0)
    versions, before = [t._version for t in (p, q)], p.detach().clone()
    steps = [float(opt.state[t].get("step", 0)) for t in (p, q)]
    with pytest.raises(ValueError, match=f"parameter 1 of group 0.*: the storage of {what}.* has 0 bytes, expected at"):
        opt.step()
    assert_bit_equal(p, Parameter(before))
    assert [t._version for t in (p, q)] == versions
    assert [float(opt.state[t].get("step", 0)) for t in (p, q)] == steps


@pytest.mark.parametrize("name", OPTIONS)
def test_no_reference_is_leaked(name):
    opt, p, q = two_with_repeats(ours, name)
    opt.step()
    state = [t for s in opt.state.values() for t in (s, *s.values()) if not isinstance(t, int)]
    watched = [p, q, p.grad, q.grad, p.grad._indices(), q.grad._values(), *state, opt.kind.handle, _native.layout()]

    def many(times):
        for i in range(times):
            opt.step()
            if i % 10 == 0:
                opt.param_groups[0]["lr"] = 1e19  # left to Python after its rows have been prepared
                opt._go(tuple(opt._ask(group) for group in opt.param_groups), 0)
                opt.param_groups[0]["lr"] = 0.1
        gc.collect()
        return [sys.getrefcount(x) for x in watched], len(gc.get_objects())

    counts, objects = many(20)
    again, more = many(200)
    assert again == counts
    assert abs(more - objects) < 20


def test_sparse_fields_that_cannot_be_told(monkeypatch):
    """All other fields are found, and Python reads sparse gradients."""
    whole = _layout.Layout(*struct.unpack(f"<{len(_layout.Layout._fields)}q", _layout.find()))
    assert whole.sparse not in (0, whole.plain)
    mixed = [*_layout._sparse_tensors(), inference(torch.ones(2, 3).to_sparse)]
    for wrong in (lambda: mixed, lambda: [torch.ones(2)], lambda: [torch.ones(2, 3).to_sparse().to("meta")]):
        monkeypatch.setattr(_layout, "_sparse_tensors", wrong)
        found = _layout.Layout(*struct.unpack(f"<{len(_layout.Layout._fields)}q", _layout.find()))
        assert found == whole._replace(indices=0, values=0, coalesced=0, sparse=0)


@every
@pytest.mark.parametrize("n", [64, 1 << 16], ids=["caller", "workers"])
def test_fault_in_go_is_an_exception(name, n, threads, to_go):
    """A parameter in read-only memory, with one thread and with two."""
    threads(2)
    memory = mmap.mmap(-1, 4 * 16 * n)
    array = np.frombuffer(memory, dtype=np.float32).reshape(n, 16)
    p = Parameter(torch.from_numpy(array))
    opt = ours(name, [p])
    p.grad = gradient(p.shape, torch.arange(n), torch.float32, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    address, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(len(memory))
    assert libc.mprotect(address, size, mmap.PROT_READ) == 0
    try:
        with pytest.raises(RuntimeError, match=r"panic in Go.*invalid memory address"):
            opt.step()
    finally:
        assert libc.mprotect(address, size, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert not array.any()
    assert_runs_equal(name, [(n, 16)], torch.float32, steps=2)


@every
def test_bad_arguments(name):
    """What only a mistake in the package could give to Go."""
    p, m, v, g = (torch.ones(4, 2) for _ in range(4))
    indices, order, unordered, beyond = (torch.tensor(x) for x in ([2, 0, 2], [1, 0, 2], [0, 1, 2], [1, 0, 3]))
    good = {
        "param": p.data_ptr(),
        "state1": m.data_ptr(),
        "state2": v.data_ptr(),
        "rows": 4,
        "width": 2,
        "extra": 0,
        "index": 0,
        "indices": indices.data_ptr(),
        "values": g.data_ptr(),
        "order": order.data_ptr(),
        "count": 3,
    }
    opt = ours(name, [Parameter(p)])
    kind, group = sparse_kind_of(type(opt).torch_class), opt.param_groups[0]

    def call(**what):
        _sparse._call(kind, p, tuple((good | what).values()), 1.0, group, 2)

    with pytest.raises(RuntimeError, match="address 0x0"):
        _sparse._call(kind, p.bfloat16(), tuple(good.values()), 1.0, {**group, "rounding": "kahan"}, 2)
    for what, says in [
        ({"param": 0}, "address 0x0"),
        ({"indices": 4095}, "address 0xfff"),
        ({"values": 0}, "address 0x0"),
        ({"rows": -1}, "-1 rows"),
        ({"rows": 2}, "index 2 in the gradient, expected one of 2 rows"),
        ({"width": 0}, "rows of 0 elements"),
        ({"rows": 1 << 60}, "rows of 2 elements"),
        ({"count": -1}, "-1 of them with a gradient"),
        ({"count": 1 << 40}, "of them with a gradient"),
        ({"order": unordered.data_ptr()}, "place 1 of the order is 1"),
        ({"order": beyond.data_ptr()}, "place 2 of the order is 3"),
        *([({"state1": 0}, "address 0x0")] if name != "SGD" else []),
        *([({"state2": 0}, "address 0x0")] if name == "SparseAdam" else []),
    ]:
        with pytest.raises(RuntimeError, match=says):
            call(**what)
    assert all((t == 1).all() for t in (p, m, v, g))
    call(count=0)
    assert (p == 1).all()
    call()
    assert (p != 1).any(1).tolist() == [True, False, True, False]
