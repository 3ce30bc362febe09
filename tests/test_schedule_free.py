"""Schedule-Free optimizers: train and eval mode, the entries of their groups, and errors."""

import copy
import pickle

import pytest
import torch
from configurations import both_classes, gradients, normal
from torch.nn import Parameter

import goptim
from goptim import _for_loop
from goptim.testing import assert_bit_equal, ieee_sqrt

NAMES = ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"]
ENTRIES = ("k", "train_mode", "weight_sum", "lr_max", "scheduled_lr")
every = pytest.mark.parametrize("name", NAMES)
options = {"weight_decay": 0.03}


@pytest.fixture(autouse=True)
def eval_mode(monkeypatch):
    """Optimizers begin in eval mode, unlike in other tests."""
    for name in NAMES:
        monkeypatch.setitem(_for_loop.CLASSES[name].entries, "train_mode", False)


def entries(opt):
    return [{key: (type(group[key]), group[key]) for key in ENTRIES} for group in opt.param_groups]


def values(dtype=torch.float32):
    strided = normal((5, 7), dtype, 1).t()
    return [normal((37,), dtype, 0), strided, normal((40, 6), dtype, 2)[:, ::2], normal((0,), dtype, 3)]


def made(cls, params):
    return cls([{"params": params[:2]}, {"params": params[2:], "lr": 0.5, "weight_lr_power": 1.5}], **options)


def both(name, dtype=torch.float32):
    runs = [[Parameter(v.clone()) for v in values(dtype)] for _ in range(2)]
    return runs, [made(cls, params) for cls, params in zip(both_classes(name), runs, strict=True)]


def step(runs, opts, i, skip=()):
    for opt, params in zip(opts, runs, strict=True):
        for k, (p, g) in enumerate(zip(params, gradients(params, i), strict=True)):
            p.grad = None if k in skip else g
        with ieee_sqrt():
            opt.step()


def assert_equal(runs, opts, what=""):
    assert_bit_equal(runs[1], runs[0], what)
    assert_bit_equal(*(opt.state_dict()["state"] for opt in reversed(opts)), what)
    assert entries(opts[1]) == entries(opts[0]), what


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every
def test_modes_and_schedules(name, dtype):
    """Train and eval in the middle, a learning rate that falls, and parameters without a gradient."""
    runs, opts = both(name, dtype)
    for i in range(12):
        for opt in opts:
            if i % 4 == 0:
                opt.train()
            opt.param_groups[0]["lr"] = 0.1 / (i + 1)
        step(runs, opts, i, skip=(0, 3) if i < 2 else ())
        assert_equal(runs, opts, f"step {i}")
        if i % 4 == 3:
            for opt in opts:
                opt.eval()
                opt.eval()
            assert_equal(runs, opts, f"eval {i}")
    assert entries(opts[1])[0]["k"] == (int, 12)
    assert {to for group in goptim.explain(opts[1]) for to in [group.to]} <= {"go", "torch"}


@every
def test_eval_is_the_average(name):
    p = Parameter(normal((3,), torch.float64, 0))
    opt = getattr(goptim, name)([p], lr=0.1)
    average = None
    opt.train()
    for i in range(9):
        p.grad = normal((3,), torch.float64, i)
        opt.step()
        z, group = opt.state[p]["z"], opt.param_groups[0]
        if group["weight_sum"]:
            c = group["lr_max"] ** 2 / group["weight_sum"]
            average = z.clone() if average is None else (1 - c) * average + c * z
    opt.eval()
    torch.testing.assert_close(p.detach(), average)


@every
def test_step_outside_train_mode(name):
    for cls in both_classes(name):
        p = Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        opt = cls([p])
        for _ in range(2):
            with pytest.raises(RuntimeError, match=f"{name}: not in train mode, expected a call of its method train"):
                opt.step()
            assert opt.param_groups[0]["k"] == 0
            assert p.tolist() == [1, 1, 1]
            opt.train()
            opt.eval()


@every
def test_a_group_that_was_added_later(name):
    """As in the package, only the first group has to be in train mode; a part falls back to torch."""
    runs, opts = both(name)
    for opt, params in zip(opts, runs, strict=True):
        opt.train()
        late = [Parameter(normal((3, 2), dtype, 9)) for dtype in (torch.complex64, torch.float32)]
        params += late
        opt.add_param_group({"params": late})
    for i in range(5):
        step(runs, opts, i)
        assert_equal(runs, opts, f"step {i}")
    assert [group["train_mode"] for group in opts[1].param_groups] == [True, True, False]
    assert [group["k"] for group in opts[1].param_groups] == [5, 5, 5]


@every
def test_saved_states(name, tmp_path):
    """A state_dict, a file, a copy and a pickled optimizer in the middle of a run."""
    runs, opts = both(name)
    for opt in opts:
        opt.train()
    for i in range(3):
        step(runs, opts, i)
    new = [made(cls, params) for cls, params in zip(both_classes(name), runs, strict=True)]
    for opt, saved in zip(new, reversed(opts), strict=True):
        opt.load_state_dict(copy.deepcopy(saved.state_dict()))
    step(runs, new, 3)
    assert_equal(runs, new, "state_dict")
    goptim.save_state(new[1], tmp_path / "state")
    files = [made(cls, params) for cls, params in zip(both_classes(name), runs, strict=True)]
    for opt in files:
        goptim.load_state(opt, tmp_path / "state")
    assert entries(files[1]) == entries(new[1])
    step(runs, files, 4)
    assert_equal(runs, files, "file")
    for copied in (copy.deepcopy(files[1]), pickle.loads(pickle.dumps(files[1]))):
        params = [p for group in copied.param_groups for p in group["params"]]
        assert type(copied) is type(files[1])
        assert entries(copied) == entries(files[1])
        assert_bit_equal(params, runs[1])
        copied.eval()
        copied.train()
    step(runs, files, 5)
    assert_equal(runs, files, "afterwards")


