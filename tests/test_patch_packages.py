"""goptim.patch and the classes of other packages, with a package made here that has a class of schedulefree's name."""

import importlib
import pickle
import sys
import types

import pytest
import torch
from torch.nn import Parameter

import goptim
from goptim import _packages
from goptim.testing import assert_bit_equal

SOURCE = """
import torch

class AdamWScheduleFree(torch.optim.Optimizer):
    def __init__(self, params, lr=0.0025, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, warmup_steps=0, r=0.0,
                 weight_lr_power=2.0, foreach=True, other=None):
        self.own = True
        super().__init__(params, {"lr": lr})

class Derived(AdamWScheduleFree):
    pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package that can be imported as schedulefree."""
    (tmp_path / "schedulefree.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "schedulefree", raising=False)
    _packages.class_of.cache_clear()
    yield
    goptim.unpatch()
    sys.modules.pop("schedulefree", None)
    _packages.class_of.cache_clear()


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("first", ["patch", "import"])
def test_a_patched_class(first):
    if first == "import":
        importlib.import_module("schedulefree")
    with goptim.patch():
        assert ("schedulefree" in sys.modules) == (first == "import")
        module = importlib.import_module("schedulefree")
        p = Parameter(torch.ones(3))
        opt = module.AdamWScheduleFree([p], 0.1, weight_decay=0.1)
        assert isinstance(opt, module.AdamWScheduleFree)
        assert isinstance(opt, goptim.AdamWScheduleFree)
        assert type(opt).__name__ == "AdamWScheduleFree"
        assert not hasattr(opt, "own")
        opt.train()
        p.grad = torch.ones(3)
        opt.step()
        assert opt.param_groups[0]["k"] == 1
        assert goptim.explain(opt)[0].to == "go"
        other = pickle.loads(pickle.dumps(opt))
        assert type(other) is type(opt)
        assert other.param_groups[0]["k"] == 1
        assert type(module.Derived([p])) is module.Derived
        assert type(module.AdamWScheduleFree([p], other=1)) is module.AdamWScheduleFree
    assert type(module.AdamWScheduleFree([p])) is module.AdamWScheduleFree
    opt.step()
    assert opt.param_groups[0]["k"] == 2


@pytest.mark.usefixtures("package")
def test_names_for_pickle():
    cls = _packages.schedulefree.AdamWScheduleFree
    assert (cls.__module__, cls.__qualname__) == ("goptim._packages", "schedulefree.AdamWScheduleFree")
    for name in ("nothing", "schedulefree.Nothing"):
        with pytest.raises(AttributeError, match=rf"module 'goptim\._packages' has no attribute '{name}'"):
            _packages._find(name)


@pytest.mark.usefixtures("package")
def test_no_import_after_the_patch():
    with goptim.patch():
        pass
    module = importlib.import_module("schedulefree")
    assert type(module.AdamWScheduleFree([torch.ones(1)])) is module.AdamWScheduleFree
    assert not any(type(finder).__module__ == "goptim._functions" for finder in sys.meta_path)


def test_arguments_that_are_not_replaced():
    assert _packages.replaces("lion_pytorch.Lion", ([],), {"lr": 0.1})
    assert not _packages.replaces("lion_pytorch.Lion", ([],), {"use_triton": True})
    assert not _packages.replaces("lion_pytorch.Lion", ([],), {"unknown": 1})
    assert _packages.replaces("pytorch_optimizer.AdEMAMix", ([],), {"maximize": True})
    assert not _packages.replaces("pytorch_optimizer.AdEMAMix", ([],), {"cautious": True})


@pytest.mark.parametrize("name", ["AdEMAMix", "Lion"])
def test_8_bit_and_paged_optimizers_are_not_replaced(name, monkeypatch):
    reference = f"bitsandbytes.optim.{name}"
    assert _packages.replaces(reference, ([],), {"optim_bits": 32, "is_paged": False, "min_8bit_size": 1})
    cls = getattr(goptim.bitsandbytes, name)
    for options in ({"optim_bits": 8}, {"is_paged": True}):
        assert not _packages.replaces(reference, ([],), options)
        with pytest.raises(ValueError, match=next(iter(options))):
            cls([torch.zeros(1)], **options)
    opt = cls([torch.zeros(3)])
    saved = opt.state_dict()
    saved["state"] = {0: {"step": 1, "state1": torch.zeros(3, dtype=torch.uint8)}}
    with pytest.raises(ValueError, match=r"state1 is of torch\.uint8"):
        opt.load_state_dict(saved)
    # Options of single parameters, such as optim_bits, may be registered before an optimizer is constructed.
    manager = types.SimpleNamespace(_instance=types.SimpleNamespace(pid2config={1: {"optim_bits": 8}}))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.optimizer", types.SimpleNamespace(GlobalOptimManager=manager))
    assert not _packages.replaces(reference, ([],), {})


@pytest.mark.parametrize("name", ["AdEMAMix", "Lion"])
def test_a_state_dict_of_bitsandbytes(name):
    """It has one key for all tensors of a parameter, and stacks the two averages of AdEMAMix."""
    cls = getattr(goptim.bitsandbytes, name)
    params = [Parameter(torch.arange(6.0).view(2, 3).to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    opt, other = cls(params), cls(params)
    for p in params:
        p.grad = torch.full_like(p, 0.1)
    opt.step()
    saved = opt.state_dict()
    for i, p in enumerate(params):
        assert list(saved["state"][i]) == ["step", "__bnb_optimizer_quant_state__"]
        tensors = saved["state"][i]["__bnb_optimizer_quant_state__"]
        stacked = [2] if name == "AdEMAMix" else []
        assert tensors["state1"].shape == (*stacked, *p.shape)
        assert {t.dtype for t in tensors.values()} == {torch.float32}
    other.load_state_dict(saved)
    assert_bit_equal(dict(other.state), {p: {k: opt.state[p][k] for k in other.state[p]} for p in params})
    flat = {i: {"step": s["step"], **s["__bnb_optimizer_quant_state__"]} for i, s in saved["state"].items()}
    other.load_state_dict({**saved, "state": flat})  # of earlier versions
    assert_bit_equal(other.state_dict()["state"], saved["state"])
