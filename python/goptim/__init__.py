"""The optimizers of torch.optim, computed in Go: bit-for-bit the same results, several times faster on a CPU.

``import goptim as optim`` replaces ``import torch.optim as optim``. The optimizers imported below are goptim's, and all
other names are torch.optim's.
"""

from __future__ import annotations

import sys as _sys

import torch.optim as _torch_optim
from torch import __version__ as _torch_version
from torch.optim import (
    Optimizer as Optimizer,
    lr_scheduler as lr_scheduler,
)

from goptim import (
    adopt as adopt,
    amp as amp,
    bitsandbytes as bitsandbytes,
    hf as hf,
    optimi as optimi,
    swa_utils as swa_utils,
    testing as testing,
    timm as timm,
)
from goptim._adopt import ADOPT as ADOPT
from goptim._explain import explain as explain
from goptim._state import load_state as load_state, save_state as save_state
from goptim.adadelta import Adadelta as Adadelta
from goptim.adafactor import Adafactor as Adafactor
from goptim.adagrad import Adagrad as Adagrad
from goptim.adam import Adam as Adam, AdamW as AdamW, AMSGrad as AMSGrad
from goptim.adamax import Adamax as Adamax
from goptim.adamwlegacy import AdamWLegacy as AdamWLegacy
from goptim.adan import Adan as Adan
from goptim.ademamix import AdEMAMix as AdEMAMix
from goptim.asgd import ASGD as ASGD
from goptim.averages import EMA as EMA, ema_ as ema_, polyak_update as polyak_update
from goptim.clip import (
    clip_grad_norm_ as clip_grad_norm_,
    clip_grad_value_ as clip_grad_value_,
    clip_grads_with_norm_ as clip_grads_with_norm_,
    get_total_norm as get_total_norm,
)
from goptim.lamb import LAMB as LAMB
from goptim.laprop import LaProp as LaProp
from goptim.lars import LARS as LARS
from goptim.lbfgs import LBFGS as LBFGS
from goptim.lion import Lion as Lion
from goptim.lookahead import Lookahead as Lookahead
from goptim.muon_aux import MuonWithAuxAdam as MuonWithAuxAdam
from goptim.nadam import NAdam as NAdam
from goptim.nadamw import NAdamW as NAdamW
from goptim.prodigy import Prodigy as Prodigy
from goptim.radam import RAdam as RAdam
from goptim.rmsprop import RMSprop as RMSprop
from goptim.rmsproptf import RMSpropTF as RMSpropTF
from goptim.rmsproptflike import RMSpropTFLike as RMSpropTFLike
from goptim.rprop import Rprop as Rprop
from goptim.sam import SAM as SAM
from goptim.schedule_free import (
    AdamWScheduleFree as AdamWScheduleFree,
    RAdamScheduleFree as RAdamScheduleFree,
    SGDScheduleFree as SGDScheduleFree,
)
from goptim.sgd import SGD as SGD
from goptim.sgdw import SGDW as SGDW
from goptim.sparse_adam import SparseAdam as SparseAdam
from goptim.stableadamw import StableAdamW as StableAdamW

if hasattr(_torch_optim, "Muon"):
    from goptim import _muon as _muon
    from goptim.muon import Muon as Muon

from goptim import _adafactor as _adafactor, _for_loop, _modules, adamw as adamw
from goptim._patch import patch as patch, unpatch as unpatch

__version__ = "0.2.0"

__all__ = [
    *_torch_optim.__all__,
    "AMSGrad",
    *(name for name in _for_loop.counterparts() if _for_loop.name_in_goptim(name) == name),
    "EMA",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "ema_",
    "get_total_norm",
    "polyak_update",
]

_modules.add_modules()


def __getattr__(name: str) -> object:
    """Names of newer versions of torch.optim."""
    try:
        return getattr(_torch_optim, name)
    except AttributeError:
        message = f"module {__name__!r} has no attribute {name!r}"
    if name == "Muon":
        message += f": it needs torch 2.9 or later, and this is torch {_torch_version}"
        # `from goptim import Muon` would replace an AttributeError by a less specific message.
        if _sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap":
            raise ImportError(message)
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_optim)})
