"""ASGD."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.optim.asgd import asgd as asgd

from goptim import _originals
from goptim._parts import Part
from goptim._step import GoStep

# Whether torch creates a new eta in float64; None for a dtype that Go does not support.
_FLOAT64 = {torch.float32: False, torch.float64: True}


class _ASGDPart(Part):
    @functools.cached_property
    def reason_of_group(self) -> str | None:
        if None in self.extra:  # torch rounds a new eta and mu to it
            return f"torch's default dtype is {torch.get_default_dtype()}"
        return super().reason_of_group


class ASGD(GoStep, _originals.ASGD):
    r"""torch.optim.ASGD with its update in Go: the same arguments, state and exact results.

    The state of a parameter is ``step``, ``eta``, ``mu`` and ``ax``. Float32, float64, bfloat16 and float16 parameters
    of any shape on the CPU run in Go; others fall back to torch. ``foreach`` is accepted and checked as in torch. It
    only matters for 16-bit parameters, which fall back to torch with ``foreach=True``.

    .. math::
        g_t &\leftarrow \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        \theta_t &\leftarrow (1-\text{lambd}\,\eta_{t-1})\theta_{t-1} - \eta_{t-1} g_t,
        \quad ax_t \leftarrow ax_{t-1} + \mu_{t-1}(\theta_t - ax_{t-1}) \\
        \eta_t &\leftarrow \gamma / (1+\text{lambd}\,\gamma t)^\alpha, \quad \mu_t \leftarrow 1/\max(1, t-t_0)

    Polyak & Juditsky, `Acceleration of Stochastic Approximation by Averaging
    <https://doi.org/10.1137/0330046>`_, SIAM Journal on Control and Optimization 30 (1992).
    """

    part_class = _ASGDPart

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (_FLOAT64.get(torch.get_default_dtype()),)
