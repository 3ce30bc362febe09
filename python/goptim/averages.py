"""Moving averages of lists of tensors, in Go: exponential averages, and the targets of reinforcement learning."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from goptim import _dtensor, _lists
from goptim._eligible import NARROW
from goptim._fallback import threads_after_fork
from goptim._lists import listed

__all__ = ["EMA", "ema_", "polyak_update"]


def ema_(
    averages: Tensor | Iterable[Tensor],
    params: Tensor | Iterable[Tensor],
    decay: float,
    form: str = "lerp",
    *,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    seed: int = 0,
    step: int | None = None,
) -> None:
    r"""Update exponential moving averages of tensors in place, each by the tensor at its index in ``params``.

    The forms differ in rounding alone:

    - ``"lerp"``: :math:`a \leftarrow a + (1-d)(p - a)`, exactly ``a.lerp_(p, 1 - d)``, as
      :func:`torch.optim.swa_utils.get_ema_multi_avg_fn` and timm compute it. Its end point is used for 1 - d ≥ 0.5.
    - ``"mul_add"``: :math:`a \leftarrow d\,a + (1-d)\,p`, with three roundings, as
      :func:`torch.optim.swa_utils.get_ema_avg_fn` computes it.

    Pairs of dense tensors of float32, float64, bfloat16 or float16 on the CPU with the same shape, dtype and strides
    run in Go. As in torch, the form ``"lerp"`` rounds an average of 16 bits once, and ``"mul_add"`` three times. Other
    pairs fall back to torch in the same call; averages of integers are ``d * a + (1 - d) * p``, converted to integers.
    Gradients are not recorded.

    An average of 16 bits that is rounded to the nearest number does not follow small changes: with d = 0.999, one of
    bfloat16 stays as it is unless the parameter differs from it by more than its own magnitude. ``"stochastic"`` rounds
    up or down with the probabilities that make the expected value exact, as an optimizer with ``rounding="stochastic"``
    does (``docs/half.md``) and, with other random numbers, timm's ModelEmaV3. Tensors of other dtypes are not affected.

    Args:
        averages: tensors of any shape, or one tensor. They are written.
        params: as many tensors, of the same shapes.
        decay: d, from 0 to 1. Averages are copies of the parameters if it is 0, and do not change if it is 1.
        form: one of the above.
        rounding: of averages of 16 bits; ``"stochastic"`` for the form ``"lerp"`` alone.
        seed: of the random numbers of ``"stochastic"``, from 0 to 2**64 - 1.
        step: for ``"stochastic"``, the number of the update, from 1. The random numbers depend on it, on the index of
            an average and on the element, so every update should have another one.

    Raises:
        ValueError: the lists differ in length; the decay, the form, the rounding, the seed or the step is not one of
            the above; or an average of 16 bits is rounded stochastically, and cannot run in Go. Nothing has changed.
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
    noise = _noise(form, rounding, seed, step)
    kind, fallback, scalar = _FORMS[form]
    _apply(kind, written, read, scalar(decay), lambda some, others: fallback(some, others, decay), noise)


def _noise(form: str, rounding: str, seed: int, step: int | None) -> tuple[int, int, int] | None:
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"ema_: rounding {rounding!r}, expected 'nearest' or 'stochastic'")
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise ValueError(f"ema_: seed {seed!r}, expected an int from 0 to 2**64 - 1")
    if rounding == "nearest":
        return None
    if form != "lerp":
        raise ValueError(f"ema_: rounding 'stochastic' with the form {form!r}, expected the form 'lerp'")
    if type(step) is not int or not 1 <= step < 1 << 53:
        raise ValueError(f"ema_: step {step!r} with rounding 'stochastic', expected the number of the update, from 1")
    return seed, step, 0


