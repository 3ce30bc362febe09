"""LBFGS: a quasi-Newton method that evaluates a closure many times per step."""

from __future__ import annotations

import ctypes
import functools
import itertools
import operator
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from goptim import _native, _numbers, _originals, _parts
from goptim._eligible import DTYPES, NARROW, PLAIN, looks_up, reason_of_optimizer
from goptim._fallback import copy_slot, slots_of, threads_after_fork, undecorated_step
from goptim._parts import bump_versions
from goptim._zero import ZeroGrad


class LBFGS(ZeroGrad, _originals.LBFGS):
    r"""torch.optim.LBFGS with its arithmetic in Go: the same arguments and state, equal evaluations up to rounding.

    From :math:`g_k = \nabla f(x_k)` and the last ``history_size`` pairs :math:`s_i = x_{i+1} - x_i`,
    :math:`y_i = g_{i+1} - g_i` with :math:`1 / \rho_i = y_i^\top s_i > 10^{-10}`, an iteration computes

    .. math::
        \begin{aligned}
        &q \leftarrow -g_k \\
        &\textbf{for } i \text{ from the newest to the oldest}: \quad
            \alpha_i \leftarrow \rho_i s_i^\top q, \quad q \leftarrow q - \alpha_i y_i \\
        &d \leftarrow \gamma q, \quad \gamma = s_i^\top y_i / y_i^\top y_i \text{ of the newest} \\
        &\textbf{for } i \text{ from the oldest to the newest}: \quad
            d \leftarrow d + (\alpha_i - \rho_i y_i^\top d) s_i \\
        &x_{k+1} \leftarrow x_k + t d
        \end{aligned}

    with :math:`t` = ``lr``, in the very first iteration at most ``lr`` :math:`/ \lVert g \rVert_1`; with
    ``line_search_fn="strong_wolfe"``, the line search starts with this :math:`t`.

    Liu & Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical Programming 45 (1989);
    Nocedal & Wright, "Numerical Optimization" (2nd ed.), Algorithms 7.4 and 7.5. The line search is that of Mark
    Schmidt's `minFunc <https://www.cs.ubc.ca/~schmidtm/Software/minFunc.html>`_, as in torch: Algorithms 3.5 and 3.6 of
    Nocedal & Wright with cubic interpolation.

    The state, stored with the first parameter, has torch's keys and types, and either class loads it. Sums over vectors
    are not rounded in the order of torch's BLAS; everything else is exact. On twelve functions in float64, losses were
    within 1e-9 of torch's for twenty iterations, and the number of evaluations was the same for sixty; in float32,
    losses were within 1e-4 for five iterations. Then the trajectories diverge, because L-BFGS amplifies differences.
    goptim's sums do not depend on the number of threads or the vector width.

    Contiguous CPU tensors run in Go if all have the same dtype: float32, float64, bfloat16 or float16. Otherwise the
    step falls back to torch, and so do steps that torch rejects. Gradients may be sparse or missing.

    With 16-bit parameters, everything but the parameters and gradients is float32: directions, the history, and the
    point at which a line search starts. A parameter is rounded each time it is written, so an evaluation is at the
    rounded point, and the next movement starts there. ``load_state_dict`` rounds a state to 16 bits, as torch's own
    class does all the time. The next step converts it back to float32.

    The closure may step the same optimizer, as with torch. Both steps use the same history, and the outer step
    continues with the history that the inner one leaves.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_params" not in vars(self):  # torch's class does not survive pickling
            self._params = self.param_groups[0]["params"]
            self._numel_cache = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _native.core()
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take up to ``max_iter`` iterations.

        Args:
            closure: re-evaluates the model and returns the loss, with gradients enabled.

        Returns:
            The closure's first result.

        Raises:
            RuntimeError: the closure changed the number of elements or the type of a parameter or gradient.
        """
        if torch.compiler.is_compiling():
            return undecorated_step(_originals.LBFGS)(self, closure)
        why = self._reason_before() if callable(closure) else "its closure cannot be called"
        if why is not None:
            if _parts.watch is not None:
                _parts.watch(self, 0, [why] * len(self._params))
            self._round_state()
            with threads_after_fork():
                return undecorated_step(_originals.LBFGS)(self, closure)
        with torch.no_grad():
            closure = torch.enable_grad()(closure)
            state = self.state[self._params[0]]
            for outer in _running:
                if outer.state is state:
                    outer.save_alphas()
            state.setdefault("func_evals", 0)
            state.setdefault("n_iter", 0)
            group = dict(self.param_groups[0])
            run = _Run(self, state)  # before the closure, which may change the options
            first = closure()
            loss = float(first)
            state["func_evals"] += 1
            why = run.reason_of(loss)
            if why is not None:
                state["func_evals"] -= 1
                if _parts.watch is not None:
                    _parts.watch(self, 0, [why] * len(self._params))
                self._round_state()
                replay = _Replay(run, group, first, closure)
                return undecorated_step(_originals.LBFGS)(replay.stand_in, replay)
            if _parts.watch is not None:
                _parts.watch(self, len(self._params), [])
            run.go(closure)
            return first

    def _reason_before(self) -> str | None:
        """Why a step falls back to torch, as far as is known before the closure runs; None if it runs in Go."""
        why = reason_of_optimizer(self)
        if why is not None:
            return why
        if torch.is_inference_mode_enabled():
            return "inference mode is on"
        if len(self.param_groups) != 1 or not self._params:
            return "there is not one group with parameters"
        if looks_up(self.param_groups[0]):
            return "its group is a dict with its own lookup methods"
        if self._options() is None:
            return "an argument is not a number, or out of range"
        return _reason_of_params(self._params)

    def _options(self) -> _Options | None:
        """The options for Go; None if they are not supported."""
        group = self.param_groups[0]
        search = group["line_search_fn"]
        reals = tuple(group[key] for key in ("lr", "tolerance_grad", "tolerance_change"))
        counts = tuple(group[key] for key in ("max_iter", "max_eval", "history_size"))
        if not (
            all(type(x) in (int, float) for x in reals) and all(type(x) is int for x in counts)
        ):  # torch may accept other numbers
            floats = _numbers.as_floats(reals)
            if floats is None or bool in map(type, (*reals, *counts)):
                return None
            try:
                counts = tuple(map(operator.index, counts))
            except TypeError:
                return None
            if not _numbers.torch_accepts(_originals.LBFGS, group, _step_alone):
                return None
            reals = tuple(x if type(x) is int else float(x) for x in floats)
        options = _Options(*reals, *counts)
        if not (
            all(0 < x < 1 << 62 for x in (options.max_iter, options.max_eval))
            and options.history_size > 0
            and (search is None or search == "strong_wolfe")
            and (type(options.lr) is float or options.lr < 1 << 53)
        ):
            return None
        return options

    def _round_state(self) -> None:
        """Give the state of 16-bit parameters the dtype that torch's step needs."""
        p = self._params[0] if self._params else None
        state = self.state.get(p) if p is not None and p.dtype in NARROW else None
        if p is not None and state:
            _convert(state, torch.float32, p.dtype)

    def _current_reason(self) -> str | None:
        """Why a step would fall back to torch if its closure did not change the gradients and the state."""
        return self._reason_before() or _Run(self, self.state.get(self._params[0], {})).reason_of(0.0)


