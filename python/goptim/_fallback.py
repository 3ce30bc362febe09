"""torch's own step, for what does not run in Go."""

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


def undecorated_step(twin: type[Optimizer]) -> Callable[..., Any]:
    """torch's step of a class, under torch's rule for grad mode, without the hooks that ours already runs."""
    step: Any = twin.step
    if getattr(step, "__module__", "").startswith("goptim."):  # a program has assigned ours to torch's class
        step = _originals.STEPS.get(twin, step)
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[no-any-return]


@contextlib.contextmanager
def stand_in(optimizer: Optimizer, rests: list[tuple[dict[str, Any], list[Tensor]]]) -> Iterator[Optimizer]:
    """An optimizer of the same class and attributes, with the same state, and groups that hold the rests alone.

    What a step sets of the attributes or in a group is set in the optimizer too, afterwards.
    """
    stand_in: Optimizer = object.__new__(type(optimizer))
    kind: Any = type(optimizer)
    slots = slots_of(kind)
    for slot in slots:
        copy_slot(slot, optimizer, stand_in)
    groups = [({**group, "params": rest}, group) for group, rest in rests]
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [(vars(stand_in), vars(optimizer)), *groups]
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
            of_optimizer.update(changed)
        for slot in slots:
            copy_slot(slot, stand_in, optimizer)


@functools.lru_cache(maxsize=64)
def slots_of(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    """The attributes that classes name in __slots__, which vars() does not show."""
    return tuple(x for c in cls.__mro__ for x in vars(c).values() if isinstance(x, types.MemberDescriptorType))


def copy_slot(slot: types.MemberDescriptorType, source: object, target: object) -> None:
    """Make a slot of target what it is in source, which may be empty."""
    try:
        value = slot.__get__(source)
    except AttributeError:
        with contextlib.suppress(AttributeError):
            slot.__delete__(target)
    else:
        slot.__set__(target, value)


def with_message(e: Exception, message: str) -> Exception:
    """An exception of the same type with another message; the same one, if its type takes more than that."""
    try:
        other = type(e)(message)
    except Exception:
        return e
    return other if type(other) is type(e) else e


@contextlib.contextmanager
def threads_after_fork() -> Iterator[None]:
    """One thread in a forked child: torch's OpenMP does not survive a fork either, and would hang with more."""
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
    theirs = getattr(kind.twin, "_init_group", kind._init_group)  # a class derived from it may say *args
    _, _, *lists = inspect.signature(theirs).parameters
    # In torch 2.6, the flag amsgrad is among the lists that it fills.
    init(group, *(group[name] if isinstance(group.get(name), bool) else [] for name in lists))
