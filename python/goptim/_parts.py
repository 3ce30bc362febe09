"""A group in a step in which some parameters fall back to torch: where each runs, and the rows for gather.c."""

from __future__ import annotations

import contextlib
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
    looks_up,
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


# The codes of gather.c for a parameter. If nothing runs in Go, all codes of a step are in _FOR_TORCH.
GO, NO_GRADIENT, TORCH, PYTHON = range(4)

# The arguments of gather.c for a group: its parameters, its options, and scalars that are not among the options.
Asked = tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]

# If not None, called at each step with the number of parameters in Go and the reasons why others fall back to torch.
watch: Callable[[Optimizer, int, list[str]], None] | None = None


class Part:
    """One group in a step that does not run only in Go."""

    def __init__(self, optimizer: GoStep, index: int, group: dict[str, Any], asked: Asked) -> None:
        self.optimizer = optimizer
        self.index = index
        self.group = group
        self.given = asked
        self.params, self.options, self.extra = asked
        self.kind = optimizer.kind
        self.go: list[Any] = []  # in Go: parameters, or rows for gather.c
        self.go_params: list[Tensor] = []  # the parameters of go
        self.rest: list[Tensor] = []  # in torch
        self.reasons: list[str] = []  # of each parameter of rest that has a gradient, if watch is set
        self.fresh: list[Tensor] = []  # in Go, without a state
        self.sparse: list[tuple[Tensor, Tensor]] = []  # in Go, with sparse gradients
        self.stepped: list[Tensor] = []  # all of the above that have a gradient
        self.judged = False  # whether Python has classified some
        self.apart: set[int] = set()  # the ids of parameters that gather.c does not support
        self.written: list[Tensor] = []  # tensors whose versions gather.c does not increment
        self.made: list[tuple[dict[str, Any], dict[str, Tensor]]] = []  # states, and the tensors that Go fills for them

    @functools.cached_property
    def reason_of_group(self) -> str | None:
        """Why the group falls back to torch."""
        for key in LEAVE:
            if self.options.get(key):
                return f"its group is {key}"
        return None if self.kind.is_plain(self.options, self.extra) else reason_of_numbers(self.options)

    @functools.cached_property
    def states(self) -> tuple[State | None, ...]:
        """The states of the group's parameters, in their places in a row."""
        return self.kind.states_of(self.options, self.extra)

    @property
    def asked(self) -> Asked:
        """The arguments of gather.c for this group."""
        return tuple(self.go), self.options, self.extra

    @property
    def checked(self) -> Asked:
        """The same for a check, with rows for new parameters. finish makes these rows again after torch's step."""
        part = type(self)(self.optimizer, self.index, self.group, self.given)
        part.go, part.fresh = list(self.go), self.fresh
        part.finish()
        return part.asked

    @property
    def asked_again(self) -> Asked:
        return tuple(self.go_params), self.options, self.extra

    @functools.cached_property
    def sparse_kind(self) -> Kind | None:
        """The kind of steps with sparse gradients; None if they fall back to torch."""
        kind = sparse_kind_of(self.optimizer.twin)  # type: ignore[arg-type]
        if kind is None or self.reason_of_group or self.group.get("fused"):
            return None
        return None if any(self.options[key] != 0 for key in kind.zero) else kind

    @functools.cached_property
    def alike(self) -> tuple[str, ...]:
        """The keys of the state tensors that are not scalar."""
        return tuple(s.key for s in self.states if s is not None and s.key is not None and s.shape != "scalar")

    @functools.cached_property
    def numbers(self) -> tuple[str, ...]:
        """The keys of the scalar states."""
        scalars = tuple(s.key for s in self.states if s is not None and s.key is not None and s.shape == "scalar")
        return (("step",) if self.kind.counts else ()) + scalars

    def sort(self, p: Tensor, code: int) -> None:
        """Decide where a parameter is stepped, or raise an error if it cannot be stepped."""
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

    def leave(self, to_torch: set[int], why: str) -> None:
        """Let parameters, given by their ids, fall back to torch."""
        kept = [(x, p) for x, p in zip(self.go, self.go_params, strict=True) if id(p) not in to_torch]
        ids = {id(p) for p in self.rest} | to_torch
        self.reasons += [why for p in self.stepped if id(p) in ids][len(self.rest) :]
        self.rest = [p for p in self.stepped if id(p) in ids]
        self.go, self.go_params = [x for x, _ in kept], [p for _, p in kept]
        self.fresh = [p for p in self.fresh if id(p) not in to_torch]
        self.sparse = [(p, g) for p, g in self.sparse if id(p) not in to_torch]

    def _current_reason(self, p: Tensor, g: Tensor) -> str:
        """Why a parameter with the code TORCH falls back."""
        return self.reason_of_group or self.reason_of(p, g, self.optimizer.state.get(p, {})) or SHARED

    def misfit(self, p: Tensor) -> Iterator[str]:
        """An error message for a parameter that torch rejects."""
        with contextlib.suppress(Exception):
            if p.grad is not None and self.reason_of_group is None:
                why = self.reason_of(p, p.grad, self.optimizer.state.get(p, {}))
                if isinstance(why, Incompatible):
                    yield f"{self._describe(p)} on {p.device}: {why}"

    def _is_fresh(self, state: dict[str, Any]) -> bool:
        return not state and bool(self.alike or self.numbers)

    def reason_of(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        """Why a parameter with this gradient and this state falls back to torch; None if it runs in Go.

        Raises:
            ValueError: it cannot be stepped.
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
        mismatch = None
        for what, t, shape in found:
            if not isinstance(t, Tensor):
                wrong.append(f"{what} is a {type(t).__name__}")
                continue
            if t.layout is torch.strided and not t.is_nested:
                self._require_shape(p, what, t, shape)
                self._require_memory(p, what, _dtensor.local(t))
            if t.dtype != p.dtype or t.device != p.device or t.layout != p.layout or t.is_nested:
                wrong.append(f"{what} is {t.dtype} on {t.device}, {t.layout}")
            elif mismatch is None and (why := reason_unlike(p, t)) is not None:
                mismatch = f"{what} {why}"
        for key in self.numbers if not fresh else ():
            n = state.get(key)
            if not isinstance(n, Tensor) or n.dim() or not n.is_cpu or n.is_sparse or n.is_complex():
                wrong.append(f"its {key} is {n!r}")
            elif type(n) is not Tensor or n.dtype not in DTYPES or n.is_neg() or n._is_zerotensor():
                mismatch = mismatch or f"its {key} is a {type(n).__name__} of {n.dtype}"
            else:
                self._require_memory(p, f"its {key}", n)
                found.append((f"its {key}", n, n.shape))
        if wrong:
            return Incompatible(", ".join(wrong))
        known = found if p.grad is g else found[1:]  # explain passes a gradient that uses the parameter's memory
        return mismatch or reason_shared([("the parameter", p), *((what, t) for what, t, _ in known)])

    def _reason_of_parameter(self, p: Tensor) -> str | None:
        if self.optimizer.elementwise and _dtensor.is_dtensor(p):
            return _dtensor.why_not(p) or reason_of_tensor(_dtensor.local(p))
        return reason_of_tensor(p)

    def _shapes(self, p: Tensor) -> dict[str, torch.Size]:
        """The shapes of the state tensors of a parameter that are not scalar."""
        return dict.fromkeys(self.alike, p.shape)

    def _reason_of_sparse(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        why = reason_of_tensor(p) or _sparse.why_not(p, g, self._sums) or reason_of_state(state)
        if why is not None:
            return why
        if not self.kind.sparse and p.dim() == 1:  # torch fuses product and sum only for some of these
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
        """A row for gather.c: tensors that reason_of has accepted, and the dict for new states."""
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
        """Create states with torch's own code."""
        group = self.group if looks_up(self.group) else {**self.group, "params": params}
        call_init_group(self.optimizer, group)

    @torch.no_grad()
    def finish(self) -> None:
        """Make rows of new parameters whose first step computes a state, such as SGD's momentum buffer."""
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
                else:  # gather.c would store the local shard in the state
                    self.go[i] = self._row(p, p.grad, {**state, **made}, {})
                    self.made.append((state, made))

    @property
    def _sums(self) -> bool:
        """Whether the sparse gradients of a row are summed, instead of applied one after another."""
        kind = sparse_kind_of(self.optimizer.twin)  # type: ignore[arg-type]
        return kind is None or kind.sums

    def check_sparse(self, p: Tensor, g: Tensor) -> None:
        """Raise errors of the scalars of a sparse step before anything is written."""
        betas = self.options.get("betas", ())
        extreme = not all(0 <= x <= _sparse.LARGE for x in self.scalars) or not all(beta < 1 for beta in betas)
        if extreme and p.numel() and g._nnz():
            count = self.optimizer.state.get(p, {}).get("step", 0) + 1.0 if self.numbers else 1.0
            assert self.sparse_kind is not None
            _sparse.check(self.sparse_kind, p, float(count), self.options)

    @property
    def scalars(self) -> tuple[Any, ...]:
        """The scalars of the group; empty if they are not all numbers."""
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
    """Increment versions, so that autograd detects that tensors it has saved have changed."""
    torch.autograd.graph.increment_version(written)
