"""Trainers like kohya's sd-scripts: a class by its path, groups for parts of a model, and packages that they use."""

import contextlib
import importlib
from types import SimpleNamespace

import pytest
import torch
from stacks import execute, load, snippets_of
from test_references import ordered_dot
from torch import nn
from torch.nn.functional import mse_loss

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

load("schedulefree")
load("lion_pytorch")
load("prodigyopt")

LOOP, FREE, NARROW = snippets_of("recipes/diffusion.md")


def parts(seed=1):
    """Two parts of a model, and batches."""
    torch.manual_seed(seed)
    unet = nn.Sequential(nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 12))
    of = torch.Generator().manual_seed(2)
    loader = [tuple(torch.randn(4, n, generator=of) for n in (12, 6, 12)) for _ in range(8)]
    return {"unet": unet, "text_encoder": nn.Linear(6, 12), "loader": loader}


def test_loop(both):
    def run(optim, folder):
        names = execute(LOOP, optim, **parts())
        return names.unet.state_dict(), names.text_encoder.state_dict(), names.optimizer.state_dict()

    both(run)


def test_schedule_free(threads):
    code = FREE.replace("warmup_steps=2", "warmup_steps=2, foreach=False")  # ieee_sqrt replaces no roots of lists
    assert code != FREE
    results = []
    for optim in (SimpleNamespace(patch=contextlib.nullcontext), goptim):
        with ieee_sqrt():
            names = execute(code, optim, **parts())
        assert isinstance(names.optimizer, goptim.AdamWScheduleFree) == (optim is goptim)
        results.append((names.unet.state_dict(), names.optimizer.state_dict()["state"], names.samples))
    assert_bit_equal(results[1], results[0])


def test_narrow(threads):
    """torch.optim does not have these keywords."""
    names = execute(NARROW, goptim, **parts())
    assert {row.to for row in goptim.explain(names.optimizer)} == {"go"}
    assert all(torch.isfinite(p).all() for p in names.unet.parameters())


def test_prodigy(threads):
    """As sd-scripts constructs it: by its name, with a schedule, and with the estimate in the log."""

    def train(names, optimizer, scheduler):
        log = []
        for latents, text, noise in names["loader"] * 3:
            mse_loss(names["unet"](latents + noise) + names["text_encoder"](text), noise).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            log.append(optimizer.param_groups[0]["d"] * optimizer.param_groups[0]["lr"])
        return log

    results = []
    for patched in (contextlib.nullcontext, goptim.patch):
        names = parts()
        with ieee_sqrt(), patched(), ordered_dot():
            groups = [{"params": list(names[part].parameters()), "lr": 1.0} for part in ("unet", "text_encoder")]
            cls = importlib.import_module("prodigyopt").Prodigy
            optimizer = cls(groups, weight_decay=0.01, decouple=True, use_bias_correction=True, d0=1e-4, d_coef=2.0)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
            log = train(names, optimizer, scheduler)
        assert isinstance(optimizer, goptim.Prodigy) == bool(results)
        assert log[-2] != log[0]
        results.append((names["unet"].state_dict(), log, optimizer.state_dict()))
    assert {row.to for row in goptim.explain(optimizer)} == {"go"}
    assert_bit_equal(results[1], results[0])


def test_the_estimate_of_prodigy(threads):
    """torch.dot adds in another order than goptim."""
    estimates = []
    for cls in (importlib.import_module("prodigyopt").Prodigy, goptim.Prodigy):
        names = parts()
        optimizer = cls(names["unet"].parameters())
        for latents, _, noise in names["loader"]:
            mse_loss(names["unet"](latents + noise), noise).backward()
            optimizer.step()
            optimizer.zero_grad()
        estimates.append(optimizer.param_groups[0]["d"])
    assert estimates[0] > 1e-6
    assert estimates[1] == pytest.approx(estimates[0], rel=1e-5)


@pytest.mark.parametrize("path", ["goptim.AdamW", "goptim.Lion", "goptim.hf.Adafactor", "goptim.Lookahead"])
def test_a_class_by_its_path(path):
    """As sd-scripts imports it."""
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert issubclass(cls, torch.optim.Optimizer)


@pytest.mark.parametrize("path", ["lion_pytorch.Lion", "schedulefree.SGDScheduleFree", "torch.optim.RAdam"])
def test_a_class_by_its_name_under_a_patch(path):
    module, _, name = path.rpartition(".")
    with goptim.patch():
        opt = getattr(importlib.import_module(module), name)([torch.ones(2)], lr=0.1)
    assert isinstance(opt, getattr(goptim, name))
