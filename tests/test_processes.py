"""goptim and processes: import, threads, forks, signals and exit."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import pythons
import torch
from configurations import FULL_LERPS, IN_TABLES, class_of
from torch.nn import Parameter

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# The common part of the programs below: steps that are compared with torch's.
SHARED = """
import os, signal, sys, threading
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
import torch, goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

SMALL, LARGE = 1000, 1 << 20  # LARGE takes two threads of Go's

def make(optimizer, n=SMALL):
    p = torch.nn.Parameter(torch.linspace(-1, 1, n))
    p.grad = torch.linspace(1, -2, n)
    return optimizer([p])

def values(opt):
    [p] = opt.param_groups[0]["params"]
    return p, dict(opt.state[p])

def step_and_check(opt, steps, before=0):
    expected = make(torch.optim.AdamW, values(opt)[0].numel())
    with ieee_sqrt():
        for _ in range(before + steps):
            expected.step()
        for _ in range(steps):
            opt.step()
    assert_bit_equal(values(opt), values(expected))

def threads_of_process():
    return len(os.listdir("/proc/self/task"))
"""


@pytest.fixture(params=["a fork", pytest.param("a new process", marks=pytest.mark.full)])
def start(request, server):
    """Start a program in a process that has imported torch."""
    return functools.partial(start_in, server if request.param == "a fork" else None)


def start_in(server, program):
    begin = server.start if server else pythons.start_new
    return begin("-c", SHARED + textwrap.dedent(program))


def finish(process, timeout=60):
    """The output of a process after its end."""
    done = process.finish(timeout)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def check(start):
    """Run a program, and check that it succeeds with only the expected output."""

    def check(program, out=""):
        assert finish(start(program)) == (0, out, "")

    return check


@pytest.fixture
def check_in_fork(server):
    def check(program):
        assert finish(start_in(server, program)) == (0, "", "")

    return check


@pytest.fixture(scope="module")
def used():
    """A process that runs the programs of many tests, with OpenMP's threads and everything that goptim needs."""
    used = pythons.Server()
    yield used
    used.stop()


@pytest.fixture
def check_inside(used):
    """Run a program in a process where others have run before, with any number of threads."""

    def check(program):
        assert finish(used.start("-c", SHARED + textwrap.dedent(program), inside=True)) == (0, "", "")

    return check


@pytest.mark.full
def test_no_warnings_in_strict_python():
    program = """
    torch.set_num_threads(2)
    for n in (SMALL, LARGE):
        step_and_check(make(goptim.AdamW, n), 3)
    """
    warning = "ignore:Implicitly cleaning up:ResourceWarning"  # torch 2.6 removes a temporary folder at exit
    done = pythons.new("-X", "dev", "-W", "error", "-W", warning, "-c", SHARED + textwrap.dedent(program))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_extension_is_loaded_by_the_first_optimizer(check_in_fork):
    check_in_fork("""
    before = threads_of_process()
    assert "goptim._core" not in sys.modules
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    goptim.lr_scheduler, goptim.RMSprop, goptim.Optimizer
    try:
        goptim.AdamW([], lr=-1)
    except ValueError:
        pass
    assert "goptim._core" not in sys.modules
    assert threads_of_process() == before
    goptim.AdamW([torch.nn.Parameter(torch.ones(1))])
    assert "goptim._core" in sys.modules
    """)


def test_step_at_exit(check):
    check(
        """
    import atexit
    torch.set_num_threads(2)
    small, large = make(goptim.AdamW), make(goptim.AdamW, LARGE)
    small.step()

    @atexit.register
    def last_steps():
        step_and_check(small, 2, before=1)
        step_and_check(large, 2)
        print("stepped")
    """,
        out="stepped\n",
    )


def test_exit_while_a_daemon_thread_is_in_go(check):
    check("""
    torch.set_num_threads(2)
    started = threading.Semaphore(0)

    def forever(opt):
        groups = (opt._ask(opt.param_groups[0]),)
        while True:
            opt._go(groups)
            started.release()

    for n in (SMALL, LARGE, LARGE):
        opt = make(goptim.AdamW, n)
        opt.step()
        threading.Thread(target=forever, args=[opt], daemon=True).start()
    for _ in range(100):
        started.acquire()
    """)


