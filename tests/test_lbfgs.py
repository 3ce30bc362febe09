"""LBFGS compared with torch's: bit for bit if torch sums in goptim's order, and otherwise by its evaluations.

The products of vectors are the only arithmetic of torch whose order depends on its BLAS.
"""

import contextlib
import copy
import ctypes
import inspect
import io
import itertools
import math
import pickle
import threading

import pytest
import torch
from problems import (
    PROBLEMS,
    Problem,
    Run,
    at,
    in_our_order,
    normal,
    quadratic,
    rosenbrock,
    sums_in_our_order,
)
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import goptim
from goptim import _core, _parts
from goptim.testing import assert_bit_equal, ieee_sqrt

CLASSES = (goptim.LBFGS, torch.optim.LBFGS)
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SEARCH = pytest.mark.parametrize("search", [None, "strong_wolfe"], ids=["fixed step", "strong wolfe"])
EVERY = pytest.mark.parametrize("name", PROBLEMS)
HAS_MAXIMIZE = "maximize" in torch.optim.LBFGS([torch.ones(1)]).defaults


pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def exact():
    """torch with IEEE square roots and goptim's order of sums."""
    with ieee_sqrt(), sums_in_our_order():
        yield


@pytest.fixture
def go(monkeypatch):
    """What each call of Go requested."""
    calls = []
    function = _core.LBFGS
    monkeypatch.setattr(_core, "LBFGS", lambda *args: calls.append(function(*args)) or calls[-1])
    return calls


def both(problem, dtype=torch.float64, steps=3, between=lambda i, run: None, **options):
    """The same run with goptim's class and with torch's: its error, if any, and the run."""
    runs = []
    for cls in CLASSES:
        run = Run(cls, problem, dtype, **options)
        error = None
        try:
            for i in range(steps):
                run.steps(1)
                between(i, run)
        except Exception as e:
            error = e
        runs.append((run, error))
    return runs


def assert_same(problem, *args, **kwargs):
    (ours, error), (expected, expected_error) = both(problem, *args, **kwargs)
    assert type(error) is type(expected_error), error
    assert_bit_equal(ours.everything(), expected.everything())
    assert_same_types(ours.state(), expected.state())
    return ours, error, expected_error


def assert_same_types(ours, expected):
    assert list(ours) == list(expected)
    for key, x in expected.items():
        assert type(ours[key]) is type(x), key
        for a, b in zip(ours[key], x, strict=True) if isinstance(x, list) else [(ours[key], x)]:
            assert type(a) is type(b), key
            if isinstance(b, torch.Tensor):
                assert (a.dtype, a.shape, a.stride(), a.requires_grad) == (
                    b.dtype,
                    b.shape,
                    b.stride(),
                    b.requires_grad,
                )
                assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes(), key


@EVERY
@SEARCH
@FLOATS
@pytest.mark.covering
def test_every_problem(name, search, dtype, exact, go):
    for history in (1, 4, 100) if dtype is torch.float64 and name != "large quadratic" else (4,):
        ours, error, _ = assert_same(PROBLEMS[name], dtype, 2, line_search_fn=search, history_size=history)
        assert error is None
        assert ours.state()["n_iter"] > 3
    assert go


OPTIONS = {
    "one iteration a step": {"max_iter": 1},
    "two iterations a step": {"max_iter": 2},
    "many iterations": {"max_iter": 400},
    "one evaluation": {"max_eval": 1},
    "two evaluations": {"max_eval": 2},
    "seven evaluations": {"max_eval": 7},
    "many evaluations": {"max_eval": 10**15, "max_iter": 10**15},
    "a history of 2": {"history_size": 2},
    "a history of 10000": {"history_size": 10_000},
    "lr 0": {"lr": 0},
    "lr 0.0": {"lr": 0.0},
    "lr 2": {"lr": 2},
    "lr 0.3": {"lr": 0.3},
    "lr 1e-9": {"lr": 1e-9},
    "lr 1e5": {"lr": 1e5},
    "lr inf": {"lr": math.inf},
    "lr beyond float32": {"lr": 1e39},
    "any gradient is small": {"tolerance_grad": 1e9},
    "no gradient is small": {"tolerance_grad": 0},
    "negative tolerances": {"tolerance_grad": -1, "tolerance_change": -1},
    "NaN tolerances": {"tolerance_grad": math.nan, "tolerance_change": math.nan},
    "any change is small": {"tolerance_change": 1e9},
    "no change is small": {"tolerance_change": 0},
    "integer tolerances": {"tolerance_grad": 0, "tolerance_change": 1},
    "infinite tolerance of change": {"tolerance_change": math.inf},
    "wide tolerance of change": {"tolerance_change": 0.05},
}


@pytest.mark.parametrize("what", OPTIONS)
@SEARCH
@FLOATS
@pytest.mark.covering
def test_options(what, search, dtype, exact, go):
    for problem in (PROBLEMS["logistic regression"], Problem(at(-1.2, 1.0), rosenbrock)):
        _, error, expected = assert_same(problem, dtype, 2, **{"line_search_fn": search} | OPTIONS[what])
        assert str(error) == str(expected)
    assert go


