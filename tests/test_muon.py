"""Muon is bit-for-bit equal to torch's for-loop: parameters, state, errors, and what falls back.

The installed torch is the oracle: Muon has no square roots of tensors. Its matrix products are torch's.
"""

import copy
import inspect
import itertools
import subprocess
import sys
import warnings

import pytest
import torch
from configurations import gradients, normal
from torch.nn import Parameter

import goptim
from goptim import _core, _storage
from goptim._kinds import kind_of
from goptim.testing import assert_bit_equal

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that hypothesis is not installed
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
OLD = not hasattr(torch.optim, "Muon")
muon = pytest.mark.skipif(OLD, reason="this torch has no Muon")


@pytest.mark.skipif(not OLD, reason="this torch has Muon")
def test_an_old_torch_is_an_error():
    assert "Muon" not in goptim.__all__
    assert not hasattr(goptim, "Muon")
    with pytest.raises(AttributeError, match=r"'Muon': it needs torch 2.9 or later, and this is torch 2\."):
        _ = goptim.Muon
    with pytest.raises(ImportError, match=r"'Muon': it needs torch 2.9 or later, and this is torch 2\."):
        from goptim import Muon  # noqa: F401
    subprocess.run([sys.executable, "-c", "from goptim import *; SGD"], check=True)


# Tall, wide, square, with one row or column, around a vector's length, single ones and several of the same size.
SHAPES = [
    *itertools.product((1, 2, 7, 17), (1, 5, 16, 33)),
    (64, 64),
    (40, 100),
    (100, 40),
    *[(24, 48)] * 3,
    *[(48, 24)] * 3,
    *[(16, 16)] * 4,
]
OPTIONS = [
    {},
    {"lr": 0.123, "nesterov": False},
    *({"lr": 0.123, "momentum": m, "nesterov": n} for m in (0, 0.4, 0.5, 0.9) for n in (True, False)),
    {"momentum": 0.5 + 1e-9},  # the limit between the branches of lerp in float32
    {"momentum": 1.5},
    {"lr": 0.0},
    {"lr": 3, "weight_decay": 0.3},  # 1 - lr * weight_decay depends on the rounding of the product
    {"weight_decay": 0},
    *({"lr": 0.123, "adjust_lr_fn": f} for f in ("original", "match_rms_adamw", "spectral_unclamped")),
    *({"lr": 0.123, "ns_steps": n} for n in (0, 1, 7)),
    {"lr": 0.123, "ns_coefficients": (2, -1.5, 0.5)},
    {"lr": 0.123, "ns_coefficients": [3.0, -3.2, 1.2]},
    {"lr": 0.123, "eps": 100.0},
]


def run(cls, shapes, dtype, steps=5, between=lambda i, opt: None, layout=lambda t: t, **options):
    params = [Parameter(layout(normal(shape, dtype, i))) for i, shape in enumerate(shapes)]
    opt = cls(params, **options)
    for step in range(steps):
        for p, g in zip(params, gradients(params, step), strict=True):
            p.grad = g
        opt.step()
        opt = between(step, opt) or opt
    return opt


def values(opt):
    params = [p for group in opt.param_groups for p in group["params"]]
    return [(p, dict(opt.state[p])) for p in params]


def assert_runs_equal(*args, **kwargs):
    ours, expected = (run(cls, *args, **kwargs) for cls in (goptim.Muon, torch.optim.Muon))
    assert_bit_equal(values(ours), values(expected))


@pytest.fixture
def go(monkeypatch):
    """The number of rows of each update in Go."""
    calls = []
    step_groups, update = _core.step_groups, kind_of("MuonUpdate").handle

    def counted(kind, *args):
        done = step_groups(kind, *args)
        if kind is update:
            calls.append(done)
        return done

    monkeypatch.setattr(_core, "step_groups", counted)
    return calls


@muon
@FLOATS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.covering(1)
def test_every_configuration(options, dtype, threads, go):
    assert_runs_equal(SHAPES, dtype, **options)
    assert sum(go) == 5 * len(SHAPES)