def test_exit_while_a_daemon_thread_steps(start):
    process = start("""
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(2)
    started = threading.Semaphore(0)

    def forever(opt):
        while True:
            opt.step()
            started.release()

    for n in (SMALL, LARGE, LARGE):
        threading.Thread(target=forever, args=[make(goptim.AdamW, n)], daemon=True).start()
    for _ in range(100):
        started.acquire()
    """)
    code, _, err = finish(process)
    # Python ends such a thread when it next acquires the interpreter. In torch's C++ code that is fatal, also with
    # torch.optim. Two threads may end at the same time.
    fatal = "terminate called without an active exception\n"
    assert (code, err) in [
        (0, ""),
        (-signal.SIGABRT, fatal),
        (-signal.SIGABRT, fatal + "terminate called recursively\n"),
    ]


@needs_fork
def test_forked_child_steps(check_inside):
    """Go's runtime does not survive, so steps fall back to torch, with exact results."""
    check_inside("""
    import copy, pickle, signal
    torch.set_num_threads(2)
    opts = [make(goptim.AdamW, n) for n in (SMALL, LARGE)]
    for opt in opts:
        step_and_check(opt, 2)
    torch.set_num_threads(1)  # OpenMP's threads, too, do not live on
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        assert goptim._native.core() is None
        for opt in opts:
            step_and_check(opt, 2, before=2)
        step_and_check(make(goptim.AdamW), 2)
        pickle.loads(pickle.dumps(opts)), copy.deepcopy(opts)
        grandchild = os.fork()
        if grandchild == 0:
            step_and_check(opts[0], 1, before=4)
            os._exit(0)
        assert os.waitpid(grandchild, 0)[1] == 0
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    torch.set_num_threads(2)
    for opt in opts:
        step_and_check(opt, 2, before=2)
    """)


@needs_fork
def test_every_class_continues_in_a_forked_child(tmp_path, check_inside):
    """Parent and child have the same results. In the child, LBFGS sums in torch's order."""
    program = f"""
    import signal
    sys.path.insert(0, {os.path.dirname(__file__)!r})
    torch.set_num_threads(1)
    from configurations import BEYOND, class_of
    from runs import INFOS, Run
    names = [*INFOS, *BEYOND]
    with ieee_sqrt():
        runs = [Run(class_of(name)).steps(2) for name in names]
        child = os.fork()
        if child == 0:
            signal.alarm(50)
            assert goptim._native.core() is None
            torch.save([run.steps(2).params for run in runs], {str(tmp_path / "child")!r})
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        parents = [run.steps(2).params for run in runs]
    childs = torch.load({str(tmp_path / "child")!r})
    assert len(childs) == len(names) > 10
    for name, ours, theirs in zip(names, parents, childs):
        if name == "LBFGS":
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        else:
            assert_bit_equal(ours, theirs, name)
    """
    check_inside(program)


@needs_fork
def test_forked_child_steps_after_torch_has_used_threads(check_inside):
    check_inside("""
    import signal
    torch.set_num_threads(2)
    opt = make(goptim.AdamW, LARGE)
    step_and_check(opt, 2)
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        opt.step()
        assert torch.get_num_threads() == 2
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """)


@needs_fork
def test_forked_child_exits_by_itself(check):
    """With Python's normal exit, and while Go was running in the parent."""
    check("""
    import signal
    opt = make(goptim.AdamW, LARGE)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            opt.step()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(2):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    stop.set()
    thread.join()
    """)


@needs_fork
def test_fork_before_the_extension_is_loaded(check_in_fork):
    """Such a child starts its own Go runtime."""
    check_in_fork("""
    import signal
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        torch.set_num_threads(2)
        step_and_check(make(goptim.AdamW), 2)
        step_and_check(make(goptim.AdamW, LARGE), 2)
        assert goptim._native.core() is not None
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    step_and_check(make(goptim.AdamW), 2)
    """)


@pytest.mark.full
@needs_fork
def test_fork_after_torch_has_used_threads_before_the_extension_is_loaded():
    """OpenMP would hang in such a child, so steps run on Go's own threads."""
    program = """
    import signal
    torch.set_num_threads(2)
    p = torch.nn.Parameter(torch.zeros(LARGE))
    p.grad = torch.ones(LARGE).add_(1)
    if any((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        assert 0 not in goptim._native._gomp()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        assert goptim._native._gomp() == (0, 0)
        opt = goptim.SGD([p], lr=1)
        opt.step()
        assert goptim._native.core() is not None
        assert (p.detach().numpy() == -2).all()  # torch would hang
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    opt = goptim.SGD([p], lr=1)
    opt.step()
    assert (p.detach().numpy() == -2).all()
    """
    assert finish(start_in(None, program)) == (0, "", "")


def test_numbers_of_threads_that_change(check_inside):
    """OpenMP threads end and start between steps."""
    check_inside("""
    opt = make(goptim.AdamW, LARGE)
    for i, n in enumerate([2, 1, 4, 2, 3, 1, 2]):
        torch.set_num_threads(n)
        step_and_check(opt, 2, before=2 * i)
    """)


