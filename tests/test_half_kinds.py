"""16-bit parameters in optimizers that are not elementwise: Adafactor, Muon, LBFGS, and sparse gradients.

The oracle is that of test_half.py: torch's for-loop with IEEE square roots on float32 copies, of which every element of
the parameter and the states is rounded once after each step. So sums, means and norms are those of float32 elements, in
torch's order for float32.
"""

import copy
import operator
from dataclasses import replace
from unittest import mock

import pytest
import torch
from configurations import NEEDS_FMA, TABLE, Configuration, class_of, gradients, normal
from test_adafactor import SHAPES
from test_half import BF16, F16, F32, F64, HALVES, Pair, Wide, full_unless, leaves, must_not_step
from test_storage import MODES, Oracle, Pair as StoragePair, noise, stochastic
from torch import Tensor

import goptim
import goptim.hf
from goptim import _native
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    NEEDS_FMA,
    pytest.mark.usefixtures("threads"),
]

ADAFACTOR = TABLE["Adafactor"]
VECTORS = [(), (1,), (2,), (7,), (16,), (31,), (33,), (1003,)]
# Every path: rows, columns, one element, small and large matrices, batches that do not fill vectors.
FEW = [(3, 3), (33, 65), (17, 2000), (100, 1, 50), (40, 13, 2), (40, 11, 11), (16, 5, 3, 3), (33, 1, 1), (9, 7, 8, 2)]


class FactoredPair(Pair):
    """Parameters with Adafactor. Its default of eps depends on the dtype of the parameters, which are narrow."""

    def __init__(self, configuration, values, **flags):
        super().__init__(configuration, values, **flags)
        eps1, eps2 = configuration.options.get("eps", (None, 1e-3))
        eps1 = torch.finfo(values[0].dtype).eps if eps1 is None else eps1
        self.oracle = Wide(replace(configuration, options={**configuration.options, "eps": (eps1, eps2)}), values)


@HALVES
@pytest.mark.parametrize("configuration", full_unless(ADAFACTOR, [ADAFACTOR[0], ADAFACTOR[-1]]), ids=str)
def test_adafactor(configuration, dtype):
    FactoredPair(configuration, [normal(shape, dtype, i) for i, shape in enumerate(VECTORS + FEW)]).run(4)


@HALVES
@pytest.mark.parametrize("configuration", full_unless(ADAFACTOR[:3], []), ids=str)
def test_adafactor_shapes(configuration, dtype):
    more = [(1003, 70), (70_001,), (3001, 3, 3), (70_001, 1), (1, 70_001), (2, 40_000, 2), (1003, 9, 11)]
    FactoredPair(configuration, [normal(shape, dtype, i) for i, shape in enumerate(SHAPES + more)]).run(4)