@muon
@pytest.mark.parametrize(("n", "dtype"), [(2, torch.float32), pytest.param(1, torch.float64, marks=pytest.mark.full)])
def test_threads(n, dtype, threads):
    threads(n)
    assert_runs_equal([(730, 811)], dtype, steps=2)
    assert_runs_equal([(64, 96)] * 90, dtype, steps=2)  # Go splits this batch


@muon
@FLOATS
def test_transposed(dtype, threads, go):
    """Transposed parameters run in Go, and the update has the same strides."""
    assert_runs_equal([(33, 17), (17, 33), (24, 24), (24, 24)], dtype, layout=lambda t: t.t().contiguous().t())
    assert go == [1] * 4 * 5


@muon
@FLOATS
def test_special_values(dtype, threads):
    """All cases of rounding to bfloat16: ties, carries, subnormals, infinities; also a zero matrix and NaN."""
    bits = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int64)
    tops = torch.tensor([0, 1, 2, 0x7F, 0x80, 0x3F80, 0x3F81, 0x4000, 0x7F7E, 0x7F7F, 0x8001, 0xBF81])
    special = ((tops[:, None] << 16) + bits).to(torch.int32).view(torch.float32).to(dtype)
    for name, g in {
        "roundings": special,
        "small": special.abs().clamp(max=1e-38),
        "zero": torch.zeros(4, 3, dtype=dtype),
        "infinite": torch.tensor([[1.0, float("inf")], [2.0, -float("inf")]], dtype=dtype),
        "NaN": torch.tensor([[1.0, float("nan")], [2.0, 3.0]], dtype=dtype),
        "beyond float32": torch.tensor([[1.0, 1e39], [2.0, 3.0]], dtype=torch.float64).to(dtype),
    }.items():
        for options in ({}, {"nesterov": False, "ns_steps": 0, "momentum": 0, "eps": 1.0, "lr": 1.0}):
            opts = []
            for cls in (goptim.Muon, torch.optim.Muon):
                p = Parameter(torch.linspace(-1, 1, g.numel(), dtype=dtype).reshape(g.shape))
                p.grad = g.clone()
                opts.append(cls([p], **options))
                opts[-1].step()
                opts[-1].step()
            assert_bit_equal(*map(values, opts), name)


@muon
@FLOATS
@pytest.mark.parametrize("change", ["torch to ours", "ours to torch", "ours to ours"])
def test_state_dict(change, dtype, threads):
    first, second = {
        "torch to ours": (torch.optim.Muon, goptim.Muon),
        "ours to torch": (goptim.Muon, torch.optim.Muon),
        "ours to ours": (goptim.Muon, goptim.Muon),
    }[change]

    def between(i, opt):
        if i != 2:
            return None
        other = second(opt.param_groups[0]["params"])
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        return other

    ours = run(first, [(11, 6), (5, 9)], dtype, between=between)
    assert_bit_equal(values(ours), values(run(torch.optim.Muon, [(11, 6), (5, 9)], dtype)))


@muon
def test_batches_are_exact(threads, monkeypatch):
    """A batch is used for common sizes, and not if the check fails. The check detects another order of summation."""
    module = sys.modules["goptim.muon"]
    batches = []
    batch = module._newton_schulz_batch
    monkeypatch.setattr(module, "_newton_schulz_batch", lambda x, *args: batches.append(x.shape) or batch(x, *args))
    assert_runs_equal([(64, 96)] * 5 + [(96, 64)] * 3 + [(300, 300)] * 2, torch.float32, steps=2)
    said = {
        shape: module._batch_is_exact(torch.Size(shape), (3.4445, -4.775, 2.0315), *module._settings())
        for shape in ((5, 64, 96), (3, 96, 64))
    }
    assert set(batches) == {torch.Size(shape) for shape, exact in said.items() if exact}

    def halves(x, y):  # a product with a sum in two parts
        k = x.shape[-1] // 2
        return (x[..., :k].float() @ y[..., :k, :].float() + x[..., k:].float() @ y[..., k:, :].float()).to(x.dtype)

    def baddbmm(c, x, y, *, beta, alpha=1):
        return (beta * c.float() + alpha * halves(x, y).float()).to(c.dtype)

    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    assert not module._batch_is_exact.__wrapped__(torch.Size((2, 17, 17)), (3.4445, -4.775, 2.0315))


