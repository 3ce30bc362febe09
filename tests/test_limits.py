"""Steps fall back to torch if limits leave no room for Go's runtime, which would end the process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are limits of Linux")

# Every limit is set in a separate forked child.
PROGRAM = """
import ctypes, gc, hashlib, mmap, os, resource, sys, traceback, warnings
import torch, goptim
from goptim import _explain, _native, _run
from goptim.testing import assert_bit_equal

SIZE, STEPS = 1 << 20, 3
torch.set_num_threads(1)  # OpenMP's threads would not live on in the children

def run(optimizers):
    p = torch.nn.Parameter(torch.linspace(-1, 1, SIZE).view(1024, -1))
    optimizer = optimizers.SGD([p], lr=0.5)
    for i in range(STEPS):
        p.grad = torch.full_like(p, i)
        optimizer.step()
    return p.detach(), optimizer  # the last gradient, of twos, times lr is one

expected = run(torch.optim)[0]  # which imports all that torch needs

def addresses():
    return int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE

def limit_addresses(more):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (addresses() + more,) * 2)
    return limit

def limit_threads(more):
    def limit():
        os.setuid(4711)  # root has no such limit
        resource.setrlimit(resource.RLIMIT_NPROC, (1 + more,) * 2)
    return limit

def limit_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            os.dup(0)
    except OSError:
        pass

def without_go(limit, why):
    report = _run._Report()
    goptim._parts.watch = report.add
    limit()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual, optimizer = run(goptim)
        run(goptim)
    [warning] = caught
    assert warning.category is RuntimeWarning and why in str(warning.message), warning.message
    assert str(warning.message) == "goptim falls back to torch: " + _native.reason_unavailable()
    assert _native.core() is None
    assert_bit_equal(actual, expected)
    [row] = goptim.explain(optimizer)
    assert (row.to, row.reason) == ("torch", _native.reason_unavailable())
    assert str(report).splitlines()[1:] == [f"goptim:   6 updates: {row.reason}"], str(report)
    narrow = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    narrow.grad = torch.ones_like(narrow)
    try:
        goptim.SGD([narrow], rounding="kahan").step()
    except ValueError as e:
        assert "parameter 0" in str(e) and _native.reason_unavailable() in str(e), e
    else:
        raise AssertionError("no error")

def with_go(limit, exhaust=False):
    limit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual, optimizer = run(goptim)
        small = goptim.AdamW([torch.nn.Parameter(torch.ones(8))])
        small.param_groups[0]["params"][0].grad = torch.ones(8)
        small.step()
        kept = []
        for size in (1 << 28, 1 << 24, 1 << 21) if exhaust else ():
            try:
                while True:
                    kept.append(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0))
            except OSError:
                pass
        optimizer.step()
        for _ in range(20000):  # with Go's collector
            small.step()
    assert _native.core() is not None
    kept.clear()
    assert_bit_equal(actual, expected - 1)

# Go places its heap at random, by bytes that the system gave to this process. The heap then has 4 to 64 MiB until it
# needs more address space.
CHUNK, ARENA = 4 << 20, 64 << 20
getauxval = ctypes.CDLL(None).getauxval
getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
AT_RANDOM = 25

def first_chunk():  # of Go's heap in its arena, from 0 to 15
    before = memory()
    _native.core()
    return min(start for start, size in memory() - before if start % CHUNK == size % CHUNK == 0) % ARENA // CHUNK

def memory():
    found = set()
    for line in open("/proc/self/maps"):
        addresses, access, *_, inode = line.split()[:5]
        start, end = (int(a, 16) for a in addresses.split("-"))
        if access == "rw-p" and inode == "0":
            found.add((start, end - start))
    return found

def least_heap():  # makes Go's heap begin in the last chunk of an arena
    for seed in range(1, 1000):
        random = hashlib.sha256(str(seed).encode()).digest()[:16]
        ctypes.memmove(getauxval(AT_RANDOM), random, 16)
        child = os.fork()
        if child == 0:
            try:
                os._exit(first_chunk())
            except BaseException:
                traceback.print_exc()
                os._exit(255)
        chunk = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert 0 <= chunk < 16, chunk
        if chunk == 15:
            return
    raise AssertionError("no seed")

