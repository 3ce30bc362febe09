"""Optimizers of bitsandbytes with 32-bit states, under its names and with its arguments and exact results on the CPU.

bitsandbytes is not needed. Its optimizers with 8-bit states have no counterparts.
"""

from __future__ import annotations

import math
import sys
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from goptim import _ademamix, _timm
from goptim._eligible import NARROW
from goptim._for_loop import ForLoop
from goptim._step import GoStep

__all__ = ["AdEMAMix", "Lion"]

# The key of a state_dict under which bitsandbytes has the states of a parameter.
_STATES = "__bnb_optimizer_quant_state__"


class _Packed(ForLoop):
    """A state that is float32 for 16-bit parameters, and has the keys of bitsandbytes in a state_dict."""

    sparse = complexes = False
    paths = False  # there is no argument foreach
    other_arguments = ("args", "is_paged")
    packed: ClassVar[dict[str, tuple[str, ...]]]
    """The states in each of bitsandbytes. Several are stacked."""

    def _initial(self, key: str, p: Tensor) -> Tensor | int | float:
        new = super()._initial(key, p)
        return new.float() if isinstance(new, Tensor) and new.dtype in NARROW else new

    @classmethod
    def replaces(cls, **arguments: Any) -> bool:
        if arguments.get("optim_bits", 32) != 32 or arguments.get("is_paged") or arguments.get("args") is not None:
            return False
        module = sys.modules.get("bitsandbytes.optim.optimizer")
        manager = getattr(getattr(module, "GlobalOptimManager", None), "_instance", None)  # other options of parameters
        return not any(getattr(manager, key, None) for key in ("pid2config", "module_weight_config_triple"))

    def state_dict(self) -> dict[str, Any]:
        """The state as bitsandbytes has it: copies of states that it stacks, and other tensors themselves."""
        found = Optimizer.state_dict(self)
        return {**found, "state": {name: self._pack(state) for name, state in found["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of goptim's class or of bitsandbytes'.

        Raises:
            ValueError: it has 8-bit states.
        """
        unpacked = {name: self._unpack(state) for name, state in state_dict["state"].items()}
        given = {**state_dict, "state": unpacked}
        after = self.register_load_state_dict_post_hook(lambda _: self._widen(given), prepend=True)
        try:
            Optimizer.load_state_dict(self, given)
        finally:
            after.remove()

    def _pack(self, state: Any) -> Any:
        if not isinstance(state, dict) or not all(key in state for keys in self.packed.values() for key in keys):
            return state
        inside = {key for keys in self.packed.values() for key in keys}
        tensors = {
            name: state[keys[0]] if len(keys) == 1 else torch.stack([state[key] for key in keys])
            for name, keys in self.packed.items()
        }
        return {**{key: x for key, x in state.items() if key not in inside}, _STATES: tensors}

    def _unpack(self, state: Any) -> Any:
        if not isinstance(state, dict):
            return state
        state = {**state}
        state |= state.pop(_STATES, {})
        for name, keys in self.packed.items():
            t = state.pop(name, None)
            if t is None:
                continue
            if not t.is_floating_point():
                raise ValueError(f"{type(self).__name__}: {name} is of {t.dtype}, expected the 32-bit state")
            state |= {keys[0]: t} if len(keys) == 1 else dict(zip(keys, t.unbind(), strict=True))
        return {key: x for key, x in state.items() if key not in ("unorm_vec", "gnorm_vec")}

    def _widen(self, given: dict[str, Any]) -> None:
        """Undo that torch rounds the states of 16-bit parameters, and make all states as new ones are laid out."""
        for group, saved in zip(self.param_groups, given["param_groups"], strict=True):
            for p, name in zip(group["params"], saved["params"], strict=True):
                for key, t in given["state"].get(name, {}).items() if p.dtype in NARROW else ():
                    if key in self.states and isinstance(t, Tensor) and t.dim():
                        self.state[p][key] = torch.empty_like(p, dtype=t.dtype, requires_grad=False).copy_(t)
                        if t.dtype in NARROW:
                            self.state[p][key] = self.state[p][key].float()


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in the precision in which they are computed."""
    return tuple(t.float() if t.dtype in NARROW else t for t in tensors)


class BitsandbytesAdEMAMixForLoop(_Packed):
    """bitsandbytes.optim.AdEMAMix on the CPU in operations of torch."""

    states = ("step", "exp_avg", "exp_avg_sq", "exp_avg_slow")
    numbers: ClassVar[dict[str, int | float]] = {"step": 0}
    packed: ClassVar[dict[str, tuple[str, ...]]] = {"state1": ("exp_avg", "exp_avg_slow"), "state2": ("exp_avg_sq",)}
    reference = "bitsandbytes.optim.AdEMAMix"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
    ) -> None:
        _require_32_bits(optim_bits, is_paged)
        _timm.require("learning rate", lr)
        _timm.require("epsilon value", eps)
        _timm.require_betas(betas)
        _timm.require("weight_decay value", weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "alpha": alpha,
            "t_alpha": t_alpha,
            "t_beta3": t_beta3,
        }
        super().__init__(params, defaults)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        lr, (beta1, beta2, beta3), alpha, state = group["lr"], group["betas"], group["alpha"], self.state[p]
        step = state["step"] + 1
        if group["t_alpha"]:
            alpha = min(step * alpha / group["t_alpha"], alpha)
        if group["t_beta3"]:
            beta3 = _ademamix.warm_beta(step, group["t_beta3"], beta1, beta3)
        state["step"] = step
        g, x = _wide(p.grad, p)
        average = state["exp_avg"].mul_(beta1).add_(g, alpha=1.0 - beta1)
        slow = state["exp_avg_slow"].mul_(beta3).add_(g, alpha=1.0 - beta3)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        bias1, root = 1.0 - beta1**step, math.sqrt(1.0 - beta2**step)
        if group["weight_decay"] > 0:
            x.mul_(1.0 - lr * group["weight_decay"])
        x.add_((average / bias1 + alpha * slow) / (square.sqrt() / root + group["eps"]), alpha=-lr)
        if x is not p:
            p.copy_(x)


class AdEMAMix(GoStep, BitsandbytesAdEMAMixForLoop):
    r"""AdEMAMix with its update in Go: the arguments and exact results of ``bitsandbytes.optim.AdEMAMix`` on the CPU.

    It is ``ademamix`` of transformers, and :class:`goptim.AdEMAMix` with other roundings. For a parameter
    :math:`\theta` with gradient :math:`g_t`:

    .. math::
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1)\, g_t \\
        s_t &\leftarrow \beta_3 s_{t-1} + (1-\beta_3)\, g_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2 \\
        \theta_t &\leftarrow (1 - \gamma\lambda)\, \theta_{t-1} - \gamma\,
        \frac{m_t / (1-\beta_1^t) + \alpha\, s_t}{\sqrt{v_t / (1-\beta_2^t)} + \epsilon}

    The state of a parameter is ``step``, an int, and ``exp_avg`` (:math:`m`), ``exp_avg_sq`` (:math:`v`) and
    ``exp_avg_slow`` (:math:`s`), of its shape. They are float32 for 16-bit parameters, for which everything is computed
    in float32 and only the parameter is rounded, as in bitsandbytes. A state_dict has the keys of bitsandbytes, in
    whose ``state1`` the two averages are stacked. Each class loads the other's. Float32, float64, bfloat16 and float16
    parameters of any shape on the CPU run in Go; others are stepped by torch's operations. Float64 parameters are
    computed in float64, while bitsandbytes rounds them to float32.

    Pagliardini, Ablin & Grangier, `The AdEMAMix Optimizer: Better, Faster, Older <https://arxiv.org/abs/2409.03137>`_,
    Algorithm 1.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: decay rates of the fast average, of squares and of the slow average, each in [0, 1).
        alpha: weight of the slow average.
        t_alpha: the number of steps in which ``alpha`` grows to its value; None for a constant one.
        t_beta3: the number of steps in which the decay rate of the slow average grows to its value; None for a constant
            one.
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; multiplied by the learning rate.
        optim_bits: must be 32, since there are no 8-bit states.
        min_8bit_size: has no effect.
        is_paged: must be False, since there is no paged memory.

    Raises:
        ValueError: an argument is out of its range.
    """

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        options = super().options(group)
        return {**options, **{key: options[key] or 0.0 for key in ("t_alpha", "t_beta3") if not options[key]}}


class BitsandbytesLionForLoop(_Packed):
    """bitsandbytes.optim.Lion on the CPU in operations of torch."""

    states = ("step", "exp_avg")
    numbers: ClassVar[dict[str, int | float]] = {"step": 0}
    packed: ClassVar[dict[str, tuple[str, ...]]] = {"state1": ("exp_avg",)}
    reference = "bitsandbytes.optim.Lion"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
    ) -> None:
        _require_32_bits(optim_bits, is_paged)
        if args is not None:
            raise ValueError(f"Invalid args: {args}, expected None")
        _timm.require("learning rate", lr)
        _timm.require_betas(betas)
        _timm.require("weight_decay value", weight_decay)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": 0.0, "weight_decay": weight_decay})

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        lr, (beta1, beta2), state = group["lr"], group["betas"], self.state[p]
        state["step"] += 1
        g, x = _wide(p.grad, p)
        if group["weight_decay"] > 0:
            x.mul_(1.0 - lr * group["weight_decay"])
        x.add_(state["exp_avg"].mul(beta1).add(g, alpha=1.0 - beta1).sign_(), alpha=-lr)
        state["exp_avg"].mul_(beta2).add_(g, alpha=1.0 - beta2)
        if x is not p:
            p.copy_(x)


class Lion(GoStep, BitsandbytesLionForLoop):
    r"""Lion with its update in Go: the arguments and exact results of ``bitsandbytes.optim.Lion`` on the CPU.

    It is ``lion_32bit`` of transformers, and :class:`goptim.Lion` with another state. For a parameter :math:`\theta`
    with gradient :math:`g_t`:

    .. math::
        \theta_t &\leftarrow (1 - \gamma\lambda)\, \theta_{t-1}
        - \gamma\, \text{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t) \\
        m_t &\leftarrow \beta_2 m_{t-1} + (1-\beta_2) g_t

    The state of a parameter is ``step``, an int, and ``exp_avg``, a tensor of its shape. It is float32 for 16-bit
    parameters, for which everything is computed in float32 and only the parameter is rounded, as in bitsandbytes. A
    state_dict has the keys of bitsandbytes. Each class loads the other's. Float32, float64, bfloat16 and float16
    parameters of any shape on the CPU run in Go; others are stepped by torch's operations. Float64 parameters are
    computed in float64, while bitsandbytes rounds them to float32.

    Chen et al., `Symbolic Discovery of Optimization Algorithms <https://arxiv.org/abs/2302.06675>`_, Algorithm 2.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate, at least 0.
        betas: weights of the average, in the direction of a step and from step to step, each in [0, 1).
        weight_decay: at least 0; multiplied by the learning rate.
        optim_bits: must be 32, since there are no 8-bit states.
        args: must be None.
        min_8bit_size: has no effect.
        is_paged: must be False, since there is no paged memory.

    Raises:
        ValueError: an argument is out of its range.
    """


def _require_32_bits(optim_bits: int, is_paged: bool) -> None:
    if optim_bits != 32:
        raise ValueError(f"Invalid optim_bits: {optim_bits}, expected 32: there are no 8-bit states")
    if is_paged:
        raise ValueError("Invalid is_paged: True, expected False: there is no paged memory")
