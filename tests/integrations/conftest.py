"""Fixtures of the tests with other packages: a training run, once with torch.optim and once with goptim.

A run with torch.optim may warn, because goptim cannot fix other packages. A run with goptim may only give the same
warnings.
"""

import contextlib
import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import random
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import goptim
from goptim import _core, _for_loop
from goptim._kinds import kind_of
from goptim._wrapper import Wrapper
from goptim.testing import assert_bit_equal, ieee_sqrt


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integrations)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """With GOPTIM_NO_SKIPS, a skipped test or file is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("GOPTIM_NO_SKIPS") and reporter and reporter.stats.get("skipped"):
        reporter.write_line("GOPTIM_NO_SKIPS: tests were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _package(cls):
    return cls.__module__.partition(".")[0]


def _is_known(cls):
    """Whether goptim has a class of another package. Others are wrappers of these."""
    references = [known.reference for known in _for_loop.CLASSES.values()]
    return (_package(cls), cls.__name__) in {(x.partition(".")[0], x.rpartition(".")[2]) for x in references}


class Counts:
    """Counts the parameters with a gradient, and those that ran in Go."""

    def __init__(self):
        self.asked = self.rows = self.lbfgs_steps = self.lbfgs_calls = 0

    def asks(self, optimizer, args, kwargs):
        if isinstance(optimizer, torch.optim.LBFGS):
            self.lbfgs_steps += 1
        elif isinstance(optimizer, Wrapper):
            pass  # the optimizer that it wraps asks
        elif _package(type(optimizer)) in ("torch", "goptim", "transformers") or _is_known(type(optimizer)):
            self.asked += sum(p.grad is not None for group in optimizer.param_groups for p in group["params"])

    def rows_of(self, function):
        def counted(kind, *args):
            done = function(kind, *args)
            others = [kind_of(name).handle for name in ("MuonMomentum", "Lookahead")]
            if args[-1] != 0 and kind not in others and type(done) is int:
                self.rows += done
            return done

        return counted

    def lbfgs(self, function):
        def counted(*args):
            self.lbfgs_calls += 1
            return function(*args)

        return counted


@pytest.fixture
def both(monkeypatch, tmp_path, threads):
    """Runs train(optim, folder) with torch.optim's classes and with goptim's, and compares the results.

    All parameters with a gradient must have run in Go.
    """

    def counted(train, optim, folder, **kwargs):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        folder.mkdir(exist_ok=True)
        counts = Counts()
        hook = register_optimizer_step_post_hook(counts.asks)
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught, ieee_sqrt():
            warnings.simplefilter("always")
            patch.setattr(_core, "step_groups", counts.rows_of(_core.step_groups))
            patch.setattr(_core, "LBFGS", counts.lbfgs(_core.LBFGS))
            try:
                result = train(optim, folder, **kwargs)
            finally:
                hook.remove()
        texts = {(w.category, str(w.message).replace(folder.name, "")) for w in caught}
        return result, counts, texts

    def both(train, **kwargs):
        transformers = sys.modules.get("transformers.optimization")
        counterparts = {name: getattr(torch.optim, name) for name in torch.optim.__all__}
        counterparts["patch"] = contextlib.nullcontext
        counterparts["hf"] = SimpleNamespace(Adafactor=getattr(transformers, "Adafactor", None))
        expected, theirs, known = counted(train, SimpleNamespace(**counterparts), tmp_path / "theirs", **kwargs)
        result, ours, warned = counted(train, goptim, tmp_path / "goptim", **kwargs)
        assert_bit_equal(result, expected)
        assert theirs.rows == theirs.lbfgs_calls == 0
        assert theirs.asked + theirs.lbfgs_steps > 0
        assert (ours.asked, ours.lbfgs_steps) == (theirs.asked, theirs.lbfgs_steps)
        assert ours.rows == ours.asked
        assert ours.lbfgs_calls >= ours.lbfgs_steps
        assert warned <= known, warned - known
        return result

    return both
