"""Finds the offsets of the fields of torch's tensor objects, for gather.c.

A tensor is a C++ object. Its layout differs between versions of torch and is not documented, but it is fixed within a
process. So the layout is probed with tensors that differ in all properties: a field is at the offset where memory
agrees with torch's Python API for every tensor. If there is not exactly one such offset, the layout is unknown, and
steps use torch's Python API.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
_PR_GET_SECCOMP = 21  # from Linux's prctl.h
_RT_SIGPROCMASK = {"x86_64": 14, "aarch64": 135, "riscv64": 135}  # system call numbers
_NO_WAY = ctypes.c_long(-1)
_NONE, _ONE, _EIGHT = map(ctypes.c_ulong, (0, 1, 8))
_WORDS = 24  # number of words of a TensorImpl that are probed
_SPARSE_WORDS = 32  # … of a SparseTensorImpl


class Layout(NamedTuple):
    """The fields of gather.c's Layout. Offsets are in words of 8 bytes unless stated otherwise."""

    impl: int  # in a tensor's Python object, the address of its TensorImpl
    storage: int  # in a TensorImpl, the address of the StorageImpl
    autograd: int  # … of the autograd metadata, which has the gradient; 0 if there is none
    version: int  # … of the version counter
    ndim: int
    sizes: int  # for up to five dimensions; for more, the address of the sizes followed by the strides
    strides: int
    offset: int  # of the first element, in elements
    numel: int
    keys: int  # the dispatch keys
    type: int  # in units of 2 bytes, the number of the dtype
    counter: int  # in units of 4 bytes, in the object that version points to
    data: int  # in a StorageImpl, the address of its memory
    size: int  # in bytes
    guard: int  # in bytes, in a StorageImpl: not 0 if its memory must be copied before a write
    context: int  # in a StorageImpl, the argument of the deleter: the address of memory that torch allocated
    deleter: int  # … the address of the function that frees its memory
    plain: int  # the dispatch keys of a dense CPU tensor
    float32: int  # the type of a float32 tensor
    float64: int
    bfloat16: int
    float16: int
    freed: int  # the deleter of memory that torch allocated; 0 if it is not known
    indices: int  # in a SparseTensorImpl, the address of the TensorImpl of its indices
    values: int  # … of its values
    coalesced: int  # in bytes, whether it is coalesced
    sparse: int  # the dispatch keys of a sparse COO tensor on the CPU; 0 if the fields of such tensors are not known
    int64: int  # the type of an int64 tensor


class UnknownError(Exception):
    """The layout could not be determined. The message is the reason."""


def find() -> bytes:
    """Probe the layout, in a few milliseconds, and return it as gather.c's struct.

    Raises:
        UnknownError: the layout could not be determined. A later call may succeed, for example if memory was exhausted.
    """
    try:
        memory = _Memory()
    except OSError as e:
        raise UnknownError(f"this process cannot inspect its own memory: {e}") from None
    try:
        with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.enable_grad():
            return struct.pack(f"<{len(Layout._fields)}q", *_find(memory))
    except Exception as e:
        why = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
        raise UnknownError(f"the fields of torch {torch.__version__}'s tensors were not found ({why})") from e


