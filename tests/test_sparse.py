"""SparseAdam against torch's, bit for bit: parameters, state, errors, and what goes to whom."""

import copy
import itertools

import pytest
import torch
from torch.nn import Parameter

import goptim
from goptim import _core
from goptim.testing import assert_bit_equal, ieee_sqrt

# It comes where a sparse tensor is made; torch's own step makes some.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
OPTIONS = [
    {"lr": 0.0123},
    {"lr": 0.0123, "maximize": True},
    {"betas": (0.5, 0.807), "eps": 1e-3},
    {"betas": (0.0, 0.0)},
    {"lr": 3, "betas": (0.2, 0.95), "maximize": True},
]


def gradient(shape, rows, dtype, seed):
    """A sparse gradient of some rows, in no order; a row may come many times."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((len(rows), *shape[1:]), dtype=dtype, generator=generator) * 10.0 ** (seed % 3 - 1)
    return torch.sparse_coo_tensor(torch.tensor(rows, dtype=torch.int64)[None], values, shape, check_invariants=True)


def some_rows(n, seed):
    """Rows of a parameter that has n: of nearly as many, half of them more than once."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(0, max(n, 1), (n,), generator=generator).tolist()


def run(cls, shapes, dtype, steps=10, between=lambda i, opt: None, rows=some_rows, **options):
    params = [
        Parameter(torch.randn(s, dtype=dtype, generator=torch.Generator().manual_seed(i))) for i, s in enumerate(shapes)
    ]
    opt = cls(params, **options)
    with ieee_sqrt():
        for step in range(steps):
            for i, p in enumerate(params):
                p.grad = gradient(p.shape, rows(p.shape[0], 10 * step + i), dtype, 10 * step + i)
            opt.step()
            opt = between(step, opt) or opt
    return opt


def values(opt):
    [group] = opt.param_groups
    return [(p, dict(opt.state[p])) for p in group["params"]]


def assert_runs_equal(*args, **kwargs):
    ours, expected = (run(cls, *args, **kwargs) for cls in (goptim.SparseAdam, torch.optim.SparseAdam))
    assert_bit_equal(values(ours), values(expected))


@pytest.fixture
def go(monkeypatch):
    """How many indices each call of Go had."""
    calls = []
    function = _core.SparseAdam
    monkeypatch.setattr(_core, "SparseAdam", lambda *args: calls.append(args[9]) or function(*args))
    return calls


@FLOATS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_configuration(options, dtype, go):
    shapes = [*itertools.product((1, 7, 40), (1, 3, 8, 16, 17, 33)), (5,), (3, 4, 5), (2, 0), (0, 3)]
    assert_runs_equal(shapes, dtype, **options)
    assert go


@FLOATS
@pytest.mark.parametrize("n", [1, 2])
def test_threads(n, dtype, threads):
    threads(n)
    assert_runs_equal([(20_011, 67)], dtype, steps=3)


@FLOATS
def test_special_values(dtype):
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, -1e-310, 3e38, 1.0]
    g = torch.tensor(special, dtype=dtype).repeat(4)[:, None] * torch.tensor([1.0, 1.0, -1.0], dtype=dtype)
    opts = []
    for cls in (goptim.SparseAdam, torch.optim.SparseAdam):
        p = Parameter(torch.linspace(-1, 1, 75, dtype=dtype).reshape(25, 3))
        p.grad = torch.sparse_coo_tensor(torch.arange(36)[None] % 25, g, p.shape)
        opts.append(cls([p]))
        with ieee_sqrt():
            for _ in range(3):
                opts[-1].step()
    assert_bit_equal(*map(values, opts))


@pytest.mark.parametrize("rows", [[], [0], [6] * 50, list(range(7))], ids=str)
def test_indices(rows):
    """None: the step still counts. One row many times: it is added up in torch's order."""
    assert_runs_equal([(7, 5)], torch.float32, rows=lambda n, seed: rows)


