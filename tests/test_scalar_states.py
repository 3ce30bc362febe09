"""Scalar states such as step: their version counters, their errors, and memory shared with other parameters."""

import copy
from collections import OrderedDict
from typing import Any

import pytest
import rows
import torch
from configurations import ELEMENTWISE, IN_TABLES, both_classes, class_of, oracle_of
from torch import Tensor
from torch.nn import Parameter

import goptim
from goptim import _native
from goptim.testing import assert_bit_equal, ieee_sqrt

OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "SGDW": {"momentum": 0.9},
    "LARS": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9},
    "ASGD": {"t0": 0},
    "Adafactor": {"eps": (1e-8, 1e-3)},
}
GAPS = None  # instead of a dtype: float64, with gaps between the elements
COUNTING = [name for name in IN_TABLES if rows.counts(name)]
counting = pytest.mark.parametrize("name", COUNTING)
elementwise = pytest.mark.parametrize("name", [name for name in ELEMENTWISE if name in COUNTING])


def build(cls: Any, dtypes: list[torch.dtype | None], n: int = 8) -> tuple[Any, list[Parameter]]:
    """An optimizer after one step, with gradients for the next step."""
    random = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(n, generator=random).to(dtype or torch.float64)) for dtype in dtypes]
    for p, dtype in zip(params, dtypes, strict=True):
        if dtype is GAPS:
            p.data = p.detach().repeat_interleave(2)[::2]
    opt = cls(params, **OPTIONS.get(cls.__name__, {}))
    for step in range(2):
        for p in params:
            p.grad = torch.randn(n, generator=random).to(p.dtype)
        if step == 0:
            with ieee_sqrt():
                opt.step()
    return opt, params


def everything(opt: Any, params: list[Parameter]) -> list[Tensor]:
    return [*params, *(t for p in params for t in opt.state[p].values() if isinstance(t, Tensor))]


MIXES = {
    "all in Go": [torch.float32, torch.float64],
    "some in torch": [torch.float32, GAPS],
}


