"""What all tests share."""

import faulthandler
import os
import sys

# OpenMP's threads wait for each other without work of their own: where other processes run, as many as there are cores,
# a thread that spins keeps from its core the one that it waits for. Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from counting import rows_per_call
from pythons import Server

from goptim import _core


def pytest_report_header() -> str:
    return f"torch {torch.__version__} for {torch.backends.cpu.get_cpu_capability()}; {_core.Version()}"


@pytest.fixture
def threads():
    """torch.set_num_threads, undone after the test. It begins with one: on small tensors more only wait."""
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
    """Lets a fault go to Go: Python's faulthandler, which pytest enables, would make it fatal if it came after Go."""
    enabled = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if enabled:
        faulthandler.enable(sys.__stderr__)


@pytest.fixture
def go():
    """How many rows each step of Go had, as it steps as ever."""
    with rows_per_call() as calls:
        yield calls


@pytest.fixture(scope="session")
def server():
    """Forks of a process that has imported torch. Tests that use it are of one group, so that one worker has it."""
    server = Server()
    yield server
    server.stop()
