"""Loss scaling in Go: unscaling gradients for a GradScaler, and steps of optimizers that get its scale."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _functions, _lists, _originals, _parts
from goptim._eligible import SCALED, reason_of_tensor
from goptim._fallback import threads_after_fork, undecorated_step
from goptim._lists import GRADIENTS, NOT_FLOAT16
from goptim._zero import ZeroGrad

if TYPE_CHECKING:
    from goptim._around import Around
    from goptim._step import GoStep

# Like torch's operations, they do not increment the versions of gradients.
_UNSCALE = _lists.ListKind("Unscale", results=1, versions=0)
# torch's fused kernels step with quotients that are not rounded to 16 bits.
_DIVIDE = _lists.ListKind("Divide", versions=0, flags=_lists.WIDE)

Unscale = Callable[[Any, Optimizer, Tensor, Tensor, bool], dict[torch.device, Tensor]]

# If set, called for each optimizer with a gradient that is not finite.
watch: Callable[[], None] | None = None


def unscale(
    theirs: Unscale, scaler: Any, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
) -> dict[torch.device, Tensor]:
    """GradScaler._unscale_grads_, in Go if it supports all gradients, or in theirs.

    Returns:
        1 for each device on which a gradient is not finite, and 0 for each other device with gradients.
    """
    if torch.compiler.is_compiling():  # first, because a compiler cannot trace what follows
        return theirs(scaler, optimizer, inv_scale, found_inf, allow_fp16)
    with _counted("GradScaler", optimizer):
        if _is_number(inv_scale) and _is_number(found_inf):
            flags = GRADIENTS if allow_fp16 else GRADIENTS | NOT_FLOAT16  # of which torch raises an error
            done = _UNSCALE(_params_of(optimizer), None, (inv_scale.item(),), flags)
            if type(done) is tuple:
                rows, _, found = done
                return {found_inf.device: found_inf.new_full((), max(found_inf.item(), found))} if rows else {}
        with threads_after_fork():
            return theirs(scaler, optimizer, inv_scale, found_inf, allow_fp16)


def _params_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _gradients_of(optimizer: Optimizer) -> list[Tensor]:
    return [p.grad for p in _params_of(optimizer) if p.grad is not None]


def _counted(name: str, optimizer: Optimizer, why: str | None = None) -> contextlib.AbstractContextManager[None]:
    """Count for the report of run what of the gradients runs in Go."""
    if _functions.watch is None:
        return contextlib.nullcontext()
    why = why or _functions.fallback_reason()
    return _functions.counted(name, lambda: [(g,) for g in _gradients_of(optimizer)], why)


def unscaled(found: dict[torch.device, Tensor]) -> dict[torch.device, Tensor]:
    """Report the result of unscaling, and return it."""
    if watch is not None and any(t.item() != 0 for t in found.values()):
        watch()
    return found


def clear_skipped(optimizer: Optimizer, found: dict[torch.device, Tensor], options: dict[str, Any]) -> None:
    """Clear the gradients of an optimizer whose step with these keyword arguments a scaler has skipped.

    Without this, the infinite gradients would stay, and all further steps be skipped.
    """
    skipped = any(t.item() != 0 for t in found.values())
    if skipped and options.get("zero_grad") is True and isinstance(optimizer, ZeroGrad):
        optimizer.zero_grad(set_to_none=False)


def patch() -> None:
    """Make torch's GradScaler unscale the gradients of goptim's optimizers in Go."""
    torch.amp.GradScaler._unscale_grads_ = _patched  # type: ignore[method-assign]
    torch.amp.GradScaler._maybe_opt_step = _patched_step  # type: ignore[method-assign]


def unpatch() -> None:
    if torch.amp.GradScaler._unscale_grads_ is _patched:
        torch.amp.GradScaler._unscale_grads_ = _originals.UNSCALE  # type: ignore[method-assign]
    if torch.amp.GradScaler._maybe_opt_step is _patched_step:
        torch.amp.GradScaler._maybe_opt_step = _originals.MAYBE_STEP  # type: ignore[method-assign]


@functools.wraps(_originals.UNSCALE)
def _patched(
    self: Any, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
) -> dict[torch.device, Tensor]:
    if isinstance(optimizer, ZeroGrad):
        return unscaled(unscale(_originals.UNSCALE, self, optimizer, inv_scale, found_inf, allow_fp16))
    if torch.compiler.is_compiling():
        return _originals.UNSCALE(self, optimizer, inv_scale, found_inf, allow_fp16)  # type: ignore[no-any-return]
    with _counted("GradScaler", optimizer, "its optimizer is not one of goptim"):
        return unscaled(_originals.UNSCALE(self, optimizer, inv_scale, found_inf, allow_fp16))


@functools.wraps(_originals.MAYBE_STEP)
def _patched_step(self: Any, optimizer: Optimizer, optimizer_state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    result = _originals.MAYBE_STEP(self, optimizer, optimizer_state, *args, **kwargs)
    clear_skipped(optimizer, optimizer_state["found_inf_per_device"], kwargs)
    return result


def _is_number(t: Any) -> bool:
    return type(t) is Tensor and t.is_cpu and t.dim() == 0 and t.dtype is torch.float32


def is_fused(optimizer: Optimizer) -> bool:
    """Whether torch's step of every group would divide gradients by a scale and skip the step of infinite ones."""
    return all(group.get("fused") for group in optimizer.param_groups)


