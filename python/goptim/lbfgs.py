"""LBFGS: the quasi-Newton method, which evaluates a closure many times in a step."""

from __future__ import annotations

import ctypes
import inspect
import itertools
from array import array
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from goptim import _native, _step
from goptim._step import _DTYPES, _PLAIN, _threads_after_fork, _undecorated, bump_versions


class LBFGS(torch.optim.LBFGS):
    r"""torch.optim.LBFGS with its arithmetic in Go: the same arguments, state and evaluations.

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
    ``line_search_fn="strong_wolfe"``, :math:`t` is looked for from there.

    Liu & Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical Programming 45 (1989);
    Nocedal & Wright, "Numerical Optimization" (2nd ed.), Algorithms 7.4 and 7.5. The line search is that of Mark
    Schmidt's `minFunc <https://www.cs.ubc.ca/~schmidtm/Software/minFunc.html>`_, as torch has it: their Algorithms 3.5
    and 3.6 with cubic interpolation.

    The state, on the first parameter, has torch's keys and types, and goes both ways. Sums over vectors are not rounded
    in torch's order, which is its BLAS's; all other bits are torch's. On twelve functions in float64 losses were within
    1e-9 of torch's for twenty iterations, and evaluations as many for sixty; in float32 within 1e-4 for
    five iterations. Then the two part, as L-BFGS makes any difference grow. Our sums depend on neither the
    number of threads nor the width of the machine's vectors.

    Parameters are contiguous tensors on the CPU, all float32 or all float64; others are optimized by torch's own step,
    and so is what torch refuses. Gradients may be sparse or missing.
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
            closure: re-evaluates the model and returns the loss; it runs with gradients enabled.

        Returns:
            What the closure returned the first time.

        Raises:
            RuntimeError: the closure has changed a parameter's or a gradient's number of elements or type on the way.
        """
        if torch.compiler.is_compiling():
            return _undecorated(torch.optim.LBFGS)(self, closure)
        why = self._why_torch() if callable(closure) else "its closure cannot be called"
        if why is not None:
            if _step.watch is not None:
                _step.watch(self, 0, [why] * len(self._params))
            with _threads_after_fork():
                return _undecorated(torch.optim.LBFGS)(self, closure)
        with torch.no_grad():
            closure = torch.enable_grad()(closure)
            state = self.state[self._params[0]]
            state.setdefault("func_evals", 0)
            state.setdefault("n_iter", 0)
            first = closure()
            loss = float(first)
            state["func_evals"] += 1
            run = _Run(self, state)
            if not run.see(loss):
                state["func_evals"] -= 1
                if _step.watch is not None:
                    _step.watch(self, 0, [_GRADIENTS] * len(self._params))
                return _undecorated(torch.optim.LBFGS)(self, _Replay(first, closure))
            if _step.watch is not None:
                _step.watch(self, len(self._params), [])
            run.go(closure)
            return first

    def _why_torch(self) -> str | None:
        """Why Go does not take a step, as far as is known before the closure runs; None if it does."""
        why = _step.why_torch(self)
        if why is not None:
            return why
        if torch.is_inference_mode_enabled():
            return "inference mode is on"
        if len(self.param_groups) != 1 or not self._params:
            return "there is not one group with parameters"
        group = self.param_groups[0]
        lr, search, history = group["lr"], group["line_search_fn"], group["history_size"]
        if not (
            type(lr) in (int, float)
            and all(type(group[key]) in (int, float) for key in ("tolerance_grad", "tolerance_change"))
            and all(type(group[key]) is int and 0 < group[key] < 1 << 62 for key in ("max_iter", "max_eval"))
            and type(history) is int
            and history > 0
            and (search is None or search == "strong_wolfe")
            and (type(lr) is float or lr < 1 << 53)
        ):
            return "an argument is not a number, or out of range"
        dtype, spans = self._params[0].dtype, []
        if dtype not in _DTYPES:
            return f"parameter 0 is {dtype}"
        for i, p in enumerate(self._params):
            if not _is_flat(p, _PLAIN, dtype):
                return f"parameter {i} is not a plain contiguous tensor on the CPU of {dtype}, as parameter 0"
            spans.append((p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()))
        spans.sort()
        if spans[-1][1] == spans[-1][0]:
            return "there are no elements"
        if any(a[1] > b[0] for a, b in itertools.pairwise(spans)):
            return "parameters share memory"
        if not self._go_takes_state(sum(p.numel() for p in self._params), dtype, history):
            return "its state is not as this optimizer leaves it"
        return None

    def _why_gradients(self) -> str | None:
        """The same for the gradients that there are, were they what the closure leaves."""
        return None if _Run(self, {}).see(0.0) else _GRADIENTS

    def _go_takes_state(self, n: int, dtype: torch.dtype, history: int) -> bool:
        state = self.state.get(self._params[0], {})

        def is_vector(t: object) -> bool:
            return _is_flat(t, (Tensor,), dtype) and t.shape == (n,)  # type: ignore[attr-defined]

        def is_number(x: object) -> bool:
            return type(x) in (int, float) or (_is_flat(x, (Tensor,), dtype) and x.dim() == 0)  # type: ignore[attr-defined]

        if type(state.get("func_evals", 0)) is not int or type(state.get("n_iter", 0)) is not int:
            return False
        al, kept = state.get("al"), state.get("prev_flat_grad")
        if not ((kept is None or is_vector(kept)) and (al is None or (type(al) is list and len(al) >= history))):
            return False
        if state.get("n_iter", 0) == 0:
            return True
        lists = [state.get(key) for key in ("old_dirs", "old_stps", "ro")]
        return (
            state["n_iter"] > 0
            and kept is not None
            and is_vector(state.get("d"))
            and is_number(state.get("t"))
            and is_number(state.get("H_diag"))
            and all(type(x) is list and len(x) == len(lists[0]) <= history for x in lists)
            and all(is_vector(t) for x in lists[:2] for t in x)
            and all(type(x) is Tensor and is_number(x) for x in lists[2])
        )