def _convert(state: dict[str, Any], old: torch.dtype, new: torch.dtype) -> None:
    """Convert the tensors of a state, also those in its lists."""

    def converted(x: Any) -> Any:
        return x.to(new) if isinstance(x, Tensor) and x.dtype is old else x

    for key, value in state.items():
        if type(value) is list:
            value[:] = map(converted, value)
        else:
            state[key] = converted(value)


def _reason_of_params(params: list[Tensor]) -> str | None:
    """Why parameters fall back to torch; None if they run in Go."""
    dtype, spans = params[0].dtype, []
    if dtype not in (*DTYPES, *NARROW):
        return f"parameter 0 is {dtype}"
    for i, p in enumerate(params):
        if not _is_flat(p, PLAIN, dtype):
            return f"parameter {i} is not a plain contiguous tensor on the CPU of {dtype}, as parameter 0"
        spans.append((p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()))
    spans.sort()
    if spans[-1][1] == spans[-1][0]:
        return "there are no elements"
    if any(a[1] > b[0] for a, b in itertools.pairwise(spans)):
        return "parameters share memory"
    return None


def _is_count(x: object) -> bool:
    return type(x) is int and 0 <= x < 1 << 62


def _is_flat(t: object, types: tuple[type, ...], dtype: torch.dtype) -> bool:
    """Whether t is contiguous, in memory that Go may access."""
    return (
        type(t) in types
        and (t := cast(Tensor, t)).layout is torch.strided
        and t.dtype is dtype
        and t.is_cpu
        and not t.is_nested
        and t.is_contiguous()
        and not t.is_neg()
        and not t.is_inference()
        and (t.data_ptr() != 0 or t.numel() == 0)
    )