@every
def test_an_error_changes_nothing(name):
    runs, opts = both(name)
    for opt in opts:
        opt.train()
    step(runs, opts, 0)
    before = copy.deepcopy(opts[1].state_dict())
    opts[1].state[runs[1][0]]["z"] = torch.zeros(3)
    with pytest.raises(ValueError, match="its state 'z' has shape"):
        step(runs[1:], opts[1:], 1)
    assert entries(opts[1])[0]["k"] == (int, 1)
    opts[1].load_state_dict(before)
    opts[1].param_groups[1]["weight_lr_power"] = -1e5 if name[0] == "R" else 1e5
    opts[1].param_groups[1]["lr"] = 1e5
    with pytest.raises(ArithmeticError):
        step(runs[1:], opts[1:], 1)
    assert entries(opts[1])[0]["k"] == (int, 1)
    opts[1].load_state_dict(before)
    for opt in opts:
        step([runs[opts.index(opt)]], [opt], 1)
    assert_equal(runs, opts)


@every
def test_gradients_stay(name):
    """The package overwrites them."""
    for cls in both_classes(name):
        p = Parameter(torch.ones(5))
        opt = cls([p], weight_decay=0.1)
        opt.train()
        p.grad = torch.full((5,), 3.0)
        opt.step()
        assert p.grad.tolist() == [3.0] * 5


@every
def test_a_learning_rate_that_is_a_tensor(name):
    runs, opts = both(name)
    for opt in opts:
        opt.param_groups[0]["lr"] = torch.tensor(0.05)
        opt.train()
    for i in range(3):
        step(runs, opts, i)
        assert_equal(runs, opts, f"step {i}")
    assert {x.to for x in goptim.explain(opts[1])[:2]} == {"torch"}


@every
def test_sixteen_bits_run_in_go(name):
    """foreach=True is the default of the package, and does not ask for torch's rounding."""
    p = Parameter(normal((37,), torch.bfloat16, 0))
    opt = getattr(goptim, name)([p], lr=0.1)
    opt.train()
    exact = Parameter(p.detach().float())
    wide = getattr(goptim, name)([exact], lr=0.1)
    wide.train()
    for i in range(7):
        p.grad = normal((37,), torch.bfloat16, i)
        assert goptim.explain(opt)[0].to == "go"
        exact.data, exact.grad = p.detach().float(), p.grad.float()
        if i:
            wide.state[exact] = {key: t.float() for key, t in opt.state[p].items()}
        opt.step()
        wide.step()
        assert_bit_equal(p, exact.detach().bfloat16())
        assert_bit_equal(opt.state[p]["z"], wide.state[exact]["z"].bfloat16())
    opt.eval()
    wide.eval()


@every
def test_initial_states_of_a_checkpoint(name):
    """torch.distributed.checkpoint steps with a learning rate of 0, if there is no state."""
    from torch.distributed.checkpoint.state_dict import _init_optim_state

    ks = []
    for cls in both_classes(name):
        p = Parameter(torch.ones(3))
        opt = cls([p])
        with pytest.raises(RuntimeError, match="not in train mode"):
            _init_optim_state(opt)
        p.grad = None
        opt.param_groups[0]["train_mode"] = True
        opt.param_groups[0]["lr"] = 0.1
        _init_optim_state(opt)
        assert p.tolist() == [1, 1, 1]
        assert opt.state[p]["z"].tolist() == [1, 1, 1]
        ks.append((opt.param_groups[0]["k"], opt.param_groups[0]["lr_max"], opt.param_groups[0]["weight_sum"]))
    assert ks == [(1, 0.0, 0.0)] * 2


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("AdamWScheduleFree", {"lr": -1.0}, "Invalid learning rate: -1.0, expected at least 0"),
        ("AdamWScheduleFree", {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0, expected at least 0 and"),
        ("RAdamScheduleFree", {"eps": float("nan")}, "Invalid epsilon value: nan, expected at least 0"),
        ("SGDScheduleFree", {"momentum": 1.0}, "Invalid momentum value: 1.0, expected above 0 and below 1"),
        ("SGDScheduleFree", {"warmup_steps": -1}, "Invalid warmup_steps value: -1, expected at least 0"),
    ],
)
def test_bad_arguments(name, arguments, says):
    for cls in both_classes(name):
        with pytest.raises(ValueError, match=says):
            cls([torch.zeros(1)], **arguments)


def test_eval_with_a_beta_of_zero():
    for cls in both_classes("AdamWScheduleFree"):
        p = Parameter(torch.ones(2))
        opt = cls([p], betas=(0.0, 0.9))
        opt.train()
        opt.eval()
        opt.train()
        p.grad = torch.ones(2)
        opt.step()
        with pytest.raises(ZeroDivisionError):
            opt.eval()
