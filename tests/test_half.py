"""16-bit parameters in Go: computed in float32, and every stored element rounded once to nearest even.

The oracle is torch's for-loop with IEEE square roots on float32 copies of the parameters and their states, of which
every element is rounded to 16 bits after each step. Its scalars are those of float32 parameters: they have the dtype
that torch gives them for 16 bits (step, mu_product, eta and mu are float32 before a load_state_dict), and a number such
as eps or 1 - beta2 is rounded to float32, not to 16 bits as in torch's for-loop. A state that torch fills with a number
when it creates it, such as Rprop's step_size, is rounded before the first step. A state that is float32 in Go for 16
bits, as in bitsandbytes, is not rounded. torch's fused kernels have the same
results, for whole vectors.
"""

import copy
import inspect
import itertools
import pickle
from unittest import mock

import pytest
import rows
import torch
from configurations import (
    CONFIGURATIONS,
    ELEMENTWISE,
    NEEDS_FMA,
    NEEDS_FUSED,
    TABLE,
    Configuration,
    both_classes,
    gradients,
    in_16_bits,
    needs_late_state,
    normal,
    oracle_of,
)
from torch import Tensor
from torch.nn import Parameter

import goptim
from goptim import _native
from goptim.testing import assert_bit_equal, ieee_sqrt

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)
SCALARS = ("step", "mu_product", "eta", "mu", "exp_avg_lr_2")  # scalar states

pytestmark = [
    NEEDS_FMA,
    pytest.mark.usefixtures("threads"),
]

HALVES = pytest.mark.parametrize("dtype", [BF16, F16], ids=["bfloat16", "float16"])
EVERY = [in_16_bits(c) for c in CONFIGURATIONS if c.optimizer in ELEMENTWISE]
# The default configuration of every optimizer and that with every flag.
FEW = [in_16_bits(TABLE[name][i]) for name in ELEMENTWISE for i in (0, -1)]
# A single division and root; a state that is new in the first step; scalar states; more than one state; comparisons.
SOME = [TABLE[name][-1] for name in ("AdamW", "SGD", "NAdam", "RMSprop", "Rprop")]
SHORT = [0, 1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 1003, ()]
STEPS = 10


def full_unless(cases: list, core: list) -> list:
    """All cases, of which those that are not in core are marked full."""
    return [c if c in core else pytest.param(c, marks=pytest.mark.full) for c in cases]


def widened(t: Tensor) -> Tensor:
    """A copy with the same strides, in float32 if it has 16 bits."""
    dtype = F32 if t.dtype in (BF16, F16) else t.dtype
    return torch.empty_like(t, dtype=dtype, requires_grad=False).copy_(t.detach())


def leaves(values):
    return [v.detach().clone().requires_grad_() for v in values]


