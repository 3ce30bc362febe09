"""What the forms of AdEMAMix have in common."""

from __future__ import annotations

import math
from typing import Any


def warm_beta(step: float, steps: float, beta1: float, beta3: float) -> float:
    """The decay rate of the slow average, whose half-life grows in a number of steps from that of ``beta1``."""
    log1, log3, share = math.log(beta1), math.log(beta3), step / steps
    return min(math.exp(log1 * log3 / ((1.0 - share) * log3 + share * log1)), beta3)


def warming(options: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The options of a group for Go, where a number of steps of 0 is None, and None falls back to torch."""
    changed: dict[str, float | None] = {}
    for key in keys:
        steps = options[key]
        if steps is None:
            changed[key] = 0.0
        elif isinstance(steps, (int, float)) and steps == 0:
            changed[key] = None
    return {**options, **changed}
