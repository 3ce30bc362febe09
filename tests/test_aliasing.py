"""Parameters that share memory with others' gradients and states are stepped in order, with torch's results."""

from collections import OrderedDict
from typing import Any

import pytest
import rows
import torch
from configurations import ELEMENTWISE, MOMENTUM, class_of, for_loop_flags, oracle_of
from torch import Tensor
from torch.nn import Parameter

import goptim
import goptim.hf
from goptim.testing import assert_bit_equal, ieee_sqrt

# torch's own sparse Adagrad causes it.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

N = 1 << 19  # per parameter, enough for two threads
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"lr": 0.1, "momentum": 0.9} for name in MOMENTUM},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
    "ASGD": {"t0": 0},
}


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(cls: Any, options: dict[str, Any], shapes: list[tuple[int, ...]]) -> Any:
    """An optimizer with two groups after a step, with gradients for the next step."""
    params = [Parameter(numbers(*shape, seed=i)) for i, shape in enumerate(shapes)]
    opt = cls([{"params": params[:2]}, {"params": params[2:]}], **options)
    for step in range(2):
        for i, p in enumerate(params):
            p.grad = numbers(*p.shape, seed=10 * step + i)
        if step == 0:
            opt.step()
    return opt, params


def shared_state(opt: Any, params: list[Parameter]) -> None:
    """All states of one parameter are those of another, in the same group and in the other group."""
    opt.state[params[1]] = opt.state[params[0]]
    opt.state[params[3]] = opt.state[params[0]]


def gradient_that_is_a_parameter(opt: Any, params: list[Parameter]) -> None:
    params[1].grad = params[0].detach()
    params[3].grad = params[1].detach()


def gradient_that_is_a_state(opt: Any, params: list[Parameter]) -> None:
    params[3].grad = next(t for t in opt.state[params[0]].values() if getattr(t, "shape", None) == params[0].shape)


