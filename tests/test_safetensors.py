"""States in safetensors files, exchanged between goptim, torch.optim and the Go package, continue exactly."""

import contextlib
import errno
import itertools
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time

import golden
import numpy as np
import pytest
import torch
from configurations import CLASSES, class_of, for_loop_flags, oracle_of

import goptim
from goptim import _files, _safetensors
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

NAMES = [name for name, (class_name, _, _) in golden.RUNS.items() if class_name in CLASSES]
GO = sorted((golden.PATH.parent / "go").glob("*.safetensors"))
BUILDERS = pytest.mark.parametrize("build", [class_of, oracle_of], ids=["goptim", "torch"])


def start(build, name, dtype, tensors, step):
    """An optimizer with a class's defaults, and its parameters after a step."""
    class_name, _, shapes = golden.RUNS[name]
    params = {n: tensors[f"value.{step}.{n}"].clone().requires_grad_() for n in shapes}
    return build(class_name)(params.values(), lr=0.5, **for_loop_flags(class_name)), params


def step(optimizer, params, tensors, t):
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(lambda: golden.valley(list(params.values())))
        return
    for n, p in params.items():
        grad, index = tensors.get(f"grad.{t}.{n}"), tensors.get(f"index.{t}.{n}")
        if index is not None:
            grad = torch.sparse_coo_tensor(index[None], grad, p.shape, check_invariants=True)
        p.grad = grad
    with ieee_sqrt():
        optimizer.step()


def compare(name, tensors, params, t):
    for n, p in params.items():
        want = tensors[f"value.{t}.{n}"]
        if name in golden.INEXACT:
            tolerance = 2e-4 if name == "Muon" else 1e-4 if p.dtype is torch.float32 else 1e-11
            torch.testing.assert_close(p.detach(), want, rtol=tolerance, atol=tolerance)
        else:
            assert_bit_equal(p.detach(), want)


@BUILDERS
@pytest.mark.parametrize("path", GO, ids=lambda path: path.stem)
def test_continues_a_run_of_go(build, path):
    name = path.stem.removesuffix("-float32")
    if name not in NAMES:
        pytest.skip("this torch has no such class")
    tensors, _ = _safetensors.read(path)
    optimizer, params = start(build, name, "float32", tensors, golden.SAVED)
    goptim.load_state(optimizer, path, params.items())
    for t in range(golden.SAVED + 1, golden.RUN_STEPS + 1):
        step(optimizer, params, tensors, t)
        compare(name, tensors, params, t)


@pytest.mark.parametrize("name", ["Adam", "Adagrad"])
def test_states_are_not_loaded_to_a_default_device(name, tmp_path):
    p = torch.nn.Parameter(torch.ones(3))
    first = class_of(name)([p])
    for saved in range(2):  # also a file without states
        goptim.save_state(first, tmp_path / "state", [("p", p)])
        opt = class_of(name)([p])
        with torch.device("meta"):
            goptim.load_state(opt, tmp_path / "state", [("p", p)])
        assert bool(opt.state[p]) == bool(saved or name == "Adagrad")
        assert all(t.is_cpu for t in opt.state[p].values())
        p.grad = torch.ones(3)
        first.step()
        first.state[p]["step"] = first.state[p]["step"].to(torch.int64)  # loading converts it


def test_go_has_a_file_of_every_run():
    assert [path.stem for path in GO] == sorted(f"{name}-float32" for name in golden.RUNS)


