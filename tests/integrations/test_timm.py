"""timm: its registry of optimizers, which has torch.optim's classes, and its groups, schedulers and wrappers."""

import contextlib

import pytest
import torch
from stacks import execute, load, snippets
from torch import nn

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

timm = load("timm")
load("timm.optim")
load("timm.scheduler")
factory = load("timm.optim._optim_factory")
ema = load("timm.utils.model_ema")
utils = load("timm.utils")

FROM_TORCH = sorted(
    name
    for name, info in factory.default_registry._optimizers.items()
    if isinstance(info.opt_class, type) and info.opt_class.__module__.startswith("torch.optim.")
)


def make_vit():
    torch.manual_seed(1)
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, drop_rate=0.1, **small)


def make_resnet():
    torch.manual_seed(1)
    return timm.create_model("resnet10t", num_classes=3, stem_width=8, channels=(8, 8, 16, 16))


def make_loader(n=12, size=16):
    of = torch.Generator().manual_seed(2)
    images = torch.randn(n, 3, size, size, generator=of)
    return list(zip(images.split(4), images.mean((2, 3)).argmax(1).split(4), strict=True))


def patched(optim):
    """Create an optimizer by name, as users of timm do. It is goptim's only with a patch."""
    return goptim.patch() if optim is goptim else contextlib.nullcontext()


def create(optim, model, opt, **options):
    with patched(optim):
        optimizer = timm.optim.create_optimizer_v2(model, opt, **{"lr": 1e-2, "weight_decay": 0.05} | options)
    built = getattr(optimizer, "_base_optimizer", optimizer)
    assert type(built) is getattr(optim, type(built).__name__)
    return optimizer


def run_epochs(model, optimizer, epochs=2, after=lambda update: None):
    update = 0
    for _ in range(epochs):
        for images, labels in make_loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            update += 1
            after(update)


def train(optim, folder, opt="adamw", make=make_vit, epochs=2, **options):
    model = make()
    optimizer = create(optim, model, opt, **options)
    run_epochs(model, optimizer, epochs)
    return model.state_dict(), optimizer.state_dict()


def test_classes_from_torch():
    assert {"adam", "adamw", "sgd", "momentum", "nadam", "radamw", "rmsprop", "adagrad"} <= set(FROM_TORCH)


@pytest.mark.parametrize("opt", FROM_TORCH)
def test_every_optimizer_by_name(both, opt):
    both(train, opt=opt)


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.0},
        {"filter_bias_and_bn": False},
        {"layer_decay": 0.7},
        {"layer_decay": 0.5, "layer_decay_min_scale": 0.2, "layer_decay_no_opt_scale": 0.3},
        {"foreach": False},
        {"param_group_fn": lambda model: [{"params": model.head.parameters(), "lr": 0.1}]},
    ],
    ids=["no decay", "decay of all", "layer decay", "layers left out", "foreach", "own groups"],
)
def test_groups(both, opt, options):
    both(train, opt=opt, **options)


@pytest.mark.parametrize("opt", ["adamw", "rmsprop"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_resnet(both, opt, layout):
    both(train, opt=opt, make=lambda: make_resnet().to(memory_format=layout))


@pytest.mark.parametrize("opt", ["lookahead_adamw", "lookahead_sgd", "lookahead_radam"])
def test_lookahead(both, opt):
    """Its slow weights are in the state of the wrapped optimizer."""
    _, state = both(train, opt=opt, epochs=5)
    assert "lookahead_slow_buff" in state["state"][0]


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: timm.scheduler.CosineLRScheduler(
            optimizer, t_initial=12, warmup_t=3, warmup_lr_init=1e-4, noise_range_t=(4, 8), t_in_epochs=False
        ),
        lambda optimizer: timm.scheduler.TanhLRScheduler(optimizer, t_initial=12, warmup_t=3, t_in_epochs=False),
        lambda optimizer: timm.scheduler.MultiStepLRScheduler(
            optimizer, decay_t=[3, 6], decay_rate=0.1, t_in_epochs=False
        ),
    ],
    ids=["cosine", "tanh", "multistep"],
)
@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.7}], ids=str)
def test_schedulers_by_update(both, make, options):
    def run(optim, folder):
        model, rates = make_vit(), []
        optimizer = create(optim, model, "adamw", **options)
        scheduler = make(optimizer)

        def after(update):
            scheduler.step_update(num_updates=update)
            rates.append([group["lr"] for group in optimizer.param_groups])

        run_epochs(model, optimizer, 4, after)
        return model.state_dict(), optimizer.state_dict(), rates

    *_, rates = both(run)
    assert rates[0] != rates[-1]


def test_schedulers_by_epoch(both):
    def run(optim, folder):
        model, rates = make_vit(), []
        optimizer = create(optim, model, "momentum")
        scheduler, epochs = timm.scheduler.create_scheduler_v2(optimizer, "cosine", num_epochs=4, warmup_epochs=1)
        for epoch in range(epochs):
            run_epochs(model, optimizer, 1)
            scheduler.step(epoch + 1)
            rates.append([group["lr"] for group in optimizer.param_groups])
        return model.state_dict(), optimizer.state_dict(), rates

    *_, rates = both(run)
    assert rates[0] != rates[-1]


@pytest.mark.parametrize("average", [ema.ModelEmaV2, ema.ModelEmaV3], ids=["V2", "V3"])
def test_model_ema(both, average):
    def run(optim, folder):
        model = make_resnet()
        optimizer = create(optim, model, "adamw")
        mean = average(model, decay=0.9)
        run_epochs(model, optimizer, after=lambda update: mean.update(model))
        return model.state_dict(), mean.state_dict()

    weights, mean = both(run)
    assert not torch.equal(weights["fc.weight"], mean["module.fc.weight"])


def test_adaptive_gradient_clipping(both):
    def run(optim, folder):
        model = make_vit()
        optimizer = create(optim, model, "adamw")
        for images, labels in make_loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            utils.dispatch_clip_grad(model.parameters(), 1e-3, mode="agc")
            optimizer.step()
        return model.state_dict(), optimizer.state_dict()

    both(run)


@pytest.mark.parametrize("optim", [torch.optim, goptim], ids=["torch", "goptim"])
@pytest.mark.parametrize("opt", ["adamw", "lookahead_sgd"])
def test_a_checkpoint_of_one_continues_with_the_other(both, tmp_path, optim, opt):
    file = tmp_path / "checkpoint.pt"

    def whole():
        torch.manual_seed(3)
        model = make_vit()
        optimizer = create(optim, model, opt)
        run_epochs(model, optimizer)
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        torch.manual_seed(4)
        run_epochs(model, optimizer)
        return model.state_dict(), optimizer.state_dict()

    def resumed(optim, folder):
        model = make_vit()
        optimizer = create(optim, model, opt)
        weights, state = torch.load(file)
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        torch.manual_seed(4)
        run_epochs(model, optimizer)
        return model.state_dict(), optimizer.state_dict()

    with ieee_sqrt():
        expected = whole()
    assert_bit_equal(both(resumed), expected)


@pytest.fixture
def registry(monkeypatch):
    """Removes what a test registers."""
    monkeypatch.setattr(factory.default_registry, "_optimizers", dict(factory.default_registry._optimizers))


@snippets("timm.md")
def test_recipe(both, code, registry):
    def run(optim, folder):
        after = execute(code, optim, model=make_vit(), loader=make_loader())
        return after.model.state_dict(), after.optimizer.state_dict()

    both(run)
