"""Muon: momentum made orthogonal. torch 2.9 and later have it."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz as _newton_schulz

from goptim import _native
from goptim._step import _WORDS, GoStep, _Table

# Go's numbers for the names (LRAdjustment in goptim/muon.go). torch leaves lr as it is under any other name.
_ADJUSTMENTS = {None: 0, "original": 0, "match_rms_adamw": 1, "spectral_unclamped": 2}
_NO_ADJUSTMENT = 3

# Where the update's address is in a row.
_UPDATE = 6

# Matrices beyond this many elements take torch longer to multiply than to be called; and a batch's own bound.
_SMALL = 1 << 16
_BATCH = 1 << 22

# No product of smaller numbers is too large for float32 or bfloat16.
_LARGE = 1e18

# So many sums are tried out: whether a product is fused into one shows in one of a hundred, if they cancel to 8 bits.
_TRIED = 1 << 11


class Muon(GoStep, torch.optim.Muon):
    r"""torch.optim.Muon with its elementwise work in Go: the same arguments, state and bits.

    .. math::
        B_t &= \mu B_{t-1} + (1 - \mu) g_t \\
        \widetilde{B}_t &= (1 - \mu) g_t + \mu B_t \text{ with nesterov, else } B_t \\
        O_t &= \mathrm{NS}^{(a,b,c)}_k(\widetilde{B}_t; \varepsilon) \\
        \theta_t &= (1 - \gamma\lambda) \theta_{t-1} - \gamma\, \mathrm{ratio}(A, B)\, O_t

    NS divides by the norm, at least :math:`\varepsilon`, and repeats :math:`X \leftarrow aX + (bXX^T + c(XX^T)^2)X` in
    bfloat16. Its matrix products, which are nearly all of the time, are torch's own. Small matrices of one shape are
    multiplied as one batch where that has the same bits, which is tried out once for every size of a batch.

    The state of a parameter is ``momentum_buffer``. Parameters are float32 or float64 matrices on the CPU; others are
    updated by torch's own step, and so are groups whose ``lr`` is a Tensor.

    Jordan et al., `Muon: An optimizer for hidden layers in neural networks
    <https://kellerjordan.github.io/posts/muon/>`_; Liu et al., `Muon is Scalable for LLM Training
    <https://arxiv.org/abs/2502.16982>`_, for weight decay and ``adjust_lr_fn="match_rms_adamw"``.
    """

    twin = torch.optim.Muon
    counts = False
    elementwise = False

    def columns(self, group: dict[str, Any]) -> tuple[str | None, ...]:
        return ("momentum_buffer",)

    def scalars(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """What must be numbers for Go to take the group; None among them where torch has an error to raise."""
        steps, coefficients = group["ns_steps"], group["ns_coefficients"]
        sound = isinstance(steps, int) and steps < 100 and len(coefficients) == 3
        return (
            group["momentum"],
            bool(group["nesterov"]),
            group["lr"],
            group["weight_decay"],
            group["eps"],
            *(coefficients if sound else [None]),
        )

    def go(self, tables: list[_Table]) -> None:
        for table in tables:
            _check_scalars(table)
        for table in tables:
            self._go(table)

    def _go(self, table: _Table) -> None:
        core, group, threads = _native.core(), table.group, torch.get_num_threads()
        assert core is not None
        for p in table.written[::2]:
            if p.dim() != 2:
                raise ValueError(f"{table._describe(p)}: expected a matrix")
        orthogonalize = (tuple(group["ns_coefficients"]), group["ns_steps"], group["eps"])
        adjustment = _ADJUSTMENTS.get(group["adjust_lr_fn"], _NO_ADJUSTMENT)
        with torch.no_grad():
            for params, words in _batches(table):
                first, n, at = params[0], len(params), words.buffer_info()[0]
                update = torch.empty_like(first) if n == 1 else first.new_empty((n, *first.shape))
                for i, matrix in enumerate([update] if n == 1 else update):
                    words[i * _WORDS + _UPDATE] = matrix.data_ptr()
                core.MuonMomentum(at, n, threads, group["momentum"], bool(group["nesterov"]))
                if n == 1:
                    update.copy_(_newton_schulz(update, *orthogonalize))
                elif _batch_is_exact(update.shape, orthogonalize[0], *_ways()):
                    update.copy_(_newton_schulz_batch(update, *orthogonalize))
                else:
                    for matrix in update:
                        matrix.copy_(_newton_schulz(matrix, *orthogonalize))
                core.MuonUpdate(at, n, threads, *first.shape, group["lr"], group["weight_decay"], adjustment)


def _check_scalars(table: _Table) -> None:
    """Raise what torch raises where Python or torch cannot compute with a group's numbers: with torch's operations."""
    group = table.group
    coefficients = tuple(group["ns_coefficients"])
    numbers = (group["lr"], group["momentum"], group["eps"], *coefficients)
    extreme = any(not abs(x) <= _LARGE for x in numbers)
    for p in table.written[::2]:
        if p.dim() == 2 and (extreme or not p.numel()):
            one = torch.ones(1, 1, dtype=p.dtype, device="cpu")
            one.lerp(one, 1 - group["momentum"])
            if group["nesterov"]:
                one.lerp(one, group["momentum"])
            _newton_schulz(one, coefficients, group["ns_steps"], group["eps"])
            one.add(one, alpha=-_adjust_lr(group["lr"], group["adjust_lr_fn"], p.shape))


def _batches(table: _Table) -> Iterator[tuple[list[Tensor], array[int]]]:
    """The parameters of a table, and their rows: small ones of one shape together, others alone."""
    params = table.written[::2]  # each is followed by its momentum_buffer
    shared = _share_memory(table)  # then their order matters
    together: dict[object, list[int]] = {}
    for i, p in enumerate(params):
        small = p.is_contiguous() and p.numel() <= _SMALL and not shared
        if p.numel():
            together.setdefault((p.shape, p.dtype) if small else i, []).append(i)
    for rows in together.values():
        most = max(1, _BATCH // params[rows[0]].numel())
        for start in range(0, len(rows), most):
            batch = rows[start : start + most]
            words = array("Q")
            for i in batch:
                words += table.words[i * _WORDS : (i + 1) * _WORDS]
            yield [params[i] for i in batch], words


def _share_memory(table: _Table) -> bool:
    """Whether a parameter or a momentum shares memory with a tensor of another row, or with its own gradient."""
    ranges = sorted(
        (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), written)
        for tensors, written in ((table.written, True), (table.grads, False))
        for t in tensors
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


def _ways() -> tuple[object, ...]:
    """What decides how torch multiplies matrices, beside their shapes."""
    return torch.get_num_threads(), torch.backends.mkldnn.enabled, torch.is_autocast_enabled("cpu")


@functools.lru_cache(maxsize=4096)
def _batch_is_exact(shape: torch.Size, coefficients: tuple[float, float, float], *ways: object) -> bool:
    """Whether a batch's products have the bits of their matrices' own, here and now.

    torch may sum them in another order, or fuse what it adds to them. So they are tried out on matrices whose products
    cancel, but for what rounding has left, and that is another number in another order; and on sums of a product and
    a matrix that cancel each other.
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

    def laid_out(x: Tensor) -> list[Tensor]:
        """As it comes, and as the transpose of a tall matrix."""
        return [x, x.mT.contiguous().mT]

    def exact(start: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float) -> bool:
        one_by_one = [torch.addmm(*terms, beta=beta, alpha=alpha) for terms in zip(start, left, right, strict=True)]
        return torch.equal(torch.baddbmm(start, left, right, beta=beta, alpha=alpha), torch.stack(one_by_one))

    def opposite(left: Tensor, right: Tensor, beta: float, alpha: float) -> Tensor:
        product = torch.stack([x @ y for x, y in zip(left.float(), right.float(), strict=True)])
        return (product * (-alpha / (beta or 1))).bfloat16()

    left, right = cancelling(m, k, m)
    for x, y in zip(laid_out(left), laid_out(right.mT), strict=True):
        if not torch.equal(x @ y.mT, torch.stack([p @ q.T for p, q in zip(x, y, strict=True)])):
            return False
    left, right = cancelling(m, m, m)
    if not exact(normal(n, m, m), left, right, b, c):
        return False
    left, right = cancelling(m, m, k)
    starts = laid_out(normal(n, m, k))
    if not all(exact(start, left, x, a, 1) for start, x in zip(starts, laid_out(right), strict=True)):
        return False
    for _ in range(1 + _TRIED // (n * m * m)):
        left, right = normal(n, m, m), normal(n, m, m)
        if not exact(opposite(left, right, b, c), left, right, b, c):
            return False
        right = normal(n, m, k)
        starts = laid_out(opposite(left, right, a, 1))
        if not all(exact(start, left, x, a, 1) for start, x in zip(starts, laid_out(right), strict=True)):
            return False
    return True
