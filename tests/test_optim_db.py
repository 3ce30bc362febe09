"""torch's own list of arguments and errors, for the optimizers that test_dropin.py cannot step: they take closures, or
sparse gradients alone. Muon's is in test_muon.py.
"""

import warnings

import pytest
import torch
from problems import sums_in_our_order
from torch import Tensor

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that hypothesis is not installed
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

INFOS = {info.name: info for info in optim_db if info.name in ("LBFGS", "SparseAdam")}
INPUTS = [
    pytest.param(name, i, id=f"{name}-{x.desc}")
    for name, info in INFOS.items()
    for i, x in enumerate(info.optim_inputs_func(device="cpu"))
]

pytestmark = [
    pytest.mark.usefixtures("threads"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


def run(optimizer: type[torch.optim.Optimizer], options: dict[str, object]) -> tuple[list[Tensor], object]:
    """Some steps on two parameters, and the state behind them."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(5, 3, generator=generator).requires_grad_() for _ in range(2)]
    opt = optimizer(params, **options)
    for step in range(4):
        rows = torch.tensor([[step, 0, step]])
        values = torch.randn(3, 3, generator=generator)

        def closure(rows: Tensor = rows, values: Tensor = values) -> Tensor:
            opt.zero_grad()
            loss = sum(((p - 1) ** 4).sum() for p in params)
            loss.backward()
            if issubclass(optimizer, torch.optim.SparseAdam):
                for p in params:
                    p.grad = torch.sparse_coo_tensor(rows, values, p.shape, check_invariants=False)
            return loss.detach()

        with ieee_sqrt(), sums_in_our_order():
            opt.step(closure)
    return params, opt.state_dict()["state"]


@pytest.mark.parametrize(("name", "i"), INPUTS)
def test_every_input(name, i):
    """Bit for bit; of LBFGS with its sums in our order."""
    options = [INFOS[name].optim_inputs_func(device="cpu")[i].kwargs for _ in range(2)]  # a run may change them
    ours = run(getattr(goptim, name), options[0])
    assert_bit_equal(ours, run(getattr(torch.optim, name), options[1]))


@pytest.mark.parametrize("name", INFOS)
def test_every_error(name):
    errors = INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
    assert errors
    for error in errors:
        given = error.optimizer_error_input
        expect = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
        params = [torch.ones(3, 4, requires_grad=True)] if given.params is None else given.params
        if error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with expect(error.error_type, match=error.error_regex):
                getattr(goptim, name)(params, **given.kwargs)
        else:
            opt = getattr(goptim, name)(params, **given.kwargs)
            with expect(error.error_type, match=error.error_regex):
                opt.step()
