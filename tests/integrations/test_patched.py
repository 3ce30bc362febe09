"""With `goptim.patch()`, other packages' optimizers have the same exact results, in Go if goptim has their class."""

import contextlib
import pickle
import warnings

import pytest
import torch
from stacks import load, state_of
from torch import nn

import goptim
from goptim import _for_loop, _originals
from goptim.testing import assert_bit_equal, ieee_sqrt

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


def is_replaced(cls):
    return cls.__module__ == "goptim._packages"


def train(cls, dtype, patched):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    with goptim.patch() if patched else contextlib.nullcontext():
        optimizer = cls(model)
        replaced = is_replaced(type(optimizer))
        if replaced and patched and dtype is not torch.float32:
            pytest.skip("goptim rounds 16-bit parameters once in a step")
        assert replaced <= patched
        if hasattr(optimizer, "train"):
            optimizer.train()
        x = torch.randn(5, 6, dtype=dtype)
        for _ in range(4):
            loss = model(x).square().mean()
            loss.backward()
            if replaced and not any(group.get(key) for group in optimizer.param_groups for key in optimizer.kind.leave):
                assert {row.to for row in goptim.explain(optimizer)} == {"go"}
            optimizer.step((lambda loss=loss: loss.detach()) if "Closure" in type(optimizer).__name__ else None)
            optimizer.zero_grad()
        if hasattr(optimizer, "eval"):
            optimizer.eval()
    return model.state_dict(), state_of(optimizer)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_optimizers_of_optimi_and_schedulefree(name, dtype, monkeypatch):
    monkeypatch.setattr(load("optimi.utils"), "HAS_TRITON", False)  # which StableAdamW uses on CPUs too
    cls = CLASSES[name]

    def make(model):
        if "Wrapper" in name:
            return cls(
                torch.optim.SGD(model.parameters(), lr=0.01, foreach=False, fused=False)
            )  # torch's bits for bfloat16
        # Without momentum, goptim's SGD has no state. That of torch-optimi has keys whose values are None.
        return cls(model.parameters(), lr=0.01, **({"momentum": 0.9} if name == "optimi.SGD" else {}))

    stepped = assert_same(make, dtype)
    assert stepped or dtype is not torch.float32


def assert_same(make, dtype):
    """The same exact result with the patch; or the same error, for example if a package needs a GPU."""
    outcomes = []
    for patched in (False, True):
        try:
            with ieee_sqrt():
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


def test_which_of_timms_are_replaced():
    """All with a class that goptim's are compared with; without, for example, the cautious variants of others."""
    known = {cls.reference for cls in _for_loop.CLASSES.values()}
    replaced = set()
    for name in OWN:
        with goptim.patch(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt = timm_optim.create_optimizer_v2(nn.Linear(2, 2), name, lr=0.01)
        theirs = factory.default_registry._optimizers[name].opt_class
        assert is_replaced(type(opt)) == (f"timm.optim.{theirs.__name__}" in known), name
        assert isinstance(opt, theirs)
        if is_replaced(type(opt)):
            replaced.add(name)
            assert type(pickle.loads(pickle.dumps(opt))) is type(opt)
    assert {"lion", "clion", "nadamw", "adopt", "adoptw", "cadamw", "adamc", "sgdw", "rmsproptf"} <= replaced


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
