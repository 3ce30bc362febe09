"""Hyperparameters of other real number types than float and int, such as NumPy scalars and fractions.

Go computes with ``float(x)`` if torch accepts the number. Whether torch does depends on the type, the class and the
use of the hyperparameter, so it is tried out: torch steps a parameter of one element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Whether torch accepts them, by class and the types of the hyperparameters.
_answers: dict[object, bool] = {}

# The number of steps that covers every branch of torch's formulas: RAdam rectifies from the sixth step on.
_STEPS = 6


def is_plain(x: object) -> bool:
    """Whether gather.c supports a number directly: a float, or an int of up to 64 bits."""
    return isinstance(x, float) or (isinstance(x, int) and -(1 << 63) <= x < 1 << 63)


def as_floats(numbers: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The numbers, with other types converted to float; None if one is not a number."""
    try:
        return tuple(x if is_plain(x) else _float(x) for x in numbers)
    except (TypeError, ValueError, OverflowError):
        return None


def _float(x: Any) -> float:
    if isinstance(x, (str, bytes, bytearray, Tensor)):
        raise TypeError
    return float(x)


def torch_accepts(
    cls: Callable[[list[Tensor]], Optimizer],
    group: dict[str, Any],
    step: Callable[[Any], object],
    sparse: bool = False,
) -> bool:
    """Whether torch's step accepts the hyperparameters of a group, without a TypeError.

    Args:
        cls: the class.
        group: one of ``param_groups``.
        step: steps an instance of the class.
        sparse: whether the class supports only sparse gradients.
    """
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    key = cls, tuple((name, _kind(value)) for name, value in options.items())
    answer = _answers.get(key)
    if answer is None:
        try:
            with torch.device("cpu"):
                p = torch.zeros(1, 1, dtype=torch.float32)
                p.grad = (
                    torch.sparse_coo_tensor(torch.tensor([[0]]), p + 1, p.shape, check_invariants=False)
                    if sparse
                    else p + 1
                )
                optimizer = cls([p])
                optimizer.param_groups[0].update(options)
                for _ in range(_STEPS):
                    step(optimizer)
            answer = True
        except TypeError:
            answer = False
        except Exception:  # the result depends on the value, so the step itself raises it
            return False
        if len(_answers) > 1000:
            _answers.clear()
        _answers[key] = answer
    return answer


def _kind(x: Any) -> object:
    """What the answer can depend on: a number's type and whether it is 0, and the value of any other option."""
    if x is None or isinstance(x, (bool, str)) or (isinstance(x, int) and not is_plain(x)):
        return x  # torch accepts an int beyond 64 bits or not, depending on its value
    if isinstance(x, (tuple, list)):
        return type(x), tuple(map(_kind, x))
    try:
        return type(x), bool(x == 0), is_plain(x)
    except Exception:  # an array with several elements does not have a truth value
        return type(x)
