"""Operations on lists of tensors in Go: norms, clipping, zeroing and averages.

A list goes to gather.c as a whole. If it is not supported as a whole, gather.c writes nothing and returns a code for
each tensor. Then the list is split into runs of tensors with the same code, and the runs execute in order, in Go or in
torch, so the result does not depend on which tensors share memory.
"""

from __future__ import annotations

import functools
import itertools
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from goptim import _dtensor, _native, _numbers
from goptim._eligible import DTYPES, NARROW, PLAIN, dispatch_modes, functorch

# The codes of gather.c for a tensor of a list.
GO, NO_GRADIENT, TORCH = range(3)

# The dtypes in the results of gather.c, at their numbers (engine.DType); 0 if there are no rows.
OF_NUMBER = (torch.float32, *DTYPES, *NARROW)

# The flags of step_lists, in gather.c.
GRADIENTS = 2
"""The rows are the gradients of the tensors."""
LEAVES = 4
"""Tensors that require a gradient fall back to torch."""
ONE_TYPE = 8
"""All rows in Go have one dtype."""
FINITE = 16
"""Nothing is written unless the first result is finite."""
FILLED = 32
"""Tensors without elements fall back to torch."""
EACH = 64
"""Go returns a number for each tensor."""
WIDE = 128
"""16-bit tensors fall back to torch."""
NOT_FLOAT16 = 256
"""float16 tensors fall back to torch."""
WIDENED = 512
"""16-bit rows count as float32 for ONE_TYPE."""

Tensors = Sequence[Any]

# If set, it is called with the name of a kind and the number of rows that ran in Go.
watch: Callable[[str, int], None] | None = None


def core_here() -> ModuleType | None:
    """The extension; None if lists fall back to torch, for example because a tracer would miss writes by Go."""
    return None if dispatch_modes() or functorch() is not None else _native.core()


class ListKind:
    """An operation on a list of tensors, or on two lists of as many (a steps.Kind with ``tensors``).

    Args:
        name: its name in Go.
        results: how many numbers it returns.
        versions: how much torch adds to the version counter of each tensor of the first list.
        flags: flags of every call.
    """

    def __init__(self, name: str, results: int = 0, versions: int = 1, flags: int = 0) -> None:
        self.name = name
        self.results = results
        self.versions = versions
        self.flags = flags
        self.number: int | None = None  # in Go, once it is loaded

    def __call__(
        self,
        tensors: Tensors,
        others: Tensors | None = None,
        scalars: tuple[float, ...] = (),
        flags: int = 0,
        versions: int | None = None,
        noise: tuple[int, int, int] | None = None,
    ) -> Any:
        """Apply the operation in Go if every tensor is supported.

        Args:
            tensors, others: lists or tuples.
            scalars: what Go reads, in its order.
            versions: replaces that of the kind.
            noise: round 16-bit tensors of the first list stochastically, with a seed, a step, and the index of the
                first tensor.

        Returns:
            The number of rows. If the kind has results, a tuple of that number, the dtype of the first row (at its
            index in OF_NUMBER), and the results. With the flag EACH, a tuple of a number for each tensor. If a tensor
            is not supported, a code for each, and nothing was written. None if Go cannot be used here.
        """
        core: Any = core_here()
        if core is None:
            return None
        if self.number is None:
            self.number = core.Kind(self.name)
        done = core.step_lists(
            self.number,
            self.results,
            _native.layout(),
            PLAIN,
            tensors,
            others,
            flags | self.flags,
            scalars,
            self.versions if versions is None else versions,
            torch.get_num_threads(),
            noise,
        )
        if watch is not None and type(done) is not bytes:
            watch(self.name, len(tensors) if flags & EACH else done if type(done) is int else done[0])
        return done

    def apply(
        self,
        tensors: Tensors,
        others: Tensors | None,
        scalars: tuple[float, ...],
        fallback: Callable[..., object],
        flags: int = 0,
        versions: int | None = None,
        noise: tuple[int, int, int] | None = None,
    ) -> None:
        """Apply the operation to every tensor: in Go, or with ``fallback(tensors[, others])`` in torch.

        Of pairs of DTensors that are placed in the same way, Go gets the local shards.

        Raises:
            ValueError: there is noise, and a 16-bit tensor is not supported. Nothing was written.
        """
        if not tensors:
            return
        done = self(tensors, others, scalars, flags, versions, noise)
        if type(done) is int:
            return
        written, read = tensors, others
        wrappers: list[Tensor | None] = [None] * len(tensors)
        if done is not None and others is not None:
            written, read, wrappers = local_shards(tensors, others)
            if any(t is not None for t in wrappers):
                done = self(written, read, scalars, flags, versions, noise)
        if type(done) is int:
            self._increment_versions(wrappers, versions)
            return
        for code, start, end in runs(done, len(tensors)) if noise is not None else ():
            for i in range(start, end if code == TORCH else start):
                if tensors[i].dtype in NARROW:
                    raise ValueError(
                        f"tensor {i}, of shape {tuple(tensors[i].shape)} and {tensors[i].dtype}: stochastic rounding "
                        "needs Go, which does not support it or what it is averaged with"
                    )
        for code, start, end in runs(done, len(tensors)):
            some = None if read is None else read[start:end]
            of_run = None if noise is None else (*noise[:2], noise[2] + start)
            if code == GO and type(self(written[start:end], some, scalars, flags, versions, of_run)) is int:
                self._increment_versions(wrappers[start:end], versions)
            elif others is None:
                fallback(tensors[start:end])
            else:
                fallback(tensors[start:end], others[start:end])

    def _increment_versions(self, tensors: Sequence[Tensor | None], versions: int | None) -> None:
        some = [t for t in tensors if t is not None]
        for _ in range(self.versions if versions is None else versions) if some else ():
            torch.autograd.graph.increment_version(some)


