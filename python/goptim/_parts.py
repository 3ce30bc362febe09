"""A group in a step in which some parameters fall back to torch: where each runs, and the rows for gather.c."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _dtensor, _native, _sparse, _storage
from goptim._eligible import (
    DTYPES,
    NARROW,
    PLAIN,
    SHARED,
    Incompatible,
    lacks_memory,
    looks_up,
    reason_of_gradient,
    reason_of_numbers,
    reason_of_path,
    reason_of_state,
    reason_of_tensor,
    reason_shared,
    reason_unlike,
)
from goptim._fallback import call_init_group
from goptim._kinds import Kind, State, sparse_kind_of

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
        self.go: list[Any] = []  # in Go: parameters, or rows for gather.c
        self.go_params: list[Tensor] = []  # the parameters of go
        self.rest: list[Tensor] = []  # in torch
        self.reasons: list[str] = []  # of each parameter of rest that has a gradient, if watch is set
        self.fresh: list[Tensor] = []  # in Go, without a state
        self.sparse: list[tuple[Tensor, Tensor]] = []  # in Go, with sparse gradients
        self.stepped: list[Tensor] = []  # all of the above that have a gradient
        self.classified = False  # whether Python has classified some
        self.unsupported: set[int] = set()  # the ids of parameters that gather.c does not support
        self.uncounted: dict[int, list[Tensor]] = {}  # tensors whose versions gather.c does not increment, by parameter
        self.made: list[tuple[dict[str, Any], dict[str, Tensor]]] = []  # states, and the tensors that Go fills for them
        self.storage = _storage.storage_of(self.options)
        self.unlike: list[Tensor] = []  # in Go, with a state that is not yet as the storage says

    @functools.cached_property
    def kind(self) -> Kind:
        """The group's kind, which is known only if Go has been loaded."""
        return self.optimizer.kind_in(self.group)

    @functools.cached_property
    def reason_of_group(self) -> str | None:
        """Why the group falls back to torch."""
        for key in self.kind.leave:
            if self.options.get(key):
                return f"its group is {key}" if key.endswith("able") else f"its group has {key}={self.options[key]!r}"
        return None if self.kind.is_plain(self.options, self.extra) else reason_of_numbers(self.options)

    @functools.cached_property
    def states(self) -> tuple[State | None, ...]:
        """The states of the group's parameters, in their places in a row."""
        return self.kind.states_of(self.options, self.extra)

    @torch.no_grad()
    def restore(self, p: Tensor) -> None:
        """After load_state_dict: convert states of a parameter that differ in dtype, and drop those that are not used.

        A master copy or a compensation is made in the next step, because the parameter may be loaded later.
        """
        assert self.storage is not None
        state, extra = self.optimizer.state[p], self.storage.extra(p)
        for key in self.tensor_states:
            if isinstance(t := state.get(key), Tensor) and t.dtype != (dtype := self.dtype_of(p, key)):
                state[key] = t.to(dtype)
        for key in (_storage.MASTER, _storage.COMPENSATION) if extra is None else ():
            state.pop(key, None)

    @property
    def asked(self) -> Asked:
        """The arguments of gather.c for this group."""
        return tuple(self.go), self.options, self.extra

    @property
    def checked(self) -> Asked:
        """The same for a check, with rows for new parameters. finish makes these rows again after torch's step."""
        part = type(self)(self.optimizer, self.index, self.group, self.given)
        part.go, part.go_params, part.fresh = list(self.go), self.go_params, self.fresh
        part.finish()
        return part.asked

    @property
    def asked_again(self) -> Asked:
        return tuple(self.go_params), self.options, self.extra

    @functools.cached_property
    def sparse_kind(self) -> Kind | None:
        """The kind of steps with sparse gradients; None if they fall back to torch."""
        kind = sparse_kind_of(self.optimizer.torch_class)  # type: ignore[arg-type]
        if kind is None or self.reason_of_group or self.group.get("fused"):
            return None
        return None if any(self.options[key] != 0 for key in kind.zero) else kind

    @functools.cached_property
    def tensor_states(self) -> tuple[str, ...]:
        """The keys of the state tensors that are not scalar."""
        shapes = ("scalar", "float")
        return tuple(s.key for s in self.states if s is not None and s.key is not None and s.shape not in shapes)

    @functools.cached_property
    def scalar_states(self) -> tuple[str, ...]:
        """The keys of the scalar states."""
        scalars = tuple(s.key for s in self.states if s is not None and s.key is not None and s.shape == "scalar")
        return (("step",) if self.kind.counts and "step" not in self.numbers else ()) + scalars

    @functools.cached_property
    def numbers(self) -> dict[str, type]:
        """The types of the states that are Python numbers, in which gather.c stores them."""
        kinds = {"step": int} if self.kind.integer and self.kind.keeps else {}
        return kinds | {s.key: float for s in self.states if s is not None and s.key and s.shape == "float"}

    def affected(self, p: Tensor) -> bool:
        """Whether torch cannot step a parameter because of the group's storage."""
        if self.storage is None:
            return False
        keys = self.tensor_states if _native.core() is not None else ()
        return self.storage.affects(p, {self.natural_dtype(p, key) for key in keys})

    def natural_dtype(self, p: Tensor, key: str) -> torch.dtype:
        """The dtype of a state of a parameter if the group has no storage."""
        return self.state_dtypes.get(key, p.dtype) if p.dtype in NARROW else p.dtype

    def dtype_of(self, p: Tensor, key: str) -> torch.dtype:
        """The dtype of a state of a parameter."""
        natural = self.natural_dtype(p, key)
        return natural if self.storage is None else self.storage.state_dtype_of(p, natural)

    def refuse(self, p: Tensor, why: str) -> None:
        """Raise an error for a parameter that falls back to torch, which cannot step it."""
        if self.affected(p):
            named = ", ".join(f"{key}={value!r}" for key, value in _storage.given(self.options).items())
            raise ValueError(f"{self._describe(p)}: {named} needs a step in Go, which is not possible: {why}")

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        """The index in the optimizer of each parameter, by its id."""
        first = sum(len(group["params"]) for group in self.optimizer.param_groups[: self.index])
        return {id(p): first + i for i, p in enumerate(self.group["params"])}

    def _indexed(self, p: Tensor) -> Any:
        """A parameter for gather.c, with its index if its random numbers depend on it."""
        return (p, self._places[id(p)]) if self.storage is not None and self.storage.counts(p) else p

    def sort(self, p: Tensor, code: int) -> None:
        """Decide where a parameter is stepped, or raise an error if it cannot be stepped."""
        if code == NO_GRADIENT:
            return
        if code != GO:
            self.unsupported.add(id(p))
        if code == TORCH and self.affected(p):
            if p.grad is not None:
                self._refuse_for_group(p)
            code = PYTHON
        if code == GO:
            self.go.append(self._indexed(p))
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
            self.classified = True
            if why is not None:
                self.refuse(p, why)
                self.rest.append(p)
                self.reasons.append(why)
            elif g.layout is torch.sparse_coo:
                self.sparse.append((p, g))
            elif self._is_fresh(state, p):
                self.fresh.append(p)
                self.go.append(self._indexed(p))
            elif not self._is_stored(p, state):
                self.unlike.append(p)
                self.go.append(self._indexed(p))
            else:
                self.go.append(self._row(p, g, state))
        if len(self.go_params) < len(self.go):
            self.go_params.append(p)
        self.stepped.append(p)

    def fall_back(self, to_torch: set[int], why: str) -> None:
        """Let parameters, given by their ids, fall back to torch."""
        for p in self.stepped:
            if id(p) in to_torch:
                self.refuse(p, why)
        kept = [(x, p) for x, p in zip(self.go, self.go_params, strict=True) if id(p) not in to_torch]
        ids = {id(p) for p in self.rest} | to_torch
        self.reasons += [why for p in self.stepped if id(p) in ids][len(self.rest) :]
        self.rest = [p for p in self.stepped if id(p) in ids]
        self.go, self.go_params = [x for x, _ in kept], [p for _, p in kept]
        self.fresh = [p for p in self.fresh if id(p) not in to_torch]
        self.sparse = [(p, g) for p, g in self.sparse if id(p) not in to_torch]
        for of in to_torch:
            self.uncounted.pop(of, None)

    @property
    def written(self) -> list[Tensor]:
        """The tensors that Go writes, but whose versions gather.c does not increment."""
        return [t for tensors in self.uncounted.values() for t in tensors]

    def _current_reason(self, p: Tensor, g: Tensor) -> str:
        """Why a parameter with the code TORCH falls back."""
        return self.reason_of_group or self.reason_of(p, g, self.optimizer.state.get(p, {})) or SHARED

    def incompatibilities(self, p: Tensor) -> Iterator[str]:
        """Yield an error message for a parameter that torch rejects."""
        with contextlib.suppress(Exception):
            if p.grad is not None and self.reason_of_group is None:
                why = self.reason_of(p, p.grad, self.optimizer.state.get(p, {}))
                if isinstance(why, Incompatible):
                    yield f"{self._describe(p)} on {p.device}: {why}"

    def _refuse_for_group(self, p: Tensor) -> None:
        if self.reason_of_group is not None:
            self.refuse(p, self.reason_of_group)

    def _is_fresh(self, state: dict[str, Any], p: Tensor) -> bool:
        if not state:
            return bool(self.tensor_states or self.scalar_states or self.numbers) or not self._is_stored(p, state)
        if any(key not in state for key in self.kind.late):
            return True
        # SGD's momentum buffer is the first gradient. A storage may have added other states before.
        return (
            not self.kind.counts
            and self.affected(p)
            and all(state.get(key) is None for key in self.tensor_states)
            and bool(self.tensor_states)
        )

    def is_stored(self, p: Tensor) -> bool:
        """Whether the state of a parameter is as the storage says, or does not exist yet."""
        state = self.optimizer.state.get(p, {})
        return not state or self._is_stored(p, state)

    def _is_stored(self, p: Tensor, state: dict[str, Any]) -> bool:
        """Whether the state of a parameter is as the storage says."""
        if self.storage is None:
            return True
        extra = self.storage.extra(p)
        if extra is not None and (not isinstance(t := state.get(extra[0]), Tensor) or t.dtype != extra[1]):
            return False
        if self.storage.counts(p) and "step" not in state:
            return False
        of = self.dtype_of
        return all(t.dtype == of(p, key) for key in self.tensor_states if isinstance(t := state.get(key), Tensor))

    @torch.no_grad()
    def store(self, p: Tensor) -> None:
        """Make the state of a parameter as the storage says: docs/half.md has the conversions."""
        storage = self.storage
        if storage is None or self._is_stored(p, self.optimizer.state.get(p, {})):
            return
        state = self.optimizer.state[p]
        new = self.kind.counts and isinstance(state.get("step"), Tensor) and state["step"].item() == 0
        for s in self.states:
            if s is None or s.key not in self.tensor_states or not isinstance(t := state.get(s.key), Tensor):
                continue
            if t.dtype != (dtype := self.dtype_of(p, s.key)):
                state[s.key] = t.to(dtype)
                if new and s.initial is not None:  # not twice rounded
                    state[s.key].fill_(float(self.group[s.initial]))
        if storage.counts(p) and "step" not in state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        if p.dtype in NARROW:
            exact = {
                key: t for key in (_storage.MASTER, _storage.COMPENSATION) if isinstance(t := state.get(key), Tensor)
            }
            extra = storage.extra(p)
            for key in exact:
                if extra is None or key != extra[0]:
                    del state[key]
            if extra is not None and (extra[0] not in exact or exact[extra[0]].dtype != extra[1]):
                state[extra[0]] = _storage.converted(p, exact, *extra)

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
        fresh = self._is_fresh(state, p)
        self._require_memory(p, "the parameter", _dtensor.local(p))
        found: list[tuple[str, Any, torch.Size]] = [("its gradient", g, p.shape)]
        dtypes = {}
        if not fresh:
            found += [(f"its state {key!r}", state.get(key), shape) for key, shape in self._shapes(p).items()]
            dtypes = {f"its state {key!r}": self.natural_dtype(p, key) for key in self.state_dtypes}
        affected = self.affected(p)
        extra = None if self.storage is None else self.storage.extra(p)
        if extra is not None and extra[0] in state:
            found.append((f"its state {extra[0]!r}", state[extra[0]], p.shape))
        wrong = []
        mismatch = None
        for key, of in self.numbers.items() if not fresh else ():
            if type(state.get(key)) is not of or (of is int and state[key] < 0):
                wrong.append(f"its {key} is {state.get(key)!r}")
        if self.numbers and not fresh and [x is state for x in self.optimizer.state.values()].count(True) > 1:
            return "its state is that of another parameter too"
        for what, t, shape in found:
            if not isinstance(t, Tensor):
                wrong.append(f"{what} is a {type(t).__name__}")
                continue
            if t.layout is torch.strided and not t.is_nested:
                self._require_shape(p, what, t, shape)
                self._require_memory(p, what, _dtensor.local(t))
            converted = affected and t is not g and t.dtype in _storage.CONVERTED
            as_expected = converted or t.dtype == dtypes.get(what, p.dtype)
            if not as_expected or t.device != p.device or t.layout != p.layout or t.is_nested:
                wrong.append(f"{what} is {t.dtype} on {t.device}, {t.layout}")
            elif mismatch is None and (why := reason_unlike(p, t)) is not None:
                mismatch = f"{what} {why}"
        counted = self.storage is not None and self.storage.counts(p) and not self.kind.counts and "step" in state
        for key in (*(self.scalar_states if not fresh else ()), *(("step",) if counted else ())):
            n = state.get(key)
            if not isinstance(n, Tensor) or n.dim() or not n.is_cpu or n.is_sparse or n.is_complex():
                wrong.append(f"its {key} is {n!r}")
            elif type(n) is not Tensor or n.dtype not in self.dtypes or n.is_neg() or n._is_zerotensor():
                mismatch = mismatch or f"its {key} is a {type(n).__name__} of {n.dtype}"
            else:
                self._require_memory(p, f"its {key}", n)
                found.append((f"its {key}", n, n.shape))
        if wrong:
            return Incompatible(", ".join(wrong))
        known = found if p.grad is g else found[1:]  # explain passes a gradient that uses the parameter's memory
        return mismatch or reason_shared([("the parameter", p), *((what, t) for what, t, _ in known)])

    @functools.cached_property
    def state_dtypes(self) -> dict[str, torch.dtype]:
        """The dtypes of the states of 16-bit parameters, where they differ from the parameter's."""
        return {s.key: getattr(torch, s.narrow) for s in self.states if s is not None and s.key and s.narrow}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes of elements and scalar states."""
        return (*DTYPES, *NARROW) if self.kind.narrow else DTYPES

    @functools.cached_property
    def reason_of_narrow(self) -> str | None:
        """Why the group's 16-bit parameters fall back to torch, if its kind supports them."""
        return reason_of_path(self.options) if self.kind.paths else None

    def _reason_of_parameter(self, p: Tensor) -> str | None:
        sums = self.options.get("caution") or self.options.get("clipping_threshold")  # over all elements of a tensor
        if self.optimizer.elementwise and not sums and _dtensor.is_dtensor(p):
            why = _dtensor.reason_of_shard(p) or reason_of_tensor(_dtensor.local(p), self.dtypes)
        else:
            why = reason_of_tensor(p, self.dtypes)
        return why or (self.reason_of_narrow if p.dtype in NARROW else None)

    def _shapes(self, p: Tensor) -> dict[str, torch.Size]:
        """The shapes of the state tensors of a parameter that are not scalar."""
        return dict.fromkeys(self.tensor_states, p.shape)

    def _reason_of_sparse(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        why = reason_of_tensor(p, self.dtypes) or (self.reason_of_narrow if p.dtype in NARROW else None)
        why = why or _sparse.reason_of_sparse(p, g, self._sums) or reason_of_state(state)
        if why is not None:
            return why
        if not self.kind.sparse and p.dim() == 1:  # torch fuses product and sum only for some of these
            return "its gradient is sparse and it is a vector"
        storage = self.storage
        counted = storage is not None and storage.counts(p) and not self.scalar_states and "step" in state
        for key in (*(self.scalar_states if state else ()), *(("step",) if counted else ())):
            n = state.get(key)
            if not self.kind.sparse:
                if type(n) is not Tensor or n.dim() or not n.is_cpu or n.dtype not in DTYPES:
                    return f"its {key} is {n!r}"
            elif type(n) is not int:
                return f"its {key} is {n!r}"
        extra = None if storage is None else storage.extra(p)
        dtypes = _storage.CONVERTED if self.affected(p) else (p.dtype,)
        for key in (*(self.tensor_states if state else ()), *(extra[:1] if extra and extra[0] in state else ())):
            t = state.get(key)
            if type(t) is not Tensor:
                return f"its state {key!r} is a {type(t).__name__}"
            if t.layout is not torch.strided or not t.is_cpu or t.dtype not in dtypes or t.shape != p.shape:
                return f"its state {key!r} is {t.dtype} on {t.device}, {t.layout}, of shape {tuple(t.shape)}"
            if not t.is_contiguous() or t.is_neg():
                return f"its state {key!r} is not contiguous"
        tensors = [("the parameter", p), ("its gradient", g._values() if p.grad is g else g._values()[:0])]
        keys = (
            *self.tensor_states,
            *self.scalar_states,
            *(("step",) if counted else ()),
            *(extra[:1] if extra else ()),
        )
        tensors += [(f"its state {k!r}", t) for k, t in state.items() if k in keys and isinstance(t, Tensor)]
        for what, t in (*tensors, ("the indices of its gradient", g._indices())):
            self._require_memory(p, what, t)
        why = reason_shared(tensors)
        if why is not None:
            return why
        row = _sparse.wrong_row(p, g)
        if row is not None:
            raise ValueError(f"{self._describe(p)}: index {row} in its gradient, expected one of {p.shape[0]} rows")
        return None

    def _row(self, p: Tensor, g: Tensor, state: dict[str, Any], new: dict[str, Any] | None = None) -> tuple[Any, ...]:
        """A row for gather.c: tensors that reason_of has accepted, and the dict for new states."""
        shapes = self._shapes(p)
        storage = self.storage
        counts = self.kind.counts or (storage is not None and storage.counts(p))
        step: Any = state["step"] if counts else None
        if self.kind.keeps:
            step = self.optimizer.state[p]  # gather.c stores numbers in it
        extra = None if storage is None else storage.extra(p)
        more = () if storage is None else (None if extra is None else state[extra[0]], self._places[id(p)])
        states = [
            None if s is None or s.key is None or not (s.key in shapes or s.shape == "scalar") else state[s.key]
            for s in self.states
        ]
        read = {i for i, s in enumerate(self.states) if s is not None and s.shape == "start"}
        uncounted = self.uncounted.setdefault(id(p), [])

        def written() -> list[Tensor]:
            both = (*(t for i, t in enumerate(states) if i not in read), *more[:1])
            return [p, *(t for t in both if t is not None)]

        if type(p) not in PLAIN:
            uncounted += written()
            p, g = _dtensor.local(p), _dtensor.local(g)
            states = [None if t is None else _dtensor.local(t) for t in states]
            more = (None if more[0] is None else _dtensor.local(more[0]), more[1]) if more else ()
        if _native.layout() is None:
            count = state["step"] if counts else None
            uncounted += [*written(), count] if isinstance(count, Tensor) else written()
        return (p, g, step, *states, new, *more)

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
        for p in params:
            self.store(p)

    @torch.no_grad()
    def finish(self) -> None:
        """Make rows of new parameters whose first step computes a state, such as SGD's momentum buffer."""
        fresh = {id(p) for p in self.fresh}
        for i, p in enumerate(self.go_params):
            if id(p) not in fresh or p.grad is None:
                continue
            state = self.optimizer.state[p]
            self.store(p)
            made = {
                key: torch.empty_like(
                    p, dtype=self.dtype_of(p, key), memory_format=torch.preserve_format, requires_grad=False
                )
                for key in self._shapes(p)
                if state.get(key) is None
            }
            if made and all(key in state for key in self.scalar_states):
                if type(p) in PLAIN:
                    self.go[i] = self._row(p, p.grad, {**state, **made}, state)
                else:  # gather.c would store the local shard in the state
                    self.go[i] = self._row(p, p.grad, {**state, **made}, {})
                    self.made.append((state, made))

    @property
    def _sums(self) -> bool:
        """Whether the sparse gradients of a row are summed, instead of applied one after another."""
        kind = sparse_kind_of(self.optimizer.torch_class)  # type: ignore[arg-type]
        return kind is None or kind.sums

    def check_sparse(self, p: Tensor, g: Tensor) -> None:
        """Raise errors of the scalars of a sparse step before anything is written."""
        betas = self.options.get("betas", ())
        extreme = not all(0 <= x <= _sparse.LARGE for x in self.scalars) or not all(beta < 1 for beta in betas)
        if extreme and p.numel() and g._nnz():
            count = self.optimizer.state.get(p, {}).get("step", 0) + 1.0 if self.scalar_states else 1.0
            assert self.sparse_kind is not None
            _sparse.check(self.sparse_kind, p, float(count), self.options)

    @property
    def scalars(self) -> tuple[Any, ...]:
        """The scalars of the group; empty if they are not all numbers."""
        return () if self.reason_of_group else self.kind.numbers(self.options) or ()

    @torch.no_grad()
    def step_sparse(self, p: Tensor, g: Tensor) -> None:
        optimizer = self.optimizer
        if self.scalar_states and not optimizer.state.get(p):
            self.init_group([p])
        self.store(p)
        storage = self.storage
        extra = None if storage is None else storage.extra(p)
        counted = bool(self.scalar_states) or (storage is not None and storage.counts(p))
        state = optimizer.state[p] if counted or extra is not None else {}
        count = float(state["step"] + 1) if counted else 1.0
        if p.numel() and g._nnz():
            assert self.sparse_kind is not None
            states = [state[key] for key in self.tensor_states]
            more = [] if extra is None else [state[extra[0]]]
            _sparse.step(self.sparse_kind, p, g, states, count, self.options, more, self._places[id(p)])
        if counted:
            state["step"] += 1


def bump_versions(written: list[Tensor]) -> None:
    """Increment versions, so that autograd detects that tensors it has saved have changed."""
    torch.autograd.graph.increment_version(written)