class _Memory:
    """Reads this process's memory. An unmapped address raises OSError. No file descriptor is needed."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        probe = ctypes.c_uint64(0x0123456789ABCDEF)
        readers = self._readers()
        for self.read in readers.values():
            with contextlib.suppress(OSError, AttributeError, KeyError, ValueError):
                if self.read(ctypes.addressof(probe), 8) == bytes(probe):
                    return
        raise OSError(f"none of {', '.join(readers)} can be used" if readers else f"not on {sys.platform}")

    def _readers(self) -> dict[str, Callable[[int, int], bytes]]:
        """The ways to read memory on this system, the better ones first."""
        if sys.platform == "darwin":
            return {"mach_vm_read_overwrite": self._read_as_task}
        if sys.platform != "linux":
            return {}
        readers = {"process_vm_readv": self._read_as_debugger, "rt_sigprocmask": self._read_if_readable}
        # A sandbox may end the process for an unexpected system call such as process_vm_readv, which debuggers use.
        sandboxed = self.libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) != 0
        return dict([*readers.items()][:: -1 if sandboxed else 1])

    def _read_as_task(self, address: int, n: int) -> bytes:
        """Read with Mach's call, on macOS."""
        data, count = ctypes.create_string_buffer(n), ctypes.c_uint64()
        words = map(ctypes.c_uint64, (address, n, ctypes.addressof(data)))
        task = ctypes.c_uint32.in_dll(self.libc, "mach_task_self_")
        if self.libc.mach_vm_read_overwrite(task, *words, ctypes.byref(count)) != 0 or count.value != n:
            raise OSError(errno.EFAULT, "mach_vm_read_overwrite")
        return data.raw

    def _read_as_debugger(self, address: int, n: int) -> bytes:
        """Read with process_vm_readv. For its own memory, a process needs no privileges."""
        data = ctypes.create_string_buffer(n)
        local, remote = (ctypes.c_uint64 * 2)(ctypes.addressof(data), n), (ctypes.c_uint64 * 2)(address, n)
        if self.libc.process_vm_readv(os.getpid(), local, _ONE, remote, _ONE, _NONE) != n:
            raise OSError(ctypes.get_errno(), "process_vm_readv")
        return data.raw

    def _read_if_readable(self, address: int, n: int) -> bytes:
        """Pass the address to an invalid rt_sigprocmask call: EINVAL if it can be read, else EFAULT."""
        number = _RT_SIGPROCMASK[platform.machine()]
        for at in {address, max(address, address + n - 8)}:  # n is less than a page
            self.libc.syscall(number, _NO_WAY, ctypes.c_void_p(at), None, _EIGHT)
            if ctypes.get_errno() != errno.EINVAL:
                raise OSError(ctypes.get_errno(), "rt_sigprocmask")
        return bytes((ctypes.c_char * n).from_address(address))

    def units(self, format: str, address: int, n: int) -> tuple[Any, ...]:
        """Read n numbers in a format of module struct."""
        if not 0 < address < 1 << 63:
            raise OSError
        format = f"={n}{format}"
        return struct.unpack(format, self.read(address, struct.calcsize(format)))

    def words(self, address: int, n: int = _WORDS) -> tuple[int, ...]:
        return self.units("q", address, n)

    def behind(self, format: str, word: int, n: int) -> tuple[Any, ...]:
        """Read numbers at an address, or return an empty tuple if the word is not an address."""
        try:
            return self.units(format, word, n)
        except (OSError, struct.error):
            return ()


def _find(memory: _Memory) -> Layout:
    plain = _plain_tensors()
    impls = [memory.words(t._cdata) for t in plain]

    def place(answer: Callable[[Tensor], int]) -> int:
        """The offset in a TensorImpl that has torch's answer for every tensor."""
        return _place(impls, [(answer(t),) for t in plain])

    few = [i for i, t in enumerate(plain) if t.dim() <= 5]
    sizes = _place([impls[i] for i in few], [tuple(plain[i].shape) for i in few])
    strides = _place([impls[i] for i in few], [plain[i].stride() for i in few])
    for t, words in zip(plain, impls, strict=True):
        if t.dim() > 5 and memory.words(words[sizes], 2 * t.dim()) != (*t.shape, *t.stride()):
            raise LookupError

    kinds = [impls, *([memory.words(t._cdata) for t in kind] for kind in _unsupported_tensors())]
    of_kinds = [[{words[i] for words in kind} for kind in kinds] for i in range(_WORDS)]
    keys = _only(i for i, found in enumerate(of_kinds) if set(map(len, found)) == {1} and _distinct(found))

    one_of_each = [torch.empty(1, dtype=dtype, device="cpu") for dtype in _DTYPES]
    types = [memory.units("H", t._cdata, 4 * _WORDS) for t in one_of_each]
    of_plain = [(memory.units("H", t._cdata, 4 * _WORDS), types[_DTYPES.index(t.dtype)]) for t in plain]
    distinct = [i for i in range(4 * _WORDS) if len({x[i] for x in types}) == len(_DTYPES)]
    type_ = _only(i for i in distinct if all(x[i] == of_dtype[i] for x, of_dtype in of_plain))

    leaves = [(words, t.grad._cdata) for words, t in zip(impls, plain, strict=True) if t.grad is not None]
    autograd = _only(
        i
        for i in range(_WORDS)
        if all(grad in memory.behind("q", w[i], 16) for w, grad in leaves) and impls[1][i] == impls[2][i] == 0
    )
    counts = [[memory.behind("I", words[i], 8) for i in range(_WORDS)] for words in impls]
    version, counter = _only(
        (i, j)
        for i, j in itertools.product(range(_WORDS), range(8))
        if all(behind[i][j : j + 1] == (t._version,) for behind, t in zip(counts, plain, strict=True))
    )

    storages = [t.untyped_storage() for t in plain]
    of_storages = [memory.words(x._cdata, 16) for x in storages]
    size = _place(of_storages, [(x.nbytes(),) for x in storages])
    flags = range(8 * size + 8, 8 * size + 16)  # the word of flags after the size
    open_, guarded = ([memory.units("B", x._cdata, flags.stop) for x in xs] for xs in (storages, _guarded_storages()))
    guard = _only(i for i in flags if not any(x[i] for x in open_) and all(x[i] == 1 for x in guarded))
    data = _place(of_storages, [(x.data_ptr(),) for x in storages])
    context, deleter, freed = _owner(memory, data, size)
    layout = Layout(
        impl=_place([memory.words(id(t), 8) for t in plain], [(t._cdata,) for t in plain]),
        storage=place(lambda t: t.untyped_storage()._cdata),
        autograd=autograd,
        version=version,
        ndim=place(lambda t: t.dim()),
        sizes=sizes,
        strides=strides,
        offset=place(lambda t: int(t.storage_offset())),
        numel=place(lambda t: t.numel()),
        keys=keys,
        type=type_,
        counter=counter,
        data=data,
        size=size,
        guard=guard,
        context=context,
        deleter=deleter,
        plain=impls[0][keys],
        float32=types[0][type_],
        float64=types[1][type_],
        bfloat16=types[_DTYPES.index(torch.bfloat16)][type_],
        float16=types[_DTYPES.index(torch.float16)][type_],
        freed=freed,
        indices=0,
        values=0,
        coalesced=0,
        sparse=0,
        int64=types[_DTYPES.index(torch.int64)][type_],
    )
    try:
        return _with_sparse(memory, layout)
    except (LookupError, ValueError, OSError, RuntimeError):
        return layout


