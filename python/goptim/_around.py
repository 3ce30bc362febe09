"""What surrounds a step in one call: clipping before it, averages of parameters and clearing of gradients after it.

If all parameters run in Go, gather.c passes an Around to Go, which clips gradients as the update reads them, and
averages and clears each block of memory while it is in cache. Otherwise the same happens in separate calls, whose
results are the same, except that gradients of parameters that fall back to torch are clipped in place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _dtensor, _native
from goptim._eligible import PLAIN, memory_of, reason_of_gradient, reason_of_tensor
from goptim._lists import GO, NO_GRADIENT, order_of_norms
from goptim._zero import ZeroGrad
from goptim.averages import EMA
from goptim.clip import as_tensor, clip_grads_with_norm_, get_total_norm, widens

if TYPE_CHECKING:
    from goptim._parts import Asked
    from goptim._step import GoStep

# If set, called after each step with something around it: with the optimizer, the names of the arguments, and why some
# of it took calls of its own, or None if the step was one call of Go.
watch: Callable[[Optimizer, tuple[str, ...], str | None], None] | None = None

# The flags of an Around (internal/steps).
_CLIP, _SCALED, _AVERAGE, _CLEAR, _WIDEN = 1, 2, 4, 8, 16


class Around:
    """What surrounds one step of an optimizer.

    Raises:
        ValueError, TypeError: an argument is not what its name says.
    """

    def __init__(self, optimizer: GoStep, max_grad_norm: Any, norm_dtype: Any, ema: Any, zero_grad: Any) -> None:
        self.optimizer = optimizer
        self.norm_dtype = norm_dtype
        self.widen = widens(f"{type(optimizer).__name__}.step", norm_dtype)
        self.max_norm = None if max_grad_norm is None else _limit(optimizer, max_grad_norm)
        if ema is not None and not isinstance(ema, EMA):
            raise TypeError(f"{type(optimizer).__name__}.step: ema is a {type(ema).__name__}, expected a goptim.EMA")
        if type(zero_grad) is not bool:
            raise TypeError(
                f"{type(optimizer).__name__}.step: zero_grad is a {type(zero_grad).__name__}, expected a bool"
            )
        self.ema: EMA | None = ema
        self.clears = zero_grad
        self.total: Tensor | None = None  # the norm
        self.factor: float | None = None  # of gradients in Go; None if they are not scaled there
        self.begun = self.done = False
        self.why: str | None = None  # some of it takes calls of its own

    def go(self, asked: tuple[Asked, ...]) -> Any:
        """GoStep._go with everything around it, or if that is not possible with gradients that have been clipped."""
        if not self.begun:
            self.done = self._step(asked)
            if self.done:
                return self.rows
            self.clip(in_go=True)
        if self.factor is None:
            return self.optimizer._go(asked)
        done = self._call(asked, (_SCALED, 0, 0.0, self.factor, 0.0, None))
        return done[0] if type(done) is tuple else done

    def _step(self, asked: tuple[Asked, ...]) -> bool:
        """Do everything in one call of Go, and report whether it was possible. If not, nothing was written."""
        optimizer, ema, clips = self.optimizer, self.ema, self.max_norm is not None
        kind = optimizer.kind
        clears = self.clears and type(optimizer).zero_grad is ZeroGrad.zero_grad
        flags = _CLIP * clips | _CLEAR * clears | _WIDEN * (clips and self.widen)
        averages = None
        if ema is not None and ema.written_alone:
            flags |= _AVERAGE
        if not kind.around:
            self.why = "its class is not elementwise"
            return False
        if self.clears and not clears:
            self.why = "its class overrides zero_grad"
        if ema is not None and not ema.written_alone:
            self.why = "its EMA overrides update, or has a decay that is not a float"
        if flags == 0:
            return False
        if ema is not None and flags & _AVERAGE:
            params = _params_of(asked)
            averages, rest = ema.of_step(params)
        done = self._call(
            asked, (flags, order_of_norms(), self.max_norm or 0.0, 1.0, ema.weight if ema else 0.0, averages)
        )
        if type(done) is not tuple:
            if watch is not None:
                self.why = self._reason_for_parts(asked, done)
            return False
        self.rows, dtype, norm = done
        if clips:
            self._set_norm(as_tensor(norm, dtype, self.widen))
        if ema is not None:
            if averages is None:
                ema.update()
            elif rest or self.rows < len(params):
                ema.update_rest(params, self.rows)
        if self.clears and not clears:
            optimizer.zero_grad(set_to_none=False)
        return True

    def _reason_for_parts(self, asked: tuple[Asked, ...], codes: bytes | None) -> str:
        """Why a step is not one call of Go, which has returned these codes, or None."""
        kind, state = self.optimizer.kind, self.optimizer.state
        if codes is None:
            return "its gradients have several dtypes, or its tensors share memory"
        if not all(kind.is_plain(options, extra) for _, options, extra in asked):
            return "its group has an argument that is not a float or an int"
        slow = [p for p, code in zip(_params_of(asked), codes, strict=True) if code not in (GO, NO_GRADIENT)]
        if all(p not in state and not reason_of_tensor(p) and not reason_of_gradient(p.grad) for p in slow):
            return "it creates states"
        return "not all of its parameters are on the fast path"

    def _call(self, asked: tuple[Asked, ...], around: tuple[Any, ...]) -> Any:
        core: Any = _native.core()
        return core.step_groups(
            self.optimizer.kind.handle,
            _native.layout(),
            PLAIN,
            self.optimizer.state,
            asked,
            torch.get_num_threads(),
            around,
        )

    def clip(self, in_go: bool) -> None:
        """Compute the norm, and set the factor of gradients in Go. If Go cannot scale them, clip all in place."""
        self.begun = True
        if self.max_norm is None:
            return
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in params if p.grad is not None]
        total = get_total_norm(grads, norm_dtype=self.norm_dtype)
        self._set_norm(total)
        if not in_go or not self.optimizer.kind.around or not self._are_separate(params, total):
            clip_grads_with_norm_(params, self.max_norm, total)
        else:
            # As torch computes it: the division is a product with the reciprocal.
            self.factor = torch.clamp(self.max_norm / (total + 1e-6), max=1.0).item()

    def clip_rest(self, params: list[Tensor]) -> None:
        """Clip gradients of parameters that do not run in Go, or are sparse, in place."""
        if self.factor is not None and params:
            assert self.max_norm is not None
            assert self.total is not None
            clip_grads_with_norm_(params, self.max_norm, self.total)

    def _set_norm(self, total: Tensor) -> None:
        self.total = self.optimizer.grad_norm = total

    def finish(self) -> None:
        """Average and clear after the step, unless Go has."""
        if not self.done:
            if self.ema is not None:
                self.ema.update()
            if self.clears:
                self.optimizer.zero_grad(set_to_none=False)
        if watch is not None:
            names = {"max_grad_norm": self.max_norm is not None, "ema": self.ema is not None, "zero_grad": self.clears}
            watch(self.optimizer, tuple(name for name, given in names.items() if given), self.why)

    def _are_separate(self, params: list[Tensor], total: Tensor) -> bool:
        """Whether to scale a gradient as it is read has the same result as to scale all gradients in place before."""
        if type(total) is not Tensor or not total.is_cpu or not total.is_floating_point():
            return False
        spans = []
        for p in params:
            g = p.grad
            if g is None:
                continue
            if g.dim() == 0 and g.dtype != total.dtype:  # torch multiplies it in the wider dtype
                return False
            for start, end, written in memory_of(self.optimizer, p):
                spans.append((start, end, not written))
            if type(g) not in PLAIN and _dtensor.is_dtensor(g):
                return False
        end = end_of_grads = 0
        for start, stop, is_grad in sorted(spans):
            if start < (end if is_grad else end_of_grads):
                return False
            end = max(end, stop)
            if is_grad:
                end_of_grads = max(end_of_grads, stop)
        return True


def _limit(optimizer: GoStep, max_grad_norm: Any) -> float:
    """The largest norm, as a float."""
    try:
        limit = float(max_grad_norm)
    except (TypeError, ValueError, RuntimeError):
        limit = math.nan
    if not limit >= 0:
        raise ValueError(
            f"{type(optimizer).__name__}.step: max_grad_norm is {max_grad_norm!r}, expected a number of at least 0"
        )
    return limit


def _params_of(asked: Sequence[Asked]) -> tuple[Any, ...]:
    """The parameters of all groups."""
    return asked[0][0] if len(asked) == 1 else tuple(itertools.chain.from_iterable([group[0] for group in asked]))
