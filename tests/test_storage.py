"""The keywords state_dtype, master_weights, rounding and seed of the elementwise optimizers.

The oracle is torch's for-loop with IEEE square roots on float32 copies, as in test_half.py. After each step, states are
rounded to the dtype that they are stored in, and the parameter by a few lines of torch or NumPy: the formulas of
docs/half.md.
"""

import copy
import inspect
import io
import pickle
from unittest import mock

import golden
import numpy as np
import pytest
import rows
import torch
from configurations import ELEMENTWISE, NEEDS_FMA, TABLE, class_of, gradients, normal
from torch import Tensor
from torch.nn import Parameter

import goptim
import goptim.hf
from goptim.testing import assert_bit_equal, ieee_sqrt

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
SCALARS = ("step", "mu_product", "eta", "mu", "RMS", "exp_avg_lr_2")

pytestmark = [
    NEEDS_FMA,
    pytest.mark.usefixtures("threads"),
]

# The classes that have the keywords.
STORED = list(ELEMENTWISE)
OF_VECTORS = list(STORED)
SCHEDULE_FREE = [name for name in ELEMENTWISE if name.endswith("ScheduleFree")]
STORED += ["Adafactor", "hf.Adafactor", *(["Muon"] if hasattr(goptim, "Muon") else [])]
MODES = {
    "states-float32": {"state_dtype": F32},
    "states-bfloat16": {"state_dtype": BF16},
    "master": {"master_weights": True},
    "master-float32": {"master_weights": True, "state_dtype": F32},
    "kahan": {"rounding": "kahan"},
    "kahan-float32": {"rounding": "kahan", "state_dtype": F32},
    "stochastic": {"rounding": "stochastic", "seed": 2**64 - 3},
    "stochastic-float32": {"rounding": "stochastic", "state_dtype": F32},
}
HALVES = pytest.mark.parametrize("dtype", [BF16, F16], ids=["bfloat16", "float16"])
CORE = [
    ("AdamW", -1, "master-float32", BF16),
    ("AdamW", -1, "kahan", BF16),
    ("SGD", -1, "stochastic", BF16),
    ("SGD", 0, "stochastic-float32", F16),
    ("SGD", -1, "kahan-float32", F16),
    ("Rprop", 0, "states-float32", BF16),
    ("NAdam", -1, "states-bfloat16", F16),
    ("Adagrad", -1, "master", F16),
    ("Lion", 0, "stochastic", BF16),
    ("ASGD", 0, "states-float32", F16),
    ("AdamWScheduleFree", -1, "master-float32", BF16),
    ("SGDScheduleFree", 0, "stochastic", F16),
    ("RAdamScheduleFree", -1, "kahan", BF16),
    ("SGDScheduleFree", -1, "states-bfloat16", BF16),
]
ALL = [(name, i, mode, dtype) for name in OF_VECTORS for i in (0, -1) for mode in MODES for dtype in (BF16, F16)]
CASES = [pytest.param(*c, marks=[] if c in CORE else pytest.mark.full) for c in ALL]