class Wide:
    """torch's for-loop on float32 copies of parameters, which are rounded after each step with their states."""

    def __init__(self, configuration: Configuration, values: list[Tensor]) -> None:
        self.dtypes = [v.dtype for v in values]
        self.params = [widened(v).requires_grad_() for v in values]
        self.optimizer = configuration.theirs(self.params)
        self.exact = {*SCALARS, *rows.float32_states(configuration.optimizer)}  # the states that are not rounded
        self.round()

    def add_group(self, configuration: Configuration, values: list[Tensor]) -> None:
        group = [widened(v).requires_grad_() for v in values]
        self.dtypes += [v.dtype for v in values]
        self.params += group
        self.optimizer.add_param_group({"params": group, **configuration.options})
        self.round()

    def step(self, grads: list[Tensor | None]) -> None:
        for p, g in zip(self.params, grads, strict=True):
            p.grad = None if g is None else widened(g)
        self.create_states()
        self.round()
        with ieee_sqrt():
            self.optimizer.step()
        self.round()

    def load(self, state_dict) -> None:
        """Load a state_dict. torch converts all states except step to the dtype of the parameter."""
        self.optimizer.load_state_dict(copy.deepcopy(state_dict))
        for p, dtype in zip(self.params, self.dtypes, strict=True):
            of = self.optimizer.state.get(p, {})
            of.update({key: of[key].to(dtype) for key in SCALARS[1:4] if key in of})

    def create_states(self) -> None:
        """Create new states with torch's own code."""
        init = self.optimizer._init_group
        names = [*inspect.signature(init).parameters][1:]
        for group in self.optimizer.param_groups:
            lists = [group[name] if isinstance(group.get(name), bool) else [] for name in names]  # torch 2.6's amsgrad
            with torch.no_grad():
                init(group, *lists)

    @torch.no_grad()
    def round(self) -> None:
        for p, dtype in zip(self.params, self.dtypes, strict=True):
            states = self.optimizer.state[p].items() if p in self.optimizer.state else ()
            for t in (p, *(t for key, t in states if key not in self.exact and isinstance(t, Tensor))):
                t.copy_(t.to(dtype))

    def narrow_params(self) -> list[Tensor]:
        return [p.to(dtype) for p, dtype in zip(self.params, self.dtypes, strict=True)]

    def narrow_state(self):
        """The state of a state_dict, in the dtypes of the parameters."""
        return {
            i: {
                key: t.to(self.dtypes[i]) if isinstance(t, Tensor) and key not in self.exact else t
                for key, t in of.items()
            }
            for i, of in states_of(self.optimizer).items()
        }


def states_of(optimizer):
    """The states by the numbers of the parameters, which are tensors also if a state_dict has other forms."""
    numbers = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    return {numbers[p]: of for p, of in optimizer.state.items()}


def must_not_step(*_):
    raise AssertionError("torch steps, where Go should")


class Pair:
    """16-bit parameters with an optimizer of goptim, and their oracle."""

    def __init__(self, configuration, values, **flags):
        self.params = leaves(values)
        self.optimizer = configuration.ours(self.params, **flags)
        self.oracle = Wide(configuration, values)
        self.steps = 0

    def add_group(self, configuration, values):
        group = leaves(values)
        self.params += group
        self.optimizer.add_param_group({"params": group, **configuration.options})
        self.oracle.add_group(configuration, values)

    def step(self, grads=None):
        grads = gradients(self.params, self.steps) if grads is None else grads
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g
        before = copy.deepcopy(grads)
        with mock.patch("goptim._step.undecorated_step", must_not_step):
            self.optimizer.step()
        self.oracle.step(grads)
        self.steps += 1
        assert_bit_equal(grads, before, "gradients")
        self.compare()

    def compare(self):
        assert_bit_equal(self.params, self.oracle.narrow_params(), f"step {self.steps}: parameters")
        state, expected = states_of(self.optimizer), self.oracle.narrow_state()
        assert_bit_equal(state, expected, f"step {self.steps}: state")
        assert [[t.stride() for t in s.values() if isinstance(t, Tensor)] for s in state.values()] == [
            [t.stride() for t in s.values() if isinstance(t, Tensor)] for s in expected.values()
        ]

    def run(self, steps=STEPS):
        for _ in range(steps):
            self.step()


def short(dtype, lengths=SHORT):
    return [normal(n if n == () else (n,), dtype, i) for i, n in enumerate(lengths)]


@HALVES
@pytest.mark.parametrize("configuration", full_unless(EVERY, FEW), ids=str)
def test_every_configuration(configuration, dtype):
    Pair(configuration, short(dtype)).run()


@HALVES
@pytest.mark.parametrize("configuration", full_unless(EVERY, SOME), ids=str)
def test_long(configuration, dtype):
    Pair(configuration, short(dtype, [70_001])).run(5)


