"""Sparse gradients have torch's exact results: parameters, state, errors, and what falls back."""

import copy
import ctypes
import itertools
import mmap

import numpy as np
import pytest
import torch
from torch.nn import Parameter

import goptim
from goptim import _sparse
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
CASES = [(name, options) for name, row in OPTIONS.items() for options in row]
configurations = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


def ours(name, params, **options):
    return getattr(goptim, name)(params, **options)


def torchs(name, params, **options):
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
    assert_bit_equal(*(everything(run(make, *args, **kwargs)) for make in (ours, torchs)))


@pytest.fixture
def go(monkeypatch):
    """The number of indices of each call of Go."""
    calls = []

    def counting(kind, p, row, *rest, call=_sparse._call):
        calls.append(row[-1])
        call(kind, p, row, *rest)

    monkeypatch.setattr(_sparse, "_call", counting)
    return calls


@FLOATS
@configurations
def test_every_configuration(name, options, dtype, go):
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
def test_order_of_repeated_rows(name, n, go):
    """torch's coalesce adds repeated rows in the order of its sort, which depends on the number of rows."""
    for repeats in (2, 300):
        assert_runs_equal(
            name,
            [(n // repeats + 1, 3)],
            torch.float32,
            steps=1,
            rows=lambda rows, seed: torch.randint(0, rows, (n,), generator=torch.Generator().manual_seed(seed)),
        )
    assert go == [n, n]


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
def test_special_values(name, options, dtype):
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, -1e-310, 3e38, 1.0]
    g = torch.tensor(special, dtype=dtype).repeat(4)[:, None] * torch.tensor([1.0, 1.0, -1.0], dtype=dtype)
    opts = []
    for make in (ours, torchs):
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
    for make in (ours, torchs):
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
def test_indices(name, rows):
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
def test_layouts(name, layout, maximize):
    def grad(shape, rows, dtype, seed):
        g = gradient(shape, rows, dtype, seed)
        return torch.sparse_coo_tensor(*LAYOUTS[layout](g._indices(), g._values()), shape)

    assert_runs_equal(name, [(30, 5), (50, 16)], torch.float32, steps=3, grad=grad, maximize=maximize)


@every
def test_coalesced_gradients_and_gradients_that_come_and_go(name):
    opts = []
    for make in (ours, torchs):
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
def test_dense_and_sparse_gradients_in_one_optimizer(name, go):
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

    assert_bit_equal(train(ours), train(torchs))
    assert len(go) == 8 + 8 + 5 + 6


@every
@pytest.mark.parametrize("change", ["torch to ours", "ours to torch", "ours to ours"])
def test_state_dict(name, change):
    first, second = {
        "torch to ours": (torchs, ours),
        "ours to torch": (ours, torchs),
        "ours to ours": (ours, ours),
    }[change]

    def between(i, opt):
        if i != 4:
            return None
        other = second(name, opt.param_groups[0]["params"])
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        return other

    changed = run(first, name, [(11, 6)], torch.float64, between=between)
    assert_bit_equal(everything(changed), everything(run(torchs, name, [(11, 6)], torch.float64)))


@every
def test_double_steps(name, double_default):
    assert_runs_equal(name, [(11, 6)], torch.float32)


# Unsupported gradients.
ODD = {
    "bfloat16": lambda: (torch.ones(5, 3, dtype=torch.bfloat16), [[1, 1]], torch.ones(2, 3, dtype=torch.bfloat16)),
    "transposed": (lambda: (torch.ones(3, 5).t(), [[1, 1]], torch.ones(2, 3))),
    "two sparse dimensions": lambda: (torch.ones(5, 3), [[1, 1], [0, 2]], torch.ones(2)),
}


@every
@pytest.mark.parametrize("what", ODD)
def test_what_falls_back(name, what, go):
    opts = []
    for make in (ours, torchs):
        value, indices, grad = ODD[what]()
        odd, plain = Parameter(value), Parameter(torch.ones(4, 2))
        odd.grad = torch.sparse_coo_tensor(indices, grad, value.shape)
        plain.grad = gradient((4, 2), [3, 0], torch.float32, 0)
        opts.append(make(name, [odd, plain]))
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

    assert_bit_equal(train(ours), train(torchs))
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
def test_closure_hooks_and_versions(name):
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
    versions = [t._version for t in tensors]
    opt.step()
    assert all(t._version > v for t, v in zip(tensors, versions, strict=True))


@every
@pytest.mark.parametrize("bag", [False, True])
def test_embedding(name, bag, go):
    runs = []
    for make in (ours, torchs):
        torch.manual_seed(0)
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
        "indices": indices.data_ptr(),
        "values": g.data_ptr(),
        "order": order.data_ptr(),
        "count": 3,
    }
    opt = ours(name, [Parameter(p)])
    kind, group = sparse_kind_of(type(opt).twin), opt.param_groups[0]

    def call(**what):
        _sparse._call(kind, p, tuple((good | what).values()), 1.0, group, 2)

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