def test_without_openmp(check_inside):
    """Steps run on Go's own threads, as with a torch without libgomp."""
    check_inside("""
    torch.set_num_threads(2)
    opt = make(goptim.AdamW, LARGE)
    step_and_check(opt, 2)
    goptim._core.OpenMP(0, 0)
    step_and_check(opt, 2, before=2)
    goptim._core.OpenMP(*goptim._native._gomp())
    """)


DATA = """
import torch, goptim
from test_processes_shared import *

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        opt = make(goptim.AdamW)  # an optimizer of the worker's own
        step_and_check(opt, 2)
        return i, values(opt)[0].detach()

if __name__ == "__main__":
    import sys
    opt = make(goptim.AdamW)
    opt.step()
    loader = torch.utils.data.DataLoader(
        Data(), batch_size=2, num_workers=int(sys.argv[2]), multiprocessing_context=sys.argv[1], timeout=60
    )
    seen = []
    for i, (numbers, params) in enumerate(loader):
        seen += numbers.tolist()
        assert params.shape == (2, SMALL)
        step_and_check(opt, 1, before=1 + i)
    assert sorted(seen) == list(range(8)), seen
    print("loaded")
"""


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        pytest.param("fork", "2", marks=needs_fork),
        pytest.param("forkserver", "1", marks=pytest.mark.full),
        pytest.param("spawn", "1", marks=pytest.mark.full),
    ],
)
def test_data_loader_workers_step(method, workers, tmp_path, server):
    (tmp_path / "test_processes_shared.py").write_text(SHARED)
    (tmp_path / "data.py").write_text(DATA)
    code, out, err = finish(server.start(tmp_path / "data.py", method, workers))
    assert (code, out) == (0, "loaded\n"), err


@pytest.mark.parametrize("n", ["SMALL", "LARGE"])
def test_interrupt_in_a_training_loop(n, start):
    process = start(f"""
    torch.set_num_threads(2)
    opt = make(goptim.AdamW, {n})
    other = torch.nn.Parameter(torch.ones(3))
    other.grad = torch.ones(3)
    opt.add_param_group({{"params": [other]}})
    steps = 0
    try:
        while True:
            opt.step()
            steps += 1
            if steps == 3:
                print("training", flush=True)
    except KeyboardInterrupt:
        done = int(values(opt)[1]["step"])
        assert done in (steps, steps + 1)  # Go ends what it has begun
        assert int(opt.state[other]["step"]) in (steps, steps + 1)
        step_and_check(opt, 2, before=done)
        print("interrupted")
    raise KeyboardInterrupt
    """)
    assert process.stdout.readline() == "training\n"
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process, timeout=20)
    assert time.monotonic() - sent < 10
    assert out == "interrupted\n", err
    assert code == -signal.SIGINT


def test_frequent_signals_to_all_threads(check):
    """A Python handler runs while Go computes or waits, and on Go's stacks."""
    check("""
    import ctypes, signal, time
    torch.set_num_threads(2)
    seen = 0

    def handler(number, frame):
        global seen
        seen += 1

    before = set(os.listdir("/proc/self/task"))
    opt = make(goptim.AdamW, LARGE)
    opt.step()
    gos = set(os.listdir("/proc/self/task")) - before
    assert len(gos) > 1
    libc = ctypes.CDLL(None)
    stop = threading.Event()

    def send():
        while not stop.is_set():
            for thread in gos:
                libc.tgkill(os.getpid(), int(thread), signal.SIGUSR1)
            time.sleep(0.0005)

    signal.signal(signal.SIGALRM, handler)
    signal.signal(signal.SIGUSR1, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    sender = threading.Thread(target=send)
    sender.start()
    step_and_check(opt, 30, before=1)
    stop.set()
    sender.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert seen > 10
    """)