# Reasons for a fallback after the first evaluation.
_GRADIENTS = "the gradients are not plain tensors of their parameters' dtype and size on the CPU"
_STATE = "its state is not as this optimizer leaves it"


class _Options(NamedTuple):
    """The numeric options of an optimizer."""

    lr: float
    tolerance_grad: float
    tolerance_change: float
    max_iter: int
    max_eval: int
    history_size: int


def _step_alone(optimizer: Any) -> None:
    """torch's step of an optimizer with one parameter, whose gradient is constant."""
    undecorated_step(_originals.LBFGS)(optimizer, lambda: 1.0)


@functools.cache
def _max_eval_bounds_searches() -> bool:
    """Whether max_eval limits a line search, as in later versions of torch; in earlier ones, 25 evaluations do.

    It runs torch's search on a function that decreases without bound, which only the limit ends.
    """
    x = torch.ones(1, dtype=torch.float64, device="cpu")
    optimizer = _originals.LBFGS([x], max_iter=1, max_eval=3, line_search_fn="strong_wolfe")
    evaluations = 0

    def closure() -> float:
        nonlocal evaluations
        evaluations += 1
        x.grad = -2 * x
        return -float(x * x)

    undecorated_step(_originals.LBFGS)(optimizer, closure)
    return evaluations < 10


class _Replay:
    """A closure for torch's step that has already been called once, and returns that result first.

    torch reads options and state before the first call, which may change or replace both. So torch steps a stand-in
    with the earlier options and state. After the call, it has those of the optimizer.
    """

    def __init__(self, run: _Run, group: dict[str, Any], first: Any, closure: Callable[[], Any]) -> None:
        self.optimizer = run.optimizer
        self.first = [first]
        self.closure = closure
        kind: Any = type(run.optimizer)
        self.stand_in: LBFGS = object.__new__(kind)
        for slot in slots_of(kind):
            copy_slot(slot, run.optimizer, self.stand_in)
        params = run.params[:1]
        vars(self.stand_in).update(
            vars(run.optimizer), param_groups=[group], _params=params, state={params[0]: run.state}
        )

    def __call__(self) -> Any:
        if self.first:
            self.stand_in.__dict__ = vars(self.optimizer)
            return self.first.pop()
        return self.closure()


class _Number(ctypes.Structure):
    """lbfgs.Number, in goptim/internal/lbfgs/machine.go."""

    _fields_ = (("value", ctypes.c_double), ("kind", ctypes.c_int64))