@pytest.mark.parametrize("dtype", golden.DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_continues_after_a_round_trip(name, dtype, tmp_path):
    """A state is transferred from torch's class to goptim's with two files."""
    golden.run(name, dtype, tmp_path / "run")
    tensors, _ = _safetensors.read(tmp_path / "run")
    first, params = start(class_of, name, dtype, tensors, golden.SAVED)
    goptim.load_state(first, tmp_path / "run", params.items())
    goptim.save_state(first, tmp_path / "again", params.items())
    again, _ = _safetensors.read(tmp_path / "again")
    for key in again:
        assert_bit_equal(again[key], tensors[key])
    assert {k for k in tensors if k.startswith("state.")} == set(again)
    second, params = start(class_of, name, dtype, tensors, golden.SAVED)
    goptim.load_state(second, tmp_path / "again", params.items())
    for t in range(golden.SAVED + 1, golden.RUN_STEPS + 1):
        step(second, params, tensors, t)
        compare(name, tensors, params, t)


@pytest.mark.skipif(torch.__version__ < "2.15", reason="the options of an older torch are others")
def test_files_are_fresh():
    """Except those that depend on the machine's matrix products."""
    for file, data in golden.runs().items():
        if not file.startswith(golden.INEXACT):
            assert data == (golden.RUNS_PATH / file).read_bytes(), f"{file}: run `make golden`"
    for file, data in golden.halves().items():
        assert data == (golden.HALVES_PATH / file).read_bytes(), f"{file}: run `make golden`"
    assert golden.SCHEDULES_PATH.read_text() == golden.schedules(), "run `make golden`"


def test_a_reader_of_the_format_reads_them():
    reader = pytest.importorskip("safetensors.torch")
    for path in [*GO, *golden.RUNS_PATH.glob("*")]:
        theirs, (ours, _) = reader.load_file(path), _safetensors.read(path)
        assert theirs.keys() == ours.keys()
        for key, t in theirs.items():
            assert_bit_equal(t, ours[key])


def test_names_and_options(tmp_path):
    model = torch.nn.Linear(2, 3)
    lr = torch.tensor(0.1)
    groups = [{"params": [model.weight], "lr": lr}, {"params": [model.bias], "betas": (0.5, 0.6), "initial_lr": 1}]
    optimizer = goptim.AdamW(groups)
    goptim.save_state(optimizer, tmp_path / "state", model.named_parameters())
    saved = json.loads(_safetensors.read(tmp_path / "state")[1]["param_groups"])
    assert [g["params"] for g in saved] == [["weight"], ["bias"]]
    fresh = goptim.AdamW([{"params": [p]} for p in model.parameters()])
    goptim.load_state(fresh, tmp_path / "state", model.named_parameters())
    assert fresh.param_groups[0]["lr"] == lr.item()
    assert fresh.param_groups[1]["betas"] == (0.5, 0.6)
    goptim.save_state(optimizer, tmp_path / "numbered")
    assert [g["params"] for g in json.loads(_safetensors.read(tmp_path / "numbered")[1]["param_groups"])] == [
        ["0"],
        ["1"],
    ]
    named = goptim.SGD(model.named_parameters(), momentum=0.9)
    if "param_names" in named.param_groups[0]:
        goptim.save_state(named, tmp_path / "named")
        assert json.loads(_safetensors.read(tmp_path / "named")[1]["param_groups"])[0]["params"] == ["weight", "bias"]
    assert not list(tmp_path.glob("*.tmp"))


def test_errors_change_nothing(tmp_path):
    path = tmp_path / "state"
    p, q = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = goptim.Adam([p, q])
    p.grad = torch.ones(3)
    optimizer.step()
    goptim.save_state(optimizer, path)
    data = path.read_bytes()
    before = optimizer.state_dict()

    def refuses(what, match, names=None):
        with pytest.raises(ValueError, match=match):
            goptim.load_state(what, path, names)

    refuses(goptim.SGD([p, q]), "the state of Adam, expected that of SGD")
    refuses(goptim.Adam([p]), "parameters")
    refuses(goptim.Adam([{"params": [p]}, {"params": [q]}]), "1 groups of parameters, expected 2")
    refuses(goptim.Adam([q, p]), r"parameter 0: exp_avg is of torch.float32 and shape \(3,\)")
    refuses(goptim.Adam([p.detach().double().requires_grad_(), q]), "expected torch.float64")
    refuses(optimizer, "parameters", [("a", p), ("b", q)])
    refuses(optimizer, "no name", [("a", p)])
    refuses(optimizer, "the same name", [("a", p), ("a", q)])
    for damaged in (data[:-1], data + b"x", data[:100], b"", data.replace(b'"F32"', b'"F31"', 1)):
        path.write_bytes(damaged)
        refuses(optimizer, "damaged")
    _safetensors.write(path, {}, {})
    refuses(optimizer, "not the state of an optimizer")
    with pytest.raises(TypeError, match="Mine is none of"):
        goptim.save_state(type("Mine", (torch.optim.Optimizer,), {})([p], {}), path)
    assert_bit_equal(optimizer.state_dict()["state"], before["state"])
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def small(lr=1e-3, n=3):
    """An optimizer with a state."""
    p = torch.ones(n, requires_grad=True)
    p.grad = torch.ones(n)
    optimizer = goptim.Adam([p], lr=lr)
    optimizer.step()
    return optimizer


def rate_in(path):
    """The learning rate in a file, which must be complete."""
    return json.loads(_safetensors.read(path)[1]["param_groups"])[0]["lr"]


def test_symbolic_links_are_followed(tmp_path):
    real, chain = tmp_path / "real" / "state", tmp_path / "chain"
    real.parent.mkdir()
    os.symlink("real/state", tmp_path / "link")
    os.symlink(tmp_path / "link", chain)
    for lr in (0.5, 0.25):  # a dangling link, and a link to a file
        goptim.save_state(small(lr), chain)
        assert chain.is_symlink()
        assert (tmp_path / "link").is_symlink()
        assert rate_in(real) == lr
    assert sorted(os.listdir(tmp_path)) == ["chain", "link", "real"]
    assert os.listdir(real.parent) == ["state"]
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(OSError, match="symbolic links"):
        goptim.save_state(small(), tmp_path / "loop")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o4755])
