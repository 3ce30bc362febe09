"""What runs in Go, and the reasons why the rest falls back to torch.

A reason is a text for `explain` and the report of `run`; None means that the step runs in Go. These functions do not
have side effects.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _dtensor, _native

# The dtypes of elements and of scalar states that every kind supports.
DTYPES = (torch.float32, torch.float64)

# Those that elementwise kinds also support: they compute in float32, and round what they store once.
NARROW = (torch.bfloat16, torch.float16)

# Go reads and writes the memory of these types. A subclass may redefine torch's operations.
PLAIN = (Tensor, torch.nn.Parameter)

# Called at each step. Looking them up in torch's modules would take as long as the call.
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack

functorch: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack

# Methods that read a dict. gather.c does not call them.
_LOOKUPS = ("__getitem__", "__contains__", "__len__", "get")

# Why a step falls back to torch unless Go divides the gradients by the scale (_scaler.py).
SCALED = "a GradScaler passes its scale to the optimizer"

# Why a parameter falls back to torch that alone would run in Go.
SHARED = "it shares memory with another parameter that falls back to torch"

# Why a parameter falls back to torch because of the class of a group that torch has to see as it is.
WITH_GROUP = "another parameter falls back to torch, and a group is a dict with its own lookup methods"

# Why a parameter falls back to torch because its update depends on all gradients.
WITH_OTHERS = "another parameter falls back to torch, and the step uses a number computed from all of them"


class Incompatible(str):
    """A reason why a parameter falls back to torch, which raises an error or converts the parameter."""


def reason_of_optimizer(optimizer: Optimizer) -> str | None:
    """Why the whole step falls back to torch. For example, a tracer or a loss scaler would miss writes by Go."""
    if _native.core() is None:
        return _native.reason_unavailable()
    if dispatch_modes():
        return "a dispatch mode is active"
    if functorch() is not None:
        return "functorch is active"
    if getattr(optimizer, "grad_scale", None) is not None or getattr(optimizer, "found_inf", None) is not None:
        return SCALED
    return reason_of_state(optimizer.state)


def reason_compiling() -> str | None:
    """Why a compiled step falls back to torch. A separate function, because the compiler cannot trace the others."""
    return "the step is being compiled" if torch.compiler.is_compiling() else None


def reason_of_state(state: Any) -> str | None:
    """Why the state of an optimizer or a parameter falls back to torch: its dict may have its own lookup methods."""
    kind = type(state)
    if kind is dict or kind is collections.defaultdict:
        return None
    if issubclass(kind, dict) and _overrides_lookup(kind):
        return f"its state is a {kind.__name__} with its own lookup methods"
    return None


def _overrides_lookup(kind: type) -> bool:
    return any(getattr(kind, name, None) is not getattr(dict, name) for name in _LOOKUPS)


def looks_up(group: dict[str, Any]) -> bool:
    """Whether a group has its own lookup methods, which a copy of it with other parameters may bypass."""
    kind = type(group)
    return kind is not dict and (_overrides_lookup(kind) or hasattr(kind, "__missing__"))


def reason_of_numbers(group: dict[str, Any]) -> str:
    """The hyperparameters of a group that are not supported, because they are not numbers."""
    named = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    tensors = [
        key
        for key, value in named.items()
        if any(isinstance(x, Tensor) for x in (value if isinstance(value, (tuple, list)) else [value]))
    ]
    if tensors:
        return f"its group's {', '.join(tensors)} is a Tensor"
    if isinstance(named.get("eps"), tuple) and None in named["eps"]:  # Adafactor's
        return "its group's eps depends on the dtype, and its parameters have several dtypes or an unsupported one"
    return "its group has an argument that is not a number"


def reason_of_path(group: dict[str, Any]) -> str | None:
    """Why a group's 16-bit parameters fall back: it asks for an implementation of torch that has other results."""
    foreach, fused = group.get("foreach"), group.get("fused")
    if foreach:
        return "foreach=True: torch rounds 16-bit parameters after every operation"
    if foreach is not None and fused is not None and not fused:
        return "foreach=False and fused=False: torch rounds 16-bit parameters after every operation"
    return None


