"""goptim in place of torch.optim: the same names, arguments, messages and hooks, and the same steps.

test_parity.py tests that Go's results are exact. Here a step runs in Go, falls back to torch, or both, and a caller
must not notice: most tests do the same with torch's class and goptim's, and compare.
"""

import contextlib
import copy
import importlib
import inspect
import itertools
import json
import pkgutil
import py_compile
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from configurations import (
    ELEMENTWISE,
    IN_TABLES,
    MOMENTUM,
    STARTS_LATE,
    both_classes,
    class_of,
    needs_late_state,
    that_fall_back,
)
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter
from torch.optim import Optimizer, optimizer as torch_optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import goptim
from goptim import _for_loop, _native, _originals
from goptim._step import GoStep
from goptim.testing import assert_bit_equal, ieee_sqrt

NAMES = IN_TABLES

# Arguments with which every optimizer has tensors in its state.
WITH_STATE = {name: {"momentum": 0.9} for name in MOMENTUM}

# torch's own sparse Adagrad causes it.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

every = pytest.mark.parametrize("name", NAMES)
elementwise = pytest.mark.parametrize("name", ELEMENTWISE)  # supports what another class does not


def outcome(f):
    """The result of f, or the type and the message of the error that it raises."""
    try:
        return f()
    except (RuntimeError, ValueError, AssertionError, TypeError) as e:
        return type(e), str(e)


def accepted(name, **kwargs):
    """Those of some arguments that an optimizer's constructor has, and accepts."""
    refused = {"fused"} if name in _for_loop.CLASSES else set()
    return {
        k: v for k, v in kwargs.items() if k in inspect.signature(both_classes(name)[0]).parameters.keys() - refused
    }


def leaf(*shape, dtype=torch.float32):
    return Parameter(torch.randn(shape, dtype=dtype))


def for_loop(optimizer, kwargs):
    """Arguments with which torch's class uses its for-loop."""
    has = inspect.signature(optimizer).parameters
    return kwargs | {flag: False for flag in ("foreach", "fused") if flag in has}


def train(optimizer, make, grad=torch.randn_like, steps=3, between=lambda i, opt: None, **kwargs):
    """Create parameters, step them with gradients, and return the optimizer, with a fixed seed."""
    torch.default_generator.manual_seed(0)
    opt = optimizer(make(), **copy.deepcopy(kwargs))
    with ieee_sqrt():
        for i in range(steps):
            for p in params_of(opt):
                p.grad = grad(p)
            opt.step()
            between(i, opt)
    return opt