def mix(z: int) -> int:
    """The finalizer of SplitMix64."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def noise(n: int, seed: int, step: int, index: int) -> np.ndarray:
    """A random number of 32 bits for each element in memory."""
    key = mix((mix((mix((seed + 0x9E3779B97F4A7C15) % 2**64) + step) % 2**64) + index) % 2**64)
    i = np.arange(n, dtype=np.uint64)
    x = (key % 2**32 + (key >> 32 | 1) * (i // 32 * 16 + i % 16) & 0xFFFFFFFF).astype(np.uint32)
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x21F0AAAD)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x735A2D97)
    x ^= x >> np.uint32(15)
    return np.where(i // 16 % 2 == 0, x, x << np.uint32(16) | x >> np.uint32(16))


def stochastic(x: Tensor, dtype: torch.dtype, random: np.ndarray) -> Tensor:
    """float32 elements, rounded up in magnitude if their distance to the number below and random / 2**32 reach 1."""
    size = x.to(F64).abs()
    limits = torch.finfo(dtype)
    least = limits.smallest_normal * limits.eps  # the distance of subnormal numbers
    exponent = torch.frexp(size.clamp(min=limits.smallest_normal)).exponent - 1
    unit = torch.ldexp(torch.full_like(size, limits.eps), exponent).clamp(min=least)
    below = (size / unit).floor()
    rest = ((size / unit - below) * 2**32).floor()
    up = rest + torch.from_numpy(random.astype(np.float64)) >= 2**32
    rounded = torch.copysign((below + up) * unit, x.to(F64)).to(dtype)  # exact, or infinite
    return torch.where(x.isfinite(), rounded, x.to(dtype))


def flat(t: Tensor) -> Tensor:
    """The elements in the order of memory."""
    return t.detach().as_strided((t.numel(),), (1,), t.storage_offset())


class Oracle:
    """torch's for-loop on float32 copies, of which what is stored is rounded."""

    def __init__(self, configuration, values, state_dtype=None, master_weights=False, rounding="nearest", seed=0):
        self.narrow = [v.detach().clone() for v in values]
        self.wide = [Parameter(self.widened(v)) for v in values]
        self.optimizer = configuration.theirs(self.wide)
        self.float32 = rows.float32_states(configuration.optimizer)
        self.state_dtype, self.master, self.rounding, self.seed = state_dtype, master_weights, rounding, seed
        self.rest = [torch.zeros_like(v) for v in values]
        self.steps = [0] * len(values)

    @staticmethod
    def widened(t: Tensor) -> Tensor:
        return torch.empty_like(t, dtype=F64 if t.dtype is F64 else F32, requires_grad=False).copy_(t.detach())

    def dtype_of(self, p: Tensor, key: str) -> torch.dtype:
        return p.dtype if p.dtype is F64 else self.state_dtype or (F32 if key in self.float32 else p.dtype)

    @torch.no_grad()
    def read(self):
        """Set the float32 copies to what is stored."""
        for p, wide, rest in zip(self.narrow, self.wide, self.rest, strict=True):
            if not self.master or p.dtype not in (BF16, F16):
                wide.copy_(self.widened(p) + self.widened(rest))

    @torch.no_grad()
    def step(self, grads):
        self.read()
        for wide, g in zip(self.wide, grads, strict=True):
            wide.grad = None if g is None else self.widened(g)
        init = self.optimizer._init_group
        names = [*inspect.signature(init).parameters][1:]
        for group in self.optimizer.param_groups:
            init(group, *([group[name] if isinstance(group.get(name), bool) else [] for name in names]))
        self.round_states()
        with ieee_sqrt():
            self.optimizer.step()
        self.round_states()
        self.store([g is not None for g in grads])

    @torch.no_grad()
    def store(self, stepped):
        """Store the float32 copies of parameters that were stepped."""
        for i, (p, wide, rest, some) in enumerate(zip(self.narrow, self.wide, self.rest, stepped, strict=True)):
            if not some:
                continue
            self.steps[i] += 1
            if p.dtype in (BF16, F16) and self.rounding == "stochastic":
                of = noise(p.numel(), self.seed, self.steps[i], i)
                flat(p).copy_(stochastic(flat(wide), p.dtype, of))
            else:
                p.copy_(wide)
            if p.dtype in (BF16, F16) and self.rounding == "kahan":
                rest.copy_((wide - p.to(F32)).nan_to_num(0.0, 0.0, 0.0))

    def round_states(self):
        for p, wide in zip(self.narrow, self.wide, strict=True):
            for key, t in self.optimizer.state.get(wide, {}).items():
                if key not in SCALARS and isinstance(t, Tensor):
                    t.copy_(t.to(self.dtype_of(p, key)))

    def state(self, i: int) -> dict:
        """The state of a parameter, in the dtypes of goptim's."""
        p, wide = self.narrow[i], self.wide[i]
        state = {
            key: t.to(self.dtype_of(p, key)) if key not in SCALARS and isinstance(t, Tensor) else t
            for key, t in self.optimizer.state.get(wide, {}).items()
        }
        if p.dtype in (BF16, F16) and self.steps[i]:
            if self.master:
                state["master_param"] = wide.detach()
            elif self.rounding == "kahan":
                state["compensation"] = self.rest[i]
            elif self.rounding == "stochastic":
                state.setdefault("step", torch.tensor(float(self.steps[i])))
        return state


def torch_must_not_step(*_):
    raise AssertionError("torch steps, where Go should")


class Pair:
    def __init__(self, configuration, values, **mode):
        self.params = [Parameter(v.detach().clone()) for v in values]
        self.optimizer = configuration.ours(self.params, **mode)
        self.oracle = Oracle(configuration, values, **mode)
        self.steps = 0

    def step(self, grads=None):
        grads = gradients(self.params, self.steps) if grads is None else grads
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g
        with mock.patch("goptim._step.undecorated_step", torch_must_not_step):
            self.optimizer.step()
        self.oracle.step(grads)
        self.steps += 1
        self.compare()

    def compare(self):
        assert_bit_equal(self.params, self.oracle.narrow, f"step {self.steps}: parameters")
        for i, p in enumerate(self.params):
            state, expected = self.optimizer.state.get(p, {}), self.oracle.state(i)
            assert_bit_equal(
                {k: state[k] for k in sorted(state)}, {k: expected[k] for k in sorted(expected)}, f"state {i}"
            )
            for key, t in expected.items():
                if isinstance(t, Tensor) and t.dim():
                    assert state[key].stride() == p.stride(), key


def some_values(dtype):
    """Parameters of 16 bits of several lengths and layouts, with others between them."""
    lengths = [0, 1, 15, 16, 17, 31, 32, 33, 64, 527, 1003]
    return [
        *(normal((n,), dtype, n) for n in lengths),
        normal((5, 3), F32, 1),
        normal((), dtype, 2),
        normal((3, 5, 7, 9), dtype, 3).contiguous(memory_format=torch.channels_last),
        normal((7,), F64, 4),
        normal((33, 31), dtype, 5).t(),
    ]


@pytest.mark.parametrize(("name", "i", "mode", "dtype"), CASES)
def test_every_optimizer(name, i, mode, dtype):
    pair = Pair(TABLE[name][i], some_values(dtype), **MODES[mode])
    for step in range(4):
        grads = gradients(pair.params, step)
        if step == 1:
            grads[5] = None
        pair.step(grads)


