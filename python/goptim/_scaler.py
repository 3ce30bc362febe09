"""Loss scaling in Go: unscaling gradients for a GradScaler, and steps of optimizers that get its scale."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _lists, _originals, _parts
from goptim._eligible import SCALED, reason_of_tensor
from goptim._fallback import threads_after_fork, undecorated_step
from goptim._lists import GRADIENTS
from goptim._zero import ZeroGrad

if TYPE_CHECKING:
    from goptim._around import Around
    from goptim._step import GoStep

# Like torch's operations, they do not increment the versions of gradients.
_UNSCALE = _lists.ListKind("Unscale", results=1, versions=0)
_DIVIDE = _lists.ListKind("Divide", versions=0)

Unscale = Callable[[Any, Optimizer, Tensor, Tensor, bool], dict[torch.device, Tensor]]


def unscale(
    theirs: Unscale, scaler: Any, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
) -> dict[torch.device, Tensor]:
    """GradScaler._unscale_grads_, in Go if it supports all gradients, or in theirs.

    Returns:
        1 for each device on which a gradient is not finite, and 0 for each other device with gradients.
    """
    if not torch.compiler.is_compiling() and _is_number(inv_scale) and _is_number(found_inf):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        done = _UNSCALE(params, None, (inv_scale.item(),), GRADIENTS)
        if type(done) is tuple:
            rows, _, found = done
            return {found_inf.device: found_inf.new_full((), max(found_inf.item(), found))} if rows else {}
    with threads_after_fork():
        return theirs(scaler, optimizer, inv_scale, found_inf, allow_fp16)


def patch() -> None:
    """Make torch's GradScaler unscale the gradients of goptim's optimizers in Go."""
    torch.amp.GradScaler._unscale_grads_ = _patched  # type: ignore[method-assign]


def unpatch() -> None:
    if torch.amp.GradScaler._unscale_grads_ is _patched:
        torch.amp.GradScaler._unscale_grads_ = _originals.UNSCALE  # type: ignore[method-assign]


@functools.wraps(_originals.UNSCALE)
def _patched(
    self: Any, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
) -> dict[torch.device, Tensor]:
    if isinstance(optimizer, ZeroGrad):
        return unscale(_originals.UNSCALE, self, optimizer, inv_scale, found_inf, allow_fp16)
    found: dict[torch.device, Tensor] = _originals.UNSCALE(self, optimizer, inv_scale, found_inf, allow_fp16)
    return found


def _is_number(t: Any) -> bool:
    return type(t) is Tensor and t.is_cpu and t.dim() == 0 and t.dtype is torch.float32


def is_fused(optimizer: Optimizer) -> bool:
    """Whether torch's step of every group would divide gradients by a scale and skip the step of infinite ones."""
    return all(group.get("fused") for group in optimizer.param_groups)


def divides(optimizer: Optimizer) -> bool:
    """Whether Go divides the gradients of an optimizer that gets a scale."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return is_fused(optimizer) and all(reason_of_tensor(g) is None for g in grads)


def step(optimizer: GoStep, closure: Callable[[], Any] | None, around: Around | None) -> Any:
    """A step of an optimizer to which a GradScaler has passed its scale and whether gradients are infinite.

    As in torch's fused kernels, gradients are divided by the scale in place, and if one was infinite, the step only
    creates states.
    """
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    scale: Any = getattr(optimizer, "grad_scale", None)
    found: Any = getattr(optimizer, "found_inf", None)
    torchs = undecorated_step(optimizer.twin)
    if found is not None and float(found) != 0:  # torch passes an int if there are no gradients
        if optimizer.twin is not _originals.CLASSES["SGD"]:  # torch's would fill new momentum buffers with random bits
            with threads_after_fork():
                torchs(optimizer)
        return loss
    if scale is not None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        done = _DIVIDE(params, None, (scale.item(),), GRADIENTS) if _is_number(scale) else None
        if type(done) is not int:
            if around is None:
                if _parts.watch is not None:
                    _parts.watch(optimizer, 0, [SCALED for p in params if p.grad is not None])
                with threads_after_fork():
                    torchs(optimizer)
                return loss
            with torch.no_grad(), threads_after_fork():
                for p in params:
                    if p.grad is not None:
                        p.grad.div_(scale)
    with _without_scale(optimizer):
        optimizer._step(None, around)
    return loss


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
