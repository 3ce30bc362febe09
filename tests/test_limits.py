"""Steps fall back to torch if limits leave no room for Go's runtime, which would end the process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are limits of Linux")

# Every limit is set in a separate forked child.
PROGRAM = """
import gc, mmap, os, resource, sys, traceback, warnings
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
    goptim._step.watch = report.add
    limit()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual, optimizer = run(goptim)
        run(goptim)
    [warning] = caught
    assert warning.category is RuntimeWarning and why in str(warning.message), warning.message
    assert str(warning.message) == "goptim falls back to torch: " + _native.why_not()
    assert _native.core() is None
    assert_bit_equal(actual, expected)
    [row] = goptim.explain(optimizer)
    assert (row.to, row.reason) == ("torch", _native.why_not())
    assert str(report).splitlines()[1:] == [f"goptim:   6 updates: {row.reason}"], str(report)

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

GIB = 1 << 30
cases = [
    *((without_go, limit_addresses(more), "GiB of address space") for more in (GIB // 2, 2 * GIB, 4 * GIB - (1 << 20))),
    *((with_go, limit_addresses(more), True) for more in (4 * GIB + GIB // 8, 6 * GIB)),
    (without_go, limit_files, "Too many open files"),
]
if os.getuid() == 0 and sys.argv[1] == "threads":
    cases += [(without_go, limit_threads(more), "threads can be started") for more in (1, 5, 15)]
    cases += [(with_go, limit_threads(more)) for more in (17, 40, 80)]
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