@muon
@pytest.mark.parametrize("shape", [(3, 17, 33), (3, 33, 17)])
def test_what_is_tried_out_has_the_shapes_of_the_batch(shape, threads, monkeypatch):
    module, tried = sys.modules["goptim.muon"], set()

    def baddbmm(start, left, right, **factors):
        tried.add((*left.shape, right.shape[2]))
        return torch.stack([torch.addmm(*terms, **factors) for terms in zip(start, left, right, strict=True)])

    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    if not module._batch_is_exact.__wrapped__(torch.Size(shape), (3.4445, -4.775, 2.0315)):
        pytest.skip("products of batches differ on this CPU, which ends the trials")
    assert tried == {(3, 17, 17, 17), (3, 17, 17, 33)}


@muon
def test_random_numbers_are_left_alone(threads):
    torch.default_generator.manual_seed(7)
    before = torch.get_rng_state()
    sys.modules["goptim.muon"]._batch_is_exact.cache_clear()
    run(goptim.Muon, [(20, 20)] * 2, torch.float32, steps=1)
    assert torch.equal(torch.get_rng_state(), before)


# Unsupported parameters.
UNSUPPORTED = {
    "with gaps": lambda: (torch.ones(5, 6)[:, ::2], torch.randn(5, 3)),
    "gradient transposed": lambda: (torch.ones(5, 3), torch.randn(3, 5).t()),
    "gradient expanded": lambda: (torch.ones(5, 3), torch.randn(3).expand(5, 3)),
}


@muon
@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_falls_back(what, go, threads):
    opts = []
    for cls in (goptim.Muon, torch.optim.Muon):
        torch.default_generator.manual_seed(0)
        value, grad = UNSUPPORTED[what]()
        unsupported, plain = Parameter(value), Parameter(torch.ones(4, 2))
        unsupported.grad, plain.grad = grad, torch.randn(4, 2)
        opts.append(cls([unsupported, plain]))
        for _ in range(3):
            opts[-1].step()
    assert_bit_equal(*map(values, opts))
    assert go == [1] * 3


@muon
def test_a_tensor_as_lr_falls_back(go, threads):
    assert_runs_equal([(4, 6)], torch.float32, lr=torch.tensor(0.1))
    assert not go


@muon
def test_surface():
    assert issubclass(goptim.Muon, torch.optim.Muon)
    ours, theirs = (dict(inspect.signature(cls).parameters) for cls in (goptim.Muon, torch.optim.Muon))
    assert all(ours.pop(key).kind is inspect.Parameter.KEYWORD_ONLY for key in _storage.KEYS)
    assert ours == theirs
    assert goptim.Muon.__name__ in goptim.__all__


@muon
@pytest.mark.parametrize("dtype", [torch.float32], ids=str)
def test_torchs_own_configurations_and_errors(dtype, threads):
    [info] = [info for info in optim_db if info.name == "Muon"]
    assert info.optim_inputs_func(device="cpu")
    for i in range(len(info.optim_inputs_func(device="cpu"))):
        options = info.optim_inputs_func(device="cpu")[i].kwargs
        assert_runs_equal([(3, 5), (6, 4)], dtype, **{k: v for k, v in options.items() if k != "foreach"})
    for error in info.optim_error_inputs_func(device="cpu", dtype=dtype):
        if error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
            given = error.optimizer_error_input
            with pytest.raises(error.error_type, match=error.error_regex):
                goptim.Muon(given.params, **given.kwargs)


