"""MuonWithAuxAdam, Lookahead and SAM are bit-for-bit equal to the classes of the packages that have them."""

import copy
import itertools
import pickle

import pytest
import torch
from configurations import gradients, normal
from stacks import load
from torch.nn import Parameter

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = pytest.mark.usefixtures("threads")

muon = load("muon")
load("timm")
lookahead = load("timm.optim.lookahead")
factory = load("timm.optim._optim_factory")
sam = load("pytorch_optimizer.optimizer.sam")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Version 0.1.0 of the package raises an error for filters of convolutions, and for parameters without a gradient.
MATRICES = [(1, 1), (5, 1), (17, 33), (33, 17), (64, 64), (256, 100), (2, 6, 5)]
OTHERS = [(37,), (3, 5), (), (1003,), (7, 5, 3)]
OPTIONS = [
    ({}, {}),
    (
        {"lr": 0.3, "momentum": 0.4, "weight_decay": 0.7},
        {"lr": 0.1, "betas": (0.2, 0.5 + 1e-9), "eps": 1e-3, "weight_decay": 0.3},
    ),
    ({"momentum": 0.5 + 1e-9, "lr": 3}, {"betas": (0.5, 0.0), "eps": 0, "lr": 3}),
]
SHAPES = [(37,), (5, 7), (), (1003,), (4, 3, 2, 2)]


def made(shapes, dtype):
    return [Parameter(normal(shape, dtype, i)) for i, shape in enumerate(shapes)]


def set_gradients(runs, step, skip=()):
    for params in runs:
        for i, (p, g) in enumerate(zip(params, gradients(params, step), strict=True)):
            p.grad = None if i in skip else g.clone()


def step_all(opts, call):
    with ieee_sqrt():
        for opt in opts:
            call(opt)


def assert_equal(runs, opts, what):
    assert_bit_equal(runs[1], runs[0], what)
    expected, ours = (opt.state_dict() for opt in opts)
    assert_bit_equal(ours["state"], expected["state"], what)
    groups = [[dict(sorted(group.items())) for group in state["param_groups"]] for state in (ours, expected)]
    assert_bit_equal(*groups, what)


@DTYPES
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "decay", "limits"])
def test_muon_with_an_adam_half(options, dtype, threads):
    runs = [made([*MATRICES, *OTHERS], dtype) for _ in range(2)]

    def construct(cls, params):
        n = len(MATRICES)
        return cls(
            [
                {"params": params[n : n + 2], "use_muon": False, **options[1]},
                {"params": params[:4], "use_muon": True, **options[0]},
                {"params": params[4:n], "use_muon": True},
                {"params": params[n + 2 :], "use_muon": False},
            ]
        )

    classes = (muon.SingleDeviceMuonWithAuxAdam, goptim.MuonWithAuxAdam)
    opts = [construct(cls, params) for cls, params in zip(classes, runs, strict=True)]
    for step in range(8):
        threads(1 + step % 2)
        set_gradients(runs, step)
        step_all(opts, lambda opt: opt.step())
        assert_equal(runs, opts, f"step {step}")
        if step == 4:  # each continues with the other's state
            saved = [copy.deepcopy(opt.state_dict()) for opt in opts]
            opts = [construct(cls, params) for cls, params in zip(classes, runs, strict=True)]
            for opt, state in zip(opts, reversed(saved), strict=True):
                opt.load_state_dict(state)


def test_a_patched_muon():
    theirs = muon.SingleDeviceMuonWithAuxAdam
    with goptim.patch():
        opt = theirs([{"params": [torch.ones(2, 2)], "use_muon": True}])
        assert isinstance(opt, goptim.MuonWithAuxAdam)
        assert isinstance(opt, theirs)
        opt.step()
        assert type(pickle.loads(pickle.dumps(opt))) is type(opt)
    assert type(theirs([{"params": [torch.ones(2, 2)], "use_muon": True}])) is theirs


BASES = [("SGD", {"lr": 0.1, "momentum": 0.9}), ("AdamW", {"lr": 0.1}), ("RMSprop", {"lr": 0.01})]
bases = pytest.mark.parametrize(("base", "options"), BASES, ids=lambda x: x if isinstance(x, str) else "")


def both_bases(base, runs, options):
    for module, params in zip((torch.optim, goptim), runs, strict=True):
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05}]
        yield getattr(module, base)(groups, **options, foreach=False)


