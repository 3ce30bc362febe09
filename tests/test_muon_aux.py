"""MuonWithAuxAdam is bit-for-bit equal to its for-loop, with which tests/integrations compares the package too."""

import copy
import itertools
import pickle

import pytest
import torch
from configurations import gradients, normal
from torch.nn import Parameter

import goptim
from goptim import _core
from goptim._kinds import kind_of
from goptim.testing import assert_bit_equal, ieee_sqrt

FOR_LOOP = goptim.MuonWithAuxAdam.torch_class
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

MATRICES = [(1, 1), (5, 1), (17, 33), (33, 17), (64, 64), (8, 3, 3, 2), (2, 6, 5), (2, 1, 4, 3, 5)]
OTHERS = [(37,), (3, 5), (), (0,), (1003,)]
MUON = [{}, {"lr": 0.3, "momentum": 0.4, "weight_decay": 0.7}, {"momentum": 0.5 + 1e-9, "lr": 3}]
ADAM = [
    {},
    {"lr": 0.1, "betas": (0.2, 0.5 + 1e-9), "eps": 1e-3, "weight_decay": 0.3},
    {"betas": (0.5, 0.0), "eps": 0, "lr": 3},
]


def groups_of(params, muon, adam):
    """Groups of both kinds in turn, so that more than one call of Go is needed."""
    matrices, others = params[: len(MATRICES)], params[len(MATRICES) :]
    return [
        {"params": others[:2], "use_muon": False, **adam},
        {"params": others[2:3], "use_muon": False},
        {"params": matrices[:4], "use_muon": True, **muon},
        {"params": matrices[4:], "use_muon": True},
        {"params": others[3:], "use_muon": False, "lr": 0.02},
    ]


class Runs:
    """The same parameters with several classes."""

    def __init__(self, classes, dtype, muon, adam, layout=lambda t: t):
        values = [layout(normal(shape, dtype, i)) for i, shape in enumerate([*MATRICES, *OTHERS])]
        self.params = [[Parameter(v.clone()) for v in values] for _ in classes]
        self.opts = [cls(groups_of(p, dict(muon), dict(adam))) for cls, p in zip(classes, self.params, strict=True)]
        self.steps = 0

    def step(self, skip=()):
        for opt, params in zip(self.opts, self.params, strict=True):
            for i, (p, g) in enumerate(zip(params, gradients(params, self.steps), strict=True)):
                p.grad = None if i in skip else g
            with ieee_sqrt():
                opt.step()
        self.steps += 1
        expected, *others = ((p, opt.state_dict()) for p, opt in zip(self.params, self.opts, strict=True))
        for other in others:
            assert_bit_equal(other, expected, f"step {self.steps}")


@pytest.fixture
def calls(monkeypatch):
    """The numbers of rows of the steps in Go, by the name of their kind."""
    found = {}
    step_groups = _core.step_groups
    names = {kind_of(name).handle: name for name in ("MuonMomentum", "MuonUpdate", "AuxAdam")}

    def counted(kind, *args):
        done = step_groups(kind, *args)
        if args[4] > 0 and type(done) is int:
            found.setdefault(names[kind], []).append(done)
        return done

    monkeypatch.setattr(_core, "step_groups", counted)
    return found


@FLOATS
@pytest.mark.parametrize(("muon", "adam"), list(itertools.product(MUON, ADAM)), ids=str)
@pytest.mark.covering(1)
def test_every_configuration(muon, adam, dtype, threads, calls):
    runs = Runs([FOR_LOOP, goptim.MuonWithAuxAdam], dtype, muon, adam)
    for _ in range(5):
        runs.step()
    n = len(MATRICES)
    # The last three groups of Adam follow each other from the end of one step to the beginning of the next one.
    assert calls["AuxAdam"] == [3, 2] * 5
    assert sum(calls["MuonMomentum"]) == sum(calls["MuonUpdate"]) == 5 * n


def test_consecutive_groups_are_one_call(threads, calls):
    params = [Parameter(normal((3, 4), torch.float32, i)) for i in range(3)]
    opt = goptim.MuonWithAuxAdam([{"params": [p], "use_muon": i == 2} for i, p in enumerate(params)])
    for p in params:
        p.grad = normal((3, 4), torch.float32, 5)
    opt.step()
    opt.step()
    assert calls["AuxAdam"] == [2, 2]
    assert [row.to for row in goptim.explain(opt)] == ["go"] * 3


