"""Fixtures and settings of all tests."""

import faulthandler
import gc
import os
import sys
from typing import Any

# OpenMP's threads spin while they wait for each other. If other processes use all cores, a spinning thread takes the
# core of the thread that it waits for. This must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from core import FIRST, TOGETHER, covering, factors
from counting import rows_of_lists, rows_per_call
from pythons import Server

from goptim import _core


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Give processes the cases of a function together: xdist's time for one grows with the number of those before.

    xdist's own marker for groups has no effect in pytest 9.2.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            function = nodeid.partition("[")[0]
            return TOGETHER.get(function) or TOGETHER.get(function.partition("::")[0], function)

        def _assign_work_unit(self, node: Any) -> None:
            slow = next((scope for scope in self.workqueue if scope.startswith(FIRST)), None)
            if slow is not None:
                self.workqueue.move_to_end(slow, last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thin", action="store_true", help="few cases of each test: all values of its parameters, once")


@pytest.hookimpl(trylast=True)  # after a test has all of its cases
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Mark cases as full that add no combination to the core, of the parameters that a test's `covering` names.

    Cases that are not asked for are left out before pytest creates them, which takes a millisecond for each.
    """
    cases, thin = metafunc._calls, metafunc.config.getoption("--thin")
    if not cases or metafunc.definition.get_closest_marker("full"):
        cases[1:] = [] if _wants(metafunc.config) == "core" else cases[1:]  # pytest deselects one
        return
    core = [case for case in cases if all(mark.name != "full" for mark in case.marks)]
    marker = metafunc.definition.get_closest_marker("covering")
    if core and (thin or marker):
        chosen = covering([factors(case) for case in core], *((1,) if thin else marker.args))
        for i, case in enumerate(core):
            if i not in chosen:
                case.marks.append(pytest.mark.full.mark)
        core = [case for i, case in enumerate(core) if i in chosen]
    of_core = set(map(id, core))
    others = [case for case in cases if id(case) not in of_core]
    wanted = {"core": core, "full": others}.get("core" if thin else _wants(metafunc.config), cases)
    cases[:] = wanted or cases[:1]


def _wants(config: pytest.Config) -> str:
    """Which of the tests, core or full, the option -m selects; empty if both or unknown."""
    return {"not full": "core", "full": "full"}.get(config.option.markexpr.partition(" and ")[0], "")


def pytest_collection_finish() -> None:
    """Keep the garbage collector from traversing thousands of tests, which all live until the end."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_report_header() -> str:
    return f"torch {torch.__version__} for {torch.backends.cpu.get_cpu_capability()}; {_core.Version()}"


@pytest.fixture
def threads():
    """torch.set_num_threads, restored after the test. A test starts with one thread, enough for small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def double_default():
    """Makes float64 the default dtype, in which torch then counts steps."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def to_go():
    """Disables Python's faulthandler, which pytest enables, and which would make faults in Go fatal."""
    enabled = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if enabled:
        faulthandler.enable(sys.__stderr__)


@pytest.fixture
def go():
    """The number of rows of each step in Go, which runs as usual."""
    with rows_per_call() as calls:
        yield calls


@pytest.fixture
def lists():
    """The number of tensors of each operation on a list in Go, which runs as usual."""
    with rows_of_lists() as calls:
        yield calls


@pytest.fixture(scope="session")
def server():
    """Forks of a process that has imported torch. Tests that use it are in TOGETHER of tests/core.py."""
    server = Server()
    yield server
    server.stop()
