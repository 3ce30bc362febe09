"""Optimizer.step(): supported parameters in Go, the rest in torch.

A step asks gather.c to step all groups. It does so if every parameter that has a gradient is supported; otherwise it
writes nothing and answers with a code for each parameter. Then Python decides about the parameters that C cannot judge,
torch steps those that are not supported, and gather.c is asked again for what remains. No address is known here, and
the optimizer that the user sees is never changed: torch steps a stand-in with groups of its own.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
import itertools
import operator
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks as _global_post_hooks,
    _global_optimizer_pre_hooks as _global_pre_hooks,
)

from goptim import _dtensor, _native, _numbers, _originals, _sparse

_DTYPES = (torch.float32, torch.float64)

# What gather.c answers about a parameter. The codes of a step without work for Go are all of _FOR_TORCH.
_GO, _NO_GRADIENT, _TORCH, _PYTHON = range(4)
_FOR_TORCH = bytes([_NO_GRADIENT, _TORCH])

# How often a step looks again at parameters that other code has changed since they were looked at.
_TURNS = 10

# A group for gather.c: its parameters, the keys of the states in their places, and the scalars; None is for torch.
_Asked = tuple[tuple[Any, ...], tuple[str | None, ...], tuple[Any, ...] | None]

# Of these, Go reads and writes the memory. A subclass may give torch's operations another meaning.
_PLAIN = (Tensor, torch.nn.Parameter)

# Called at every step, while somebody counts, with how many parameters go to Go and why others go to torch.
watch: Callable[[Optimizer, int, list[str]], None] | None = None


_begin_record: Callable[[str], Any] = torch.autograd._record_function_with_args_enter  # type: ignore[attr-defined]
_end_record: Callable[[Any], None] = torch.autograd._record_function_with_args_exit  # type: ignore[attr-defined]

# Asked at every step, where the way to them through torch's modules would cost as much as the answer.
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_functorch: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


# How a dict is read, which gather.c does without a call of these.
_LOOKUPS = ("__getitem__", "__contains__", "__len__", "get")

# Why a parameter is torch's that Go could step by itself.
WHY_SHARED = "its memory is memory of another parameter, which torch steps"


class _Misfit(str):
    """A reason why Go does not take a parameter that torch will refuse too, or convert."""


class GoStep(Optimizer):
    """An optimizer of torch.optim whose update runs in Go.

    Mixed into a class before its twin of torch.optim: ``class SGD(GoStep, torch.optim.SGD)``. Construction,
    validation, hooks, state and its keys, pickling and ``param_groups`` stay torch's.
    """

    twin: ClassVar[type[Optimizer]]
    """The class of torch.optim."""

    counts: ClassVar[bool] = True
    """Whether the state of a parameter has a ``step``."""

    numbers: ClassVar[int] = 0
    """How many of the columns, the first ones, are one number a parameter."""

    dense: ClassVar[bool] = True
    """Whether Go takes dense gradients."""

    sums: ClassVar[bool] = True
    """Whether sparse gradients of one row are added up before a step, instead of being steps themselves."""

    elementwise: ClassVar[bool] = True
    """Whether an element's update depends on no other element, so that a part of a parameter can be stepped alone."""

    form: ClassVar[int] = 0
    """The form of gather.c's rows: 0 of elementwise optimizers, 1 of Adafactor."""

    _part: ClassVar[type[_Part]]  # below

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """torch's runner of hooks around a class's step, without what its record for profilers costs.

        torch records a step by two operations through its dispatcher, in 7 µs; here it is one call, in 1.6, that leaves
        the same record: name, scope and all.
        """
        torchs = Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self = args[0]
            if torch.compiler.is_compiling() or _dispatch_modes():  # who look for torch's
                return torchs(*args, **kwargs)
            record = _begin_record(f"Optimizer.step#{type(self).__name__}.step")
            try:
                own = self._optimizer_step_pre_hooks
                for pre_hook in (*_global_pre_hooks.values(), *own.values()) if own or _global_pre_hooks else ():
                    result = pre_hook(self, args, kwargs)
                    if result is not None:
                        if not isinstance(result, tuple) or len(result) != 2:
                            raise RuntimeError(
                                f"{func} must return None or a tuple of (new_args, new_kwargs), but got {result}."
                            )
                        args, kwargs = result
                out = func(*args, **kwargs)
                self._optimizer_step_code()
                own = self._optimizer_step_post_hooks
                for post_hook in (*own.values(), *_global_post_hooks.values()) if own or _global_post_hooks else ():
                    post_hook(self, args, kwargs)
                return out
            finally:
                _end_record(record)

        return wrapper

    def columns(self, group: dict[str, Any]) -> tuple[str | None, ...]:
        """The keys of the state tensors that Go updates, in their places in the table; None where a place is empty."""
        raise NotImplementedError

    def scalars(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """The numbers that the Go function takes of a group (bindings/bindings.go), in its order."""
        raise NotImplementedError

    def sparse_scalars(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        """The scalars of a step with sparse gradients, in Go's order; None where such a step is torch's."""
        return None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _native.core()
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters by their gradients, in place.

        Args:
            closure: re-evaluates the model and returns the loss; it runs with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a gradient or a state has another shape than its parameter, or a sparse gradient names a row
                that its parameter has not. Nothing has been written then.
        """
        if torch.compiler.is_compiling():  # before what a compiler cannot trace
            return _undecorated(self.twin)(self, closure)
        if (why := why_torch(self)) is not None:
            if watch is not None:
                watch(self, 0, [why for group in self.param_groups for p in group["params"] if p.grad is not None])
            with _threads_after_fork():
                return _undecorated(self.twin)(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = list(self.param_groups)
        asked = tuple([self._ask(group) for group in groups])
        done = self._go(asked)
        if type(done) is not int:
            given, asked = asked, tuple(map(self._with_floats, groups, asked))
            if any(map(operator.is_not, asked, given)):
                done = self._go(asked)
        if type(done) is int:
            if watch is not None:
                watch(self, done, [])
        else:
            self._step_parts(groups, asked, done)
        return loss

    def _ask(self, group: dict[str, Any]) -> _Asked:
        """What gather.c is asked of a group. The list of parameters is read once, here."""
        params = tuple(group["params"])
        if group.get("differentiable") or group.get("capturable"):
            return params, self.columns(group), None
        return params, self.columns(group), self.scalars(group)

    def _with_floats(self, group: dict[str, Any], asked: _Asked) -> _Asked:
        """The same with its scalars as floats, if they are real numbers of other types and torch accepts these."""
        params, columns, scalars = asked
        if scalars is None or all(map(_numbers.is_plain, scalars)):
            return asked
        floats = _numbers.as_floats(scalars)
        if floats is None or not _numbers.torch_accepts(self.twin, group, _undecorated(self.twin), not self.dense):
            return asked
        return params, columns, floats

    def _go(self, groups: tuple[_Asked, ...], kind: int | None = None, only_check: bool = False) -> Any:
        """Have Go step groups if it can step all: the number of parameters, or a code for each.

        With only_check, raise what that step would raise, and write nothing.
        """
        if not self.dense:
            return bytes([_PYTHON]) * sum(len(params) for params, _, _ in groups) or 0
        core: Any = _native.core()
        return core.step_groups(
            _kind(self.twin.__name__) if kind is None else kind,
            self.form,
            _native.layout(),
            _PLAIN,
            self.state,
            "step" if self.counts else None,
            self.numbers,
            groups,
            -1 if only_check else torch.get_num_threads(),
        )

    def _step_parts(self, groups: list[dict[str, Any]], asked: Sequence[_Asked], codes: bytes) -> None:
        """The step of groups of which some parameters are not for Go, or not as gather.c finds them."""
        if (
            watch is None
            and not codes.translate(None, _FOR_TORCH)
            and all(type(group["params"]) in (list, tuple) for group in groups)
        ):
            self._torch_step(groups, asked, None)
            return
        sparse: list[tuple[_Part, Tensor, Tensor]] = []
        for turn in range(_TURNS):
            parts = self._sort(groups, asked, codes)
            for part in parts:
                for p, g in part.sparse:
                    part.check_sparse(p, g)
            new = self._make_states(parts)
            if any(part.fresh for part in parts) and any(part.rest for part in parts):
                again = self._go(tuple(asked), -1)  # with states, for what shares memory with a parameter of torch's
                if type(again) is bytes:
                    fresh = [part.fresh for part in parts]
                    parts = self._sort(groups, asked, again)
                    for part, params in zip(parts, fresh, strict=True):
                        part.fresh = params
            self._keep_order(parts)
            sparse += [(part, p, g) for part in parts for p, g in part.sparse]
            if watch is not None and turn == 0:
                n = sum(len(part.go) + len(part.sparse) for part in parts)
                watch(self, n, [why for part in parts for why in part.reasons])
            if any(part.rest for part in parts):
                if any(part.go for part in parts):
                    try:
                        self._go(tuple([part.checked for part in parts]), only_check=True)
                    except Exception:  # torch has not stepped either
                        for p in new:
                            self.state.pop(p, None)
                        raise
                self._torch_step(groups, asked, parts)
            for part in parts:
                part.finish()
            try:
                done = self._go(tuple([part.asked for part in parts]))
            except Exception:  # nothing has been written; new states, which may depend on a wrong lr, go again
                for p in [p for part in parts for p in part.fresh]:
                    self.state.pop(p, None)
                raise
            if type(done) is int:
                bump_versions([t for part in parts for t in part.written])
                for part in parts:
                    for state, made in part.made:
                        for key, t in made.items():
                            state[key] = t
                for part, p, g in sparse:
                    part.step_sparse(p, g)
                return
            # Other code has changed something since; or states have been made that gather.c leaves to Python.
            given = [type(x) is tuple for part in parts for x in part.go]
            codes = bytes([_PYTHON if row and x == _GO else x for row, x in zip(given, done, strict=True)])
            asked = [part.asked_again for part in parts]
        raise RuntimeError(f"{type(self).__name__}: the parameters or their states change all the time")

    def _sort(self, groups: list[dict[str, Any]], asked: Sequence[_Asked], codes: bytes) -> list[_Part]:
        """Find out where each parameter goes, and raise if one can go nowhere."""
        code = iter(codes)
        parts = [self._part(self, i, *both) for i, both in enumerate(zip(groups, asked, strict=True))]
        for part in parts:
            for p in part.params:
                part.sort(p, next(code))
        return parts

    def _keep_order(self, parts: list[_Part]) -> None:
        """Leave to torch what shares memory with a parameter that steps elsewhere, or has a new state in two groups.

        gather.c has compared the parameters that it takes with the others; these are compared here.
        """
        seen: set[int] = set()
        twice: set[int] = set()  # in two groups, so that the state is new in the first one alone
        for part in parts:
            fresh = {id(p) for p in part.fresh}
            twice |= fresh & seen
            seen |= fresh
        for part in parts if twice else ():
            part.leave(twice)
        if not any(part.judged for part in parts) or not any(part.rest or part.sparse for part in parts):
            return
        spans = sorted(
            (*span, id(p), place)
            for part in parts
            for place, params in enumerate((part.go_params, part.rest, [p for p, _ in part.sparse]))
            for p in params
            if id(p) in part.apart
            for span in _spans(self, p)
        )
        cluster: list[Any] = []
        mixed: set[int] = set()
        end = 0
        for span in [*spans, (1 << 64, 0, False, 0, 0)]:
            if span[0] >= end:
                if any(written for _, _, written, _, _ in cluster) and len({place for *_, place in cluster}) > 1:
                    mixed.update(of for *_, of, _ in cluster)
                cluster = []
            cluster.append(span)
            end = max(end, span[1])
        for part in parts if mixed else ():
            part.leave(mixed)

    def _make_states(self, parts: list[_Part]) -> list[Tensor]:
        """Make the states of new parameters, whoever steps them, in their order, as a state_dict shows it.

        Returns:
            These parameters.
        """
        made: list[Tensor] = []
        if not any(part.fresh or part.sparse for part in parts):
            return made  # torch makes those of its own
        for part in parts:
            new = {id(p): p for p in part.stepped if not self.state.get(p)}
            if not new:
                continue
            try:
                part.init_group(list(new.values()))
            except Exception:
                for p in new.values():  # some of a state may be there
                    self.state.pop(p, None)
                if not part.rest:
                    raise
                return made  # torch's step will raise it
            made += new.values()
        return made

    def _torch_step(self, groups: list[dict[str, Any]], asked: Sequence[_Asked], parts: list[_Part] | None) -> None:
        """Have torch step what Go does not: of parts, or everything."""
        step = _undecorated(self.twin)
        try:
            if parts is None:
                step(self)
            else:
                rests = [(group, part.rest) for group, part in zip(groups, parts, strict=True) if part.rest]
                with _stand_in(self, rests) as stand_in:
                    step(stand_in)
        except Exception as e:
            rest = None if parts is None else {id(p) for part in parts for p in part.rest}
            if parts is not None and rest is not None:
                for p in [p for part in parts for p in part.fresh if id(p) not in rest]:
                    self.state.pop(p, None)  # made for Go, which will not step now
            misfits = []
            for i, both in enumerate(zip(groups, asked, strict=True)):
                part = self._part(self, i, *both)
                misfits += [misfit for p in part.params if rest is None or id(p) in rest for misfit in part.misfit(p)]
            if not misfits:
                raise
            says = f"{'; '.join(misfits)}; and torch refuses that: {e}. What torch had written before stays"
            raise _with_message(e, says) from e


class _Part:
    """One group's part of a step that is not for Go alone."""

    def __init__(self, optimizer: GoStep, index: int, group: dict[str, Any], asked: _Asked) -> None:
        self.optimizer = optimizer
        self.index = index
        self.group = group
        self.given = asked
        self.params, self.columns, self.scalars = asked
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
    def why_group(self) -> str | None:
        """Why Go does not take the group."""
        group = self.group
        if group.get("differentiable") or group.get("capturable"):
            return f"its group is {'differentiable' if group.get('differentiable') else 'capturable'}"
        core = _native.core()
        if core is not None and core.step_groups(-1, 0, None, _PLAIN, {}, None, 0, (((_NONE,), (), self.scalars),), 1):
            return not_numbers(group)
        return None

    @property
    def asked(self) -> _Asked:
        """What gather.c is asked of the part."""
        return tuple(self.go), self.columns, self.scalars

    @property
    def checked(self) -> _Asked:
        """The same, to check it: with rows for fresh parameters, which finish makes anew after torch's part."""
        part = type(self)(self.optimizer, self.index, self.group, self.given)
        part.go, part.fresh = list(self.go), self.fresh
        part.finish()
        return part.asked

    @property
    def asked_again(self) -> _Asked:
        return tuple(self.go_params), self.columns, self.scalars

    @property
    def sparse_scalars(self) -> tuple[Any, ...] | None:
        return None if self.why_group else self.optimizer.sparse_scalars(self.group)

    @property
    def alike(self) -> tuple[str, ...]:
        """The keys of the states that are shaped as their parameter."""
        return _keys(self.columns)[self.optimizer.numbers :]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The keys of the states that are one number."""
        optimizer = self.optimizer
        return (("step",) if optimizer.counts else ()) + _keys(self.columns)[: optimizer.numbers]

    def sort(self, p: Tensor, code: int) -> None:
        """Find out where a parameter goes, and raise if it can go nowhere."""
        if code == _NO_GRADIENT:
            return
        if code != _GO:
            self.apart.add(id(p))
        if code == _GO:
            self.go.append(p)
        elif code == _TORCH:
            self.rest.append(p)
            if watch is not None and p.grad is not None:
                self.reasons.append(self._why_now(p, p.grad))
        else:
            g = p.grad
            if g is None:
                return
            state = self.optimizer.state.get(p, {})
            why = self.why_torch(p, g, state)
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
        self.reasons += [WHY_SHARED for p in self.stepped if id(p) in ids][len(self.rest) :]
        self.rest = [p for p in self.stepped if id(p) in ids]
        self.go, self.go_params = [x for x, _ in kept], [p for _, p in kept]
        self.fresh = [p for p in self.fresh if id(p) not in to_torch]
        self.sparse = [(p, g) for p, g in self.sparse if id(p) not in to_torch]

    def _why_now(self, p: Tensor, g: Tensor) -> str:
        """Why a parameter is torch's that gather.c has left to torch."""
        return self.why_group or self.why_torch(p, g, self.optimizer.state.get(p, {})) or WHY_SHARED

    def misfit(self, p: Tensor) -> Iterator[str]:
        """What is wrong with a parameter that torch refuses."""
        with contextlib.suppress(Exception):
            if p.grad is not None and self.why_group is None:
                why = self.why_torch(p, p.grad, self.optimizer.state.get(p, {}))
                if isinstance(why, _Misfit):
                    yield f"{self._describe(p)} on {p.device}: {why}"

    def _is_fresh(self, state: dict[str, Any]) -> bool:
        return not state and bool(self.alike or self.numbers)

    def why_torch(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        """Why a parameter with this gradient and this state is torch's to step; None if it is Go's.

        Raises:
            ValueError: it can go nowhere.
        """
        if g.layout is torch.sparse_coo and self.sparse_scalars is not None:
            return self._why_torch_sparse(p, g, state)
        why = self._why_not(p) or _why_not_grad(_dtensor.local(g)) or _why_not_state(state)
        if why is not None:
            return why
        if not self.optimizer.dense:
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
            elif odd is None and (why := _why_unlike(p, t)) is not None:
                odd = f"{what} {why}"
        for key in self.numbers if not fresh else ():
            n = state.get(key)
            if not isinstance(n, Tensor) or n.dim() or not n.is_cpu or n.is_sparse or n.is_complex():
                wrong.append(f"its {key} is {n!r}")
            elif type(n) is not Tensor or n.dtype not in _DTYPES or n.is_neg() or n._is_zerotensor():
                odd = odd or f"its {key} is a {type(n).__name__} of {n.dtype}"
            else:
                self._require_memory(p, f"its {key}", n)
                found.append((f"its {key}", n, n.shape))
        if wrong:
            return _Misfit(", ".join(wrong))
        known = found if p.grad is g else found[1:]  # explain makes a gradient up, of the parameter's memory
        return odd or _why_shared([("the parameter", p), *((what, t) for what, t, _ in known)])

    def _why_not(self, p: Tensor) -> str | None:
        if self.optimizer.elementwise and _dtensor.is_dtensor(p):
            return _dtensor.why_not(p) or _why_not(_dtensor.local(p))
        return _why_not(p)

    def _shapes(self, p: Tensor) -> dict[str, torch.Size]:
        """The states of a parameter that are tensors, but for single numbers, and their shapes."""
        return dict.fromkeys(self.alike, p.shape)

    def _why_torch_sparse(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        why = _why_not(p) or _sparse.why_not(p, g, self.optimizer.sums) or _why_not_state(state)
        if why is not None:
            return why
        if self.optimizer.dense and p.dim() == 1:  # torch fuses product and sum for some of these, and not for others
            return "its gradient is sparse and it is a vector"
        for key in self.numbers if state else ():
            n = state.get(key)
            if self.optimizer.dense:
                if type(n) is not Tensor or n.dim() or not n.is_cpu or n.dtype not in _DTYPES:
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
        why = _why_shared([(what, t) for what, t in tensors if isinstance(t, Tensor)])
        if why is not None:
            return why
        row = _sparse.wrong_row(p, g)
        if row is not None:
            raise ValueError(f"{self._describe(p)}: index {row} in its gradient, expected one of {p.shape[0]} rows")
        return None

    def _row(self, p: Tensor, g: Tensor, state: dict[str, Any], new: dict[str, Any] | None = None) -> tuple[Any, ...]:
        """A row for gather.c: tensors for which why_torch has found no reason, and where new states belong."""
        shapes = self._shapes(p)
        step = state["step"] if self.optimizer.counts else None
        numbers = _keys(self.columns)[: self.optimizer.numbers]
        states = [state[key] if key in shapes or key in numbers else None for key in self.columns]
        states += [None] * (3 - len(states))
        written = [p, *(t for t in states if t is not None)]
        if type(p) not in _PLAIN:
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
        _init_group(self.optimizer, {**self.group, "params": params})

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
                if type(p) in _PLAIN:
                    self.go[i] = self._row(p, p.grad, {**state, **made}, state)
                else:  # gather.c would keep the local shard
                    self.go[i] = self._row(p, p.grad, {**state, **made}, {})
                    self.made.append((state, made))

    def _sparse_kind(self) -> int:
        name = self.optimizer.twin.__name__
        return _kind(name if name.startswith("Sparse") else f"Sparse{name}")

    def check_sparse(self, p: Tensor, g: Tensor) -> None:
        """Raise what the scalars of a sparse step raise, before anything is written."""
        scalars, betas = self.scalars or (), self.group.get("betas", ())
        extreme = not all(0 <= x <= _sparse.LARGE for x in scalars) or not all(beta < 1 for beta in betas)
        if extreme and p.numel() and g._nnz():
            count = self.optimizer.state.get(p, {}).get("step", 0) + 1.0 if self.numbers else 1.0
            assert self.sparse_scalars is not None
            _sparse.check(self._sparse_kind(), p, float(count), self.sparse_scalars)

    @torch.no_grad()
    def step_sparse(self, p: Tensor, g: Tensor) -> None:
        optimizer = self.optimizer
        if self.numbers and not optimizer.state.get(p):
            self.init_group([p])
        state = optimizer.state[p] if self.numbers else {}
        count = float(state["step"] + 1) if self.numbers else 1.0
        if p.numel() and g._nnz():
            assert self.sparse_scalars is not None
            states = [state[key] for key in self.alike]
            _sparse.step(self._sparse_kind(), p, g, states, count, optimizer.sums, self.sparse_scalars)
        if self.numbers:
            state["step"] += 1


GoStep._part = _Part


# In the place of a parameter: one without a gradient.
_NONE = types.SimpleNamespace(grad=None)


@functools.cache
def _kind(name: str) -> int:
    """Go's number of an optimizer's class (bindings/bindings.go)."""
    core: Any = _native.core()
    return core.Kind(name)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _stand_in(optimizer: Optimizer, rests: list[tuple[dict[str, Any], list[Tensor]]]) -> Iterator[Optimizer]:
    """An optimizer of the same class and attributes, with the same state, and groups that hold the rests alone.

    What a step sets of the attributes or in a group is set in the optimizer too, afterwards.
    """
    stand_in: Optimizer = object.__new__(type(optimizer))
    kind: Any = type(optimizer)
    slots = _slots(kind)
    for slot in slots:
        _copy_slot(slot, optimizer, stand_in)
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
            _copy_slot(slot, stand_in, optimizer)


@functools.lru_cache(maxsize=64)
def _slots(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    """The attributes that classes name in __slots__, which vars() does not show."""
    return tuple(x for c in cls.__mro__ for x in vars(c).values() if isinstance(x, types.MemberDescriptorType))


def _copy_slot(slot: types.MemberDescriptorType, source: object, target: object) -> None:
    """Make a slot of target what it is in source, which may be empty."""
    try:
        value = slot.__get__(source)
    except AttributeError:
        with contextlib.suppress(AttributeError):
            slot.__delete__(target)
    else:
        slot.__set__(target, value)


def _with_message(e: Exception, message: str) -> Exception:
    """An exception of the same type with another message; the same one, if its type takes more than that."""
    try:
        other = type(e)(message)
    except Exception:
        return e
    return other if type(other) is type(e) else e


def _why_shared(tensors: list[tuple[str, Tensor]]) -> str | None:
    """Why Go does not take a parameter whose tensors share memory: torch's operations see each other's writes there."""
    spans = []
    for what, t in tensors:
        t = _dtensor.local(t)
        if t.numel():
            spans.append((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), what))
    for (start, _, what), (_, end, before) in itertools.combinations(sorted(spans, reverse=True), 2):
        if start < end:
            return f"memory of {before} is memory of {what}"
    return None


def _spans(optimizer: Optimizer, p: Tensor) -> Iterator[tuple[int, int, bool]]:
    """The memory of a parameter, its gradient and its state, and whether a step writes it."""
    for t in (p, p.grad, *optimizer.state.get(p, {}).values()):
        with contextlib.suppress(Exception):  # it may have no address
            start = t.data_ptr()
            last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            if t.numel() and start:
                yield start, start + (last + 1) * t.element_size(), t is not p.grad


def _keys(columns: tuple[str | None, ...]) -> tuple[str, ...]:
    return tuple(key for key in columns if key is not None)


def why_torch(optimizer: Optimizer) -> str | None:
    """Why Go may not write to memory behind torch's back, which a tracer or a loss scaler must not miss."""
    if _native.core() is None:
        return _native.why_not()
    if _dispatch_modes():
        return "a dispatch mode is active"
    if _functorch() is not None:
        return "functorch is active"
    if getattr(optimizer, "grad_scale", None) is not None or getattr(optimizer, "found_inf", None) is not None:
        return "a GradScaler hands its scale to the optimizer"
    return _why_not_state(optimizer.state)


def _why_not_state(state: Any) -> str | None:
    """Why Go does not take the states in a dict, of an optimizer or a parameter, which may read them in its own way."""
    kind = type(state)
    if kind is dict or kind is collections.defaultdict:
        return None
    if isinstance(state, dict) and any(getattr(kind, name) is not getattr(dict, name) for name in _LOOKUPS):
        return f"its state is a {kind.__name__} that looks states up in its own way"
    return None


def why_compiling() -> str | None:
    """Why a step that a compiler traces is torch's; a question of its own, for a compiler cannot trace the others."""
    return "the step is being compiled" if torch.compiler.is_compiling() else None


def not_numbers(group: dict[str, Any]) -> str:
    """Says which of a group's hyperparameters are not the numbers that Go needs."""
    named = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    tensors = [
        key
        for key, value in named.items()
        if any(isinstance(x, Tensor) for x in (value if isinstance(value, (tuple, list)) else [value]))
    ]
    if tensors:
        return f"its group's {', '.join(tensors)} is a Tensor"
    if isinstance(named.get("eps"), tuple) and None in named["eps"]:  # Adafactor's
        return "its group's eps depends on the dtype, and there are several, or none that Go takes"
    return "its group has an argument that is no number"


def _why_not(p: Tensor) -> str | None:
    """Why Go does not take a parameter; None if it does."""
    if type(p) not in _PLAIN:
        return f"it is a {type(p).__name__}, not a plain tensor"
    if p.layout is not torch.strided:
        return f"it is {p.layout}"
    if p.dtype not in _DTYPES:
        return f"it is {p.dtype}"
    if not p.is_cpu:
        return f"it is on {p.device}"
    if p.is_nested:
        return "it is a nested tensor"
    if p.is_neg():
        return "it is a negative view"
    return None if _dense(p) else "its elements have gaps between them, or overlap"


def _why_not_grad(g: Tensor) -> str | None:
    """Why Go does not take a gradient, whatever its parameter is."""
    if type(g) is not Tensor:
        return f"its gradient is a {type(g).__name__}, not a plain tensor"
    if g.layout is not torch.strided:
        return f"its gradient is {g.layout}"
    if g.is_nested:
        return "its gradient is a nested tensor"
    return "its gradient is a negative or conjugate view" if g.is_neg() or g.is_conj() else None


def _why_unlike(p: Tensor, t: Tensor) -> str | None:
    """Why Go does not take a gradient or a state beside its parameter, whose dtype and device it has."""
    if type(t) is not (Tensor if type(p) in _PLAIN else type(p)):
        return f"is a {type(t).__name__}"
    if type(p) not in _PLAIN and (why := _dtensor.why_apart(p, t)) is not None:
        return why
    alike = t.is_contiguous() if t.shape != p.shape else _alike(_dtensor.local(p), _dtensor.local(t))
    return None if alike else "is laid out otherwise than the parameter"


def _dense(t: Tensor) -> bool:
    """Whether t's elements fill one stretch of memory, each once, in any order of dimensions."""
    if t.is_contiguous() or t.numel() == 0:
        return True
    filled = 1
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1):
        if stride != filled:
            return False
        filled *= size
    return True


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype lie in memory alike."""
    if a.data_ptr() == 0 or b.data_ptr() == 0:
        return a.numel() == 0
    pairs = zip(a.stride(), b.stride(), a.shape, strict=True)
    return all(s == t or n == 1 for s, t, n in pairs)


def lacks_memory(t: Tensor) -> str | None:
    """What is wrong with the storage of a tensor that somebody has made too small for it, which torch would overrun."""
    if type(t) not in _PLAIN or not t.is_cpu or t._is_zerotensor():
        return None
    has, needs = t.untyped_storage().nbytes(), (int(t.storage_offset()) + t.numel()) * t.element_size()
    return f"has {has} bytes, expected at least {needs}" if has < needs and _dense(t) and t.numel() else None


def bump_versions(written: list[Tensor]) -> None:
    """Tell autograd what was written, or it would use changed tensors that it has saved."""
    torch.autograd.graph.increment_version(written)


@contextlib.contextmanager
def _threads_after_fork() -> Iterator[None]:
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


def _undecorated(twin: type[Optimizer]) -> Callable[..., Any]:
    """torch's step of a class, under torch's rule for grad mode, without the hooks that ours already runs."""
    step: Any = twin.step
    if getattr(step, "__module__", "").startswith("goptim."):  # a program has assigned ours to torch's class
        step = _originals.STEPS.get(twin, step)
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[no-any-return]


def _init_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
    init: Any = optimizer._init_group  # type: ignore[attr-defined]
    kind: Any = type(optimizer)
    theirs = getattr(kind.twin, "_init_group", kind._init_group)  # a class derived from it may say *args
    _, _, *lists = inspect.signature(theirs).parameters
    # In torch 2.6, the flag amsgrad is among the lists that it fills.
    init(group, *(group[name] if isinstance(group.get(name), bool) else [] for name in lists))