def params_of(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def states_of(opt):
    """The states in the order of the parameters, whatever the order of their creation."""
    dense = lambda t: t.to_dense() if isinstance(t, torch.Tensor) and t.is_sparse else t  # noqa: E731
    return [{key: dense(t) for key, t in opt.state.get(p, {}).items()} for p in params_of(opt)]


def assert_same(ours, expected):
    assert_bit_equal(params_of(ours), params_of(expected), "parameters")
    assert_bit_equal(states_of(ours), states_of(expected), "states")


def train_both(name, make, **kwargs):
    """Compare a run of goptim with torch's, and return goptim's."""
    expected, ours = (train(optimizer, make, **kwargs) for optimizer in both_classes(name))
    assert_same(ours, expected)
    return ours


# What step has more than torch's.
KEYWORDS_OF_STEP = ("max_grad_norm", "norm_dtype", "ema", "zero_grad")


@every
def test_signatures(name):
    expected, ours = both_classes(name)
    of_ours = inspect.signature(ours)
    own = [p for key, p in of_ours.parameters.items() if key in ("state_dtype", "master_weights", "rounding", "seed")]
    assert len(own) in (0, 4)
    assert all(p.kind is p.KEYWORD_ONLY and p.default is None for p in own)
    parameters = [p for p in of_ours.parameters.values() if p not in own]
    assert str(of_ours.replace(parameters=parameters)) == str(inspect.signature(expected))
    for method in ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict"):
        given = dict(inspect.signature(getattr(ours, method)).parameters)
        of_torch = inspect.signature(getattr(expected, method)).parameters
        more = [given.pop(key) for key in [*given] if method == "step" and key in KEYWORDS_OF_STEP]
        assert all(p.kind is p.KEYWORD_ONLY and p.default in (None, False) for p in more)
        assert list(given) == list(of_torch)


@every
def test_identity(name):
    expected, ours = (
        train(optimizer, lambda: [leaf(3, 4)], **WITH_STATE.get(name, {})) for optimizer in both_classes(name)
    )
    assert isinstance(ours, type(expected))
    assert type(ours).__name__ == both_classes(name)[0].__name__
    assert repr(ours) == repr(expected)
    assert ours.defaults == expected.defaults
    assert list(vars(ours)) == list(vars(expected))
    assert ours.state_dict()["param_groups"] == expected.state_dict()["param_groups"]
    [state], [expected_state] = ours.state.values(), expected.state.values()
    assert list(state) == list(expected_state)


def test_subclasses_of_each_other():
    for a, b in itertools.product(NAMES, repeat=2):
        (torch_a, our_a), (torch_b, our_b) = both_classes(a), both_classes(b)
        assert issubclass(our_a, our_b) == issubclass(torch_a, torch_b), (a, b)


def test_every_name_of_torch_optim():
    names = {}
    exec("from goptim import *", names)
    assert set(torch.optim.__all__) <= set(names)
    for name in torch.optim.__all__:
        if name not in (*NAMES, "LBFGS", "Muon", "SparseAdam", "swa_utils"):
            assert names[name] is getattr(torch.optim, name)
    for name in dir(torch.optim):
        assert hasattr(goptim, name)
        assert name in dir(goptim)
    with pytest.raises(AttributeError, match="module 'goptim' has no attribute 'Madam'"):
        _ = goptim.Madam


def test_modules_can_be_imported_from():
    from goptim.lr_scheduler import StepLR
    from goptim.swa_utils import AveragedModel

    assert StepLR is torch.optim.lr_scheduler.StepLR
    assert issubclass(AveragedModel, torch.optim.swa_utils.AveragedModel)


OTHERS = ("AveragedModel", "get_ema_multi_avg_fn", "get_swa_multi_avg_fn")  # in swa_utils
MODULES = [module.name for module in pkgutil.walk_packages(torch.optim.__path__, "torch.optim.")]


@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_every_module(module):
    """At the same place: torch's own, except for goptim's classes."""
    theirs = importlib.import_module(module)
    ours = importlib.import_module(module.replace("torch.optim", "goptim"))
    names = [name for name in dir(theirs) if not name.startswith("__")]
    missing = [name for name in names if not hasattr(ours, name)]
    assert not missing
    assert set(names) <= set(dir(ours))
    for name in names:
        expected, actual = getattr(theirs, name), getattr(ours, name)
        if expected in _originals.CLASSES.values():
            assert actual is getattr(goptim, expected.__name__)
        elif module == "torch.optim._multi_tensor" and name in _originals.CLASSES:
            assert issubclass(actual, class_of(name))
            assert actual([leaf(2)]).defaults["foreach"] is True
        elif module == "torch.optim.swa_utils" and name in OTHERS:
            assert actual is getattr(goptim.swa_utils, name) is not expected
        elif name not in ("annotations", "Any", "_originals") and getattr(expected, "__module__", "") != "typing":
            assert actual is expected, name
    with pytest.raises(AttributeError, match="has no attribute 'Madam'"):
        _ = ours.Madam
    starred, theirs_starred = {}, {}
    exec(f"from {ours.__name__} import *", starred)
    exec(f"from {module} import *", theirs_starred)
    assert set(theirs_starred) <= set(starred)


@pytest.mark.parametrize("module", MODULES)
def test_text_with_the_name_replaced(module):
    names = [name for name in dir(importlib.import_module(module)) if not name.startswith("__")]
    text = f"import {module}\nimport {module} as m\nfrom {module} import {', '.join(names)}\nm.{names[0]}"
    exec(text, {})
    exec(text.replace("torch.optim", "goptim"), {})


@every
@pytest.mark.parametrize(
    "kwargs",
    [
        {"foreach": True},
        {"fused": True},
        {"foreach": True, "fused": True},
        {"fused": True, "differentiable": True},
        {"foreach": True, "differentiable": True},
        {"foreach": True, "lr": torch.tensor(0.1)},
        {"lr": torch.tensor([0.1, 0.2])},
        {"lr": -1.0},
        {"weight_decay": -1.0},
    ],
    ids=str,
)
def test_arguments_are_checked_as_torch_does(name, kwargs):
    def run(optimizer):
        optimizer([leaf(3, 4)], **kwargs)  # the for-loop might accept what this rejects
        goes_to_go = not kwargs.get("differentiable") and not isinstance(kwargs.get("lr"), torch.Tensor)
        is_oracle = optimizer is both_classes(name)[0] and goes_to_go
        return train(optimizer, lambda: [leaf(3, 4)], **(for_loop(optimizer, kwargs) if is_oracle else kwargs))

    expected, ours = (outcome(lambda o=o: run(o)) for o in both_classes(name))
    if isinstance(expected, tuple):
        assert ours == expected
    else:
        assert_same(ours, expected)


@every
def test_fused_is_refused_for_what_torch_cannot_fuse(name):
    make = lambda: [leaf(3, 4, dtype=torch.complex64)]  # noqa: E731
    expected, ours = (outcome(lambda o=o: train(o, make, fused=True)) for o in both_classes(name))
    known = inspect.signature(both_classes(name)[0]).parameters
    assert expected[0] is (RuntimeError if "fused" in known else TypeError)
    assert ours == expected


@every
@pytest.mark.parametrize("kwargs", [{}, {"lr": torch.tensor(0.1)}], ids=["go", "torch"])
def test_hooks_run_once_in_order_with_torchs_arguments(name, kwargs):
    def calls(optimizer):
        p = leaf(3, 4)
        start = p.detach().clone()
        opt = optimizer([p], **kwargs)
        log = []

        def note(what):
            def hook(o, args, kwargs):
                log.append((what, o is opt, args[0] is opt, args[1:], kwargs, torch.equal(p, start)))

            return hook

        closure = torch.no_grad()(lambda: log.append("closure"))
        handles = [
            torch_optimizer.register_optimizer_step_post_hook(note("global post")),
            torch_optimizer.register_optimizer_step_pre_hook(note("global pre")),
        ]
        opt.register_step_post_hook(note("post"))
        opt.register_step_pre_hook(note("pre"))
        # The result of a hook replaces the arguments.
        replaced = opt.register_step_pre_hook(lambda o, args, kwargs: (args, {"closure": closure}))
        try:
            p.grad = torch.ones_like(p)
            opt.step()
            replaced.remove()
            opt.step(None)
            opt.step(closure=None)
        finally:
            for handle in handles:
                handle.remove()
        return [str(call).replace(str(closure), "closure") for call in log]

    expected, ours = map(calls, both_classes(name))
    assert ours == expected
    assert len(ours) == 3 * 4 + 1


@every
@pytest.mark.parametrize("kwargs", [{}, {"lr": torch.tensor(0.1)}], ids=["go", "torch"])
def test_profiler_sees_one_step(name, kwargs):
    p = leaf(3, 4)
    p.grad = torch.ones_like(p)
    opt = both_classes(name)[1]([p], **kwargs)
    with torch.autograd.profiler.profile() as profile:
        opt.step()
        opt.zero_grad()
    seen = [event.name for event in profile.function_events if event.name.startswith("Optimizer.")]
    cls = class_of(name).__name__
    assert seen == [f"Optimizer.step#{cls}.step", f"Optimizer.zero_grad#{cls}.zero_grad"]


@every
@pytest.mark.parametrize("fails", [False, True])
def test_profilers_see_torchs_records(name, fails, tmp_path):
    """The same record of a step, also if the step fails. It ends with the step."""
    kept = []  # an error keeps the frames, and their variables, from which it came

    def closure():
        if fails:
            raise KeyboardInterrupt
        return torch.tensor(1.0)

    def seen(optimizer):
        p = leaf(3, 4)
        p.grad = torch.ones_like(p)
        opt, found = optimizer([p]), []
        for profiler in (torch.autograd.profiler.profile(use_kineto=False), torch.profiler.profile()):
            with profiler as profile:
                try:
                    opt.step(closure)
                except KeyboardInterrupt as e:
                    kept.append(e)
                torch.ones(1).neg()
            events = getattr(profile, "events", lambda profile=profile: profile.function_events)()
            found.append(
                [(e.name, e.scope, e.is_user_annotation) for e in events if e.name.startswith("Optimizer.step")]
            )
            after = [e.time_range.start for e in events if e.name == "aten::neg"][-1]
            assert all(e.time_range.end <= after for e in events if e.name.startswith("Optimizer.step"))
        trace = tmp_path / f"{optimizer.__module__}.json"
        observer = torch.profiler.ExecutionTraceObserver().register_callback(str(trace))
        observer.start()
        with contextlib.suppress(KeyboardInterrupt):
            opt.step(closure)
        observer.stop()
        observer.unregister_callback()
        nodes = json.loads(trace.read_text())["nodes"]
        return found, [node["name"] for node in nodes if node["name"].startswith("Optimizer.step")]

    expected, ours = map(seen, both_classes(name))
    assert ours == expected
    assert ours[1] == [f"Optimizer.step#{class_of(name).__name__}.step"]


@every
@pytest.mark.parametrize("answer", [(), 1, ((), {}, None)], ids=str)
def test_hooks_with_invalid_results(name, answer):
    def error(optimizer):
        opt = optimizer([leaf(3)])
        opt.register_step_pre_hook(lambda *_: answer)
        kind, message = outcome(opt.step)
        return kind, message.partition(" must ")[2]

    expected, ours = map(error, both_classes(name))
    assert ours == expected


@elementwise
@pytest.mark.parametrize(
    "dtypes", [[torch.float32], [torch.complex64], [torch.float32, torch.complex64]], ids=["go", "torch", "both"]
)
def test_closure(name, dtypes):
    params = that_fall_back(name, [leaf(3, 4, dtype=dtype) for dtype in dtypes])
    opt = both_classes(name)[1](params, **accepted(name, silent_sgd_phase=False))
    before = [p.detach().clone() for p in params]
    losses = []

    def closure():
        assert torch.is_grad_enabled()
        assert all(map(torch.equal, params, before))
        opt.zero_grad()
        losses.append(sum(p.abs().sum() for p in params))
        losses[-1].backward()
        return losses[-1]

    with torch.no_grad():
        returned = opt.step(closure)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert [id(loss) for loss in losses] == [id(returned)]
    assert any(map(torch.equal, params, before)) == (name in STARTS_LATE)
    assert opt.step() is None


@every
def test_step_leaves_grad_mode_and_gradients_alone(name):
    p = leaf(3, 4)
    g = p.grad = torch.ones_like(p)
    opt = both_classes(name)[1]([p], **accepted(name, weight_decay=0.1, maximize=True))
    opt.step()
    assert torch.is_grad_enabled()
    assert p.requires_grad
    assert p.is_leaf
    assert p.grad is g
    assert torch.equal(g, torch.ones_like(g))
    assert g._version == 0


@every
def test_zero_grad_and_missing_gradients(name, go):
    p, q = leaf(3, 4), leaf(3, 4)
    opt = both_classes(name)[1]([p, q], **accepted(name, silent_sgd_phase=False))
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    opt.zero_grad(set_to_none=False)
    assert not p.grad.any()
    opt.zero_grad()
    assert p.grad is None
    before = p.detach().clone(), q.detach().clone()
    opt.step()
    assert go == []
    assert bool(opt.state) == (name == "Adagrad")  # which creates it before the first step
    p.grad = torch.ones_like(p)
    opt.step()
    assert go == [1]
    assert torch.equal(p, before[0]) == (name in STARTS_LATE)
    assert torch.equal(q, before[1])


@every
def test_groups_have_their_own_arguments(name):
    needs_late_state(name)

    def grow(i, opt):
        if i == 0:
            opt.add_param_group({"params": [leaf(5)], "lr": 0.0 if name == "Prodigy" else 0.5})
            opt.add_param_group({"params": iter([leaf(2, dtype=torch.float64)]), "weight_decay": 0.1})
        for group in opt.param_groups[:: 2 if name == "Prodigy" else 3]:  # those of Prodigy are equal, or 0
            group["lr"] *= 0.7

    ours = train_both(name, lambda: [leaf(3, 4)], between=grow, lr=0.1, **WITH_STATE.get(name, {}))
    assert len(ours.param_groups) == 3


@every
def test_named_parameters(name):
    model = lambda: torch.nn.Linear(3, 4).named_parameters()  # noqa: E731
    ours = train_both(name, model)
    assert ours.param_groups[0]["param_names"] == ["weight", "bias"]
    assert ours.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@every
@pytest.mark.parametrize("fused", [None, True], ids=["unscaled before", "unscaled by step"])
def test_grad_scaler_skips_infinite_gradients(name, fused):
    def run(optimizer):
        torch.default_generator.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        p = leaf(3, 4)
        opt = optimizer([p], **accepted(name, fused=fused))
        scales, grads = [], []
        with ieee_sqrt():
            for i in range(4):
                opt.zero_grad()
                scaler.scale((p * torch.randn_like(p) * (float("inf") if i == 1 else 1)).sum()).backward()
                scaler.step(opt)
                scaler.update()
                scales.append(scaler.get_scale())
                grads.append(p.grad.clone())
        return opt, scales, grads

    (expected, expected_scales, expected_grads), (ours, scales, grads) = map(run, both_classes(name))
    assert scales == expected_scales == [8, 4, 4, 4]
    assert_same(ours, expected)
    assert_bit_equal(grads, expected_grads, "gradients")  # unscaled ones; torch's fused steps also unscale


@every
@pytest.mark.parametrize("shape", [(3, 4), (), (1 << 19,)], ids=str)
@pytest.mark.covering("name", "shape")
def test_autograd_notices_that_a_saved_tensor_has_changed(name, shape):
    p = leaf(*shape)
    opt = both_classes(name)[1]([p], **WITH_STATE.get(name, {}))
    for _ in range(2):  # the first step takes another path, which creates the state
        saves_p = p.pow(2).sum()
        p.grad = torch.ones_like(p)
        opt.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            saves_p.backward()


@every
def test_versions_of_all_that_is_written(name):
    p = leaf(3, 4)
    opt = both_classes(name)[1]([p], **WITH_STATE.get(name, {}))
    p.grad = torch.ones_like(p)
    opt.step()
    read = ("step", "p0")  # p0 is Prodigy's
    written = [p, *(t for key, t in opt.state[p].items() if key not in read and isinstance(t, torch.Tensor))]
    assert len(written) > 1
    before = [t._version for t in written]
    opt.step()
    assert all(t._version > v for t, v in zip(written, before, strict=True))


def transposed(p):
    return torch.randn(*reversed(p.shape), dtype=p.dtype).t()


# Parameters, their gradient, and how many of them run in Go. The others must fall back in the same call.
SUPPORT = {
    "plain": (lambda: [leaf(3, 4), leaf(5, dtype=torch.float64)], torch.randn_like, 2),
    "complex": (lambda: [leaf(3, 4, dtype=torch.complex64)], torch.randn_like, 0),
    "non-dense": (lambda: [Parameter(torch.randn(6, 4)[::2])], torch.randn_like, 0),
    "non-dense, gradient too": (lambda: [Parameter(torch.randn(6)[::2])], lambda p: torch.randn(6)[::2], 0),
    "transposed": (lambda: [Parameter(torch.randn(4, 3).t())], transposed, 1),
    "gradient transposed": (lambda: [leaf(3, 4)], transposed, 0),
    "gradient expanded": (lambda: [leaf(3, 4)], lambda p: torch.randn(1, 1, dtype=p.dtype).expand(3, 4), 0),
    "gradient non-dense": (lambda: [leaf(3, 4)], lambda p: torch.randn(6, 4)[::2], 0),
    "channels last": (
        lambda: [Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))],
        torch.randn_like,
        1,
    ),
    "gradient channels last": (
        lambda: [leaf(2, 3, 4, 5)],
        lambda p: torch.randn_like(p, memory_format=torch.channels_last),
        0,
    ),
    "some of each": (
        lambda: [leaf(3, 4), leaf(3, dtype=torch.complex64), Parameter(torch.randn(6)[::2]), leaf(2)],
        torch.randn_like,
        2,
    ),
}


