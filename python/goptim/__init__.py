"""The optimizers of torch.optim with their arithmetic in Go: the same bits, several times faster on a CPU.

``import goptim as optim`` replaces ``import torch.optim as optim``: SGD, Adam and AdamW are ours, and every other name
is torch.optim's own.
"""

from __future__ import annotations

import sys as _sys

import torch.optim as _torch_optim
from torch.optim import (
    ASGD as ASGD,
    LBFGS as LBFGS,
    Adadelta as Adadelta,
    Adafactor as Adafactor,
    Adagrad as Adagrad,
    Adamax as Adamax,
    NAdam as NAdam,
    Optimizer as Optimizer,
    RAdam as RAdam,
    RMSprop as RMSprop,
    Rprop as Rprop,
    SparseAdam as SparseAdam,
    lr_scheduler as lr_scheduler,
    swa_utils as swa_utils,
)

from goptim import testing as testing
from goptim.adam import Adam as Adam, AdamW as AdamW
from goptim.sgd import SGD as SGD

__version__ = "0.1.0"

__all__ = list(_torch_optim.__all__)

# So that `from goptim.lr_scheduler import StepLR` works where `from torch.optim.lr_scheduler import StepLR` did.
for _module in (lr_scheduler, swa_utils):
    _sys.modules[_module.__name__.replace("torch.optim", __name__)] = _module


def __getattr__(name: str) -> object:
    """What this torch.optim has beyond the oldest one that goptim supports."""
    try:
        return getattr(_torch_optim, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_optim)})