@HALVES
@pytest.mark.parametrize("configuration", full_unless(EVERY, SOME), ids=str)
def test_special_values(configuration, dtype):
    """All pairs of special values as parameter and gradient, and many more in the state."""
    limits = torch.finfo(dtype)
    least = limits.tiny * limits.eps
    positive = [0.0, least, 3 * least, limits.tiny - least, limits.tiny, 1e-5, limits.eps, 1.0, 1e4, 0.75 * limits.max]
    some = [*positive, limits.max, torch.inf, torch.nan]
    some = torch.tensor([*some, *(-x for x in some)], dtype=F64).to(dtype)
    values, grads = torch.cartesian_prod(some, some).t().contiguous()
    positive_zeros = values + 0.0  # torch.maximum(0.0, -0.0) depends on the position of the element
    if configuration.options.get("betas", (1,))[0] == 0:
        grads = grads + 0.0  # and so does torch.lerp(0.0, -0.0, 1.0)
    pair = Pair(configuration, [values])
    for step in range(STEPS):
        pair.step([grads.roll(step)])
        if step == 0 and configuration.options.get("clipping_threshold") is None:  # which makes all NaN
            kinds = (Tensor.isnan, Tensor.isfinite, Tensor.signbit)
            assert all(kind(pair.params[0]).any() for kind in kinds)
        for state in (*pair.optimizer.state.values(), *pair.oracle.optimizer.state.values()):
            for k, column in enumerate(state.values()):
                if isinstance(column, Tensor) and column.shape == values.shape:
                    column[step::7] = positive_zeros.roll(5 * step + 29 * k)[step::7]
    tiny = Pair(configuration, [normal((1003,), dtype, 0) * limits.tiny])
    for step in range(STEPS):
        tiny.step([normal((1003,), dtype, step) * limits.tiny**0.5])


@HALVES
def test_overflow_at_the_store(dtype):
    """A sum that float32 can represent becomes infinite, or the largest number, as rounding to nearest requires."""
    limits = torch.finfo(dtype)
    half = limits.max - torch.tensor(limits.max, dtype=F64).to(dtype).nextafter(torch.tensor(0.0, dtype=dtype)).item()
    p = Parameter(torch.full((40,), limits.max, dtype=dtype))
    p.grad = torch.full((40,), -half / 2, dtype=dtype)
    p.grad[:20] = -half / 4
    goptim.SGD([p], lr=1.0).step()
    assert p[:20].tolist() == [limits.max] * 20
    assert p[20:].isposinf().all()


@HALVES
def test_ties_are_rounded_to_even(dtype):
    eps = torch.finfo(dtype).eps
    p = Parameter(1 + eps * torch.arange(64, dtype=F32).to(dtype))
    before = p.detach().clone()
    p.grad = torch.full((64,), -eps / 2, dtype=dtype)
    goptim.SGD([p], lr=1.0).step()
    assert_bit_equal(p, before + eps * (torch.arange(64) % 2).to(dtype))


@HALVES
@pytest.mark.parametrize("configuration", full_unless(FEW, SOME), ids=str)
def test_layouts(configuration, dtype):
    values = [
        normal((33, 31), dtype, 0),
        normal((33, 31), dtype, 1).t(),
        normal((3, 5, 7, 9), dtype, 2).contiguous(memory_format=torch.channels_last),
        normal((3, 5, 7, 9), dtype, 3).permute(2, 0, 3, 1),
        normal((3, 1, 1, 9), dtype, 4).contiguous(memory_format=torch.channels_last),
        normal((2, 3, 4, 5, 6), dtype, 5).contiguous(memory_format=torch.channels_last_3d),
        normal((2, 1, 3, 2, 1, 2, 4), dtype, 6).permute(6, 0, 2, 1, 3, 4, 5),
        normal((7, 0, 3), dtype, 7),
    ]
    pair = Pair(configuration, values)
    assert [p.stride() for p in pair.params] == [v.stride() for v in values]
    pair.run(4)


