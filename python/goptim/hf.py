"""Optimizers of Hugging Face transformers, with the same arguments."""

from __future__ import annotations

import collections
import functools
import math
from typing import Any

import torch
from torch import Tensor

from goptim._for_loop import ForLoop
from goptim._kinds import Kind
from goptim._lists import order_of_norms
from goptim._parts import PYTHON, Asked
from goptim._step import ASK, GoStep
from goptim._storage import COMPENSATION
from goptim.adafactor import FactoredPart

_HALF = (torch.float16, torch.bfloat16)  # stepped in float32


class HFAdafactor(ForLoop):
    """transformers.Adafactor in operations of torch: the fallback, and the step that compilers trace."""

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

    def _init_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.grad is None or self.state.get(p):
                continue
            grad = _widened(p.grad)
            zeros = {
                key: torch.zeros_like(grad)
                if shape == grad.shape
                else torch.zeros(shape, dtype=grad.dtype, device=grad.device)
                for key, shape in _shapes(grad, group).items()
            }
            self.state[p] = {"step": 0, **zeros, "RMS": 0}

    def _check(self, p: Tensor) -> None:
        assert p.grad is not None
        _refuse_sparse(p.grad)

    @staticmethod
    def _get_lr(param_group: dict[str, Any], param_state: dict[str, Any]) -> Any:
        """The step size of a parameter; AdafactorSchedule of transformers calls this method."""
        step = param_state["step"]
        rate = param_group["lr"]
        if param_group["relative_step"]:
            rate = min(1e-6 * step if param_group["warmup_init"] else 1e-2, 1.0 / math.sqrt(step))
        scale = max(param_group["eps"][1], param_state["RMS"]) if param_group["scale_parameter"] else 1.0
        return scale * rate

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        """One step in operations of torch, in float32 for a 16-bit parameter."""
        assert p.grad is not None
        state, g, x = self.state[p], _widened(p.grad), _widened(p)
        for key in _shapes(g, group):
            state[key] = state[key].to(g)
        state["step"] += 1
        state["RMS"] = _rms(x)
        lr = self._get_lr(group, state)
        beta2 = 1.0 - math.pow(state["step"], group["decay_rate"])
        square = g**2 + group["eps"][0]
        if g.dim() > 1:
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


