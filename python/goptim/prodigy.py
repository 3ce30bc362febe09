"""Prodigy, which torch.optim does not have."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from goptim._for_loop import ForLoop
from goptim._lists import order_of_norms
from goptim._parts import Asked, Part
from goptim._step import GoStep

__all__ = ["Prodigy"]

# What a step reads from the first group alone.
_OF_FIRST = (
    "betas", "d", "d_max", "d_coef", "d_numerator", "growth_rate", "decouple", "use_bias_correction", "k"
)  # fmt: skip
# The entries of groups that a step changes. A group does not have the last two before the first step.
_RESULTS = ("d", "d_max", "d_numerator", "k", "d_denom", "d_hat")


class ProdigyForLoop(ForLoop):
    """prodigyopt.Prodigy in operations of torch, with a specified order of the sum of products."""

    states = ("step", "exp_avg", "exp_avg_sq", "s", "p0")
    when: ClassVar[dict[str, str]] = {"exp_avg": "betas"}
    vectors = ("s", "p0")
    order = ("step", "s", "p0", "exp_avg", "exp_avg_sq")
    numbers: ClassVar[dict[str, int | float]] = {"step": 0}
    entries: ClassVar[dict[str, Any]] = {"d": 1e-6, "d_max": 1e-6, "d_numerator": 0.0, "k": 0}
    sparse = False
    paths = False
    reference = "prodigyopt.Prodigy"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = float("inf"),
        fsdp_in_use: bool = False,
        slice_p: int = 1,
    ) -> None:
        for name, value in (("d0", d0), ("learning rate", lr), ("epsilon", eps)):
            if not value > 0:
                raise ValueError(
                    f"Invalid {name} value: {value}" if name != "learning rate" else f"Invalid {name}: {value}"
                )
        for i, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "beta3": beta3,
            "eps": eps,
            "weight_decay": weight_decay,
            "d": d0,
            "d0": d0,
            "d_max": d0,
            "d_numerator": 0.0,
            "d_coef": d_coef,
            "k": 0,
            "growth_rate": growth_rate,
            "use_bias_correction": use_bias_correction,
            "decouple": decouple,
            "safeguard_warmup": safeguard_warmup,
            "fsdp_in_use": fsdp_in_use,
            "slice_p": slice_p,
        }
        self.d0 = d0
        Optimizer.__init__(self, params, defaults)

    @property
    def supports_memory_efficient_fp16(self) -> bool:
        """As in prodigyopt."""
        return False

    @property
    def supports_flat_params(self) -> bool:
        """As in prodigyopt."""
        return True

    def _init_group(self, group: dict[str, Any]) -> None:
        beta1, every = self.param_groups[0]["betas"][0], group["slice_p"]
        for p in group["params"]:
            if p.grad is None or "step" in self.state[p]:
                continue
            state = self.state[p]
            start = p.detach().flatten()[::every]
            state["step"] = 0
            state["s"] = torch.zeros_like(start)
            state["p0"] = start.clone() if p.any() else torch.tensor(0, device=p.device, dtype=p.dtype)
            if beta1 > 0:
                state["exp_avg"] = torch.zeros_like(p, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(p, requires_grad=False)

    def _complete_gradients(self) -> None:
        lr = max(group["lr"] for group in self.param_groups)
        if any(group["lr"] not in (lr, 0.0) for group in self.param_groups):
            raise RuntimeError(
                "Setting different lr values in different parameter groups is only supported for values of 0"
            )
        for i, group in enumerate(self.param_groups):
            if (every := operator.index(group["slice_p"])) < 1:  # before anything is written
                raise ValueError(f"group {i} has slice_p={every}, expected at least 1")

    def _update_all(self, work: list[tuple[list[Tensor], dict[str, Any]]]) -> None:
        first = self.param_groups[0]
        (beta1, beta2), d, d_max, k = first["betas"], first["d"], first["d_max"], first["k"]
        beta3 = math.sqrt(beta2) if first["beta3"] is None else first["beta3"]
        lr, decouple = max(group["lr"] for group in self.param_groups), first["decouple"]
        correction: float = 1
        if first["use_bias_correction"]:
            correction = ((1 - beta2 ** (k + 1)) ** 0.5) / (1 - beta1 ** (k + 1))
        rate = d * lr * correction
        numerator, products, denominator = first["d_numerator"] * beta3, 0.0, 0.0
        sharded = first["fsdp_in_use"] or any(hasattr(p, "_fsdp_flattened") for params, _ in work for p in params)
        gradients: dict[Tensor, Tensor] = {}
        for params, group in work:
            every, d0 = group["slice_p"], group["d0"]
            for p in params:
                assert p.grad is not None
                g, state = p.grad, self.state[p]
                if group["weight_decay"] != 0 and not decouple:
                    g = g.add(p, alpha=group["weight_decay"])
                gradients[p] = g
                if not group["lr"] > 0:
                    continue
                some = g.flatten()[::every]
                products += (d / d0) * rate * (some * (state["p0"] - p.flatten()[::every])).sum().item()
                if beta1 > 0:
                    state["exp_avg"].mul_(beta1).add_(g, alpha=d * (1 - beta1))
                state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=d * d * (1 - beta2))
                state["s"].mul_(beta3).add_(some, alpha=(d / d0) * (d if group["safeguard_warmup"] else rate))
                denominator += state["s"].abs().sum().item()
        if denominator == 0 and not sharded:
            return
        d_hat = d
        if lr > 0:
            if sharded:
                products, denominator = _sum_over_ranks(self.param_groups, products, denominator)
            numerator += products
            d_hat = first["d_coef"] * numerator / denominator
            if d == self.param_groups[-1]["d0"]:
                d = max(d, d_hat)
            d_max = max(d_max, d_hat)
            d = min(d_max, d * first["growth_rate"])
        for params, group in work:
            group.update(d_numerator=numerator, d_denom=denominator, d=d, d_max=d_max, d_hat=d_hat)
            for p in params:
                state, decay = self.state[p], group["weight_decay"]
                state["step"] += 1
                root = state["exp_avg_sq"].sqrt().add_(d * group["eps"])
                update, value = (state["exp_avg"], -rate) if beta1 > 0 else (gradients[p], -rate * d)
                if decay != 0 and decouple:
                    p.add_(p, alpha=-decay * rate)
                p.addcdiv_(update, root, value=value)
            group["k"] += 1


def _sum_over_ranks(groups: list[dict[str, Any]], *numbers: float) -> list[float]:
    """The sums of numbers of all processes, each of which has a shard of the parameters."""
    device = next(p.device for group in groups for p in group["params"])
    total = torch.tensor(numbers, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()


class ProdigyPart(Part):
    """A part with states that have an element for some of a parameter's."""

    def _reason_of_parameter(self, p: Tensor) -> str | None:
        return super()._reason_of_parameter(p) or (None if p.is_contiguous() else "it is not contiguous")

    def _shapes(self, p: Tensor) -> dict[str, torch.Size]:
        every, shapes = self.options["slice_p"], super()._shapes(p)
        some = torch.Size([len(range(0, p.numel(), every))])
        start = self.optimizer.state[p].get("p0") if p in self.optimizer.state else None
        if isinstance(start, Tensor) and start.dim() == 0:
            return {**shapes, "s": some, "p0": start.shape}
        return {**shapes, "s": some, "p0": some}

    def reason_of(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> str | None:
        every = self.options["slice_p"]
        if type(every) is not int or every < 1:
            return f"its group has slice_p={every!r}"
        why = super().reason_of(p, g, state)
        start = state.get("p0")
        if why is None and isinstance(start, Tensor) and start.dim() == 0 and start.item() != 0:
            return "its state 'p0' is a scalar that is not 0"
        return why


class Prodigy(GoStep, ProdigyForLoop):
    r"""Prodigy in Go: the arguments and state of ``prodigyopt.Prodigy``.

    The learning rate is :math:`\gamma d_t`, where :math:`d_t` is an estimate over all parameters. For a parameter
    :math:`\theta` with gradient :math:`g_t`:

    .. math::
        m_t &\leftarrow \beta_1 m_{t-1} + (1-\beta_1)\, d_t g_t, \quad
        v_t \leftarrow \beta_2 v_{t-1} + (1-\beta_2)\, d_t^2 g_t^2 \\
        r_t &\leftarrow \beta_3 r_{t-1} + \frac{\gamma d_t^2}{d_0} \langle g_t, \theta_0 - \theta_{t-1} \rangle, \quad
        s_t \leftarrow \beta_3 s_{t-1} + \frac{\gamma d_t^2}{d_0} g_t \\
        d_{t+1} &= \max(d_t, r_t / \lVert s_t\rVert_1) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma d_t\, m_t / (\sqrt{v_t} + d_{t+1}\epsilon)
        - \gamma d_t\lambda\theta_{t-1}

    The estimate equals that of ``prodigyopt`` up to rounding, in the order of 1e-6 of it: ``torch.dot``, which
    ``prodigyopt`` calls for the inner products, adds in an order that is not specified. goptim adds the products in the
    order of ``torch.sum``, in Go and in the fallback. For equal estimates, results are bit-for-bit equal. A step whose
    gradients are all 0, or without gradients, is not counted, and leaves the parameters as they are. Nothing is
    printed for decoupled weight decay, and gradients stay as they are with coupled weight decay.

    The state of a parameter is ``step``, an int, ``exp_avg``, unless ``betas[0]`` is 0, and ``exp_avg_sq``, of its
    shape, and ``s`` and ``p0``, vectors with every ``slice_p``-th element; ``p0`` is a tensor of no dimensions if the
    parameter was 0 at first. The estimate ``d`` is an entry of each group. Each class loads the other's state_dict.
    Contiguous float32, float64, bfloat16 and float16 parameters on the CPU run in Go; others are stepped by torch's
    operations. If one parameter falls back, all do. 16-bit parameters are computed in float32 and rounded once, and not
    after every operation. The keywords of docs/half.md are not supported.

    Mishchenko & Defazio, `Prodigy: An Expeditiously Adaptive Parameter-Free Learner
    <https://arxiv.org/abs/2306.06101>`_, Algorithm 4.

    Args:
        params: parameters, named parameters or groups of them.
        lr: factor of the learning rate, above 0. That of a group may be 0 later; those that are not are equal.
        betas: decay rates of the moments, each in [0, 1).
        beta3: decay rate of the estimate; None for the square root of ``betas[1]``.
        eps: added to the denominator, times the estimate, above 0.
        weight_decay: multiplied by the learning rate.
        decouple: shrink the parameter itself instead of adding the decay to the gradient.
        use_bias_correction: multiply the learning rate by Adam's bias corrections.
        safeguard_warmup: leave ``lr`` out of the denominator of the estimate.
        d0: the first estimate, above 0.
        d_coef: factor of the estimate.
        growth_rate: the estimate grows by at most this factor in a step.
        fsdp_in_use: sum the estimate over all processes. torch steps such groups.
        slice_p: the estimate uses every ``slice_p``-th element of a parameter.

    Raises:
        ValueError: an argument is out of its range.
    """

    elementwise = False
    together = True
    stored = False
    part_class = ProdigyPart

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        """A copy of the options, with those that are read from the first group, and the largest learning rate."""
        first, options = self.param_groups[0], super().options(group)
        before = {key: options[key] for key in _RESULTS if key in options}
        options = {**options, **{key: first[key] for key in _OF_FIRST}, "before": (first["k"], before)}
        options["lr"] = max(other["lr"] for other in self.param_groups)
        beta3 = first["beta3"]
        if beta3 is None:
            beta3 = math.sqrt(options["betas"][1])
        elif beta3 == 0 or any(other["d0"] != first["d0"] for other in self.param_groups):
            beta3 = ""  # a number that Go cannot use, so that the group falls back
        options["beta3"] = beta3
        for key in _RESULTS[-2:]:
            options.pop(key, None)
        return options

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        try:
            idle = not group["lr"] > 0
        except TypeError:
            idle = False  # it falls back to torch, which cannot compute with it
        return order_of_norms(), int(idle)

    def advanced(self, group: dict[str, Any]) -> dict[str, Any]:
        return {}  # _finish_step

    def _complete_gradients(self) -> None:
        ProdigyForLoop._complete_gradients(self)

    def _torch_step(self, groups: list[dict[str, Any]], asked: Sequence[Asked], parts: list[Part] | None) -> None:
        super()._torch_step(groups, asked, None)  # with all groups, since all parameters fall back

    def _finish_step(self, groups: list[dict[str, Any]], asked: Sequence[Asked]) -> None:
        done = next((options for _, options, _ in asked if "d_denom" in options), None)
        if done is None:
            return  # nothing ran in Go
        counted = done["k"] != done["before"][0]
        for group, (_, options, _) in zip(groups, asked, strict=True):
            _, before = options["before"]
            if counted:
                group.update({key: done[key] for key in _RESULTS}, k=before["k"] + 1)
                continue
            for key in _RESULTS:  # the step may have set them
                if key not in before:
                    group.pop(key, None)
            group.update(before)
