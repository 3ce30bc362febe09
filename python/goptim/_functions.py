"""Replaces functions around an optimizer's step by goptim's while torch.optim is patched: clipping and averages.

The functions stay the same objects, so it does not matter how a program refers to them. What they call is replaced:

- Functions of torch.nn.utils call the content of a cell of their decorator.
- Methods are looked up in their class.
- Of other functions the code is replaced. The new code calls a name that is added to the globals of its module.

Other packages (stable-baselines3, timm) may be imported before or after. Until an optimizer of goptim has loaded the
extension, in a forked child, and when compiled, the functions are the original ones.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import sys
import threading
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from goptim import _lists, _native, _originals, averages, clip, swa_utils
from goptim._eligible import DTYPES, NARROW, dispatch_modes, functorch, reason_of_tensor
from goptim._fallback import threads_after_fork

# If set, it is called for each call of a replaced function with its name, the number of tensors that ran in Go, and the
# reasons why others fell back to torch.
watch: Callable[[str, int, list[str]], None] | None = None

_local = threading.local()

_NAME = "_goptim_replacement_of_"


class _Replacement:
    """A function that can be replaced and restored."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self.restore = restore


_replaced: list[_Replacement] = []
_active = False
lock = threading.RLock()
"""Held while something is replaced or restored, also by :mod:`goptim._patch`."""


def _usable() -> bool:
    """Whether calls may run in Go. Programs may keep a replacement after the end of the patch."""
    return _active and _native.in_use()


def replace() -> None:
    """Replace the functions of torch, and those of other packages as soon as they are imported."""
    global _active
    with lock:
        _active = True
        for name, hook in _CLIP.items():
            _replace_in_cell(_originals.DECORATED[name], _originals.CLIP[name], hook)
        _replace_method(AveragedModel, "update_parameters", _averaged_model)
        _replace_code(
            _originals.SWA["get_ema_multi_avg_fn"], lambda _: lambda decay: swa_utils.ema_multi_avg_fn(decay, _usable)
        )
        _replace_code(_originals.SWA["get_swa_multi_avg_fn"], lambda _: lambda: swa_utils.swa_multi_avg_fn(_usable))
        for name, then in _OTHERS.items():
            after_import(name, then)


def after_import(name: str, then: Callable[[types.ModuleType], None]) -> None:
    """Call a function with a module now, or as soon as it has been imported, while functions are replaced."""
    with lock:
        if name in sys.modules:
            then(sys.modules[name])
            return
        _finder.waiting[name] = then
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)


def restore() -> None:
    """Restore all functions."""
    global _active
    with lock:
        _active = False
        _finder.waiting.clear()
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        while _replaced:
            _replaced.pop().restore()


def _replace_in_cell(decorated: Any, original: Callable[..., Any], hook: Callable[..., Any]) -> None:
    """Replace the function that a decorator of torch.nn.utils calls."""
    for cell in getattr(decorated, "__closure__", None) or ():
        if cell.cell_contents is original:
            cell.cell_contents = hook

            def back(cell: types.CellType = cell) -> None:
                if cell.cell_contents is hook:
                    cell.cell_contents = original

            _replaced.append(_Replacement(back))


