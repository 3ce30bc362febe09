"""Muon: orthogonalized momentum, for torch 2.9 and later."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz as _newton_schulz

from goptim import _originals, _storage
from goptim._eligible import NARROW
from goptim._kinds import Kind, kind_of
from goptim._parts import Asked
from goptim._step import ASK, CHECK, GoStep

# Go's constants for the names (LRAdjustment in goptim/muon.go). With any other name, torch does not adjust lr.
_ADJUSTMENTS = {None: 0, "original": 0, "match_rms_adamw": 1, "spectral_unclamped": 2}
_NO_ADJUSTMENT = 3

# Above this many elements, a matrix product takes longer than its call overhead. Below: the limit of a batch.
_SMALL = 1 << 16
_BATCH = 1 << 22

# A product of smaller numbers does not overflow float32 or bfloat16.
_LARGE = 1e18

# The number of sums that are tried out. One of a hundred shows whether a product is fused, if they cancel to 8 bits.
_TRIED = 1 << 11


class Muon(GoStep, _originals.Muon):
    r"""torch.optim.Muon with its elementwise work in Go: the same arguments, state and exact results.

    .. math::
        B_t &= \mu B_{t-1} + (1 - \mu) g_t \\
        \widetilde{B}_t &= (1 - \mu) g_t + \mu B_t \text{ with nesterov, else } B_t \\
        O_t &= \mathrm{NS}^{(a,b,c)}_k(\widetilde{B}_t; \varepsilon) \\
        \theta_t &= (1 - \gamma\lambda) \theta_{t-1} - \gamma\, \mathrm{ratio}(A, B)\, O_t

    NS divides by the norm, at least :math:`\varepsilon`, and repeats :math:`X \leftarrow aX + (bXX^T + c(XX^T)^2)X` in
    bfloat16. Its matrix products, which take nearly all of the time, are torch's own. Small matrices with the same
    shape are multiplied in a batch if the results are exact, which is tried out once per size of a batch.

    The state of a parameter is ``momentum_buffer``. Float32, float64, bfloat16 and float16 matrices on the CPU run in
    Go. Other parameters fall back to torch, and so do groups whose ``lr`` is a Tensor.

    For 16-bit parameters, the momentum and the step are computed in float32, and each element of the parameter and of
    ``momentum_buffer`` is rounded once. The update is rounded once, to bfloat16, before the matrix products. torch
    rounds after every operation, and without ``nesterov`` it normalizes a bfloat16 ``momentum_buffer`` itself.

    Jordan et al., `Muon: An optimizer for hidden layers in neural networks
    <https://kellerjordan.github.io/posts/muon/>`_; Liu et al., `Muon is Scalable for LLM Training
    <https://arxiv.org/abs/2502.16982>`_, for weight decay and ``adjust_lr_fn="match_rms_adamw"``.
    """

    elementwise = False

    @property
    def kind(self) -> Kind:
        """The first half of a step. The second half applies the updates that torch orthogonalizes in between."""
        return kind_of("MuonMomentum")

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """What else must be numbers if the group runs in Go; None among them where torch has an error to raise."""
        steps, coefficients = group["ns_steps"], group["ns_coefficients"]
        count = _as_index(steps)
        sound = count < 100 and len(coefficients) == 3
        return (
            group["lr"],
            group["weight_decay"],
            group["eps"],
            *(coefficients if sound else [None]),
            count,
            _ADJUSTMENTS.get(group["adjust_lr_fn"], _NO_ADJUSTMENT),
        )

    def _go(self, groups: tuple[Asked, ...], threads: int | None = None, kind: Kind | None = None) -> Any:
        done = super()._go(groups, ASK)  # before the first write
        if type(done) is int and threads != ASK:
            firsts = list(itertools.accumulate((len(group[0]) for group in groups), initial=0))
            work = [(group, list(self._rows(i, firsts[i], group))) for i, group in enumerate(groups)]
            for (_, options, extra), rows in work:
                self._check_scalars(rows, options, extra)
            for group, rows in work if threads != CHECK else ():
                if rows:
                    self._step_matrices(rows, *group[1:])
        return done

    def _rows(self, index: int, first: int, group: Asked) -> Iterator[tuple[Any, ...]]:
        """The rows of a group's parameters that have a gradient. The first one has the given index."""
        storage = _storage.storage_of(group[1])
        for i, x in enumerate(group[0]):
            row = x if type(x) is tuple and len(x) > 2 else self._row(x, first + i, storage)
            p, g = row[:2]
            if g is None:
                continue
            if p.dim() != 2:
                raise ValueError(
                    f"{type(self).__name__}: parameter {i} of group {index}, of shape {tuple(p.shape)} and {p.dtype}: "
                    "expected a matrix"
                )
            yield row

    def _row(self, x: Any, place: int, storage: _storage.Storage | None) -> tuple[Any, ...]:
        """The row of a parameter that gather.c supports. x may be a pair of it and its index, which else is place."""
        p, place = x if type(x) is tuple else (x, place)
        state = self.state.get(p, {})
        row = (p, p.grad, None, state.get("momentum_buffer"), None, None)
        if storage is None:
            return row
        extra = storage.extra(p)
        step = state.get("step") if storage.counts(p) else None
        return (*row[:2], step, *row[3:], None if extra is None else state.get(extra[0]), place)

    @torch.no_grad()
    def _check_scalars(self, rows: list[tuple[Any, ...]], options: dict[str, Any], extra: tuple[Any, ...]) -> None:
        """Raise what torch's operations raise where they cannot compute with a group's numbers."""
        momentum, nesterov = options["momentum"], options["nesterov"]
        lr, _, eps, a, b, c, steps, adjustment = extra
        extreme = any(not abs(x) <= _LARGE for x in (lr, momentum, eps, a, b, c))
        name = next((name for name, n in _ADJUSTMENTS.items() if n == adjustment), "other")
        for p, *_ in rows:
            if extreme or not p.numel():
                one = torch.ones(1, 1, dtype=torch.float32 if p.dtype in NARROW else p.dtype, device="cpu")
                one.lerp(one, 1 - momentum)
                if nesterov:
                    one.lerp(one, momentum)
                _newton_schulz(one, (a, b, c), steps, eps)
                one.add(one, alpha=-_adjust_lr(lr, name, p.shape))

    @torch.no_grad()
    def _step_matrices(self, rows: list[tuple[Any, ...]], options: dict[str, Any], extra: tuple[Any, ...]) -> None:
        """A group's step: its momentum in Go, the matrix products in torch, the update in Go."""
        lr, weight_decay, eps, a, b, c, steps, adjustment = extra
        update_options = {"lr": lr, "weight_decay": weight_decay, "adjust_lr_fn": adjustment, **_storage.given(options)}
        orthogonalize = ((a, b, c), steps, eps)
        for batch in _batches(rows):
            first, n = batch[0][0], len(batch)
            dtype = torch.bfloat16 if first.dtype in NARROW else first.dtype
            update = torch.empty_like(first, dtype=dtype) if n == 1 else first.new_empty((n, *first.shape), dtype=dtype)
            given = tuple(
                [(*row[:4], x, *row[5:]) for row, x in zip(batch, [update] if n == 1 else update, strict=True)]
            )
            self._half("MuonMomentum", given, options, ())
            if n == 1:
                update.copy_(_newton_schulz(update, *orthogonalize))
            elif _batch_is_exact(update.shape, orthogonalize[0], *_settings()):
                update.copy_(_newton_schulz_batch(update, *orthogonalize))
            else:
                for matrix in update:
                    matrix.copy_(_newton_schulz(matrix, *orthogonalize))
            self._half("MuonUpdate", given, update_options, tuple(first.shape))

    def _half(self, name: str, rows: tuple[Any, ...], options: dict[str, Any], extra: tuple[Any, ...]) -> None:
        done = super()._go(((rows, options, extra),), None, kind_of(name))
        if type(done) is not int:
            raise RuntimeError(
                f"{type(self).__name__}: a parameter, its gradient or its state has changed during the step"
            )


