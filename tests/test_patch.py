"""Patched classes of torch.optim construct goptim's optimizers, however a program refers to them, until unpatched."""

import copy
import functools
import inspect
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW as early

import goptim
from goptim._patch import replacements
from goptim.testing import assert_bit_equal, ieee_sqrt

TWINS = replacements()

# Places where programs store classes.
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


def test_arguments_and_errors_are_those_of_the_class():
    with goptim.patch():
        opt = torch.optim.SGD(params(), 0.5, momentum=0.9)
        assert (opt.defaults["lr"], opt.defaults["momentum"]) == (0.5, 0.9)
        with pytest.raises(ValueError, match="Invalid learning rate: -1"):
            torch.optim.SGD(params(), -1)
        with pytest.raises(TypeError, match=r"goptim\.Adafactor has torch.optim.Adafactor's arguments"):
            torch.optim.Adafactor(params(), relative_step=True)


def test_a_step_is_exact():
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


def test_existing_optimizers_and_copies_stay_torchs():
    before = early(params())
    before.step()
    pickled = pickle.dumps(before)
    with goptim.patch():
        for opt in (before, copy.copy(before), copy.deepcopy(before), pickle.loads(pickled)):
            assert type(opt) is early
            opt.step()


def test_optimizers_stay_goptims_after_unpatch():
    with goptim.patch():
        ours = early(params())
        ours.step()
    for opt in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(opt) is goptim.AdamW
        opt.step()
    theirs = early(params())
    theirs.load_state_dict(ours.state_dict())


def test_derived_classes_are_not_patched():
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


BY_HAND = """
import copy, importlib, pickle, sys, tempfile
import torch

how = sys.argv[1]
from torch.optim import *
from torch.optim.lr_scheduler import StepLR
originals = {name: getattr(torch.optim, name) for name in torch.optim.__all__}
originals = {name: c for name, c in originals.items() if isinstance(c, type) and name != "Optimizer"}

import goptim

if how == "over a patch":
    goptim.patch()
for name, theirs in originals.items():
    ours = getattr(goptim, name)
    if how == "methods":
        theirs.step = ours.step
    else:
        setattr(torch.optim, name, ours)
    if how == "in its module":
        setattr(sys.modules[theirs.__module__], name, ours)
if how == "the package":
    torch.optim = sys.modules["torch.optim"] = goptim
if how == "under a patch":
    goptim.patch()
elif how == "over a patch":
    goptim.unpatch()
elif how == "imported anew":
    for name in [m for m in sys.modules if m.partition(".")[0] == "goptim"]:
        if name != "goptim._core":
            del sys.modules[name]
    goptim = importlib.import_module("goptim")
    for name in originals:
        setattr(torch.optim, name, getattr(goptim, name))
elif how == "reloaded":
    importlib.reload(goptim)
    try:
        importlib.reload(sys.modules["torch.optim"])
    except NameError:
        pass  # as it does without us
exec("from torch.optim import *" if how != "methods" else "")

# What falls back to torch's step, in whole or in part.
make = {
    "bfloat16": lambda: [torch.full((2, 2), 0.01, dtype=torch.bfloat16)],
    "both": lambda: [torch.full((2, 2), 0.01), torch.full((2, 2), 0.01, dtype=torch.bfloat16)],
    "neither": lambda: [torch.full((2, 2), 0.01)],
}
for name, theirs in originals.items():
    ours = getattr(goptim, name)
    assert issubclass(ours, theirs) and ours.__module__.startswith("goptim.")
    assert getattr(ours, "twin", theirs) is theirs, (name, ours.twin)
    for what in make:
        if what == "both" and name in ("LBFGS",):
            continue
        for cls in (ours,) if how == "methods" else (ours, getattr(torch.optim, name)):
            params = make[what]()

            def closure():
                for p in params:
                    g = torch.ones_like(p)
                    p.grad = g.to_sparse(1) if name == "SparseAdam" else g
                return sum(float(p.sum()) for p in params)

            opt = cls([p.requires_grad_() for p in params])
            scheduler = StepLR(opt, 1)
            for _ in range(2):
                closure()
                opt.step(closure)
                scheduler.step()
            assert all((p != torch.tensor(0.01, dtype=p.dtype)).all() for p in params), (name, what)
            twin = copy.deepcopy(opt)
            if how not in ("imported anew", "methods", "in its module", "reloaded"):
                pickle.loads(pickle.dumps(opt))
            twin.load_state_dict(opt.state_dict())
            if isinstance(opt, ours):
                print(goptim.explain(opt))
            with tempfile.TemporaryDirectory() as folder:
                goptim.save_state(opt, f"{folder}/state")
                goptim.load_state(opt, f"{folder}/state")
print("ok")
"""


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("attributes", marks=pytest.mark.full),
        "in its module",
        pytest.param("methods", marks=pytest.mark.full),
        pytest.param("under a patch", marks=pytest.mark.full),
        pytest.param("over a patch", marks=pytest.mark.full),
        pytest.param("the package", marks=pytest.mark.full),
        pytest.param("imported anew", marks=pytest.mark.full),
        pytest.param("reloaded", marks=pytest.mark.full),
    ],
)
def test_classes_assigned_to_torch_optim(how):
    """No step calls itself, whichever classes are replaced."""
    done = subprocess.run([sys.executable, "-c", BY_HAND, how], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("ok\n")


BEFORE_IMPORT = """
import functools, sys
import torch

original, path = torch.optim.SGD, sys.argv[2]
replacement = functools.partial(original, lr=1) if sys.argv[1] == "function" else type("SGD", (original,), {})
torch.optim.SGD = sys.modules["torch.optim.sgd"].SGD = replacement
import goptim

for cls in goptim.SGD, original:
    opt = cls([torch.ones(2, requires_grad=True)], lr=3)
    goptim.save_state(opt, path)
    opt.param_groups[0]["lr"] = 1
    goptim.load_state(opt, path)
    assert opt.param_groups[0]["lr"] == 3
"""


@pytest.mark.parametrize("what", ["class", pytest.param("function", marks=pytest.mark.full)])
def test_states_in_files_where_torch_optim_has_another_class(what, tmp_path):
    """A class of torch.optim that was replaced before the import of goptim is still the one whose state is saved."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_IMPORT, what, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