def _replace_method(cls: type, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    original = vars(cls).get(name)
    if not isinstance(original, types.FunctionType):
        return
    hook = functools.wraps(original)(make(original))
    setattr(cls, name, hook)

    def back() -> None:
        if vars(cls).get(name) is hook:  # otherwise a program has replaced it too
            setattr(cls, name, original)

    _replaced.append(_Replacement(back))


def _replace_code(function: Any, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Replace the code of a function without a closure."""
    if not isinstance(function, types.FunctionType) or function.__code__.co_freevars:
        return
    code, names = function.__code__, function.__globals__
    original = _originals.copied(function)
    parameters = inspect.signature(original).parameters.values()
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        return
    hook, key = make(original), _NAME + function.__name__
    listed = ", ".join(p.name for p in parameters)
    made: dict[str, Any] = {}
    exec(f"def {function.__name__}({listed}):\n    return {key}({listed})", made)
    replacement = made[function.__name__].__code__.replace(co_filename=__file__, co_firstlineno=1)
    names[key] = hook
    function.__code__ = replacement

    def back() -> None:
        if function.__code__ is replacement:
            function.__code__ = code
        names.pop(key, None)

    _replaced.append(_Replacement(back))


class _Finder:
    """Replaces functions of packages after their import."""

    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[types.ModuleType], None]] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        then = self.waiting.pop(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            _call_after(spec.loader, then)
        return spec


def _call_after(loader: Any, then: Callable[[types.ModuleType], None]) -> None:
    execute = loader.exec_module

    def exec_module(module: types.ModuleType) -> None:
        del loader.exec_module
        execute(module)
        with lock:
            if _active:  # the patch may have ended since
                then(module)

    loader.exec_module = exec_module


_finder = _Finder()


@contextlib.contextmanager
def counted(name: str, of: Callable[[], Sequence[tuple[Tensor, ...]]], why: str | None = None) -> Iterator[None]:
    """Count for the report of run what of a call runs in Go.

    Args:
        name: of the function.
        of: returns the tensors of the call: the written one, and one that is read. It is called before.
        why: if set, all of the call falls back to torch for this reason.
    """
    if watch is None or getattr(_local, "rows", None) is not None:  # or another function calls this one
        yield
        return
    tensors = of()
    reasons = [why or _reason_of(pair, name) for pair in tensors]
    _local.rows = rows = Counter[str]()
    try:
        yield
    finally:
        _local.rows = None
    go = min(max(rows.values(), default=0), len(tensors))
    rest = sorted(reasons, key=lambda why: why is None)[: len(tensors) - go]
    watch(name, go, [why or "torch computes it for these arguments or neighbors" for why in rest])


def count_rows(kind: str, rows: int) -> None:
    """Add to the rows of the current call that ran in Go; for `_lists.watch`."""
    counts = getattr(_local, "rows", None)
    if counts is not None:
        counts[kind] += rows


# Functions of which torch computes those with 16-bit tensors, and why.
_NARROW_IN_TORCH = {
    "polyak_update": "torch rounds its 16-bit elements in a way that depends on the number of threads",
    "ModelEmaV3": "timm may round its 16-bit elements at random",
    "GradScaler, dividing by the scale": "torch's fused step does not round the quotients of its 16-bit elements",
}


def _reason_of(tensors: tuple[Tensor, ...], name: str) -> str | None:
    """Why an operation on a tensor falls back to torch."""
    for t in tensors:
        why = reason_of_tensor(t, (*DTYPES, *NARROW))
        if why is not None:
            return why
        if t.dtype in NARROW and name in _NARROW_IN_TORCH:
            return f"{_NARROW_IN_TORCH[name]} ({t.dtype})"
    first = tensors[0]
    if any(t.shape != first.shape or t.dtype != first.dtype or t.stride() != first.stride() for t in tensors):
        return "the tensors of a pair differ in shape, dtype or strides"
    return None


def fallback_reason() -> str | None:
    """Why a call falls back to torch before its arguments are known."""
    if not _native.in_use():
        return _native.reason_unavailable() if _native.forked() else "no optimizer of goptim was constructed before"
    if dispatch_modes():
        return "a dispatch mode is active"
    return "functorch is active" if functorch() is not None else None


def _gradients(parameters: Any) -> list[tuple[Tensor, ...]]:
    return [(p.grad,) for p in parameters if p.grad is not None]


def _clipping(name: str, tensors: Callable[[Any], list[tuple[Tensor, ...]]]) -> Callable[..., Any]:
    """The replacement of a function of torch.nn.utils whose first argument are tensors."""
    original, ours = _originals.CLIP[name], getattr(clip, name)
    first = next(iter(inspect.signature(original).parameters))
    warns = name == "clip_grad_norm_" and clip._WARNS

    @functools.wraps(original)
    def hook(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # first, because a compiler cannot trace what follows
            return original(*args, **kwargs)
        call = ours if _usable() else _fallback_of(original)
        if watch is None and not warns:
            return call(*args, **kwargs)
        given = args[0] if args else kwargs.get(first)
        generator = isinstance(given, types.GeneratorType)
        if generator or watch is not None:
            given = _lists.listed(given)
            if warns and generator and not given:
                warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3)
            if args:
                args = (given, *args[1:])
            else:
                kwargs[first] = given
        if watch is None:
            return call(*args, **kwargs)
        with counted(name, lambda: tensors(given), fallback_reason()):
            return call(*args, **kwargs)

    return hook


_CLIP = {
    "clip_grad_norm_": _clipping("clip_grad_norm_", _gradients),
    "clip_grad_value_": _clipping("clip_grad_value_", _gradients),
    "clip_grads_with_norm_": _clipping("clip_grads_with_norm_", _gradients),
    "get_total_norm": _clipping("get_total_norm", lambda tensors: [(t,) for t in tensors]),
}


def _fallback_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that falls back to torch."""
    if not _native.forked():
        return original

    def on_one_thread(*args: Any, **kwargs: Any) -> Any:
        with threads_after_fork():
            return original(*args, **kwargs)

    return on_one_thread


def _averaged_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def update_parameters(self: AveragedModel, model: torch.nn.Module) -> None:
        if torch.compiler.is_compiling():
            original(self, model)
            return
        update = swa_utils.update_parameters if _usable() else _fallback_of(original)
        if watch is None:
            update(self, model)
            return

        def pairs() -> list[tuple[Tensor, ...]]:
            return list(zip(self.module.parameters(), model.parameters(), strict=False))

        with counted("AveragedModel", pairs, fallback_reason() or swa_utils.reason_of(self)):
            update(self, model)

    return update_parameters


def _replace_polyak_update(module: types.ModuleType) -> None:
    """Replace stable_baselines3.common.utils.polyak_update, if it is the known function."""
    function = getattr(module, "polyak_update", None)
    if _agrees(function, lambda t, p, tau: averages._torch_polyak([t], [p], tau)):
        _replace_code(function, _polyak_update)


def _polyak_update(original: Callable[..., Any]) -> Callable[..., Any]:
    def polyak_update(params: Any, target_params: Any, tau: float) -> None:
        if torch.compiler.is_compiling():
            original(params, target_params, tau)
            return
        read, targets = _lists.listed(params), _lists.listed(target_params)
        fits = _usable() and len(read) == len(targets)
        update = averages.polyak_update if fits else _fallback_of(original)
        if watch is None:
            update(read, targets, tau)
            return
        with counted("polyak_update", lambda: list(zip(targets, read, strict=False)), fallback_reason()):
            update(read, targets, tau)

    return polyak_update


def _agrees(function: Any, known: Callable[[Tensor, Tensor, float], object]) -> bool:
    """Whether a function of another package, of any version, does the same as a known one."""
    t = torch.linspace(-3, 5, 97, dtype=torch.float32, device="cpu")
    p = torch.linspace(7, -1, 97, dtype=torch.float32, device="cpu").sin()
    try:
        ours = t.clone()
        known(ours, p, 0.005)
        function([p], [t], 0.005)
    except Exception:
        return False
    return torch.equal(t, ours) and t._version == ours._version


def _replace_timm(module: types.ModuleType) -> None:
    """Replace what timm's ModelEmaV3 calls to update its averages, if it is the known method."""
    cls = getattr(module, "ModelEmaV3", None)
    method = getattr(cls, "_foreach_lerp_", None)
    some = types.SimpleNamespace(stochastic_rounding=True, _sr_generator=None)

    def theirs(params: list[Tensor], averages: list[Tensor], weight: float) -> None:
        assert method is not None
        method(some, averages, params, weight)

    if isinstance(cls, type) and _agrees(theirs, lambda t, p, weight: torch._foreach_lerp_([t], [p], weight)):
        _replace_method(cls, "_foreach_lerp_", _model_ema)


def _model_ema(original: Callable[..., Any]) -> Callable[..., Any]:
    def _foreach_lerp_(self: Any, ema_values: Any, model_values: Any, weight: float) -> None:
        if torch.compiler.is_compiling():
            original(self, ema_values, model_values, weight)
            return
        with counted("ModelEmaV3", lambda: list(zip(ema_values, model_values, strict=False)), fallback_reason()):
            fits = _usable() and len(ema_values) == len(model_values) and _lists.fits_float32(weight)
            # timm may round averages of bfloat16 at random.
            flags = _lists.WIDE if getattr(self, "stochastic_rounding", False) else 0
            if not fits or type(_lists.LERP(ema_values, model_values, (weight,), flags)) is not int:
                _fallback_of(original)(self, ema_values, model_values, weight)

    return _foreach_lerp_


# What to replace in other packages, by module.
_OTHERS: dict[str, Callable[[types.ModuleType], None]] = {
    "stable_baselines3.common.utils": _replace_polyak_update,
    "timm.utils.model_ema": _replace_timm,
}
