"""torch.optim.swa_utils, with averages in Go.

`AveragedModel` recognizes the averaging functions that this module and torch's return. It lists the tensors of both
models at every update, so it does not matter how the models have changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import swa_utils as _torch_swa
from torch.optim.swa_utils import (
    SWALR as SWALR,
    get_ema_avg_fn as get_ema_avg_fn,
    get_swa_avg_fn as get_swa_avg_fn,
    update_bn as update_bn,
)

from goptim import _lists, _originals
from goptim._fallback import threads_after_fork

_EMA_MULTI, _SWA_MULTI, _EMA, _SWA = map(_originals.copied, _originals.SWA.values())

Averaging = Callable[[Any, Any, Any], Any]


def get_ema_multi_avg_fn(decay: float = 0.999) -> Averaging:
    """An averaging function for :class:`AveragedModel`: exponential moving averages, as :func:`goptim.ema_` computes
    them. It is also called as ``f(averages, params, n)``, with lists of tensors; n is not used.

    Args:
        decay: from 0 to 1.
    """
    return ema_multi_avg_fn(decay)


def get_swa_multi_avg_fn() -> Averaging:
    """An averaging function for :class:`AveragedModel`: the mean of all models, by ``lerp_``. It is also called as
    ``f(averages, params, n)``, with lists of tensors and the number of models averaged before.
    """
    return swa_multi_avg_fn()


def ema_multi_avg_fn(decay: float, usable: Callable[[], bool] | None = None) -> Averaging:
    """The function that get_ema_multi_avg_fn returns. It falls back to torch while ``usable()`` is false."""
    fallback = _EMA_MULTI(decay)

    def ema_update(ema_param_list: Sequence[Tensor], current_param_list: Sequence[Tensor], _: Any) -> None:
        if not torch.compiler.is_compiling() and (usable is None or usable()) and _lists.fits_float32(decay):
            done = _lists.LERP(_lists.listed(ema_param_list), _lists.listed(current_param_list), (1 - decay,))
            if type(done) is int:
                return
        fallback(ema_param_list, current_param_list, _)

    return ema_update


def swa_multi_avg_fn(usable: Callable[[], bool] | None = None) -> Averaging:
    """The function that get_swa_multi_avg_fn returns. It falls back to torch while ``usable()`` is false."""
    fallback = _SWA_MULTI()

    def swa_update(
        averaged_param_list: Sequence[Tensor], current_param_list: Sequence[Tensor], num_averaged: Any
    ) -> None:
        if not torch.compiler.is_compiling() and (usable is None or usable()):
            weight = _weight(num_averaged)
            if weight is not None:
                done = _lists.LERP(_lists.listed(averaged_param_list), _lists.listed(current_param_list), (weight,))
                if type(done) is int:
                    return
        fallback(averaged_param_list, current_param_list, num_averaged)

    return swa_update


def _weight(n: Any) -> float | None:
    """The weight of a model after n others, as torch rounds it; None if it may not be a number of at most 1."""
    if type(n) is Tensor and n.is_cpu and n.dim() == 0 and n.layout is torch.strided:
        n = n.detach()
    elif type(n) is not int:
        return None
    weight = 1 / (n + 1) if n != -1 else None
    weight = weight.item() if isinstance(weight, Tensor) else weight
    return weight if type(weight) is float and 0 <= weight <= 1 else None


class AveragedModel(_torch_swa.AveragedModel):
    """A copy of a model whose parameters are averages, updated in Go: :class:`torch.optim.swa_utils.AveragedModel`.

    The results are exactly torch's, with its averaging functions or this module's. Dense tensors of float32, float64,
    bfloat16 and float16 on the CPU run in Go, and others fall back to torch in the same call. With another averaging
    function, torch's code calls it.
    """

    def update_parameters(self, model: Module) -> None:
        """Average the parameters with those of a model of the same architecture.

        The first call copies them. Buffers are copied, unless ``use_buffers`` is set.
        """
        update_parameters(self, model)


def update_parameters(averaged: _torch_swa.AveragedModel, model: Module) -> None:
    """AveragedModel.update_parameters in Go, or torch's method."""
    if torch.compiler.is_compiling():  # first, because a compiler cannot trace what follows
        _originals.UPDATE_PARAMETERS(averaged, model)
        return
    asked = None if _lists.core_here() is None or reason_of(averaged) is not None else _lists_of(averaged, model)
    if asked is None or not _update(averaged, *asked):
        with threads_after_fork():
            _originals.UPDATE_PARAMETERS(averaged, model)


def _update(
    averaged: _torch_swa.AveragedModel,
    averages: list[Tensor],
    params: list[Tensor],
    written: list[Tensor],
    buffers: list[Tensor],
) -> bool:
    """Update averages and copy buffers. Return False, and change nothing, if torch's method has to do it."""
    n: Tensor = vars(averaged)["_buffers"]["n_averaged"]
    before = n.item()
    if before < 0 or not averages:
        return False
    form = (_lists.COPY, ()) if before == 0 else _form(averaged, n)
    if form is None:
        return False
    kind, scalars = form
    kind.apply(averages, params, scalars, lambda some, others: _in_torch(averaged, n, some, others))
    if written:
        _lists.COPY.apply(written, buffers, (), _copy)
    n.add_(1)
    return True


def reason_of(averaged: _torch_swa.AveragedModel) -> str | None:
    """Why the averages of a model fall back to torch."""
    n = vars(averaged)["_buffers"].get("n_averaged")
    if type(n) is not Tensor or not n.is_cpu or n.dtype is not torch.int64 or n.dim() or n.is_inference():
        return "its n_averaged is not an int64 tensor on the CPU"
    if _form(averaged, n) is None:
        return "its averaging function is not one of torch.optim.swa_utils"
    return None


