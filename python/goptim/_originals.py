"""The classes of torch.optim, and functions of torch.nn.utils, as torch defines them, even if a program replaces them.

Programs replace them (``torch.optim.Adam = goptim.Adam``) before or after they import goptim. So goptim looks them up
once, here, and never by name afterwards. Otherwise, a step that falls back to ``torch.optim.LBFGS`` would call itself.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.optim as _torch_optim
from torch.nn.utils import clip_grad as _clip_grad
from torch.optim import swa_utils as _swa_utils
from torch.optim.optimizer import Optimizer

if TYPE_CHECKING:
    from torch.optim import (
        ASGD as ASGD,
        LBFGS as LBFGS,
        SGD as SGD,
        Adadelta as Adadelta,
        Adafactor as Adafactor,
        Adagrad as Adagrad,
        Adam as Adam,
        Adamax as Adamax,
        AdamW as AdamW,
        Muon as Muon,
        NAdam as NAdam,
        RAdam as RAdam,
        RMSprop as RMSprop,
        Rprop as Rprop,
        SparseAdam as SparseAdam,
    )


def _candidates(name: str) -> Iterator[object]:
    """Classes that may be the original or derived from it: those with its name in torch.optim, then all optimizers."""
    for module in [_torch_optim, *(m for key, m in list(sys.modules.items()) if key.startswith("torch.optim."))]:
        yield from getattr(getattr(module, name, None), "__mro__", ())
    below = [Optimizer]
    while below:
        yield (cls := below.pop())
        below += cls.__subclasses__()


def _original(name: str) -> Any:
    for cls in _candidates(name):
        if isinstance(cls, type) and cls.__name__ == name and f"{cls.__module__}.".startswith("torch.optim."):
            return cls
    return getattr(_torch_optim, name)


def _is_optimizer(x: object) -> bool:
    return isinstance(x, type) and issubclass(x, Optimizer)


# The classes by name, without Optimizer.
CLASSES: dict[str, type[Optimizer]] = {
    name: cls
    for name in ("ASGD", "LBFGS", "SGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "Muon", "NAdam",
                 "RAdam", "RMSprop", "Rprop", "SparseAdam")
    if hasattr(_torch_optim, name) and _is_optimizer(cls := _original(name))
}  # fmt: skip

# The functions of torch.nn.utils for gradients, which disable gradients.
DECORATED: dict[str, Callable[..., Any]] = {
    f.__name__.removeprefix("_"): f
    for f in (
        _clip_grad.clip_grad_norm_,
        _clip_grad.clip_grad_value_,
        _clip_grad._get_total_norm,
        _clip_grad._clip_grads_with_norm_,
    )
}

# The functions that they call after that.
CLIP: dict[str, Callable[..., Any]] = {name: inspect.unwrap(f) for name, f in DECORATED.items()}

# The functions that return averaging functions.
SWA: dict[str, Any] = {
    f.__name__: f
    for f in (
        _swa_utils.get_ema_multi_avg_fn,
        _swa_utils.get_swa_multi_avg_fn,
        _swa_utils.get_ema_avg_fn,
        _swa_utils.get_swa_avg_fn,
    )
}

UPDATE_PARAMETERS: Callable[..., None] = _swa_utils.AveragedModel.update_parameters


def copied(f: types.FunctionType) -> types.FunctionType:
    """A copy of a function, which stays the same if the code of the function is replaced."""
    copy = types.FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    copy.__kwdefaults__ = f.__kwdefaults__
    return copy


# The methods of a GradScaler that unscale gradients, and step an optimizer unless a gradient was infinite.
UNSCALE: Callable[..., Any] = torch.amp.GradScaler._unscale_grads_
MAYBE_STEP: Callable[..., Any] = torch.amp.GradScaler._maybe_opt_step

ZERO_GRAD: Callable[..., None] = Optimizer.zero_grad

# Their steps, which a program may replace too.
STEPS: dict[type[Optimizer], Callable[..., Any]] = {cls: cls.step for cls in CLASSES.values()}

globals().update(CLASSES)