@pytest.mark.parametrize("name", SCHEDULE_FREE)
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.covering
def test_train_and_eval(mode, dtype, name):
    """They interpolate what a step reads, and store it as a step does, with other random numbers than all steps."""
    pair = Pair(TABLE[name][-1], some_values(dtype), **MODES[mode])
    opt, oracle = pair.optimizer, pair.oracle
    for step in range(4):
        grads = gradients(pair.params, step)
        if step < 3:
            grads[5] = grads[6] = None
        pair.step(grads)
        for train in (False, False, True) if step % 2 else ():
            switches = opt.param_groups[0]["train_mode"] != train
            oracle.read()
            for of in (opt, oracle.optimizer):
                of.train() if train else of.eval()
            if switches:
                oracle.store(["z" in oracle.optimizer.state.get(wide, {}) for wide in oracle.wide])
            pair.compare()


def test_train_and_eval_of_others():
    """Parameters that torch interpolates, states of other keywords, and errors before anything is written."""
    a, b, c = (Parameter(normal((9,), dtype, i)) for i, dtype in enumerate((BF16, F32, torch.complex64)))
    opt = goptim.SGDScheduleFree([("a", a), ("b", b), ("c", c)], lr=0.1)
    for p in (a, b, c):
        p.grad = torch.ones_like(p)
    opt.train()
    opt.step()
    opt.param_groups[0].update(rounding="kahan", state_dtype=BF16)
    opt.eval()
    assert sorted(opt.state[a]) == ["compensation", "z"]
    assert [opt.state[p]["z"].dtype for p in (a, b, c)] == [BF16, BF16, torch.complex64]
    before = [p.detach().clone() for p in (a, b, c)]
    opt.state[a]["z"] = opt.state[a]["z"].to("meta")
    with pytest.raises(ValueError, match=r"SGDScheduleFree: parameter 0 \(a\) of group 0.*rounding='kahan'.*meta"):
        opt.train()
    assert_bit_equal([p.detach() for p in (a, b, c)], before)
    assert not opt.param_groups[0]["train_mode"]


def fields(dtype):
    """Numbers of every magnitude: parameters, and gradients that change them by about half of the distance of two."""
    limits = torch.finfo(dtype)
    least = limits.smallest_normal * limits.eps
    some = [0.0, least, 3 * least, limits.smallest_normal - least, limits.smallest_normal, 1e-3, 1.0, 300.0, limits.max]
    values = torch.tensor([*some, torch.inf, torch.nan, *(-x for x in some)], dtype=F64).to(dtype)
    return values.repeat_interleave(29)


@HALVES
@pytest.mark.parametrize("mode", [m for m in MODES if "float" not in m])
def test_special_values(mode, dtype):
    values = fields(dtype)
    spread = torch.linspace(-3, 3, len(values), dtype=F32)
    unit = (values.nextafter(torch.tensor(torch.inf, dtype=dtype)).float() - values.float()).nan_to_num(1.0, 1.0, 1.0)
    pair = Pair(TABLE["SGD"][0], [values], **MODES[mode])
    for step in range(3):
        pair.step([(spread.roll(step) * unit / pair.optimizer.param_groups[0]["lr"]).to(dtype)])


@HALVES
@pytest.mark.parametrize("mode", ["stochastic-float32", "kahan", "master"])
def test_threads_and_splits(mode, dtype, threads):
    """Two threads begin in the middle of tensors, at elements that are no multiple of 32."""
    values = [normal((n,), dtype, n) for n in (300_007, 5, 300_001, 70_003)]
    threads(2)
    pair = Pair(TABLE["AdamW"][0], values, **MODES[mode])
    for _ in range(2):
        pair.step()


def test_stochastic_rounding_is_unbiased():
    """The mean of many elements is exact. By chance, one of the six comparisons fails for one seed in 10**5."""
    n = 1 << 16
    for dtype, bits in (BF16, 8), (F16, 11):
        for scale in (1.0, 2.0**-14, 2.0**-20 if dtype is F16 else 2.0**-100):
            p = Parameter(torch.full((n,), scale, dtype=dtype))
            unit = max(scale * 2.0 ** (1 - bits), 2.0**-24 if dtype is F16 else 0.0)
            opt = goptim.SGD([p], lr=unit, rounding="stochastic", seed=3)
            p.grad = torch.linspace(0, -1, n).to(dtype)
            opt.step()
            up = (scale - unit * p.grad.double() - scale) / unit
            error = (p.detach().double() - scale) / unit - up
            assert error.abs().max() <= 1
            assert abs(error.sum()) < 4.9 * (up * (1 - up)).sum().sqrt(), (dtype, scale)


def test_small_updates_are_not_lost():
    """500 updates of 1/256 of the distance of two numbers, which rounding to nearest would all lose."""
    expected = 1 + 500 * 2.0**-15
    for mode in MODES.values():
        p = Parameter(torch.ones(4096, dtype=BF16))
        opt = goptim.SGD([p], lr=1.0, **mode)
        p.grad = torch.full_like(p, -(2.0**-15))
        for _ in range(500):
            opt.step()
        mean = p.detach().double().mean().item()
        if mode.get("rounding") == "stochastic":
            assert abs(mean - expected) < 1e-3, mode  # six standard deviations
        elif "rounding" in mode or "master_weights" in mode:
            assert mean == torch.tensor(expected).to(BF16).item(), mode
        else:
            assert mean == 1.0, mode


