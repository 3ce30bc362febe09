"""The way of one step: param_groups become tables of addresses, Go takes these, torch takes the rest."""

from __future__ import annotations

import contextlib
import functools
import inspect
from array import array
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks as _global_post_hooks,
    _global_optimizer_pre_hooks as _global_pre_hooks,
)

from goptim import _dtensor, _native, _sparse

# Where a table's columns are (goptim/table.go).
_WORDS = 8
_DTYPES = {torch.float32: 1, torch.float64: 2}
_NEW = 1 << 16

# Of each parameter: a row, and behind all rows the addresses of up to four versions. Then as much again for the group.
_ROOM = array("Q", [0] * (_WORDS + 4))
_NEXT, _ROWS = -len(_ROOM), -len(_ROOM) + 2  # words of the group (bindings/bindings.go)

# A subclass of these may give torch's operations another meaning, which Go would not see.
_PLAIN = (Tensor, torch.nn.Parameter)

# Called at every step, while somebody counts, with how many parameters go to Go and why others go to torch.
watch: Callable[[Optimizer, int, list[str]], None] | None = None


_begin_record: Callable[[str], Any] = torch.autograd._record_function_with_args_enter  # type: ignore[attr-defined]
_end_record: Callable[[Any], None] = torch.autograd._record_function_with_args_exit  # type: ignore[attr-defined]

# Asked at every step, where the way to them through torch's modules would cost as much as the answer.
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_functorch: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


# What most tables have none of, until they make lists, for six of these would be a tenth of what a small table costs.
_NONE: Any = ()


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

    _table: ClassVar[type[_Table]]  # below

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
        """The arguments of the Go function for sparse gradients, behind ``step``; None where such are torch's."""
        return None

    def go(self, tables: list[_Table]) -> None:
        """Have Go step the rows of all tables, as one piece of work for its threads."""
        function, at = getattr(_native.core(), self.twin.__name__), 0
        for table in reversed(tables):
            table.words[_NEXT], table.words[_ROWS] = at, table.n
            at = table.group_address
        _native.call(function, at, torch.get_num_threads())

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
        tables: list[_Table] = []
        for i, group in enumerate(self.param_groups):
            tables.append(self._table(self, i, group, tables[-1].at if tables else 0))
        if watch is not None:
            watch(self, sum(table.count() for table in tables), [why for table in tables for why in table.reasons()])
        for table in tables:
            if table.rest:
                break
        else:
            self._go_step(tables)
            return loss
        with self._states_in_order(tables):
            self._torch_step(tables)
            self._go_step(tables)
        return loss

    def _go_step(self, tables: list[_Table]) -> None:
        try:
            self._go_dense(tables)
        except Exception:  # nothing has been written; new states, which may depend on a wrong lr, go again
            for table in tables:
                for p in table.fresh:
                    self.state.pop(p, None)
            raise
        for table in tables:
            for state, key, t in table.made:  # an interrupt before this leaves no state without a value
                state[key] = t
            for p, g in table.sparse:
                table.step_sparse(p, g)

    def _go_dense(self, tables: list[_Table]) -> None:
        dense = []
        for table in tables:
            for p, g in table.sparse:
                table.check_sparse(p, g)
        for table in tables:
            if table.fresh:
                table.make_states()
            if table.n:
                table.bump_versions()
                dense.append(table)
        if dense:
            self.go(dense)

    @contextlib.contextmanager
    def _states_in_order(self, tables: list[_Table]) -> Iterator[None]:
        """Have new states come in their parameters' order, whoever makes them, as a state_dict shows it."""
        new: list[Tensor] = []
        if any(table.fresh or table.sparse for table in tables):
            new = [p for g in self.param_groups for p in g["params"] if p.grad is not None and p not in self.state]
        try:
            for p in new:
                self.state[p] = {}  # which torch takes for none
            yield
        finally:
            for p in new:
                if not self.state.get(p, True):
                    del self.state[p]

    def _torch_step(self, tables: list[_Table]) -> None:
        """Have torch step what Go does not take. If torch fails where there is a misfit, all it wrote is undone."""
        misfits = [misfit for table in tables for misfit in table.misfits]
        undo = _undo(self.state, [p for table in tables for p in table.rest]) if misfits else None
        groups = self.param_groups
        everything = [group["params"] for group in groups]
        try:
            self.param_groups = [group for group, table in zip(groups, tables, strict=True) if table.rest]
            for table in tables:
                table.group["params"] = table.rest
            _undecorated(self.twin)(self)
        except Exception as e:
            if undo is None:
                raise
            undo()
            raise RuntimeError(f"{'; '.join(misfits)}; and torch refuses that: {e}") from e
        finally:
            for group, params in zip(groups, everything, strict=True):
                group["params"] = params
            self.param_groups = groups


