"""Operations on lists of tensors in Go: norms, clipping, zeroing and averages.

A list goes to gather.c as a whole. If it is not supported as a whole, gather.c writes nothing and returns a code for
each tensor. Then the list is split into runs of tensors with the same code, and the runs execute in order, in Go or in
torch, so the result does not depend on which tensors share memory.
"""

from __future__ import annotations

import functools
import itertools
import math
import platform
from array import array
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from goptim import _native, _numbers
from goptim._eligible import PLAIN, dispatch_modes, functorch

# The codes of gather.c for a tensor of a list.
GO, NO_GRADIENT, TORCH = range(3)

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

Tensors = Sequence[Any]


def core_here() -> ModuleType | None:
    """The extension; None if lists fall back to torch, for example because a tracer would miss writes by Go."""
    return None if dispatch_modes() or functorch() is not None else _native.core()


class ListKind:
    """An operation on a list of tensors, or on two lists of as many (a steps.Kind with ``tensors``).

    Args:
        name: its name in Go.
        results: how many numbers it returns.
        versions: how much torch adds to the version counter of each tensor of the first list.
    """

    def __init__(self, name: str, results: int = 0, versions: int = 1) -> None:
        self.name = name
        self.results = results
        self.versions = versions
        self.number: int | None = None  # in Go, once it is loaded

    def __call__(
        self,
        tensors: Tensors,
        others: Tensors | None = None,
        scalars: tuple[float, ...] = (),
        flags: int = 0,
        versions: int | None = None,
    ) -> Any:
        """Apply the operation in Go if every tensor is supported.

        Args:
            tensors, others: lists or tuples.
            scalars: what Go reads, in its order.
            versions: replaces that of the kind.

        Returns:
            The number of rows. If the kind has results, a tuple of that number, the size of an element in bytes, and
            the results. With the flag EACH, a tuple of a number for each tensor. If a tensor is not supported, a code
            for each, and nothing was written. None if Go cannot be used here.
        """
        core: Any = core_here()
        if core is None:
            return None
        if self.number is None:
            self.number = core.Kind(self.name)
        return core.step_lists(
            self.number,
            self.results,
            _native.layout(),
            PLAIN,
            tensors,
            others,
            flags,
            scalars,
            self.versions if versions is None else versions,
            torch.get_num_threads(),
        )

    def apply(
        self,
        tensors: Tensors,
        others: Tensors | None,
        scalars: tuple[float, ...],
        fallback: Callable[..., object],
        flags: int = 0,
        versions: int | None = None,
    ) -> None:
        """Apply the operation to every tensor: in Go, or with ``fallback(tensors[, others])`` in torch."""
        if not tensors:
            return
        done = self(tensors, others, scalars, flags, versions)
        if type(done) is int:
            return
        for code, start, end in runs(done, len(tensors)):
            lists = [tensors[start:end]] if others is None else [tensors[start:end], others[start:end]]
            if (
                code != GO
                or type(self(lists[0], None if others is None else lists[1], scalars, flags, versions)) is not int
            ):
                fallback(*lists)


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
POLYAK = ListKind("Polyak", versions=0)
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
    """How this torch adds squares: 0; 1 if it fuses products and sums, as torch 2.6 does; or 2, as on arm64."""
    return 2 if platform.machine() in ("aarch64", "arm64") else int(fused_norms())


@functools.cache
def fused_norms() -> bool:
    """Whether this torch fuses a norm's squares into their sum: torch 2.6 does, and 2.15 does not."""
    # Sums of two squares that are 8 elements apart, so that torch's vectors of 8 have them in one lane.
    pairs = torch.rand(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    x = torch.zeros(256, 16, dtype=torch.float32, device="cpu")
    x[:, 0], x[:, 8] = pairs.unbind(1)
    plain = fused = 0
    for (a, b), norm in zip(pairs.tolist(), torch.linalg.vector_norm(x, dim=-1).tolist(), strict=True):
        first = _float32(a * a)
        plain += norm == _float32(math.sqrt(_float32(first + _float32(b * b))))
        fused += norm == _float32(math.sqrt(_float32(first + b * b)))
    return fused > plain


def _float32(x: float) -> float:
    return array("f", [x])[0]


def listed(tensors: Any) -> Any:
    """A list or tuple of tensors, which may be given as one tensor, as a list, or as another iterable."""
    if isinstance(tensors, Tensor):
        return [tensors]
    return tensors if type(tensors) in (list, tuple) else list(tensors)
