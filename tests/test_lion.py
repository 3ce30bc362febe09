"""Lion's arguments that are not options of a group, and a direction that depends on rounding."""

import pytest
import torch
from configurations import both_classes, gradients, normal
from torch.nn import Parameter

import goptim
from goptim.testing import assert_bit_equal


@pytest.mark.parametrize("cls", both_classes("Lion"), ids=["for-loop", "goptim"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_triton": True}, "Invalid use_triton: True, expected False: there is no kernel for GPUs"),
        ({"lr": -1.0}, "Invalid learning rate: -1.0, expected at least 0"),
        ({"lr": 0.0, "decoupled_weight_decay": True}, "Invalid learning rate: 0.0, expected above 0 with decoupled_"),
        ({"betas": (0.9, 1.5)}, "Invalid beta parameter at index 1: 1.5, expected 0 to 1"),
        ({"weight_decay": float("nan")}, "Invalid weight_decay value: nan, expected at least 0"),
    ],
    ids=str,
)
def test_bad_arguments(cls, options, says):
    with pytest.raises(ValueError, match=says):
        cls([torch.zeros(1)], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_that_is_a_rounding_error(dtype):
    """The product with the gradient is not rounded before it is added, so that its rounding error remains."""
    g, runs = normal((1003,), dtype, 0), []
    for cls in both_classes("Lion"):
        p = Parameter(torch.zeros_like(g))
        opt = cls([p], lr=1.0, betas=(0.25, 0.9))
        opt.state[p]["exp_avg"] = -4 * (0.75 * g)
        p.grad = g
        opt.step()
        runs.append((p, opt.state[p]["exp_avg"]))
    assert_bit_equal(*runs)
    assert set(runs[0][0].tolist()) == {-1.0, 0.0, 1.0}


def test_files_reject_decoupled_weight_decay(tmp_path):
    """It is relative to the first learning rate, which neither a state_dict nor a file has."""
    p = Parameter(torch.ones(3))
    goptim.save_state(goptim.Lion([p]), tmp_path / "state")
    for cls in both_classes("Lion"):
        opt = cls([p], decoupled_weight_decay=True)
        for call in (goptim.save_state, goptim.load_state):
            with pytest.raises(TypeError, match="Lion: its decoupled_weight_decay is not in its groups, which a file"):
                call(opt, tmp_path / "state")


def double(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("number", [int, float, double])
def test_decoupled_weight_decay_is_relative_to_the_first_learning_rate(number):
    """Also with a schedule, and with a Tensor, for which it falls back."""
    params, options = [Parameter(normal((37,), torch.float32, 0))], {"lr": 0.0123, "betas": (0.8, 0.95)}
    expected = [Parameter(params[0].detach().clone())]
    opt = goptim.Lion(params, **options, weight_decay=number(2), decoupled_weight_decay=True)
    plain = goptim.Lion(expected, **options, weight_decay=2 / 0.0123)
    assert goptim.explain(opt)[0].to == ("torch" if number is double else "go")
    for step in range(5):
        for p, q, g in zip(params, expected, gradients(params, step), strict=True):
            p.grad = q.grad = g
        for x in (opt, plain):
            x.param_groups[0]["lr"] = 0.0123 / (step + 1)
            x.step()
    assert_bit_equal(params, expected)
