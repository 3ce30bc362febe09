"""Moving averages of lists of tensors, in Go: exponential averages, and the targets of reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from goptim import _lists
from goptim._fallback import threads_after_fork
from goptim._lists import listed

__all__ = ["ema_", "polyak_update"]


def ema_(
    averages: Tensor | Iterable[Tensor], params: Tensor | Iterable[Tensor], decay: float, form: str = "lerp"
) -> None:
    r"""Update exponential moving averages of tensors in place, each by the tensor at its index in ``params``.

    The forms differ in rounding alone:

    - ``"lerp"``: :math:`a \leftarrow a + (1-d)(p - a)`, exactly ``a.lerp_(p, 1 - d)``, as
      :func:`torch.optim.swa_utils.get_ema_multi_avg_fn` and timm compute it. Its end point is used for 1 - d ≥ 0.5.
    - ``"mul_add"``: :math:`a \leftarrow d\,a + (1-d)\,p`, with three roundings, as
      :func:`torch.optim.swa_utils.get_ema_avg_fn` computes it.

    Pairs of dense float32 or float64 tensors on the CPU with the same shape, dtype and strides run in Go. Others fall
    back to torch in the same call; averages of integers are ``d * a + (1 - d) * p``, converted to integers. Gradients
    are not recorded.

    Args:
        averages: tensors of any shape, or one tensor. They are written.
        params: as many tensors, of the same shapes.
        decay: d, from 0 to 1. Averages are copies of the parameters if it is 0, and do not change if it is 1.
        form: one of the above.

    Raises:
        ValueError: the lists differ in length, or the decay or the form is not one of the above. Nothing has changed.
        RuntimeError: torch cannot compute the average of some pair, for example because their shapes differ. Averages
            before it have changed.
    """
    if form not in _FORMS:
        raise ValueError(f"ema_: form {form!r}, expected {' or '.join(map(repr, _FORMS))}")
    if not 0 <= decay <= 1:
        raise ValueError(f"Invalid decay value {decay} provided. Please provide a value in [0,1] range.")
    written, read = listed(averages), listed(params)
    if len(written) != len(read):
        raise ValueError(f"ema_: {len(written)} averages, expected as many as parameters, which are {len(read)}")
    kind, fallback, scalar = _FORMS[form]
    _apply(kind, written, read, scalar(decay), lambda some, others: fallback(some, others, decay))


def polyak_update(params: Iterable[Tensor], target_params: Iterable[Tensor], tau: float) -> None:
    r"""Update the parameters of a target network in place: :math:`t \leftarrow (1 - \tau)\,t + \tau\,p`.

    The arguments and the results are exactly those of :func:`stable_baselines3.common.utils.polyak_update`: t is first
    multiplied, then the product of τ and p is added with one rounding. As there, the version counters of the targets do
    not increase, so a graph that autograd recorded before uses the new values. Pairs of dense float32 or float64
    tensors on the CPU with the same shape, dtype and strides run in Go, and others fall back to torch in the same call.

    Args:
        params: tensors of any shape.
        target_params: as many tensors, of the same shapes. They are written.
        tau: τ. 1 copies the parameters, except that a NaN or an infinity in a target stays a NaN.

    Raises:
        ValueError: the iterables differ in length. No target was changed.
        RuntimeError: torch cannot update some target, for example because it has integers and τ is a float. Targets
            before it have changed.

    Lillicrap et al., `Continuous control with deep reinforcement learning <https://arxiv.org/abs/1509.02971>`_,
    Algorithm 1.
    """
    read, targets = listed(params), listed(target_params)
    if len(read) != len(targets):
        raise ValueError("Iterables have different lengths")
    _apply(_lists.POLYAK, targets, read, tau, lambda some, others: _torch_polyak(some, others, tau))


def _apply(
    kind: _lists.ListKind,
    averages: Sequence[Tensor],
    params: Sequence[Tensor],
    scalar: Any,
    fallback: Callable[[Sequence[Tensor], Sequence[Tensor]], None],
) -> None:
    if torch.compiler.is_compiling() or not _lists.fits_float32(scalar):
        with torch.no_grad():
            fallback(averages, params)
        return
    done = kind(averages, params, (scalar,))
    if type(done) is not int:
        with torch.no_grad(), threads_after_fork():
            kind.apply(averages, params, (scalar,), fallback)


def _torch_lerp(averages: Sequence[Tensor], params: Sequence[Tensor], decay: float) -> None:
    pairs = list(zip(averages, params, strict=True))
    lerps = [(a, p) for a, p in pairs if a.is_floating_point() or a.is_complex()]
    if lerps:
        torch._foreach_lerp_([a for a, _ in lerps], [p for _, p in lerps], 1 - decay)
    for a, p in pairs:
        if not (a.is_floating_point() or a.is_complex()):
            a.copy_(a * decay + p * (1 - decay))


def _torch_mul_add(averages: Sequence[Tensor], params: Sequence[Tensor], decay: float) -> None:
    for average, p in zip(averages, params, strict=True):
        average.detach().copy_(decay * average + (1 - decay) * p)


def _torch_polyak(targets: Sequence[Tensor], params: Sequence[Tensor], tau: float) -> None:
    for target, p in zip(targets, params, strict=True):
        target.data.mul_(1 - tau)
        torch.add(target.data, p.data, alpha=tau, out=target.data)


# For each form: the kind, torch's operations, and the scalar of the kind.
_FORMS: dict[str, tuple[_lists.ListKind, Callable[..., None], Callable[[float], float]]] = {
    "lerp": (_lists.LERP, _torch_lerp, lambda decay: 1 - decay),
    "mul_add": (_lists.MUL_ADD, _torch_mul_add, lambda decay: decay),
}