def scaled(problem, factor):
    return Problem(problem.start, lambda *params: problem.loss(*params) * factor)


@pytest.mark.parametrize("factor", [1e-12, 1e-5, 1e8, 1e18, -1.0])
@SEARCH
@FLOATS
@pytest.mark.covering
def test_scales(factor, search, dtype, exact):
    """Steep and flat functions, and functions without a minimum."""
    for name in ("quadratic", "rosenbrock", "himmelblau"):
        assert_same(scaled(PROBLEMS[name], factor), dtype, 2, line_search_fn=search)


@FLOATS
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.covering(1)
def test_line_search_on_wild_functions(dtype, seed, exact):
    """Functions with many minima, kinks and jumps cover all branches of the line search."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(6, generator=generator, dtype=torch.float64).to(dtype) * 3 for _ in range(3))

    def waves(x):
        return (
            (a * (b * x).sin() + (c * x).abs() + 0.1 * x**2).sum()
            + (x.sum() > 2) * 5 * (seed % 3)
            + (x**2).sum().sqrt()
        )

    for options in ({}, {"tolerance_change": 0}, {"lr": 7.5, "max_eval": 60}, {"lr": 0.01}):
        assert_same(Problem(normal((6,)), waves), dtype, steps=2, line_search_fn="strong_wolfe", **options)


@pytest.mark.skipif(not HAS_MAXIMIZE, reason="torch 2.6 has no maximize")
@SEARCH
@pytest.mark.parametrize("name", ["quadratic", "network", "softmax, and a parameter without a gradient"])
@pytest.mark.covering(1)
def test_maximize(name, search, exact, go):
    assert_same(scaled(PROBLEMS[name], -1.0), line_search_fn=search, maximize=True)
    assert go


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 33, 4095, 4096, 4097, 12_300])
@FLOATS
@pytest.mark.covering(1)
def test_lengths(n, dtype, exact):
    assert_same(Problem(normal((n,)), quadratic), dtype, steps=1, max_iter=8)


def test_parameters_of_every_size(exact):
    shapes = [(), (0,), (5000,), (3, 0), (1,), (4096,), (70, 2), (1, 1), (9000,)]
    problem = Problem(
        normal(*shapes),
        lambda *params: sum(quadratic(p.reshape(-1)) * (i + 1) for i, p in enumerate(params) if p.numel()),
    )
    assert_same(problem, steps=2, line_search_fn="strong_wolfe", max_iter=6)


def test_threads(threads):
    """Results do not depend on the number of threads."""
    runs = []
    problem = Problem(normal((1 << 19,), (90_001,)), lambda a, b: quadratic(a) + quadratic(b))
    for n in (1, 2, 3):
        threads(n)
        run = Run(goptim.LBFGS, problem, torch.float32, line_search_fn="strong_wolfe", max_iter=6)
        closure = run.closure

        def on_one_thread(closure=closure, n=n):
            torch.set_num_threads(1)  # the loss is torch's sum, which depends on it
            loss = closure()
            torch.set_num_threads(n)
            return loss

        run.closure = on_one_thread
        runs.append(run.steps(2).everything())
    assert_bit_equal(runs[1], runs[0])
    assert_bit_equal(runs[2], runs[0])


@EVERY
@SEARCH
@pytest.mark.covering(1)
def test_against_torch_as_it_is(name, search):
    """In float64, losses agree to 1e-9 for twenty iterations, and the number of evaluations for sixty.

    Afterwards the trajectories of different orders of summation diverge, and torch's order depends on the machine. A
    problem is compared until its loss is a millionth of the first one. Then the loss is a difference of large numbers.
    """
    for history in (1, 3, 10, 100):
        ours, expected = (run for run, _ in both(PROBLEMS[name], steps=1, line_search_fn=search, history_size=history))
        assert len(ours.losses) == len(expected.losses)
        torch.testing.assert_close(
            torch.tensor(ours.losses), torch.tensor(expected.losses), rtol=1e-9, atol=1e-15 * abs(expected.losses[0])
        )
        for run in (ours, expected):
            run.steps(2)
        for key in ("func_evals", "n_iter"):
            assert ours.state()[key] == expected.state()[key]
        assert_same_types(
            {k: v for k, v in ours.state().items() if not isinstance(v, list)},
            {k: v for k, v in expected.state().items() if not isinstance(v, list)},
        )


@EVERY
@SEARCH
@pytest.mark.covering(1)
def test_against_torch_as_it_is_in_float32(name, search):
    """The first five iterations agree to 1e-4: an iteration may double differences in the last bits."""
    ours, expected = (run for run, _ in both(PROBLEMS[name], torch.float32, steps=1, max_iter=5, line_search_fn=search))
    assert len(ours.losses) == len(expected.losses)
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(expected.losses), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("one", CLASSES, ids=["ours first", "torch's first"])
@pytest.mark.parametrize("other", CLASSES, ids=["ours then", "torch's then"])
@SEARCH
@FLOATS
@pytest.mark.parametrize("max_iter", [1, 6])
@pytest.mark.covering
def test_state_goes_both_ways(one, other, search, dtype, max_iter, exact):
    options = {"line_search_fn": search, "max_iter": max_iter, "history_size": 4}
    problem = PROBLEMS["network"]
    expected = Run(torch.optim.LBFGS, problem, dtype, **options).steps(6)
    first = Run(one, problem, dtype, **options).steps(3)
    second = Run(other, problem, dtype, **options)
    second.params = [Parameter(p.detach().clone()) for p in first.params]
    second.opt = other(second.params, **first.opt.defaults)
    file = io.BytesIO()
    torch.save(first.opt.state_dict(), file)
    file.seek(0)
    second.opt.load_state_dict(torch.load(file))
    second.losses, second.returned = first.losses, first.returned
    second.steps(3)
    assert_bit_equal(second.everything(), expected.everything())


def test_state_of_another_dtype(exact):
    """load_state_dict casts the state to the parameter's dtype."""
    first = Run(torch.optim.LBFGS, PROBLEMS["network"], torch.float32).steps(2)
    runs = []
    for cls in CLASSES:
        run = Run(cls, PROBLEMS["network"], torch.float64)
        run.opt.load_state_dict(copy.deepcopy(first.opt.state_dict()))
        runs.append(run.steps(2).everything())
    assert_bit_equal(*runs)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