@elementwise
@pytest.mark.parametrize("what", SUPPORT)
@pytest.mark.parametrize("kwargs", [{}, {"weight_decay": 0.1, "maximize": True}], ids=["plain", "decay and maximize"])
@pytest.mark.covering("what kwargs", "name kwargs")
def test_who_steps_what(name, what, kwargs, go):
    make, grad, in_go = SUPPORT[what]
    train_both(
        name, lambda: that_fall_back(name, make()), grad=grad, **accepted(name, **kwargs), **WITH_STATE.get(name, {})
    )
    assert go == [in_go] * 3 * bool(in_go)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_falls_back(name, dtype, go):
    """With torch's multi-tensor implementation, or its for-loop if a class has both."""
    flags = [accepted(name, foreach=True), accepted(name, foreach=False, fused=False)]
    flags = [x for x in flags if x.get("foreach") or "fused" in x]  # the others run in Go
    foreach = inspect.signature(both_classes(name)[0]).parameters.get("foreach")
    if foreach is not None and foreach.default is True:
        flags = []  # the default asks for nothing
    for given in flags:
        train_both(name, lambda: [leaf(3, 4, dtype=dtype)], **given)
    assert go == []


@elementwise
@pytest.mark.parametrize("overlapping", [False, True], ids=["apart", "overlapping"])
@pytest.mark.covering("name", "overlapping")
def test_groups_share_threads(name, overlapping, go, threads):
    """Groups that are too small for a second thread on their own. Some have states that others do not have."""
    threads(2)
    flag = {"AdamW": "amsgrad", "Adam": "amsgrad", "RMSprop": "centered"}.get(name, "maximize")

    def make():
        memory = torch.randn(1 << 20)
        step = len(memory) // (9 if overlapping else 8)  # parameters that share memory are stepped in order
        return [
            {"params": [Parameter(memory[i * step :][: 1 << 17]), leaf(i + 1)], "lr": 0.1 / (i + 1), flag: i % 3 == 0}
            for i in range(8)
        ]

    train_both(name, make, **WITH_STATE.get(name, {}))
    assert go == [16] * len(go)