def _with_sparse(memory: _Memory, layout: Layout) -> Layout:
    """The layout with the fields of sparse tensors, which are after those of other tensors."""
    sparse = _sparse_tensors()
    impls = [memory.words(t._cdata, _SPARSE_WORDS) for t in sparse]

    def place(part: Callable[[Tensor], Tensor]) -> int:
        """The offset of the address of a TensorImpl that agrees with torch's answer for every tensor."""
        parts = [part(t) for t in sparse]
        return _only(
            i
            for i in range(_WORDS, _SPARSE_WORDS)
            if all(_is_impl_of(memory.behind("q", w[i], _WORDS), t, layout) for w, t in zip(impls, parts, strict=True))
        )

    values = place(lambda t: t._values())
    flags = [memory.units("B", t._cdata, 8 * _SPARSE_WORDS) for t in sparse]
    answers = [t.is_coalesced() for t in sparse]
    (keys,) = {words[layout.keys] for words in impls}
    return layout._replace(
        indices=place(lambda t: t._indices()),
        values=values,
        coalesced=_only(i for i in range(8 * values + 8, 8 * values + 16) if [x[i] for x in flags] == answers),
        sparse=keys,
    )


def _is_impl_of(words: tuple[int, ...], t: Tensor, layout: Layout) -> bool:
    """Whether the words are those of a TensorImpl with the properties of t, which has up to five dimensions."""
    if not words:
        return False
    return (
        words[layout.keys] == layout.plain
        and words[layout.storage] == t.untyped_storage()._cdata
        and (words[layout.ndim], words[layout.numel]) == (t.dim(), t.numel())
        and words[layout.offset] == t.storage_offset()
        and words[layout.sizes :][: t.dim()] == tuple(t.shape)
        and words[layout.strides :][: t.dim()] == t.stride()
    )


def _owner(memory: _Memory, data: int, size: int) -> tuple[int, int, int]:
    """The fields context, deleter and freed. Only the address and its owner are before the size in a StorageImpl."""
    owned, others = ([memory.words(x._cdata, size) for x in xs] for xs in (_owned_storages(), _other_storages()))
    # A word of a few bytes, such as the device, is followed by padding with any content: it can be the same in all.
    try:
        context = _only(i for i in range(size) if i != data and all(x[i] == x[data] for x in owned))
        deleter = _only(
            i
            for i in range(data + 1, size)
            if len({x[i] for x in owned}) == 1
            and owned[0][i] not in {x[i] for x in others}
            and memory.behind("Q", owned[0][i], 1)
        )
    except (LookupError, ValueError):
        return data, data, 0
    return context, deleter, owned[0][deleter]


