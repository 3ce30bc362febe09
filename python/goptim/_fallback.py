"""torch's own step, for parameters that fall back."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _native, _originals
from goptim._eligible import looks_up


def undecorated_step(torch_class: type[Optimizer]) -> Callable[..., Any]:
    """torch's step of a class, with torch's handling of grad mode but without the hooks, which our step has run."""
    step: Any = torch_class.step
    if getattr(step, "__module__", "").startswith("goptim."):  # a program has assigned our step to torch's class
        step = _originals.STEPS.get(torch_class, step)
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[no-any-return]


@contextlib.contextmanager
def stand_in(optimizer: Optimizer, rests: list[tuple[dict[str, Any], list[Tensor]]]) -> Iterator[Optimizer]:
    """An optimizer of the same class, with the same attributes and state, and groups with only the given parameters.

    Attributes and group entries that a step sets are then set in the optimizer too. A group with its own lookup methods
    is used itself, so all of its parameters must be given.
    """
    stand_in: Optimizer = object.__new__(type(optimizer))
    kind: Any = type(optimizer)
    slots = slots_of(kind)
    for slot in slots:
        copy_slot(slot, optimizer, stand_in)
    groups = [(group if looks_up(group) else {**group, "params": rest}, group) for group, rest in rests]
    copies = [(copy, group) for copy, group in groups if copy is not group]
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [(vars(stand_in), vars(optimizer)), *copies]
    vars(stand_in).update(vars(optimizer), param_groups=[group for group, _ in groups])
    before = [dict(of_stand_in) for of_stand_in, _ in pairs]
    try:
        yield stand_in
    finally:
        for (now, of_optimizer), was in zip(pairs, before, strict=True):
            changed = {k: v for k, v in now.items() if k not in was or v is not was[k]}
            for own in ("param_groups", "params"):
                changed.pop(own, None)
                was.pop(own, None)
            for key in was.keys() - now.keys():
                of_optimizer.pop(key, None)
            for key, value in changed.items():
                of_optimizer[key] = value
        for slot in slots:
            copy_slot(slot, stand_in, optimizer)


@functools.lru_cache(maxsize=64)
def slots_of(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    """The attributes in __slots__ of a class, which vars() does not return."""
    return tuple(x for c in cls.__mro__ for x in vars(c).values() if isinstance(x, types.MemberDescriptorType))


def copy_slot(slot: types.MemberDescriptorType, source: object, target: object) -> None:
    """Copy a slot of source, which may be empty, to target."""
    try:
        value = slot.__get__(source)
    except AttributeError:
        with contextlib.suppress(AttributeError):
            slot.__delete__(target)
    else:
        slot.__set__(target, value)


def with_message(e: Exception, message: str) -> Exception:
    """An exception of the same type with another message, or e itself if its type requires other arguments."""
    try:
        other = type(e)(message)
    except Exception:
        return e
    return other if type(other) is type(e) else e


@contextlib.contextmanager
def threads_after_fork() -> Iterator[None]:
    """Use one thread in a forked child: with more, torch's OpenMP would hang after a fork."""
    threads = torch.get_num_threads()
    if not _native.forked() or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def call_init_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
    init: Any = optimizer._init_group  # type: ignore[attr-defined]
    kind: Any = type(optimizer)
    theirs = getattr(kind.torch_class, "_init_group", kind._init_group)  # a class derived from it may say *args
    _, _, *lists = inspect.signature(theirs).parameters
    # In torch 2.6, the flag amsgrad is among the lists that it fills.
    init(group, *(group[name] if isinstance(group.get(name), bool) else [] for name in lists))
