"""goptim in the life of processes: import, threads, forks, signals and exit."""

import functools
import os
import signal
import textwrap
import threading
import time

import pytest
import pythons
import torch
from torch.nn import Parameter

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = pytest.mark.xdist_group("server")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# What the programs below share: steps that are checked against torch's.
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
    """What a process has written when it has ended."""
    done = process.finish(timeout)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def check(start):
    """Run a program that says nothing but what is expected, and succeeds."""

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
    """A process that runs the programs of many tests, with threads of OpenMP's and all that goptim needs."""
    used = pythons.Server()
    yield used
    used.stop()


@pytest.fixture
def check_inside(used):
    """Run a program where others have run before, with as many threads as it likes."""

    def check(program):
        assert finish(used.start("-c", SHARED + textwrap.dedent(program), inside=True)) == (0, "", "")

    return check


@pytest.mark.full
def test_strict_python_has_nothing_to_say():
    program = """
    torch.set_num_threads(2)
    for n in (SMALL, LARGE):
        step_and_check(make(goptim.AdamW, n), 3)
    """
    torchs = "ignore:Implicitly cleaning up:ResourceWarning"  # of torch 2.6, which leaves a temporary folder to exit
    done = pythons.new("-X", "dev", "-W", "error", "-W", torchs, "-c", SHARED + textwrap.dedent(program))
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
    # Python ends such a thread where it next wants the interpreter. In C++ of torch's that is fatal, so torch.optim's
    # optimizers do the same; two threads may do it at once.
    fatal = "terminate called without an active exception\n"
    assert (code, err) in [
        (0, ""),
        (-signal.SIGABRT, fatal),
        (-signal.SIGABRT, fatal + "terminate called recursively\n"),
    ]


@needs_fork
def test_forked_child_steps(check_inside):
    """Go's runtime does not live on in it: torch's own step takes over, with the same bits."""
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
def test_every_class_goes_on_in_a_forked_child(tmp_path, check_inside):
    """The child ends where the parent does, which is Go's way; LBFGS' sums are torch's there, in another order."""
    program = f"""
    import signal
    sys.path.insert(0, {os.path.dirname(__file__)!r})
    torch.set_num_threads(1)
    from runs import INFOS, Run
    with ieee_sqrt():
        runs = [Run(getattr(goptim, name)).steps(2) for name in INFOS]
        child = os.fork()
        if child == 0:
            signal.alarm(50)
            assert goptim._native.core() is None
            torch.save([run.steps(2).params for run in runs], {str(tmp_path / "child")!r})
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        parents = [run.steps(2).params for run in runs]
    childs = torch.load({str(tmp_path / "child")!r})
    assert len(childs) == len(INFOS) > 10
    for name, ours, theirs in zip(INFOS, parents, childs):
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
    """Through all that Python does at exit, and while Go was at work in the parent."""
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
    """Such a child has a Go of its own."""
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
    """OpenMP would hang in such a child, and Go's own threads step."""
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
    """Threads of OpenMP end and begin between steps."""
    check_inside("""
    opt = make(goptim.AdamW, LARGE)
    for i, n in enumerate([2, 1, 4, 2, 3, 1, 2]):
        torch.set_num_threads(n)
        step_and_check(opt, 2, before=2 * i)
    """)


def test_without_openmp(check_inside):
    """Go's own threads step, as on a machine whose torch came without libgomp."""
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


def test_signals_that_come_all_the_time_to_all_threads(check):
    """A handler of Python's runs while Go computes or waits, and on stacks of Go's."""
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


@pytest.mark.parametrize("when", ["before", "after"])
def test_faulthandler_reports_crashes_that_are_not_gos(when, server):
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
        torch.manual_seed(seed)
        opt = optimizer([Parameter(torch.randn(n)), Parameter(torch.randn(n, dtype=torch.float64))])
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.randn_like(p)
        return opt

    def run(opt, steps=10):
        for _ in range(steps):
            opt.step()

    classes = ["AdamW", "AdamW", "SGD", "Adam"]
    ours = [make(getattr(goptim, name), i) for i, name in enumerate(classes)]
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


def test_other_threads_go_on_during_a_long_step(threads):
    """Go computes without the lock of Python's interpreter."""
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
