"""The probing of the layout of torch's tensors, and steps after it fails.

tests/test_gather.py tests that gather.c reads the right values.
"""

import contextlib
import ctypes
import mmap
import struct
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode

import goptim
from goptim import _layout, _native
from goptim.testing import assert_bit_equal, ieee_sqrt


class Counting(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} asks a mode of the user's")


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


PLACES = {
    "anywhere": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "a default device": lambda: torch.device("meta"),
    "a default dtype": lambda: default_dtype(torch.float64),
    "a mode of the user's": Counting,
}


@pytest.mark.parametrize("place", PLACES)
def test_found_in_every_context(place):
    expected, random = _layout.find(), torch.get_rng_state()
    with PLACES[place]():
        found = _layout.find()
    assert found == expected
    assert torch.equal(torch.get_rng_state(), random)


def steps(optimizer):
    """Steps of parameters of each dtype with random gradients."""
    torch.default_generator.manual_seed(0)
    params = [torch.randn(3, 4, dtype=dtype).requires_grad_() for dtype in (torch.float32, torch.float64)]
    opt = optimizer(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        with ieee_sqrt():
            opt.step()
    return params, [dict(s) for s in opt.state.values()]


FAILURES = {
    "memory that cannot be read": ("_Memory", mock.Mock(side_effect=OSError("no way"))),
    "no memory for the experiment": ("_plain_tensors", mock.Mock(side_effect=MemoryError)),
    "tensors that are all alike": ("_plain_tensors", lambda: [torch.zeros(3) for _ in range(3)]),
    "unsupported tensors that look supported": ("_unsupported_tensors", lambda: [_layout._plain_tensors()]),
    "memory whose guard cannot be told": ("_guarded_storages", lambda: [torch.zeros(3).untyped_storage()]),
    "dtypes that cannot be told": ("_DTYPES", [torch.float32, torch.float64, torch.float32]),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_without_a_layout_steps_are_the_same(failure, monkeypatch):
    """A failure is reported, and ends with its cause."""
    name, value = FAILURES[failure]
    found = _native.layout()
    assert found == _layout.find()
    expected = steps(goptim.AdamW)
    forget_layout(monkeypatch)
    with monkeypatch.context() as context:
        context.setattr(_layout, name, value)
        with pytest.raises(_layout.UnknownError):
            _layout.find()
        assert_bit_equal(steps(goptim.AdamW), expected)
        assert _native.layout() is None
        [row] = goptim.explain(goptim.AdamW([torch.nn.Parameter(torch.ones(2))]))
        assert row.to == "go"
        assert row.slow == _native.reason_slow() != ""
    assert _native.layout() is None  # it is not probed at every step
    monkeypatch.setitem(_native._next_try, "layout", 0.0)
    assert _native.layout() == found
    [row] = goptim.explain(goptim.AdamW([torch.nn.Parameter(torch.ones(2))]))
    assert row.slow == ""


def fields(layout):
    return _layout.Layout(*struct.unpack(f"<{len(_layout.Layout._fields)}q", layout))


def test_memory_whose_owner_cannot_be_told(monkeypatch):
    """Without the function that frees memory, all other fields are found, and the step compares all addresses."""
    found = fields(_layout.find())
    assert found.freed != 0
    monkeypatch.setattr(_layout, "_other_storages", _layout._owned_storages)
    unknown = fields(_layout.find())
    assert unknown.freed == 0
    assert unknown == found._replace(context=found.data, deleter=found.data, freed=0)


@pytest.mark.parametrize("padding", [0xBFF0 << 48, 0x3FF0 << 48, 1 << 32, 0xFFFF << 16, 1 << 40])
def test_padding_is_not_a_function(padding, monkeypatch):
    """Memory that was used before is in the bytes after the device, and can be the same in all storages."""
    found = fields(_layout.find())
    (device,) = {*range(found.data + 1, found.size)} - {found.context, found.deleter}
    words_of = _layout._Memory.words
    owned = [padding - (padding >> 63 << 64)] * len(_layout._owned_storages())

    def words(memory, address, n=_layout._WORDS):
        read = [*words_of(memory, address, n)]
        if n == found.size:
            read[device] = read[device] & 0xFFFF | (owned.pop() if owned else 7 << 16)
        return tuple(read)

    monkeypatch.setattr(_layout._Memory, "words", words)
    assert fields(_layout.find()) == found
    assert not owned


def forget_layout(monkeypatch):
    for name in ("_layout_found", "_reason_slow"):
        monkeypatch.setattr(_native, name, None)
    monkeypatch.setattr(_native, "_next_try", {})


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of macOS has this function")
def test_the_layout_is_unknown_on_a_system_without_a_way_to_read_memory(monkeypatch):
    for system, why in {"darwin": "none of mach_vm_read_overwrite can be used", "sunos5": "not on sunos5"}.items():
        monkeypatch.setattr(sys, "platform", system)
        with pytest.raises(_layout.UnknownError, match=f"this process cannot inspect its own memory: {why}"):
            _layout.find()


READERS = ["_read_as_debugger", "_read_if_readable"]


@pytest.mark.skipif(sys.platform != "linux", reason="these are system calls of Linux")
@pytest.mark.parametrize("reader", READERS)
def test_memory_is_read_safely(reader, monkeypatch):
    """Mapped memory is read, and unmapped memory is an error, with either system call."""
    (other,) = {*READERS} - {reader}
    monkeypatch.setattr(_layout._Memory, other, mock.Mock(side_effect=OSError))
    memory = _layout._Memory()
    with mmap.mmap(-1, 2 * mmap.PAGESIZE) as pages:
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        end = start + 2 * mmap.PAGESIZE
        pages[:] = bytes(range(256)) * (len(pages) // 256)
        assert memory.read(end - 192, 192) == pages[-192:]
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
        assert memory.units("B", end - mmap.PAGESIZE - 8, 8) == tuple(range(248, 256))
        for address in (end - mmap.PAGESIZE - 16, end - 192, 4096, 1 << 62):
            with pytest.raises(OSError):  # noqa: PT011
                memory.units("q", address, 3)
    found = _layout.find()
    assert found == _native.layout()


@pytest.mark.parametrize("which", ["the parameter", "its gradient", "its state 'exp_avg'"])
@pytest.mark.parametrize("size", [0, 8])
def test_a_storage_that_is_too_small(which, size):
    """FSDP leaves such parameters between uses. torch would write after its end, or crash."""
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    opt = goptim.Adam([p, q], lr=1.0)
    for t in (p, q):
        t.grad = torch.ones(4)
    opt.step()
    before = p.detach().clone()
    small = {"the parameter": q, "its gradient": q.grad}.get(which, opt.state[q]["exp_avg"])
    small.untyped_storage().resize_(size)
    with pytest.raises(ValueError, match=f"the storage of {which} has {size} bytes, expected at least 16"):
        opt.step()
    assert torch.equal(p, before)


CHILDREN = """
import ctypes, os, platform, resource, struct, sys
import torch, goptim
from goptim import _native

libc = ctypes.CDLL(None, use_errno=True)
DUMPABLE, NO_NEW_PRIVS, SECCOMP = 4, 38, 22
ERRNO, KILL = 0x00050001, 0x80000000
VM_READV = {"x86_64": 310, "aarch64": 270}[platform.machine()]

def drop_rights():
    if os.getuid() == 0:
        os.setuid(4711)
    libc.prctl(DUMPABLE, 0, 0, 0, 0)
    try:
        open("/proc/self/mem", "rb")
    except PermissionError:
        return
    sys.exit("its memory can be opened")

def use_all_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            os.dup(0)
    except OSError:
        pass

def sandbox(action):
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, VM_READV), (6, 0, 0, action), (6, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    length = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program))
    assert libc.prctl(SECCOMP, 2, length, 0, 0) == 0

def all_of_them():
    use_all_descriptors()
    libc.prctl(DUMPABLE, 0, 0, 0, 0)
    sandbox(KILL)

hardships = [drop_rights, use_all_descriptors, lambda: sandbox(ERRNO), lambda: sandbox(KILL), all_of_them]
for i, hardship in enumerate(hardships):
    child = os.fork()
    if child == 0:
        hardship()
        layout = _native.layout()
        os._exit(0 if layout is not None and _native.reason_slow() is None else 1)
    status = os.waitpid(child, 0)[1]
    assert status == 0, (i, status)

p = torch.nn.Parameter(torch.ones(4))
p.grad = torch.ones(4)
optimizer = goptim.SGD([p])
use_all_descriptors()
optimizer.step()
assert _native.layout() is not None
assert goptim.explain(optimizer)[0].slow == ""
"""


@pytest.mark.skipif(sys.platform != "linux", reason="these are system calls of Linux")
def test_found_without_privileges_and_files():
    """After setuid, in a sandbox, and with all file descriptors in use."""
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
