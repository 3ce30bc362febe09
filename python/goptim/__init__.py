"""The optimizers of torch.optim with their arithmetic in Go: the same bits, several times faster on a CPU.

``import goptim as optim`` replaces ``import torch.optim as optim``: the optimizers imported below are ours, every
other name is torch.optim's own.
"""

from __future__ import annotations

import sys as _sys

import torch.optim as _torch_optim
from torch.optim import (
    Adafactor as Adafactor,
    Optimizer as Optimizer,
    lr_scheduler as lr_scheduler,
    swa_utils as swa_utils,
)

from goptim import testing as testing
from goptim.adadelta import Adadelta as Adadelta
from goptim.adagrad import Adagrad as Adagrad
from goptim.adam import Adam as Adam, AdamW as AdamW, AMSGrad as AMSGrad
from goptim.adamax import Adamax as Adamax
from goptim.asgd import ASGD as ASGD
from goptim.lbfgs import LBFGS as LBFGS
from goptim.nadam import NAdam as NAdam
from goptim.radam import RAdam as RAdam
from goptim.rmsprop import RMSprop as RMSprop
from goptim.rprop import Rprop as Rprop
from goptim.sgd import SGD as SGD
from goptim.sparse_adam import SparseAdam as SparseAdam

__version__ = "0.1.0"

__all__ = [*_torch_optim.__all__, "AMSGrad"]

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