def divides(optimizer: Optimizer) -> bool:
    """Whether Go divides the gradients of an optimizer that gets a scale."""
    return is_fused(optimizer) and all(reason_of_tensor(g) is None for g in _gradients_of(optimizer))


def step(optimizer: GoStep, closure: Callable[[], Any] | None, around: Around | None) -> Any:
    """A step of an optimizer to which a GradScaler has passed its scale and whether gradients are infinite.

    As in torch's fused kernels, gradients are divided by the scale in place, and if one was infinite, the step only
    creates states. Then the gradients are cleared, if they are to be, but nothing is averaged.
    """
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    scale: Any = getattr(optimizer, "grad_scale", None)
    found: Any = getattr(optimizer, "found_inf", None)
    torch_step = undecorated_step(optimizer.torch_class)
    if found is not None and float(found) != 0:  # torch passes an int if there are no gradients
        # torch's SGD would fill new momentum buffers with random bits.
        if optimizer.torch_class is not _originals.CLASSES["SGD"] and not optimizer._stores:
            with threads_after_fork():
                torch_step(optimizer)
        if around is not None and around.clears:
            optimizer.zero_grad(set_to_none=False)
        return loss
    if scale is not None and not _divide(optimizer, scale):
        grads = _gradients_of(optimizer)
        if around is None:
            optimizer._refuse(SCALED)
            if _parts.watch is not None:
                _parts.watch(optimizer, 0, [SCALED] * len(grads))
            with threads_after_fork():
                torch_step(optimizer)
            return loss
        with torch.no_grad(), threads_after_fork():
            for g in grads:
                g.div_(scale)
    with _without_scale(optimizer):
        optimizer._step(None, around)
    return loss


def _divide(optimizer: Optimizer, scale: Any) -> bool:
    """Divide the gradients by the scale in Go, and report whether it was possible. If not, nothing was written."""
    with _counted("GradScaler, dividing by the scale", optimizer):
        return _is_number(scale) and type(_DIVIDE(_params_of(optimizer), None, (scale.item(),), GRADIENTS)) is int


@contextlib.contextmanager
def _without_scale(optimizer: Any) -> Iterator[None]:
    names = [name for name in ("grad_scale", "found_inf") if getattr(optimizer, name, None) is not None]
    values = [getattr(optimizer, name) for name in names]
    for name in names:
        setattr(optimizer, name, None)
    try:
        yield
    finally:
        for name, value in zip(names, values, strict=True):
            setattr(optimizer, name, value)
