"""torch.amp.GradScaler for optimizers on the CPU, with its passes over the gradients in Go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _originals, _scaler

__all__ = ["GradScaler"]


class GradScaler(torch.amp.GradScaler):
    """torch.amp.GradScaler whose gradients are unscaled and checked in Go, with the same results bit for bit.

    Dense gradients of float32, float64, bfloat16 and float16 on the CPU run in Go if all gradients of the optimizer do.
    A step that gets the scale (``fused=True``) falls back to torch if one has 16 bits, because torch's fused kernels do
    not round the quotients, and gradients of float16 raise torch's error in ``unscale_``. Otherwise torch
    unscales them. ``goptim.patch()`` does the same for torch.amp.GradScaler and the classes derived from it.

    What a step writes depends on the optimizer's argument ``fused``, as in torch. Without it, gradients are multiplied
    by the inverse of the scale, and a step with an infinite gradient is not called. With it, gradients are divided by
    the scale, which differs in the last bit unless the scale is a power of two; and a step with an infinite gradient
    leaves all but new states as they were, without a new momentum buffer of SGD, which torch does not initialize.

    Without ``fused``, parameters and states are exactly torch's. With it, gradients are exactly those that torch's
    fused kernels leave, and for these gradients the step has the results of torch's for-loop, as every step of goptim.
    The fused kernels of SGD and Adagrad have the same results. Those of Adam and AdamW round ``exp_avg_sq``
    differently.

    ``step(optimizer, max_grad_norm=…, ema=…, zero_grad=True)`` passes the arguments on. If the step is skipped, nothing
    is clipped or averaged, and the gradients are cleared.

    Args:
        device: as for torch. Its default is ``"cpu"``, and torch's ``"cuda"``.
        init_scale: the first scale.
        growth_factor: the factor of the scale after growth_interval steps without an infinite gradient, above 1.
        backoff_factor: the factor of the scale after a step with one, below 1.
        growth_interval: a number of steps, at least 1.
        enabled: if False, losses are not scaled, and ``step`` is the optimizer's.
    """

    def __init__(
        self,
        device: str = "cpu",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        super().__init__(device, init_scale, growth_factor, backoff_factor, growth_interval, enabled)

    def _unscale_grads_(
        self, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        theirs: Any = _originals.UNSCALE
        return _scaler.unscaled(_scaler.unscale(theirs, self, optimizer, inv_scale, found_inf, allow_fp16))

    def _maybe_opt_step(self, optimizer: Optimizer, optimizer_state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result: Any = _originals.MAYBE_STEP(self, optimizer, optimizer_state, *args, **kwargs)
        _scaler.clear_skipped(optimizer, optimizer_state["found_inf_per_device"], kwargs)
        return result
