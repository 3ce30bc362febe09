"""The optimizers that Hugging Face's transformers made known, with their arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _native, _numbers, _parts
from goptim._eligible import (
    PLAIN,
    SHARED,
    lacks_memory,
    memory_of,
    reason_compiling,
    reason_of_gradient,
    reason_of_numbers,
    reason_of_optimizer,
    reason_of_tensor,
    reason_shared,
)
from goptim._kinds import kind_of
from goptim._parts import bump_versions
from goptim.adafactor import fused_norms, reason_not_factored

_HALF = (torch.float16, torch.bfloat16)  # stepped in float32


# A product of three smaller numbers is not too large for float32.
_LARGE = 1e12


class Adafactor(Optimizer):
    r"""Adafactor with the arguments, state and bits of ``transformers.Adafactor``, and its update in Go.

    For a parameter :math:`\theta` with gradient :math:`G`, at step :math:`t`:

    .. math::
        \rho &= \text{lr}, \text{ or with relative\_step }
        \min(10^{-2} \text{ or with warmup\_init } 10^{-6} t,\; 1/\sqrt t) \\
        \alpha &= \max(\epsilon_2, \text{RMS}(\theta))\,\rho \text{ with scale\_parameter, else } \rho \\
        \hat\beta_2 &= 1 - t^{\text{decay\_rate}} \\
        R &\leftarrow \hat\beta_2 R + (1 - \hat\beta_2)\, \text{mean}_{-1}(G^2 + \epsilon_1), \quad
        C \leftarrow \hat\beta_2 C + (1 - \hat\beta_2)\, \text{mean}_{-2}(G^2 + \epsilon_1) \\
        U &= G / \sqrt{(R / \text{mean}(R))\, C}, \quad
        \hat U = \alpha\, U / \max(1, \text{RMS}(U) / \text{clip\_threshold}) \\
        M &\leftarrow \beta_1 M + (1 - \beta_1)\, \hat U \text{ if there is a beta1} \\
        \theta &\leftarrow \theta - \text{weight\_decay}\, \alpha\, \theta - (M \text{ or } \hat U)

    The state of a parameter is ``step``, a Python int; ``RMS``, a tensor of one element; ``exp_avg_sq_row`` and
    ``exp_avg_sq_col`` for two dimensions or more, whose last two are matrices, else ``exp_avg_sq``; and ``exp_avg`` if
    there is a ``beta1``. Contiguous float32 and float64 tensors on the CPU are updated in Go, which adds up in the
    order of the installed torch; others, as bfloat16, by torch's operations.

    Shazeer & Stern, `Adafactor: Adaptive Learning Rates with Sublinear Memory Cost <https://arxiv.org/abs/1804.04235>`_,
    Algorithms 4 and 5.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; None with ``relative_step``.
        eps: what is added to squared gradients, and the least scale of a parameter.
        clip_threshold: largest root mean square of an update.
        decay_rate: exponent of the decay of the second moment.
        beta1: decay of an average of updates; None is without.
        weight_decay: decoupled weight decay.
        scale_parameter: steps are relative to a parameter's root mean square.
        relative_step: the learning rate follows from the number of steps.
        warmup_init: it begins small.

    Raises:
        ValueError: an lr with ``relative_step``, or ``warmup_init`` without it.
    """

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
    ) -> None:
        if lr is not None and relative_step:
            raise ValueError("Cannot combine manual `lr` and `relative_step=True` options")
        if warmup_init and not relative_step:
            raise ValueError("`warmup_init=True` requires `relative_step=True`")
        _native.core()
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        super().__init__(params, defaults)

    @staticmethod
    def _get_lr(param_group: dict[str, Any], param_state: dict[str, Any]) -> Any:
        """The step size of a parameter; transformers' AdafactorSchedule asks for it."""
        step = param_state["step"]
        rate = param_group["lr"]
        if param_group["relative_step"]:
            rate = min(1e-6 * step if param_group["warmup_init"] else 1e-2, 1.0 / math.sqrt(step))
        scale = max(param_group["eps"][1], param_state["RMS"]) if param_group["scale_parameter"] else 1.0
        return scale * rate

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters by their gradients, in place.

        Args:
            closure: re-evaluates the model and returns the loss; it runs with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient is sparse.
            ValueError: a state has another shape than its parameter asks for. Nothing has been written then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            work = [(group, *self._sort(i, group)) for i, group in enumerate(self.param_groups)]
            for group, ours, others in work:
                if ours and others and self._share_memory(ours, [p for p, _ in others]):
                    whys = {id(p): why for p, why in others}
                    params = {id(p): p for p in ours} | {id(p): p for p, _ in others}
                    others[:] = [(p, whys.get(id(p), SHARED)) for p in group["params"] if id(p) in params]
                    ours.clear()
            if _parts.watch is not None:
                reasons = [why for _, _, others in work for _, why in others]
                _parts.watch(self, sum(len(ours) for _, ours, _ in work), reasons)
            for group, ours, _ in work:
                if _extreme(group):
                    self._go_step(ours, group, only_check=True)
            self._make_states()
            for group, ours, others in work:
                for p, _ in others:
                    self._torch_step(p, group)
                self._go_step(ours, group)
        return loss

    def _sort(self, index: int, group: dict[str, Any]) -> tuple[list[Tensor], list[tuple[Tensor, str]]]:
        """The parameters with a gradient: those that Go takes, and the others, with the reason."""
        reason_of_group = self._reason_of_group(group)
        ours: list[Tensor] = []
        others: list[tuple[Tensor, str]] = []
        for i, p in enumerate(group["params"]):
            g = p.grad
            if g is None:
                continue
            why = self._reason_of(p, g, group, f"parameter {i} of group {index}", reason_of_group)
            if why is None:
                ours.append(p)
            else:
                others.append((p, why))
        return ours, others

    def _share_memory(self, ours: list[Tensor], others: list[Tensor]) -> bool:
        """Whether parameters that Go takes share memory with those that it does not take, so that the order matters."""
        spans = sorted((*span, i) for i, ps in enumerate((ours, others)) for p in ps for span in memory_of(self, p))
        ends = [[0, 0], [0, 0]]  # of the ones so far: of all, and of those that are written
        for start, end, written, i in spans:
            if start < ends[1 - i][not written]:
                return True
            ends[i] = [max(ends[i][0], end), max(ends[i][1], end if written else 0)]
        return False

    def _reason_of_group(self, group: dict[str, Any]) -> str | None:
        """Why Go takes nothing of a group; None if it may."""
        # With a relative step nothing reads lr, where transformers' AdafactorSchedule then leaves a tensor.
        unread = ("eps", "lr") if group["relative_step"] else ("eps",)
        numbers = [v for k, v in group.items() if k in self.defaults and k not in unread] + [*group["eps"]]
        if not all(x is None or _numbers.is_plain(x) for x in numbers):
            floats = _numbers.as_floats(tuple(x for x in numbers if x is not None))
            if floats is None or not _numbers.torch_accepts(Adafactor, group, _step_alone):
                return reason_of_numbers(group)
        if group["lr"] is None and not group["relative_step"]:
            return "its group has no lr"
        return reason_compiling() or reason_of_optimizer(self)

    def _reason_of(
        self, p: Tensor, g: Tensor, group: dict[str, Any], name: str, reason_of_group: str | None
    ) -> str | None:
        """Why Go does not take a parameter; None if it does."""
        if g.is_sparse and p.grad is g:  # explain makes one up
            raise RuntimeError("Adafactor does not support sparse gradients.")
        state = self.state.get(p, {})
        why = reason_of_group or reason_of_tensor(p) or reason_not_factored(p) or reason_of_gradient(g)
        if why is not None:
            return why
        if g.dtype != p.dtype or not g.is_cpu or g.shape != p.shape or not g.is_contiguous():
            return f"its gradient is {g.dtype} on {g.device}, of shape {tuple(g.shape)} and strides {g.stride()}"
        for key, shape in _shapes(p, group).items() if state else ():
            t = state.get(key)
            if isinstance(t, Tensor) and t.shape != shape:
                raise ValueError(f"Adafactor: {name}: its {key} has shape {tuple(t.shape)}, expected {tuple(shape)}")
            if type(t) is not Tensor:
                return f"its state {key!r} is a {type(t).__name__}"
            if t.dtype != p.dtype or not t.is_cpu or not t.is_contiguous():
                return f"its state {key!r} is {t.dtype} on {t.device}, or not contiguous"
        if state and (type(state.get("step")) is not int or state["step"] < 0):
            return f"its step is {state.get('step')!r}"
        tensors = [("the parameter", p), *((f"its state {key!r}", state[key]) for key in _shapes(p, group) if state)]
        if p.grad is g:  # explain makes one up, of the parameter's memory
            tensors.insert(1, ("its gradient", g))
        for what, t in tensors:
            lack = lacks_memory(t)
            if lack is not None:
                raise ValueError(f"Adafactor: {name}: the storage of {what} {lack}")
        return reason_shared(tensors)

    def _make_states(self) -> None:
        """Make the states of new parameters, whoever steps them, in their order, as a state_dict shows it."""
        for group in list(self.param_groups):
            for p in list(group["params"]):
                if p.grad is not None and not self.state.get(p):
                    like = p.grad.float() if p.grad.dtype in _HALF else p.grad
                    shapes = _shapes(p, group).items()
                    zeros = {k: torch.zeros(shape, dtype=like.dtype, device=like.device) for k, shape in shapes}
                    self.state[p] = {"step": 0, **zeros, "RMS": 0}

    def _go_step(self, params: list[Tensor], group: dict[str, Any], only_check: bool = False) -> None:
        kind = kind_of("HFAdafactor")
        rows, after = [], []
        steps: dict[int, int] = {}
        for p in params:
            g, state, shapes = p.grad, self.state.get(p), _shapes(p, group)
            if not state:  # only to check
                state = {"step": 0, **{key: torch.zeros(shape, dtype=p.dtype) for key, shape in shapes.items()}}
            rms = torch.empty((), dtype=p.dtype)
            step = state["step"] + steps.get(id(state), 0)  # parameters may share a state
            steps[id(state)] = steps.get(id(state), 0) + 1
            states = [state[s.key] if s.key in shapes else None for s in kind.states if s.key is not None]
            rows.append((p, g, step, *states, rms, None))
            after.append((state, rms))
        if not rows:
            return
        lr, beta1 = 0.0 if group["relative_step"] else group["lr"], group["beta1"]
        options = {**group, "lr": lr, "beta1": beta1 or 0.0}
        floats = _numbers.as_floats(kind.numbers(options) or ())
        options = kind.with_numbers(options, floats) if floats else options
        if not only_check and _native.layout() is None:
            bump_versions([t for p, _, _, *states, _, _ in rows for t in (p, *states) if t is not None])
        core: Any = _native.core()
        groups = ((tuple(rows), options, (fused_norms(), beta1 is not None)),)
        threads = -1 if only_check else torch.get_num_threads()
        done = core.step_groups(kind.handle, _native.layout(), PLAIN, self.state, groups, threads)
        if type(done) is not int:
            raise RuntimeError("Adafactor: a parameter, its gradient or its state has changed during the step")
        for state, rms in after if not only_check else ():
            state["RMS"] = rms
            state["step"] += 1

    def _torch_step(self, p: Tensor, group: dict[str, Any]) -> None:
        """One step by torch's operations, in float32 for a 16-bit parameter."""
        assert p.grad is not None
        state = self.state[p]
        g = p.grad.float() if p.grad.dtype in _HALF else p.grad
        shapes = _shapes(p, group)
        for key in shapes:
            state[key] = state[key].to(g)
        x = p.float() if p.dtype in _HALF else p
        state["step"] += 1
        state["RMS"] = _rms(x)
        lr = self._get_lr(group, state)
        beta2 = 1.0 - math.pow(state["step"], group["decay_rate"])
        square = g**2 + group["eps"][0]
        if p.dim() > 1:
            row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            row.mul_(beta2).add_(square.mean(dim=-1), alpha=1.0 - beta2)
            col.mul_(beta2).add_(square.mean(dim=-2), alpha=1.0 - beta2)
            scale = (row / row.mean(dim=-1, keepdim=True)).rsqrt_()
            update = scale.unsqueeze(-1) * col.unsqueeze(-2).rsqrt()
        else:
            update = state["exp_avg_sq"].mul_(beta2).add_(square, alpha=1.0 - beta2).rsqrt()
        update.mul_(g)
        update.div_((_rms(update) / group["clip_threshold"]).clamp_(min=1.0)).mul_(lr)
        if group["beta1"] is not None:
            update = state["exp_avg"].mul_(group["beta1"]).add_(update, alpha=1 - group["beta1"])
        if group["weight_decay"] != 0:
            x.add_(x, alpha=-group["weight_decay"] * lr)
        x.add_(-update)
        if x is not p:
            p.copy_(x)


@torch.no_grad()
def _step_alone(optimizer: Adafactor) -> None:
    """A step by torch's operations of an optimizer of one parameter."""
    [group] = optimizer.param_groups
    optimizer._make_states()
    optimizer._torch_step(group["params"][0], group)


def _extreme(group: dict[str, Any]) -> bool:
    """Whether Python or torch may fail to compute with a group's numbers."""
    numbers = (group["lr"] or 0, *group["eps"], group["beta1"] or 0, group["weight_decay"])
    return not group["decay_rate"] <= 0 or any(not abs(x) <= _LARGE for x in numbers)


def _shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
    """The states of a parameter that are tensors, and their shapes, in the order in which transformers makes them."""
    average = {} if group["beta1"] is None else {"exp_avg": p.shape}
    if p.dim() < 2:
        return {**average, "exp_avg_sq": p.shape}
    return {**average, "exp_avg_sq_row": p.shape[:-1], "exp_avg_sq_col": p.shape[:-2] + p.shape[-1:]}


def _rms(x: Tensor) -> Tensor:
    rms: Tensor = x.norm(2) / (x.numel() ** 0.5)
    return rms
