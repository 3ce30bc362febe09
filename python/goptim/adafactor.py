"""Adafactor."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from goptim import _originals, _storage
from goptim._lists import order_of_norms
from goptim._parts import Part
from goptim._step import GoStep

# Arguments of transformers.Adafactor that torch.optim.Adafactor does not have.
_HUGGING_FACE = {"clip_threshold", "decay_rate", "beta1", "scale_parameter", "relative_step", "warmup_init"}


class FactoredPart(Part):
    """A part whose states have an element per row and per column of a parameter's matrices, or are vectors."""

    def _reason_of_parameter(self, p: Tensor) -> str | None:
        return super()._reason_of_parameter(p) or reason_not_factored(p)

    def _shapes(self, p: Tensor) -> dict[str, torch.Size]:
        if p.dim() < 2:
            return {"variance": p.shape}
        *batch, rows, cols = p.shape
        return {"row_var": torch.Size([*batch, rows, 1]), "col_var": torch.Size([*batch, 1, cols])}


def reason_not_factored(p: Tensor) -> str | None:
    """Why Adafactor does not support a parameter that other optimizers support."""
    if p.numel() == 0:
        return "it has no elements"
    if max(p.shape[-2:], default=0) >= 1 << 31:
        return "its matrices are too large"
    return None if p.is_contiguous() else "it is not contiguous"


class Adafactor(GoStep, _originals.Adafactor):
    r"""torch.optim.Adafactor with its update in Go: the same arguments, state and exact results.

    The state of a parameter with two or more dimensions is ``step``, ``row_var`` and ``col_var``, which have an element
    per row and per column of each matrix of the last two dimensions. The state of other parameters is ``step`` and
    ``variance``, with the parameter's shape. Contiguous float32, float64, bfloat16 and float16 parameters on the CPU
    run in Go; others fall back to torch. Go computes norms and means in the order of the installed torch with
    ``foreach=False`` and the same number of threads.

    For 16-bit parameters, Go computes in float32, also the sums of means and norms, and rounds each element of the
    parameter and the states once. torch rounds after every operation. The default of ``eps`` is the machine epsilon of
    the parameter's dtype, as in torch. 16-bit parameters of a group with ``foreach=True`` fall back to torch.

    .. math::
        \rho_t &= \min(\gamma, 1/\sqrt t), \quad \alpha_t = \max(\epsilon_2, \text{RMS}(\theta_{t-1}))\,\rho_t,
        \quad w_t = t^\tau \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma\lambda\theta_{t-1} \\
        R_t &\leftarrow R_{t-1} + w_t(\text{mean}_{-1}(G_t^2) - R_{t-1}), \quad C_t \leftarrow C_{t-1} + w_t(
        \text{mean}_{-2}(G_t^2) - C_{t-1}) \\
        V_t &= R_t C_t / \max(\text{mean}_{-2}(R_t), \epsilon_1)
        \text{; of a vector } V_{t-1} + w_t(G_t^2 - V_{t-1}) \\
        U_t &= G_t / \sqrt{\max(V_t, \epsilon_1^2)}, \quad \theta_t \leftarrow \theta_t - \alpha_t\, U_t / \max(1,
        \text{RMS}(U_t)/d)

    Shazeer & Stern, `Adafactor: Adaptive Learning Rates with Sublinear Memory Cost
    <https://arxiv.org/abs/1804.04235>`_, Algorithms 4 and 5. :class:`goptim.hf.Adafactor` has the arguments of Hugging
    Face's transformers.
    """

    elementwise = False
    part_class = FactoredPart

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        foreign = sorted(_HUGGING_FACE & kwargs.keys())
        if foreign:
            raise TypeError(
                f"Adafactor: unexpected {', '.join(foreign)}: goptim.Adafactor has torch.optim.Adafactor's arguments; "
                "goptim.hf.Adafactor has those of transformers.Adafactor"
            )
        super().__init__(*args, **kwargs)

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        options = super().options(group)
        eps1, eps2 = options["eps"]
        if eps1 is not None:
            return options
        # torch uses the epsilon of the first parameter's dtype for all.
        dtypes = {p.dtype for p in group["params"]}
        if len(dtypes) > 1:
            dtypes = {p.dtype for p in group["params"] if p.grad is not None}
        dtype = dtypes.pop() if len(dtypes) == 1 else None
        eps1 = torch.finfo(dtype).eps if dtype is not None and dtype.is_floating_point else None
        return {**options, "eps": (eps1, eps2)}

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (order_of_norms(),)


functools.update_wrapper(Adafactor.__init__, _originals.Adafactor.__init__)
Adafactor.__init__.__signature__ = _storage.signature(_originals.Adafactor.__init__)  # type: ignore[attr-defined]
