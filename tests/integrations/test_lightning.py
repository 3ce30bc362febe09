"""lightning's Trainer, which wraps optimizers in derived classes and steps them with a closure."""

import logging
import warnings

import pytest
import torch
from problems import sums_in_our_order
from stacks import execute, load, snippets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

lightning = load("lightning")
callbacks = load("lightning.pytorch.callbacks")


@pytest.fixture(autouse=True)
def quiet():
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))


def make_loader(n=24):
    of = torch.Generator().manual_seed(2)
    x = torch.randn(n, 10, generator=of)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=4)


def make_trainer(folder, **options):
    return lightning.Trainer(
        **{"max_epochs": 2, "enable_checkpointing": False} | options,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


class Module(lightning.LightningModule):
    def __init__(self, configure):
        super().__init__()
        self.net = make_net()
        self.configure = configure
        self.losses = []

    def configure_optimizers(self):
        return self.configure(self.net)

    def training_step(self, batch, _):
        x, y = batch
        torch.manual_seed(100 * self.trainer.current_epoch + self.trainer.global_step)  # of the dropout
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.losses.append(loss.detach())
        self.log("loss", loss)
        return loss


class Manual(Module):
    """Two optimizers, each stepped after its loss is computed, the second one every other time."""

    def __init__(self, configure):
        super().__init__(configure)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        x, y = batch
        first, second = self.optimizers()
        for optimizer in (first, second):
            self.toggle_optimizer(optimizer)
            loss = nn.functional.cross_entropy(self.net(x), y)
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            if optimizer is first or index % 2:
                optimizer.step()
                optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)
        self.lr_schedulers().step()


def outcome(module, trainer):
    optimizers = [one.state_dict() for one in trainer.optimizers]
    schedulers = [config.scheduler.get_last_lr() for config in trainer.lr_scheduler_configs]
    return module.state_dict(), optimizers, schedulers, module.losses


def train(optim, folder, configure, kind=Module, resume=None, **options):
    module, trainer = kind(lambda net: configure(optim, net)), make_trainer(folder, **options)
    trainer.fit(module, make_loader(), ckpt_path=resume and str(resume))
    return outcome(module, trainer)


def adamw(optim, net):
    return optim.AdamW(net.parameters(), lr=1e-2)


def momentum(optim, net):
    return optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)


def scheduled(optim, net):
    optimizer = adamw(optim, net)
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=24)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def on_plateau(optim, net):
    optimizer = adamw(optim, net)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", patience=0
    )  # a decreasing metric counts as a plateau
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}


def several(optim, net):
    matrices = [p for p in net.parameters() if p.dim() == 2]
    others = [p for p in net.parameters() if p.dim() != 2]
    first = optim.Adam(matrices, lr=1e-2)
    second = optim.RMSprop(others, lr=1e-3)
    return [first, second], [optim.lr_scheduler.ExponentialLR(first, 0.9)]


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("AdamW", {"lr": 1e-2, "amsgrad": True}),
        ("SGD", {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
        ("Adafactor", {"lr": 1e-2}),
        ("RAdam", {"lr": 1e-2}),
        ("Adagrad", {"lr": 1e-2}),
    ],
)
def test_classes(both, name, keywords):
    both(train, configure=lambda optim, net: getattr(optim, name)(net.parameters(), **keywords))


@pytest.mark.parametrize("configure", [scheduled, on_plateau])
def test_schedulers(both, configure):
    *_, rates, _ = both(train, configure=configure, max_epochs=4)
    assert rates[0][0] < 1e-2


def test_two_optimizers_by_hand(both):
    both(train, configure=several, kind=Manual)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 4},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"precision": "bf16-mixed", "accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("configure", [adamw, momentum])
def test_options(both, configure, options):
    both(train, configure=configure, **options)


def test_stochastic_weight_averaging(both):
    def run(optim, folder):
        average = callbacks.StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=2, annealing_epochs=2)
        return train(optim, folder, momentum, max_epochs=5, callbacks=[average])

    both(run)


def test_learning_rate_monitor(both):
    class Rates(lightning.pytorch.loggers.logger.DummyLogger):
        def __init__(self):
            super().__init__()
            self.rates = []

        def log_metrics(self, metrics, step=None):
            self.rates.append((step, metrics))

    def run(optim, folder):
        logger, monitor = Rates(), callbacks.LearningRateMonitor("step", log_momentum=True)
        module = Module(lambda net: scheduled(optim, net))
        trainer = make_trainer(folder, callbacks=[monitor], log_every_n_steps=1)
        trainer.logger = logger
        trainer.fit(module, make_loader())
        seen = [
            (step, sorted(metrics.items())) for step, metrics in logger.rates if any("lr" in key for key in metrics)
        ]
        assert len(seen) == 12
        assert {key for _, metrics in seen for key, _ in metrics} == {"lr-AdamW", "lr-AdamW-momentum"}
        return *outcome(module, trainer), seen

    both(run)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_lbfgs(both, search, precision):
    """Lightning passes its closure."""

    class Full(Module):
        def training_step(self, batch, _):
            x, y = batch
            loss = nn.functional.cross_entropy(self.net[0](x), y)
            self.losses.append(loss.detach())
            return loss

    def configure(optim, net):
        return optim.LBFGS(net[0].parameters(), lr=0.5, max_iter=3, line_search_fn=search)

    with sums_in_our_order():
        *_, losses = both(train, configure=configure, kind=Full, precision=precision, max_epochs=1)
    assert len(losses) > 6


@pytest.mark.parametrize("configure", [adamw, momentum, scheduled])
def test_resume(both, configure):
    """A resumed run has the same result as an uninterrupted one."""

    def run(optim, folder):
        keep = callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        whole = train(optim, folder, configure, callbacks=[keep], enable_checkpointing=True)
        resumed = train(optim, folder, configure, resume=folder / "epoch=0.ckpt")
        return whole, resumed

    whole, resumed = both(run)
    assert_bit_equal(resumed[:-1], whole[:-1])
    assert_bit_equal(resumed[-1], whole[-1][6:])


@pytest.mark.parametrize("optim", [torch.optim, goptim], ids=["torch", "goptim"])
def test_a_checkpoint_of_one_continues_with_the_other(both, tmp_path, optim):
    keep = callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    with ieee_sqrt(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = train(optim, tmp_path, scheduled, callbacks=[keep], enable_checkpointing=True)
    resumed = both(train, configure=scheduled, resume=tmp_path / "epoch=0.ckpt")
    assert_bit_equal(resumed[:-1], whole[:-1])


@snippets("lightning.md")
def test_recipe(both, code):
    def run(optim, folder):
        after = execute(code, optim, net=make_net(), loader=make_loader(), trainer=make_trainer(folder))
        return after.module.state_dict(), [one.state_dict() for one in after.trainer.optimizers]

    both(run)