def test_the_noise_depends_on_seed_step_and_index():
    def run(seed, index=0, steps=1):
        params = [Parameter(torch.ones(1000, dtype=BF16)) for _ in range(index + 1)]
        opt = goptim.SGD(params, lr=1.0, rounding="stochastic", seed=seed)
        for _ in range(steps):
            params[index].data.fill_(1)
            params[index].grad = torch.full_like(params[index], 2.0**-9)
            opt.step()
        return params[index].detach()

    results = [run(0), run(1), run(1 << 63), run(0, 1), run(0, 0, 2)]
    for i, a in enumerate(results):
        assert torch.equal(a, run(*[(0,), (1,), (1 << 63,), (0, 1), (0, 0, 2)][i]))
        for b in results[:i]:
            assert 400 < (a != b).sum() < 600


def test_groups_have_their_own_storage():
    a, b, c = (Parameter(normal((50,), BF16, i)) for i in range(3))
    opt = goptim.Adam([{"params": [a], "rounding": "kahan"}, {"params": [b]}], state_dtype=F32)
    opt.add_param_group({"params": [c], "master_weights": True})
    assert opt.defaults["state_dtype"] is F32
    assert "rounding" not in opt.defaults
    assert opt.param_groups[0]["rounding"] == "kahan"
    assert "rounding" not in opt.param_groups[1]
    for p in (a, b, c):
        p.grad = normal((50,), BF16, 9)
    opt.step()
    assert [sorted(opt.state[p]) for p in (a, b, c)] == [
        ["compensation", "exp_avg", "exp_avg_sq", "step"],
        ["exp_avg", "exp_avg_sq", "step"],
        ["exp_avg", "exp_avg_sq", "master_param", "step"],
    ]
    assert {t.dtype for p in (a, b, c) for k, t in opt.state[p].items() if k != "compensation"} == {F32}


@pytest.mark.parametrize("mode", [{"master_weights": False}, {"seed": 3}, {"rounding": "nearest"}], ids=str)
def test_keywords_without_effect(mode):
    for name in STORED if mode != {"seed": 3} else ("SGD", "Adafactor"):
        params = make_params(name)
        opt = class_of(name)(params[:1], **({"momentum": 0.9} if name == "SGD" else {}), **mode)
        train(opt, params[:1], 2)
        assert not {"master_param", "compensation"} & opt.state[params[0]].keys()
        assert [row.to for row in goptim.explain(opt)] == ["go"]


def test_unset_keywords_leave_no_trace():
    p = Parameter(normal((9,), BF16, 0))
    p.grad = normal((9,), BF16, 1)
    ours, theirs = goptim.AdamW([p]), torch.optim.AdamW([p])
    assert ours.defaults == theirs.defaults
    assert [*ours.param_groups[0]] == [*theirs.param_groups[0]]
    ours.step()
    assert sorted(ours.state[p]) == ["exp_avg", "exp_avg_sq", "step"]
    assert ours.state[p]["exp_avg"].dtype is BF16
    nothing = goptim.AdamW([p], state_dtype=None, master_weights=None, rounding=None, seed=None)
    assert nothing.defaults == theirs.defaults


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ({"state_dtype": F16}, "state_dtype torch.float16, expected torch.float32 or torch.bfloat16"),
        ({"state_dtype": "float32"}, "state_dtype 'float32', expected"),
        ({"master_weights": 1}, "master_weights 1, expected True or False"),
        ({"rounding": "up"}, "rounding 'up', expected 'nearest', 'stochastic' or 'kahan'"),
        ({"rounding": "stochastic", "seed": -1}, "seed -1, expected an int from 0 to"),
        ({"rounding": "stochastic", "seed": 1.0}, "seed 1.0, expected an int"),
        ({"rounding": "kahan", "master_weights": True}, "rounding 'kahan' with master_weights, expected 'nearest'"),
    ],
)
def test_wrong_keywords(mode, says):
    p = Parameter(torch.ones(3, dtype=BF16))
    with pytest.raises(ValueError, match=f"Adam: group 0: {says}".replace("(", r"\(")):
        goptim.Adam([p], **mode)
    opt = goptim.Adam([p])
    with pytest.raises(ValueError, match="Adam: group 1: "):
        opt.add_param_group({"params": [Parameter(torch.ones(1))], **mode})
    opt.param_groups[0].update(mode)
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=f"group 0: {says}|{says}"):
        opt.step()
    assert torch.equal(p.detach(), torch.ones(3, dtype=BF16))
    assert not opt.state


class Sub(Tensor):
    pass