class _Table:
    """One group's part of a step: a row for every parameter that Go takes, and a list of those that it does not."""

    rest: list[Tensor] = _NONE  # for torch
    why: list[str] = _NONE  # of each of rest
    misfits: list[str] = _NONE  # what is wrong with some of rest, which torch will refuse, or convert
    fresh: list[Tensor] = _NONE  # for Go, without a state yet
    sparse: list[tuple[Tensor, Tensor]] = _NONE  # for Go, with their gradients
    made: list[tuple[dict[str, Any], str, Tensor]] = _NONE  # states without a value yet
    n = counted = versions = 0  # rows; of written, what gather has counted; the versions among it

    def __init__(self, optimizer: GoStep, index: int, group: dict[str, Any], at: int | None = 0) -> None:
        self.core = _native.core()
        self.optimizer = optimizer
        self.index = index
        self.group = group
        self.columns = optimizer.columns(group)
        self.written: list[Tensor] = []
        self.grads: list[Tensor] = []  # held, so that no other thread frees them during the step
        params: list[Tensor] = group["params"]
        self.words = _ROOM * (len(params) + 1)
        self.address = self.words.buffer_info()[0]
        self.group_address = self.address + 8 * len(_ROOM) * len(params)
        self.at = at or 0  # in the optimizer's state, where the search goes on; None asks for no rows
        self.scalars = optimizer.scalars(group)
        self.why_group = self._why_not_group()
        if at is None:
            return
        if self.why_group is not None:
            self.rest = params
        elif odd := self._gather(params):
            self.rest, self.why, self.misfits, self.fresh, self.sparse, self.made = [], [], [], [], [], []
            for p in odd:
                self._sort(p)

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

    def count(self) -> int:
        """How many parameters go to Go."""
        return self.n + len(self.fresh) + len(self.sparse)

    def reasons(self) -> list[str]:
        """Why parameters that have a gradient go to torch, one for each."""
        if self.why_group is None:
            return self.why
        return [self.why_group for p in self.rest if p.grad is not None]

    def _why_not_group(self) -> str | None:
        """Why Go does not take the group; None if it does, and its scalars are written."""
        group = self.group
        if group.get("differentiable") or group.get("capturable"):
            return f"its group is {'differentiable' if group.get('differentiable') else 'capturable'}"
        if self.core is None or self.core.pack(self.group_address, self.address, self.scalars):
            return None
        return not_numbers(group)

    def _gather(self, params: list[Tensor]) -> list[Tensor]:
        """Make the rows that gather.c can make; what it leaves is returned."""
        core, layout = self.core, _native.layout()
        if core is None or layout is None or not self.optimizer.dense or type(params) is not list:
            return params
        odd: list[Tensor] = []
        self.n, self.at, self.versions = core.gather(
            layout,
            _PLAIN,
            params,
            self.optimizer.state,
            self.at,
            "step" if self.optimizer.counts else None,
            self.columns,
            self.optimizer.numbers,
            self.address,
            self.written,
            self.grads,
            odd,
        )
        self.counted = len(self.written)
        return odd

    def _sort(self, p: Tensor) -> None:
        """Find out where a parameter goes, and raise if it can go nowhere."""
        g = p.grad
        if g is None:
            return
        state = self.optimizer.state.get(p, {})
        why = self.why_torch(p, g, state)
        if why is not None:
            if isinstance(why, _Misfit):
                self.misfits.append(f"{self._describe(p)} on {p.device}: {why}")
            self.rest.append(p)
            self.why.append(why)
        elif g.layout is torch.sparse_coo:
            self.sparse.append((p, g))
        elif self._is_fresh(state):
            self.fresh.append(p)
        else:
            self._add(p, g, state)

    def _is_fresh(self, state: dict[str, Any]) -> bool:
        return not state and bool(self.alike or self.numbers)

    def why_torch(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        """Why a parameter with this gradient and this state is torch's to step; None if it is Go's.

        Raises:
            ValueError: it can go nowhere.
        """
        if g.layout is torch.sparse_coo and self.sparse_scalars is not None:
            return self._why_torch_sparse(p, g, state)
        why = self._why_not(p) or _why_not_grad(_dtensor.local(g))
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
            elif type(n) is not Tensor or n.dtype not in _DTYPES:
                odd = odd or f"its {key} is a {type(n).__name__} of {n.dtype}"
        return _Misfit(", ".join(wrong)) if wrong else odd

    def _why_not(self, p: Tensor) -> str | None:
        if self.optimizer.elementwise and _dtensor.is_dtensor(p):
            return _dtensor.why_not(p) or _why_not(_dtensor.local(p))
        return _why_not(p)

    def _shapes(self, p: Tensor) -> dict[str, torch.Size]:
        """The states of a parameter that are tensors, but for single numbers, and their shapes."""
        return dict.fromkeys(self.alike, p.shape)

    def _places(self, p: Tensor) -> tuple[str | int | None, ...]:
        """What stands in the places of the states: a state's key, for its address; or a word."""
        return self.columns

    def _why_torch_sparse(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        why = _why_not(p) or _sparse.why_not(p, g, self.optimizer.sums)
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
        row = _sparse.wrong_row(p, g)
        if row is not None:
            raise ValueError(f"{self._describe(p)}: index {row} in its gradient, expected one of {p.shape[0]} rows")
        return None

    def _add(self, p: Tensor, g: Tensor, state: dict[str, Any], kind: int = 0) -> None:
        places = self._places(p)
        states = [state[x] for x in places if isinstance(x, str)]
        self.written += [p, *states]
        if type(p) not in _PLAIN:
            p, g, *states = (_dtensor.local(t) for t in (p, g, *states))
            self.written += [p, *states]
        addresses = iter([t.data_ptr() for t in states])
        words = [next(addresses) if isinstance(x, str) else x or 0 for x in places]
        words += [0] * (3 - len(words))
        kind |= _DTYPES[p.dtype]
        step = 0
        if self.optimizer.counts:
            kind |= _DTYPES[state["step"].dtype] << 8
            step = state["step"].data_ptr()
        for i, key in enumerate(self.columns[: self.optimizer.numbers]):
            assert key is not None
            kind |= _DTYPES[state[key].dtype] << (32 + 8 * i)
        at = self.n * _WORDS
        self.words[at : at + _WORDS] = array("Q", [p.numel(), kind, p.data_ptr(), g.data_ptr(), step, *words])
        self.n += 1
        self.grads.append(g)

    def _require_shape(self, p: Tensor, what: str, t: Tensor, shape: torch.Size) -> None:
        if t.shape != shape:
            raise ValueError(f"{self._describe(p)}: {what} has shape {tuple(t.shape)}, expected {tuple(shape)}")

    def _require_memory(self, p: Tensor, what: str, t: Tensor) -> None:
        """Refuse a tensor whose storage somebody has made too small for it, which torch would write behind."""
        if type(t) not in _PLAIN or not t.is_cpu or t._is_zerotensor():
            return
        has, needs = t.untyped_storage().nbytes(), (int(t.storage_offset()) + t.numel()) * t.element_size()
        if has < needs and _dense(t) and t.numel():
            raise ValueError(f"{self._describe(p)}: the storage of {what} has {has} bytes, expected at least {needs}")

    def _describe(self, p: Tensor) -> str:
        at = next(i for i, q in enumerate(self.group["params"]) if q is p)
        name = f" ({self.group['param_names'][at]})" if "param_names" in self.group else ""
        return (
            f"{type(self.optimizer).__name__}: parameter {at}{name} of group {self.index}, "
            f"of shape {tuple(p.shape)} and {p.dtype}"
        )

    @torch.no_grad()
    def make_states(self) -> None:
        """Make the states of fresh parameters as torch makes them, by torch's own hand, and their rows."""
        optimizer = self.optimizer
        _init_group(optimizer, self.group | {"params": self.fresh})
        for p in self.fresh:
            assert p.grad is not None
            state = optimizer.state[p]
            made = {
                key: torch.empty_like(p, memory_format=torch.preserve_format, requires_grad=False)
                for key in self._shapes(p)
                if key not in state
            }
            self.made += [(state, key, t) for key, t in made.items()]
            self._add(p, p.grad, state | made, _NEW if made else 0)

    def bump_versions(self) -> None:
        if self.versions:
            assert self.core is not None
            self.core.bump(self.address + 8 * _WORDS * (len(self.words) // len(_ROOM) - 1), self.versions)
        if self.counted < len(self.written):
            bump_versions(self.written[self.counted :])

    def _sparse_function(self) -> Callable[..., int]:
        name = self.optimizer.twin.__name__
        return getattr(_native.core(), name if name.startswith("Sparse") else f"Sparse{name}")  # type: ignore[no-any-return]

    def check_sparse(self, p: Tensor, g: Tensor) -> None:
        """Raise what the scalars of a sparse step raise, before anything is written."""
        betas = self.group.get("betas", ())
        extreme = not all(0 <= x <= _sparse.LARGE for x in self.scalars) or not all(beta < 1 for beta in betas)
        if extreme and p.numel() and g._nnz():
            count = self.optimizer.state.get(p, {}).get("step", 0) + 1.0 if self.numbers else 1.0
            assert self.sparse_scalars is not None
            _sparse.check(self._sparse_function(), p, float(count), self.sparse_scalars)

    @torch.no_grad()
    def step_sparse(self, p: Tensor, g: Tensor) -> None:
        optimizer = self.optimizer
        if self.numbers and not optimizer.state.get(p):
            _init_group(optimizer, self.group | {"params": [p]})
        state = optimizer.state[p] if self.numbers else {}
        count = float(state["step"] + 1) if self.numbers else 1.0
        if p.numel() and g._nnz():
            assert self.sparse_scalars is not None
            states = [state[key] for key in self.alike]
            _sparse.step(self._sparse_function(), p, g, states, count, optimizer.sums, self.sparse_scalars)
        if self.numbers:
            state["step"] += 1


GoStep._table = _Table


def _keys(columns: tuple[str | None, ...]) -> tuple[str, ...]:
    return tuple(key for key in columns if key is not None)


def why_torch(optimizer: Optimizer) -> str | None:
    """Why Go may not write to memory behind torch's back, which a tracer or a loss scaler must not miss."""
    if _native.core() is None:
        return "this process was forked after goptim had been used"
    if _dispatch_modes():
        return "a dispatch mode is active"
    if _functorch() is not None:
        return "functorch is active"
    if getattr(optimizer, "grad_scale", None) is not None or getattr(optimizer, "found_inf", None) is not None:
        return "a GradScaler hands its scale to the optimizer"
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


def bump_versions(written: list[Tensor]) -> None:
    """Tell autograd what was written, or it would use changed tensors that it has saved."""
    torch.autograd.graph.increment_version(written)


@contextlib.contextmanager
def _threads_after_fork() -> Iterator[None]:
    """One thread in a forked child: torch's OpenMP does not survive a fork either, and would hang with more."""
    threads = torch.get_num_threads()
    if _native.core() is not None or threads == 1:
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
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[no-any-return]


def _init_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
    init: Any = optimizer._init_group  # type: ignore[attr-defined]
    _, *lists = inspect.signature(init).parameters
    # In torch 2.6, the flag amsgrad is among the lists that it fills.
    init(group, *(group[name] if isinstance(group.get(name), bool) else [] for name in lists))


def _undo(state: dict[Tensor, Any], params: list[Tensor]) -> Callable[[], None]:
    """Remember parameters and their states, to restore them."""
    states = {p: dict(state[p]) for p in params if p in state}
    tensors = [*params, *(t for s in states.values() for t in s.values() if isinstance(t, Tensor))]
    values = [(t, t.detach().clone()) for t in tensors]

    def undo() -> None:
        with torch.no_grad():
            for t, value in values:
                t.copy_(value)
        for p in params:
            if p in states:
                state[p].clear()
                state[p].update(states[p])
            else:
                state.pop(p, None)

    return undo
