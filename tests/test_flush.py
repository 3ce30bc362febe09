"""With subnormal numbers flushed to zero, results are bit-for-bit those of torch's for-loop on one thread.

tests/test_processes.py also tests other threads.
"""

import contextlib

import pytest
import test_hf
import test_muon
import test_sparse
import torch
from configurations import CONFIGURATIONS, FEW, NEEDS_FMA
from problems import PROBLEMS, Run, sums_in_our_order
from torch.nn import Parameter

import goptim
import goptim.hf
from goptim import _core, _native
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = [
    NEEDS_FMA,
    pytest.mark.usefixtures("threads"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
LENGTHS = (1, 7, 16, 33, 515)
STEPS = 6


@contextlib.contextmanager
def flushing():
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def values(dtype, seed, *shape):
    """Subnormal numbers, numbers with subnormal products or squares, zeros, and others."""
    generator = torch.Generator().manual_seed(seed)
    tiny = torch.finfo(dtype).tiny
    scales = torch.tensor([1.0, tiny, tiny * 0.01, tiny**0.5, tiny * 3, 0.0], dtype=dtype)
    kinds = torch.randint(len(scales), shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=dtype) * scales[kinds]


# A lerp with weight 1 adds a product with a zero, whose sign differs between torch's vectors and its scalar tail.
SIGNS_DIFFER = {(0.0, 0.5 + 1e-9, 0.0), (0.0, 0.0), (0.0, 0.5), (0.0, 0.0, 0.0)}
REST = [c for c in CONFIGURATIONS if c not in FEW and c.options.get("betas") not in SIGNS_DIFFER]


@FLOATS
@pytest.mark.parametrize("configuration", [*FEW, *(pytest.param(c, marks=pytest.mark.full) for c in REST)], ids=str)
@pytest.mark.covering(1)
def test_subnormal_numbers_are_flushed(configuration, dtype):
    params, expected = (
        [torch.nn.Parameter(values(dtype, n, n)) for n in LENGTHS] for optimizer in (goptim, torch.optim)
    )

    def compared(params, opt):
        everything = [*params, *(t for state in opt.state_dict()["state"].values() for t in state.values())]
        if configuration.optimizer.endswith("ScheduleFree"):
            # Their first step has a lerp of weight 1, in which torch keeps -0, or what becomes it, in tails alone.
            return [t.detach() + 0 for t in everything]  # 0 for -0
        return everything

    with flushing(), ieee_sqrt():
        ours, theirs = configuration.ours(params), configuration.theirs(expected)
    for i in range(STEPS):
        for j, (p, q) in enumerate(zip(params, expected, strict=True)):
            p.grad, q.grad = (values(dtype, 100 * i + j, p.numel()) for _ in range(2))
        with flushing(), ieee_sqrt():
            ours.step()
            theirs.step()
        assert_bit_equal(compared(params, ours), compared(expected, theirs), f"step {i}")


def compare(ours, theirs, shapes, dtype, gradient, steps=4, threads=1):
    """Steps of two optimizers with the same gradients; torch's on one thread."""
    params, expected = ([Parameter(values(dtype, i, *shape)) for i, shape in enumerate(shapes)] for _ in range(2))
    with flushing(), ieee_sqrt():
        first, second = ours(params), theirs(expected)
    for i in range(steps):
        for j, (p, q) in enumerate(zip(params, expected, strict=True)):
            p.grad, q.grad = (gradient(100 * i + j, *p.shape) for _ in range(2))
        with flushing(), ieee_sqrt():
            torch.set_num_threads(threads)
            first.step()
            torch.set_num_threads(1)
            second.step()
        assert_bit_equal(params, expected, f"step {i}")
        assert_bit_equal(first.state_dict()["state"], second.state_dict()["state"], f"step {i}: state")


def dense(dtype):
    return lambda seed, *shape: values(dtype, seed, *shape)


def sparse(dtype, n):
    """Gradients of n rows, which may repeat."""

    def gradient(seed, rows, *shape):
        indices = torch.randint(rows, (1, n), generator=torch.Generator().manual_seed(seed))
        return torch.sparse_coo_tensor(indices, values(dtype, seed, n, *shape), (rows, *shape), check_invariants=False)

    return gradient


@FLOATS
@pytest.mark.parametrize(("name", "options"), test_sparse.CASES, ids=str)
@pytest.mark.covering(1)
def test_sparse_gradients(name, options, dtype):
    shapes = [(50, 16), (10, 3), (200, 1), (8, 5, 3)]
    compare(
        lambda params: test_sparse.ours(name, params, **options),
        lambda params: test_sparse.theirs(name, params, **options),
        shapes,
        dtype,
        sparse(dtype, 100),
    )


HF = test_hf.CONFIGURATIONS


@FLOATS
@pytest.mark.parametrize(
    "options", [HF[0], HF[-1], *(pytest.param(o, marks=pytest.mark.full) for o in HF[1:-1])], ids=str
)
def test_hf_adafactor(options, dtype):
    compare(
        lambda params: goptim.hf.Adafactor(params, **options),
        lambda params: test_hf.transformers.Adafactor(params, **options),
        test_hf.VECTORS + test_hf.SHAPES[::5] + [(1, 1), (1, 5), (5, 1)],
        dtype,
        dense(dtype),
    )


# Without a momentum of 0, as above.
MUON = [o for o in test_muon.OPTIONS if o.get("momentum") != 0]


@test_muon.muon
@FLOATS
@pytest.mark.parametrize("options", [*MUON[:2], *(pytest.param(o, marks=pytest.mark.full) for o in MUON[2:])], ids=str)
def test_muon_of_subnormal_numbers(options, dtype):
    compare(
        lambda params: goptim.Muon(params, **options),
        lambda params: torch.optim.Muon(params, **options),
        test_muon.SHAPES,
        dtype,
        dense(dtype),
    )


class Scaled(Run):
    """A problem whose gradients are subnormal in part, and whose parameters become so."""

    def closure(self):
        loss = super().closure()
        for i, p in enumerate(self.params):
            if p.grad is not None:
                p.grad *= values(p.dtype, i, *p.shape).abs()
        return loss


@FLOATS
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize(
    "name", ["network", *(pytest.param(n, marks=pytest.mark.full) for n in PROBLEMS if n != "network")]
)
def test_lbfgs(name, search, dtype):
    runs = []
    for cls in (goptim.LBFGS, torch.optim.LBFGS):
        with flushing(), ieee_sqrt(), sums_in_our_order():
            runs.append(Scaled(cls, PROBLEMS[name], dtype, line_search_fn=search, max_iter=4).steps(3).everything())
    assert_bit_equal(*runs)


@pytest.fixture(params=["OpenMP's", "Go's"])
def team(request, threads):
    """Whose threads step. They exist before the state that they have to take: new ones inherit it."""
    threads(2)
    torch.ones(1 << 20).add_(1)
    threads(1)
    if request.param == "Go's":
        _core.OpenMP(0, 0)
    yield
    _core.OpenMP(*_native._gomp())


@pytest.mark.parametrize("name", ["SparseAdam", "Adagrad", "SGD"])
def test_all_threads_flush_sparse(name, team):
    options = {"lr": 0.0123}
    compare(
        lambda params: test_sparse.ours(name, params, **options),
        lambda params: test_sparse.theirs(name, params, **options),
        [(20_000, 64)],
        torch.float32,
        sparse(torch.float32, 30_000),
        steps=2,
        threads=2,
    )


def test_all_threads_flush_hf_adafactor(team):
    compare(
        goptim.hf.Adafactor,
        test_hf.transformers.Adafactor,
        [(300, 200), (100_000,), (200, 300), (250, 250)],
        torch.float32,
        dense(torch.float32),
        steps=2,
        threads=2,
    )


def test_all_threads_flush_lbfgs(team):
    """Whose sums are not torch's, but the same on every number of threads."""
    n, runs = 3_000_000, []
    gradients = [values(torch.float32, i, n) for i in range(6)]  # torch's own threads do not flush
    for threads in (1, 2):
        torch.set_num_threads(threads)
        p, grads = Parameter(values(torch.float32, 7, n)), iter(gradients)
        optimizer = goptim.LBFGS([p], lr=0.1, max_iter=5)

        def closure(p=p, grads=grads):
            p.grad = next(grads)
            return 1.0

        with flushing():
            optimizer.step(closure)
        runs.append((p, optimizer.state[p]))
    assert_bit_equal(*runs)


@test_muon.muon
def test_all_threads_flush_muon(team):
    """What Go does of it. torch's threads, which multiply, do not flush: so there is nothing to multiply here."""
    compare(
        lambda params: goptim.Muon(params, ns_steps=0),
        lambda params: torch.optim.Muon(params, ns_steps=0),
        [(1200, 1000)],
        torch.float32,
        dense(torch.float32),
        steps=2,
        threads=2,
    )