def overlapping_parameters(opt: Any, params: list[Parameter]) -> None:
    memory = numbers(2 * N, seed=5)
    for i, p in enumerate(params):
        p.data = memory[i * N // 4 :][:N].view(p.shape)


def shared_step(opt: Any, params: list[Parameter]) -> None:
    for p in params[1:]:
        opt.state[p]["step"] = opt.state[params[0]]["step"]


def shared_scalars(opt: Any, params: list[Parameter]) -> None:
    for p in params[1:]:
        scalars = {key: t for key, t in opt.state[params[0]].items() if isinstance(t, Tensor) and t.dim() == 0}
        opt.state[p] |= {key: t for key, t in scalars.items() if key != "step"}


def scalar_that_a_parameter_changes(opt: Any, params: list[Parameter]) -> None:
    """The states that are scalars are elements of an earlier parameter."""
    for p, earlier in zip(params[1:], params, strict=False):
        for i, (key, t) in enumerate(opt.state[p].items()):
            if isinstance(t, Tensor) and t.dim() == 0:
                earlier.data[i] = t
                opt.state[p][key] = earlier.data[i]


def storage_of_two(opt: Any, params: list[Parameter]) -> None:
    params[2].grad = torch.empty(0).set_(params[0].detach().untyped_storage(), 0, (N,))
    params[3].grad = params[1].detach()[:]


def arrays(opt: Any, params: list[Parameter]) -> None:
    """Tensors that share memory, but no storage: torch and NumPy, and torch twice."""
    params[2].grad = torch.from_numpy(params[0].detach().numpy())
    params[3].grad = torch.from_dlpack(params[1].detach())


def state_in_an_array(opt: Any, params: list[Parameter]) -> None:
    """Memory that torch allocated, under a state that owns it and one that does not, at another address."""
    for key, t in opt.state[params[0]].items():
        if getattr(t, "ndim", 0) == 1:
            memory = torch.cat([t, t[:16]])
            opt.state[params[0]][key] = memory[:N]
            opt.state[params[2]][key] = torch.from_numpy(memory.numpy()[16:])


def overlapping_buffers(opt: Any, params: list[Parameter]) -> None:
    """Storages that begin at different addresses and overlap."""
    memory = bytearray(numbers(2 * N, seed=5).numpy().tobytes())
    for i, p in enumerate(params):
        p.data = torch.frombuffer(memory, dtype=torch.float32, offset=i * N, count=N)


WAYS = [shared_state, gradient_that_is_a_parameter, gradient_that_is_a_state, overlapping_parameters, shared_step]


def run(cls: Any, options: dict[str, Any], shapes: list[tuple[int, ...]], share: Any) -> list[Tensor]:
    opt, params = build(cls, options, shapes)
    share(opt, params)
    with ieee_sqrt():
        opt.step()
    return [*params, *(t for p in params for t in opt.state[p].values() if isinstance(t, Tensor))]


OWNERS = [storage_of_two, arrays, state_in_an_array, overlapping_buffers]
CASES = [(name, way) for name in ELEMENTWISE for way in WAYS]
CASES += [(name, way) for name in ("AdamW", "SGD") for way in OWNERS]
CASES += [(name, way) for name in ("NAdam", "ASGD") for way in (shared_scalars, scalar_that_a_parameter_changes)]
CASES += [("Adam", scalar_that_a_parameter_changes)]


# In the core, every optimizer has one of the first ways, and every way three optimizers.
SOME = {*CASES[len(ELEMENTWISE) * len(WAYS) :]}
SOME |= {(name, way) for name in ("Adam", "SGD", "RMSprop") for way in WAYS}
SOME |= {(name, WAYS[i % len(WAYS)]) for i, name in enumerate(ELEMENTWISE)}


@pytest.mark.parametrize(
    ("name", "share"),
    [
        pytest.param(*case, id=f"{case[0]}-{case[1].__name__}", marks=[] if case in SOME else pytest.mark.full)
        for case in CASES
    ],
)
def test_one_after_the_other(name: str, share: Any, threads: Any) -> None:
    if share is shared_step and not rows.counts(name):
        pytest.skip(f"{name} does not count steps")
    threads(2)
    options, shapes = OPTIONS.get(name, {}), [(N,)] * 4
    with ieee_sqrt():
        expected = run(oracle_of(name), options | for_loop_flags(name), shapes, share)
        for _ in range(2):
            assert_bit_equal(run(class_of(name), options, shapes, share), expected)


@pytest.mark.full
def test_no_row_is_updated_after_an_error(threads: Any) -> None:
    """The update of a parameter makes the next one's step count negative. The last parameter is updated in parts."""
    threads(1)

    def rest(cls: Any) -> list[Tensor]:
        opt, params = build(cls, {"lr": 1e3}, [(1,), (1,), (2,), ((1 << 22) + 9,)])
        opt.state[params[0]]["exp_avg"].fill_(1)
        params[0].data.fill_(5)
        opt.state[params[1]]["step"] = params[0].data[0]
        with pytest.raises(RuntimeError):
            opt.step()
        assert params[0] < 0
        return [*params[2:], *(t for p in params[2:] for t in opt.state[p].values())]

    with ieee_sqrt():
        assert_bit_equal(rest(goptim.Adam), rest(lambda groups, lr: torch.optim.Adam(groups, lr, foreach=False)))


def gradient_that_is_a_row(opt: Any, params: list[Parameter]) -> None:
    """The gradient of a small parameter is the row state of a large one."""
    key = next(key for key in ("row_var", "exp_avg_sq_row") if key in opt.state[params[0]])
    params[3].grad = opt.state[params[0]][key].view(params[3].shape)


FACTORED = [
    shared_state, gradient_that_is_a_parameter, gradient_that_is_a_row, overlapping_parameters,
]  # fmt: skip


@pytest.mark.parametrize("share", FACTORED, ids=[way.__name__ for way in FACTORED])
@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_one_matrix_after_the_other(name: str, share: Any, threads: Any) -> None:
    threads(2)
    ours, theirs, options = goptim.Adafactor, torch.optim.Adafactor, {"foreach": False}
    if name == "transformers":
        theirs, ours = pytest.importorskip("transformers.optimization").Adafactor, goptim.hf.Adafactor
        options = {"beta1": 0.9}
    shapes = [(1024, 512), (1024, 512), (1024, 512), (1024, 512)]
    if share is gradient_that_is_a_row:
        shapes = [(1024, 512), (16, 4), (64, 64), (32, 32)]
    elif share is not overlapping_parameters:
        shapes = [(1024, 512), (512, 1024), (64, 64), (1024, 512)] if share is not shared_state else shapes
        if share is gradient_that_is_a_parameter:
            shapes = [(1024, 512), (1024, 512), (64, 64), (1024, 512)]
    with ieee_sqrt():
        expected = run(theirs, options, shapes, share)
        for _ in range(3):
            assert_bit_equal(run(ours, options, shapes, share), expected)


@pytest.mark.parametrize("share", ["state", "gradient"])
def test_small_matrices_one_after_the_other(share: str) -> None:
    """Muon multiplies small matrices with the same shape in a batch, and so in another order."""
    muon = pytest.importorskip("goptim.muon").Muon
    shapes = [(16, 16), (8, 16), (16, 16), (8, 16)]

    def alias(opt: Any, params: list[Parameter]) -> None:
        if share == "state":
            opt.state[params[2]] = opt.state[params[0]]
        else:
            params[2].grad = params[0].detach()

    def one_group(cls: Any) -> Any:
        return lambda groups: cls([p for group in groups for p in group["params"]])

    for _ in range(2):
        assert_bit_equal(run(one_group(muon), {}, shapes, alias), run(one_group(torch.optim.Muon), {}, shapes, alias))


def sparse(shape: tuple[int, ...], rows: list[int], values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=False)


def values_of_sparse_gradient(cls: Any, first: bool, falls_back: bool) -> list[Tensor]:
    """A parameter whose sparse gradient has the memory of another parameter."""
    memory = numbers(3, 4, seed=2)
    p, other = Parameter(numbers(4, 5, seed=1).t() if falls_back else numbers(5, 4, seed=1)), Parameter(memory)
    last = Parameter(numbers(3, seed=3))
    opt = cls([p, other, last] if first else [last, other, p], lr=0.1)
    for step in range(3):
        p.grad = sparse((5, 4), [0, 3, 1], memory)
        other.grad, last.grad = numbers(3, 4, seed=4 + step), numbers(3, seed=5)
        opt.step()
    return [t for q in (p, other, last) for t in (q, *opt.state.get(q, {}).values()) if isinstance(t, Tensor)]


@pytest.mark.parametrize("falls_back", [False, True])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_memory_of_sparse_gradients(name: str, first: bool, falls_back: bool) -> None:
    with ieee_sqrt():
        expected = values_of_sparse_gradient(getattr(torch.optim, name), first, falls_back)
        assert_bit_equal(values_of_sparse_gradient(class_of(name), first, falls_back), expected)


def chain(cls: Any) -> list[Tensor]:
    """The first parameter reads the second one's memory, which reads the third one's. Python decides about all."""
    p, other, last = (Parameter(numbers(4, 4, seed=i)) for i in range(3))
    opt = cls([last, other, p], lr=0.1)
    for q in (other, last):
        opt.state[q] = OrderedDict(opt.state[q])
    for step in range(3):
        p.grad = sparse((4, 4), [0, 3, 1], other.detach()[:3])
        other.grad, last.grad = last.detach(), numbers(4, 4, seed=step)
        opt.step()
    return [t for q in (p, other, last) for t in (q, *opt.state.get(q, {}).values()) if isinstance(t, Tensor)]


def test_chains_of_shared_memory() -> None:
    with ieee_sqrt():
        assert_bit_equal(chain(goptim.Adagrad), chain(torch.optim.Adagrad))


@pytest.mark.parametrize("shared", ["parameter", "state", "gradient"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", [*ELEMENTWISE, "Adafactor"])
@pytest.mark.covering("name", "shared first")
def test_memory_of_a_wrapper(name: str, first: bool, shared: str) -> None:
    """A tensor subclass without memory of its own falls back, and wraps the memory of a parameter that runs in Go."""
    wrapper = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor

    def run(cls: Any) -> list[Tensor]:
        p, other = Parameter(wrapper(numbers(3, 4, seed=0), numbers(3, 4, seed=1))), Parameter(numbers(3, 4, seed=2))
        opt = cls([p, other] if first else [other, p], **OPTIONS.get(name, {}))
        for step in range(3):
            p.grad = wrapper(numbers(3, 4, seed=10 + step), numbers(3, 4, seed=20 + step))
            other.grad = numbers(3, 4, seed=30 + step)
            if step == 1:
                key = next(key for key, t in opt.state[p].items() if isinstance(t, Tensor) and t.dim())
                t = {"parameter": p.detach(), "gradient": p.grad, "state": opt.state[p][key]}[shared]
                if t.shape == other.shape:
                    other.data = t.b if shared == "parameter" else t.a
                else:  # of Adafactor
                    opt.state[p][key] = wrapper(other.detach().view(-1)[:3].view(t.shape), t.b)
            opt.step()
        inner = [t for q in (p, *opt.state[p].values()) for t in ((q.a, q.b) if type(q) is wrapper else (q,))]
        return [*inner, other, *opt.state[other].values()]

    with ieee_sqrt(), torch.no_grad():
        expected = run(oracle_of(name))
        assert_bit_equal(run(class_of(name)), expected)