class _Machine(ctypes.Structure):
    """lbfgs.Machine, in goptim/internal/lbfgs/machine.go."""

    _fields_ = (
        ("lr", _Number),
        ("max_iter", ctypes.c_int64),
        ("max_eval", ctypes.c_int64),
        ("tolerance_grad", ctypes.c_double),
        ("tolerance_change", ctypes.c_double),
        ("strong_wolfe", ctypes.c_int64),
        ("max_search", ctypes.c_int64),
        ("loss", ctypes.c_double),
        ("negate", ctypes.c_int64),
        ("segments", ctypes.c_uint64),
        ("segment_count", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("float64", ctypes.c_int64),
        ("narrow", ctypes.c_int64),
        ("iterations", ctypes.c_int64),
        ("evaluations", ctypes.c_int64),
        ("t", _Number),
        ("h", _Number),
        ("prev_loss", ctypes.c_double),
        ("kept", ctypes.c_uint64),
        ("last_direction", ctypes.c_uint64),
        ("direction", ctypes.c_uint64),
        ("pairs", ctypes.c_uint64),
        ("ros", ctypes.c_uint64),
        ("alphas", ctypes.c_uint64),
        ("pair_count", ctypes.c_int64),
        ("recursions", ctypes.c_int64),
        ("y", ctypes.c_uint64),
        ("s", ctypes.c_uint64),
        ("ro", ctypes.c_double),
        ("low", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("phase", ctypes.c_int64),
        ("private", ctypes.c_int64 * 38),
    )


# lbfgs.Ask, in goptim/internal/lbfgs/machine.go. Values that are not here end the step.
_EVALUATE, _REMEMBER, _DONE, _OPTIMAL = range(4)
_ERRORS = {  # as raised by torch's step
    4: ZeroDivisionError("float division by zero"),
    5: IndexError("list index out of range"),
    6: RuntimeError("value cannot be converted to type float without overflow"),
}


# The running steps of all threads. They are nested if a closure steps its own optimizer.
_running: list[_Run] = []


class _Run:
    """One step: the memory of Go's state machine, and the evaluations that it requests.

    The closure runs user code, and other threads may run at any time. So the run references each tensor whose address
    the machine has, and reads the addresses again after each evaluation.
    """

    def __init__(self, optimizer: LBFGS, state: dict[str, Any]) -> None:
        self.optimizer = optimizer
        self.state = state
        self.params: list[Tensor] = list(optimizer._params)
        group = optimizer.param_groups[0]
        options = optimizer._options()
        assert options is not None
        self.history_size = options.history_size
        self.search = group["line_search_fn"] is not None
        self.maximize = bool(group.get("maximize", False))
        self.dtype = self.params[0].dtype
        self.of_state = torch.float32 if self.dtype in NARROW else self.dtype
        self.segments = array("Q", bytes(24 * len(self.params)))
        self.grads: list[Tensor] = []
        self.old_dirs: list[Tensor] = []  # the lists of the state, if it has them
        self.old_stps: list[Tensor] = []
        self.ro: list[Tensor] = []
        self.in_search = False  # whether the last evaluation belonged to a line search
        self.saved = 0  # the number of the machine's recursions whose alphas are in the state
        self.sizes = [p.numel() for p in self.params]
        self.machine = m = _Machine()
        self.at = ctypes.addressof(m)
        m.n = sum(self.sizes)
        m.float64 = self.dtype is torch.float64
        m.narrow = {torch.bfloat16: 3, torch.float16: 4}.get(self.dtype, 0)
        m.segments, m.segment_count = self.segments.buffer_info()[0], len(self.params)
        m.lr = self._number(options.lr)
        m.max_iter, m.max_eval = options.max_iter, options.max_eval
        m.tolerance_grad, m.tolerance_change = options.tolerance_grad, options.tolerance_change
        m.strong_wolfe = self.search
        m.max_search = 25 if self.search and not _max_eval_bounds_searches() else 0

    def reason_of(self, loss: float) -> str | None:
        """Why a step falls back to torch after the first evaluation; None if it runs in Go."""
        if not self._same_params() or _reason_of_params(self.params) is not None:
            return "the closure has changed the parameters"
        if not self.see(loss):
            return _GRADIENTS
        return None if self._is_state_ours() else _STATE

    def _is_state_ours(self) -> bool:
        state = self.state
        if self.dtype in NARROW:  # of load_state_dict, or of torch's class
            state = {key: list(x) if type(x) is list else x for key, x in state.items()}
            _convert(state, self.dtype, self.of_state)
        evaluations, iterations = state.get("func_evals", 0), state.get("n_iter", 0)
        if not (_is_count(evaluations) and _is_count(iterations)):
            return False
        al, kept = state.get("al"), state.get("prev_flat_grad")
        if not (kept is None or self._is_vector(kept)):
            return False
        if not (al is None or (type(al) is list and len(al) >= self.history_size)):
            return False
        return iterations == 0 or (
            kept is not None
            and self._is_vector(state.get("d"))
            and self._is_number(state.get("t"))
            and self._is_number(state.get("H_diag"))
            and self._is_history(*(state.get(key) for key in ("old_dirs", "old_stps", "ro")))
        )

    def _is_history(self, old_dirs: Any, old_stps: Any, ro: Any) -> bool:
        lists = old_dirs, old_stps, ro
        return (
            all(type(x) is list and len(x) == len(ro) <= self.history_size for x in lists)
            and all(self._is_vector(t) for x in lists[:2] for t in x)
            and all(type(x) is Tensor and self._is_number(x) for x in ro)
        )

    def _is_vector(self, t: Any) -> bool:
        return _is_flat(t, (Tensor,), self.of_state) and t.shape == (self.machine.n,)

    def _is_number(self, x: Any) -> bool:
        return type(x) in (int, float) or (_is_flat(x, (Tensor,), self.of_state) and x.dim() == 0)

    def see(self, loss: float) -> bool:
        """Pass the loss and the gradients of an evaluation to the machine; False if they are not supported."""
        m, words = self.machine, self.segments
        # torch reads the option once, except for gradients and line searches, which read it each time.
        negate = bool(self.optimizer.param_groups[0].get("maximize", False))
        m.loss, m.negate = (-loss if (negate if self.in_search else self.maximize) else loss), negate
        self.grads = []
        for i, p in enumerate(self.params):
            g = p.grad
            if g is None:
                address = 0
            elif _is_flat(g, (Tensor,), self.dtype) and g.numel() == self.sizes[i]:
                self.grads.append(g)
                address = g.data_ptr()
            else:
                return self._see_gathered()
            words[3 * i : 3 * i + 3] = array("Q", (self.sizes[i], p.data_ptr(), address))
        return True

    def _see_gathered(self) -> bool:
        """The same for gradients that torch must convert."""
        flat: Tensor = self.optimizer._gather_flat_grad()  # type: ignore[no-untyped-call]
        if not (_is_flat(flat, (Tensor,), self.dtype) and flat.numel() == self.machine.n):
            return False
        self.grads = [flat]
        self.machine.negate = 0
        address = flat.data_ptr()
        for i, (p, n) in enumerate(zip(self.params, self.sizes, strict=True)):
            self.segments[3 * i : 3 * i + 3] = array("Q", (n, p.data_ptr(), address))
            address += n * flat.element_size()
        return True

    def go(self, closure: Callable[[], Any]) -> None:
        m, state = self.machine, self.state
        self._begin()
        core = _native.core()
        assert core is not None
        ask = _EVALUATE
        _running.append(self)
        try:
            while ask in (_EVALUATE, _REMEMBER):
                before = m.iterations
                ask = core.LBFGS(self.at, ctypes.sizeof(m), torch.get_num_threads())
                if before == 0 and m.iterations == 1:  # torch discards its history
                    self.old_dirs, self.old_stps, self.ro = [], [], []
                    self._read_history()
                state["func_evals"], state["n_iter"] = m.evaluations, m.iterations
                if ask == _REMEMBER:
                    self._remember()
                    continue
                if ask != _OPTIMAL:
                    bump_versions([*self.params, self.kept])
                if ask == _EVALUATE:
                    self.in_search = self.search
                    loss = float(closure())
                    before_closure = self.segments[1::3]
                    if not self._same_params() or not self.see(loss):
                        raise RuntimeError(f"LBFGS: {self._what_has_changed()}")
                    if self.segments[1::3] != before_closure and (why := _reason_of_params(self.params)) is not None:
                        raise RuntimeError(f"LBFGS: {why}, since the closure ran")
                    self._see_state()
        finally:
            _running.remove(self)
            self.save_alphas()
        if ask == _DONE:
            self._save()
        elif ask != _OPTIMAL:
            raise _ERRORS[ask]

    def _begin(self) -> None:
        """Pass the state and memory to the machine."""
        m, state = self.machine, self.state
        if self.dtype in NARROW:
            _convert(state, self.dtype, self.of_state)
        m.evaluations, m.iterations = state["func_evals"], state["n_iter"]
        fresh = m.iterations == 0
        if not fresh:
            self.old_dirs, self.old_stps, self.ro = state["old_dirs"], state["old_stps"], state["ro"]
        kept = state.get("prev_flat_grad")
        self.kept: Tensor = self._vector() if kept is None else kept
        self.direction = self._vector()
        self.last_direction: Tensor = self.direction if fresh else state["d"]
        m.kept, m.direction = self.kept.data_ptr(), self.direction.data_ptr()
        m.last_direction = self.last_direction.data_ptr()
        if not fresh:
            m.t, m.h = self._number(state["t"]), self._number(state["H_diag"])
        if self.search:
            self.points = self._vector(), self._vector()
            m.low, m.start = (t.data_ptr() for t in self.points)
        self._read_history()
        self._make_spare()

    def _read_history(self) -> None:
        """Reference the pairs in the lists, and pass their addresses to the machine."""
        self.vectors = [t for pair in zip(self.old_dirs, self.old_stps, strict=True) for t in pair]
        self.numbers = list(self.ro)
        self.versions = [x._version for x in self.numbers]
        self.pairs = array("Q", map(Tensor.data_ptr, self.vectors))
        self.ros = array("d", [x.item() for x in self.numbers])
        self.alphas = array("d", self.ros)
        self._give_history()

    def _give_history(self) -> None:
        m = self.machine
        m.pairs, m.ros, m.alphas = (a.buffer_info()[0] for a in (self.pairs, self.ros, self.alphas))
        m.pair_count = len(self.numbers)

    def _make_spare(self) -> None:
        self.spare = self._vector(), self._vector()
        self.machine.y, self.machine.s = (t.data_ptr() for t in self.spare)

    def _see_state(self) -> None:
        """Continue with the state after the closure, which may have changed it, for example by a nested step."""
        m, state = self.machine, self.state
        evaluations, iterations = state["func_evals"], state["n_iter"]
        kept = self.kept
        same = kept.data_ptr() == m.kept and kept.numel() == m.n
        if not (_is_count(evaluations) and _is_count(iterations) and (same or self._is_vector(kept))):
            raise RuntimeError(f"LBFGS: {_STATE}, since the closure ran")
        m.evaluations, m.iterations, m.kept = evaluations, iterations, kept.data_ptr()
        if iterations == 0:  # the machine will discard its history
            self.save_alphas()
        if self._history_has_changed():
            if not self._is_history(self.old_dirs, self.old_stps, self.ro):
                raise RuntimeError("LBFGS: its history is not as this optimizer leaves it, since the closure ran")
            self.save_alphas()
            self._read_history()

    def _history_has_changed(self) -> bool:
        """Whether the lists, their tensors' memory or the scalars have changed. It must be fast: most never change."""
        vectors, numbers, n = self.vectors, self.numbers, len(self.numbers)
        return not (
            len(self.old_dirs) == len(self.old_stps) == len(self.ro) == n
            and all(map(operator.is_, self.old_dirs, vectors[::2]))
            and all(map(operator.is_, self.old_stps, vectors[1::2]))
            and all(map(operator.is_, self.ro, numbers))
            and array("Q", map(Tensor.data_ptr, vectors)) == self.pairs
            and sum(map(Tensor.numel, vectors)) == len(vectors) * self.machine.n
            and [x._version for x in numbers] == self.versions
        )

    def _remember(self) -> None:
        if len(self.old_dirs) == self.history_size:
            for old in (self.old_dirs, self.old_stps, self.ro):
                old.pop(0)
            del self.vectors[:2], self.pairs[:2], self.numbers[:1], self.versions[:1], self.ros[:1]
        y, s = self.spare
        ro = self.machine.ro
        number = torch.tensor(ro, dtype=self.of_state, device="cpu")
        self.old_dirs.append(y)
        self.old_stps.append(s)
        self.ro.append(number)
        self.vectors += [y, s]
        self.numbers.append(number)
        self.versions.append(number._version)
        self.pairs.extend((y.data_ptr(), s.data_ptr()))
        self.ros.append(ro)
        self.alphas = array("d", self.ros)
        self._give_history()
        self._make_spare()

    def _save(self) -> None:
        m = self.machine
        self.state.update(
            d=self.direction,
            t=self._value(m.t),
            old_dirs=self.old_dirs,
            old_stps=self.old_stps,
            ro=self.ro,
            H_diag=self._value(m.h),
            prev_flat_grad=self.kept,
            prev_loss=m.prev_loss,
        )

    def save_alphas(self) -> None:
        """Write torch's state at this point, also if the closure raises an error or steps the optimizer."""
        m = self.machine
        if m.recursions > self.saved:
            self.saved = m.recursions
            al = self.state.setdefault("al", [])
            if type(al) is not list:
                return
            al.extend([None] * (self.history_size - len(al)))
            al[: m.pair_count] = (torch.tensor(a, dtype=self.of_state, device="cpu") for a in self.alphas)

    def _same_params(self) -> bool:
        params = self.optimizer._params
        return (
            len(params) == len(self.params)
            and all(map(operator.is_, params, self.params))
            and all(_is_flat(p, PLAIN, self.dtype) and p.numel() == n for p, n in zip(params, self.sizes, strict=True))
        )

    def _what_has_changed(self) -> str:
        if len(self.optimizer._params) != len(self.params) or any(
            map(operator.is_not, self.optimizer._params, self.params)
        ):
            return "the list of parameters has changed in the closure"
        for i, (p, n) in enumerate(zip(self.params, self.sizes, strict=True)):
            for what, t in (("parameter", p), ("the gradient of parameter", p.grad)):
                if t is not None and (t.numel() != n or not _is_flat(t, PLAIN, self.dtype)):
                    return (
                        f"{what} {i} has become {t.dtype} on {t.device}, {t.layout}, of shape {tuple(t.shape)} in the "
                        f"closure, expected {n} elements of {self.dtype} as before"
                    )
        return "gradients have changed in the closure"

    def _vector(self) -> Tensor:
        return torch.empty(self.machine.n, dtype=self.of_state, device="cpu")

    def _number(self, x: float | Tensor) -> _Number:
        return _Number(x.item(), 2) if isinstance(x, Tensor) else _Number(x, type(x) is float)

    def _value(self, x: _Number) -> int | float | Tensor:
        if x.kind == 2:
            return torch.tensor(x.value, dtype=self.of_state, device="cpu")
        return x.value if x.kind == 1 else int(x.value)
