"""A short run of soak.py with every event is exact."""

import pytest
import soak

import goptim

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


def test_a_short_run():
    soak.soak(soak.OPTIMIZERS, steps=280, tensors=30, seed=3, turn=5)


def test_a_difference_is_reported(monkeypatch):
    """A class that steps twice after a state was loaded."""
    adam = goptim.AdamW

    class Twice(adam):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            self.twice = True

        def step(self, closure=None):
            loss = super().step(closure)
            if getattr(self, "twice", False):
                super().step()
            return loss

    monkeypatch.setattr(goptim, "AdamW", Twice)
    with pytest.raises(soak.Difference, match="AdamW differs after step"):
        soak.soak(["AdamW"], steps=2000, tensors=30, seed=3)


def test_growth_is_reported():
    class Use:
        def __init__(self, memory, threads, blocks):
            self.memory, self.threads, self.blocks = memory, threads, blocks

    flat = [Use(500, 9, 100_000)] * 10
    assert soak.growth(flat) is None
    assert soak.growth([*flat[:3], *[Use(520, 9, 100_000)] * 7]) == "memory"
    assert soak.growth([*flat[:3], *[Use(500, 30, 100_000)] * 7]) == "threads"
    assert "blocks" in soak.growth([*flat[:3], *[Use(500, 9, 200_000)] * 7])
