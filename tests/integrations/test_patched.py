"""`goptim.patch()` does not change other packages' optimizers that are derived from torch's."""

import contextlib

import pytest
import torch
from stacks import load
from torch import nn

import goptim
from goptim import _originals
from goptim.testing import assert_bit_equal

optimi = load("optimi")
schedulefree = load("schedulefree")
timm_optim = load("timm.optim")
factory = load("timm.optim._optim_factory")


def classes_of(module):
    found = {name: x for name, x in vars(module).items() if isinstance(x, type)}
    return {name: x for name, x in found.items() if issubclass(x, torch.optim.Optimizer)}


CLASSES = {
    f"{module.__name__}.{name}": cls
    for module in (optimi, schedulefree)
    for name, cls in sorted(classes_of(module).items())
    if cls.__module__.partition(".")[0] == module.__name__ and not name.startswith(("Optimi", "_"))
}


def train(cls, dtype, patched):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    with goptim.patch() if patched else contextlib.nullcontext():
        optimizer = cls(model)
        assert type(optimizer).__module__.partition(".")[0] != "goptim"
        if hasattr(optimizer, "train"):
            optimizer.train()
        x = torch.randn(5, 6, dtype=dtype)
        for _ in range(4):
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step((lambda loss=loss: loss.detach()) if "Closure" in type(optimizer).__name__ else None)
            optimizer.zero_grad()
        if hasattr(optimizer, "eval"):
            optimizer.eval()
    return model.state_dict(), optimizer.state_dict()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_optimizers_of_optimi_and_schedulefree(name, dtype):
    cls = CLASSES[name]

    def make(model):
        if "Wrapper" in name:
            return cls(torch.optim.SGD(model.parameters(), lr=0.01))
        return cls(model.parameters(), lr=0.01)

    stepped = assert_same(make, dtype)
    assert stepped or dtype is not torch.float32 or name == "optimi.StableAdamW"  # needs a GPU if triton is installed


def assert_same(make, dtype):
    """The same exact result with the patch; or the same error, for example if a package needs a GPU."""
    outcomes = []
    for patched in (False, True):
        try:
            outcomes.append(train(make, dtype, patched))
        except Exception as e:
            outcomes.append((type(e), str(e)))
    expected, actual = outcomes
    if isinstance(expected[0], type):
        assert actual == expected
    else:
        assert_bit_equal(actual, expected)
    return not isinstance(expected[0], type)


OWN = sorted(
    name
    for name, info in factory.default_registry._optimizers.items()
    if isinstance(info.opt_class, type) and info.opt_class not in _originals.CLASSES.values()
)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
def test_timms_own_optimizers(name):
    def make(model):
        return timm_optim.create_optimizer_v2(model, name, lr=0.01)

    assert_same(make, torch.float32)


def test_optimi_has_triton_and_no_gpu():
    """It is imported and constructed with a patch, on a machine with triton and without a GPU."""
    pytest.importorskip("triton")
    assert not torch.cuda.is_available()
    with goptim.patch():
        opt = optimi.AdamW(nn.Linear(2, 2).parameters(), lr=0.01)
    assert opt.param_groups[0]["lr"] == 0.01