class EMA:
    r"""Exponential moving averages of parameters, for ``optimizer.step(ema=…)`` or on their own.

    The averages begin as copies of the parameters. Each update is :func:`ema_` with the form ``"lerp"``:
    :math:`a \leftarrow a + (1-d)(p - a)`, exactly as :func:`torch.optim.swa_utils.get_ema_multi_avg_fn` computes it.
    ``optimizer.step(ema=ema)`` updates them in the pass that writes the parameters; :meth:`update` does it separately.

    The averages are evaluated in place of the parameters: ``with ema.average_parameters(): evaluate(model)``.

    Args:
        params: parameters, or one parameter. They do not need to be those of one optimizer.
        decay: d, from 0 to 1.
        rounding, seed: those of :func:`ema_`, for averages of 16 bits. With ``"stochastic"``, a step updates the
            averages after the parameters, and not in the same pass.

    Attributes:
        params: a tuple of the parameters.
        averages: a tuple of tensors, each the average of the parameter at its index.
        decay: d, which may be changed between updates.
        updates: the number of updates with ``"stochastic"``, on which the random numbers depend.

    Raises:
        ValueError: the decay is not from 0 to 1, or the rounding or the seed is not one of :func:`ema_`.
    """

    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed = 0
    updates = 0

    def __init__(
        self,
        params: Tensor | Iterable[Tensor],
        decay: float,
        *,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
    ) -> None:
        self.decay = decay
        _noise("lerp", rounding, seed, 1)
        self.rounding, self.seed = rounding, seed
        self.params: tuple[Tensor, ...] = tuple(listed(params))
        with torch.no_grad():
            self.averages: tuple[Tensor, ...] = tuple(
                [p.detach().clone(memory_format=torch.preserve_format) for p in self.params]
            )
        # The result of of_step for some parameters, and the attributes that it is for.
        self._found: tuple[tuple[Any, ...], tuple[Tensor | None, ...], list[int], Any, Any] | None = None

    @property
    def decay(self) -> float:
        return self._decay

    @decay.setter
    def decay(self, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"EMA: decay is {decay!r}, expected a number from 0 to 1")
        self._decay = decay

    def update(self) -> None:
        """Update all averages by the parameters."""
        if self.rounding == "nearest":
            ema_(self.averages, self.params, self._decay)
            return
        step = self.updates + 1
        ema_(self.averages, self.params, self._decay, rounding=self.rounding, seed=self.seed, step=step)
        self.updates = step

    def copy_to(self, params: Tensor | Iterable[Tensor] | None = None) -> None:
        """Copy the averages to parameters: those that are averaged, or as many others, for example of another model.

        Raises:
            ValueError: the number of parameters is another one. Nothing has changed.
        """
        targets = self.params if params is None else listed(params)
        if len(targets) != len(self.averages):
            raise ValueError(f"EMA.copy_to: {len(targets)} parameters, expected {len(self.averages)}")
        with torch.no_grad():
            for p, average in zip(targets, self.averages, strict=True):
                p.copy_(average)

    def swap(self) -> None:
        """Exchange the values of the averages and of the parameters. A second call restores them."""
        with torch.no_grad():
            for p, average in zip(self.params, self.averages, strict=True):
                value = p.detach().clone()
                p.copy_(average)
                average.copy_(value)

    @contextlib.contextmanager
    def average_parameters(self) -> Iterator[None]:
        """A context in which the parameters have the values of their averages. Its end restores both."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, Any]:
        """The decay and the averages, by the names of torch-ema: ``decay`` and ``shadow_params``.

        With stochastic rounding also ``num_updates``.
        """
        state: dict[str, Any] = {"decay": self._decay, "shadow_params": list(self.averages)}
        return state if self.rounding == "nearest" else {**state, "num_updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy what :meth:`state_dict` returned to the averages.

        Raises:
            ValueError: the number of averages or one of their shapes is another one. Nothing has changed.
        """
        loaded = list(state_dict["shadow_params"])
        if [t.shape for t in loaded] != [t.shape for t in self.averages]:
            raise ValueError(
                f"EMA.load_state_dict: averages of shapes {[tuple(t.shape) for t in loaded]}, "
                f"expected {[tuple(t.shape) for t in self.averages]}"
            )
        self.decay = state_dict["decay"]
        if self.rounding != "nearest":
            self.updates = int(state_dict.get("num_updates") or 0)
        with torch.no_grad():
            for average, t in zip(self.averages, loaded, strict=True):
                average.copy_(t)

    @property
    def weight(self) -> float:
        """The weight of a parameter in an update."""
        return 1 - self._decay

    @property
    def written_alone(self) -> bool:
        """Whether an update is that of this class, so that a step may do it."""
        return type(self).update is EMA.update and self.rounding == "nearest" and _lists.fits_float32(self._decay)

    def of_step(self, params: tuple[Any, ...]) -> tuple[tuple[Tensor | None, ...], list[int]]:
        """The average of each parameter of a step, or None; and the indices of parameters that are not among them."""
        found = self._found
        if (
            found is None
            or found[3] is not self.params
            or found[4] is not self.averages
            or len(found[0]) != len(params)
            or not all(map(operator.is_, found[0], params))
        ):
            at = {id(p): i for i, p in enumerate(self.params)}
            averages = tuple([self.averages[at[id(p)]] if id(p) in at else None for p in params])
            stepped = {id(p) for p in params}
            rest = [i for i, p in enumerate(self.params) if id(p) not in stepped or at[id(p)] != i]
            found = self._found = params, averages, rest, self.params, self.averages
        return found[1], found[2]

    def update_rest(self, params: tuple[Any, ...], rows: int) -> None:
        """Update the averages that a step of parameters has left out, of which it has updated a number."""
        averages, rest = self.of_step(params)
        if rows < len(params):
            left = [(a, p) for a, p in zip(averages, params, strict=True) if a is not None and p.grad is None]
            if left:
                ema_([a for a, _ in left], [p for _, p in left], self._decay)
        if rest:
            ema_([self.averages[i] for i in rest], [self.params[i] for i in rest], self._decay)