def test_copied_optimizer_continues(duplicate):
    """A copy of torch's optimizer does not work, because it lacks the list of parameters."""
    run = Run(goptim.LBFGS, PROBLEMS["network"], torch.float64).steps(2)
    other = Run(goptim.LBFGS, PROBLEMS["network"], torch.float64)
    other.params, other.opt, other.losses, other.returned = duplicate((run.params, run.opt, run.losses, run.returned))
    assert_bit_equal(other.steps(2).everything(), run.steps(2).everything())


def edit(**changes):
    def between(i, run):
        run.opt.param_groups[0].update(changes if i == 1 else {})

    return between


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.25}, {"lr": 1}, {"max_iter": 3}, {"tolerance_change": 1e-3}, {"history_size": 3}, {"history_size": 99},
        {"line_search_fn": "strong_wolfe"}, {"line_search_fn": None}, {"max_eval": 2}, {"lr": torch.tensor(2.0)},
    ],
    ids=str,
)  # fmt: skip
@SEARCH
@pytest.mark.covering(1)
def test_groups_edited_between_steps(changes, search, exact):
    """If the history size shrinks, torch's step fails once the history is full, and so does goptim's."""
    _, error, expected = assert_same(
        PROBLEMS["network"], steps=4, between=edit(**changes), line_search_fn=search, history_size=12
    )
    assert str(error) == str(expected)


def test_state_edited_between_steps(exact, go):
    for key, value in {
        "n_iter": 0, "func_evals": 1000, "t": 0.5, "H_diag": 2, "al": [None] * 100, "d": None, "prev_flat_grad": None,
        "t ": torch.tensor(0.5, dtype=torch.float64), "old_dirs": [], "ro": (),
    }.items():  # fmt: skip

        def between(i, run, key=key, value=value):
            if i == 1:
                run.opt.state[run.params[0]][key.strip()] = copy.deepcopy(value)

        _, error, expected = assert_same(PROBLEMS["network"], between=between, max_iter=8)
        assert str(error) == str(expected)
    assert go


def test_scheduler(exact, go):
    runs = []
    for cls in CLASSES:
        run = Run(cls, PROBLEMS["network"], torch.float64)
        scheduler = torch.optim.lr_scheduler.StepLR(run.opt, 1, gamma=0.7)
        for _ in range(4):
            run.steps(1)
            scheduler.step()
        runs.append(run.everything())
    assert_bit_equal(*runs)
    assert go


class Stop(Exception):
    pass


@SEARCH
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("call", [1, 2, 3, 7])
@pytest.mark.covering
def test_closure_that_raises(search, steps_before, call, exact):
    """State and parameters are as torch leaves them, and a later step has torch's results."""
    runs = []
    for cls in CLASSES:
        run = Run(cls, Problem(at(-1.2, 1.0), rosenbrock), torch.float64, line_search_fn=search, lr=0.1).steps(
            steps_before
        )
        calls = itertools.count(1)

        def closure(run=run, calls=calls):
            loss = Run.closure(run)
            if next(calls) == call:
                raise Stop
            return loss

        with pytest.raises(Stop):
            run.opt.step(closure)
        after = copy.deepcopy(run.everything())
        assert torch.is_grad_enabled()
        with contextlib.suppress(Exception):
            run.steps(1)
        runs.append((after, run.everything()))
    assert_bit_equal(*runs)


