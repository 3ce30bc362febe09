"""Optimizers of torch's test database, with parameters and random gradients, and the comparison after steps."""

import copy
import warnings
from collections.abc import Callable

import torch
from configurations import class_of, for_loop_flags, name_of, oracle_of
from torch import Tensor
from torch.nn import Parameter

from goptim.testing import assert_bit_equal

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that hypothesis is not installed
    from torch.testing._internal.common_optimizers import optim_db

INFOS = {info.name: info for info in optim_db}
# Optimizers that support nothing else, which torch's database does not say.
MATRICES = ("Muon",)


def both_classes(name: str) -> tuple[type[torch.optim.Optimizer], type[torch.optim.Optimizer]]:
    return class_of(name), oracle_of(name)


def options_of(name: str, i: int) -> dict[str, object]:
    """The i-th input, created anew because a run may change it, with torch's for-loop."""
    options = dict(INFOS[name].optim_inputs_func(device="cpu")[i].kwargs)
    if name == "LBFGS":
        options = {"max_iter": 4} | options  # as tests of LBFGS alone have long runs
    return {k: v for k, v in options.items() if k not in ("foreach", "fused")} | for_loop_flags(name)


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return [(5, 3), (3, 7)] if name in MATRICES else [(5, 3), (11,), ()]


class Run:
    """An optimizer, and steps with random gradients that are the same in every run."""

    def __init__(
        self,
        optimizer: type[torch.optim.Optimizer],
        groups: Callable[[list[Tensor]], object] = lambda params: params,
        layout: Callable[[Tensor], Tensor] = lambda t: t,
        dtype: torch.dtype = torch.float32,
        **options: object,
    ) -> None:
        self.name = name_of(optimizer)
        self.generator = torch.Generator().manual_seed(0)
        shapes = [(5, 3), (4, 2)] if self.name == "SparseAdam" else shapes_of(self.name)
        self.params = [Parameter(layout(torch.randn(s, dtype=dtype, generator=self.generator))) for s in shapes]
        self.opt = optimizer(groups(self.params), **options)
        self.at = 0

    def copy(self) -> "Run":
        other = copy.copy(self)
        other.params, other.opt = copy.deepcopy((self.params, self.opt))
        other.generator = self.generator.clone_state()
        return other

    def follow(self, state_dict: dict, optimizer: type[torch.optim.Optimizer]) -> "Run":
        """A new optimizer on copies of the parameters, which continues from a state."""
        other = self.copy()
        other.opt = optimizer(other.params, **for_loop_flags(self.name))
        other.opt.load_state_dict(state_dict)
        return other

    def closure(self) -> Tensor:
        self.opt.zero_grad()
        loss = sum(((p - 1).abs() ** 4).sum() for p in self.params)
        loss.backward()
        self.losses.append(loss.detach())
        return loss

    def steps(self, n: int, *, closure: bool = False) -> "Run":
        for _ in range(n):
            self.at += 1
            self.losses: list[Tensor] = []
            if self.name == "LBFGS" or closure:
                self.returned = self.opt.step(self.closure)
                continue
            for p in self.params:
                p.grad = self.gradient(p)
            assert self.opt.step() is None
        return self

    def gradient(self, p: Tensor) -> Tensor:
        if p.is_meta:
            return torch.empty_like(p)
        if self.name != "SparseAdam":
            return torch.empty_like(p).copy_(torch.randn(p.shape, dtype=p.dtype, generator=self.generator))
        rows = torch.tensor([[self.at % len(p), 0, self.at % len(p)]])
        values = torch.randn(3, p.shape[1], dtype=p.dtype, generator=self.generator)
        return torch.sparse_coo_tensor(rows, values, p.shape, check_invariants=False)

    def everything(self) -> tuple[list[Tensor], dict]:
        return self.params, self.opt.state_dict()


def assert_same(ours: Run, expected: Run) -> None:
    (params, state), (expected_params, expected_state) = ours.everything(), expected.everything()
    assert_bit_equal(params, expected_params)
    assert_bit_equal(state["state"], expected_state["state"])
    assert list(state["state"]) == list(expected_state["state"])
    assert [list(x) for x in state["state"].values()] == [list(x) for x in expected_state["state"].values()]
    assert str(state["param_groups"]) == str(expected_state["param_groups"])