def refused():
    """Parameters of 16 bits that cannot be stepped in Go, with the other arguments and the reason."""

    def dense(p, **more):
        p.grad = torch.ones_like(p)
        return p, more

    def sparse():
        p = Parameter(torch.ones(4, 2, dtype=BF16))
        p.grad = torch.sparse_coo_tensor(
            torch.tensor([[1]]), torch.ones(1, 2, dtype=BF16), (4, 2), check_invariants=False
        )
        return p, {}

    def meta():
        p = Parameter(torch.ones(4, dtype=BF16, device="meta"))
        return dense(p)

    def gaps():
        return dense(torch.ones(8, dtype=BF16)[::2].requires_grad_())

    p = lambda: Parameter(torch.ones(4, dtype=BF16))  # noqa: E731
    yield "foreach", dense(p(), foreach=True), "foreach=True"
    yield "for-loop", dense(p(), foreach=False, fused=False), "foreach=False and fused=False"
    yield "tensor lr", dense(p(), lr=torch.tensor(0.1)), "lr is a Tensor"
    yield "differentiable", dense(p(), differentiable=True), "differentiable"
    yield "sparse", sparse(), "sparse"
    yield "meta", meta(), "meta"
    yield "gaps", gaps(), "gaps"
    yield "subclass", dense(torch.ones(4, dtype=BF16).as_subclass(Sub).requires_grad_()), "Sub"


REFUSED = {name: (p, says) for name, p, says in refused()}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mode", ["master", "kahan", "stochastic", "states-float32"])
def test_parameters_that_cannot_run_in_go_are_refused(mode, name):
    (p, more), says = REFUSED[name]
    other = Parameter(torch.ones(4, dtype=BF16))
    other.grad = torch.ones_like(other)
    opt = goptim.SGD([("other", other), ("it", p)], momentum=0.9, **more, **MODES[mode])
    before = opt.state_dict()
    with pytest.raises(ValueError, match=rf"SGD: parameter . \({'other' if more else 'it'}\) of group 0.*{says}"):
        opt.step()
    assert torch.equal(other.detach(), torch.ones(4, dtype=BF16))
    assert_bit_equal(opt.state_dict()["state"], before["state"])
    row = goptim.explain(opt)[1]
    assert row.to == "error"
    assert says in row.reason


@pytest.mark.parametrize("mode", MODES)
def test_unaffected_parameters_still_fall_back(mode):
    """float32 parameters, which the roundings do not concern, may be anything that torch supports."""
    p, q = Parameter(torch.ones(4, 2)), Parameter(torch.ones(4, dtype=BF16))
    p.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (4, 2), check_invariants=False)
    q.grad = torch.ones_like(q)
    opt = goptim.SGD([torch.ones(3, dtype=torch.complex64, requires_grad=True), p, q], lr=0.5, **MODES[mode])
    opt.param_groups[0]["params"][0].grad = torch.ones(3, dtype=torch.complex64)
    opt.step()
    assert torch.equal(opt.param_groups[0]["params"][0].detach(), torch.full((3,), 0.5 + 0j))
    assert p[1].tolist() == [0.5, 0.5]
    assert q.tolist() == [0.5] * 4
    if "rounding" in MODES[mode] and MODES[mode]["rounding"] == "stochastic":
        assert opt.state[q]["step"] == 1
        assert not opt.state.get(p)


def test_scaled_and_dispatched_steps_are_refused():
    p = Parameter(torch.ones(4, dtype=BF16))
    p.grad = torch.ones_like(p)
    opt = goptim.Adam([p], rounding="kahan")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Mode(), pytest.raises(ValueError, match=r"parameter 0 of group 0.*rounding='kahan'.*dispatch mode"):
        opt.step()
    assert torch.equal(p.detach(), torch.ones(4, dtype=BF16))
    assert not opt.state


def train(opt, params, steps, first=0):
    for i in range(first, first + steps):
        for k, p in enumerate(params):
            p.grad = normal(tuple(p.shape), F32, 100 * i + k).to(p.dtype)
        opt.step()


def plain(opt, params):
    states = [opt.state.get(p, {}) for p in params]
    return [[p.detach().clone() for p in params], [{key: state[key] for key in sorted(state)} for state in states]]


def make_params(name=""):
    shapes = [(50,), (7, 5), (33,)] if name != "Muon" else [(10, 5), (7, 5), (3, 11)]
    return [Parameter(normal(s, dtype, i)) for i, (s, dtype) in enumerate(zip(shapes, (BF16, F32, F16), strict=True))]


def test_copies_of_sparse_adam(tmp_path):
    def run(opt, params, first):
        for i in range(first, first + 2):
            for p in params:
                index = torch.tensor([[i % 5, 6, 1]])
                p.grad = torch.sparse_coo_tensor(index, normal((3, 5), p.dtype, i), p.shape, check_invariants=False)
            opt.step()

    for mode in MODES.values():
        params = [Parameter(normal((7, 5), dtype, i)) for i, dtype in enumerate((BF16, F32, F16))]
        make = lambda params, mode=mode: goptim.SparseAdam(params, **mode)  # noqa: E731
        opt = make(params)
        run(opt, params, 0)
        others = [COPIES[how](opt, make, *((tmp_path / "state",) if how == "file" else ())) for how in COPIES]
        run(opt, params, 2)
        for other in others:
            copied = other.param_groups[0]["params"]
            run(other, copied, 2)
            assert_bit_equal(plain(other, copied), plain(opt, params))


def by_state_dict(opt, make):
    params = [Parameter(p.detach().clone()) for p in opt.param_groups[0]["params"]]
    other = make(params)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))  # which torch would share
    return other


def by_torch_save(opt, make):
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    params = [Parameter(p.detach().clone()) for p in opt.param_groups[0]["params"]]
    other = make(params)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def by_file(opt, make, path):
    goptim.save_state(opt, path)
    params = [Parameter(p.detach().clone()) for p in opt.param_groups[0]["params"]]
    other = make(params)
    goptim.load_state(other, path)
    return other


