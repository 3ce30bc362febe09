"""torch.nn.utils' functions for gradients, in Go: norms, and clipping by norm and by value."""

from __future__ import annotations

import itertools
import math
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._foreach_utils import _device_has_foreach_support, _has_foreach_support

from goptim import _lists, _originals
from goptim._eligible import NARROW
from goptim._fallback import threads_after_fork
from goptim._lists import (
    EACH,
    FILLED,
    FINITE,
    GO,
    GRADIENTS,
    NOT_FLOAT16,
    OF_NUMBER,
    ONE_TYPE,
    WIDE,
    WIDENED,
    listed,
    order_of_norms,
)

__all__ = ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]

Tensors = Tensor | Iterable[Tensor]

# Whether this torch warns of generators without parameters, as 2.6 does not.
_WARNS = any("empty generator" in str(x) for x in _originals.CLIP["clip_grad_norm_"].__code__.co_consts)

# A tensor without dimensions for each dtype of a norm.
_SCALARS = {dtype: torch.zeros((), dtype=dtype, device="cpu") for dtype in OF_NUMBER}

# The largest numbers of float16 and bfloat16.
_LARGEST = torch.finfo(torch.float16).max, torch.finfo(torch.bfloat16).max


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    norm_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Scale the gradients of parameters in place so that their total norm is at most about ``max_norm``.

    The arguments except ``norm_dtype``, the result and the errors are those of
    :func:`torch.nn.utils.clip_grad_norm_`, and so is every bit of the norm and of the gradients:

    .. math::
        n = \left\| (\|g_1\|_p, \|g_2\|_p, \dots) \right\|_p, \qquad
        g_i \leftarrow g_i \min\left(1, \frac{c}{n + 10^{-6}}\right)

    Dense gradients of float32, float64, bfloat16 and float16 on the CPU run in Go if p is 2 or infinite; others fall
    back to torch in the same call. If the coefficient is 1, the gradients are not written, and only their version
    counters increase.

    torch rounds the norm of each 16-bit gradient to 16 bits, and also the total norm and the coefficient if all
    gradients have one 16-bit dtype. The coefficient of bfloat16 then has a relative error of up to about 1 %, and a
    norm of float16 above 65504 is infinite, so that gradients become 0. ``norm_dtype=torch.float32`` avoids both.

    Args:
        parameters: tensors with gradients of any shape, or one such tensor. Those without a gradient are left out.
        max_norm: c.
        norm_type: p, which may also be ``"inf"``.
        error_if_nonfinite: raise an error if the norm is infinite or not a number.
        foreach: as for torch. It selects torch's implementation for gradients that fall back.
        norm_dtype: ``torch.float32`` computes the norm and the coefficient as if 16-bit gradients were float32, and
            rounds only the products to 16 bits. With None, results are those of torch.

    Returns:
        n, a tensor without dimensions, with the dtype of the gradients if they have one dtype, or with
        ``norm_dtype`` if that is wider.

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite`` is set. No gradient was changed.
        ValueError: ``norm_dtype`` is neither torch.float32 nor None. No gradient was changed.

    Pascanu, Mikolov & Bengio, `On the difficulty of training recurrent neural networks
    <https://arxiv.org/abs/1211.5063>`_, Algorithm 1.
    """
    widen = widens("clip_grad_norm_", norm_dtype)
    if torch.compiler.is_compiling():  # first, because a compiler cannot trace what follows
        if widen:
            return _torch_clip_widened(listed(parameters), max_norm, norm_type, error_if_nonfinite, foreach)
        return _torch_norm("clip_grad_norm_", parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    params = listed(parameters)
    if _WARNS and not params and isinstance(parameters, types.GeneratorType):
        warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2)
    norm_type, most = float(norm_type), float(max_norm)
    done: Any = None
    if (norm_type == 2 or norm_type == math.inf) and _lists.core_here() is not None:
        flags = GRADIENTS | ONE_TYPE
        if widen:
            flags |= WIDENED
        if error_if_nonfinite:
            flags |= FINITE
        if norm_type != 2:
            flags |= FILLED
        scalars = norm_type, order_of_norms(), widen, most, bool(error_if_nonfinite)
        done = _lists.CLIP_GRAD_NORM(params, None, scalars, flags)
        if type(done) is tuple:
            rows, dtype, norm, _ = done
            if rows > 0 and (not error_if_nonfinite or math.isfinite(norm)):
                return as_tensor(norm, dtype, widen)
    if type(done) is not bytes:  # torch raises the errors
        if widen:
            return _torch_clip_widened(params, max_norm, norm_type, error_if_nonfinite, foreach)
        return _torch_norm("clip_grad_norm_", params, max_norm, norm_type, error_if_nonfinite, foreach)
    with torch.no_grad():
        grads = [p.grad for p in params if p.grad is not None]
        total = _total_norm(grads, norm_type, error_if_nonfinite, foreach, widen)
        _scale(grads, most, total, foreach)
    return total


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    norm_dtype: torch.dtype | None = None,
) -> Tensor:
    """The norm of tensors as if they were one vector, exactly as :func:`torch.nn.utils.get_total_norm` computes it.

    Dense tensors of float32, float64, bfloat16 and float16 on the CPU run in Go if ``norm_type`` is 2 or infinite.

    Args:
        tensors: tensors of any shape, or one tensor.
        norm_type: the order, which may also be ``"inf"``.
        error_if_nonfinite: raise an error if the norm is infinite or not a number.
        foreach: as for torch. It selects torch's implementation for tensors that fall back.
        norm_dtype: ``torch.float32`` computes the norm as if 16-bit tensors were float32. With None, torch's norm of
            each 16-bit tensor is rounded to 16 bits.

    Returns:
        A tensor without dimensions, with the dtype of the tensors if they have one dtype, or with ``norm_dtype`` if
        that is wider.

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite`` is set.
        ValueError: ``norm_dtype`` is neither torch.float32 nor None.
    """
    widen = widens("get_total_norm", norm_dtype)
    if widen and torch.compiler.is_compiling():
        return _torch_widened(listed(tensors), norm_type, error_if_nonfinite, foreach)
    if torch.compiler.is_compiling():
        return _torch_norm("get_total_norm", tensors, norm_type, error_if_nonfinite, foreach)
    some, norm_type = listed(tensors), float(norm_type)
    done = None
    if (norm_type == 2 or norm_type == math.inf) and _lists.core_here() is not None:
        flags = ONE_TYPE if norm_type == 2 else ONE_TYPE | FILLED
        if widen:
            flags |= WIDENED
        done = _lists.GRAD_NORM(some, None, (norm_type, order_of_norms(), widen), flags)
        if type(done) is tuple:
            rows, dtype, norm = done
            if rows > 0 and (not error_if_nonfinite or math.isfinite(norm)):
                return as_tensor(norm, dtype, widen)
    if type(done) is not bytes:
        if widen:
            return _torch_widened(some, norm_type, error_if_nonfinite, foreach)
        return _torch_norm("get_total_norm", some, norm_type, error_if_nonfinite, foreach)
    with torch.no_grad():
        return _total_norm(some, norm_type, error_if_nonfinite, foreach, widen)


def clip_grads_with_norm_(
    parameters: Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    r"""Scale the gradients of parameters in place by a norm that is known, as
    :func:`torch.nn.utils.clip_grads_with_norm_` does: by :math:`\min(1, c/(n + 10^{-6}))`.

    Dense gradients of float32, float64, bfloat16 and float16 on the CPU run in Go.

    Args:
        parameters: tensors with gradients of any shape, or one such tensor. Those without a gradient are left out.
        max_norm: c.
        total_norm: n, the result of :func:`get_total_norm`.
        foreach: as for torch. It selects torch's implementation for gradients that fall back.
    """
    if (
        torch.compiler.is_compiling()
        or _lists.core_here() is None
        or type(total_norm) is not Tensor
        or total_norm.dim() != 0
        or not total_norm.is_cpu
        or not total_norm.is_floating_point()
    ):
        _call_torch("clip_grads_with_norm_", parameters, max_norm, total_norm, foreach)
        return
    with torch.no_grad():
        grads = [p.grad for p in listed(parameters) if p.grad is not None]
        _scale(grads, float(max_norm), total_norm, foreach)


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamp the gradients of parameters in place, as :func:`torch.nn.utils.clip_grad_value_` does.

    Dense gradients of float32, float64, bfloat16 and float16 on the CPU run in Go. A NaN stays.

    Args:
        parameters: tensors with gradients of any shape, or one such tensor. Those without a gradient are left out.
        clip_value: c: each element is then between -c and c.
        foreach: as for torch. It selects torch's implementation for gradients that fall back.

    Raises:
        RuntimeError: no parameter has a gradient, or c is finite and too large for the dtype of a gradient.
    """
    if torch.compiler.is_compiling():
        _call_torch("clip_grad_value_", parameters, clip_value, foreach)
        return
    params, clip_value = listed(parameters), float(clip_value)
    done = None
    if _lists.fits_float32(clip_value):
        scalars = -clip_value, clip_value
        flags = 0
        if _LARGEST[0] < abs(clip_value) < math.inf:  # torch raises an error for a dtype for which it is too large
            flags = NOT_FLOAT16 if abs(clip_value) <= _LARGEST[1] else WIDE
        # torch clamps twice with foreach, which it uses by default.
        versions = 2 if foreach or foreach is None else 1
        done = _lists.CLAMP(params, None, scalars, GRADIENTS | flags, versions)
        if type(done) is int and done > 0:
            return
    if type(done) is not bytes:
        _call_torch("clip_grad_value_", params, clip_value, foreach)
        return
    with torch.no_grad():
        for group, together in _groups([p.grad for p in params if p.grad is not None], foreach):

            def clamp(grads: list[Tensor], together: bool = together) -> None:
                if together:
                    torch._foreach_clamp_min_(grads, -clip_value)
                    torch._foreach_clamp_max_(grads, clip_value)
                else:
                    for g in grads:
                        g.clamp_(min=-clip_value, max=clip_value)

            _lists.CLAMP.apply(group, None, scalars, clamp, flags, versions=2 if together else 1)