@elementwise
def test_groups_of_go_and_of_torch_in_one_step(name, go):
    def make():
        rate = torch.tensor(0.1)  # a group with a Tensor as lr falls back
        return [
            {"params": that_fall_back(name, [leaf(3, 4), leaf(3, dtype=torch.complex64)])},
            {"params": [leaf(2)], "lr": rate},
            {"params": [leaf(5, dtype=torch.float64)], "weight_decay": 0.1},
        ]

    ours = train_both(name, make, **WITH_STATE.get(name, {}))
    assert go == [2] * 3
    assert [len(group["params"]) for group in ours.param_groups] == [2, 1, 1]


@every
def test_capturable(name, go):
    """capturable is for CUDA graphs: torch's own error, and nothing changes."""
    if not accepted(name, capturable=True):
        pytest.skip("it has no such argument")
    results = []
    for optimizer in both_classes(name):
        torch.default_generator.manual_seed(0)
        opt = optimizer([p := leaf(3, 4)], capturable=True)
        p.grad = torch.randn_like(p)
        results.append((outcome(opt.step), p, states_of(opt)))
    assert_bit_equal(*results)
    assert results[0][0][0] is AssertionError
    assert go == []


@elementwise
@pytest.mark.parametrize("kwargs", [{"lr": torch.tensor(0.1)}, {"differentiable": True}], ids=str)
def test_arguments_that_torch_accepts(name, kwargs, go):
    def make():
        params = [leaf(3, 4), leaf(5)]
        return [p.requires_grad_(False) for p in params] if "differentiable" in kwargs else params

    if "differentiable" in kwargs and not accepted(name, **kwargs):
        pytest.skip("it does not have this flag")
    train_both(name, make, **kwargs, **WITH_STATE.get(name, {}))
    assert go == []