@HALVES
@pytest.mark.parametrize("options", [{}, {"beta1": 0.9, "weight_decay": 0.037, "scale_parameter": False}], ids=str)
def test_hugging_face(options, dtype, monkeypatch):
    """The class of transformers, whose states are float32; also after a load_state_dict, which rounds them."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(goptim.hf.HFAdafactor, "step", must_not_step)
    values = [normal(shape, dtype, i) for i, shape in enumerate(VECTORS + FEW)]
    ours, theirs = leaves(values), leaves(values)
    optimizers = goptim.hf.Adafactor(ours, **options), transformers.Adafactor(theirs, **options)
    for step in range(4):
        if step == 2:
            saved = optimizers[1].state_dict()
            for opt in optimizers:
                opt.load_state_dict(copy.deepcopy(saved))
            assert all(row.to == "go" for row in goptim.explain(optimizers[0]))
        for p, q, g in zip(ours, theirs, gradients(ours, step), strict=True):
            p.grad = q.grad = g
        optimizers[0].step()
        with ieee_sqrt():
            optimizers[1].step()
        assert_bit_equal(ours, theirs, f"step {step}")
        states = [list(opt.state_dict()["state"].values()) for opt in optimizers]
        assert_bit_equal(*states, f"step {step}: state")
        assert {t.dtype for s in states[0] for t in s.values() if isinstance(t, Tensor)} == {F32}


class StoredPair(StoragePair):
    """Parameters with Adafactor and the keywords of docs/half.md. The norm of a parameter is that of what it steps."""

    def __init__(self, configuration, values, **mode):
        super().__init__(configuration, values, **mode)
        eps1, eps2 = configuration.options.get("eps", (None, 1e-3))
        eps1 = torch.finfo(values[0].dtype).eps if eps1 is None else eps1
        with_eps = replace(configuration, options={**configuration.options, "eps": (eps1, eps2)})
        self.oracle = Oracle(with_eps, values, **mode)

    def compare(self):
        assert_bit_equal(self.params, self.oracle.narrow, f"step {self.steps}: parameters")
        for i, p in enumerate(self.params):
            state, expected = self.optimizer.state.get(p, {}), self.oracle.state(i)
            assert_bit_equal({k: state[k] for k in sorted(state)}, {k: expected[k] for k in sorted(expected)}, str(i))


STORED = [("states-float32", BF16), ("master-float32", BF16), ("stochastic-float32", F16), ("kahan", BF16)]
STORED += [("states-bfloat16", F32)]
EVERY_STORAGE = [
    pytest.param(mode, dtype, marks=[] if (mode, dtype) in STORED else pytest.mark.full)
    for mode in MODES
    for dtype in (BF16, F16, F32)
]


@pytest.mark.parametrize(("mode", "dtype"), EVERY_STORAGE)
def test_adafactor_storage(mode, dtype):
    """Every path of Adafactor with each way to store parameters and states."""
    values = [normal(shape, dtype, i) for i, shape in enumerate(VECTORS + FEW)]
    pair = StoredPair(ADAFACTOR[-1], values, **MODES[mode])
    for step in range(4):
        grads = gradients(pair.params, step)
        if step == 1:
            grads[5] = None
        pair.step(grads)


@pytest.mark.parametrize("mode", ["master", "kahan", "stochastic"])
@pytest.mark.parametrize("n", [1, 2])
def test_adafactor_storage_threads(n, mode, threads):
    """A parameter that something else has written, in vectors and in the rest, is stepped from what was written."""
    threads(n)
    values = [normal(shape, BF16, i) for i, shape in enumerate([(2060,), (300, 257), (90, 3, 3)])]
    pair = StoredPair(ADAFACTOR[0], values, **MODES[mode])
    pair.step()
    for p, narrow, wide in zip(pair.params, pair.oracle.narrow, pair.oracle.wide, strict=True):
        for at in (3, 520, p.numel() - 1):
            for t in (p, narrow, *([wide] if mode == "master" else [])):
                t.data.view(-1)[at] = 2.5
    pair.step()


class HuggingFaceOracle(Oracle):
    """The class of transformers in operations of torch, whose states are float32 without the keywords."""

    def dtype_of(self, p, key):
        return F64 if p.dtype is F64 else self.state_dtype or F32

    def state(self, i):
        state = super().state(i)
        return {**state, "step": self.steps[i]} if state else state


class HuggingFacePair(StoredPair):
    def __init__(self, options, values, **mode):
        self.params = [torch.nn.Parameter(v.clone()) for v in values]
        self.optimizer, self.steps = goptim.hf.Adafactor(self.params, **options, **mode), 0
        oracle = mock.Mock(theirs=lambda params: goptim.hf.HFAdafactor(params, **options))
        self.oracle = HuggingFaceOracle(oracle, values, **mode)


HUGGING_FACE = [{}, {"beta1": 0.9, "weight_decay": 0.037, "relative_step": False, "lr": 0.01}]


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize(("mode", "dtype"), EVERY_STORAGE)
def test_hugging_face_storage(mode, dtype, i):
    """Every path of transformers' Adafactor with each way to store parameters and states."""
    values = [normal(shape, dtype, i) for i, shape in enumerate(VECTORS + FEW)]
    pair = HuggingFacePair(HUGGING_FACE[i], values, **MODES[mode])
    for step in range(4):
        grads = gradients(pair.params, step)
        if step == 1:
            grads[5] = None
        pair.step(grads)


@pytest.mark.parametrize("mode", ["master", "kahan", "stochastic", "states-bfloat16"])
@pytest.mark.parametrize("n", [1, 2])
def test_hugging_face_storage_threads(n, mode, threads):
    threads(n)
    shapes = [(2060,), (300, 257), (90, 3, 3), *([(70_001, 1), (40_000,)] if mode == "kahan" else [])]
    pair = HuggingFacePair(HUGGING_FACE[1], [normal(shape, BF16, i) for i, shape in enumerate(shapes)], **MODES[mode])
    pair.step()
    for p, narrow, wide in zip(pair.params, pair.oracle.narrow, pair.oracle.wide, strict=True):
        for at in (3, 520, p.numel() - 1):
            for t in (p, narrow, *([wide] if mode == "master" else [])):
                t.data.view(-1)[at] = 2.5
    pair.step()


