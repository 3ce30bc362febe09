"""Lookahead around an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from goptim import _storage
from goptim._for_loop import counterpart
from goptim._pass import InTorch, Pass
from goptim._wrapper import Wrapper
from goptim.averages import EMA

__all__ = ["Lookahead"]

_KEY = "lookahead_slow_buff"


class _SlowInTorch(InTorch):
    key = _KEY

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        slow = self.state[p][self.key]
        slow.add_(p - slow, alpha=group["lookahead_alpha"])
        p.copy_(slow)


class _Slow(Pass, _SlowInTorch):
    torch_class = _SlowInTorch


_Slow.__name__ = _SlowInTorch.__name__ = "Lookahead"


@counterpart("timm.optim.Lookahead")
class Lookahead(Wrapper):
    r"""Lookahead around an optimizer, with its update in Go: the arguments, state and exact results of
    ``timm.optim.Lookahead``.

    After every ``k`` steps of the optimizer, slow weights :math:`\phi` move towards the parameters, and replace them:

    .. math::
        \phi &\leftarrow \phi + \alpha (\theta - \phi) \\
        \theta &\leftarrow \phi

    The slow weights of a parameter are ``lookahead_slow_buff`` in its state, and are made at the first update. Each
    group has ``lookahead_alpha``, ``lookahead_k`` and ``lookahead_step``, the number of steps. The state_dict is that
    of the optimizer, with these; each class loads the other's, and one of the optimizer alone. Groups and state are
    the optimizer's, so schedulers work with either. A parameter that has no gradient at an update is left out.

    Float32, float64, bfloat16 and float16 parameters on the CPU run in Go; others are updated by torch's operations.
    For 16-bit parameters, the update is computed in float32 and rounded once, and not after every operation.

    Zhang, Lucas, Hinton & Ba, `Lookahead Optimizer: k steps forward, 1 step back <https://arxiv.org/abs/1907.08610>`_,
    Algorithm 1.

    Args:
        base_optimizer: the optimizer, of goptim or any other.
        alpha: the share of the way from the slow weights to the parameters, from 0 to 1.
        k: the number of steps between two updates, at least 1.

    Raises:
        ValueError: an argument is out of its range; or, from ``step``, a group has master weights or a compensation
            (docs/half.md), from which the optimizer's next step would undo an update.
    """

    entries: ClassVar[tuple[str, ...]] = ("lookahead_alpha", "lookahead_k", "lookahead_step")

    @classmethod
    def replaces(cls, **arguments: Any) -> bool:
        """Whether :func:`goptim.patch` replaces an optimizer of timm with these arguments."""
        return True

    def __init__(self, base_optimizer: Optimizer, alpha: float = 0.5, k: int = 6) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"Invalid slow update rate: {alpha}, expected 0 to 1")
        if not k >= 1:
            raise ValueError(f"Invalid lookahead steps: {k}, expected at least 1")
        values = dict(zip(self.entries, (alpha, k, 0), strict=True))
        super().__init__(base_optimizer, values)

    def step(self, closure: Callable[[], Any] | None = None, *, ema: EMA | None = None, **keywords: Any) -> Any:
        """A step of the optimizer, and if it is the ``k``-th one an update of the slow weights.

        Args:
            closure: re-evaluates the model and returns the loss.
            ema: averages to update afterwards.
            keywords: those of the optimizer's step, such as ``max_grad_norm``.

        Returns:
            What the closure returned, or None.
        """
        self._require_rounded()
        loss = self._base_optimizer.step(closure, **keywords)
        due = []
        for group in self.param_groups:
            group["lookahead_step"] += 1
            if group["lookahead_step"] % group["lookahead_k"] == 0:
                due.append(group)
        if due:
            self._update(due)
        if ema is not None:
            ema.update()
        return loss

    def sync_lookahead(self) -> None:
        """Update the slow weights now, whatever the number of steps: for example after the last one."""
        self._require_rounded()
        self._update(self.param_groups)

    def update_slow(self, group: dict[str, Any]) -> None:
        """Update the slow weights of a group now."""
        self._update([group])

    def _update(self, groups: list[dict[str, Any]]) -> None:
        _Slow.run(self, [{key: group[key] for key in ("params", "lookahead_alpha")} for group in groups])

    def _require_rounded(self) -> None:
        for i, group in enumerate(self.param_groups):
            storage = _storage.storage_of(group)
            if storage is not None and any(storage.extra(p) is not None for p in group["params"]):
                raise ValueError(
                    f"{type(self).__name__}: group {i} has master_weights or rounding='kahan', expected neither: the "
                    "next step would undo an update of the slow weights"
                )