@elementwise
def test_differentiable_step_is_differentiated(name, go):
    if not accepted(name, differentiable=True) or name in _for_loop.CLASSES:
        pytest.skip("it does not have this flag, or as in timm the step is not differentiated")

    def derivative(optimizer):
        torch.default_generator.manual_seed(0)
        start, grad = leaf(3, 4), leaf(3, 4)
        p = start.clone()
        p.grad = grad.clone()
        opt = optimizer([p], **accepted(name, differentiable=True, weight_decay=0.1))
        opt.step()
        return torch.autograd.grad(p.pow(2).sum(), [start, grad])

    expected, ours = map(derivative, both_classes(name))
    assert_bit_equal(ours, expected)
    assert go == []


@every
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_sparse_gradients(name, momentum, go):
    if momentum and "momentum" not in inspect.signature(both_classes(name)[0]).parameters:
        pytest.skip(f"{name} has no momentum")

    def grad(p):
        return torch.randn_like(p).relu().to_sparse() if p.dim() == 2 else torch.randn_like(p)

    def run(optimizer):
        return train(
            optimizer, lambda: [leaf(3, 4), leaf(5)], grad=grad, **({"momentum": momentum} if momentum else {})
        )

    expected, ours = (outcome(lambda o=o: run(o)) for o in both_classes(name))
    if isinstance(expected, tuple):
        assert "sparse" in expected[1].lower()
        assert ours == expected
        assert go == []
    else:
        assert_same(ours, expected)
        assert go == [1] * 3


@elementwise
def test_meta_tensors(name, go):
    def run(optimizer):
        p = Parameter(torch.empty(3, 4, device="meta"))
        p.grad = torch.empty_like(p)
        opt = optimizer([p], **WITH_STATE.get(name, {}))
        opt.step()
        opt.step()
        return {key: (str(t.device), t.shape) for key, t in opt.state[p].items() if isinstance(t, torch.Tensor)}

    expected, ours = (outcome(lambda o=o: run(o)) for o in both_classes(name))
    assert isinstance(expected, tuple) == (name == "ASGD")  # torch reads the value of mu
    assert ours == expected
    assert go == []