@counting
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("layout", [True, False], ids=["", "without a layout"])
@pytest.mark.covering
def test_versions(name: str, mix: str, layout: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not layout:
        monkeypatch.setattr(_native, "layout", lambda: None)

    def raised(cls: Any) -> list[bool]:
        opt, params = build(cls, MIXES[mix])
        tensors = everything(opt, params)
        before = [t._version for t in tensors]
        opt.step()
        assert all(a is b for a, b in zip(tensors, everything(opt, params), strict=True))
        return [t._version > old for t, old in zip(tensors, before, strict=True)]

    expected, ours = map(raised, both_classes(name))
    assert ours == expected
    assert ours.count(False) == (len(MIXES[mix]) if name == "Prodigy" else 0)  # its p0 is only read


REFUSED = ["Adam", "AdamW", "Adamax", "RAdam", "Adafactor"]  # Python raises an exception at step 0


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("layout", [True, False], ids=["", "without a layout"])
@pytest.mark.covering
def test_a_refused_step_writes_nothing(name: str, mix: str, layout: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, states and version counters are unchanged, both in Go and in torch."""
    if not layout:
        monkeypatch.setattr(_native, "layout", lambda: None)
    theirs, ours = both_classes(name)
    for first in (False, True):
        errors = []
        for cls in (theirs, ours):
            opt, params = build(cls, MIXES[mix][::-1] if first else MIXES[mix])
            (p,) = [p for p in params if p.dtype is torch.float32]
            opt.state[p]["step"].fill_(-1.0)
            tensors = everything(opt, params)
            before = [t.detach().clone() for t in tensors]
            versions = [t._version for t in tensors]
            with pytest.raises(Exception) as error:  # noqa: PT011
                opt.step()
            errors.append(error.type)
        assert errors[0] is errors[1]
        assert_bit_equal(everything(opt, params), before)
        assert [t._version for t in tensors] == versions


def step_in_parameter(opt: Any, params: list[Parameter]) -> None:
    memory = params[0].data
    memory[3] = 1.0
    opt.state[params[1]]["step"] = memory[3]


def step_in_parameter_from_numpy(opt: Any, params: list[Parameter]) -> None:
    memory = params[0].detach().numpy()
    memory[3] = 1.0
    opt.state[params[1]]["step"] = torch.from_numpy(memory[3:4]).reshape(())


def step_in_gradient(opt: Any, params: list[Parameter]) -> None:
    memory = params[0].grad
    assert memory is not None
    memory[3] = 1.0
    opt.state[params[1]]["step"] = memory[3]


def step_in_later_parameter(opt: Any, params: list[Parameter]) -> None:
    memory = params[1].data
    memory[3] = 1.0
    opt.state[params[0]]["step"] = memory[3]


def step_in_state(opt: Any, params: list[Parameter]) -> None:
    memory = next(t for t in opt.state[params[0]].values() if isinstance(t, Tensor) and t.dim())
    memory[3] = 1.0
    opt.state[params[1]]["step"] = memory[3]


def scalars_in_parameter(opt: Any, params: list[Parameter]) -> None:
    memory = params[0].data
    for i, (key, t) in enumerate(list(opt.state[params[1]].items())):
        if isinstance(t, torch.Tensor) and t.dim() == 0:
            memory[i] = t
            opt.state[params[1]][key] = memory[i]


def numbers_in_state(opt: Any, params: list[Parameter]) -> None:
    memory = next(t for t in opt.state[params[0]].values() if isinstance(t, Tensor) and t.dim())
    numbers = [key for key, x in opt.state[params[1]].items() if isinstance(x, (int, float))]
    for i, key in enumerate(numbers):
        memory[i] = opt.state[params[1]][key]
        opt.state[params[1]][key] = memory[i]


WAYS = [
    step_in_parameter, step_in_parameter_from_numpy, step_in_gradient, step_in_later_parameter, step_in_state,
    scalars_in_parameter, numbers_in_state,
]  # fmt: skip


@counting
@pytest.mark.parametrize("n", [8, 1 << 19])
@pytest.mark.parametrize("share", WAYS, ids=[way.__name__ for way in WAYS])
@pytest.mark.covering("share n", "name n")
def test_scalar_states_in_memory_of_another(name: str, share: Any, n: int, threads: Any) -> None:
    threads(2)

    def run(cls: Any) -> list[Tensor]:
        opt, params = build(cls, [torch.float32] * 3, n)
        share(opt, params)
        with ieee_sqrt():
            try:
                opt.step()
            except Exception as e:
                return [type(e)]  # type: ignore[list-item]
        return everything(opt, params)

    expected, ours = map(run, both_classes(name))
    if isinstance(expected[0], type):
        assert ours == expected
    else:
        assert_bit_equal(ours, expected)


class Elsewhere(dict):  # type: ignore[type-arg]
    """A dict that contains copies and looks its keys up in another dict."""

    def __init__(self, kept: dict[str, Any]) -> None:
        super().__init__({key: copy.deepcopy(t) for key, t in kept.items()})
        self.kept = kept

    def __getitem__(self, key: str) -> Any:
        return self.kept[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.kept.get(key, default)


@pytest.mark.parametrize("name", IN_TABLES)
def test_states_that_look_keys_up_in_their_own_way(name: str) -> None:
    def run(cls: Any) -> Any:
        opt, params = build(cls, [torch.float32, torch.float32])
        kept = opt.state[params[0]]
        opt.state[params[0]] = Elsewhere(kept)
        with ieee_sqrt():
            opt.step()
        return [*params, kept, dict(opt.state[params[0]]), opt.state[params[1]]], opt

    expected, ours = map(run, both_classes(name))
    assert_bit_equal(ours[0], expected[0])
    assert [row.to for row in goptim.explain(ours[1])] == ["torch", "torch" if ours[1].together else "go"]


@pytest.mark.parametrize("name", IN_TABLES)
def test_states_in_an_ordered_dict(name: str) -> None:
    """An OrderedDict does not override the lookup, so the parameter runs in Go."""
    opt, params = build(class_of(name), [torch.float32])
    expected, its_params = build(oracle_of(name), [torch.float32])
    opt.state[params[0]] = OrderedDict(opt.state[params[0]])
    assert [row.to for row in goptim.explain(opt)] == ["go"]
    with ieee_sqrt():
        opt.step()
        expected.step()
    assert_bit_equal(everything(opt, params), everything(expected, its_params))


class Subclass(Parameter):
    pass


@elementwise
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("unsupported", ["subclass", "capturable", "dict"])
@pytest.mark.covering("unsupported first", "name")
def test_states_shared_with_a_parameter_that_is_not_for_go(name: str, first: bool, unsupported: str) -> None:
    """A parameter that runs in Go shares memory with a state of one that Python decides about or that falls back."""

    def run(cls: Any) -> list[Tensor]:
        opt, params = build(cls, [torch.float32, torch.float32])
        p, other = params if first else params[::-1]
        key = next(key for key, t in opt.state[p].items() if isinstance(t, Tensor) and t.dim())
        other.data = opt.state[p][key]
        if unsupported == "subclass":
            state = opt.state.pop(p)
            p = Subclass(p.data)
            p.grad = params[0 if first else 1].grad
            opt.param_groups[0]["params"][0 if first else 1] = p
            opt.state[p] = state
        elif unsupported == "capturable":
            options = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
            opt.param_groups = [
                {**options, "params": [q], **({"differentiable": True} if q is p else {})} for q in params
            ]
        else:
            opt.state[p] = Elsewhere(opt.state[p])
        with torch.no_grad(), ieee_sqrt():
            opt.step()
        return [p, other, *(opt.state[q][k] for q in (p, other) for k in opt.state[q])]

    expected, ours = map(run, both_classes(name))
    assert_bit_equal(ours, expected)