def as_tensor(norm: float, number: int, widen: bool = False) -> Tensor:
    """A norm as a tensor without dimensions, with the dtype of the gradients: that of a number of gather.c."""
    dtype = OF_NUMBER[number]
    return _SCALARS[torch.float32 if widen and dtype in NARROW else dtype].new_full((), norm)


def widens(name: str, norm_dtype: torch.dtype | None) -> bool:
    """Whether norms of 16-bit tensors are computed in float32, and not rounded.

    Raises:
        ValueError: the dtype is not supported.
    """
    if norm_dtype is not None and norm_dtype is not torch.float32:
        raise ValueError(f"{name}: norm_dtype is {norm_dtype!r}, expected torch.float32 or None")
    return norm_dtype is not None


def _widened(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.float() if t.dtype in NARROW else t for t in tensors]


def _torch_widened(tensors: Any, norm_type: float, error_if_nonfinite: bool, foreach: bool | None) -> Tensor:
    return _torch_norm("get_total_norm", _widened(tensors), norm_type, error_if_nonfinite, foreach)


def _torch_clip_widened(
    params: Any, max_norm: float, norm_type: float, error_if_nonfinite: bool, foreach: bool | None
) -> Tensor:
    grads = [p.grad for p in params if p.grad is not None]
    total = _torch_widened(grads, norm_type, error_if_nonfinite, foreach)
    _call_torch("clip_grads_with_norm_", params, max_norm, total, foreach)
    return total