@SEARCH
@pytest.mark.parametrize("call", [1, 2, 3, 5, 6])
@pytest.mark.parametrize(
    ("bad", "where", "dtype"),
    [
        pytest.param(bad, where, (torch.float32, torch.float64)[(i + j) % 2], id=f"{bad}-{where}")
        for i, bad in enumerate([math.nan, math.inf, -math.inf])
        for j, where in enumerate(["loss", "gradient", "both"])
    ],
)
@pytest.mark.covering
def test_losses_that_are_not_numbers(search, bad, where, call, dtype, exact):
    runs = []
    for cls in CLASSES:
        run = Run(cls, PROBLEMS["network"], dtype, line_search_fn=search, max_iter=9)
        calls = itertools.count(1)

        def closure(run=run, calls=calls):
            loss = Run.closure(run)
            if next(calls) == call:
                if where != "loss":
                    run.params[1].grad[3] = bad
                if where != "gradient":
                    return loss.detach() + bad
            return loss

        error = None
        try:
            run.opt.step(closure)
            run.opt.step(closure)
        except Exception as e:
            error = (type(e).__name__, str(e))
        runs.append((str(error), run.everything()))
    assert_bit_equal(*runs)


@pytest.mark.parametrize(
    "returned",
    [torch.Tensor.item, lambda x: x, lambda x: x.detach().numpy(), lambda x: x.reshape(1), lambda x: int(x.item())],
    ids=range(5),
)
def test_what_a_closure_returns(returned, exact):
    runs = []
    for cls in CLASSES:
        run = Run(cls, PROBLEMS["network"], torch.float64)
        first = run.opt.step(lambda run=run: returned(run.closure()))
        assert type(first) is type(returned(torch.tensor(1.0, dtype=torch.float64)))
        runs.append(run.everything())
    assert_bit_equal(*runs)


@pytest.mark.parametrize("returned", [None, "x", torch.ones(2)], ids=str)
def test_a_closure_that_returns_no_number(returned):
    errors = []
    for cls in CLASSES:
        run = Run(cls, PROBLEMS["network"], torch.float64)
        with pytest.raises((TypeError, ValueError, RuntimeError)) as e:
            run.opt.step(lambda: returned)
        errors.append((type(e.value), str(e.value), run.state()))
    assert errors[0] == errors[1]


GRADIENTS = {
    "sparse": lambda g: g.to_sparse(),
    "expanded": lambda g: g.flatten()[:1].expand(g.shape) if g.dim() == 1 else g,
    "none": lambda g: None,
    "zeros": torch.zeros_like,
    "negated lazily": lambda g: torch._neg_view(g),
    "strided": lambda g: torch.stack([g, g], -1)[..., 0],
    "transposed": lambda g: g.t().contiguous().t() if g.dim() == 2 else g,
}


@pytest.mark.parametrize("what", GRADIENTS)
@pytest.mark.parametrize("calls", [range(1, 99), (1,), (2, 5)], ids=["always", "at first", "later"])
@SEARCH
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.covering
def test_gradients_of_other_forms(what, calls, search, exact):
    runs = []
    for cls in CLASSES:
        run = Run(cls, PROBLEMS["network"], torch.float64, line_search_fn=search)
        count = itertools.count(1)

        def closure(run=run, count=count):
            loss = Run.closure(run)
            if next(count) in calls:
                for p in run.params:
                    g = GRADIENTS[what](p.grad)
                    p.grad = None
                    p.grad = g
            return loss

        error = None
        try:
            run.opt.step(closure)
        except RuntimeError as e:
            error = e
        runs.append((str(error), run.everything()))
    assert_bit_equal(*runs)


@pytest.mark.parametrize("which", ["parameter", "gradient"])
def test_what_changes_in_the_closure(which):
    run = Run(goptim.LBFGS, PROBLEMS["network"], torch.float64)

    def closure():
        loss = run.closure()
        if len(run.losses) == 3:
            (run.params[1] if which == "parameter" else run.params[1].grad).data = torch.ones(9, dtype=torch.float64)
        return loss

    with pytest.raises(RuntimeError, match=r"parameter 1 has become torch\.float64 on cpu, .* of shape \(9,\)"):
        run.opt.step(closure)


def test_closure_that_moves_parameters(exact):
    """They move to other memory, and are clamped."""
    runs = []
    for cls in CLASSES:
        for search in (None, "strong_wolfe"):
            run = Run(cls, Problem(at(-1.2, 1.0), rosenbrock), torch.float64, line_search_fn=search, lr=0.1)

            def closure(run=run):
                run.params[0].data = run.params[0].data.clone().clamp(-1, 0.8)
                return Run.closure(run)

            for _ in range(3):
                run.opt.step(closure)
            runs.append(run.everything())
    assert_bit_equal(runs[:2], runs[2:])