def local_shards(tensors: Tensors, others: Tensors) -> tuple[list[Any], list[Any], list[Tensor | None]]:
    """Two lists of tensors in which the local shards replace pairs of DTensors that are placed in the same way.

    Returns:
        The lists, and for each pair the DTensor whose shard is in the first list, or None.
    """
    written, read = list(tensors), list(others)
    wrappers: list[Tensor | None] = [None] * len(written)
    for i, (a, b) in enumerate(zip(tensors, others, strict=True)):
        if not _dtensor.is_dtensor(a) or not _dtensor.is_dtensor(b) or a.dtype != b.dtype:
            continue
        if _dtensor.reason_of_shard(a) is None and _dtensor.reason_of_placement(a, b) is None:
            written[i], read[i], wrappers[i] = _dtensor.local(a), _dtensor.local(b), a
    return written, read, wrappers


def runs(codes: bytes | None, n: int) -> Iterator[tuple[int, int, int]]:
    """The runs of equal codes of n tensors: the code, the start and the end. If there are no codes, all are torch's."""
    start = 0
    for code, run in itertools.groupby(bytes([TORCH]) * n if codes is None else codes):
        end = start + len(list(run))
        yield code, start, end
        start = end


# Operations that write the tensors of the first list.
LERP = ListKind("Lerp")
MUL_ADD = ListKind("MulAdd")
# torch's add_ with alpha also rounds the product of 16 bits, but only after the last whole vector of each thread.
POLYAK = ListKind("Polyak", versions=0, flags=WIDE)
SWA = ListKind("SWA")
COPY = ListKind("Copy")
SCALE = ListKind("Scale")
CLAMP = ListKind("Clamp")
ZERO = ListKind("Zero")
CLIP_GRAD_NORM = ListKind("ClipGradNorm", results=2)

# Operations that read them.
GRAD_NORM = ListKind("GradNorm", results=1, versions=0)
NORMS = ListKind("Norms", versions=0)  # with the flag EACH

_LARGEST = torch.finfo(torch.float32).max


def fits_float32(x: object) -> bool:
    """Whether x is a float or an int that torch converts to float32 without an error in every operation."""
    if type(x) is bool or not _numbers.is_plain(x):
        return False
    return -_LARGEST <= x <= _LARGEST or math.isinf(x) or math.isnan(x)  # type: ignore[operator, arg-type]


@functools.cache
def order_of_norms() -> int:
    """The index in Go's reduce.Orders of the order in which this torch adds, which depends on its compiler and vectors.

    0: 256-bit vectors, as torch 2.15 for x86-64; 1: the same with products fused into their sums, as torch 2.6; or 2:
    128-bit vectors and fused, as torch for arm64.
    """
    # Sums of three squares. They are in one lane of 128-bit vectors, and of 256-bit vectors the second is in another.
    triples = torch.rand(256, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    x = torch.zeros(256, 16, dtype=torch.float32, device="cpu")
    x[:, 0], x[:, 4], x[:, 8] = triples.unbind(1)
    found = [0, 0, 0]
    for (a, b, c), norm in zip(triples.tolist(), torch.linalg.vector_norm(x, dim=-1).tolist(), strict=True):
        first, second = _float32(a * a), _float32(b * b)
        sums = (
            _float32(_float32(first + _float32(c * c)) + second),
            _float32(_float32(first + c * c) + second),
            _float32(_float32(first + b * b) + c * c),
        )
        for i, total in enumerate(sums):
            found[i] += norm == _float32(math.sqrt(total))
    return found.index(max(found))


def _float32(x: float) -> float:
    return array("f", [x])[0]


def listed(tensors: Any) -> Any:
    """A list or tuple of tensors, which may be given as one tensor, as a list, or as another iterable."""
    if isinstance(tensors, Tensor):
        return [tensors]
    return tensors if type(tensors) in (list, tuple) else list(tensors)
