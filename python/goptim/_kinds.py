"""Go's descriptions of its optimizers: the scalars that a step reads from a group, and the states of a parameter."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from goptim import _dtensor, _native, _numbers, _originals, _storage

# The constants of gather.c for shapes of states.
_SHAPES = {"full": 0, "scalar": 1, "rows": 2, "cols": 3, "vector": 4, "flat_rows": 5, "flat_cols": 6, "float": 7}
_SHAPES |= {"slices": 8, "start": 9}

# The numbers of dtypes in gather.c.
_DTYPES = {"": 0, "float32": 1, "bfloat16": 3}

# Options of a group: if one is set, the group falls back to torch, unless Go's optimizer has the option.
_LEAVE = ("differentiable", "capturable", "caution", "clipping_threshold", "fsdp_in_use")

# Arguments that select an implementation of torch. gather.c reads them for 16-bit parameters.
PATHS = ("foreach", "fused")


@dataclass(frozen=True)
class State:
    """A state of a parameter, at its index in a row."""

    key: str | None
    """None for a tensor that is passed with a row and is not in the parameter's state."""

    shape: str
    """``full``: the parameter's shape. ``scalar``: one element. ``rows`` or ``cols``: one value per row or column of
    its matrices. ``flat_rows`` or ``flat_cols``: the same without the dimension of size 1. ``vector``: the parameter's
    shape, if it has fewer than two dimensions. ``float``: a Python float. ``slices``: one dimension, with every n-th
    element of the parameter, where n is the scalar that enables it. ``start``: the same, or a zero of no dimensions."""

    when: int
    """The index of the scalar that enables the state, or -1."""

    above: bool
    """Whether the state is enabled if that scalar is > 0, instead of != 0."""

    initial: str | None = None
    """The key of the group's option that it is filled with before the first step; None for a constant."""

    narrow: str = ""
    """The name of its dtype if the parameter has 16 bits; empty for that of the parameter."""


class Kind:
    """A kind of step (internal/steps): the keys that gather.c reads from a group and from a parameter's state."""

    def __init__(
        self,
        number: int,
        description: dict[str, Any],
        absent: dict[str, float],
        unread: Iterable[str],
        sparse: tuple[int, dict[str, Any]] | None = None,
        entries: dict[str, Any] | None = None,
        late: tuple[str, ...] = (),
        paths: bool = True,
    ) -> None:
        self.counts: bool = description["counts"]
        self.integer: bool = description["integer"]
        self.sparse: bool = description["sparse"]
        self.sums: bool = description["sums"]
        self.around: bool = description["around"]
        self.narrow: bool = description["narrow"]
        self.stored: bool = description["stored"]
        self.zero: tuple[str, ...] = tuple(description.get("zero", ()))
        self.flags = frozenset(description["flags"])
        self.results: tuple[str, ...] = tuple(description["results"])  # entries of a group that a step changes
        self.late = late
        self.paths = paths
        self.absent = absent
        self.unread = frozenset(unread)
        words = [*description["scalars"], *description["extra"]]
        self.states = tuple(
            State(
                None if s.get("given") else s["key"],
                s.get("of", "scalar" if s.get("scalar") else "full"),
                words.index(s["when"]) if "when" in s else -1,
                s.get("above", False),
                s.get("from"),
                s.get("narrow", ""),
            )
            for s in description["states"]
        )
        self.keys: dict[str, int] = {}  # of a group, with the length of the sequence, or 0 for a scalar
        for scalar in description["scalars"]:
            key, _, index = scalar.partition("[")
            self.keys[key] = self.keys.get(key, 0) + 1 if index else 0
        self.leave = tuple(key for key in _LEAVE if key not in self.keys)
        core: Any = _native.core()
        self.handle = core.make_kind(
            number,
            tuple(self._scalars(description["scalars"])),
            tuple((s.key, _SHAPES[s.shape], s.when, s.above, _DTYPES[s.narrow], s.key in late) for s in self.states),
            "step" if self.counts else None,
            self.integer,
            self.leave,
            _dtensor.inner,
            self.narrow,
            self.stored,
            None if sparse is None else self._sparse(*sparse),
            tuple((key, isinstance((entries or {}).get(key), int)) for key in self.results),
            paths,
        )
        # Whether gather.c stores numbers in the state of a parameter.
        self.keeps = any(s.shape == "float" for s in self.states) or (
            self.integer and not self.sparse and not any(s.shape.endswith("rows") for s in self.states)
        )

    def _sparse(self, number: int, description: dict[str, Any]) -> tuple[int, bool, bool, int]:
        """What gather.c has to know about steps with sparse gradients."""
        zeros = sum(1 << description["scalars"].index(key) for key in description.get("zero", ()))
        return number, self.sparse, description["sums"], zeros

    def _scalars(self, names: list[str]) -> Iterable[tuple[Any, ...]]:
        for name in names:
            key, index = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", name).groups()  # type: ignore[union-attr]
            yield (
                None if key in self.unread else key,
                -1 if index is None else int(index),
                self.keys[key],
                key in self.flags,
                self.absent.get(key),
            )

    def value(self, group: dict[str, Any], key: str) -> Any:
        """A group's value of an option, or the default if the group does not have the option."""
        return self.absent[key] if key in self.unread or (key in self.absent and key not in group) else group[key]

    def plain_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options of a group that is an instance of a subclass of dict, which may override the lookup."""
        found = {key: group[key] for key in (*self.keys, *self.leave, *PATHS, *_storage.KEYS) if key in group}
        for key in self.keys if hasattr(type(group), "__missing__") else ():
            if key not in found and key not in self.absent:
                with contextlib.suppress(KeyError):
                    found[key] = group[key]
        return found

    def numbers(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        """The scalars of a group, of any type; None if a sequence does not have the expected length."""
        numbers: list[Any] = []
        for key, length in self.keys.items():
            value = self.value(group, key)
            if length == 0:
                numbers.append(bool(value) if key in self.flags else value)
                continue
            try:
                several = tuple(value)
            except TypeError:
                return None
            if len(several) != length:
                return None
            numbers += several
        return tuple(numbers)

    def is_plain(self, group: dict[str, Any], extra: tuple[Any, ...]) -> bool:
        """Whether gather.c supports the types of a group's scalars."""
        numbers = self.numbers(group)
        return (
            numbers is not None
            and all(map(_numbers.is_plain, (*numbers, *extra)))
            and all(isinstance(self.value(group, key), (tuple, list)) for key, length in self.keys.items() if length)
        )

    def with_numbers(self, group: dict[str, Any], numbers: tuple[Any, ...]) -> dict[str, Any]:
        """A copy of a group with other scalars."""
        rest = iter(numbers)
        found = {key: tuple([next(rest) for _ in range(n)]) if n else next(rest) for key, n in self.keys.items()}
        return {**group, **found}

    def states_of(self, group: dict[str, Any], extra: tuple[Any, ...]) -> tuple[State | None, ...]:
        """The states that a group's parameters have, at their indices in a row; None for one that is not used."""
        numbers = self.numbers(group)

        def asks(s: State) -> bool:
            if s.when < 0 or numbers is None:
                return True
            x = (*numbers, *extra)[s.when]
            return bool(x > 0 if s.above else x != 0)

        return tuple(s if s.key is not None and asks(s) else None for s in self.states)