COPIES = {
    "state_dict": by_state_dict,
    "torch.save": by_torch_save,
    "file": by_file,
    "deepcopy": lambda opt, make: copy.deepcopy(opt),
    "pickle": lambda opt, make: pickle.loads(pickle.dumps(opt)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "SGD" else pytest.mark.full) for n in STORED])
def test_copies_continue_the_run(name, mode, how, tmp_path):
    if how == "file" and name == "hf.Adafactor":
        return  # which files do not hold
    options = {"SGD": {"momentum": 0.9}, "Adafactor": {"eps": (1e-7, 1e-3)}}.get(name, {})
    params = make_params(name)
    make = lambda params: class_of(name)(params, **options, **MODES[mode])  # noqa: E731
    opt = make(params)
    train(opt, params, 3)
    more = (tmp_path / "state",) if how == "file" else ()
    other = COPIES[how](opt, make, *more)
    copied = other.param_groups[0]["params"]
    assert_bit_equal(plain(other, copied), plain(opt, params))
    train(opt, params, 3, first=3)
    train(other, copied, 3, first=3)
    assert_bit_equal(plain(other, copied), plain(opt, params))
    assert {k: v for k, v in other.param_groups[0].items() if k != "params"} == {
        k: v for k, v in opt.param_groups[0].items() if k != "params"
    }


@pytest.mark.parametrize("how", ["state_dict", "file"])
@pytest.mark.parametrize("mode", MODES)
def test_keywords_are_loaded_unless_set(mode, how, tmp_path):
    params = make_params()
    opt = goptim.AdamW(params, **MODES[mode])
    train(opt, params, 2)
    more = (tmp_path / "state",) if how == "file" else ()
    other = COPIES[how](opt, goptim.AdamW, *more)
    assert goptim._storage.given(other.param_groups[0]) == MODES[mode]
    assert_bit_equal(plain(other, other.param_groups[0]["params"]), plain(opt, params))
    own = COPIES[how](opt, lambda params: goptim.AdamW(params, rounding="nearest"), *more)
    assert goptim._storage.given(own.param_groups[0]) == {"rounding": "nearest"}


@pytest.mark.parametrize("after", MODES)
@pytest.mark.parametrize("before", ["torch", *MODES])
def test_runs_go_on_with_other_keywords(before, after):
    params = make_params()
    of_torch = before == "torch"
    opt = torch.optim.AdamW(params) if of_torch else goptim.AdamW(params, **MODES[before])
    train(opt, params, 2)
    other = by_state_dict(opt, lambda params: goptim.AdamW(params, **MODES[after]))
    copied = other.param_groups[0]["params"]
    exact = [p.detach().float() for p in params]
    for i, p in enumerate(params):
        state = opt.state[p]
        exact[i] = state.get("master_param", exact[i]) + state.get("compensation", torch.zeros(())).float()
    for p in copied:
        p.grad = torch.zeros_like(p)
    for group in other.param_groups:
        group["lr"] = 0.0
    other.step()
    for i, p in enumerate(copied):
        state, dtype = other.state[p], MODES[after].get("state_dtype", p.dtype)
        assert state["exp_avg"].dtype is dtype
        assert state["exp_avg_sq"].dtype is dtype
        extra = {"master_param", "compensation"} & state.keys()
        if p.dtype is F32:
            assert not extra
        elif "master_weights" in MODES[after]:
            assert extra == {"master_param"}
            assert torch.equal(state["master_param"], exact[i])
        elif MODES[after].get("rounding") == "kahan":
            assert extra == {"compensation"}
            near = p.detach().float() + state["compensation"].float()
            assert torch.allclose(near, exact[i], rtol=1e-4, atol=0)
        else:
            assert not extra
    reference = torch.optim.AdamW([Parameter(p.detach().clone()) for p in copied])
    reference.load_state_dict(other.state_dict())
    assert reference.state[reference.param_groups[0]["params"][0]]["exp_avg"].dtype is BF16
    train(reference, reference.param_groups[0]["params"], 1)


def test_what_is_written_to_a_parameter_is_not_undone():
    """A model that is loaded without its optimizer's state, and single elements that a program changes."""
    p = Parameter(normal((100,), BF16, 0))
    opt = goptim.SGD([p], lr=2.0**-12, master_weights=True)
    train(opt, [p], 3)
    master = opt.state[p]["master_param"].clone()
    p.data[7] = 3.0
    p.grad = torch.zeros_like(p)
    opt.step()
    expected = master.clone()
    expected[7] = 3.0
    assert_bit_equal(opt.state[p]["master_param"], expected)
    loaded = normal((100,), BF16, 5)
    with torch.no_grad():
        p.copy_(loaded)
    p.grad = torch.zeros_like(p)
    opt.step()
    assert_bit_equal(p.detach(), loaded)
    assert_bit_equal(opt.state[p]["master_param"].to(BF16), loaded)


def test_versions_count_what_is_written():
    for mode in MODES.values():
        p = Parameter(normal((50,), BF16, 0))
        opt = goptim.Adam([p], **mode)
        train(opt, [p], 2)
        before = {key: t._version for key, t in opt.state[p].items()} | {"p": p._version}
        train(opt, [p], 1)
        after = {key: t._version for key, t in opt.state[p].items()} | {"p": p._version}
        assert all(after[key] > before[key] for key in before), mode