@pytest.mark.parametrize("mode", ["master", "kahan", "stochastic", "states-bfloat16"])
def test_hugging_face_storage_without_a_layout(mode, monkeypatch):
    """Rows that are read through torch's Python API, and parameters that share a state."""
    monkeypatch.setattr(_native, "layout", lambda: None)
    pair = HuggingFacePair(HUGGING_FACE[1], [normal(shape, BF16, i) for i, shape in enumerate(FEW)], **MODES[mode])
    for _ in range(2):
        pair.step()


def test_hugging_face_groups_and_other_keywords():
    """float32 states are those without keywords; keywords may change between steps."""
    a, b, c = leaves([normal((5, 3), dtype, 7) for dtype in (BF16, BF16, F32)])
    groups = [{"params": [a], "rounding": "kahan", "state_dtype": BF16}, {"params": [b, c], "master_weights": True}]
    opt = goptim.hf.Adafactor(groups, state_dtype=F32)

    def step():
        for p, g in zip((a, b, c), gradients([a, b, c], 0), strict=True):
            p.grad = g
        with mock.patch("goptim._step.undecorated_step", must_not_step):
            opt.step()
        return [{k: t.dtype for k, t in opt.state[p].items() if isinstance(t, Tensor)} for p in (a, b, c)]

    tensors = ("exp_avg_sq_row", "exp_avg_sq_col")
    for _ in range(2):
        assert step() == [
            {**dict.fromkeys(tensors, BF16), "RMS": F32, "compensation": BF16},
            {**dict.fromkeys(tensors, F32), "RMS": F32, "master_param": F32},
            {**dict.fromkeys(tensors, F32), "RMS": F32},
        ]
    opt.param_groups[0].update(rounding="stochastic", state_dtype=F32)
    assert step()[0] == {**dict.fromkeys(tensors, F32), "RMS": F32}
    opt.param_groups[0].update(rounding="nearest", foreach=True)
    assert goptim.explain(opt)[0].to == "torch"  # with float32 states, as torch has them
    opt.param_groups[0]["state_dtype"] = BF16
    assert goptim.explain(opt)[0].to == "error"
    before = a.detach().clone()
    with pytest.raises(ValueError, match=r"Adafactor: parameter 0 of group 0.*state_dtype=torch.bfloat16.*foreach"):
        opt.step()
    assert_bit_equal(a.detach(), before)


def rows_of(p, step, n, sort=False):
    """A sparse gradient with n rows, some of them repeated."""
    generator = torch.Generator().manual_seed(step)
    index = torch.randint(0, p.shape[0], (n,), generator=generator)
    if sort:
        index = index.unique()
    values = normal((len(index), *p.shape[1:]), p.dtype, step + 7)
    return torch.sparse_coo_tensor(index[None], values, p.shape, is_coalesced=sort, check_invariants=False)


def widened_rows(g):
    return torch.sparse_coo_tensor(
        g._indices(), g._values().float(), g.shape, is_coalesced=g.is_coalesced(), check_invariants=False
    )


SPARSE = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1}),
    ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.3, "maximize": True}),
    ("SparseAdam", {"lr": 0.1}),
    ("SparseAdam", {"lr": 0.1, "betas": (0.2, 0.95), "maximize": True}),
]


class SparsePair:
    """Parameters with sparse gradients, and torch's for-loop on float32 copies that are rounded after each step."""

    def __init__(self, name, options, values):
        self.params = leaves(values)
        self.optimizer = class_of(name)(self.params, **options)
        self.wide = [v.float().requires_grad_() for v in values]
        flags = {} if name == "SparseAdam" else {"foreach": False}
        self.oracle = getattr(torch.optim, name)(self.wide, **options, **flags)
        self.dtype = values[0].dtype
        self.round()

    @torch.no_grad()
    def round(self):
        for p in self.wide:
            for key, t in (("", p), *self.oracle.state.get(p, {}).items()):
                if key != "step" and isinstance(t, Tensor):
                    t.copy_(t.to(self.dtype))

    def step(self, grads):
        for p, q, g in zip(self.params, self.wide, grads, strict=True):
            p.grad, q.grad = g, None if g is None else widened_rows(g)
        with mock.patch("goptim._step.undecorated_step", must_not_step):
            self.optimizer.step()
        with ieee_sqrt():
            self.oracle.step()
        self.round()
        assert_bit_equal(self.params, [q.to(self.dtype) for q in self.wide])
        for p, q in zip(self.params, self.wide, strict=True):
            mine, theirs = self.optimizer.state.get(p, {}), self.oracle.state.get(q, {})
            assert list(mine) == list(theirs)
            for key, t in theirs.items():
                same = not isinstance(t, Tensor) or key == "step"
                assert_bit_equal(mine[key], t if same else t.to(self.dtype), key)