def test_permissions_are_kept(tmp_path, mode):
    path = tmp_path / "state"
    path.write_bytes(b"old")
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    path.chmod(mode)
    if os.geteuid() != 0 and not mode & 0o200:
        with pytest.raises(PermissionError):
            goptim.save_state(small(), path)
        assert path.read_bytes() == b"old"
        return
    before = path.stat()
    goptim.save_state(small(0.5), path)
    after = path.stat()
    assert rate_in(path) == 0.5
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path):
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            goptim.save_state(small(), tmp_path / str(mask))
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / str(mask)).stat().st_mode) == 0o666 & ~mask


def test_devices_are_not_replaced(tmp_path):
    devices = {
        "null": (1, 3),
        "full": (1, 7),
    }  # a separate one, because a failure of this test would replace the system's
    for name, numbers in devices.items():
        try:
            os.mknod(tmp_path / name, 0o600 | stat.S_IFCHR, os.makedev(*numbers))
            (tmp_path / name).open("rb").close()
        except PermissionError:
            pytest.skip("this user, or this file system, has no device nodes")
        before = (tmp_path / name).stat()
        with pytest.raises(OSError, match="No space left") if name == "full" else contextlib.nullcontext():
            goptim.save_state(small(), tmp_path / name)
        after = (tmp_path / name).stat()
        assert (after.st_ino, after.st_rdev, after.st_mode) == (before.st_ino, before.st_rdev, before.st_mode)
    os.symlink("null", tmp_path / "link")
    goptim.save_state(small(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)
    os.mknod(tmp_path / "block", 0o600 | stat.S_IFBLK, os.makedev(7, 200))
    with pytest.raises(OSError, match="expected a file, got a block device"):
        goptim.save_state(small(), tmp_path / "block")
    for name in (*devices, "link", "block"):
        (tmp_path / name).unlink()


def test_other_kinds_of_files_are_not_replaced(tmp_path):
    goptim.save_state(small(0.5), tmp_path / "state")
    whole = (tmp_path / "state").read_bytes()

    os.mkfifo(tmp_path / "fifo")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    goptim.save_state(small(0.5), tmp_path / "fifo")
    reader.join()
    assert read == [whole]
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)

    for path in (tmp_path, f"{tmp_path}/", f"{tmp_path}/.", f"{tmp_path}/new/", "/"):
        with pytest.raises(IsADirectoryError):
            goptim.save_state(small(), path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        goptim.save_state(small(), tmp_path / "nowhere" / "state")
    with pytest.raises(NotADirectoryError):
        goptim.save_state(small(), tmp_path / "state" / "state")
    assert sorted(os.listdir(tmp_path)) == ["fifo", "state"]


def test_descriptors_are_written(tmp_path):
    """Also if they are files, as in a shell's redirection."""
    goptim.save_state(small(0.5), tmp_path / "state")
    whole = (tmp_path / "state").read_bytes()
    r, w = os.pipe()
    goptim.save_state(small(0.5), f"/dev/fd/{w}")
    os.close(w)
    with open(r, "rb") as f:
        assert f.read() == whole
    with open(tmp_path / "open", "w+b") as f:
        for folder in ("/dev/fd", "/proc/self/fd", f"/proc/{os.getpid()}/fd", "/proc/thread-self/fd"):
            inode = os.fstat(f.fileno()).st_ino
            goptim.save_state(small(0.5), f"{folder}/{f.fileno()}")
            assert os.stat(tmp_path / "open").st_ino == inode
            f.seek(0)
            assert f.read() == whole
        os.unlink(tmp_path / "open")
        goptim.save_state(small(0.25), f"/proc/self/fd/{f.fileno()}")
        f.seek(0)
        assert f.read() != whole
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize("kind", ["str", "bytes", "path-like", "relative"])
def test_paths(tmp_path, kind, monkeypatch):
    class PathLike:
        def __fspath__(self):
            return bytes(tmp_path / "state")

    monkeypatch.chdir(tmp_path)
    path = {"str": str(tmp_path / "state"), "bytes": bytes(tmp_path / "state"), "path-like": PathLike()}.get(
        kind, "state"
    )
    goptim.save_state(small(0.5), path)
    optimizer = small()
    goptim.load_state(optimizer, path)
    assert optimizer.param_groups[0]["lr"] == 0.5
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(ValueError, match=f"^{'' if kind == 'relative' else tmp_path}/?state: no safetensors file"):
        goptim.load_state(optimizer, path)


@pytest.mark.parametrize("name", ["x" * 255, "\u00e9" * 127, b"\xff" * 255], ids=["long", "wide", "no UTF-8"])
def test_long_names(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    for lr in (0.5, 0.25):
        goptim.save_state(small(lr), path)
        assert rate_in(path) == lr
    with pytest.raises(OSError, match="too long") as e:
        goptim.save_state(small(), path + b"xx")
    assert e.value.errno == errno.ENAMETOOLONG
    assert os.listdir(os.fsencode(tmp_path)) == [os.path.basename(path)]


UNNAMED = pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])