@pytest.mark.parametrize("offset", range(9))
def test_addresses(offset):
    """Parameters at any address that is a multiple of two bytes, next to others in the same storage."""
    configuration = TABLE["AdamW"][-1]
    memory = normal((120,), BF16, 0)
    pair = Pair(configuration, [memory[offset : offset + 50]])
    flat = memory.clone()
    pair.params[0].data = flat[offset : offset + 50]
    pair.run(3)
    assert_bit_equal(flat[:offset], memory[:offset])
    assert_bit_equal(flat[offset + 50 :], memory[offset + 50 :])


@pytest.mark.parametrize(
    ("configuration", "dtype", "n"),
    [
        pytest.param(c, (BF16, F16)[i // 2 % 2], i % 2 + 1, id=str(c), marks=() if c in SOME[:2] else pytest.mark.full)
        for i, c in enumerate(FEW)
    ],
)
def test_threads(configuration, n, dtype, threads):
    """More than half a million elements, for which Go uses as many threads as torch."""
    threads(n)
    Pair(configuration, [normal((m,), dtype, i) for i, m in enumerate([300_001, 5, 300_001, 0, 70_001])]).run(3)


@HALVES
@pytest.mark.parametrize("configuration", SOME, ids=str)
def test_gradients_come_and_go(configuration, dtype):
    pair = Pair(configuration, [normal((20,), dtype, i) for i in range(4)])
    for step in range(STEPS):
        # The first gradient comes late, the second never, the third sometimes.
        grads = gradients(pair.params, step)
        grads[0] = grads[0] if step > 3 else None
        grads[1] = None
        grads[2] = grads[2] if step % 3 else None
        pair.step(grads)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_groups_of_all_dtypes(name):
    """Float32, float64 and both 16-bit dtypes, in one group and in groups of their own with other options."""
    needs_late_state(name)
    row = [in_16_bits(c) for c in TABLE[name]]
    pair = Pair(row[0], [normal((19,), dtype, i) for i, dtype in enumerate((F32, BF16, F16, F64, BF16))])
    for i, dtype in enumerate((BF16, F32, F16)):
        pair.add_group(row[-1 - i], [normal((21,), dtype, 2 * i), normal((4, 3), dtype, 2 * i + 1)])
    pair.run(5)


@HALVES
@pytest.mark.parametrize("configuration", SOME, ids=str)
def test_learning_rate_schedules(configuration, dtype):
    pair = Pair(configuration, [normal((37,), dtype, 0)])
    momentum = bool({"momentum", "betas"} & {*pair.optimizer.defaults})
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=STEPS + 1, cycle_momentum=momentum)
        for o in (pair.optimizer, pair.oracle.optimizer)
    ]
    for _ in range(STEPS):
        pair.step()
        for scheduler in schedulers:
            scheduler.step()


@HALVES
@pytest.mark.parametrize("configuration", SOME, ids=str)
def test_steps_counted_in_float64(configuration, dtype, double_default):
    Pair(configuration, [normal((37,), dtype, 0)]).run()


@NEEDS_FUSED
@pytest.mark.skipif(OLD, reason="torch 2.6's fused kernels of SGD and Adagrad have other results for 16 bits")
@HALVES
@pytest.mark.parametrize("configuration", [c for c in EVERY if "fused" in c.path_flags() and not c.unusual], ids=str)
@pytest.mark.covering
def test_fused_kernels_of_torch(configuration, dtype):
    """With an unmodified torch, on one thread and with whole vectors, because torch rounds the tail differently."""
    values = [normal((n,), dtype, n) for n in (32, 96, 1600, 70_016)]
    params, expected = leaves(values), leaves(values)
    optimizer = configuration.ours(params)
    oracle = oracle_of(configuration.optimizer)(expected, **configuration.options, fused=True)
    for step in range(STEPS):
        for p, q, g in zip(params, expected, gradients(params, step), strict=True):
            p.grad = q.grad = g
        optimizer.step()
        oracle.step()
        assert_bit_equal(params, expected, f"step {step + 1}")
        assert_bit_equal(*(o.state_dict()["state"] for o in (optimizer, oracle)), f"step {step + 1}: state")