def _is_flat(t: object, types: tuple[type, ...], dtype: torch.dtype) -> bool:
    """Whether t's elements lie behind each other in memory that Go may use."""
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


# Why a step that has begun is torch's.
_GRADIENTS = "the gradients are not plain tensors of their parameters' dtype and size on the CPU"

# Whether max_eval bounds a line search, as in later versions of torch; else 25 evaluations do.
_SEARCH_COUNTS = "max_ls=" in inspect.getsource(torch.optim.LBFGS)


class _Replay:
    """A closure whose first call has been made."""

    def __init__(self, first: Any, closure: Callable[[], Any]) -> None:
        self.first = [first]
        self.closure = closure

    def __call__(self) -> Any:
        return self.first.pop() if self.first else self.closure()


class _Number(ctypes.Structure):
    """goptim.LBFGSNumber."""

    _fields_ = (("value", ctypes.c_double), ("kind", ctypes.c_int64))


class _Machine(ctypes.Structure):
    """goptim.LBFGSMachine, in goptim/lbfgs.go."""

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


# goptim.LBFGSAsk. What is not here ends the step.
_EVALUATE, _REMEMBER, _DONE, _OPTIMAL = range(4)
_ERRORS = {  # as torch's step fails
    4: ZeroDivisionError("float division by zero"),
    5: IndexError("list index out of range"),
    6: RuntimeError("value cannot be converted to type float without overflow"),
}