@DTYPES
@bases
@pytest.mark.parametrize(("alpha", "k"), [(0.5, 6), (0.8, 2), (0.0, 1), (1.0, 3)])
def test_lookahead(base, options, alpha, k, dtype):
    runs = [made(SHAPES, dtype) for _ in range(2)]
    classes = (lookahead.Lookahead, goptim.Lookahead)
    opts = [cls(b, alpha, k) for cls, b in zip(classes, both_bases(base, runs, options), strict=True)]
    for step in range(13):
        set_gradients(runs, step, skip=(1,) if step % 4 == 1 else ())
        step_all(opts, lambda opt: opt.step())
        assert_equal(runs, opts, f"step {step}")
        assert opts[1].defaults == opts[0].defaults
        if step == 7:
            saved = [copy.deepcopy(opt.state_dict()) for opt in opts]
            opts = [cls(b, alpha, k) for cls, b in zip(classes, both_bases(base, runs, options), strict=True)]
            for opt, state in zip(opts, reversed(saved), strict=True):
                opt.load_state_dict(state)
    step_all(opts, lambda opt: opt.sync_lookahead())
    assert_equal(runs, opts, "synchronized")


@pytest.mark.parametrize("name", ["lookahead_adamw", "lookahead_momentum", "lookahead_rmsprop"])
def test_lookahead_of_timms_factory(name):
    runs = [made(SHAPES, torch.float32) for _ in range(2)]
    opts = []
    for params, patch in zip(runs, (False, True), strict=True):
        if patch:
            with goptim.patch():
                opts.append(factory.create_optimizer_v2(params, name, lr=0.1, foreach=False))
        else:
            opts.append(factory.create_optimizer_v2(params, name, lr=0.1, foreach=False))
    assert isinstance(opts[1], goptim.Lookahead)
    assert isinstance(opts[1], lookahead.Lookahead)
    assert type(opts[1]._base_optimizer).__module__.startswith("goptim.")
    assert type(opts[0]) is lookahead.Lookahead
    for step in range(13):
        set_gradients(runs, step)
        step_all(opts, lambda opt: opt.step())
        assert_equal(runs, opts, f"step {step}")
    other = pickle.loads(pickle.dumps(opts[1]))
    assert type(other) is type(opts[1])
    assert other.param_groups[0]["lookahead_step"] == 13


@DTYPES
@bases
@pytest.mark.parametrize(("adaptive", "use_gc"), list(itertools.product([False, True], [False, True])))
def test_sam(base, options, adaptive, use_gc, dtype):
    runs = [made(SHAPES, dtype) for _ in range(2)]
    arguments = {"rho": 0.3, "adaptive": adaptive, "use_gc": use_gc, **options, "foreach": False}

    def construct(cls, module, params):
        groups = [{"params": params[:2], "rho": 0.1}, {"params": params[2:], "lr": 0.05}]
        return cls(groups, getattr(module, base), **arguments)

    pairs = ((sam.SAM, torch.optim), (goptim.SAM, goptim))
    opts = [construct(*pair, params) for pair, params in zip(pairs, runs, strict=True)]
    for step in range(6):
        set_gradients(runs, 2 * step, skip=(1,) if step == 2 else ())
        step_all(opts, lambda opt: opt.first_step())
        assert_bit_equal(runs[1], runs[0], f"perturbed, step {step}")
        assert_equal(runs, opts, f"perturbed, step {step}")
        set_gradients(runs, 2 * step + 1, skip=(1,) if step == 2 else ())
        step_all(opts, lambda opt: opt.second_step(zero_grad=True))
        assert_equal(runs, opts, f"step {step}")
        assert all(p.grad is None for p in runs[1])
        if step == 3:
            saved = [copy.deepcopy(opt.state_dict()) for opt in opts]
            opts = [construct(*pair, params) for pair, params in zip(pairs, runs, strict=True)]
            for opt, state in zip(opts, reversed(saved), strict=True):
                opt.load_state_dict(state)


def test_sam_with_a_closure_and_a_patch():
    runs, opts = [], []
    for patch in (False, True):
        params = made([(33,)], torch.float32)
        if patch:
            with goptim.patch():
                opts.append(sam.SAM(params, torch.optim.AdamW, lr=0.1, foreach=False))
        else:
            opts.append(sam.SAM(params, torch.optim.AdamW, lr=0.1, foreach=False))
        runs.append(params)
    assert isinstance(opts[1], goptim.SAM)
    assert isinstance(opts[1].base_optimizer, goptim.AdamW)
    for _ in range(3):
        for opt, (p,) in zip(opts, runs, strict=True):

            def closure(opt=opt, p=p):
                opt.zero_grad()
                loss = (p.sin() * 3).sum()
                loss.backward()
                return loss

            closure()
            with ieee_sqrt():
                opt.step(closure)
        assert_equal(runs, opts, "step")
