"""Patched classes of torch.optim construct goptim's optimizers, however a program refers to them, until unpatched."""

import copy
import functools
import importlib
import inspect
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest
import torch
from torch.nn import Parameter, utils
from torch.nn.utils import clip_grad_norm_ as early_clip, clip_grad_value_
from torch.optim import AdamW as early, swa_utils
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import goptim
from goptim import _functions, _lists, _native, _originals
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
    torch.default_generator.manual_seed(0)
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
    "gaps": lambda: [torch.full((2, 4), 0.01)[:, ::2]],
    "both": lambda: [torch.full((2, 2), 0.01), torch.full((2, 4), 0.01)[:, ::2]],
    "neither": lambda: [torch.full((2, 2), 0.01)],
}
for name, theirs in originals.items():
    ours = getattr(goptim, name)
    assert issubclass(ours, theirs) and ours.__module__.startswith("goptim.")
    assert getattr(ours, "torch_class", theirs) is theirs, (name, ours.torch_class)
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
            copied = copy.deepcopy(opt)
            if how not in ("imported anew", "methods", "in its module", "reloaded"):
                pickle.loads(pickle.dumps(opt))
            copied.load_state_dict(opt.state_dict())
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


@pytest.mark.full
@pytest.mark.parametrize("what", ["class", "function"])
def test_states_in_files_where_torch_optim_has_another_class(what, tmp_path):
    """A class of torch.optim that was replaced before the import of goptim is still the one whose state is saved."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_IMPORT, what, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def clipped(gradients):
    """Parameters with these gradients."""
    found = []
    for g in gradients:
        p = Parameter(torch.zeros(g.shape, dtype=g.dtype))
        p.grad = g.clone()
        found.append(p)
    return found


def several():
    torch.default_generator.manual_seed(0)
    return clipped([torch.randn(3, 4), torch.randn(5), torch.randn(70)])


@pytest.fixture
def rows(monkeypatch):
    """The numbers of rows that ran in Go, by kind."""
    found = {}
    monkeypatch.setattr(_lists, "watch", lambda kind, n: found.update({kind: found.get(kind, 0) + n}))
    return found


@pytest.fixture
def in_use():
    """The extension is loaded, as by the first optimizer."""
    goptim.SGD(params(), lr=0.1)
    assert _native.in_use()


partial_clip = functools.partial(utils.clip_grad_norm_, max_norm=0.5)

# Functions that torch or a program may call, and the kinds that run in Go.
CALLS = {
    "clip_grad_norm_": (lambda ps: utils.clip_grad_norm_(ps, 0.5), {"ClipGradNorm": 3}),
    "imported before": (lambda ps: early_clip(iter(ps), max_norm=0.5), {"ClipGradNorm": 3}),
    "keyword": (lambda ps: utils.clip_grad_norm_(parameters=ps, max_norm=0.5), {"ClipGradNorm": 3}),
    "in its module": (lambda ps: utils.clip_grad.clip_grad_norm_(ps, 0.5, norm_type="inf"), {"ClipGradNorm": 3}),
    "partial": (lambda ps: partial_clip(ps), {"ClipGradNorm": 3}),
    "generator": (lambda ps: utils.clip_grad_norm_((p for p in ps), 0.5), {"ClipGradNorm": 3}),
    "deprecated": (lambda ps: utils.clip_grad_norm(ps, 0.5), {"ClipGradNorm": 3}),
    "another norm": (lambda ps: utils.clip_grad_norm_(ps, 0.5, 3), {"Scale": 3}),
    "clip_grad_value_": (lambda ps: clip_grad_value_(ps, 0.5), {"Clamp": 3}),
    "get_total_norm": (lambda ps: utils.get_total_norm([p.grad for p in ps]), {"GradNorm": 3}),
    "_get_total_norm": (lambda ps: utils.clip_grad._get_total_norm([p.grad for p in ps]), {"GradNorm": 3}),
    "clip_grads_with_norm_": (lambda ps: utils.clip_grads_with_norm_(ps, 0.5, torch.tensor(3.0)), {"Scale": 3}),
    "get_ema_multi_avg_fn": (
        lambda ps: get_ema_multi_avg_fn(0.9)([p.grad for p in ps], [p.detach() for p in ps], None),
        {"Lerp": 3},
    ),
    "get_swa_multi_avg_fn": (
        lambda ps: swa_utils.get_swa_multi_avg_fn()([p.grad for p in ps], [p.detach() for p in ps], torch.tensor(3)),
        {"Lerp": 3},
    ),
}


@pytest.mark.filterwarnings("ignore:.*is now deprecated:FutureWarning")
@pytest.mark.parametrize("name", CALLS)
def test_functions_run_in_go(rows, in_use, name):
    call, kinds = CALLS[name]

    def run():
        ps = several()
        return call(ps), [p.grad for p in ps], torch.tensor([p.grad._version for p in ps])

    expected = run()
    assert not rows
    with goptim.patch():
        assert_bit_equal(run(), expected)
    assert rows == kinds
    assert_bit_equal(run(), expected)
    assert rows == kinds


def averaged(model, updates=3):
    found = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(updates):
        found.update_parameters(model)
    return found


def test_averaged_models_run_in_go(rows, in_use):
    model = torch.nn.Linear(2, 3)
    before = averaged(model)
    with goptim.patch():
        before.update_parameters(model)
        assert rows == {"Lerp": 2}
        found = averaged(model)
        assert type(found) is AveragedModel
        assert rows == {"Lerp": 6, "Copy": 2}
    assert_bit_equal(found.state_dict(), averaged(model).state_dict())
    bound = found.update_parameters
    bound(model)
    assert rows == {"Lerp": 6, "Copy": 2}


def places():
    """What a patch of functions may change."""
    cells = {name: [c.cell_contents for c in f.__closure__] for name, f in _originals.DECORATED.items()}
    codes = {name: (f.__code__, dict(vars(f))) for name, f in _originals.SWA.items()}
    return (
        cells,
        codes,
        dict(vars(AveragedModel)),
        list(sys.meta_path),
        set(vars(swa_utils)),
        dict(vars(utils.clip_grad)),
    )


def test_unpatch_restores_all_functions(in_use):
    before = places()
    with goptim.patch():
        now = places()
        assert all(a != b for a, b in zip(before[:5], now[:5], strict=True))
        goptim.patch()
    assert places() == before


def test_signatures_and_names_stay():
    functions = [*_originals.DECORATED.values(), *_originals.SWA.values(), AveragedModel.update_parameters]
    before = [(inspect.signature(f), f.__name__, f.__doc__, f.__module__) for f in functions]
    with goptim.patch():
        functions = [*_originals.DECORATED.values(), *_originals.SWA.values(), AveragedModel.update_parameters]
        assert [(inspect.signature(f), f.__name__, f.__doc__, f.__module__) for f in functions] == before


def test_errors_and_warnings_are_torchs(in_use):
    def outcomes():
        found = []
        for call in (
            lambda: utils.clip_grad_norm_(several(), 0.5, error_if_nonfinite=True, foreach=True),
            lambda: utils.clip_grad_norm_(clipped([torch.tensor([torch.inf])]), 0.5, error_if_nonfinite=True),
            lambda: utils.clip_grad_norm_(several()),
            lambda: utils.clip_grad_norm_(several(), max_norm=1, most=3),
            lambda: utils.clip_grad_norm_(3, 1),
            lambda: utils.clip_grad_norm_((p for p in ()), 1),
            lambda: get_ema_multi_avg_fn(2),
            lambda: get_ema_multi_avg_fn(decay=0.5, more=1),
        ):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    result = call()
                    found.append(float(result) if isinstance(result, torch.Tensor) else type(result))
                except Exception as e:
                    found.append((type(e), str(e)))
            found.append([(str(w.message), w.category, w.filename) for w in caught])
        return found

    expected = outcomes()
    with goptim.patch():
        assert outcomes() == expected


@pytest.mark.parametrize("where", ["compiled", "dispatch mode", "functorch", "forked", "not loaded"])
def test_functions_are_torchs_where_go_cannot_be_used(rows, in_use, monkeypatch, where):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    model = torch.nn.Linear(2, 3)

    def run(ps=None):
        ps = several() if ps is None else ps
        norm = early_clip(ps, 0.5)
        clip_grad_value_(ps, 0.2)
        return norm, [p.grad for p in ps]

    expected = run(), averaged(model).state_dict()
    with goptim.patch():
        if where == "compiled":
            ps = several()
            norm = torch.compile(lambda: early_clip(ps, 0.5), backend="eager")()
            clip_grad_value_(ps, 0.2)
            assert set(rows) == {"Clamp"}
            rows.clear()
            found = (norm, [p.grad for p in ps]), expected[1]
            average = averaged(model, updates=0)
            torch.compile(lambda: average.update_parameters(model), backend="eager")()
        elif where == "dispatch mode":
            with Mode():
                found = run(), averaged(model).state_dict()
        elif where == "functorch":
            ps = several()
            torch.func.vmap(lambda x: (run(ps), x)[1])(torch.zeros(1))
            found = (expected[0][0], [p.grad for p in ps]), expected[1]
        else:
            monkeypatch.setattr(_native, "_forked" if where == "forked" else "_loaded", where == "forked" or None)
            found = run(), averaged(model).state_dict()
    assert not rows
    assert_bit_equal(found, expected)


LOADS = """
import torch, goptim
from goptim import _native
goptim.patch()
model = torch.nn.Linear(2, 2)
for p in model.parameters():
    p.grad = torch.ones_like(p)