@muon
def test_errors_of_torch():
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        goptim.Muon([Parameter(torch.ones(3))])
    for option, says in (
        ({"ns_steps": 100}, "Number of steps must be less than 100"),
        ({"ns_coefficients": (1.0, 2.0)}, "exactly 3 values"),
    ):
        for n in (1, 2):  # alone, and as a batch
            params = [Parameter(torch.ones(3, 2)) for _ in range(n)]
            for p in params:
                p.grad = torch.ones(3, 2)
            for cls in (goptim.Muon, torch.optim.Muon):
                with pytest.raises(ValueError, match=says):
                    cls(params, **option).step()
            assert all((p == 1).all() for p in params)


@muon
def test_errors_write_nothing(threads):
    good, bad = Parameter(torch.ones(3, 2)), Parameter(torch.ones(4, 5))
    opt = goptim.Muon([good, bad])
    good.grad, bad.grad = torch.ones(3, 2), torch.ones(4, 5)
    opt.step()
    before = copy.deepcopy(values(opt))
    bad.grad.data = torch.ones(5, 4)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0, of shape \(4, 5\).*its gradient has shape \(5, 4\)"):
        opt.step()
    bad.grad.data = torch.ones(4, 5)
    opt.state[bad]["momentum_buffer"] = torch.ones(20)
    with pytest.raises(ValueError, match=r"its state 'momentum_buffer' has shape \(20,\), expected \(4, 5\)"):
        opt.step()
    opt.state[bad]["momentum_buffer"] = before[1][1]["momentum_buffer"]
    assert_bit_equal(values(opt), before)
    vector = Parameter(torch.ones(3))
    vector.grad = torch.ones(3)
    opt.add_param_group({"params": [vector]})  # torch checks these only in the constructor
    with pytest.raises(ValueError, match=r"parameter 0 of group 1, of shape \(3,\).*: expected a matrix"):
        opt.step()
    assert (vector == 1).all()


@muon
def test_closure_hooks_versions_and_missing_gradients():
    p, without = Parameter(torch.ones(4, 2)), Parameter(torch.ones(4, 2))
    opt = goptim.Muon([p, without])
    log = []
    opt.register_step_pre_hook(lambda *args: log.append("before"))
    opt.register_step_post_hook(lambda *args: log.append("after"))

    def closure():
        assert torch.is_grad_enabled()
        p.grad = torch.ones(4, 2)
        return 7

    for _ in range(2):
        saves_p = p.pow(2).sum()
        assert opt.step(closure) == 7
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            saves_p.backward()
    assert log == ["before", "after"] * 2
    assert torch.is_grad_enabled()
    assert (without == 1).all()
    assert without not in opt.state
    version = opt.state[p]["momentum_buffer"]._version
    opt.step()
    assert opt.state[p]["momentum_buffer"]._version > version


@muon
def test_parameters_that_share_memory(threads):
    """With other shapes, they are stepped in order."""
    opts = []
    for cls in (goptim.Muon, torch.optim.Muon):
        memory = normal((6, 8), torch.float32, 0)
        params = [Parameter(memory), Parameter(memory.view(8, 6)), Parameter(memory), Parameter(memory.view(4, 12))]
        opts.append(cls(params, lr=0.3))
        for step in range(4):
            for p, g in zip(params, gradients(params, step), strict=True):
                p.grad = g
            opts[-1].step()
    assert_bit_equal(*map(values, opts))


@muon
def test_training():
    """Hidden weights with Muon and biases with AdamW, as in torch's documentation."""
    runs = []
    for module in (goptim, torch.optim):
        torch.default_generator.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
        hidden, rest = ([p for p in model.parameters() if (p.ndim == 2) == is_2d] for is_2d in (True, False))
        opts = [module.Muon(hidden, lr=0.02), torch.optim.SGD(rest, lr=0.01)]
        x, y = normal((64, 10), torch.float32, 1), normal((64, 4), torch.float32, 2)
        losses = []
        for _ in range(20):
            loss = torch.nn.functional.mse_loss(model(x), y)
            model.zero_grad()
            loss.backward()
            for opt in opts:
                opt.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 1.2
        runs.append((losses, list(model.parameters())))
    assert_bit_equal(*runs)
