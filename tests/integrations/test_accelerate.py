"""accelerate's Accelerator, which wraps an optimizer and steps it when gradients are accumulated."""

import pickle

import pytest
import torch
from stacks import execute, load, snippets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

accelerate = load("accelerate")
wrappers = load("accelerate.optimizer")
state = load("accelerate.state")


@pytest.fixture(autouse=True)
def fresh_state():
    yield
    forget()


def forget():
    """Resets an Accelerator's settings, which are global."""
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


def make_accelerator(**options):
    forget()
    return accelerate.Accelerator(cpu=True, **options)


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3, bias=False))


def make_loader(n=24):
    of = torch.Generator().manual_seed(2)
    x = torch.randn(n, 10, generator=of)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=4, shuffle=True)


def outcome(model, *stateful):
    return model.state_dict(), *(one.state_dict() for one in stateful)


def train(
    optim,
    folder,
    name="AdamW",
    keywords=None,
    epochs=2,
    schedule=None,
    clip=None,
    resume=None,
    save=None,
    **options,
):
    accelerator = make_accelerator(**options)
    torch.manual_seed(3)
    model = make_model()
    optimizer = getattr(optim, name)(model.parameters(), **(keywords or {"lr": 1e-2}))
    scheduler = schedule(optim, optimizer) if schedule else optim.lr_scheduler.ConstantLR(optimizer)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, make_loader(), scheduler)
    assert type(optimizer) is wrappers.AcceleratedOptimizer
    if resume:
        accelerator.load_state(str(resume))
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                if clip and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    if save:
        accelerator.save_state(str(save))
    return outcome(model, optimizer, scheduler)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("AdamW", {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
        ("SGD", {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
        ("Adafactor", {"lr": 1e-2}),
        ("RMSprop", {"lr": 1e-3, "momentum": 0.9, "centered": True}),
        ("Adagrad", {"lr": 1e-2}),
        ("NAdam", {"lr": 1e-3}),
    ],
)
def test_classes(both, name, keywords):
    both(train, name=name, keywords=keywords)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 4},
        {"clip": 0.1},
        {"mixed_precision": "bf16"},
        {"gradient_accumulation_steps": 2, "clip": 0.1, "mixed_precision": "bf16"},
    ],
    ids=str,
)
def test_options(both, options):
    both(train, **options)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda optim, optimizer: optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12),
        lambda optim, optimizer: optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6),
    ],
    ids=["OneCycleLR", "CosineAnnealingLR"],
)
def test_schedulers(both, schedule, accumulation):
    both(train, schedule=schedule, gradient_accumulation_steps=accumulation)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 and later have Muon")
def test_two_optimizers(both):
    """Muon for matrices, AdamW for other parameters."""

    def run(optim, folder):
        accelerator = make_accelerator()
        model = make_model()
        matrices = [p for p in model.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if p.dim() != 2]
        optimizers = optim.Muon(matrices, lr=1e-2), optim.AdamW(others, lr=1e-2)
        model, loader, *optimizers = accelerator.prepare(model, make_loader(), *optimizers)
        for x, y in loader:
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return outcome(model, *optimizers)

    both(run)


@pytest.mark.parametrize(
    ("name", "keywords"), [("AdamW", {"lr": 1e-2}), ("SGD", {"lr": 1e-2, "momentum": 0.9}), ("Adafactor", {"lr": 1e-2})]
)
def test_resume(both, name, keywords):
    """A resumed run has the same result as an uninterrupted one."""
    chosen = {"name": name, "keywords": keywords}

    def run(optim, folder):
        whole = train(optim, folder, **chosen)
        train(optim, folder, epochs=1, save=folder / "checkpoint", **chosen)
        return whole, train(optim, folder, epochs=1, resume=folder / "checkpoint", **chosen)

    whole, resumed = both(run)
    assert_bit_equal(resumed, whole)


@pytest.mark.parametrize("optim", [torch.optim, goptim], ids=["torch", "goptim"])
@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_a_checkpoint_of_one_continues_with_the_other(both, tmp_path, optim, name):
    with ieee_sqrt():
        whole = train(optim, tmp_path, name=name)
        train(optim, tmp_path, name=name, epochs=1, save=tmp_path / "checkpoint")
    assert_bit_equal(both(train, name=name, epochs=1, resume=tmp_path / "checkpoint"), whole)


def test_a_pickled_wrapper_continues(both):
    def run(optim, folder):
        accelerator = make_accelerator()
        model = make_model()
        optimizer = accelerator.prepare(optim.Adam(model.parameters(), lr=1e-2))
        for step in range(4):
            if step == 2:
                model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
            accelerator.backward(model(torch.ones(2, 10)).square().sum())
            optimizer.step()
            optimizer.zero_grad()
        return outcome(model, optimizer)

    both(run)


@snippets("accelerate.md")
def test_recipe(both, code):
    def run(optim, folder):
        forget()
        names = {"model": make_model(), "loader": make_loader(), "folder": str(folder)}
        after = execute(code, optim, loss_of=nn.functional.cross_entropy, **names)
        optimizers = [one for one in vars(after).values() if isinstance(one, wrappers.AcceleratedOptimizer)]
        return outcome(after.model, *optimizers)

    both(run)
