"""What Go says of its optimizers."""

from __future__ import annotations

import functools
from typing import Any

from goptim import _native


@functools.cache
def kind_of(name: str) -> int:
    """Go's number of an optimizer's class (internal/steps)."""
    core: Any = _native.core()
    return core.Kind(name)  # type: ignore[no-any-return]