average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn())
for _ in range(2):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
    torch.nn.utils.clip_grad_value_(model.parameters(), 1)
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), 1, torch.nn.utils.get_total_norm(model.parameters()))
    average.update_parameters(model)
    average.multi_avg_fn([torch.ones(2)], [torch.ones(2)], None)
assert _native._loaded is None
torch.optim.SGD(model.parameters(), lr=0.1)
assert _native._loaded is not None
"""


def test_functions_do_not_load_the_extension(server):
    done = server.run("-c", LOADS)
    assert done.returncode == 0, done.stderr


UTILS = """
import torch as th

def polyak_update(params, target_params, tau):
    "As in stable-baselines3."
    with th.no_grad():
        for param, target_param in zip(params, target_params, strict=True):
            target_param.data.mul_(1 - tau)
            th.add(target_param.data, param.data, alpha=tau, out=target_param.data)
"""
LERP = """
import torch as th

def polyak_update(params, target_params, tau):
    for param, target_param in zip(params, target_params):
        target_param.data.lerp_(param.data, tau)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package with the name of stable-baselines3, and imports its module."""
    names = ["stable_baselines3", "stable_baselines3.common", "stable_baselines3.common.utils"]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        folder = tmp_path / "stable_baselines3" / "common"
        folder.mkdir(parents=True)
        for file in (folder.parent / "__init__.py", folder / "__init__.py"):
            file.write_text("")
        (folder / "utils.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return lambda: importlib.import_module(names[-1])

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("when", ["before", "after", "after the end"])
def test_polyak_update_of_stable_baselines3(rows, in_use, package, when):
    load = package(UTILS)

    def run(update):
        torch.default_generator.manual_seed(0)
        model, target = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
        update(model.parameters(), target.parameters(), 0.005)
        update([], [], 1.0)
        with pytest.raises(ValueError, match="zip"):
            update(model.parameters(), [target.weight], tau=0.1)
        return target.state_dict()

    update = load().polyak_update if when == "before" else None
    with goptim.patch():
        if when == "after":
            update = load().polyak_update
        if update is not None:
            found = run(update)
            assert rows == {"Polyak": 2}
    if update is None:
        update = load().polyak_update
        found = run(update)
    assert not [name for name in update.__globals__ if "goptim" in name]
    rows.clear()
    assert_bit_equal(run(update), found)
    assert not rows
    assert inspect.getdoc(update) == "As in stable-baselines3."


def test_another_polyak_update_stays(rows, in_use, package):
    load = package(LERP)
    with goptim.patch():
        update = load().polyak_update
        code = update.__code__
        update([torch.ones(3)], [torch.zeros(3)], 0.1)
    assert update.__code__ is code
    assert not rows


def test_functions_may_be_replaced_by_a_program(in_use, monkeypatch, rows):
    """A program that wraps a method keeps its own after the end."""
    goptim.patch()
    below = AveragedModel.update_parameters
    with monkeypatch.context() as patch:
        patch.setattr(AveragedModel, "update_parameters", lambda self, model: below(self, model))
        goptim.unpatch()
        averaged(torch.nn.Linear(2, 2))
    assert not rows
    AveragedModel.update_parameters = _originals.UPDATE_PARAMETERS


def test_what_a_call_did(in_use, monkeypatch):
    seen = []
    monkeypatch.setattr(_functions, "watch", lambda *args: seen.append(args))
    monkeypatch.setattr(_lists, "watch", _functions.count_rows)
    ps = [*several(), *clipped([torch.randn(3, dtype=torch.complex64)])]
    model = torch.nn.BatchNorm1d(3)
    with goptim.patch():
        early_clip(iter(ps), 0.5)
        early_clip(ps[:3], 0.5, 3)
        utils.get_total_norm(p.grad for p in ps)
        averaged(model, updates=2)
        AveragedModel(model, avg_fn=lambda a, p, n: p).update_parameters(model)
        monkeypatch.setattr(_native, "_loaded", None)
        clip_grad_value_(ps[0], 0.5)
    other = "its averaging function is not one of torch.optim.swa_utils"
    assert seen == [
        ("clip_grad_norm_", 3, ["it is torch.complex64"]),
        ("clip_grad_norm_", 3, []),
        ("get_total_norm", 3, ["it is torch.complex64"]),
        ("AveragedModel", 2, []),
        ("AveragedModel", 2, []),
        ("AveragedModel", 0, [other, other]),
        ("clip_grad_value_", 0, ["no optimizer of goptim was constructed before"]),
    ]
