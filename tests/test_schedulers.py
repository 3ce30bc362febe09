"""The parts of torch.optim that change hyperparameters between steps or average parameters."""

import copy
import inspect
import io

import pytest
import torch
from configurations import IN_TABLES
from runs import INFOS, Run, assert_same, both_classes
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = [
    pytest.mark.usefixtures("threads"),
    pytest.mark.filterwarnings("ignore:The epoch parameter"),  # given by torch 2.6's SequentialLR
]

every = pytest.mark.parametrize("name", [*IN_TABLES, *(name for name in ("Muon", "SparseAdam") if name in INFOS)])


@pytest.fixture(autouse=True)
def exact():
    with ieee_sqrt():
        yield


def cycles(opt):
    """Whether a schedule can also cycle the momentum or the first of betas."""
    return "betas" in opt.defaults or "momentum" in opt.defaults


SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 1 / (epoch + 0.5)),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [1, 4], 0.3),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, total_iters=2),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, total_iters=4),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.7),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 8, 1.5),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 5),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 2, 2),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=0),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=12, cycle_momentum=cycles(opt)),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=2, cycle_momentum=cycles(opt)),
    "SWALR": lambda opt: SWALR(opt, 0.05, anneal_epochs=4),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, total_iters=2), lr_scheduler.CosineAnnealingLR(opt, 6)], [2]
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, total_iters=3), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
}


def test_no_scheduler_is_forgotten():
    found = {
        name
        for module in (lr_scheduler, swa_utils)
        for name, c in vars(module).items()
        if inspect.isclass(c) and issubclass(c, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert found - {"LRScheduler"} == SCHEDULERS.keys()


class Scheduled:
    """A run with a schedule, and the hyperparameters that it set."""

    def __init__(self, optimizer, scheduler, lr=0.1):
        momentum = {"momentum": 0.9} if "momentum" in inspect.signature(optimizer).parameters else {}
        self.run = Run(optimizer, lr=lr, **momentum)  # with an initial momentum of 0 there is no buffer
        self.make = SCHEDULERS[scheduler]
        self.schedule = self.make(self.run.opt)
        self.seen = []

    def steps(self, n):
        for _ in range(n):
            self.run.steps(1)
            if isinstance(self.schedule, lr_scheduler.ReduceLROnPlateau):
                self.schedule.step(1.0)
            else:
                self.schedule.step()
            [group] = self.run.opt.param_groups
            self.seen.append(copy.deepcopy([group.get(key) for key in ("lr", "betas", "momentum")]))
        return self

    def go_on(self, optimizer):
        """Load saved states into a new optimizer, of this class or another, and a new schedule."""
        file = io.BytesIO()
        torch.save((self.run.opt.state_dict(), self.schedule.state_dict()), file)
        file.seek(0)
        state, schedule = torch.load(file, weights_only=False)
        other = copy.copy(self)
        other.seen = list(self.seen)
        other.run = self.run.copy()
        other.run.opt = optimizer(other.run.params, lr=0.1)
        other.schedule = self.make(other.run.opt)  # before the states, because it changes the groups
        other.run.opt.load_state_dict(state)
        other.schedule.load_state_dict(schedule)
        return other


@every
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("lr", ["float", "Tensor"])
@pytest.mark.covering("scheduler lr", "name lr", "name", "scheduler")
def test_schedulers(name, scheduler, lr):
    theirs, ours = (
        Scheduled(optimizer, scheduler, 0.1 if lr == "float" else torch.tensor(0.1)).steps(7)
        for optimizer in both_classes(name)[::-1]
    )
    assert_bit_equal(ours.seen, theirs.seen)
    assert len(set(map(str, ours.seen))) > 1
    assert_same(ours.run, theirs.run)


@every
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("ours_first", [False, True], ids=["theirs to ours", "ours to theirs"])
@pytest.mark.covering("scheduler ours_first", "name ours_first")
def test_a_schedule_that_is_saved_midway(name, scheduler, ours_first):
    ours, theirs = both_classes(name)
    first, second = (ours, theirs) if ours_first else (theirs, ours)
    whole = Scheduled(first, scheduler).steps(3)
    resumed = whole.go_on(second).steps(4)
    whole.steps(4)
    assert_bit_equal(resumed.seen, whole.seen)
    assert_bit_equal(resumed.run.params, whole.run.params)
    assert_bit_equal(resumed.run.opt.state_dict()["state"], whole.run.opt.state_dict()["state"])


def test_lbfgs_under_a_schedule():
    """The schedule's learning rate applies to the next step."""
    rates = []
    for optimizer in both_classes("LBFGS"):
        run = Run(optimizer, lr=0.5)
        schedule = lr_scheduler.ExponentialLR(run.opt, 0.5)
        moved = []
        for _ in range(3):
            before = [p.detach().clone() for p in run.params]
            run.opt.param_groups[0]["max_iter"] = 1
            run.steps(1)
            moved.append(max((p - q).abs().max().item() for p, q in zip(run.params, before, strict=True)))
            schedule.step()
        rates.append((moved, run.opt.param_groups[0]["lr"]))
    torch.testing.assert_close(rates[0], rates[1], rtol=1e-4, atol=0)
    assert rates[0][1] == 0.0625


def network():
    torch.default_generator.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def batches(n=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 4, generator=generator) for _ in range(n)]


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RAdam"])
@pytest.mark.parametrize("average", ["swa", "ema", "ema with buffers"])
def test_averaged_models(name, average):
    """An average of stepped parameters, with recomputed batch norm, saved and loaded in between."""
    results = []
    for optimizer in both_classes(name):
        model = network()
        opt = optimizer(model.parameters(), lr=0.05)
        options = {"swa": {}, "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}}.get(
            average, {"multi_avg_fn": get_ema_multi_avg_fn(0.5), "use_buffers": True}
        )
        averaged = AveragedModel(model, **options)
        schedule = SWALR(opt, 0.01, anneal_epochs=3)
        for i, x in enumerate(batches()):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
            averaged.update_parameters(model)
            schedule.step()
            if i == 2:
                saved = copy.deepcopy(averaged.state_dict())
                averaged = AveragedModel(model, **options)
                averaged.load_state_dict(saved)
        update_bn(batches(), averaged)
        results.append((averaged.state_dict(), opt.state_dict()["state"]))
    assert_bit_equal(*results)


def test_an_averaged_model_is_stepped_itself():
    """Its parameters are copies, which another optimizer can train."""
    results = []
    for optimizer in both_classes("AdamW"):
        averaged = AveragedModel(network())
        opt = optimizer(averaged.parameters(), lr=0.05)
        for x in batches():
            opt.zero_grad()
            averaged(x).square().mean().backward()
            opt.step()
        results.append(averaged.state_dict())
    assert_bit_equal(*results)


def test_the_names_are_torchs():
    assert goptim.lr_scheduler is lr_scheduler
