"""A group's part of a step of which torch takes some parameters: where each goes, and the rows for gather.c."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _dtensor, _native, _sparse
from goptim._eligible import (
    DTYPES,
    PLAIN,
    SHARED,
    Incompatible,
    lacks_memory,
    reason_of_gradient,
    reason_of_numbers,
    reason_of_state,
    reason_of_tensor,
    reason_shared,
    reason_unlike,
)
from goptim._fallback import call_init_group
from goptim._kinds import LEAVE, Kind, State, sparse_kind_of

if TYPE_CHECKING:
    from goptim._step import GoStep


# What gather.c answers about a parameter. The codes of a step without work for Go are all of _FOR_TORCH.
GO, NO_GRADIENT, TORCH, PYTHON = range(4)

# A group for gather.c: its parameters, its options, and numbers that are not among these.
Asked = tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]

# Called at every step, while somebody counts, with how many parameters go to Go and why others go to torch.
watch: Callable[[Optimizer, int, list[str]], None] | None = None


class Part:
    """One group's part of a step that is not for Go alone."""

    def __init__(self, optimizer: GoStep, index: int, group: dict[str, Any], asked: Asked) -> None:
        self.optimizer = optimizer
        self.index = index
        self.group = group
        self.given = asked
        self.params, self.options, self.extra = asked
        self.kind = optimizer.kind
        self.go: list[Any] = []  # for Go: parameters; in the place of some, a row for gather.c
        self.go_params: list[Tensor] = []  # the parameters of these
        self.rest: list[Tensor] = []  # for torch
        self.reasons: list[str] = []  # of each of rest that has a gradient, while somebody watches
        self.fresh: list[Tensor] = []  # for Go, without a state yet
        self.sparse: list[tuple[Tensor, Tensor]] = []  # for Go, with their gradients
        self.stepped: list[Tensor] = []  # all of these that have a gradient
        self.judged = False  # Python has decided about some
        self.apart: set[int] = set()  # the ids of those that gather.c does not take
        self.written: list[Tensor] = []  # whose versions gather.c does not count
        self.made: list[tuple[dict[str, Any], dict[str, Tensor]]] = []  # states, and what Go makes for them

    @functools.cached_property
    def reason_of_group(self) -> str | None:
        """Why Go does not take the group."""
        for key in LEAVE:
            if self.group.get(key):
                return f"its group is {key}"
        return None if self.kind.is_plain(self.options, self.extra) else reason_of_numbers(self.group)

    @functools.cached_property
    def states(self) -> tuple[State | None, ...]:
        """The states of the group's parameters, in their places in a row."""
        return self.kind.states_of(self.options, self.extra)

    @property
    def asked(self) -> Asked:
        """What gather.c is asked of the part."""
        return tuple(self.go), self.options, self.extra

    @property
    def checked(self) -> Asked:
        """The same, to check it: with rows for fresh parameters, which finish makes anew after torch's part."""
        part = type(self)(self.optimizer, self.index, self.group, self.given)
        part.go, part.fresh = list(self.go), self.fresh
        part.finish()
        return part.asked

    @property
    def asked_again(self) -> Asked:
        return tuple(self.go_params), self.options, self.extra

    @functools.cached_property
    def sparse_kind(self) -> Kind | None:
        """The kind of steps with sparse gradients; None where such a step is torch's."""
        kind = sparse_kind_of(self.optimizer.twin)  # type: ignore[arg-type]
        if kind is None or self.reason_of_group or self.group.get("fused"):
            return None
        return None if any(self.options[key] != 0 for key in kind.zero) else kind

    @functools.cached_property
    def alike(self) -> tuple[str, ...]:
        """The keys of the states that are not one number."""
        return tuple(s.key for s in self.states if s is not None and s.key is not None and s.shape != "scalar")

    @functools.cached_property
    def numbers(self) -> tuple[str, ...]:
        """The keys of the states that are one number."""
        scalars = tuple(s.key for s in self.states if s is not None and s.key is not None and s.shape == "scalar")
        return (("step",) if self.kind.counts else ()) + scalars

    def sort(self, p: Tensor, code: int) -> None:
        """Find out where a parameter goes, and raise if it can go nowhere."""
        if code == NO_GRADIENT:
            return
        if code != GO:
            self.apart.add(id(p))
        if code == GO:
            self.go.append(p)
        elif code == TORCH:
            self.rest.append(p)
            if watch is not None and p.grad is not None:
                self.reasons.append(self._current_reason(p, p.grad))
        else:
            g = p.grad
            if g is None:
                return
            state = self.optimizer.state.get(p, {})
            why = self.reason_of(p, g, state)
            self.judged = True
            if why is not None:
                self.rest.append(p)
                self.reasons.append(why)
            elif g.layout is torch.sparse_coo:
                self.sparse.append((p, g))
            elif self._is_fresh(state):
                self.fresh.append(p)
                self.go.append(p)
            else:
                self.go.append(self._row(p, g, state))
        if len(self.go_params) < len(self.go):
            self.go_params.append(p)
        self.stepped.append(p)

    def leave(self, to_torch: set[int]) -> None:
        """Have torch step parameters that share memory, by their ids."""
        kept = [(x, p) for x, p in zip(self.go, self.go_params, strict=True) if id(p) not in to_torch]
        ids = {id(p) for p in self.rest} | to_torch
        self.reasons += [SHARED for p in self.stepped if id(p) in ids][len(self.rest) :]
        self.rest = [p for p in self.stepped if id(p) in ids]
        self.go, self.go_params = [x for x, _ in kept], [p for _, p in kept]
        self.fresh = [p for p in self.fresh if id(p) not in to_torch]
        self.sparse = [(p, g) for p, g in self.sparse if id(p) not in to_torch]

    def _current_reason(self, p: Tensor, g: Tensor) -> str:
        """Why a parameter is torch's that gather.c has left to torch."""
        return self.reason_of_group or self.reason_of(p, g, self.optimizer.state.get(p, {})) or SHARED

    def misfit(self, p: Tensor) -> Iterator[str]:
        """What is wrong with a parameter that torch refuses."""
        with contextlib.suppress(Exception):
            if p.grad is not None and self.reason_of_group is None:
                why = self.reason_of(p, p.grad, self.optimizer.state.get(p, {}))
                if isinstance(why, Incompatible):
                    yield f"{self._describe(p)} on {p.device}: {why}"

    def _is_fresh(self, state: dict[str, Any]) -> bool:
        return not state and bool(self.alike or self.numbers)

    def reason_of(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        """Why a parameter with this gradient and this state is torch's to step; None if it is Go's.

        Raises:
            ValueError: it can go nowhere.
        """
        if g.layout is torch.sparse_coo and self.sparse_kind is not None:
            return self._reason_of_sparse(p, g, state)
        why = self._reason_of_parameter(p) or reason_of_gradient(_dtensor.local(g)) or reason_of_state(state)
        if why is not None:
            return why
        if self.kind.sparse:
            return "its gradient is dense"
        fresh = self._is_fresh(state)
        self._require_memory(p, "the parameter", _dtensor.local(p))
        found: list[tuple[str, Any, torch.Size]] = [("its gradient", g, p.shape)]
        if not fresh:
            found += [(f"its state {key!r}", state.get(key), shape) for key, shape in self._shapes(p).items()]
        wrong = []
        odd = None
        for what, t, shape in found:
            if not isinstance(t, Tensor):
                wrong.append(f"{what} is a {type(t).__name__}")
                continue
            if t.layout is torch.strided and not t.is_nested:
                self._require_shape(p, what, t, shape)
                self._require_memory(p, what, _dtensor.local(t))
            if t.dtype != p.dtype or t.device != p.device or t.layout != p.layout or t.is_nested:
                wrong.append(f"{what} is {t.dtype} on {t.device}, {t.layout}")
            elif odd is None and (why := reason_unlike(p, t)) is not None:
                odd = f"{what} {why}"
        for key in self.numbers if not fresh else ():
            n = state.get(key)
            if not isinstance(n, Tensor) or n.dim() or not n.is_cpu or n.is_sparse or n.is_complex():
                wrong.append(f"its {key} is {n!r}")
            elif type(n) is not Tensor or n.dtype not in DTYPES or n.is_neg() or n._is_zerotensor():
                odd = odd or f"its {key} is a {type(n).__name__} of {n.dtype}"
            else:
                self._require_memory(p, f"its {key}", n)
                found.append((f"its {key}", n, n.shape))
        if wrong:
            return Incompatible(", ".join(wrong))
        known = found if p.grad is g else found[1:]  # explain makes a gradient up, of the parameter's memory
        return odd or reason_shared([("the parameter", p), *((what, t) for what, t, _ in known)])

    def _reason_of_parameter(self, p: Tensor) -> str | None:
        if self.optimizer.elementwise and _dtensor.is_dtensor(p):
            return _dtensor.why_not(p) or reason_of_tensor(_dtensor.local(p))
        return reason_of_tensor(p)

    def _shapes(self, p: Tensor) -> dict[str, torch.Size]:
        """The states of a parameter that are tensors, but for single numbers, and their shapes."""
        return dict.fromkeys(self.alike, p.shape)

    def _reason_of_sparse(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        why = reason_of_tensor(p) or _sparse.why_not(p, g, self._sums) or reason_of_state(state)
        if why is not None:
            return why
        if not self.kind.sparse and p.dim() == 1:  # torch fuses product and sum for some of these, and not for others
            return "its gradient is sparse and it is a vector"
        for key in self.numbers if state else ():
            n = state.get(key)
            if not self.kind.sparse:
                if type(n) is not Tensor or n.dim() or not n.is_cpu or n.dtype not in DTYPES:
                    return f"its {key} is {n!r}"
            elif type(n) is not int:
                return f"its {key} is {n!r}"
        for key in self.alike if state else ():
            t = state.get(key)
            if type(t) is not Tensor:
                return f"its state {key!r} is a {type(t).__name__}"
            if t.layout is not torch.strided or not t.is_cpu or t.dtype != p.dtype or t.shape != p.shape:
                return f"its state {key!r} is {t.dtype} on {t.device}, {t.layout}, of shape {tuple(t.shape)}"
            if not t.is_contiguous() or t.is_neg():
                return f"its state {key!r} is not contiguous"
        tensors = [("the parameter", p), ("its gradient", g._values() if p.grad is g else g._values()[:0])]
        tensors += [(f"its state {k!r}", t) for k, t in state.items() if k in (*self.alike, *self.numbers)]
        why = reason_shared([(what, t) for what, t in tensors if isinstance(t, Tensor)])
        if why is not None:
            return why
        row = _sparse.wrong_row(p, g)
        if row is not None:
            raise ValueError(f"{self._describe(p)}: index {row} in its gradient, expected one of {p.shape[0]} rows")
        return None

    def _row(self, p: Tensor, g: Tensor, state: dict[str, Any], new: dict[str, Any] | None = None) -> tuple[Any, ...]:
        """A row for gather.c: tensors for which reason_of has found no reason, and where new states belong."""
        shapes = self._shapes(p)
        step = state["step"] if self.kind.counts else None
        states = [
            None if s is None or s.key is None or not (s.key in shapes or s.shape == "scalar") else state[s.key]
            for s in self.states
        ]
        written = [p, *(t for t in states if t is not None)]
        if type(p) not in PLAIN:
            self.written += written
            p, g = _dtensor.local(p), _dtensor.local(g)
            states = [None if t is None else _dtensor.local(t) for t in states]
            written = [p, *(t for t in states if t is not None)]
        if _native.layout() is None:
            self.written += written if step is None else [*written, step]
        return (p, g, step, *states, new)

    def _require_shape(self, p: Tensor, what: str, t: Tensor, shape: torch.Size) -> None:
        if t.shape != shape:
            raise ValueError(f"{self._describe(p)}: {what} has shape {tuple(t.shape)}, expected {tuple(shape)}")

    def _require_memory(self, p: Tensor, what: str, t: Tensor) -> None:
        lack = lacks_memory(t)
        if lack is not None:
            raise ValueError(f"{self._describe(p)}: the storage of {what} {lack}")

    def _describe(self, p: Tensor) -> str:
        at = next((i for i, q in enumerate(self.group["params"]) if q is p), -1)
        name = f" ({self.group['param_names'][at]})" if "param_names" in self.group else ""
        return (
            f"{type(self.optimizer).__name__}: parameter {at}{name} of group {self.index}, "
            f"of shape {tuple(p.shape)} and {p.dtype}"
        )

    @torch.no_grad()
    def init_group(self, params: list[Tensor]) -> None:
        """Make states as torch makes them, by torch's own hand."""
        group = copy.copy(self.group)  # which may look its keys up in its own way
        group["params"] = params
        call_init_group(self.optimizer, group)

    @torch.no_grad()
    def finish(self) -> None:
        """Make rows of fresh parameters whose first states are torch's first results, as SGD's momentum is."""
        fresh = {id(p) for p in self.fresh}
        for i, p in enumerate(self.go):
            if id(p) not in fresh or p.grad is None:
                continue
            state = self.optimizer.state[p]
            made = {
                key: torch.empty_like(p, memory_format=torch.preserve_format, requires_grad=False)
                for key in self._shapes(p)
                if key not in state
            }
            if made and all(key in state for key in self.numbers):
                if type(p) in PLAIN:
                    self.go[i] = self._row(p, p.grad, {**state, **made}, state)
                else:  # gather.c would keep the local shard
                    self.go[i] = self._row(p, p.grad, {**state, **made}, {})
                    self.made.append((state, made))

    @property
    def _sums(self) -> bool:
        """Whether sparse gradients of one row are added up before a step, instead of being steps themselves."""
        kind = sparse_kind_of(self.optimizer.twin)  # type: ignore[arg-type]
        return kind is None or kind.sums

    def check_sparse(self, p: Tensor, g: Tensor) -> None:
        """Raise what the scalars of a sparse step raise, before anything is written."""
        betas = self.group.get("betas", ())
        extreme = not all(0 <= x <= _sparse.LARGE for x in self.scalars) or not all(beta < 1 for beta in betas)
        if extreme and p.numel() and g._nnz():
            count = self.optimizer.state.get(p, {}).get("step", 0) + 1.0 if self.numbers else 1.0
            assert self.sparse_kind is not None
            _sparse.check(self.sparse_kind, p, float(count), self.options)

    @property
    def scalars(self) -> tuple[Any, ...]:
        """The numbers of the group, if they are numbers."""
        return () if self.reason_of_group else self.kind.numbers(self.options) or ()

    @torch.no_grad()
    def step_sparse(self, p: Tensor, g: Tensor) -> None:
        optimizer = self.optimizer
        if self.numbers and not optimizer.state.get(p):
            self.init_group([p])
        state = optimizer.state[p] if self.numbers else {}
        count = float(state["step"] + 1) if self.numbers else 1.0
        if p.numel() and g._nnz():
            assert self.sparse_kind is not None
            states = [state[key] for key in self.alike]
            _sparse.step(self.sparse_kind, p, g, states, count, self.options)
        if self.numbers:
            state["step"] += 1


def bump_versions(written: list[Tensor]) -> None:
    """Tell autograd what was written, or it would use changed tensors that it has saved."""
    torch.autograd.graph.increment_version(written)