def test_coalesced_gradients_and_gradients_that_come_and_go():
    opts = []
    for cls in (goptim.SparseAdam, torch.optim.SparseAdam):
        params = [Parameter(torch.ones(9, 4)), Parameter(torch.ones(5, 2))]
        opt = cls([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}])
        with ieee_sqrt():
            for i in range(6):
                params[0].grad = gradient((9, 4), [3, 1, 3], torch.float32, i).coalesce()
                params[1].grad = gradient((5, 2), [4, 0], torch.float32, i) if i % 2 else None
                opt.step()
        opts.append([(p, dict(opt.state[p])) for p in params])
    assert_bit_equal(*opts)


@pytest.mark.parametrize("change", ["torch to ours", "ours to torch", "ours to ours"])
def test_state_dict(change):
    first, second = {
        "torch to ours": (torch.optim.SparseAdam, goptim.SparseAdam),
        "ours to torch": (goptim.SparseAdam, torch.optim.SparseAdam),
        "ours to ours": (goptim.SparseAdam, goptim.SparseAdam),
    }[change]

    def between(i, opt):
        if i != 4:
            return None
        other = second(opt.param_groups[0]["params"])
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        return other

    ours = run(first, [(11, 6)], torch.float64, between=between)
    assert_bit_equal(values(ours), values(run(torch.optim.SparseAdam, [(11, 6)], torch.float64)))


# What Go does not take.
ODD = {
    "bfloat16": lambda: (torch.ones(5, 3, dtype=torch.bfloat16), [[1, 1]], torch.ones(2, 3, dtype=torch.bfloat16)),
    "transposed": (lambda: (torch.ones(3, 5).t(), [[1, 1]], torch.ones(2, 3))),
    "two sparse dimensions": lambda: (torch.ones(5, 3), [[1, 1], [0, 2]], torch.ones(2)),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_torchs(what, go):
    opts = []
    for cls in (goptim.SparseAdam, torch.optim.SparseAdam):
        value, indices, grad = ODD[what]()
        odd, plain = Parameter(value), Parameter(torch.ones(4, 2))
        odd.grad = torch.sparse_coo_tensor(indices, grad, value.shape)
        plain.grad = gradient((4, 2), [3, 0], torch.float32, 0)
        opts.append(cls([odd, plain]))
        with ieee_sqrt():
            for _ in range(3):
                opts[-1].step()
    assert_bit_equal(*map(values, opts))
    assert go == [2] * 3


def test_errors_write_nothing():
    for cls in (goptim.SparseAdam, torch.optim.SparseAdam):
        with pytest.raises(ValueError, match="Invalid learning rate: 0"):
            cls([Parameter(torch.ones(2, 2))], lr=0.0)
        dense, p = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
        dense.grad, p.grad = torch.ones(2, 2), gradient((2, 2), [1], torch.float32, 0)
        with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
            cls([dense, p]).step()
        assert (p == 1).all()
    p = Parameter(torch.ones(4, 2))
    p.grad = torch.sparse_coo_tensor([[1, 4]], torch.ones(2, 2), (4, 2), check_invariants=False)
    opt = goptim.SparseAdam([p])
    with pytest.raises(ValueError, match="parameter 0 of group 0.*index 4 in its gradient, expected one of 4 rows"):
        opt.step()
    assert (p == 1).all()
    assert p not in opt.state


def test_closure_hooks_and_versions():
    p = Parameter(torch.ones(4, 2))
    opt = goptim.SparseAdam([p])
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


def test_embedding():
    runs = []
    for cls in (goptim.SparseAdam, torch.optim.SparseAdam):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(50, 12, sparse=True)
        opt = cls(embedding.parameters(), lr=0.05)
        with ieee_sqrt():
            for _ in range(20):
                words = torch.randint(0, 50, (30,))
                opt.zero_grad()
                (embedding(words).sum(1) - words % 3).pow(2).mean().backward()
                opt.step()
        runs.append(embedding.weight)
    assert_bit_equal(*runs)