HOST = """
import ctypes, functools, subprocess

libc = ctypes.CDLL(None)
signal.signal(signal.SIGINT, signal.SIG_DFL)

def action(number):
    \"\"\"The handler of a signal, in C.\"\"\"
    buffer = (ctypes.c_uint64 * 32)()
    return None if libc.sigaction(number, None, buffer) else buffer[0]

def actions():
    of_faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE}
    return {n: action(n) for n in signal.valid_signals() - of_faults}

def status(thread, key):
    lines = Path(f"/proc/self/task/{thread}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")), 16)

def threads():
    return set(os.listdir("/proc/self/task"))

def ignored_in_a_program():
    done = subprocess.run(["cat", "/proc/self/status"], restore_signals=False, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if line.startswith("SigIgn")]

urgent = []
signal.signal(signal.SIGURG, lambda *_: urgent.append("before"))
torch.set_num_threads(2)
torch.ones(LARGE).add_(1)

# Signals are the program's, and so are the masks of its threads.
blocked = {signal.SIGCHLD, signal.SIGPROF, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
handlers, before, ignored = actions(), threads(), ignored_in_a_program()
large = make(goptim.AdamW, LARGE)
assert actions() == handlers
step_and_check(large, 2)
assert ignored_in_a_program() == ignored
gos, masks = threads() - before, []

def step_elsewhere():
    make(goptim.AdamW).step()
    masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

thread = threading.Thread(target=step_elsewhere)
thread.start()
thread.join()
masks.append(signal.pthread_sigmask(signal.SIG_SETMASK, []))
assert masks == [blocked, blocked], masks
assert len(gos) > 3
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGURG, signal.SIGALRM, signal.SIGUSR1, signal.SIGPIPE):
    assert all(status(thread, "SigBlk") >> (number - 1) & 1 for thread in gos), number

def many_steps(n):
    for _ in range(n):
        large.step()

os.kill(os.getpid(), signal.SIGURG)
many_steps(100)
signal.signal(signal.SIGURG, lambda *_: urgent.append("after"))
os.kill(os.getpid(), signal.SIGURG)
many_steps(100)
assert urgent == ["before", "after"], urgent

# As many threads work as torch would use, whatever Go has counted.
def ticks(thread):
    return sum(map(int, Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[11:13]))

before = {thread: ticks(thread) for thread in threads()}
many_steps(150)
used = sorted((ticks(thread) - n for thread, n in before.items()), reverse=True)
assert used[1] > 0.1 * used[0], used

# Results do not depend on threads: all compute in the caller's state, whether they exist before it is set or not.
TINY = torch.finfo(torch.float32).tiny
@functools.cache
def subnormal(seed, *shape):  # torch's own threads do not flush
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([1.0, TINY, TINY / 100, 1e-19])
    return torch.randn(shape, generator=generator) * scales[torch.randint(4, shape, generator=generator)]

def run(optimizers, name):
    shapes = [(600, 1000), (500, 700), (77,)] if name == "Adafactor" else [(3, LARGE // 3), (1000,)]
    params = [torch.nn.Parameter(subnormal(i, *shape).clone()) for i, shape in enumerate(shapes)]
    beyond = goptim._for_loop.IN_GO if optimizers is goptim else goptim._for_loop.CLASSES
    cls = beyond.get(name) or getattr(optimizers, name)
    optimizer = cls(params, **({"momentum": 0.9} if name == "SGD" else {}))
    if hasattr(optimizer, "train"):
        optimizer.train()
    for i in range(2):
        for j, p in enumerate(params):
            p.grad = subnormal(10 * i + j, *p.shape).clone()
            if name in FULL_LERPS:
                p.grad.abs_()  # torch.lerp(0.0, -0.0, 1.0), in the first step, depends on the position of the element
        optimizer.step()
    return params, [optimizer.state[p] for p in params]

expected = {}
for name in ("Adafactor", "SGD"):
    run(torch.optim, name)
torch.set_num_threads(1)
torch.set_flush_denormal(True)
with ieee_sqrt():
    for name in NAMES:
        expected[name] = run(torch.optim, name)
torch.set_flush_denormal(False)
plain = run(goptim, "SGD")
torch.set_num_threads(2)

def check_flushed():
    torch.set_flush_denormal(True)
    actual = {name: run(goptim, name) for name in NAMES}
    torch.set_flush_denormal(False)
    for name in NAMES:
        assert_bit_equal(actual[name], expected[name], name)
    assert_bit_equal(run(goptim, "SGD"), plain)

check_flushed()

def rounded_up(n):
    torch.set_num_threads(n)
    assert libc_m.fesetround(UPWARD) == 0
    result = run(goptim, "AdamW")
    libc_m.fesetround(0)
    return result

libc_m, UPWARD = ctypes.CDLL("libm.so.6"), 0x400000 if os.uname().machine == "aarch64" else 0x800
assert_bit_equal(rounded_up(2), rounded_up(1))
torch.set_num_threads(2)

# The same on Go's own threads.
goptim._core.OpenMP(0, 0)
check_flushed()
assert_bit_equal(rounded_up(2), rounded_up(1))
assert not torch.equal(rounded_up(1)[0][0], run(goptim, "AdamW")[0][0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at threads through Linux's proc")
def test_a_step_does_not_change_the_process():
    """Its signal handlers, masks, number of threads and their floating-point state.

    OpenMP binds the main thread to one CPU here, which is what Go detects, and GOMAXPROCS is also 1.
    """
    environment = os.environ | {"OMP_PROC_BIND": "close", "GOMAXPROCS": "1"}
    names = [name for name in IN_TABLES if name not in FULL_LERPS]
    code, out, err = finish(
        pythons.start_new("-c", f"{SHARED}\nNAMES, FULL_LERPS = {names}, {FULL_LERPS}\n{HOST}", env=environment), 120
    )
    assert (code, out) == (0, ""), err


HANDLER = """
#include <signal.h>
#include <string.h>
#include <sys/time.h>
static volatile long count;
static void handle(int number)
{
    volatile char big[200000];
    memset((void *)big, number, sizeof big);
    count++;
}
long begin(int number, int microseconds)
{
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    return sigaction(number, &action, 0) || setitimer(ITIMER_REAL, &timer, 0) ? -1 : 0;
}
long seen(void) { return count; }
"""


@pytest.mark.full
@pytest.mark.skipif(shutil.which("gcc") is None, reason="it compiles a handler")
def test_handlers_in_c_with_large_stacks(tmp_path):
    """A handler without SA_ONSTACK runs on the current stack, which may be a goroutine's, in any thread of a step."""
    (tmp_path / "handler.c").write_text(HANDLER)
    library = tmp_path / "handler.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "handler.c"], check=True)
    program = f"""
    import ctypes, time
    torch.set_num_threads(2)
    handler = ctypes.CDLL({str(library)!r})
    large, small, steps = make(goptim.AdamW, LARGE), make(goptim.AdamW), 0
    before = set(os.listdir("/proc/self/task"))
    large.step()
    stop = threading.Event()

    def send():  # to the threads of OpenMP
        while not stop.is_set():
            for thread in before:
                ctypes.CDLL(None).tgkill(os.getpid(), int(thread), signal.SIGALRM)
            time.sleep(0.0005)

    assert handler.begin(signal.SIGALRM, 100) == 0
    sender = threading.Thread(target=send)
    sender.start()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        step_and_check(large, 2, before=1 + 2 * steps)
        step_and_check(small, 2, before=2 * steps)
        steps += 1
        if steps == 20:
            large, small, steps = make(goptim.AdamW, LARGE), make(goptim.AdamW), 0
            large.step()
    stop.set()
    sender.join()
    assert handler.seen() > 1000
    """
    assert finish(pythons.start_new("-c", SHARED + textwrap.dedent(program)), 120) == (0, "", "")