def _lists_of(averaged: _torch_swa.AveragedModel, model: Module) -> tuple[list[Tensor], ...] | None:
    """Averages, their parameters, and buffers to copy to and from; None if torch lists other tensors."""
    own = vars(averaged)
    if own["_parameters"] or own["_modules"].keys() != {"module"} or _lists_others(type(averaged)):
        return None
    ours, theirs = tensors_of(own["_modules"]["module"]), tensors_of(model)
    if ours is None or theirs is None or len(ours[0]) != len(theirs[0]) or len(ours[1]) != len(theirs[1]):
        return None
    if averaged.use_buffers:
        return ours[0] + ours[1], theirs[0] + theirs[1], [], []
    return ours[0], theirs[0], ours[1], theirs[1]


def tensors_of(root: Module) -> tuple[list[Tensor], list[Tensor]] | None:
    """The parameters and buffers of a module in torch's order, in less time than torch's methods take.

    None if torch may list others, because a class overrides these methods.
    """
    if _lists_others(type(root)) or not vars(root).keys().isdisjoint(_LISTING):
        return None
    params: list[Tensor | None] = []
    buffers: list[Tensor | None] = []
    stack: list[Module | None] = [root]
    seen: set[Module] = set()
    while stack:
        module = stack.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        if type(module) not in _ORDINARY:
            if _lists_other_modules(type(module)):
                return None
            if len(_ORDINARY) == 1000:  # a program may create classes forever
                _ORDINARY.clear()
            _ORDINARY.add(type(module))
        own = module.__dict__
        if some := own["_parameters"]:
            params += some.values()
        if some := own["_buffers"]:
            buffers += some.values()
        if some := own["_modules"]:
            stack += reversed(some.values())
    return _distinct(params), _distinct(buffers)


def _distinct(tensors: list[Tensor | None]) -> list[Tensor]:
    return list({id(t): t for t in tensors if t is not None}.values()) if tensors else []


# The methods of Module that list tensors.
_LISTING = ("parameters", "named_parameters", "buffers", "named_buffers", "_named_members", "named_modules")

# Classes that do not override named_modules.
_ORDINARY: set[type[Module]] = set()


def _overrides(cls: type[Module]) -> bool:
    return any(getattr(cls, name) is not getattr(Module, name) for name in _LISTING)


# Whether a class lists its tensors by methods of its own.
_lists_others: Callable[[Any], bool] = functools.lru_cache(maxsize=64)(_overrides)


def _lists_other_modules(cls: type[Module]) -> bool:
    return cls.named_modules is not Module.named_modules or issubclass(cls, torch.jit.ScriptModule)


def _copy(averages: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    for average, p in zip(averages, params, strict=True):
        average.detach().copy_(p.detach().to(average.device))


class _Some:
    """Some tensors of a model, as torch's update_parameters reads it."""

    use_buffers = False

    def __init__(self, tensors: Sequence[Tensor], **attributes: Any) -> None:
        self.tensors = tensors
        self.module = self
        vars(self).update(attributes)

    def parameters(self) -> Sequence[Tensor]:
        return self.tensors

    def buffers(self) -> tuple[Tensor, ...]:
        return ()


def _in_torch(
    averaged: _torch_swa.AveragedModel, n: Tensor, averages: Sequence[Tensor], params: Sequence[Tensor]
) -> None:
    """Update some of the averages by torch's method."""
    some: Any = _Some(averages, n_averaged=n.clone(), avg_fn=averaged.avg_fn, multi_avg_fn=averaged.multi_avg_fn)
    others: Any = _Some(params)
    with threads_after_fork():
        _originals.UPDATE_PARAMETERS(some, others)


def _form(averaged: _torch_swa.AveragedModel, n: Tensor) -> tuple[_lists.ListKind, tuple[float, ...]] | None:
    """The operation of Go that an averaging function is, and its scalars; None if it is another."""
    many, one = averaged.multi_avg_fn, averaged.avg_fn
    if many is None:
        if one is None or _codes(one) == _SWA_CODES:
            return _lists.SWA, (float(n.item()),)
        if _codes(one) == _EMA_CODES:
            decay = _decay(one)
            return (_lists.MUL_ADD, (decay,)) if _lists.fits_float32(decay) else None
    elif _codes(many) in _EMA_MULTI_CODES:
        decay = _decay(many)
        return (_lists.LERP, (1 - decay,)) if _lists.fits_float32(decay) else None
    elif _codes(many) in _SWA_MULTI_CODES:
        weight = _weight(n)
        return None if weight is None else (_lists.LERP, (weight,))
    return None


def _codes(function: Any) -> tuple[Any, Any]:
    """The code of a function, and that of the function that it decorates. Together they identify a function's maker."""
    wrapped = getattr(function, "__wrapped__", None)
    return getattr(function, "__code__", None), getattr(wrapped, "__code__", None)


def _decay(function: Any) -> Any:
    """The decay in the closure of an averaging function."""
    inner = getattr(function, "__wrapped__", function)
    return inner.__closure__[inner.__code__.co_freevars.index("decay")].cell_contents


_EMA_CODES, _SWA_CODES = _codes(_EMA()), _codes(_SWA())
_EMA_MULTI_CODES = {_codes(_EMA_MULTI()), _codes(get_ema_multi_avg_fn())}
_SWA_MULTI_CODES = {_codes(_SWA_MULTI()), _codes(get_swa_multi_avg_fn())}