def _place(words: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> int:
    """The only offset at which all have the expected words."""
    both = list(zip(words, expected, strict=True))
    return _only(i for i in range(len(words[0])) if all(w[i : i + len(e)] == e for w, e in both))


def _distinct(sets: list[set[int]]) -> bool:
    return len(set().union(*sets)) == len(sets)


def _only(found: Iterable[_T]) -> _T:
    """The only item; LookupError or ValueError if there is not exactly one."""
    it, *others = found
    if others:
        raise LookupError
    return it


_DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


def _plain_tensors() -> list[Tensor]:
    """Supported tensors that differ in all properties."""
    plain = [
        _empty(3, 1, 4),
        _empty(),
        _empty(0, 2),
        _empty(9, dtype=torch.float64)[2:],
        _empty(7, 5).t(),
        _empty(2, 9, 6, 8).to(memory_format=torch.channels_last)[1:],
        _empty(3, 2, 3, 2, 2, dtype=torch.float64)[1:],
        _empty(2, 1, 3, 2, 1, 2, 4).permute(6, 0, 2, 1, 3, 4, 5),
        torch.frombuffer(bytearray(120), dtype=torch.float32)[11:],
        torch.nn.Parameter(_empty(15)),
        torch.nn.Parameter(_empty(4, 3)[1:], requires_grad=False),
        _empty(11, 3, dtype=torch.bfloat16)[2:],
        torch.nn.Parameter(_empty(5, 3, dtype=torch.float16).t()),
    ]
    for t in (plain[9], plain[0].requires_grad_()):
        t.grad = torch.empty_like(t)
    for i, t in enumerate(plain):
        for _ in range(2 + 3 * i):
            torch.autograd.graph.increment_version(t)
    return plain


def _unsupported_tensors() -> list[list[Tensor]]:
    """Kinds of tensors whose memory does not contain their values, or that have no memory on the CPU."""
    with torch.inference_mode():
        inference = [_empty(3), _empty(2, 2)]
    numbers = [_empty(3), _empty(2, 2, dtype=torch.float64)]
    pairs = [_empty(3, dtype=torch.complex64), _empty(2, 2, dtype=torch.complex64)]
    return [
        inference,
        [*map(torch._neg_view, numbers), *(z.conj().imag for z in pairs)],
        [z.conj() for z in pairs],
        [torch._efficientzerotensor(n, device="cpu") for n in (3, 4)],
        [t.to("meta") for t in numbers],
        [t.to_sparse() for t in numbers],
    ]


def _sparse_tensors() -> list[Tensor]:
    """Sparse tensors that differ in all properties, some of them coalesced."""
    made = []
    for i, shape in enumerate([(5, 4), (7,), (3, 2, 6), (9, 4), (2, 3), (6, 1, 2, 3), (8, 5), (4, 4), (3, 7), (11, 2)]):
        n, dims = (3 * i) % 7, 1 + i % 2 * (len(shape) > 1)
        indices = torch.zeros((dims, n + i), dtype=torch.int64, device="cpu")[:, i:]
        values = _empty(n + 1, *shape[dims:], dtype=(torch.float32, torch.float64)[i // 2 % 2])[1:]
        t = torch.sparse_coo_tensor(indices, values, shape, device="cpu", check_invariants=False)
        made.append(t._coalesced_(i % 3 == 0).requires_grad_(i % 4 == 1))
    return made


def _owned_storages() -> list[torch.UntypedStorage]:
    """Storages of memory that torch's allocator allocated for them alone."""
    return [_empty(n).untyped_storage() for n in (1, 3, 100, 5000)]


def _other_storages() -> list[torch.UntypedStorage]:
    """Storages of memory that belongs to another object, or to several storages."""
    return [torch.frombuffer(bytearray(40), dtype=torch.float32).untyped_storage(), *_guarded_storages()]


def _guarded_storages() -> list[torch.UntypedStorage]:
    """Storages of lazy clones, which share memory until their address is requested."""
    return [torch._lazy_clone(_empty(3, i)).untyped_storage() for i in range(1, 6)]