@functools.cache
def _description() -> list[dict[str, Any]]:
    core: Any = _native.core()
    return json.loads(core.Describe())["kinds"]  # type: ignore[no-any-return]


@functools.cache
def kind_of(cls: Any) -> Kind:
    """The kind of step of a class of torch.optim, or of a name in Go's description. It requires the extension."""
    name = cls if isinstance(cls, str) else _name_in_go(cls)
    number, description = _find(name)
    absent = description["classes"][name]
    if isinstance(cls, str):
        return Kind(number, description, absent, ())
    unread = [key for key in absent if not _has_option(cls, key)]
    sparse = _sparse_name_of(cls)
    entries, late, paths = getattr(cls, "entries", None), getattr(cls, "late", ()), getattr(cls, "paths", True)
    return Kind(number, description, absent, unread, None if sparse is None else _find(sparse), entries, late, paths)


@functools.cache
def sparse_kind_of(cls: Any) -> Kind | None:
    """The kind of step with sparse gradients of a class; None if sparse gradients are not supported."""
    name = _sparse_name_of(cls)
    return None if name is None else kind_of(name)


def _sparse_name_of(cls: Any) -> str | None:
    """The name of the kind: that of the class, or of no class of torch.optim. SparseAdam is not that of Adam."""
    names = {name for description in _description() if description["sparse"] for name in description["classes"]}
    own = _name_in_go(cls)
    name = own if own in names else f"Sparse{own}"
    return name if name in names and (name == own or name not in _originals.CLASSES) else None


def _name_in_go(cls: Any) -> str:
    name: str = getattr(cls, "name_in_go", cls.__name__)
    return name


def _find(name: str) -> tuple[int, dict[str, Any]]:
    """The number and the description of a kind."""
    for number, description in enumerate(_description()):
        if name in description["classes"]:
            return number, description
    raise KeyError(name)


def _has_option(cls: Any, key: str) -> bool:
    """Whether a class, or one of its bases, has an option in this version of torch."""
    return any(key in inspect.signature(vars(c)["__init__"]).parameters for c in cls.__mro__ if "__init__" in vars(c))