class StoredSparsePair:
    """Parameters with sparse gradients and the keywords of docs/half.md. Only rows with a gradient are stored again."""

    def __init__(self, name, options, values, **mode):
        self.params = leaves(values)
        self.optimizer = class_of(name)(self.params, **options, **mode)
        self.wide = [v.float().requires_grad_() for v in values]
        flags = {} if name == "SparseAdam" else {"foreach": False}
        self.oracle = getattr(torch.optim, name)(self.wide, **options, **flags)
        self.narrow, self.rest = [v.clone() for v in values], [torch.zeros_like(v) for v in values]
        self.mode, self.steps = mode, 0
        self.round_states()

    @torch.no_grad()
    def round_states(self):
        for p, wide in zip(self.params, self.wide, strict=True):
            for key, t in self.oracle.state.get(wide, {}).items():
                if key != "step" and isinstance(t, Tensor):
                    t.copy_(t.to(self.mode.get("state_dtype", p.dtype)))

    def step(self, grads):
        self.steps += 1
        for p, q, g in zip(self.params, self.wide, grads, strict=True):
            p.grad, q.grad = g, widened_rows(g)
        with mock.patch("goptim._step.undecorated_step", must_not_step):
            self.optimizer.step()
        with torch.no_grad():
            for narrow, wide, rest in zip(self.narrow, self.wide, self.rest, strict=True):
                if "master_weights" not in self.mode:
                    wide.copy_(narrow.float() + rest.float())
        with ieee_sqrt():
            self.oracle.step()
        self.round_states()
        for i, (g, p, wide, rest) in enumerate(zip(grads, self.narrow, self.wide, self.rest, strict=True)):
            rows, x = g._indices()[0].unique(), wide.detach()
            near = x.to(p.dtype)
            if self.mode.get("rounding") == "stochastic" and p.dtype is not F32:
                near = stochastic(x.flatten(), p.dtype, noise(p.numel(), self.mode.get("seed", 0), self.steps, i))
            p[rows] = near.view_as(p)[rows]
            if self.mode.get("rounding") == "kahan" and p.dtype is not F32:
                rest[rows] = (x - p.float()).nan_to_num(0.0, 0.0, 0.0).to(p.dtype)[rows]
        self.compare()

    def compare(self):
        assert_bit_equal([p.detach() for p in self.params], self.narrow, f"step {self.steps}")
        for p, wide, rest in zip(self.params, self.wide, self.rest, strict=True):
            expected = {
                key: t if key == "step" else t.to(self.mode.get("state_dtype", p.dtype))
                for key, t in self.oracle.state.get(wide, {}).items()
            }
            if p.dtype is not F32 and "master_weights" in self.mode:
                expected["master_param"] = wide.detach()
            elif p.dtype is not F32 and self.mode.get("rounding") == "kahan":
                expected["compensation"] = rest
            elif p.dtype is not F32 and self.mode.get("rounding") == "stochastic":
                expected.setdefault("step", torch.tensor(float(self.steps)))
            state = self.optimizer.state.get(p, {})
            assert_bit_equal({k: state[k] for k in sorted(state)}, {k: expected[k] for k in sorted(expected)})


SPARSE_STORED = [(1, "kahan", BF16), (0, "stochastic", BF16), (3, "states-float32", F16), (3, "states-bfloat16", F32)]
SPARSE_STORED += [(5, "master-float32", BF16), (4, "stochastic-float32", F16), (2, "master", BF16)]


@pytest.mark.parametrize(
    ("i", "mode", "dtype"),
    [
        pytest.param(i, mode, dtype, marks=[] if (i, mode, dtype) in SPARSE_STORED else pytest.mark.full)
        for i in range(len(SPARSE))
        for mode in MODES
        for dtype in (BF16, F16, F32)
    ],
)
def test_sparse_storage(i, mode, dtype):
    widths = [(1,), (2,), (7,), (16,), (31,), (32,), (33,), (5, 3), (1003,)]
    values = [normal((11, *w), dtype, i) for i, w in enumerate(widths)]
    pair = StoredSparsePair(*SPARSE[i], values, **MODES[mode])
    for step in range(4):
        pair.step([rows_of(p, step, (1, 2, 5, 40)[step], step == 2) for p in pair.params])