def polyak_update(params: Iterable[Tensor], target_params: Iterable[Tensor], tau: float) -> None:
    r"""Update the parameters of a target network in place: :math:`t \leftarrow (1 - \tau)\,t + \tau\,p`.

    The arguments and the results are exactly those of :func:`stable_baselines3.common.utils.polyak_update`: t is first
    multiplied, then the product of τ and p is added with one rounding. As there, the version counters of the targets do
    not increase, so a graph that autograd recorded before uses the new values. Pairs of dense float32 or float64
    tensors on the CPU with the same shape, dtype and strides run in Go, and others fall back to torch in the same call.
    16-bit tensors do so because torch rounds the product of the last elements of each thread, but not of others.

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
    noise: tuple[int, int, int] | None = None,
) -> None:
    if torch.compiler.is_compiling() or not _lists.fits_float32(scalar):
        if noise is not None and any(a.dtype in NARROW for a in averages):
            raise ValueError("ema_: rounding 'stochastic' needs Go, which cannot run here")
        with torch.no_grad():
            fallback(averages, params)
        return
    done = kind(averages, params, (scalar,), noise=noise)
    if type(done) is not int:
        with torch.no_grad(), threads_after_fork():
            try:
                kind.apply(averages, params, (scalar,), fallback, noise=noise)
            except ValueError as e:
                if noise is None:
                    raise
                raise ValueError(f"ema_: averages: {e}") from e


def _torch_lerp(averages: Sequence[Tensor], params: Sequence[Tensor], decay: float) -> None:
    pairs = list(zip(averages, params, strict=True))
    lerps = [(a, p) for a, p in pairs if a.is_floating_point() or a.is_complex()]
    if any(map(_dtensor.is_dtensor, averages)):  # torch has no list of DTensors and others
        for a, p in lerps:
            a.lerp_(p, 1 - decay)
    elif lerps:
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