def _call_torch(name: str, *args: Any) -> Any:
    """Call torch's function."""
    if torch.compiler.is_compiling():  # a compiler may not trace the other context
        with torch.no_grad():
            return _originals.CLIP[name](*args)
    with torch.no_grad(), threads_after_fork():
        return _originals.CLIP[name](*args)


def _torch_norm(name: str, *args: Any) -> Tensor:
    norm: Tensor = _call_torch(name, *args)
    return norm


def _groups(tensors: Any, foreach: bool | None, widen: bool = False) -> list[tuple[list[Tensor], bool]]:
    """Lists of tensors of the same device and dtype, in torch's order, each with whether torch uses foreach for it.

    If ``widen``, 16-bit tensors count as float32.

    Raises:
        RuntimeError: as torch does if foreach is requested on a device without it.
    """
    groups = []
    like = [t.new_empty(0, dtype=torch.float32) if t.dtype in NARROW else t for t in tensors] if widen else tensors
    grouped: Any = torch._C._group_tensors_by_device_and_dtype([like], widen)
    for (device, _), ([group], at) in grouped.items():
        if widen:
            group = [tensors[i] for i in at]
        together = (
            _has_foreach_support(group, device) if foreach is None else foreach and _device_has_foreach_support(device)
        )
        if foreach and not together:
            raise RuntimeError(f"foreach=True was passed, but can't use the foreach API on {device.type} tensors")
        groups.append((group, bool(together)))
    return groups