@pytest.mark.parametrize("i", [0, 3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_sparse_storage_is_read_in_c(mode, i, monkeypatch):
    """Python steps the rows of new parameters alone, and gather.c reads all states that are as the keywords say."""
    pair = StoredSparsePair(*SPARSE[i], [normal((11, 5), d, k) for k, d in enumerate((BF16, F32, F16))], **MODES[mode])
    calls = []
    python_step = goptim._sparse.step
    monkeypatch.setattr("goptim._sparse.step", lambda *args: calls.append(1) or python_step(*args))
    p = pair.params[0]
    versions = []
    for step in range(4):
        pair.step([rows_of(q, 10 * step + k, 7) for k, q in enumerate(pair.params)])
        if step > 0:
            assert not calls, step
        calls.clear()
        state = pair.optimizer.state.get(p, {})
        versions.append([p._version, *(t._version for t in state.values() if isinstance(t, Tensor))])
    assert all(map(operator.lt, versions[-2], versions[-1]))


@pytest.mark.parametrize("mode", ["master", "kahan", "stochastic"])
def test_sparse_storage_in_shared_memory(mode, monkeypatch):
    """A master copy or a compensation that another parameter reads makes Python step them in order."""
    calls = []
    python_step = goptim._sparse.step
    monkeypatch.setattr("goptim._sparse.step", lambda *args: calls.append(1) or python_step(*args))
    p, q = leaves([normal((11, 5), BF16, 0), normal((11, 5), BF16, 1)])
    opt = goptim.SGD([p, q], lr=0.1, **MODES[mode])
    for step in range(3):
        p.grad, q.grad = rows_of(p, step, 3), rows_of(q, step, 3)
        opt.step()
    assert len(calls) == 2
    for key in ("master_param", "compensation", "step"):
        if key in opt.state[p]:
            opt.state[q][key] = opt.state[p][key]
    opt.step()
    assert len(calls) == 4


@pytest.mark.full
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("mode", ["master-float32", "kahan", "stochastic"])
def test_large_sparse_storage(mode, n, threads):
    threads(n)
    pair = StoredSparsePair(*SPARSE[4], [normal((70_001, 33), BF16, 0)], **MODES[mode])
    for step in range(2):
        pair.step([rows_of(pair.params[0], step, 30_000, sort=True)])


@pytest.mark.parametrize("mode", ["master-float32", "kahan", "stochastic"])
def test_sparse_and_dense_gradients_with_storage(mode, monkeypatch):
    """A parameter whose gradient is sparse in some steps has one state for both, also without torch's layout."""
    results = []
    for layout in (True, False):
        if not layout:
            monkeypatch.setattr(_native, "layout", lambda: None)
        runs = []
        for sparse in (True, False):
            p, q = leaves([normal((11, 33), BF16, 0), normal((7,), BF16, 1)])
            opt = goptim.SGD([q, p], lr=0.1, **MODES[mode])
            for step in range(4):
                g = torch.zeros_like(p)
                g[[1, 4]] = normal((2, 33), BF16, step)
                p.grad = g.to_sparse(1) if sparse and step % 2 == 0 else g
                q.grad = normal((7,), BF16, step)
                opt.step()
            runs.append([p.detach(), q.detach(), [dict(sorted(opt.state[x].items())) for x in (p, q)]])
        assert_bit_equal(*runs)
        results.append(runs[0])
    assert_bit_equal(*results)


@HALVES
@pytest.mark.parametrize(("name", "options"), SPARSE, ids=str)
def test_sparse_gradients(name, options, dtype):
    """Repeated rows are added up in float32, or stepped one after another, and then rounded once."""
    widths = [(1,), (2,), (3,), (7,), (16,), (31,), (32,), (33,), (64,), (5, 3), (1003,)]
    pair = SparsePair(name, options, [normal((11, *w), dtype, i) for i, w in enumerate(widths)])
    for step in range(4):
        pair.step([rows_of(p, step, (1, 2, 5, 40)[step], step == 2) for p in pair.params])


@pytest.mark.full
@HALVES
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(("name", "options"), SPARSE[::2], ids=str)
def test_large_sparse_gradients(name, options, n, dtype, threads):
    threads(n)
    pair = SparsePair(name, options, [normal((70_001, 33), dtype, 0), normal((9, 70_001), dtype, 1)])
    for step in range(2):
        pair.step([rows_of(pair.params[0], step, 40_000), rows_of(pair.params[1], step, 12)])


@HALVES
@pytest.mark.parametrize(("name", "options"), SPARSE[:5:2], ids=str)
def test_special_values_in_sparse_gradients(name, options, dtype):
    limits = torch.finfo(dtype)
    some = torch.tensor([0.0, limits.tiny * limits.eps, 1.0, limits.max, torch.inf, torch.nan], dtype=torch.float64)
    some = torch.cat([some, -some]).to(dtype)
    values, grads = torch.cartesian_prod(some, some).t().contiguous()
    pair = SparsePair(name, options, [values[:, None].contiguous()])
    index = torch.arange(len(values))
    for _ in range(3):
        pair.step([torch.sparse_coo_tensor(index[None], grads[:, None], pair.params[0].shape, check_invariants=False)])


def test_sparse_rows_of_groups_for_torch():
    """foreach=True asks for torch's own rounding, with sparse gradients too."""
    p = leaves([normal((5, 3), BF16, 0)])[0]
    p.grad = rows_of(p, 0, 3)
    for flags, to in (({"foreach": True}, "torch"), ({"foreach": False}, "go"), ({}, "go")):
        [row] = goptim.explain(goptim.SGD([p], **flags))
        assert row.to == to
        assert ("foreach=True" in row.reason) == (to == "torch")


MATRICES = [(1, 1), (3, 5), (5, 3), (16, 16), (33, 65), (65, 33), (3, 5), (5, 3), (128, 70)]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch does not have it")
@HALVES
@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": False, "momentum": 0.3}, {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.3}],
    ids=str,
)
def test_muon(options, dtype):
    """The momentum and the update are computed in float32. The products have the bits that they have for float32."""
    values = [normal(shape, dtype, i) for i, shape in enumerate(MATRICES)]
    params, wide = leaves(values), [v.float().requires_grad_() for v in values]
    optimizer, oracle = goptim.Muon(params, lr=0.1, **options), torch.optim.Muon(wide, lr=0.1, **options)
    for step in range(4):
        for p, q, g in zip(params, wide, gradients(params, step), strict=True):
            p.grad, q.grad = g, g.float()
        with mock.patch("goptim._step.undecorated_step", must_not_step):
            optimizer.step()
        oracle.step()
        with torch.no_grad():
            for q in wide:
                q.copy_(q.to(dtype))
                oracle.state[q]["momentum_buffer"].copy_(oracle.state[q]["momentum_buffer"].to(dtype))
        assert_bit_equal(params, [q.to(dtype) for q in wide], f"step {step}")
        momenta = [
            [o.state[p]["momentum_buffer"].to(dtype) for p in of] for o, of in ((optimizer, params), (oracle, wide))
        ]
        assert_bit_equal(*momenta, f"step {step}: momentum")
        assert optimizer.state[params[0]]["momentum_buffer"].dtype is dtype


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch does not have it")
@pytest.mark.parametrize(("mode", "dtype"), EVERY_STORAGE)
def test_muon_storage(mode, dtype):
    """The states, and the parameters, which torch steps in float32 from what is stored."""
    muon = Configuration("Muon", {"lr": 0.1, "weight_decay": 0.3}, "Muon")
    pair = StoragePair(muon, [normal(shape, dtype, i) for i, shape in enumerate(MATRICES)], **MODES[mode])
    for step in range(4):
        grads = gradients(pair.params, step)
        if step == 1:
            grads[4] = None
        pair.step(grads)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch does not have it")
def test_muon_with_other_storages():
    """Parameters whose states are new, from another storage, or of torch, and groups with storages of their own."""
    a, b, c, d = leaves([normal((5, 3), dtype, 7) for dtype in (BF16, BF16, BF16, F32)])
    groups = [{"params": [a], "rounding": "kahan"}, {"params": [b, d], "master_weights": True}, {"params": [c]}]
    opt = goptim.Muon(groups, lr=0.1, state_dtype=F32)
    before = Wide(Configuration("Muon", {"lr": 0.1}, "Muon"), [d])
    for step in range(3):
        (g,) = gradients([c], step)
        for p in (a, b, c, d):
            p.grad = g.to(p.dtype) if p is not b or step else None
        opt.step()
        before.step([g.float()])
        assert_bit_equal(d.detach(), before.params[0].detach())
    assert [sorted(opt.state[p]) for p in (a, b, c, d)] == [
        ["compensation", "momentum_buffer"],
        ["master_param", "momentum_buffer"],
        ["momentum_buffer"],
        ["momentum_buffer"],
    ]
    assert {opt.state[p]["momentum_buffer"].dtype for p in (a, b, c, d)} == {F32}
    opt.param_groups[0]["rounding"] = "stochastic"
    opt.step()
    assert sorted(opt.state[a]) == ["momentum_buffer", "step"]
    assert opt.state[a]["step"] == 1
    opt.param_groups[0]["state_dtype"] = BF16
    opt.step()
    assert opt.state[a]["momentum_buffer"].dtype is BF16


def bowl(params, targets):
    """A function of all parameters, with its gradients computed in float32 and rounded to the parameters' dtype."""
    loss = 0.0
    for i, (p, x) in enumerate(zip(params, targets, strict=True)):
        d = p.detach().float() - x.float()
        loss += float((d * d * (i + 1)).sum() + (d**4).sum() / 256)
        p.grad = (2 * (i + 1) * d + d**3 / 64).to(x.dtype).to(p.dtype)
    return loss


@HALVES
@pytest.mark.parametrize("lengths", [[5], [1003, 1, 40], [4096, 0, 5000]], ids=str)
def test_lbfgs(lengths, dtype):
    """Without a line search, the bits of float32 parameters that are rounded before every evaluation."""
    values, targets = ([normal((n,), dtype, i + k) for i, n in enumerate(lengths)] for k in (0, 50))
    params, wide = leaves(values), [v.float().requires_grad_() for v in values]
    optimizer, oracle = (goptim.LBFGS(of, lr=0.02, max_iter=7, history_size=4) for of in (params, wide))
    points = [], []

    def of_oracle():
        with torch.no_grad():
            for q in wide:
                q.copy_(q.to(dtype))
        points[1].append([q.detach().to(dtype) for q in wide])
        return bowl(wide, targets)

    def closure():
        points[0].append([p.detach().clone() for p in params])
        return bowl(params, targets)

    for _ in range(3):
        with mock.patch("goptim.lbfgs.undecorated_step", must_not_step):
            first = optimizer.step(closure)
        assert first == oracle.step(of_oracle)
    assert_bit_equal(*points)
    state, expected = (o.state_dict()["state"][0] for o in (optimizer, oracle))
    assert len(expected["old_dirs"]) > 1
    assert_bit_equal(state, expected)
    assert state["d"].dtype is F32


@HALVES
def test_lbfgs_line_search(dtype):
    """The evaluations of torch on float32 parameters that are rounded as they are written, up to the order of sums."""
    values, targets = ([normal((n,), dtype, i + k) for i, n in enumerate([9, 4])] for k in (0, 50))
    params, wide = leaves(values), [v.float().requires_grad_() for v in values]
    options = {"lr": 1, "max_iter": 4, "history_size": 3, "line_search_fn": "strong_wolfe"}

    class Rounded(torch.optim.LBFGS):
        def _add_grad(self, *args):
            super()._add_grad(*args)
            with torch.no_grad():
                for q in wide:
                    q.copy_(q.to(dtype))

    points = [], []

    def closure_of(of, to):
        def closure():
            to.append(torch.cat([p.detach().to(dtype) for p in of]))
            return bowl(of, targets)

        return closure

    goptim.LBFGS(params, **options).step(closure_of(params, points[0]))
    Rounded(wide, **options).step(closure_of(wide, points[1]))
    assert 5 <= len(points[0]) == len(points[1])
    torch.testing.assert_close(points[0][:5], points[1][:5], rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    assert bowl(params, targets) < bowl(leaves(values), targets) / 10


@HALVES
def test_lbfgs_states_of_torch(dtype, monkeypatch):
    """A state_dict of either class continues in the other, and a fallback gives torch the state that it needs."""
    values, targets = ([normal((9,), dtype, k)] for k in (0, 50))
    mine, theirs = leaves(values), leaves(values)
    ours, torchs = (c(p, lr=0.1, max_iter=4) for c, p in ((goptim.LBFGS, mine), (torch.optim.LBFGS, theirs)))
    for opt, of in ((ours, mine), (torchs, theirs)):
        opt.step(lambda of=of: bowl(of, targets))
    saved = copy.deepcopy(ours.state_dict()), copy.deepcopy(torchs.state_dict())
    torchs.load_state_dict(saved[0])
    torchs.step(lambda: bowl(theirs, targets))
    ours.load_state_dict(saved[1])
    assert ours.state[mine[0]]["d"].dtype is dtype
    assert all(row.to == "go" for row in goptim.explain(ours))
    ours.step(lambda: bowl(mine, targets))
    assert ours.state[mine[0]]["d"].dtype is F32
    monkeypatch.setattr(ours, "_reason_before", lambda: "a reason")
    ours.step(lambda: bowl(mine, targets))
    assert ours.state[mine[0]]["d"].dtype is dtype


@HALVES
def test_adafactor_special_values(dtype):
    """Only some elements are special, because everything after a NaN is NaN."""
    limits = torch.finfo(dtype)
    for shape in ((529,), (23, 40), (529, 1, 1), (70, 3, 3), (40, 2, 13)):
        for one in (0.0, limits.tiny * limits.eps, limits.tiny, limits.eps, limits.max, torch.inf, torch.nan):
            pair = FactoredPair(ADAFACTOR[0], [normal(shape, dtype, 0)])
            for step in range(2):
                (g,) = gradients(pair.params, step)
                g.view(-1)[step :: 31 + g.numel() // 3] = one
                pair.step([g])


@pytest.mark.full
@HALVES
@pytest.mark.parametrize("n", [1, 2])
def test_adafactor_threads(n, dtype, threads):
    """From 32768 elements on, torch divides a sum over all threads."""
    threads(n)
    shapes = [
        (70_001,),
        (40_000, 4),
        (4, 40_000),
        (3, 40_000, 2),
        (32_768, 3),
        (1003, 300),
        (70_000, 1, 1),
        (5003, 3, 3),
    ]
    FactoredPair(ADAFACTOR[0], [normal(shape, dtype, i) for i, shape in enumerate(shapes)]).run(3)


@HALVES
def test_adafactor_layouts(dtype):
    """Parameters that are not contiguous, and groups that ask for torch's foreach implementation, fall back."""
    p = leaves([normal((5, 7), dtype, 0).t()])[0]
    p.grad = torch.ones_like(p)
    [row] = goptim.explain(goptim.Adafactor([p]))
    assert (row.to, row.reason) == ("torch", "it is not contiguous")
    p = leaves([normal((5, 7), dtype, 0)])[0]
    p.grad = torch.ones_like(p)
    for flag, to in ((None, "go"), (False, "go"), (True, "torch")):
        [row] = goptim.explain(goptim.Adafactor([p], foreach=flag))
        assert row.to == to
        assert ("foreach=True" in row.reason) == (to == "torch")


def test_adafactor_is_computed_without_a_layout(monkeypatch):
    """Rows that are read through torch's Python API."""
    monkeypatch.setattr(_native, "layout", lambda: None)
    FactoredPair(ADAFACTOR[0], [normal(shape, BF16, i) for i, shape in enumerate(FEW)]).run(2)
    if hasattr(torch.optim, "Muon"):
        test_muon({}, BF16)
    test_sparse_gradients(*SPARSE[4], BF16)


def test_scalars_that_float32_cannot_represent():
    """The error of a step whose factor overflows, before anything is written."""
    p = leaves([torch.full((4, 3), 1.0, dtype=BF16)])[0]
    p.grad = torch.ones_like(p)
    opt = goptim.Adafactor([p], lr=1e300)
    opt.step()
    before = p.detach().clone()
    opt.param_groups[0]["eps"] = (1e-3, 1e300)
    with pytest.raises(RuntimeError, match="overflow"):
        opt.step()
    assert_bit_equal(p.detach(), before)


@HALVES
@pytest.mark.parametrize("name", ["Adafactor", "Muon", "LBFGS", "SparseAdam", "Adagrad"])
def test_saved_states(name, dtype, tmp_path):
    """A run that continues from a file has the bits of the run that goes on."""
    if not hasattr(torch.optim, name):
        pytest.skip("this torch does not have it")
    values = [normal((9, 5), dtype, i) for i in range(2)]

    def step(optimizer, params, at):
        if name == "LBFGS":
            optimizer.step(lambda: bowl(params, values[::-1]))
            return
        for p in params:
            sparse = name in ("SparseAdam", "Adagrad")
            p.grad = rows_of(p, at, 7) if sparse else normal(p.shape, dtype, at)
        optimizer.step()

    options = {"lr": 0.02, "max_iter": 4} if name == "LBFGS" else {}
    params = leaves(values)
    optimizer = class_of(name)(params, **options)
    for at in range(3):
        step(optimizer, params, at)
    goptim.save_state(optimizer, tmp_path / "state")
    again = leaves(params)
    resumed = class_of(name)(again, **options)
    goptim.load_state(resumed, tmp_path / "state")
    states = [o.state_dict()["state"] for o in (optimizer, resumed)]
    for of in states[0].values():
        of.pop("al", None)  # LBFGS's scratch, which a file does not have
    assert_bit_equal(states[0], {i: {key: of[key] for key in states[0][i]} for i, of in states[1].items()})
    for at in range(3, 5):
        step(optimizer, params, at)
        step(resumed, again, at)
        assert_bit_equal(params, again)


@HALVES
def test_asgd_with_a_default_dtype_of_16_bits(dtype):
    """torch rounds a new eta and mu to the default dtype, which Go does not do."""
    torch.set_default_dtype(dtype)
    try:
        results = []
        for cls in (goptim.ASGD, torch.optim.ASGD):
            p = leaves([normal((5,), dtype, 0)])[0]
            opt = cls([p], lambd=0.3)
            p.grad = torch.ones_like(p)
            for _ in range(3):
                opt.step()
            if cls is goptim.ASGD:
                [row] = goptim.explain(opt)
                assert (row.to, row.reason) == ("torch", f"torch's default dtype is {dtype}")
            results.append([p, opt.state_dict()["state"]])
        assert_bit_equal(*results)
    finally:
        torch.set_default_dtype(F32)