class Logged(torch.Tensor):
    """A tensor that records the torch functions that are called with it."""

    seen = ()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


class Quiet(torch.Tensor):
    """A tensor that differs from others only in its type."""

    __torch_function__ = torch._C._disabled_torch_function_impl


@every
@pytest.mark.parametrize("which", ["parameter", "gradient", "state"])
@pytest.mark.covering
def test_quiet_subclasses_of_tensor(name, which, go):
    def between(i, opt):
        if which == "state" and i == 0:
            for state in opt.state.values():
                state.update({key: t.as_subclass(Quiet) for key, t in state.items() if isinstance(t, torch.Tensor)})

    param, grad = lambda: leaf(3, 4), torch.randn_like
    if which == "parameter":
        param = lambda: torch.randn(3, 4).as_subclass(Quiet).requires_grad_()  # noqa: E731
    elif which == "gradient":
        grad = lambda p: torch.randn_like(p).as_subclass(Quiet)  # noqa: E731
    train_both(name, lambda: [param()], grad=grad, between=between, **WITH_STATE.get(name, {}))
    assert go == [1] * (which == "state")


@every
@pytest.mark.parametrize("which", ["parameter", "gradient"])
def test_subclasses_of_tensor_see_every_operation(name, which, go):
    def run(optimizer):
        Logged.seen = []
        make, grad = (lambda: [leaf(3, 4)]), torch.randn_like
        if which == "parameter":
            make = lambda: [torch.randn(3, 4).as_subclass(Logged).requires_grad_()]  # noqa: E731
        else:
            grad = lambda p: torch.randn_like(p).as_subclass(Logged)  # noqa: E731
        opt = train(optimizer, make, grad=grad)
        written = [f for f in Logged.seen if f.endswith("_") and not f.endswith("__")]
        return [torch.Tensor(p.detach()) for p in params_of(opt)], written

    (expected, expected_log), (ours, log) = map(run, both_classes(name))
    assert_bit_equal(ours, expected)
    assert log == expected_log
    assert log or which == "gradient"
    assert go == []


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **kwargs or {})


@every
def test_dispatch_modes_see_every_operation(name, go):
    def run(optimizer):
        torch.default_generator.manual_seed(0)
        opt = optimizer([p := leaf(3, 4)])
        p.grad = torch.randn_like(p)
        with Operations() as operations, ieee_sqrt():
            opt.step()
            opt.step()
        return opt, operations.seen

    (expected, expected_seen), (ours, seen) = map(run, both_classes(name))
    assert seen == expected_seen
    assert seen
    assert go == []
    assert_same(ours, expected)


@elementwise
def test_fake_tensors(name, go):
    if name == "ASGD":
        pytest.skip("torch asks for the value of mu, which a fake tensor has not")
    if name == "Rprop" and torch.__version__.startswith("2.6."):
        pytest.skip("this torch mixes fake tensors and others")
    with FakeTensorMode() as mode:
        p = leaf(3, 4)
        p.grad = torch.ones_like(p)
        opt = both_classes(name)[1]([p], **WITH_STATE.get(name, {}))
        opt.step()
    opt.step()  # outside of the mode, the tensors themselves are fake
    tensors = [t for key, t in opt.state[p].items() if key != "step" and not isinstance(t, (float, type(None)))]
    assert all(isinstance(t, FakeTensor) and t.fake_mode is mode for t in tensors)
    assert go == []


@every
def test_functorch_sees_the_step(name, go):
    def run(optimizer):
        torch.default_generator.manual_seed(0)
        opt = optimizer([p := leaf(3, 4)])
        p.grad = torch.randn_like(p)
        with ieee_sqrt():
            torch.func.vmap(lambda x: (opt.step(), x)[1])(torch.zeros(2))
        return opt

    expected, ours = map(run, both_classes(name))
    assert_same(ours, expected)
    assert go == []


@every
def test_compiling_falls_back(name, go, monkeypatch):
    hooks = []

    def run(optimizer):
        opt = optimizer([leaf(3, 4)])
        opt.register_step_pre_hook(lambda *args: hooks.append("pre"))
        opt.register_step_post_hook(lambda *args: hooks.append("post"))
        torch.default_generator.manual_seed(0)
        [p] = params_of(opt)
        p.data = torch.randn(3, 4)
        p.grad = torch.randn(3, 4)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            opt.step()
        return opt

    expected, ours = map(run, both_classes(name))
    assert_same(ours, expected)
    assert go == []
    assert hooks == ["pre", "post"] * 2


@every
def test_inference_mode(name):
    def run(optimizer, **kwargs):
        with contextlib.ExitStack() as stack:

            def enter(i, opt):
                if i == 0:
                    stack.enter_context(torch.inference_mode())

            return train(optimizer, lambda: [leaf(3, 4)], between=enter, **kwargs)

    expected, ours = (run(optimizer, **WITH_STATE.get(name, {})) for optimizer in both_classes(name))
    assert_same(ours, expected)


@every
@pytest.mark.parametrize(("n", "views"), [(12, 2), (3 << 18, 2), (1 << 14, 48)], ids=["small", "large", "many"])
@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.covering("name", "n views shift")
def test_parameters_that_share_memory(name, n, views, shift, threads):
    """The update of one is the initial value of the next, also with two threads."""
    threads(2)

    def make():
        base = torch.randn(n + shift * (views - 1))
        return [Parameter(base[i * shift : i * shift + n]) for i in range(views)]

    train_both(name, make, **WITH_STATE.get(name, {}))


