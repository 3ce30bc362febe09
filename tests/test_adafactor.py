"""Adafactor on matrices is bit-for-bit equal to torch.optim.Adafactor, whose order of summation depends on the shape.

The parity table also tests it, mostly on vectors.
"""

import ctypes
import platform
from dataclasses import replace
from unittest import mock

import pytest
import torch
from configurations import NEEDS_FMA, TABLE, gradients, normal
from rows import call_groups, row as row_of, table as table_of
from test_faults import PROT_NONE, PROT_READ_WRITE, Memory
from test_parity import FLOATS, STEPS, Pair

import goptim
import goptim.hf
from goptim._lists import order_of_norms
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = [
    NEEDS_FMA,
    pytest.mark.usefixtures("threads"),
]

ROW = TABLE["Adafactor"]
SHAPES = [
    *[(1, 1), (2, 1), (1, 2), (5, 1), (1000, 1), (1, 50_000), (3, 3), (7, 8), (8, 7), (10, 3), (70, 8), (33, 65)],
    *[(300, 257), (2000, 17), (17, 2000), (16, 16), (4, 15), (4, 7, 1), (7, 1, 5), (100, 1, 50), (1, 33, 1)],
    *[(33, 1, 1), (3, 5, 6), (40, 5, 2), (40, 2, 13), (40, 13, 2), (9, 15, 15), (8, 9, 14), (40, 11, 11), (40, 1, 3)],
    *[(40, 3, 1), (6, 6, 1, 1), (16, 5, 3, 3), (3, 5, 3, 3), (17, 3, 5, 5), (8, 9, 7, 7), (70, 1, 1, 33), (9, 7, 8, 2)],
    *[(17, 20, 3), (17, 3, 20)],
]


@FLOATS
@pytest.mark.parametrize("configuration", [ROW[0], ROW[1], ROW[2], ROW[-1]], ids=str)
@pytest.mark.covering(1)
def test_shapes(configuration, dtype):
    """Every path in Go and every order in torch: rows shorter and longer than a vector, columns, small matrices."""
    pair = Pair(configuration, [normal(shape, dtype, i) for i, shape in enumerate(SHAPES)])
    pair.run()
    assert {len(s) for s in pair.optimizer.state.values()} == {3}


@FLOATS
@pytest.mark.parametrize("configuration", [ROW[0], ROW[2]], ids=str)
def test_one_element(configuration, dtype):
    """Its norm is its magnitude, also where its square is too large or too small a number."""
    large = 1e30 if dtype is torch.float32 else 1e200
    values = [torch.full(shape, x, dtype=dtype) for shape in [(), (1,), (1, 1)] for x in (large, 1 / large, -large)]
    Pair(configuration, values).run(3)