class _HFPart(FactoredPart):
    """A part with the states of transformers, in which ``step`` is an int."""

    def _shapes(self, p: Tensor) -> dict[str, torch.Size]:
        return _shapes(p, self.group)

    @property
    def scalar_states(self) -> tuple[str, ...]:
        return ()  # step is an int, and each step creates a new RMS

    @functools.cached_property
    def reason_of_group(self) -> str | None:
        if self.group["lr"] is None and not self.group["relative_step"]:
            return "its group does not have an lr"
        return super().reason_of_group

    def reason_of(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        if p.grad is g:  # not a gradient that explain has created
            _refuse_sparse(g)
        if p.dtype in _HALF and type(state) is dict and not self.affected(p):
            state = {key: _widened(t) if isinstance(t, Tensor) else t for key, t in state.items()}  # as _go does
        why = self.reason_of_group or super().reason_of(p, g, state)
        if why is None and state and (type(state.get("step")) is not int or state["step"] < 0):
            return f"its step is {state.get('step')!r}"
        return why

    def finish(self) -> None:
        fresh, states = {id(p) for p in self.fresh}, self.optimizer.state
        for i, p in enumerate(self.go_params):
            if id(p) in fresh and p.grad is not None and states.get(p):
                self.store(p)
                self.go[i] = self._row(p, p.grad, states[p])


class Adafactor(GoStep, HFAdafactor):
    r"""Adafactor with its update in Go: the arguments, state and exact results of ``transformers.Adafactor``.

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

    The state of a parameter is ``step``, a Python int; ``RMS``, a tensor with one element; ``exp_avg_sq_row`` and
    ``exp_avg_sq_col`` if it has two or more dimensions, of which the last two are matrices, else ``exp_avg_sq``; and
    ``exp_avg`` if ``beta1`` is given. Contiguous float32, float64, bfloat16 and float16 tensors on the CPU run in Go,
    which sums in the order of the installed torch. Others fall back to torch. As in transformers, the states of a
    16-bit parameter are float32, everything is computed in float32, and only the parameter is rounded. States that
    ``load_state_dict`` has rounded become float32 in the next step.

    Shazeer & Stern, `Adafactor: Adaptive Learning Rates with Sublinear Memory Cost <https://arxiv.org/abs/1804.04235>`_,
    Algorithms 4 and 5.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; None with ``relative_step``.
        eps: the value added to squared gradients, and the smallest scale of a parameter.
        clip_threshold: largest root mean square of an update.
        decay_rate: exponent of the decay of the second moment.
        beta1: decay of the average of updates; None for no average.
        weight_decay: decoupled weight decay.
        scale_parameter: scale steps by the parameter's root mean square.
        relative_step: compute the learning rate from the number of steps.
        warmup_init: begin with a small learning rate.

    Raises:
        ValueError: ``lr`` is given with ``relative_step``, or ``warmup_init`` without it.
    """

    torch_class = HFAdafactor
    elementwise = False
    part_class = _HFPart

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        options = super().options(group)
        relative, beta1 = options["relative_step"], options["beta1"]
        # With a relative step lr is unused, and AdafactorSchedule of transformers stores a tensor in it.
        return {**options, "lr": 0.0 if relative else options["lr"], "beta1": 0.0 if beta1 is None else beta1}

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (order_of_norms(), group["beta1"] is not None)

    def _go(self, groups: tuple[Asked, ...], threads: int | None = None, kind: Kind | None = None) -> Any:
        place = next(i for i, s in enumerate(self.kind.states) if s.key is None and s.shape == "scalar")  # of the RMS
        counted: collections.Counter[int] = collections.Counter()  # parameters may share a state
        after, asked = [], []
        mixed = False
        for params, options, extra in groups:
            rows: list[Any] = []
            widens = options.get("state_dtype") is None
            for x in params:
                p = x[0] if type(x) is tuple else x
                given = type(x) is tuple and len(x) > 2  # otherwise a pair of a parameter and its index
                state = self.state.get(p) if given or getattr(p, "grad", None) is not None else None
                if state is None:
                    rows.append(x)
                    continue
                rms = torch.empty((), dtype=torch.float32 if p.dtype in _HALF else p.dtype, device="cpu")
                if widens and p.dtype in _HALF and threads != ASK:
                    _widen(state)
                earlier = counted[id(state)]
                counted[id(state)] += 1
                mixed |= bool(earlier) and not given
                if given:
                    _, g, step, *rest = x
                    rest[place] = rms
                    rows.append((p, g, step + earlier, *rest))
                else:
                    rows.append((p, rms, *(x[1:] if type(x) is tuple else ())))  # gather.c reads the rest
                after.append((state, earlier + 1, rms))
            asked.append((tuple(rows), options, extra))
        if mixed:  # gather.c does not know that a state is shared
            return bytes([PYTHON]) * sum(len(params) for params, _, _ in groups)
        steps = [(state, state.get("step"), n, rms) for state, n, rms in after]
        done = super()._go(tuple(asked), threads, kind)
        if type(done) is int and threads is None:
            for state, step, n, rms in steps:
                state["step"], state["RMS"] = step + n, rms
        return done


def _refuse_sparse(g: Tensor) -> None:
    if g.is_sparse:
        raise RuntimeError("Adafactor does not support sparse gradients.")


def _widened(t: Tensor) -> Tensor:
    return t.float() if t.dtype in _HALF else t


def _widen(state: Any) -> None:
    """Widen a state that load_state_dict has rounded."""
    for key, t in state.items() if type(state) is dict else ():
        if type(t) is Tensor and t.dtype in _HALF and t.is_cpu and key != COMPENSATION:
            state[key] = t.float()


def _shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
    """The shapes of a parameter's state tensors, in the order in which transformers creates them."""
    average = {} if group["beta1"] is None else {"exp_avg": p.shape}
    if p.dim() < 2:
        return {**average, "exp_avg_sq": p.shape}
    return {**average, "exp_avg_sq_row": p.shape[:-1], "exp_avg_sq_col": p.shape[:-2] + p.shape[-1:]}


def _rms(x: Tensor) -> Tensor:
    rms: Tensor = x.norm(2) / (x.numel() ** 0.5)
    return rms