def flags_of(name):
    """All values of the arguments foreach and fused of a class."""
    names = [flag for flag in ("foreach", "fused") if flag in inspect.signature(oracle_of(name)).parameters]
    for values in itertools.product((None, False, True), repeat=len(names)):
        if values != (True, True):
            yield dict(zip(names, values, strict=True))


PATHS = [
    pytest.param(name, flags, id="-".join([name, *(f"{k}={v}" for k, v in flags.items())]))
    for name in ("SGD", "Adam", "AdamW", "Adagrad", "NAdam", "Rprop", "Lion")
    for flags in flags_of(name)
]


@pytest.mark.parametrize(("name", "flags"), PATHS)
def test_foreach_and_fused(name, flags, go):
    """torch's for-loop and its multi-tensor step run in torch where a program asks for them, also in explain."""
    configuration = TABLE[name][-1]
    asks = flags.get("foreach") or (flags.get("foreach") is False and flags.get("fused") is False)
    values = [normal((37,), BF16, 0), normal((5, 3), F32, 1)]
    if not asks:
        pair = Pair(configuration, values, **flags)
        pair.run(3)
        assert [row.to for row in goptim.explain(pair.optimizer)] == ["go", "go"]
        assert go == [2, 2, 2]
        return
    params, [expected] = leaves(values), leaves(values[:1])
    optimizer = configuration.ours(params, **flags)
    oracle = oracle_of(name)([expected], **configuration.options, **flags)
    beside = Wide(configuration, values[1:])
    for step in range(3):
        grads = gradients(params, step)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        expected.grad = grads[0].clone()
        optimizer.step()
        oracle.step()
        beside.step(grads[1:])
        assert_bit_equal(params, [expected, *beside.params])
        assert_bit_equal(dict(optimizer.state[params[0]]), dict(oracle.state[expected]))
    assert go == [1, 1, 1]
    half, single = goptim.explain(optimizer)
    said = "foreach=True" if flags["foreach"] else "foreach=False and fused=False"
    assert (half.to, single.to) == ("torch", "go")
    assert half.reason == f"{said}: torch rounds 16-bit parameters after every operation"


@pytest.mark.parametrize("falsy", [0, "", []], ids=repr)
def test_values_that_are_no_bool(falsy):
    """As torch's code reads them: None is another value than one that is false."""
    p = Parameter(normal((5,), BF16, 0))
    opt = goptim.AdamW([p], foreach=falsy)
    opt.param_groups[0]["fused"] = falsy
    assert goptim.explain(opt)[0].to == "torch"
    opt.param_groups[0]["fused"] = None
    assert goptim.explain(opt)[0].to == "go"
    opt.param_groups[0]["foreach"] = 1
    assert goptim.explain(opt)[0].to == "torch"


class Group(dict):
    """A group with its own lookup methods."""

    def __getitem__(self, key):
        return super().__getitem__(key)


@pytest.mark.parametrize("foreach", [None, True])
def test_groups_with_lookup_methods(foreach, go):
    p = Parameter(normal((5,), BF16, 0))
    opt = goptim.AdamW([p], foreach=foreach)
    opt.param_groups[0] = Group(opt.param_groups[0])
    p.grad = normal((5,), BF16, 1)
    opt.step()
    opt.step()
    assert go == ([] if foreach else [1, 1])
    assert goptim.explain(opt)[0].to == ("torch" if foreach else "go")