GIB = 1 << 30
cases = [
    *((without_go, limit_addresses(more), "GiB of address space") for more in (GIB // 2, 2 * GIB, 4 * GIB - (1 << 20))),
    *((with_go, limit_addresses(more), True) for more in (4 * GIB + GIB // 8, 6 * GIB)),
    (without_go, limit_files, "Too many open files"),
]
if os.getuid() == 0 and sys.argv[1] == "threads":
    cases += [(without_go, limit_threads(more), "threads can be started") for more in (1, 5, 15)]
    cases += [(with_go, limit_threads(more)) for more in (17, 40, 80)]
least_heap()
cases += [(with_go, limit_addresses(4 * GIB + GIB // 8), True)]
for number, (check, *arguments) in enumerate(cases):
    child = os.fork()
    if child == 0:
        try:
            check(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status:
        sys.exit(f"case {number} {arguments}: {os.waitstatus_to_exitcode(status)}")
"""


# Each step runs in its own forked child, which loads Go's runtime before the limit is set.
STEPS = """
import mmap, os, resource, sys, traceback
import torch, goptim, goptim.hf

torch.set_num_threads(1)
N = 1 << 24

def factored(kind):
    def make():
        p = torch.nn.Parameter(torch.ones(N >> 12, 1 << 12))
        p.grad = torch.ones_like(p)
        return kind([p])
    return make

def sparse(kind):
    def make():
        p = torch.nn.Parameter(torch.ones(1 << 16, 1))
        rows = torch.randint(1 << 16, (1, N // 2))
        p.grad = torch.sparse_coo_tensor(rows, torch.ones(N // 2, 1), p.shape, check_invariants=False)
        return kind([p], lr=0.1)
    return make

def wide():
    p = torch.nn.Parameter(torch.ones(2, N // 4))
    p.grad = torch.sparse_coo_tensor([[1, 1, 0]], torch.ones(3, N // 4), p.shape, check_invariants=False)
    return goptim.Adagrad([p])

def tried_out():
    optimizer = factored(goptim.Adafactor)()
    optimizer.param_groups[0]["eps"] = (None, 1e39)
    return optimizer

MAKERS = {
    "Adafactor": factored(goptim.Adafactor),
    "Adafactor tried out": tried_out,
    "hf.Adafactor": factored(goptim.hf.Adafactor),
    "SparseAdam": sparse(goptim.SparseAdam),
    "SGD": sparse(goptim.SGD),
    "wide rows": wide,
}

def check(name, more):
    optimizer = MAKERS[name]()
    small = goptim.SGD([torch.nn.Parameter(torch.ones(8))])
    [p] = small.param_groups[0]["params"]
    p.grad = torch.ones(8)
    small.step()
    used = int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + (more << 20), resource.RLIM_INFINITY))
    try:
        optimizer.step()
        result = "ok"
    except RuntimeError as e:
        assert "allocate" in str(e), e
        result = "in Go" if "goptim: " in str(e) else "in torch"
    except OverflowError:
        result = "ok"
    small.step()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    optimizer.param_groups[0]["eps"] = optimizer.defaults.get("eps")
    optimizer.step()
    return result

for name in sys.argv[1].split(","):
    for more in map(int, sys.argv[2].split(",")):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, check(name, more).encode())
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            sys.exit(f"{name}, {more} MiB: {os.waitstatus_to_exitcode(status)}")
        print(f"{name}, {more} MiB: {os.read(read, 100).decode()}")
"""


def steps(names, limits):
    """The result of a step with each number of MiB left."""
    done = subprocess.run([sys.executable, "-c", STEPS, names, limits], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())


def test_fallback_where_go_cannot_start():
    # The children import as an unprivileged user.
    package = os.path.dirname(sys.modules["goptim"].__file__) if "goptim" in sys.modules else "."
    readable = all(os.stat(folder).st_mode & 1 for folder in _parents(package))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "threads" if readable else "-"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


def _parents(path):
    while path != os.path.dirname(path):
        yield path
        path = os.path.dirname(path)


@pytest.mark.parametrize(
    ("names", "limits"),
    [
        ("Adafactor", "40,600"),
        pytest.param(
            "Adafactor,Adafactor tried out,hf.Adafactor,SparseAdam,SGD,wide rows",
            "40,140,240,600",
            marks=pytest.mark.full,
        ),
    ],
    ids=["some", "all"],
)
def test_a_step_without_memory_is_an_exception(names, limits):
    """Go's runtime would end the process. A step that does succeed, and one that comes when there is memory again."""
    results = steps(names, limits)
    for name in names.split(","):
        assert results[f"{name}, 40 MiB"] == "in Go"
        assert results[f"{name}, 600 MiB"] == "ok"
