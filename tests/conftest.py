"""Fixtures and settings of all tests."""

import faulthandler
import os
import sys

# OpenMP's threads spin while they wait for each other. If other processes use all cores, a spinning thread takes the
# core of the thread that it waits for. This must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from counting import rows_of_lists, rows_per_call
from pythons import Server

from goptim import _core


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
    """Forks of a process that has imported torch. Tests that use it are in one xdist_group, for one worker."""
    server = Server()
    yield server
    server.stop()
