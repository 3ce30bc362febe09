"""goptim and another library that contains Go's runtime, in one process: docs/process.md."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/process.md").read_text()
pytestmark = [pytest.mark.full, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's linker")]

SHARED = """
import ctypes, mmap, signal, sys
import torch, goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

N = 1 << 20  # two threads of Go

def load(path):
    other = ctypes.CDLL(path)
    other.OtherSum.argtypes, other.OtherSum.restype = [ctypes.c_longlong], ctypes.c_longlong
    other.OtherFault.restype = ctypes.c_longlong
    assert other.OtherSum(1000) == sum(range(1000))
    return other

def make(optimizer):
    p = torch.nn.Parameter(torch.linspace(-1, 1, N))
    p.grad = torch.linspace(1, -2, N)
    return optimizer([p])

def values(optimizer):
    [p] = optimizer.param_groups[0]["params"]
    return p, dict(optimizer.state[p])
"""

# The argument says which runtime starts first, and which one a fault happens in first.
TOGETHER = """
path, first, fault = sys.argv[1:]
if first == "goptim":
    ours = make(goptim.AdamW)
    ours.step()
    other = load(path)
else:
    other = load(path)
    ours = make(goptim.AdamW)
    ours.step()
for _ in range(10):
    ours.step()
    assert other.OtherSum(100_000) == sum(range(100_000))
expected = make(torch.optim.AdamW)
with ieee_sqrt():
    for _ in range(11):
        expected.step()
assert_bit_equal(values(ours), values(expected))

def fault_in_ours():
    memory = mmap.mmap(-1, 4 * N)
    bad = make(goptim.SGD)
    [p] = bad.param_groups[0]["params"]
    p.grad = torch.frombuffer(memory, dtype=torch.float32)
    libc = ctypes.CDLL(None)
    address, size = ctypes.c_void_p(p.grad.data_ptr()), ctypes.c_size_t(4 * N)
    assert libc.mprotect(address, size, 0) == 0
    try:
        bad.step()
    except RuntimeError as e:
        print("goptim:", "invalid memory address" in str(e) or str(e))
    assert libc.mprotect(address, size, 3) == 0

def fault_in_other():
    print("other:", other.OtherFault() == 1)

for f in (fault_in_ours, fault_in_other)[:: 1 if fault == "goptim" else -1] * 2:
    f()

caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append("SIGUSR1"))
signal.raise_signal(signal.SIGUSR1)
signal.signal(signal.SIGURG, lambda *_: caught.append("SIGURG"))
signal.raise_signal(signal.SIGURG)
ours.step()
print(*caught)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "other.so"
    go = Path(sys.executable).with_name("go")
    subprocess.run([go, "build", "-buildmode=c-shared", "-o", path, "./tests/programs/other"], cwd=ROOT, check=True)
    return path


def run(program, *arguments):
    words = [sys.executable, "-c", SHARED + program, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("fault", ["goptim", "other"])
@pytest.mark.parametrize("first", ["goptim", "other"])
def test_steps_faults_signals_and_exit(first, fault, library):
    done = run(TOGETHER, library, first, fault)
    lines = ["goptim: True", "other: True"] if fault == "goptim" else ["other: True", "goptim: True"]
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, [*lines * 2, "SIGUSR1 SIGURG"], "")


MANY = """
path, folder = sys.argv[1:]
import shutil
try:
    for i in range(10_000):
        ctypes.CDLL(shutil.copy(path, f"{folder}/{i}.so"))
except OSError as e:
    print(i, e)
goptim.AdamW([torch.zeros(1)])
"""


def test_too_many_runtimes_are_an_error(library, tmp_path):
    """The error of the page, when the memory for thread-local variables of libraries is exhausted."""
    done = run(MANY, library, tmp_path)
    assert done.returncode == 1
    count = int(done.stdout.split()[0])
    assert count > 10
    [message] = re.findall(r"ImportError: (.*)", PAGE)
    start, end = message.split("…")
    [last] = done.stderr.splitlines()[-1:]
    assert last.startswith(f"ImportError: {start}"), done.stderr
    assert end.strip() in last
    shutil.rmtree(tmp_path)