@every
def test_a_parameter_given_twice(name):
    if name in ("SGDW", "LARS"):
        pytest.skip(
            "timm's first step and Go's create a buffer for each, of which the last one stays; the for-loop one"
        )
    p = leaf(3, 4)
    start, grad = p.detach().clone(), torch.randn_like(p)
    runs = []
    for optimizer in both_classes(name):
        with torch.no_grad():
            p.copy_(start)
        with pytest.warns(UserWarning, match="duplicate parameters"):
            opt = optimizer([p, p], lr=0.1, **WITH_STATE.get(name, {}))
        p.grad = grad
        with ieee_sqrt():
            opt.step()
            opt.step()
        runs.append((p.detach().clone(), dict(opt.state[p])))
    assert_bit_equal(runs[1], runs[0])


@every
def test_one_gradient_for_two_parameters(name):
    shared = []

    def grad(p):
        if len(shared) != 1:
            shared[:] = [torch.randn_like(p)]
            return shared[0]
        return shared.pop()

    train_both(name, lambda: [leaf(3, 4), leaf(3, 4)], grad=grad, **WITH_STATE.get(name, {}))


MOVES = {
    "other memory": lambda p: p.detach().clone(),
    "a view of larger memory": lambda p: torch.cat([p.detach(), p.detach()])[3:6],
    "other strides": lambda p: p.detach().t().contiguous().t(),
    "other dtype": lambda p: p.detach().double(),
    "fewer rows": lambda p: p.detach()[:2].clone(),
}


@every
@pytest.mark.parametrize("how", MOVES)
@pytest.mark.parametrize("forget", [False, True], ids=["state stays", "state is forgotten"])
@pytest.mark.covering("how forget", "name")
def test_parameter_data_replaced_between_steps(name, how, forget):
    """An address, a length or a dtype of the previous step would be stale."""
    if forget:
        needs_late_state(name)

    def run(optimizer):
        left = []

        def between(i, opt):
            if i == 1:
                [p] = params_of(opt)
                old = p.data
                left.append((old, old.clone()))
                p.data = MOVES[how](p)
                if forget:
                    opt.state.clear()

        try:
            return train(optimizer, lambda: [leaf(3, 4)], steps=4, between=between, **WITH_STATE.get(name, {}))
        finally:
            for old, value in left:
                assert_bit_equal(old, value, "memory that is the parameter's no more")

    expected, ours = (outcome(lambda o=o: run(o)) for o in both_classes(name))
    if isinstance(expected, tuple):
        assert not forget
        assert isinstance(ours, tuple)
        assert ours[0] in (RuntimeError, ValueError)
        assert f"{class_of(name).__name__}: parameter 0 of group 0" in ours[1]
    else:
        assert_same(ours, expected)


@every
def test_memory_that_is_freed_and_given_to_another(name):
    needs_late_state(name)

    def run(optimizer):
        torch.default_generator.manual_seed(0)
        homes = [torch.randn(3, 4), torch.zeros(3, 4)]
        opt = optimizer([Parameter(homes[0])], **WITH_STATE.get(name, {}))
        params = opt.param_groups[0]["params"]
        for i in range(6):
            here, other = homes[i % 2], homes[1 - i % 2]
            params[0].grad = torch.randn(3, 4)
            with ieee_sqrt():
                opt.step()
            assert i == 0 or (other == 7).all()
            params.clear()
            opt.state.clear()
            params.append(Parameter(other.copy_(here)))
            here.fill_(7)  # the new owner's data
        return opt

    expected, ours = map(run, both_classes(name))
    assert_same(ours, expected)


@every
def test_state_replaced_between_steps(name):
    def between(i, opt):
        for state in opt.state.values():
            for key, t in state.items():
                if not isinstance(t, torch.Tensor):
                    continue
                if t.dim() and i == 0:
                    state[key] = t.clone()
                elif t.dim() and i == 1:
                    state[key] = t.t().contiguous().t()  # other strides: falls back to torch

    train_both(name, lambda: [leaf(3, 4)], steps=5, between=between, **WITH_STATE.get(name, {}))


@every
@pytest.mark.parametrize("container", [tuple, list])
def test_parameters_of_groups_replaced_between_steps(name, container):
    needs_late_state(name)

    def between(i, opt):
        [group] = opt.param_groups
        if i == 1:
            group["params"] = container([leaf(2), *group["params"]])

    train_both(name, lambda: [leaf(3, 4)], steps=4, between=between, **WITH_STATE.get(name, {}))


def test_amsgrad_is_an_adam():
    p = leaf(3, 4)
    opt = goptim.AMSGrad([p], 0.1, (0.5, 0.9), 1e-3, 0.1, maximize=True)
    assert isinstance(opt, goptim.Adam)
    adam = torch.optim.Adam([p], 0.1, (0.5, 0.9), 1e-3, 0.1, True, maximize=True)
    assert opt.state_dict() == adam.state_dict()
    with pytest.raises(TypeError, match="amsgrad"):
        goptim.AMSGrad([p], amsgrad=False)
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        goptim.AMSGrad([p], -1)