def test_gradient_that_is_the_parameter_itself(exact):
    runs = []
    for cls in CLASSES:
        p = Parameter(torch.linspace(-1, 2, 50, dtype=torch.float64))
        p.grad = p.detach()
        opt = cls([p], line_search_fn="strong_wolfe", lr=0.3)
        for _ in range(2):
            opt.step(lambda p=p: 0.5 * p.detach().square().sum())
        runs.append((p, dict(opt.state[p])))
    assert_bit_equal(*runs)


UNSUPPORTED = {
    "complex": lambda: [torch.ones(3, dtype=torch.complex128)],
    "mixed": lambda: [torch.ones(3), torch.ones(2, dtype=torch.float64)],
    "transposed": lambda: [torch.ones(3, 4).t()],
    "channels last": lambda: [torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)],
    "strided": lambda: [torch.ones(8)[::2]],
    "sharing memory": lambda: (lambda x: [x[:6], x[3:]])(torch.ones(9)),
    "empty": lambda: [torch.ones(0)],
    "meta": lambda: [torch.ones(3, device="meta")],
}


@pytest.mark.parametrize("what", UNSUPPORTED)
@pytest.mark.parametrize("contiguous", [True, False])
def test_parameters_that_fall_back(what, contiguous, go):
    runs = []
    for cls in CLASSES:
        params = [Parameter(t) for t in UNSUPPORTED[what]()]
        opt = cls(params, lr=0.1, max_iter=5)

        def closure(params=params):
            for p in params:
                p.grad = p.detach() * 3 if not contiguous else (p.detach() * 3).contiguous()
            return sum(p.detach().abs().float().square().sum() for p in params)

        error = None
        try:
            opt.step(closure)
        except Exception as e:
            error = str(e)
        runs.append((error, [] if what == "meta" else params))
    assert str(runs[0][0]) == str(runs[1][0])
    assert_bit_equal(runs[0][1], runs[1][1])
    assert not go


@pytest.mark.parametrize(
    "options",
    [
        {"lr": torch.tensor(0.5)}, {"history_size": 0}, {"max_iter": 0}, {"max_eval": 0}, {"max_iter": -1},
        {"line_search_fn": "weak_wolfe"}, {"max_eval": 0, "line_search_fn": "strong_wolfe"}, {"max_iter": 2.5},
        {"tolerance_grad": "x"}, {"lr": 10**400}, {"lr": True},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_fall_back(options, go, exact):
    _, error, expected = assert_same(PROBLEMS["network"], **options)
    assert str(error) == str(expected)
    assert not go


def test_watch(monkeypatch):
    """goptim run is told once of every step, with a reason for each parameter that torch steps."""
    seen = []
    monkeypatch.setattr(_parts, "watch", lambda opt, n, reasons: seen.append((n, reasons)))
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(2))]
    opt = goptim.LBFGS(params, max_iter=2)

    def closure(dtype=torch.float32):
        for p in params:
            p.grad = p.detach().to(dtype) if dtype is torch.float32 else None
        return sum(p.detach().square().sum() for p in params)

    opt.step(closure)
    opt.state[params[0]]["d"] = torch.ones(1)
    with contextlib.suppress(RuntimeError):
        opt.step(closure)
    opt.param_groups[0]["lr"] = torch.tensor(0.5)
    with contextlib.suppress(RuntimeError):
        opt.step(closure)
    state, number = "its state is not as this optimizer leaves it", "an argument is not a number, or out of range"
    assert seen == [(2, []), (0, [state] * 2), (0, [number] * 2)]


def test_construction():
    for kwargs, message in (
        ({"lr": -1}, "Invalid learning rate: -1"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
    ):
        with pytest.raises(ValueError, match=message):
            goptim.LBFGS([torch.ones(1)], **kwargs)
    with pytest.raises(ValueError, match="LBFGS doesn't support per-parameter options"):
        goptim.LBFGS([{"params": [torch.ones(1)]}, {"params": [torch.ones(2)]}])
    ours, expected = (cls([Parameter(torch.ones(2))], max_iter=7) for cls in CLASSES)
    assert repr(ours) == repr(expected)
    assert ours.defaults == expected.defaults
    assert list(vars(ours)) == list(vars(expected))
    assert isinstance(ours, torch.optim.LBFGS)


def test_impossible_steps():
    for args in ((), (None,), (3,)):
        errors = []
        for cls in CLASSES:
            with pytest.raises((TypeError, AttributeError)) as e:
                cls([Parameter(torch.ones(2))]).step(*args)
            errors.append(str(e.value))
        assert errors[0] == errors[1]
    opt = goptim.LBFGS([Parameter(torch.ones(2))])
    opt.param_groups.append(opt.param_groups[0])
    with pytest.raises(AssertionError):
        opt.step(lambda: 1.0)


def test_hooks_grad_mode_and_versions():
    run = Run(goptim.LBFGS, PROBLEMS["rosenbrock"], torch.float64)
    [p] = run.params
    log = []
    run.opt.register_step_pre_hook(lambda *args: log.append("before"))
    run.opt.register_step_post_hook(lambda *args: log.append("after"))
    versions = []

    def closure():
        assert torch.is_grad_enabled()
        versions.append(p._version)
        return run.closure()

    saves_p = p.pow(2).sum()
    run.opt.step(closure)
    assert log == ["before", "after"]
    assert torch.is_grad_enabled()
    assert len(set(versions)) == len(versions) > 5
    kept = run.state()["prev_flat_grad"]
    before = kept._version
    run.steps(1)
    assert run.state()["prev_flat_grad"] is kept
    assert kept._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saves_p.backward()


def test_referenced_state_does_not_change(exact):
    """Only prev_flat_grad is written in place, as in torch."""
    run = Run(goptim.LBFGS, PROBLEMS["network"], torch.float64, history_size=3).steps(1)
    state = run.state()
    held = [state["d"], state["H_diag"], *state["old_dirs"], *state["old_stps"], *state["ro"], *state["al"]]
    values = copy.deepcopy(held)
    run.steps(1)
    assert_bit_equal(held, values)


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **kwargs or {})