def _total_norm(tensors: Any, norm_type: float, error_if_nonfinite: bool, foreach: bool | None, widen: bool) -> Tensor:
    """torch's get_total_norm for tensors of which Go supports some."""
    norms: list[Tensor] = []
    for group, together in _groups(tensors, foreach, widen):

        def norms_of(some: list[Tensor], together: bool = together) -> Iterable[Tensor]:
            if widen:
                some = _widened(some)
            if together:
                return torch._foreach_norm(some, norm_type)
            return [torch.linalg.vector_norm(t, norm_type) for t in some]

        norms += _norms(group, norm_type, norms_of, widen)
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(tensors[0].device) for n in norms]), norm_type)
    if error_if_nonfinite and not total.isfinite():
        _call_torch("get_total_norm", _widened(tensors) if widen else tensors, norm_type, True, foreach)  # raises it
    return total


def norms_of(tensors: list[Tensor]) -> list[Tensor]:
    """The 2-norm of each tensor: in its dtype, or in float32 if it has 16 bits."""
    norms: list[Tensor] = []
    for _, some in itertools.groupby(tensors, key=lambda t: (t.dtype, t.device)):
        norms += _norms(list(some), 2.0, lambda rest: map(torch.linalg.vector_norm, _widened(rest)), True)
    return norms


def _norms(
    group: list[Tensor], norm_type: float, fallback: Callable[[list[Tensor]], Iterable[Tensor]], widen: bool
) -> list[Tensor]:
    """The norm of each tensor of a group of one dtype, or if ``widen``, of any that count as float32."""

    def in_go(some: list[Tensor]) -> Any:
        flags = EACH if norm_type == 2 else EACH | FILLED
        done = _lists.NORMS(some, None, (norm_type, order_of_norms(), widen), flags)
        dtype = torch.float32 if some[0].dtype in NARROW and widen else some[0].dtype
        return torch.tensor(done, dtype=dtype, device="cpu").unbind() if type(done) is tuple else done

    done = in_go(group) if norm_type == 2 or norm_type == math.inf else None
    if type(done) is tuple:
        return list(done)
    norms: list[Tensor] = []
    for code, start, end in _lists.runs(done, len(group)):
        some = group[start:end]
        found = in_go(some) if code == GO else None
        norms += found if type(found) is tuple else fallback(some)
    return norms


def _scale(grads: list[Tensor], max_norm: float, total: Tensor, foreach: bool | None) -> None:
    """torch's clip_grads_with_norm_, for gradients of which Go may support some."""
    coefficient = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    groups = _groups(grads, foreach) if grads else []
    factor = coefficient.item() if type(coefficient) is Tensor and coefficient.is_cpu else None
    for group, together in groups:
        of_device = coefficient.to(group[0].device)

        def scale(some: list[Tensor], together: bool = together, of_device: Tensor = of_device) -> None:
            if together:
                torch._foreach_mul_(some, of_device)
            else:
                for g in some:
                    g.mul_(of_device)

        # torch multiplies a gradient without dimensions in the dtype of the coefficient, if that is the wider one.
        for apart, run in itertools.groupby(group, lambda g: g.dim() == 0 and g.dtype != coefficient.dtype):
            if apart or factor is None:
                scale(list(run))
            else:
                _lists.SCALE.apply(list(run), None, (factor,), scale)