@pytest.mark.parametrize("layout", [lambda t: t.mT.contiguous().mT if t.dim() > 1 else t], ids=["transposed"])
def test_other_strides(layout, threads, calls):
    runs = Runs([FOR_LOOP, goptim.MuonWithAuxAdam], torch.float32, {}, {}, layout)
    for _ in range(3):
        runs.step()
    assert sum(calls["MuonUpdate"]) == 3 * len(MATRICES)


def test_parameters_without_a_gradient_get_zeros(threads):
    """The counts of the parameters of a group differ after a parameter was added."""
    runs = Runs([FOR_LOOP, goptim.MuonWithAuxAdam], torch.float32, {}, {})
    runs.step()
    runs.step(skip=(0, 4, 8, 9))
    assert not runs.params[1][8].grad.any()
    for opt, params in zip(runs.opts, runs.params, strict=True):
        params.append(Parameter(normal((9,), torch.float32, 3)))
        opt.param_groups[0]["params"].append(params[-1])
    runs.step()
    runs.step()
    assert runs.opts[1].state[runs.params[1][-1]]["step"] == 2
    assert runs.opts[1].state[runs.params[1][8]]["step"] == 4


def test_explain_changes_no_gradient(threads):
    p = Parameter(torch.ones(2, 2))
    opt = goptim.MuonWithAuxAdam([{"params": [p], "use_muon": True}])
    assert [row.to for row in goptim.explain(opt)] == ["go"]
    assert p.grad is None


def test_gradients_stay(threads):
    runs = Runs([goptim.MuonWithAuxAdam], torch.float32, {}, {})
    for p, g in zip(runs.params[0], gradients(runs.params[0], 0), strict=True):
        p.grad = g
    before = [p.grad.clone() for p in runs.params[0]]
    runs.opts[0].step()
    assert_bit_equal([p.grad for p in runs.params[0]], before)


def test_what_falls_back(threads, calls):
    """A complex parameter and a count that is not an int are stepped by torch, and the rest in Go."""
    runs = Runs([FOR_LOOP, goptim.MuonWithAuxAdam], torch.float32, {}, {})
    runs.step()
    for opt, params in zip(runs.opts, runs.params, strict=True):
        params.append(Parameter(normal((4,), torch.complex64, 7)))
        opt.param_groups[0]["params"].append(params[-1])
        opt.state[params[8]]["step"] = 1.0
    calls.clear()
    runs.step()
    assert sum(calls["AuxAdam"]) == len(OTHERS) - 1
    assert sum(calls["MuonUpdate"]) == len(MATRICES)
    assert [row.to for row in goptim.explain(runs.opts[1])].count("torch") == 2


def test_a_parameter_that_occurs_twice_is_stepped_twice(threads):
    results = []
    for cls in (FOR_LOOP, goptim.MuonWithAuxAdam):
        p = Parameter(normal((5,), torch.float32, 0))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            opt = cls([{"params": [p, p], "use_muon": False, "lr": 0.1}])
        for step in range(3):
            p.grad = normal((5,), torch.float32, step)
            with ieee_sqrt():
                opt.step()
        results.append((p, dict(opt.state[p])))
    assert_bit_equal(results[1], results[0])
    assert results[1][1]["step"] == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits(dtype, threads, calls):
    """Adam is computed in float32 and rounded once. The momentum too, before it is orthogonalized in bfloat16."""
    wide = [normal((6, 4), torch.float32, 0), normal((37,), torch.float32, 1)]
    matrix, vector = (Parameter(v.to(dtype)) for v in wide)
    opt = goptim.MuonWithAuxAdam([{"params": [matrix], "use_muon": True}, {"params": [vector], "use_muon": False}])
    matrix.grad, vector.grad = (normal(v.shape, torch.float32, 5).to(dtype) for v in wide)
    single = Parameter(vector.detach().float())
    single.grad = vector.grad.float()
    other = FOR_LOOP([{"params": [single], "use_muon": False}])
    with ieee_sqrt():
        other.step()
    opt.step()
    assert_bit_equal(vector, Parameter(single.detach().to(dtype)))
    assert_bit_equal(opt.state[vector]["exp_avg_sq"], other.state[single]["exp_avg_sq"].to(dtype))
    assert opt.state[matrix]["momentum_buffer"].dtype is dtype
    assert calls == {"MuonMomentum": [1], "MuonUpdate": [1], "AuxAdam": [1]}