def test_dispatch_modes_see_every_operation(go):
    run = Run(goptim.LBFGS, PROBLEMS["rosenbrock"], torch.float64)
    with Counting() as mode:
        run.steps(1)
    assert "dot.default" in mode.names
    assert not go


def test_inference_mode(exact):
    runs = []
    for cls in CLASSES:
        run = Run(cls, PROBLEMS["rosenbrock"], torch.float64)
        grads = {}

        def closure(run=run, grads=grads):
            with torch.inference_mode(False):
                return Run.closure(run)

        error = None
        with torch.inference_mode():
            try:
                run.opt.step(closure)
            except RuntimeError as e:
                error = str(e)
        with contextlib.suppress(RuntimeError):
            run.steps(1)
        runs.append((str(error), run.everything()))
    assert_bit_equal(*runs)


def test_default_dtype_and_device(double_default, exact):
    assert_same(PROBLEMS["network"], torch.float32)
    p = Parameter(torch.ones(3, dtype=torch.float32))
    opt = goptim.LBFGS([p])

    def closure():
        p.grad = p.detach() * 2
        return float(p.detach().square().sum())

    with torch.device("meta"):
        opt.step(closure)
    assert all(t.is_cpu for t in (*opt.state[p]["ro"], opt.state[p]["d"], opt.state[p]["prev_flat_grad"]))


def test_mismatched_machine():
    with pytest.raises(RuntimeError, match=r"a machine of 8 bytes at 0x1000, expected \d+ bytes"):
        _core.LBFGS(4096, 8, 1)
    run = Run(goptim.LBFGS, PROBLEMS["rosenbrock"], torch.float64)
    run.closure()
    from goptim.lbfgs import _Run

    step = _Run(run.opt, {"func_evals": 0, "n_iter": 0})
    assert step.see(1.0)
    step._begin()
    for field, value, says in (
        ("kept", 0, "address"), ("n", 3, "2 elements in the segments, expected 3"), ("phase", 9, "phase 9"),
        ("segment_count", 0, "0 segments"), ("max_iter", 0, "0 iterations"), ("pair_count", 1, "address"),
    ):  # fmt: skip
        before = getattr(step.machine, field)
        setattr(step.machine, field, value)
        with pytest.raises(RuntimeError, match=says):
            _core.LBFGS(step.at, ctypes.sizeof(step.machine), 1)
        setattr(step.machine, field, before)


def test_order_of_sums():
    """The oracle differs from torch's own order, and its sums are correct."""
    x, y = torch.randn(2, 20_011, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = math.fsum((x * y).tolist())
    assert in_our_order(x, y).item() == pytest.approx(exact, rel=1e-12, abs=1e-10)
    assert in_our_order(x.float(), y.float()).dtype is torch.float32


NESTED = {"first": (1,), "some": (2, 5), "every": range(1, 9)}


@pytest.mark.parametrize("where", ["first", "some", pytest.param("every", marks=pytest.mark.full)])
@pytest.mark.parametrize("history", [2, pytest.param(100, marks=pytest.mark.full)])
@SEARCH
def test_closure_that_steps_its_optimizer(where, history, search, exact):
    """Both steps use the same state, as in torch: the results are exact, and so is the error in a first step."""
    for before in (0, 2):
        runs = []
        for cls in CLASSES:
            run = Run(cls, PROBLEMS["network"], torch.float64, line_search_fn=search, history_size=history)
            run.steps(before)
            calls, inside = itertools.count(1), [False]

            def closure(run=run, calls=calls, inside=inside):
                loss = run.closure()
                if next(calls) in NESTED[where] and not inside[0]:
                    inside[0] = True
                    try:
                        run.opt.step(run.closure)
                    finally:
                        inside[0] = False
                    loss = run.closure()
                return loss

            error = None
            try:
                for _ in range(2):
                    run.opt.step(closure)
            except TypeError as e:
                error = str(e)
            runs.append((str(error), run.everything()))
        assert_bit_equal(*runs)


def test_closure_that_steps_its_optimizer_with_other_memory_in_between(go):
    """A pair that the inner step removes is freed, and its memory is reused before the outer step reads it."""
    run = Run(goptim.LBFGS, Problem(normal((5000,)), quadratic), torch.float64, history_size=3, max_iter=8).steps(1)
    calls, inside, others = itertools.count(1), [False], []

    def closure():
        run.closure()
        if next(calls) > 2 and not inside[0]:
            inside[0] = True
            run.opt.step(run.closure)
            inside[0] = False
            others.extend(torch.full((5000,), math.nan, dtype=torch.float64) for _ in range(30))
        return run.closure()

    run.opt.step(closure)
    assert others
    assert all(map(math.isfinite, run.losses))
    assert all(t.isnan().all() for t in others)


def lists(state):
    return state["old_dirs"], state["old_stps"], state["ro"]


def replaced(run, state):
    for x, key in zip(lists(state), ("old_dirs", "old_stps", "ro"), strict=True):
        state[key] = [t.clone() for t in x]
        x.clear()


def moved(run, state):
    for t in state["old_dirs"]:
        t.data = t.data.clone() * 0.5


def swapped(run, state):
    torch.utils.swap_tensors(state["old_stps"][-1], state["old_stps"][0].clone())
    kept = state["prev_flat_grad"]
    torch.utils.swap_tensors(kept, kept.clone())


def reloaded(run, state):
    run.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))