class _Run:
    """One step: the memory of Go's machine, and what it asks for."""

    def __init__(self, optimizer: LBFGS, state: dict[str, Any]) -> None:
        self.optimizer = optimizer
        self.state = state
        self.params: list[Tensor] = optimizer._params
        self.group = group = optimizer.param_groups[0]
        self.maximize = bool(group.get("maximize", False))
        self.dtype = self.params[0].dtype
        self.segments = array("Q", bytes(24 * len(self.params)))
        self.grads: list[Tensor] = []  # held, so that no other thread frees them
        self.sizes = [p.numel() for p in self.params]
        self.machine = m = _Machine()
        self.at = ctypes.addressof(m)
        m.n = sum(self.sizes)
        m.float64 = self.dtype is torch.float64
        m.segments, m.segment_count = self.segments.buffer_info()[0], len(self.params)
        m.lr = self._number(group["lr"])
        m.max_iter, m.max_eval = group["max_iter"], group["max_eval"]
        m.tolerance_grad, m.tolerance_change = group["tolerance_grad"], group["tolerance_change"]
        m.strong_wolfe = group["line_search_fn"] is not None
        m.max_search = 0 if _SEARCH_COUNTS else 25

    def see(self, loss: float) -> bool:
        """Give the machine the loss and the gradients that a closure has left; False if Go cannot take these."""
        m, words = self.machine, self.segments
        m.loss, m.negate = (-loss, 1) if self.maximize else (loss, 0)
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
        """The same for gradients that torch has to bring into form."""
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
        try:
            while ask in (_EVALUATE, _REMEMBER):
                ask = core.LBFGS(self.at, ctypes.sizeof(m), torch.get_num_threads())
                state["func_evals"], state["n_iter"] = m.evaluations, m.iterations
                if ask == _REMEMBER:
                    self._remember()
                    continue
                if ask != _OPTIMAL:
                    bump_versions([*self.params, self.kept])
                if ask == _EVALUATE:
                    loss = float(closure())
                    if not self._same_params() or not self.see(loss):
                        raise RuntimeError(f"LBFGS: {self._what_has_changed()}")
        finally:
            self._save_alphas()
        if ask == _DONE:
            self._save()
        elif ask != _OPTIMAL:
            raise _ERRORS[ask]

    def _begin(self) -> None:
        """Give the machine the state, and memory."""
        m, state = self.machine, self.state
        m.evaluations, m.iterations = state["func_evals"], state["n_iter"]
        fresh = m.iterations == 0
        self.old_dirs: list[Tensor] = [] if fresh else state["old_dirs"]
        self.old_stps: list[Tensor] = [] if fresh else state["old_stps"]
        self.ro: list[Tensor] = [] if fresh else state["ro"]
        kept = state.get("prev_flat_grad")
        self.kept = self._vector() if kept is None else kept
        self.direction = self._vector()
        m.kept, m.direction = self.kept.data_ptr(), self.direction.data_ptr()
        m.last_direction = m.direction if fresh else state["d"].data_ptr()
        if not fresh:
            m.t, m.h = self._number(state["t"]), self._number(state["H_diag"])
        if m.strong_wolfe:
            self.search = (self._vector(), self._vector())
            m.low, m.start = (t.data_ptr() for t in self.search)
        pairs = zip(self.old_dirs, self.old_stps, strict=True)
        self.pairs = array("Q", [t.data_ptr() for pair in pairs for t in pair])
        self.ros = array("d", [x.item() for x in self.ro])
        self.alphas = array("d", self.ros)
        self._give_memory()

    def _give_memory(self) -> None:
        m = self.machine
        self.spare = self._vector(), self._vector()
        m.y, m.s = (t.data_ptr() for t in self.spare)
        m.pairs, m.ros, m.alphas = (a.buffer_info()[0] for a in (self.pairs, self.ros, self.alphas))
        m.pair_count = len(self.ro)

    def _remember(self) -> None:
        if len(self.old_dirs) == self.group["history_size"]:
            for old in (self.old_dirs, self.old_stps, self.ro):
                old.pop(0)
            del self.pairs[:2], self.ros[:1]
        else:
            self.alphas.append(0.0)
        y, s = self.spare
        ro = self.machine.ro
        self.old_dirs.append(y)
        self.old_stps.append(s)
        self.ro.append(torch.tensor(ro, dtype=self.dtype, device="cpu"))
        self.pairs.extend((y.data_ptr(), s.data_ptr()))
        self.ros.append(ro)
        self._give_memory()

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

    def _save_alphas(self) -> None:
        """Also if the closure raises: torch writes them into the state as it goes."""
        m = self.machine
        if m.recursions:
            al = self.state.setdefault("al", [])
            al.extend([None] * (self.group["history_size"] - len(al)))
            al[: m.pair_count] = (torch.tensor(a, dtype=self.dtype, device="cpu") for a in self.alphas)

    def _same_params(self) -> bool:
        return all(
            _is_flat(p, _PLAIN, self.dtype) and p.numel() == n for p, n in zip(self.params, self.sizes, strict=True)
        )

    def _what_has_changed(self) -> str:
        for i, (p, n) in enumerate(zip(self.params, self.sizes, strict=True)):
            for what, t in (("parameter", p), ("the gradient of parameter", p.grad)):
                if t is not None and (t.numel() != n or not _is_flat(t, _PLAIN, self.dtype)):
                    return (
                        f"{what} {i} has become {t.dtype} on {t.device}, {t.layout}, of shape {tuple(t.shape)} in the "
                        f"closure, expected {n} elements of {self.dtype} as before"
                    )
        return "gradients have changed in the closure"

    def _vector(self) -> Tensor:
        return torch.empty(self.machine.n, dtype=self.dtype, device="cpu")

    def _number(self, x: float | Tensor) -> _Number:
        return _Number(x.item(), 2) if isinstance(x, Tensor) else _Number(x, type(x) is float)

    def _value(self, x: _Number) -> int | float | Tensor:
        if x.kind == 2:
            return torch.tensor(x.value, dtype=self.dtype, device="cpu")
        return x.value if x.kind == 1 else int(x.value)