@FLOATS
@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.covering
def test_long_sums(n, dtype, threads):
    """From 32768 elements on, torch divides a sum over all threads."""
    threads(n)
    shapes = [(40_000, 1), (40_000, 4), (4, 40_000), (3, 40_000, 2), (32_768, 3), (32_767, 2), (70_000, 16), (99_999,)]
    shapes += [(65_537, 2), (150_001, 2)]
    Pair(ROW[0], [normal(shape, dtype, i) for i, shape in enumerate(shapes)]).run(STEPS // 3)


@FLOATS
@pytest.mark.parametrize(
    "shape", [(7, 23, 23), (23, 3, 529), (529, 7, 1, 1), (529, 3, 3), (600, 5), (23, 529)], ids=str
)
@pytest.mark.parametrize("configuration", [ROW[0], ROW[1], ROW[2], ROW[-1]], ids=str)
@pytest.mark.covering("configuration shape", "configuration dtype", "shape dtype")
def test_special_values(configuration, shape, dtype):
    """Only some elements are special, because everything after a NaN is NaN."""
    limits = torch.finfo(dtype)
    special = [0.0, limits.tiny, 1e-40, 1e-25, limits.eps, 1e15, 1e19, limits.max, torch.inf, torch.nan]
    for one in special:
        pair = Pair(configuration, [normal(shape, dtype, 0)])
        for step in range(3):
            (g,) = gradients(pair.params, step)
            g.view(-1)[step :: 31 + g.numel() // 3] = one
            g.view(-1)[step + 1 :: 31 + g.numel() // 3] = -one
            pair.step([g])
    for scale in (0.0, limits.tiny**0.5, limits.tiny, 1e-12, 1e12, limits.max**0.5):
        pair = Pair(configuration, [normal(shape, dtype, 0)])
        for step in range(3):
            pair.step([normal(shape, dtype, step) * scale])


@FLOATS
def test_a_division_near_its_limits(dtype):
    """The remainder of v / mean underflows, v overflows, or the update has its smallest root."""
    scale = torch.finfo(dtype).tiny ** 0.25
    pair = Pair(ROW[1], [normal((23, 529), dtype, 0)])
    for step in range(3):
        pair.step([normal((23, 529), dtype, step) * scale])
    pair = Pair(ROW[0], [normal((23, 529), dtype, 0)])
    (g,) = gradients(pair.params, 0)
    g[5, 100] = 8e10
    pair.step([g])
    for eps in (0.0123, 0.017):  # the root of the float32 square differs from that of the rounded square
        least = replace(ROW[0], options={**ROW[0].options, "eps": (eps, 1e-3)})
        Pair(least, [normal((2, 529), dtype, 0) * 0.01]).step([normal((2, 529), dtype, 1) * 1e-4])


def test_layouts_that_fall_back():
    """torch sums in memory order, and Go only knows that of contiguous parameters."""
    params = [normal((5, 7), torch.float32, 0).t(), normal((3, 4, 5, 6), torch.float32, 1)]
    params[1] = params[1].contiguous(memory_format=torch.channels_last)
    results = []
    for optimizer in (goptim.Adafactor, torch.optim.Adafactor):
        leaves = [p.detach().clone().requires_grad_() for p in params]
        assert not any(p.is_contiguous() for p in leaves)
        opt = optimizer(leaves)
        for step in range(3):
            for p, g in zip(leaves, gradients(leaves, step), strict=True):
                p.grad = g
            opt.step()
        results.append((leaves, opt.state_dict()["state"]))
    assert_bit_equal(*results)


def test_epsilon_of_the_first_dtype(monkeypatch):
    """If a group has several dtypes, torch uses the machine epsilon of its first parameter for all."""
    results = []
    for optimizer in (goptim.Adafactor, torch.optim.Adafactor):
        leaves = [(normal((6,), d, 0) * 1e-9).requires_grad_() for d in (torch.float64, torch.float32)]
        opt = optimizer(leaves)
        for p in leaves:
            p.grad = torch.full_like(p, 1e-12)
        opt.step()
        results.append(leaves)
    assert_bit_equal(*results)


def test_a_wrong_shape_of_a_state_is_an_error():
    p = normal((4, 5), torch.float32, 0).requires_grad_()
    opt = goptim.Adafactor([p])
    p.grad = torch.ones_like(p)
    opt.step()
    before = p.detach().clone()
    opt.state[p]["col_var"] = torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"parameter 0 .*'col_var' has shape \(1, 4\), expected \(1, 5\)"):
        opt.step()
    assert_bit_equal(p.detach(), before)


def test_an_empty_parameter_is_torchs_error():
    p = torch.zeros(0, requires_grad=True)
    p.grad = torch.zeros(0)
    for optimizer in (torch.optim.Adafactor, goptim.Adafactor):
        opt = optimizer([p])
        with pytest.raises(ZeroDivisionError):
            opt.step()
        with pytest.raises(ZeroDivisionError):
            opt.step()


@pytest.mark.parametrize(
    "keyword", ["scale_parameter", "relative_step", "warmup_init", "clip_threshold", "beta1", "decay_rate"]
)
def test_hugging_face_keywords(keyword):
    with pytest.raises(TypeError, match=rf"unexpected {keyword}: .*goptim\.hf\.Adafactor"):
        goptim.Adafactor([torch.zeros(1)], **{keyword: None})


def _row(columns, n, rows=0, cols=0):
    p, g, step, row, col = (m.address for m in columns)
    states = (row, col, 0) if rows else (0, 0, row)
    return table_of(row_of(n, p, g, step, states, rows=rows, cols=cols))


SCALARS = (0.01, -0.8, 1e-7, 1e-3, 1.0, 0.0, 0, 0)


@pytest.mark.parametrize("shape", [(0, 0), (8, 512), (512, 8)], ids=["vector", "wide", "narrow"])
@pytest.mark.parametrize("column", range(5), ids=["parameter", "gradient", "step", "row_var", "col_var"])
def test_fault_in_go_is_an_exception(column, shape, threads, to_go):
    threads(2)
    columns = [Memory(4096) for _ in range(5)]
    table = _row(columns, 4096, *shape)
    if column == 4 and shape == (0, 0):
        pytest.skip("a vector has one state")
    columns[column].protect(PROT_NONE)
    try:
        with pytest.raises(RuntimeError, match=r"panic in Go.*invalid memory address"):
            call_groups("Adafactor", [(ctypes.addressof(table), 1)], SCALARS)
    finally:
        columns[column].protect(PROT_READ_WRITE)
    assert call_groups("Adafactor", [(ctypes.addressof(table), 1)], SCALARS) == 1


@pytest.mark.parametrize(
    ("n", "rows", "cols", "message"),
    [
        (0, 0, 0, "no elements"),
        (64, 8, 7, "matrices of 8 x 7 in 64 elements"),
        (64, 8, 0, "matrices of 8 x 0"),
        (64, 0, 8, "matrices of 0 x 8"),
        (64, 1 << 31, 1 << 31, "matrices of"),
    ],
)
def test_bad_row(n, rows, cols, message):
    table = _row([Memory(64)] * 5, n, rows, cols)
    with pytest.raises(RuntimeError, match=rf"Adafactor: row 0: {message}"):
        call_groups("Adafactor", [(ctypes.addressof(table), 1)], SCALARS, 1)


def test_order_of_this_torch_is_detected():
    """A torch with yet another order of summation would fail here first."""
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if platform.machine() == "aarch64":
        assert order_of_norms() == 2
    elif version in ((2, 6), (2, 15)):
        assert order_of_norms() == (version == (2, 6))


def test_torch_does_not_step_supported_parameters():
    p = normal((4, 5), torch.float32, 0).requires_grad_()
    opt = goptim.Adafactor([p])
    p.grad = torch.ones_like(p)
    with mock.patch("goptim._step.undecorated_step", side_effect=AssertionError):
        opt.step()


def _fused_norm(x, p=2):
    """The norm of a vector with two elements that are not 0, in one lane: the second square is fused into the sum."""
    a, b = x[0].item(), x[8].item()
    assert p == 2
    assert x.count_nonzero() <= 2
    return torch.tensor(a * a, dtype=torch.float32).double().add(b * b).float().sqrt()


@pytest.mark.parametrize("of", ["torch", "transformers"])
def test_norms_of_a_torch_that_fuses_squares_into_their_sum(of, monkeypatch):
    """As that of torch 2.6 does."""
    if of == "torch":
        ours, theirs, options, flags = goptim.Adafactor, torch.optim.Adafactor, {"lr": 0.1}, {"foreach": False}
        monkeypatch.setattr("goptim.adafactor.order_of_norms", lambda: 1)
    else:
        theirs = pytest.importorskip("transformers.optimization").Adafactor
        ours, options, flags = goptim.hf.Adafactor, {"clip_threshold": 0.5}, {}
        monkeypatch.setattr("goptim.hf.order_of_norms", lambda: 1)
    pairs = torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(0))
    runs = []
    for cls in (ours, theirs):
        params = [torch.zeros(16) for _ in pairs]
        for p, (value, grad) in zip(params, pairs, strict=True):
            p[::8], p.grad = value, torch.zeros(16)
            p.grad[::8] = grad
        with ieee_sqrt(), monkeypatch.context() as patch:
            if cls is theirs:
                patch.setattr(torch.Tensor, "norm", _fused_norm)
            opt = cls(params, **options, **(flags if cls is theirs else {}))
            opt.step()
            opt.step()
        runs.append([(p, dict(opt.state[p])) for p in params])
    assert_bit_equal(*runs)


@FLOATS
def test_hugging_face_for_loop(dtype):
    """Sums over rows and columns in torch's order, without the package of the class that goptim.hf replaces."""
    values = [normal(shape, dtype, i) for i, shape in enumerate(SHAPES)]
    ours, theirs = ([v.clone().requires_grad_() for v in values] for _ in range(2))
    optimizers = goptim.hf.Adafactor(ours), goptim.hf.HFAdafactor(theirs)
    for step in range(3):
        for p, q, g in zip(ours, theirs, gradients(ours, step), strict=True):
            p.grad = q.grad = g
        with ieee_sqrt():
            for optimizer in optimizers:
                optimizer.step()
        assert_bit_equal(ours, theirs, f"step {step}")