@pytest.mark.parametrize("when", ["before", "after"])
def test_faulthandler_reports_crashes_outside_go(when, server):
    program = f"""
    import ctypes, faulthandler, resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "{when}" == "before":
        faulthandler.enable()
    opt = make(goptim.AdamW)
    opt.step()
    if "{when}" == "after":
        faulthandler.enable()
    ctypes.string_at(0)
    """
    code, _, err = finish(start_in(server, program))
    assert code < 0
    assert "Fatal Python error: Segmentation fault" in err
    assert "string_at" in err


@pytest.mark.parametrize("n", [1000, 1 << 20], ids=["small", "large"])
def test_two_threads_step_two_optimizers(n, threads):
    threads(2)

    def make(optimizer, seed):
        torch.default_generator.manual_seed(seed)
        opt = optimizer([Parameter(torch.randn(n)), Parameter(torch.randn(n, dtype=torch.float64))])
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.randn_like(p)
        return opt

    def run(opt, steps=10):
        for _ in range(steps):
            opt.step()

    classes = ["AdamW", "AdamW", "SGD", "Adam"]
    ours = [make(class_of(name), i) for i, name in enumerate(classes)]
    workers = [threading.Thread(target=run, args=[opt]) for opt in ours]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    for i, (name, opt) in enumerate(zip(classes, ours, strict=True)):
        expected = make(getattr(torch.optim, name), i)
        with ieee_sqrt():
            run(expected)
        assert_bit_equal(opt.param_groups[0]["params"], expected.param_groups[0]["params"])


def test_other_threads_run_during_a_long_step(threads):
    """Go computes without holding the GIL."""
    threads(1)
    p = Parameter(torch.zeros(1 << 24))
    p.grad = torch.ones_like(p)
    opt = goptim.AdamW([p])
    opt.step()
    stop, ticks = threading.Event(), []

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    steps = []
    for _ in range(5):
        start = time.perf_counter()
        opt.step()
        steps.append((start, time.perf_counter()))
    stop.set()
    ticker.join()
    assert max(sum(start < t < end for t in ticks) for start, end in steps) > 3