def restarted(run, state):
    state["n_iter"] = 0


# Changes of the state by a closure with which torch continues.
CHANGES = {
    "state forgotten": lambda run, state: run.opt.state.clear(),
    "state loaded": reloaded,
    "lists replaced": replaced,
    "lists emptied": lambda run, state: [x.clear() for x in lists(state)],
    "oldest pair dropped": lambda run, state: [x.pop(0) for x in lists(state)],
    "pair doubled": lambda run, state: [x.append(x[0].clone()) for x in lists(state)],
    "ro changed in place": lambda run, state: [x.mul_(0.5) for x in state["ro"]],
    "pairs in other memory": moved,
    "tensors swapped": swapped,
    "gradient changed in place": lambda run, state: state["prev_flat_grad"].mul_(0.9),
    "count changed": lambda run, state: state.update(func_evals=1000, n_iter=50),
    "begins anew": restarted,
    "options changed": lambda run, state: run.opt.param_groups[0].update(lr=0.01, max_iter=1, history_size=20),
    "parameters in other memory": lambda run, state: [setattr(p, "data", p.data.clone()) for p in run.params],
    "parameters swapped": lambda run, state: [
        torch.utils.swap_tensors(p, Parameter(p.detach() * 0.9)) for p in run.params
    ],
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("call", [1, 3])
@SEARCH
@pytest.mark.covering
def test_closure_that_changes_the_state(what, call, search, exact):
    runs = []
    for cls in CLASSES:
        run = Run(cls, PROBLEMS["network"], torch.float64, line_search_fn=search, history_size=15, max_iter=4).steps(2)
        calls, state = itertools.count(1), run.opt.state[run.params[0]]

        def closure(run=run, calls=calls, state=state):
            if next(calls) == call:
                CHANGES[what](run, state)
            return run.closure()

        run.opt.step(closure)
        run.steps(1)
        runs.append((run.everything(), dict(state)))
    assert_bit_equal(*runs)


def other_group(run, state):
    run.opt.param_groups[0] = {**run.opt.param_groups[0], "lr": 0.01, "maximize": HAS_MAXIMIZE}


class Watched(goptim.LBFGS):
    """Has an attribute that is not in its __dict__, and sees what torch calls."""

    __slots__ = ("seen",)

    def _gather_flat_grad(self):
        self.seen.append(self.param_groups[0]["lr"])
        return super()._gather_flat_grad()


@pytest.mark.parametrize("what", ["state forgotten", "state loaded", "begins anew", "options changed", "other group"])
@pytest.mark.parametrize("steps", [0, 2])
@SEARCH
@pytest.mark.covering
def test_closure_after_which_torch_steps(what, steps, search):
    """torch goes on with the options and the state that it had before, and then with the optimizer as it is."""
    change = CHANGES.get(what, other_group)
    runs = []
    for cls in (*CLASSES, Watched):
        run = Run(cls, PROBLEMS["network"], torch.float64, line_search_fn=search, max_iter=4)
        run.opt.seen = []
        for p in run.params:  # for torch in all steps, whose sums it rounds in another order
            p.data = p.data.t().contiguous().t()[:] if p.dim() == 2 else p.data
        first = [p.detach().contiguous() for p in run.params]

        def closure(run=run):
            loss = run.closure()
            for p in run.params:
                p.grad = p.grad.contiguous()
            return loss

        for _ in range(steps):
            run.opt.step(closure)
        run.opt.seen.clear()
        state, others = run.opt.state[run.params[0]], [p.data for p in run.params]
        if cls is not torch.optim.LBFGS:  # so that Go would step, until the closure has run
            for p in run.params:
                p.data = p.data.contiguous()
        calls = itertools.count()

        def changing(run=run, calls=calls, state=state, others=others, closure=closure):
            if next(calls) == 0:
                change(run, state)
                for p, x in zip(run.params, others, strict=True):
                    p.data = x
            return closure()

        run.opt.step(changing)
        assert not all(map(torch.equal, first, run.params))
        seen = len(run.opt.seen)
        run.opt.step(closure)
        runs.append((run.everything(), dict(state), next(calls), run.opt.param_groups[0]["lr"]))
    assert_bit_equal(runs[0], runs[1])
    assert_bit_equal(runs[2], runs[1])
    assert seen > 1


def resized(run, state):
    state["old_dirs"][0].untyped_storage().resize_(0)


# Changes with which torch fails or reads invalid memory. goptim raises first, and writes nothing more.
SPOILS = {
    "a pair of another length": lambda run, state: state["old_dirs"].__setitem__(0, torch.ones(3)),
    "a pair of another dtype": lambda run, state: state["old_stps"].__setitem__(0, state["old_stps"][0].float()),
    "a pair's data of another length": lambda run, state: setattr(state["old_dirs"][0], "data", torch.ones(3)),
    "fewer elements in the same memory": lambda run, state: state["old_dirs"][0].resize_(3),
    "no memory": resized,
    "a number for a list": lambda run, state: state["old_dirs"].__setitem__(0, 3),
    "one list shorter": lambda run, state: state["ro"].pop(),
    "a list longer than the history": lambda run, state: [x.extend(x * 9) for x in lists(state)],
    "the gradient's data of another length": lambda run, state: setattr(state["prev_flat_grad"], "data", torch.ones(3)),
    "count of another type": lambda run, state: state.update(n_iter="3"),
    "no counts": lambda run, state: state.clear(),
    "parameters that share memory": lambda run, state: setattr(run.params[0], "data", run.params[2].data),
    "another parameter": lambda run, state: run.opt.param_groups[0]["params"].append(Parameter(torch.ones(2))),
    "a parameter fewer": lambda run, state: run.opt.param_groups[0]["params"].pop(),
}


@pytest.mark.parametrize("what", SPOILS)
@SEARCH
def test_closure_that_corrupts_the_state(what, search, go):
    start = at(*[0.3] * 6)(torch.float64)[0]
    problem = Problem(
        lambda dtype: [start.clone(), start[:2].clone(), start.clone()], lambda *p: sum(map(rosenbrock, p))
    )
    run = Run(goptim.LBFGS, problem, torch.float64, line_search_fn=search, history_size=9, lr=1e-3, max_iter=6).steps(2)
    calls, state, before = itertools.count(1), run.opt.state[run.params[0]], []

    def closure():
        loss = run.closure()
        if next(calls) == 3:
            SPOILS[what](run, state)
            before[:] = [p.detach().clone() for p in run.params], len(go)
        return loss

    with pytest.raises((RuntimeError, KeyError), match=r"LBFGS|parameters|func_evals"):
        run.opt.step(closure)
    assert_bit_equal([p.detach() for p in run.params], before[0])
    assert len(go) == before[1]


def test_many_threads_step_one_optimizer():
    """No foreign memory is accessed, and errors are Python exceptions."""
    run = Run(goptim.LBFGS, Problem(normal((3000,)), quadratic), torch.float64, history_size=4, max_iter=5).steps(1)
    p, others = run.params[0], []

    def closure():
        p.grad = p.detach() * 2 + 0.1
        others.append(torch.full((3000,), 7.0, dtype=torch.float64))
        if len(others) > 50:
            del others[:40]
        return float(p.detach().square().sum())

    def work():
        for _ in range(40):
            with contextlib.suppress(Exception):
                run.opt.step(closure)

    def clear():
        for _ in range(400):
            with contextlib.suppress(Exception):
                run.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))
                for x in lists(run.opt.state[p]):
                    x.clear()

    workers = [threading.Thread(target=f) for f in (work, work, clear)]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    assert all((t == 7).all() for t in others)


def test_options_are_read_before_the_closure(exact):
    """As in torch, changes in the first evaluation apply from the next step on."""
    runs = []
    for cls in CLASSES:
        run = Run(cls, PROBLEMS["network"], torch.float64, max_iter=3)

        def closure(run=run):
            run.opt.param_groups[0]["lr"] *= 0.5
            run.opt.param_groups[0]["max_iter"] += 1
            return Run.closure(run)

        for _ in range(3):
            run.opt.step(closure)
        runs.append(run.everything())
    assert_bit_equal(*runs)


def test_whether_max_eval_bounds_line_searches():
    from goptim.lbfgs import _max_eval_bounds_searches

    assert _max_eval_bounds_searches() == ("max_ls=" in inspect.getsource(torch.optim.LBFGS))
