"""torch.optim's classes build goptim's optimizers, wherever a program has them from; and go back to what they were."""

import copy
import functools
import inspect
import pickle
import sys
import threading

import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW as early

import goptim
from goptim._patch import twins
from goptim.testing import assert_bit_equal, ieee_sqrt

TWINS = twins()

# Where programs keep classes.
partial = functools.partial(torch.optim.AdamW, lr=0.1)
registry = {"adamw": torch.optim.AdamW}


def default(params, optimizer=torch.optim.AdamW):
    return optimizer(params)


class Holder:
    optimizer = torch.optim.AdamW


class Derived(torch.optim.AdamW):
    pass


WAYS = {
    "attribute": lambda p: torch.optim.AdamW(p),
    "submodule": lambda p: sys.modules["torch.optim.adamw"].AdamW(p),
    "looked up": lambda p: getattr(torch.optim, "AdamW")(p),  # noqa: B009
    "imported before": lambda p: early(p),
    "partial": lambda p: partial(p),
    "dict": lambda p: registry["adamw"](p),
    "default argument": default,
    "class attribute": lambda p: Holder.optimizer(p),
    "by __new__ and __init__": lambda p: by_hand(early, p),
}


def by_hand(optimizer, params):
    made = optimizer.__new__(optimizer)
    optimizer.__init__(made, params)
    return made


def params():
    torch.manual_seed(0)
    p = Parameter(torch.randn(3, 4))
    p.grad = torch.randn(3, 4)
    return [p]


@pytest.fixture(autouse=True)
def unpatched():
    assert torch.optim.AdamW([torch.zeros(1)]).__class__ is torch.optim.AdamW
    yield
    goptim.unpatch()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_class(way):
    with goptim.patch():
        opt = WAYS[way](params())
    assert type(opt) is goptim.AdamW
    assert isinstance(opt, early)
    assert type(WAYS[way](params())) is early


def test_every_class():
    names = {name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)} - {"Optimizer"}
    assert {c.__name__ for c in TWINS} == names
    before = {c: dict(vars(c)) for c in TWINS}
    signatures = {c: inspect.signature(c) for c in TWINS}
    with goptim.patch():
        for theirs, ours in TWINS.items():
            assert type(theirs(params())) is ours
            assert inspect.signature(theirs) == signatures[theirs]
            assert type(ours(params())) is ours
    assert {c: dict(vars(c)) for c in TWINS} == before
    for theirs in TWINS:
        assert type(theirs(params())) is theirs


def test_arguments_and_errors_are_the_classs_own():
    with goptim.patch():
        opt = torch.optim.SGD(params(), 0.5, momentum=0.9)
        assert (opt.defaults["lr"], opt.defaults["momentum"]) == (0.5, 0.9)
        with pytest.raises(ValueError, match="Invalid learning rate: -1"):
            torch.optim.SGD(params(), -1)
        with pytest.raises(TypeError, match=r"goptim\.Adafactor has torch.optim.Adafactor's arguments"):
            torch.optim.Adafactor(params(), relative_step=True)


def test_a_step_has_torchs_bits():
    runs = []
    for patch in (False, True):
        if patch:
            goptim.patch()
        opt = torch.optim.AdamW(params(), foreach=False)
        with ieee_sqrt():
            opt.step()
        runs.append((opt.param_groups[0]["params"], list(opt.state.values())))
    assert_bit_equal(*runs)


def test_patches_within_patches():
    def patched():
        return type(early(params())) is goptim.AdamW

    with goptim.patch():
        with goptim.patch():
            assert patched()
        assert patched()
        goptim.unpatch()
        assert not patched()
    goptim.patch()
    with pytest.raises(KeyError), goptim.patch():
        raise KeyError
    assert patched()
    goptim.patch()
    goptim.unpatch()
    assert not patched()
    goptim.unpatch()


def test_what_was_built_before_stays_torchs_and_so_do_its_copies():
    before = early(params())
    before.step()
    pickled = pickle.dumps(before)
    with goptim.patch():
        for opt in (before, copy.copy(before), copy.deepcopy(before), pickle.loads(pickled)):
            assert type(opt) is early
            opt.step()


def test_what_was_built_in_between_stays_goptims():
    with goptim.patch():
        ours = early(params())
        ours.step()
    for opt in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(opt) is goptim.AdamW
        opt.step()
    theirs = early(params())
    theirs.load_state_dict(ours.state_dict())


def test_derived_classes_are_themselves():
    with goptim.patch():
        assert type(Derived(params())) is Derived

        class Late(torch.optim.Adam):
            pass

        assert type(Late(params())) is Late
    if issubclass(torch.optim.AdamW, torch.optim.Adam):
        with goptim.patch():
            assert type(torch.optim.AdamW(params())) is goptim.AdamW


def test_somebody_else_wraps_a_constructor(monkeypatch):
    calls = []
    goptim.patch()
    below = early.__init__

    def wrapper(self, *args, **kwargs):
        calls.append(type(self))
        below(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(early, "__init__", wrapper)
        assert type(early(params())) is goptim.AdamW
        goptim.unpatch()
        assert early.__init__ is wrapper
        assert type(early(params())) is early
    assert calls
    early.__init__ = below.__wrapped__


def test_patches_from_many_threads():
    threads = [threading.Thread(target=goptim.patch) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert type(early(params())) is goptim.AdamW
    goptim.unpatch()
    assert type(early(params())) is early