def without_unnamed(monkeypatch, unnamed):
    """A system with or without unnamed temporary files."""
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE")


def fails(error):
    def function(*args, **kwargs):
        raise error

    return function


@UNNAMED
def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch, unnamed):
    without_unnamed(monkeypatch, unnamed)
    path = tmp_path / "state"
    goptim.save_state(small(0.5), path)
    old = path.read_bytes()

    for function, error in itertools.product(
        ("fsync", "replace", "fchmod"), (OSError(errno.EIO, "Input/output error"), KeyboardInterrupt())
    ):
        with monkeypatch.context() as m:
            m.setattr(os, function, fails(error))
            with pytest.raises(type(error)):
                goptim.save_state(small(), path)
        assert path.read_bytes() == old
        assert os.listdir(tmp_path) == ["state"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            goptim.save_state(small(n=10_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["state"]


@UNNAMED
@pytest.mark.parametrize("old", [b"old", None], ids=["replaced", "new"])
def test_an_interrupt_leaves_nothing_open(tmp_path, monkeypatch, unnamed, old):
    """Python raises KeyboardInterrupt where a function begins, or where a function of C has returned."""
    without_unnamed(monkeypatch, unnamed)
    path = tmp_path / "state"
    whole = b"new" * 100

    def interrupt_at(count):
        def profile(frame, event, function):
            nonlocal count
            if event in ("call", "c_return") and function is not sys.setprofile:
                count -= 1
                if count < 0:
                    raise KeyboardInterrupt

        return profile

    def save(count):
        """Whether a save was interrupted."""
        sys.setprofile(interrupt_at(count))
        try:
            _files.replace(path, [whole[:100], whole[100:]])
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    _files.replace(path, [whole])  # which compiles a regular expression the first time
    before = os.listdir("/proc/self/fd")
    for count in itertools.count():
        path.unlink(missing_ok=True) if old is None else path.write_bytes(old)
        interrupted = save(count)
        assert os.listdir("/proc/self/fd") == before, f"after {count} calls"
        assert os.listdir(tmp_path) in ([], ["state"])
        assert (path.read_bytes() if path.exists() else None) in (old, whole)
        if not interrupted:
            break
    assert count > 30
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["str", "bytes", "path-like"])
def test_errors_name_the_path(tmp_path, monkeypatch, kind):
    """As open() does: as it was given, whatever of it, or of what lies beside it, has failed."""
    given = {"str": str, "bytes": os.fsencode, "path-like": lambda path: path}[kind]
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    os.symlink("loop", tmp_path / "loop")
    os.symlink("/dev/full", tmp_path / "full")

    def names(function, path, error, match=None):
        with pytest.raises(error, match=match) as e:
            function(small(n=10_000), given(path))
        assert e.value.filename == os.fspath(given(path))
        assert e.value.filename2 is None
        assert repr(e.value.filename) in str(e.value)

    for function in (goptim.save_state, goptim.load_state):
        names(function, tmp_path / "nowhere" / "state", FileNotFoundError)
        names(function, tmp_path / "file" / "state", NotADirectoryError)
        names(function, tmp_path / "folder", IsADirectoryError)
        names(function, tmp_path / "loop", OSError, "symbolic links")
        names(function, tmp_path / ("x" * 300), OSError, "too long")
    names(goptim.save_state, tmp_path / "full", OSError, "No space left")
    names(goptim.load_state, "/proc/self/mem", OSError, "Input/output error")
    for function in ("open", "fsync", "fchmod", "link", "replace"):
        with monkeypatch.context() as m:
            m.setattr(os, function, fails(OSError(errno.EIO, "Input/output error", "another", None, "others")))
            names(goptim.save_state, tmp_path / "file", OSError, "Input/output error")
    assert (tmp_path / "file").read_bytes() == b"old"
    if os.geteuid() == 0 and all(folder.stat().st_mode & 1 for folder in tmp_path.parents):
        (tmp_path / "folder").chmod(0o700)
        (tmp_path / "file").chmod(0o400)
        os.seteuid(12345)
        try:
            for function in (goptim.save_state, goptim.load_state):
                names(function, tmp_path / "folder" / "state", PermissionError)
                names(function, tmp_path / "file", PermissionError)
        finally:
            os.seteuid(0)


@UNNAMED
def test_data_and_folder_are_synchronized(tmp_path, monkeypatch, unnamed):
    without_unnamed(monkeypatch, unnamed)
    path, calls = tmp_path / "state", []
    fsync, replace = os.fsync, os.replace

    def record(function, what):
        def recorded(*args, **kwargs):
            calls.append(what(*args))
            return function(*args, **kwargs)

        return recorded

    monkeypatch.setattr(os, "fsync", record(fsync, lambda fd: (os.fstat(fd).st_ino, os.fstat(fd).st_size > 100)))
    monkeypatch.setattr(os, "replace", record(replace, lambda *args: "replaced"))
    goptim.save_state(small(), path)
    data, replaced, folder = calls
    assert data == (path.stat().st_ino, True)
    assert replaced == "replaced"
    assert folder[0] == tmp_path.stat().st_ino


@UNNAMED
def test_threads_that_save_to_one_path(tmp_path, monkeypatch, unnamed):
    """Each file is complete, and written by one of them."""
    without_unnamed(monkeypatch, unnamed)
    path = tmp_path / "state"
    optimizers = [small(lr, 50_000) for lr in (0.5, 0.25, 0.125)]
    for optimizer in optimizers:
        for t in optimizer.state[optimizer.param_groups[0]["params"][0]].values():
            t.fill_(optimizer.param_groups[0]["lr"])
    whole = set()
    for optimizer in optimizers:
        goptim.save_state(optimizer, path)
        whole.add(path.read_bytes())
    stop, wrong = threading.Event(), []

    def save(optimizer):
        try:
            while not stop.is_set():
                goptim.save_state(optimizer, path)
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=save, args=(optimizer,)) for optimizer in optimizers]
    for thread in threads:
        thread.start()
    for _ in range(50):
        assert path.read_bytes() in whole
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert os.listdir(tmp_path) == ["state"]