def unlike():
    """Parameters with a gradient or a state that Go cannot step, by the reason."""

    def gapped():
        p = Parameter(normal((4, 6), BF16, 0)[:, ::2])
        return p, normal((4, 3), BF16, 1), {}

    def subclass():
        p = normal((5,), BF16, 0).as_subclass(type("Other", (Tensor,), {})).requires_grad_()
        return p, normal((5,), BF16, 1), {}

    def strides():
        return Parameter(normal((4, 3), BF16, 0)), normal((3, 4), BF16, 1).t(), {}

    def moments(change):
        p = Parameter(normal((4, 3), BF16, 0))
        first, second = normal((4, 3), BF16, 2), normal((4, 3), BF16, 3).abs()
        state = {"step": torch.tensor(1.0), "exp_avg": first, "exp_avg_sq": second}
        return p, normal((4, 3), BF16, 1), state | change(state)

    def other_strides(state):
        return {"exp_avg": state["exp_avg"].t().contiguous().t()}

    return {
        "gaps or overlap": gapped,
        "a tensor subclass": subclass,
        "its gradient has different strides": strides,
        "its state 'exp_avg' has different strides": lambda: moments(other_strides),
        "its step is a Tensor of torch.int64": lambda: moments(lambda s: {"step": s["step"].long()}),
    }


@pytest.mark.parametrize("why", unlike())
def test_other_parameters_fall_back(why, go):
    """They have torch's results, and parameters beside them run in Go."""
    configuration = Configuration("AdamW", {}, "AdamW")
    (p, g, state), (q, h, _) = unlike()[why](), unlike()[why]()
    beside = Pair(configuration, [normal((37,), F16, 9)])
    opt, oracle = beside.optimizer, torch.optim.AdamW([q])
    opt.add_param_group({"params": [p]})
    if state:
        opt.state[p], oracle.state[q] = copy.deepcopy(state), copy.deepcopy(state)
    for step in range(2):
        beside.params[0].grad = gradients(beside.params, step)[0]
        p.grad, q.grad = g.clone(), h.clone()
        assert [row.to for row in goptim.explain(opt)] == ["go", "torch"]
        assert why in goptim.explain(opt)[1].reason
        opt.step()
        oracle.step()
        beside.oracle.step([beside.params[0].grad])
        assert_bit_equal(p.detach().as_subclass(Tensor), q.detach().as_subclass(Tensor))
        assert_bit_equal(beside.params, beside.oracle.narrow_params())
    assert go == [1, 1]


@pytest.mark.parametrize("other", [F32, F16])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_state_of_another_dtype_than_the_parameter(name, other):
    """torch rejects or converts it, and so does goptim, with torch's results."""
    results = []
    for cls in both_classes(name):
        p = Parameter(normal((5,), BF16, 0))
        opt = cls([p], **({"momentum": 0.9} if name == "SGD" else {}), foreach=True)
        p.grad = normal((5,), BF16, 1)
        opt.step()
        opt.param_groups[0]["foreach"] = None
        key = "momentum_buffer" if name == "SGD" else "exp_avg"
        opt.state[p][key] = opt.state[p][key].to(other)
        try:
            opt.step()
            results.append(["stepped", p, *opt.state[p].values()])
        except RuntimeError as e:
            results.append([type(e).__name__, p])
    assert_bit_equal(*results)


@HALVES
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_states_of_torch(name, dtype):
    """A state_dict of either class continues in the other."""
    configuration = in_16_bits(TABLE[name][-1])
    values = [normal((37,), dtype, 0), normal((4, 3), dtype, 1)]
    theirs = leaves(values)
    oracle = oracle_of(name)(theirs, **configuration.options)  # no flags, which a state_dict has
    for p, g in zip(theirs, gradients(theirs, 50), strict=True):
        p.grad = g
    oracle.step()
    pair = Pair(configuration, theirs)
    pair.optimizer.load_state_dict(copy.deepcopy(oracle.state_dict()))  # which would share the steps
    again = oracle_of(name)(leaves(theirs))
    again.load_state_dict(copy.deepcopy(oracle.state_dict()))
    assert_bit_equal(pair.optimizer.state_dict(), again.state_dict())
    pair.oracle.load(oracle.state_dict())
    pair.run(3)
    back = configuration.theirs(leaves(pair.params))
    back.load_state_dict(pair.optimizer.state_dict())
    assert_bit_equal(back.state_dict()["state"], pair.optimizer.state_dict()["state"])
    for p, g in zip((q for group in back.param_groups for q in group["params"]), gradients(theirs, 51), strict=True):
        p.grad = g
    back.step()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "save_state"])
