"""torch.optim._multi_tensor: the optimizers with ``foreach=True``, with which 16-bit parameters fall back to torch."""

from __future__ import annotations

import sys
from typing import Any

import torch.optim._multi_tensor as _theirs

import goptim
from goptim import _modules

partialclass: Any = _theirs.partialclass  # type: ignore[attr-defined]

for _name in dir(_theirs):
    if isinstance(getattr(_theirs, _name), type) and isinstance(getattr(goptim, _name, None), type):
        globals()[_name] = partialclass(getattr(goptim, _name), foreach=True)

_modules.complete(sys.modules[__name__], _theirs)