# Without goptim itself, because importing torch would take most of the time.
KILLED = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
if sys.argv[3] == "named":
    del os.O_TMPFILE
with open(sys.argv[2], "rb") as f:
    content = f.read()
print("ready", flush=True)
while True:
    files.replace(sys.argv[2], [content[:100], content[100:]])
"""


@pytest.mark.parametrize("unnamed", ["unnamed", "named"])
def test_a_killed_save_does_no_harm(tmp_path, unnamed):
    path = tmp_path / "state"
    goptim.save_state(small(0.5, 100_000), path)
    old = path.read_bytes()
    for delay in (0, 0.0031, 0.0072, 0.0113, 0.0254):
        command = [sys.executable, "-S", "-c", KILLED, _files.__file__, path, unnamed]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        assert path.read_bytes() == old
    (tmp_path / f"state.{os.getpid()}.tmp").write_bytes(b"of a version of long ago")
    goptim.save_state(small(0.125), path)
    assert rate_in(path) == 0.125


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_folder_that_cannot_be_written(tmp_path):
    """A safe save needs a new file, so the folder must be writable."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "state"
    path.write_bytes(b"old")
    path.chmod(0o666)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    read = _files._NO_NEW_FILE  # imported before privileges are dropped
    assert errno.EROFS in read
    optimizer = small(0.5)
    os.seteuid(12345)
    try:
        with pytest.raises(PermissionError, match="a new file beside it takes its place") as e:
            goptim.save_state(optimizer, path)
        assert e.value.filename == str(path)
        with pytest.raises(PermissionError):
            goptim.save_state(optimizer, folder / "new")
    finally:
        os.seteuid(0)
    assert path.read_bytes() == b"old"
    assert os.listdir(folder) == ["state"]
    folder.chmod(0o333)  # writable, but not readable
    os.seteuid(12345)
    try:
        goptim.save_state(optimizer, path)
    finally:
        os.seteuid(0)
    assert rate_in(path) == 0.5
    path.write_bytes(b"old")
    os.chown(path, 0, 0)
    path.chmod(0o640)
    os.seteuid(12345)
    try:
        with pytest.raises(PermissionError):
            goptim.save_state(optimizer, path)
    finally:
        os.seteuid(0)
    assert path.read_bytes() == b"old"