@pytest.mark.parametrize(
    "name", ["AdamW", *(pytest.param(n, marks=pytest.mark.full) for n in STORED if n.endswith(("Adafactor", "Muon")))]
)
@pytest.mark.parametrize("mode", ["master", "kahan", "stochastic-float32"])
def test_around_a_step(mode, name):
    """Clipping, averages and clearing, in calls of their own."""
    runs = []
    for together in (True, False):
        params = make_params(name)
        opt = class_of(name)(params, **({"eps": (1e-7, 1e-3)} if name == "Adafactor" else {}), **MODES[mode])
        ema = goptim.EMA(params, decay=0.9)
        for i in range(3):
            for k, p in enumerate(params):
                p.grad = normal(tuple(p.shape), F32, 100 * i + k).to(p.dtype)
            if together:
                opt.step(max_grad_norm=0.5, ema=ema, zero_grad=True)
            else:
                torch.nn.utils.clip_grad_norm_(params, 0.5)
                opt.step()
                ema.update()
                opt.zero_grad(set_to_none=False)
        runs.append([plain(opt, params), [p.grad for p in params]])
    assert_bit_equal(*runs)


@pytest.mark.skipif(torch.__version__ < "2.15", reason="the options of an older torch are others")
def test_files_for_go_are_fresh():
    for name, data in golden.stored_runs().items():
        assert (golden.STORED_PATH / name).read_bytes() == data, "run `make golden`"


def test_signatures_and_patched_classes():
    for name in STORED:
        named = [x.name for x in inspect.signature(class_of(name)).parameters.values() if x.kind != x.VAR_KEYWORD]
        assert named[-4:] == [
            "state_dtype",
            "master_weights",
            "rounding",
            "seed",
        ], name
    p = Parameter(torch.ones(3, dtype=BF16))
    with goptim.patch():
        assert isinstance(torch.optim.AdamW([p]), goptim.AdamW)
        with pytest.raises(TypeError, match="rounding"):
            torch.optim.AdamW([p], rounding="kahan")


def test_other_optimizers_refuse_the_keywords():
    p = Parameter(torch.ones(3, 3))
    with pytest.raises(TypeError, match="rounding"):
        goptim.LBFGS([p], rounding="kahan")


def ema_pairs(dtype):
    """Averages and parameters of 16 bits, with others between them that Go or torch averages."""
    for k in (0, 50):
        yield [
            *(normal((n,), dtype, n + k) for n in (0, 1, 31, 33, 1003)),
            normal((5,), F32, k),
            normal((8,), F32, k)[::2],
            normal((33, 31), dtype, 5 + k).t(),
            normal((9,), F64, k),
        ]


@HALVES
@pytest.mark.parametrize("n", [1, 2])
def test_averages(dtype, n, threads):
    """The lerp of float32 copies, rounded as in docs/half.md, with the index of an average in its list."""
    threads(n)
    averages, params = ema_pairs(dtype)
    averages[4], params[4] = normal((300_007,), dtype, 1), normal((300_007,), dtype, 2)
    expected = [a.clone() for a in averages]
    with ieee_sqrt():
        for step, decay in enumerate((0.9, 0.999, 0.25, 1.0, 0.0), 1):
            goptim.ema_(averages, params, decay, rounding="stochastic", seed=7, step=step)
            for i, (a, p) in enumerate(zip(expected, params, strict=True)):
                if a.dtype is not dtype:
                    a.lerp_(p, 1 - decay)
                    continue
                wide = Oracle.widened(a).lerp_(Oracle.widened(p), 1 - decay)
                flat(a).copy_(stochastic(flat(wide), dtype, noise(a.numel(), 7, step, i)))
            assert_bit_equal(averages, expected, f"decay {decay}")
    assert averages[4]._version == 5


def test_averages_follow_small_changes():
    """With a decay of 0.999, an average that is rounded to nearest stays where it is."""
    p, runs = torch.full((4096,), 1.5, dtype=BF16), []
    for rounding in ("nearest", "stochastic"):
        ema = goptim.EMA(torch.ones(4096, dtype=BF16), 0.999, rounding=rounding)
        ema.params = (p,)
        for _ in range(500):
            ema.update()
        runs.append(ema.averages[0].double().mean().item())
    assert runs[0] == 1.0
    assert abs(runs[1] - (1.5 - 0.5 * 0.999**500)) < 2e-3