def reason_of_tensor(p: Tensor, dtypes: tuple[torch.dtype, ...] = DTYPES) -> str | None:
    """Why a parameter falls back to torch; None if it runs in Go."""
    if type(p) not in PLAIN:
        return f"it is a {type(p).__name__}, a tensor subclass"
    if p.layout is not torch.strided:
        return f"it is {p.layout}"
    if p.dtype not in dtypes:
        return f"it is {p.dtype}"
    if not p.is_cpu:
        return f"it is on {p.device}"
    if p.is_nested:
        return "it is a nested tensor"
    if p.is_neg():
        return "it is a negative view"
    return None if is_dense(p) else "its elements have gaps or overlap"


def reason_of_gradient(g: Tensor) -> str | None:
    """Why a gradient falls back to torch with any parameter."""
    if type(g) is not Tensor:
        return f"its gradient is a {type(g).__name__}, a tensor subclass"
    if g.layout is not torch.strided:
        return f"its gradient is {g.layout}"
    if g.is_nested:
        return "its gradient is a nested tensor"
    return "its gradient is a negative or conjugate view" if g.is_neg() or g.is_conj() else None


def reason_unlike(p: Tensor, t: Tensor) -> str | None:
    """Why a gradient or a state, with the dtype and device of its parameter, falls back to torch."""
    if type(t) is not (Tensor if type(p) in PLAIN else type(p)):
        return f"is a {type(t).__name__}"
    if type(p) not in PLAIN and (why := _dtensor.reason_of_placement(p, t)) is not None:
        return why
    same = t.is_contiguous() if t.shape != p.shape else same_strides(_dtensor.local(p), _dtensor.local(t))
    return None if same else "has different strides than the parameter"


def reason_shared(tensors: list[tuple[str, Tensor]]) -> str | None:
    """Why a parameter falls back to torch whose tensors share memory: the result depends on the order of writes."""
    spans = []
    for what, t in tensors:
        t = _dtensor.local(t)
        if t.numel():
            spans.append((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), what))
    for (start, _, what), (_, end, before) in itertools.combinations(sorted(spans, reverse=True), 2):
        if start < end:
            return f"{before} shares memory with {what}"
    return None


def memory_of(optimizer: Optimizer, p: Tensor) -> Iterator[tuple[int, int, bool]]:
    """The memory ranges of a parameter, its gradient and its state, and whether a step writes them."""
    g = p.grad
    for of_row in (p, g, *optimizer.state.get(p, {}).values()):
        for t in _dtensor.inner(of_row) if isinstance(of_row, Tensor) else ():
            with contextlib.suppress(Exception):  # it may not have an address
                start = t.data_ptr()
                last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
                if t.numel() and start:
                    yield start, start + (last + 1) * t.element_size(), of_row is not g


def is_dense(t: Tensor) -> bool:
    """Whether t's elements fill a contiguous range of memory without overlap, in any order of dimensions."""
    if t.is_contiguous() or t.numel() == 0:
        return True
    filled = 1
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1):
        if stride != filled:
            return False
        filled *= size
    return True


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the same shape and dtype have the same strides."""
    if a.data_ptr() == 0 or b.data_ptr() == 0:
        return a.numel() == 0
    pairs = zip(a.stride(), b.stride(), a.shape, strict=True)
    return all(s == t or n == 1 for s, t, n in pairs)


def lacks_memory(t: Tensor) -> str | None:
    """An error message for a tensor whose storage has been resized to less than it needs, which torch would overrun."""
    if type(t) not in PLAIN or not t.is_cpu or t._is_zerotensor():
        return None
    has, needs = t.untyped_storage().nbytes(), (int(t.storage_offset()) + t.numel()) * t.element_size()
    return f"has {has} bytes, expected at least {needs}" if has < needs and is_dense(t) and t.numel() else None
