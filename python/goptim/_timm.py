"""What timm's optimizers have in common, in operations of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def largest_lr(lr: Any, corrected: bool) -> float:
    """``max_lr_snapshot`` of a group: the first learning rate.

    Raises:
        ValueError: it is not above 0, and the weight decay is corrected by it.
    """
    largest = float(lr.detach()) if isinstance(lr, Tensor) else float(lr)
    if corrected and not largest > 0:
        raise ValueError(f"Invalid learning rate: {lr}, expected above 0 with corrected_weight_decay")
    return largest


def require(name: str, value: Any, least: float = 0.0, below: float | None = None) -> None:
    """Raise a ValueError for a number that is out of its range."""
    if not (value >= least and (below is None or value < below)):
        expected = f"at least {least:g}" if below is None else f"at least {least:g} and below {below:g}"
        raise ValueError(f"Invalid {name}: {value}, expected {expected}")


def require_betas(betas: tuple[float, ...]) -> None:
    for i, beta in enumerate(betas):
        require(f"beta parameter at index {i}", beta, below=1.0)


def decay_rate(group: dict[str, Any]) -> Any:
    """The factor of decoupled weight decay: the learning rate, or corrected for it."""
    lr = group["lr"]
    return lr**2 / group["max_lr_snapshot"] if group["corrected_weight_decay"] else lr


def cautious(update: Tensor, grad: Tensor) -> Tensor:
    """The mask of an update: its elements with the sign of the gradient, scaled by their share.

    Liang et al., `Cautious Optimizers <https://arxiv.org/abs/2411.16085>`_.
    """
    mask = (update * grad > 0).to(grad.dtype)
    return mask.div_(mask.mean().clamp_(min=1e-3))


def clip_(denom: Tensor, grad: Tensor, threshold: float) -> None:
    """Scale a denominator so that the root mean square of grad/denom is at most a threshold."""
    rms = torch.linalg.vector_norm(grad / denom) / (denom.numel() ** 0.5)
    denom.mul_((rms / threshold).clamp_(min=1.0))


def bounded(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a group for Go, where a ``clipping_threshold`` of 0 is None, and None falls back to torch."""
    threshold = options["clipping_threshold"]
    if threshold is None:
        return {**options, "clipping_threshold": 0.0}
    return (
        {**options, "clipping_threshold": None} if isinstance(threshold, (int, float)) and threshold == 0 else options
    )


def add_scaled_(p: Tensor, update: Tensor, scale: Any) -> None:
    """``p.add_(update, alpha=scale)``, also for a scale that is a Tensor."""
    if isinstance(scale, Tensor):
        p.add_(update * scale)
    else:
        p.add_(update, alpha=scale)


def as_real(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Views of complex tensors as real ones."""
    return tuple(torch.view_as_real(t) if t.is_complex() else t for t in tensors)