def _as_index(steps: Any) -> int:
    """The number of steps; 100, which is too large, if it is not an integer. torch raises the error."""
    try:
        return operator.index(steps)
    except TypeError:
        return 100


def _batches(rows: list[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Group the rows of small parameters by shape; other rows are alone."""
    params = [row[0] for row in rows]
    shared = _share_memory(rows)  # in this case the order matters
    together: dict[object, list[tuple[Any, ...]]] = {}
    for i, (row, p) in enumerate(zip(rows, params, strict=True)):
        small = p.is_contiguous() and p.numel() <= _SMALL and not shared
        if p.numel():
            together.setdefault((p.shape, p.dtype) if small else i, []).append(row)
    for same_shape in together.values():
        most = max(1, _BATCH // same_shape[0][0].numel())
        for start in range(0, len(same_shape), most):
            yield same_shape[start : start + most]


def _share_memory(rows: list[tuple[Any, ...]]) -> bool:
    """Whether what is written for a row shares memory with another row, or with its own gradient."""
    ranges = sorted(
        (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), written)
        for p, g, step, momentum, _, _, *more in rows
        for t, written in ((p, True), (momentum, True), (g, False), *((t, True) for t in (step, *more[:1])))
        if t is not None
    )
    end = end_of_written = 0
    for start, stop, written in ranges:
        if start < stop and start < (end if written else end_of_written):
            return True
        end = max(end, stop)
        if written:
            end_of_written = max(end_of_written, stop)
    return False


def _newton_schulz_batch(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """torch's Newton-Schulz on a stack of matrices."""
    x = x.to(torch.bfloat16, copy=True)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for matrix in x:
        matrix.div_(matrix.norm().clamp(min=eps))
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _settings() -> tuple[object, ...]:
    """The settings that decide how torch multiplies matrices."""
    return torch.get_num_threads(), torch.backends.mkldnn.enabled, torch.is_autocast_enabled("cpu")


@functools.lru_cache(maxsize=4096)
def _batch_is_exact(shape: torch.Size, coefficients: tuple[float, float, float], *settings: object) -> bool:
    """Whether a batched product is exact: bit-for-bit that of single matrices, with the current settings.

    torch may sum a batch in another order, or fuse an addition into it. So it is tried out with matrices whose products
    cancel except for rounding errors, which depend on the order, and with a product and an added matrix that cancel.
    """
    n, m, k = shape[0], min(shape[1:]), max(shape[1:])
    a, b, c = coefficients
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").bfloat16()

    def cancelling(rows: int, inner: int, cols: int) -> tuple[Tensor, Tensor]:
        left, right, rest = normal(n, rows, inner // 2) * 1024, normal(n, inner // 2, cols) * 1024, inner % 2
        order = torch.randperm(inner, generator=generator, device="cpu")
        lefts = torch.cat([left, left, normal(n, rows, rest)], 2)
        rights = torch.cat([right, -right, normal(n, rest, cols)], 1)
        return lefts[:, :, order].contiguous(), rights[:, order].contiguous()

    def with_strides(x: Tensor) -> list[Tensor]:
        """The tensor as it is, and with the strides of a transposed matrix."""
        return [x, x.mT.contiguous().mT]

    def exact(start: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float) -> bool:
        one_by_one = [torch.addmm(*terms, beta=beta, alpha=alpha) for terms in zip(start, left, right, strict=True)]
        return torch.equal(torch.baddbmm(start, left, right, beta=beta, alpha=alpha), torch.stack(one_by_one))

    def opposite(left: Tensor, right: Tensor, beta: float, alpha: float) -> Tensor:
        product = torch.stack([x @ y for x, y in zip(left.float(), right.float(), strict=True)])
        return (product * (-alpha / (beta or 1))).bfloat16()

    left, right = cancelling(m, k, m)
    for x, y in zip(with_strides(left), with_strides(right.mT), strict=True):
        if not torch.equal(x @ y.mT, torch.stack([p @ q.T for p, q in zip(x, y, strict=True)])):
            return False
    left, right = cancelling(m, m, m)
    if not exact(normal(n, m, m), left, right, b, c):
        return False
    left, right = cancelling(m, m, k)
    starts = with_strides(normal(n, m, k))
    if not all(exact(start, left, x, a, 1) for start, x in zip(starts, with_strides(right), strict=True)):
        return False
    for _ in range(1 + _TRIED // (n * m * m)):
        left, right = normal(n, m, m), normal(n, m, m)
        if not exact(opposite(left, right, b, c), left, right, b, c):
            return False
        right = normal(n, m, k)
        starts = with_strides(opposite(left, right, a, 1))
        if not all(exact(start, left, x, a, 1) for start, x in zip(starts, with_strides(right), strict=True)):
            return False
    return True