def test_averages_in_a_step():
    """After the step, with the number of the update, which is saved."""
    runs = []
    for way in ("step", "update", "loaded"):
        p = Parameter(normal((100,), BF16, 0))
        opt = goptim.AdamW([p], lr=0.1)
        ema = goptim.EMA(p, 0.99, rounding="stochastic", seed=3)
        for i in range(4):
            p.grad = normal((100,), BF16, i)
            if way == "step":
                opt.step(ema=ema)
            else:
                opt.step()
                ema.update()
            if way == "loaded":
                saved = copy.deepcopy(ema.state_dict())
                ema = goptim.EMA(p, 0.5, rounding="stochastic", seed=3)
                ema.load_state_dict(saved)
                ema = pickle.loads(pickle.dumps(ema))
                ema.params = (p,)
        assert ema.updates == 4
        assert ema.state_dict()["num_updates"] == 4
        runs.append(ema.averages)
    assert_bit_equal(runs[0], runs[1])
    assert_bit_equal(runs[0], runs[2])
    assert "num_updates" not in goptim.EMA(p, 0.99).state_dict()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rounding": "up"}, "rounding 'up', expected 'nearest' or 'stochastic'"),
        ({"rounding": "stochastic", "step": 1, "form": "mul_add"}, "with the form 'mul_add', expected the form 'lerp'"),
        ({"rounding": "stochastic"}, "step None with rounding 'stochastic', expected the number of the update"),
        ({"rounding": "stochastic", "step": 0}, "step 0 with rounding 'stochastic'"),
        ({"rounding": "stochastic", "step": 1, "seed": -1}, "seed -1, expected an int from 0"),
    ],
)
def test_wrong_arguments_of_averages(options, says):
    a = torch.ones(3, dtype=BF16)
    with pytest.raises(ValueError, match=f"ema_: .*{says}"):
        goptim.ema_([a], [a + 1], 0.9, **options)
    assert a.tolist() == [1, 1, 1]
    if set(options) <= {"rounding", "seed"} and "step" not in says:
        with pytest.raises(ValueError, match=says):
            goptim.EMA(a, 0.9, **options)


def test_averages_that_cannot_run_in_go(monkeypatch):
    """An error before anything is written, because torch would round in another way."""
    a, b = torch.ones(3, dtype=BF16), torch.ones(8, dtype=BF16)[::2]
    p, q = a + 1, b + 1
    with pytest.raises(ValueError, match=r"ema_: averages: tensor 1, of shape \(4,\) and torch.bfloat16: stochastic"):
        goptim.ema_([a, b], [p, q], 0.5, rounding="stochastic", step=1)
    monkeypatch.setattr("goptim._lists.core_here", lambda: None)
    with pytest.raises(ValueError, match="tensor 0, of shape"):
        goptim.ema_([a], [p], 0.5, rounding="stochastic", step=1)
    assert a.tolist() == [1, 1, 1]
    c = torch.ones(3)
    goptim.ema_([c], [c + 1], 0.5, rounding="stochastic", step=1)
    assert c.tolist() == [1.5] * 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["SGD", "AdamWScheduleFree"])
@pytest.mark.filterwarnings("ignore")  # torch 2.6 has several for one process
def test_distributed_checkpoints(name, mode, tmp_path):
    """torch.distributed.checkpoint makes states by a step with a learning rate of 0, and loads into them."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def make(values):
        model = torch.nn.ParameterList(values)
        options = {"momentum": 0.9} if name == "SGD" else {}
        return model, class_of(name)(model.parameters(), lr=0.01, **options, **MODES[mode])

    model, opt = make(make_params())
    train(opt, [*model], 3)
    dcp.save({"optimizer": get_optimizer_state_dict(model, opt)}, checkpoint_id=tmp_path)
    again, other = make([p.detach().clone() for p in model])
    loaded = {"optimizer": get_optimizer_state_dict(again, other)}
    dcp.load(loaded, checkpoint_id=tmp_path)
    set_optimizer_state_dict(again, other, loaded["optimizer"])
    assert_bit_equal(plain(other, [*again]), plain(opt, [*model]))
    train(opt, [*model], 2, first=3)
    train(other, [*again], 2, first=3)
    assert_bit_equal(plain(other, [*again]), plain(opt, [*model]))


@pytest.mark.full
@pytest.mark.parametrize("name", ["hf.Adafactor", "SGDScheduleFree", "SparseAdam"])
def test_other_classes_go_on_with_other_keywords(name):
    """The dtypes of docs/half.md's table, after a load and a step."""
    tensors = {"hf.Adafactor": "exp_avg_sq_row", "SGDScheduleFree": "z", "SparseAdam": "exp_avg"}

    def step(opt):
        for i, p in enumerate(opt.param_groups[0]["params"]):
            p.grad = normal(tuple(p.shape), p.dtype, i)
            if name == "SparseAdam":
                p.grad = p.grad.to_sparse(1)
        with mock.patch("goptim._step.undecorated_step", torch_must_not_step):
            opt.step()

    for before in ({}, *MODES.values()):
        opt = class_of(name)(
            [Parameter(normal((7, 5), dtype, i)) for i, dtype in enumerate((BF16, F32, F16))], **before
        )
        step(opt)
        step(opt)
        for after in MODES.values():
            other = by_state_dict(opt, lambda params, after=after: class_of(name)(params, **after))
            step(other)
            if name == "SGDScheduleFree":
                other.eval()
            for p in other.param_groups[0]["params"]:
                state, natural = other.state[p], F32 if name == "hf.Adafactor" else p.dtype
                assert state[tensors[name]].dtype is after.get("state_dtype", natural), (before, after, p.dtype)
                extra = {key: state[key].dtype for key in ("master_param", "compensation") if key in state}
                expected = {"master_param": F32} if "master_weights" in after else {}
                expected |= {"compensation": p.dtype} if after.get("rounding") == "kahan" else {}
                assert extra == (expected if p.dtype is not F32 else {}), (before, after, p.dtype)