def public_classes():
    everything = [*vars(goptim).values(), *vars(goptim.hf).values()]
    optimizers = [c for c in everything if isinstance(c, type) and issubclass(c, Optimizer)]
    # Not the base class, and not the class of torch's operations that one of ours is derived from.
    ours = [c for c in optimizers if c.__module__.startswith("goptim.")]
    return [c for c in ours if issubclass(c, (GoStep, goptim.LBFGS)) and c is not GoStep]


@pytest.mark.parametrize("optimizer", public_classes(), ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_docstrings(optimizer):
    """A class documents its algorithm, its state, its exactness or tolerance, and the paper."""
    text = optimizer.__doc__
    assert ".. math::" in text
    assert "state" in text
    assert re.search("exact results|up to rounding|tolerance", text)
    assert re.search(r"\(\d{4}\)| \d{4}|arxiv|openreview", text), "no paper"


def test_adamw_whose_group_says_that_it_is_adams():
    """torch stores the flag in the group, where it can change, for example by loading a state of Adam."""
    if "decoupled_weight_decay" not in torch.optim.AdamW([leaf(1)]).defaults:
        pytest.skip("this torch has no such flag")

    def make(optimizer, **flags):
        torch.default_generator.manual_seed(0)
        opt = optimizer([leaf(3, 4)], lr=0.1, weight_decay=0.3, **flags)
        opt.param_groups[0]["decoupled_weight_decay"] = False
        for _ in range(3):
            params_of(opt)[0].grad = torch.randn(3, 4)
            opt.step()
        return opt

    with ieee_sqrt():
        ours, theirs = make(goptim.AdamW), make(torch.optim.AdamW, foreach=False)
    assert_bit_equal(params_of(ours), params_of(theirs))
    assert_bit_equal(states_of(ours), states_of(theirs))
    assert [row.to for row in goptim.explain(ours)] == ["go"]


@pytest.mark.parametrize(
    ("version", "warns"), [("2.6.0", False), ("2.15.3+cpu", False), ("2.16.0a0+git1", True), ("3.0.0", True)]
)
def test_a_torch_newer_than_tested_warns_once_and_works(version, warns, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    for name, value in {"_loaded": None, "_openmp_asked": False, "_next_try": {}}.items():
        monkeypatch.setattr(_native, name, value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opts = [goptim.SGD([leaf(2)]) for _ in range(2)]
    assert len(caught) == warns
    assert all(f"tested with torch 2.6 to 2.15, and this is torch {version}" in str(w.message) for w in caught)
    [p] = params_of(opts[0])
    p.grad = torch.ones(2)
    before = p.detach().clone()
    opts[0].step()
    assert_bit_equal(p.detach(), before - 1e-3)


def test_supported_versions_of_torch_are_consistent():
    oldest, newest = (".".join(map(str, version)) for version in _native.TESTED)
    root = Path(__file__).parent.parent
    assert f"torch {oldest} or later" in (root / "README.md").read_text()
    assert f"torch {oldest} and {newest}" in (root / "README.md").read_text()
    assert f'"torch>={oldest}"' in (root / "pyproject.toml").read_text()
    assert f"torch=={oldest}.0" in (root / "Makefile").read_text()


WITHOUT_SOURCES = """
import importlib.util, inspect, sys
from importlib.machinery import SourcelessFileLoader
from pathlib import Path

here = Path(sys.argv[1])

class Finder:
    def find_spec(name, path=None, target=None):
        at = here.joinpath(*name.split("."))
        for file, parts in ((at / "__init__.pyc", [str(at)]), (at.with_suffix(".pyc"), None)):
            if file.exists() and name.startswith(("torch.optim", "goptim")):
                loader = SourcelessFileLoader(name, str(file))
                return importlib.util.spec_from_file_location(
                    name, str(file), loader=loader, submodule_search_locations=parts
                )

sys.meta_path.insert(0, Finder)
import torch
try:
    inspect.getsource(torch.optim.LBFGS)
except OSError:
    pass
else:
    raise AssertionError

import goptim, goptim._multi_tensor

assert goptim.__file__.endswith(".pyc") and torch.optim.__file__.endswith(".pyc")
for name in torch.optim.__all__:
    ours = getattr(goptim, name)
    if isinstance(ours, type) and name != "Optimizer":
        p = torch.zeros(2, 2, requires_grad=True)

        def closure():
            g = torch.ones_like(p)
            p.grad = g.to_sparse(1) if name == "SparseAdam" else g
            return float(p.sum())

        opt = ours([p], **({"line_search_fn": "strong_wolfe"} if name == "LBFGS" else {}))
        closure()
        assert {row.to for row in goptim.explain(opt)} == {"go"}, name
        opt.step(closure)
        assert (p != 0).all(), name
with goptim.patch():
    assert type(torch.optim.AdamW([p])) is goptim.AdamW
print("ok")
"""


@pytest.mark.full
def test_programs_without_sources(tmp_path):
    """As in frozen programs, neither torch.optim nor goptim has a .py file."""
    for package in (torch.optim, goptim):
        source, folder = Path(package.__file__).parent, tmp_path.joinpath(*package.__name__.split("."))
        for file in source.rglob("*.py"):
            compiled = folder / file.relative_to(source).with_suffix(".pyc")
            py_compile.compile(str(file), str(compiled), dfile=f"frozen/{file.name}", doraise=True)
        for file in source.glob("*.so"):
            shutil.copy(file, folder)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SOURCES, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "ok\n"