def test_states_that_a_file_cannot_hold(tmp_path):
    """Everything is checked before the file is written, and no memory outside a tensor is read."""
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def refuses(value, error, match, key="exp_avg"):
        optimizer = small(n=4)
        optimizer.state[optimizer.param_groups[0]["params"][0]][key] = value
        with pytest.raises(error, match=match):
            goptim.save_state(optimizer, path)
        assert path.read_bytes() == b"old"

    gone = torch.ones(4)
    gone.untyped_storage().resize_(0)
    short = torch.ones(100)[96:]
    short.untyped_storage().resize_(396)
    refuses(gone, ValueError, "parameter 0: its state exp_avg has a storage of 0 bytes, expected at least 16")
    refuses(short, ValueError, "storage of 396 bytes, expected at least 400")
    refuses(torch.ones(4).to_sparse(), TypeError, "its state exp_avg is a Tensor, torch.sparse_coo")
    refuses(torch.ones(4).as_subclass(type("Mine", (torch.Tensor,), {})), TypeError, "is a Mine")
    refuses("text", TypeError, "is a str")
    refuses(torch.ones(4), TypeError, "expected a key", "a.b")
    refuses(torch.ones(4), TypeError, "expected a key", "12")
    for value in (torch._neg_view(torch.full((4,), -2.0)), torch.full((8,), 2.0)[::2]):
        optimizer = small(n=4)
        optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"] = value
        goptim.save_state(optimizer, tmp_path / "other")
        assert_bit_equal(_safetensors.read(tmp_path / "other")[0]["state.0.exp_avg"], torch.full((4,), 2.0))


def test_hyperparameters_that_are_numbers(tmp_path):
    path = tmp_path / "state"
    for lr in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), 0.5):
        optimizer = small()
        optimizer.param_groups[0] |= {"lr": lr, "amsgrad": np.bool_(False), "eps": np.float32(0.25), "maximize": 0}
        optimizer.param_groups[0] |= {"initial_lr": np.float64("inf"), "optimizer": "x", "mine": [object()], "also": {}}
        goptim.save_state(optimizer, path)
        saved = json.loads(_safetensors.read(path)[1]["param_groups"])[0]
        assert saved["optimizer"] == "Adam"
        assert [saved[key] for key in ("lr", "eps", "initial_lr")] == [0.5, 0.25, "inf"]
        assert [saved[key] for key in ("amsgrad", "maximize")] == [False, False]
        assert "mine" not in saved
        fresh = small()
        fresh.param_groups[0] |= {"initial_lr": 1.0, "mine": 3}
        goptim.load_state(fresh, path)
        assert (fresh.param_groups[0]["initial_lr"], fresh.param_groups[0]["mine"]) == (float("inf"), 3)
    path.write_bytes(b"old")
    for lr in ("0.5", None, object(), torch.ones(2), 1j):
        optimizer.param_groups[0]["lr"] = lr
        with pytest.raises(TypeError, match=r"group 0: lr is .*, which a file cannot hold"):
            goptim.save_state(optimizer, path)
    assert path.read_bytes() == b"old"


def test_pairs_keep_the_types_of_those_that_they_replace(tmp_path):
    path, whole, real = tmp_path / "state", [int, float], [float, float]
    goptim.save_state(goptim.Rprop([torch.ones(2)], step_sizes=(1, 50.5)), path)
    for old, types in (((0, 0.9), whole), ([0, 0.9], whole), ((0.1, 0.9), real), (0, real), ((0, 1, 2), real)):
        fresh = goptim.Rprop([torch.ones(2)])
        fresh.param_groups[0]["step_sizes"] = old
        goptim.load_state(fresh, path)
        sizes = fresh.param_groups[0]["step_sizes"]
        assert (list(sizes), list(map(type, sizes))) == ([1, 50.5], types)
        assert type(sizes) is (list if isinstance(old, list) else tuple)