@pytest.mark.parametrize("configuration", [*SOME, TABLE["ASGD"][-1]], ids=str)
def test_copies_continue(configuration, how, tmp_path):
    pair = Pair(configuration, [normal((37,), BF16, 0), normal((5, 3), F16, 1), normal((7,), F32, 2)])
    pair.run(2)
    if how in ("deepcopy", "pickle"):
        copied = copy.deepcopy(pair.optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(pair.optimizer))
        pair.params = copied.param_groups[0]["params"]
    else:
        pair.params = leaves(pair.params)
        copied = configuration.ours(pair.params)
        if how == "state_dict":
            copied.load_state_dict(pair.optimizer.state_dict())
            pair.oracle.load(pair.oracle.optimizer.state_dict())
        else:
            goptim.save_state(pair.optimizer, tmp_path / "state")
            goptim.load_state(copied, tmp_path / "state")
            for p, state in copied.state.items():  # a file has other orders
                copied.state[p] = {key: state[key] for key in pair.optimizer.state_dict()["state"][0]}
    if how != "state_dict":
        assert_bit_equal(copied.state_dict(), pair.optimizer.state_dict())
    pair.optimizer = copied
    pair.compare()
    pair.run(2)


@HALVES
@pytest.mark.parametrize("keyword", ["max_grad_norm", "ema", "zero_grad", "all"])
@pytest.mark.parametrize("beside", [[], [F32, F64]], ids=["alone", "mixed"])
def test_around_a_step(keyword, beside, dtype):
    """What surrounds a step has the results of separate calls."""
    configuration = TABLE["AdamW"][-1]
    values = [normal((37,), d, i) for i, d in enumerate([dtype, *beside, dtype])]
    pair = Pair(configuration, values)
    expected = Wide(configuration, values)
    both = keyword == "all"
    ema, average = goptim.EMA(pair.params, 0.9), goptim.EMA(pair.params, 0.9)
    for step in range(3):
        grads = gradients(pair.params, step)
        for p, g in zip(pair.params, grads, strict=True):
            p.grad = g.clone()
        pair.optimizer.step(
            max_grad_norm=0.5 if both or keyword == "max_grad_norm" else None,
            ema=ema if both or keyword == "ema" else None,
            zero_grad=both or keyword == "zero_grad",
        )
        clones = [Parameter(p.detach().clone()) for p in pair.params]
        for p, g in zip(clones, grads, strict=True):
            p.grad = g.clone()
        if both or keyword == "max_grad_norm":
            norm = torch.nn.utils.clip_grad_norm_(clones, 0.5)
            assert_bit_equal(pair.optimizer.grad_norm, norm)
        expected.step([p.grad for p in clones])
        assert_bit_equal(pair.params, expected.narrow_params())
        if both or keyword == "ema":
            average.update()
            assert_bit_equal(list(ema.averages), list(average.averages))
        zero = both or keyword == "zero_grad"
        assert all(bool(p.grad.any()) != zero for p in pair.params)


@HALVES
def test_without_a_layout(dtype, monkeypatch):
    """Rows that are read through torch's Python API."""
    monkeypatch.setattr(_native, "layout", lambda: None)
    for configuration in SOME[:3]:
        Pair(configuration, short(dtype, [1, 33, 1003])).run(3)


@HALVES
def test_versions(dtype):
    """Autograd sees that a parameter and its states were written."""
    p = Parameter(normal((5,), dtype, 0))
    opt = goptim.AdamW([p])
    for _ in range(2):
        p.grad = normal((5,), dtype, 1)
        versions = [t._version for t in (p, *opt.state[p].values())]
        opt.step()
        if len(versions) > 1:
            assert [t._version for t in (p, *opt.state[p].values())] == [v + 1 for v in versions]
    assert p.grad._version == 0
