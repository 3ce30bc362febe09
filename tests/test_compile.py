"""Compiled steps fall back to torch and are traced like torch.optim's. Steps next to compiled code run in Go."""

import gc
import shutil
import warnings

import pytest
import torch
from configurations import BEYOND, ELEMENTWISE, IN_TABLES, both_classes
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import lr_scheduler

from goptim.testing import assert_bit_equal, ieee_sqrt

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs C++")

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture(autouse=True)
def fresh():
    """Resets the compiler, and ignores its warnings. torch 2.6 warns when tensors that it traced are collected."""
    torch._dynamo.reset()
    with ieee_sqrt(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        torch._dynamo.reset()
        gc.collect()


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in [(3, 4), (5, 2)]]


def model_of():
    torch.default_generator.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 1, bias=False))


def state_of(opt):
    return opt.state_dict()["state"]


def compiled(f, backend):
    """f compiled, and the compiler's counter of graphs and their operations."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(f, backend=counter), counter


# The classes of torch, and some that torch does not have, whose oracle is the same for-loop.
COMPILED = [name for name in IN_TABLES if name not in BEYOND or name in ("Lion", "LARS", "SGDScheduleFree")]


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        *(pytest.param(name, False, marks=[] if name == "Adafactor" else pytest.mark.full) for name in COMPILED),
        *(pytest.param(name, True, marks=pytest.mark.full) for name in ("SGD", "AdamW", "Adafactor")),
    ],
)
def test_a_compiled_step(name, schedule, go):
    """The number of graphs and operations is that of torch's class. A changed float lr adds graphs."""
    runs = []
    for optimizer in both_classes(name):
        torch._dynamo.reset()
        params = parameters()
        opt = optimizer(params, lr=0.01)
        scheduler = lr_scheduler.ExponentialLR(opt, 0.5) if schedule else None
        seen = []
        opt.register_step_pre_hook(lambda *args, seen=seen: seen.append("pre"))
        opt.register_step_post_hook(lambda *args, seen=seen: seen.append("post"))
        step, counter = compiled(opt.step, "eager")
        for i in range(4):
            for p in params:
                p.grad = torch.full_like(p, 0.1 * (i + 1))
            step()
            if scheduler is not None:
                scheduler.step()
        runs.append((params, state_of(opt), counter.frame_count, counter.op_count, seen))
    expected, ours = runs
    assert_bit_equal(ours[:2], expected[:2])
    assert ours[2:] == expected[2:]
    assert ours[2] > 0 or name == "Adafactor"  # its norms are Python numbers in torch, so nothing is compiled
    assert go == []


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("AdamW", "eager"),
        pytest.param("Rprop", "aot_eager", marks=pytest.mark.full),
        pytest.param("Muon", "eager", marks=pytest.mark.full),
        pytest.param("AdamW", "inductor", marks=[pytest.mark.full, needs_compiler]),
    ],
)
def test_a_compiled_training_step(name, backend, go):
    """Forward, backward and step in one function, with a Tensor as the learning rate if the class supports it."""
    if name not in vars(torch.optim):
        pytest.skip("not in this torch")
    runs = []
    for optimizer in both_classes(name):
        torch._dynamo.reset()
        model = model_of()
        lr = torch.tensor(0.01) if name != "Muon" else 0.01
        opt = optimizer(model.parameters(), lr=lr)
        scheduler = lr_scheduler.LinearLR(opt, total_iters=3)

        def train(x, y, model=model, opt=opt):
            opt.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            opt.step()
            return loss.detach()

        train, counter = compiled(train, backend)
        generator = torch.Generator().manual_seed(1)
        losses = []
        for _ in range(4):
            x = torch.randn(8, 4, generator=generator)
            losses.append(train(x, x.sum(1, keepdim=True)).clone())
            scheduler.step()
        runs.append((losses, list(model.parameters()), state_of(opt), counter.frame_count, counter.op_count))
    expected, ours = runs
    assert_bit_equal(ours[:3], expected[:3])
    assert ours[3:] == expected[3:]
    assert ours[3] > 0
    assert go == []


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("AdamW", "aot_eager"),
        pytest.param("Adadelta", "inductor", marks=[pytest.mark.full, needs_compiler]),
    ],
)
def test_a_step_next_to_compiled_code_runs_in_go(name, backend, go):
    """A compiled model, and a step that is excluded from compilation."""
    runs = []
    for optimizer in both_classes(name):
        torch._dynamo.reset()
        model = torch.compile(model_of(), backend=backend)
        opt = optimizer(model.parameters(), lr=0.01)

        @torch.compiler.disable
        def step(opt=opt):
            opt.step()

        @torch.compile(backend=backend)
        def train(x, model=model, opt=opt, step=step):
            model(x).square().sum().backward()
            step()
            opt.zero_grad()

        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
        for _ in range(2):
            model(x).square().sum().backward()
            opt.step()
            opt.zero_grad()
        for _ in range(2):
            train(x)
        runs.append((list(model.parameters()), state_of(opt)))
    expected, ours = runs
    assert_bit_equal(ours, expected)
    assert go == [2] * 4


def test_export_falls_back(go):
    """Exporting a module that trains in its forward pass has the same result as with torch's class."""
    outcomes = []
    for optimizer in both_classes("AdamW"):

        class Trains(nn.Module):
            def __init__(self, optimizer=optimizer):
                super().__init__()
                self.model = model_of()
                self.opt = optimizer(self.model.parameters())

            def forward(self, x):
                loss = self.model(x).sum()
                self.opt.step()
                return loss

        module = Trains()
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        for strict in (False, True):
            try:
                torch.export.export(module, (torch.ones(2, 4),), strict=strict)
                outcomes.append("exported")
            except Exception as e:
                outcomes.append(type(e))
            outcomes.append([p.tolist() for p in module.parameters()])
    assert outcomes[:4] == outcomes[4:]
    assert go == []


@pytest.mark.parametrize(
    ("name", "compiles"),
    [(name, False) for name in ELEMENTWISE]
    + [pytest.param(name, True, marks=pytest.mark.full) for name in ("AdamW", "Rprop")],
)
def test_a_step_in_the_backward_pass(name, compiles, go):
    """Each parameter has its own optimizer, which steps as soon as the gradient is computed, and frees it."""
    runs = []
    for optimizer in both_classes(name):
        torch._dynamo.reset()
        model = model_of()
        opts = {p: optimizer([p], lr=0.01) for p in model.parameters()}

        def hook(p, opts=opts):
            opts[p].step()
            opts[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(hook)
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            loss = model(x).square().sum()
            if compiles:
                with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
                    loss.backward()
            else:
                loss.backward()
        assert all(p.grad is None for p in model.parameters())
        runs.append((list(model.parameters()), [state_of(opt) for opt in opts.values()]))
    expected, ours = runs
    assert_bit_equal(ours, expected)
    assert go == ([] if compiles else [1] * 6)