def test_state_dicts(threads):
    """Each class loads the other's, also after pickle and deepcopy."""
    runs = Runs([FOR_LOOP, goptim.MuonWithAuxAdam], torch.float32, {"lr": 0.1}, {"lr": 0.1})
    runs.step()
    states = [copy.deepcopy(opt.state_dict()) for opt in runs.opts]
    other = Runs([FOR_LOOP, goptim.MuonWithAuxAdam], torch.float32, {}, {})
    for opt, state, theirs, ours in zip(other.opts, reversed(states), other.params, runs.params, strict=True):
        opt.load_state_dict(state)
        for p, q in zip(theirs, ours, strict=True):
            p.data.copy_(q.data)
    other.steps = 1
    other.step()
    assert type(next(iter(other.opts[1].state_dict()["state"].values()))["step"]) is int
    for changed in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        opt = changed(other.opts[1])
        params = [p for group in opt.param_groups for p in group["params"]]
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        assert opt.state[params[0]]["step"] == 3


def test_around_a_step(threads):
    """The keyword arguments of a step do what separate calls do, with one norm over all groups."""
    results = []
    for together in (True, False):
        runs = Runs([goptim.MuonWithAuxAdam], torch.float32, {}, {})
        opt, params = runs.opts[0], runs.params[0]
        ema = goptim.EMA(params, 0.9)
        for p, g in zip(params, gradients(params, 2), strict=True):
            p.grad = g
        if together:
            opt.step(max_grad_norm=0.5, ema=ema, zero_grad=True)
        else:
            torch.nn.utils.clip_grad_norm_(params, 0.5)
            opt.step()
            ema.update()
            opt.zero_grad(set_to_none=False)
        results.append((params, [p.grad for p in params], ema.averages, opt.state_dict()))
    assert_bit_equal(*results)


ERRORS = [
    ({}, "group 0: no use_muon, expected True or False"),
    ({"use_muon": 1}, "group 0: use_muon 1, expected True or False"),
    ({"use_muon": True, "eps": 1}, "group 0: eps, expected lr, momentum, weight_decay with use_muon=True"),
    ({"use_muon": False, "momentum": 1}, "momentum, expected lr, betas, eps, weight_decay with use_muon=False"),
    ({"use_muon": False, "master_weights": True}, "master_weights, expected lr, betas"),
]


@pytest.mark.parametrize(("group", "message"), ERRORS, ids=str)
def test_groups_that_are_refused(group, message):
    with pytest.raises(ValueError, match=message):
        goptim.MuonWithAuxAdam([{"params": [torch.ones(2, 2)], **group}])


def test_vectors_are_refused_before_anything_is_written(threads):
    first, vector = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    opt = goptim.MuonWithAuxAdam(
        [{"params": [first], "use_muon": False}, {"params": [torch.ones(2, 2), vector], "use_muon": True}]
    )
    first.grad = torch.ones(3)
    for cls in (goptim.MuonWithAuxAdam, FOR_LOOP):
        with pytest.raises(ValueError, match=r"parameter 1 of group 1, of shape \(3,\) and torch.float32: expected at"):
            cls.step(opt)
    with pytest.raises(ValueError, match=r"parameter 1 of group 1"):
        goptim.MuonWithAuxAdam.step(opt)
    assert [row.to for row in goptim.explain(opt)] == ["go", "go", "error"]
    assert not opt.state
    assert vector.grad is None
    assert_bit_equal(first, Parameter(torch.ones(3)))


@pytest.mark.parametrize(("key", "value"), [("lr", 1e300), ("momentum", 1e300)])
def test_numbers_that_overflow(key, value, threads):
    """torch raises the error, and nothing has changed in Go."""
    params = [Parameter(torch.ones(2, 2)), Parameter(torch.ones(3))]
    groups = [{"params": params[1:], "use_muon": False}, {"params": params[:1], "use_muon": True, key: value}]
    opt = goptim.MuonWithAuxAdam(groups)
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="without overflow"):
        opt.step()
    assert_bit_equal(params, [Parameter(torch.ones(2, 2)), Parameter(torch.ones(3))])


def test_a_file_is_refused(tmp_path):
    opt = goptim.MuonWithAuxAdam([{"params": [torch.ones(2, 2)], "use_muon": True}])
    with pytest.raises(TypeError):
        goptim.save_state(opt, tmp_path / "state")
