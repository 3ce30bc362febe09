"""How a step stores 16-bit parameters and states: the keywords state_dtype, master_weights, rounding and seed.

They are keys of a group, which exist only if they are set. gather.c reads them too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEYS = ("state_dtype", "master_weights", "rounding", "seed")

# The keys of states that a step adds to those of torch: the float32 copy of a parameter, and what its 16 bits lack.
MASTER, COMPENSATION = "master_param", "compensation"

STATE_DTYPES = (torch.float32, torch.bfloat16)
ROUNDINGS = ("nearest", "stochastic", "kahan")
NARROW = (torch.bfloat16, torch.float16)

# The dtypes that a state can be converted from.
CONVERTED = (torch.float32, *NARROW)


@dataclass(frozen=True)
class Storage:
    """What the keys of a group say."""

    state_dtype: torch.dtype | None
    master: bool
    rounding: str

    def affects(self, p: Tensor, dtypes: Collection[torch.dtype]) -> bool:
        """Whether torch would step a parameter with other results. The others are stepped as without the keys.

        dtypes are those of its states without the keys. A parameter without states counts as if it had one.
        """
        if p.dtype in NARROW and (self.master or self.rounding != "nearest"):
            return True
        return any(self.state_dtype_of(p, dtype) != dtype for dtype in dtypes or (p.dtype,))

    def state_dtype_of(self, p: Tensor, dtype: torch.dtype) -> torch.dtype:
        """The dtype of a state of a parameter that would have the given one without the keys."""
        return dtype if self.state_dtype is None or p.dtype not in CONVERTED else self.state_dtype

    def extra(self, p: Tensor) -> tuple[str, torch.dtype] | None:
        """The key and the dtype of the tensor that is added to the state of a parameter."""
        if p.dtype not in NARROW:
            return None
        if self.master:
            return MASTER, torch.float32
        return (COMPENSATION, p.dtype) if self.rounding == "kahan" else None

    def counts(self, p: Tensor) -> bool:
        """Whether the state of a parameter needs a step count, also that of SGD."""
        return self.rounding == "stochastic" and p.dtype in NARROW


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The keys among the options of a group that are set."""
    return {key: options[key] for key in KEYS if options.get(key) is not None}


def in_effect(options: dict[str, Any], p: Tensor) -> str:
    """The keys of a group that change how a parameter or its state is stored, as in a call; empty if there are none."""
    found = given(options)
    if p.dtype not in NARROW:
        found = {key: value for key, value in found.items() if key == "state_dtype" and p.dtype is torch.float32}
    found = {key: value for key, value in found.items() if value is not False and value != "nearest"}
    if found.get("rounding") != "stochastic":
        found.pop("seed", None)
    return ", ".join(f"{key}={value!r}" for key, value in found.items())


def storage_of(group: dict[str, Any]) -> Storage | None:
    """What the keys of a group say, or None if none is set.

    Raises:
        ValueError: a key has another value than those allowed, or two keys exclude each other.
    """
    options = given(group)
    if not options:
        return None
    dtype, rounding = options.get("state_dtype"), options.get("rounding", "nearest")
    master, seed = options.get("master_weights", False), options.get("seed", 0)
    if dtype is not None and not any(dtype is d for d in STATE_DTYPES):
        raise ValueError(f"state_dtype {dtype!r}, expected torch.float32 or torch.bfloat16")
    if type(master) is not bool:
        raise ValueError(f"master_weights {master!r}, expected True or False")
    if type(rounding) is not str or rounding not in ROUNDINGS:
        raise ValueError(f"rounding {rounding!r}, expected 'nearest', 'stochastic' or 'kahan'")
    if master and rounding != "nearest":
        raise ValueError(f"rounding {rounding!r} with master_weights, expected 'nearest'")
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed!r}, expected an int from 0 to 2**64 - 1")
    return Storage(dtype, master, rounding)


def constructor(cls: type[Any], init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of a class of goptim: it calls the one of its base, and its signature has the keywords too."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super(cls, self).__init__(*args, **kwargs)

    __init__.__signature__ = signature(init)  # type: ignore[attr-defined]
    __init__.__qualname__, __init__.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    return __init__


def signature(init: Callable[..., None]) -> inspect.Signature:
    """The signature of a constructor, with the keywords too."""
    theirs = inspect.signature(init)
    rest = [p for p in theirs.parameters.values() if p.kind is not p.VAR_KEYWORD]
    last = [p for p in theirs.parameters.values() if p.kind is p.VAR_KEYWORD]
    types = ("torch.dtype | None", "bool | None", 'Literal["nearest", "stochastic", "kahan"] | None', "int | None")
    keywords = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=of)
        for key, of in zip(KEYS, types, strict=True)
    ]
    return theirs.replace(parameters=[*rest, *keywords, *last])


def converted(p: Tensor, saved: dict[str, Tensor], key: str, dtype: torch.dtype) -> Tensor:
    """A new master copy or compensation of a parameter, from what its state has of both."""
    exact = saved.get(MASTER)
    if exact is None and key == COMPENSATION:
        return torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)
    whole = p.detach().to(torch.float32) if exact is None else exact.to(torch.float32)
    if key == COMPENSATION:
        rest = whole - p.detach().to(torch.float32)
        return rest.nan_to_num_(0.0, 0.0, 0.0).to(dtype)
    return whole + saved[COMPENSATION].to(torch.float32) if exact is None and COMPENSATION in saved else whole
