"""Hyperparameters that are real numbers of other types than float and int: NumPy's scalars, fractions.

Go computes with ``float(x)`` of such a number where torch accepts it. Whether torch does depends on the type, the class
and what it does with the hyperparameter, so torch is asked: it steps a parameter of one element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# torch's answers, by class and by the types of the hyperparameters.
_answers: dict[object, bool] = {}

# So many steps take every branch of torch's formulas: RAdam's rectification begins with the sixth.
_STEPS = 6


def is_plain(x: object) -> bool:
    """Whether gather.c takes a number as it is: a float, or an int of up to 64 bits."""
    return isinstance(x, float) or (isinstance(x, int) and -(1 << 63) <= x < 1 << 63)


def as_floats(numbers: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The same numbers, those of other types as floats; None if there is something else among them."""
    try:
        return tuple(x if is_plain(x) else _float(x) for x in numbers)
    except (TypeError, ValueError, OverflowError):
        return None


def _float(x: Any) -> float:
    if isinstance(x, (str, bytes, bytearray, Tensor)):
        raise TypeError
    return float(x)


def torch_accepts(
    twin: Callable[[list[Tensor]], Optimizer],
    group: dict[str, Any],
    step: Callable[[Any], object],
    sparse: bool = False,
) -> bool:
    """Whether torch's step of a class raises no TypeError for the hyperparameters of a group.

    Args:
        twin: the class.
        group: one of ``param_groups``.
        step: takes a step of an instance of the class.
        sparse: the class takes sparse gradients alone.
    """
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    key = twin, tuple((name, _kind(value)) for name, value in options.items())
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
                optimizer = twin([p])
                optimizer.param_groups[0].update(options)
                for _ in range(_STEPS):
                    step(optimizer)
            answer = True
        except TypeError:
            answer = False
        except Exception:  # it depends on the value, so that the step itself must show it
            return False
        if len(_answers) > 1000:
            _answers.clear()
        _answers[key] = answer
    return answer


def _kind(x: Any) -> object:
    """What an answer may depend on: the type of a number and whether it is 0, and the value of an option by name."""
    if x is None or isinstance(x, (bool, str)):
        return x
    if isinstance(x, (tuple, list)):
        return type(x), tuple(map(_kind, x))
    try:
        return type(x), bool(x == 0), is_plain(x)
    except Exception:  # an array of several has no truth value
        return type(x)
