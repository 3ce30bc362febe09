"""stable-baselines3's algorithms, and a loop like CleanRL's: exactly torch's weights, with everything in Go."""

import contextlib
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stacks import execute, load, snippets
from torch import nn

import goptim
from goptim import _lists
from goptim.testing import assert_bit_equal, ieee_sqrt

sb3 = load("stable_baselines3")
gymnasium = load("gymnasium")
common = load("stable_baselines3.common.utils")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(monkeypatch):
    """The numbers of rows that ran in Go, by kind."""
    found = {}
    monkeypatch.setattr(_lists, "watch", lambda kind, n: found.update({kind: found.get(kind, 0) + n}))
    return found


SMALL = {"device": "cpu", "seed": 0}
ALGORITHMS = {
    "PPO": ("CartPole-v1", {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "max_grad_norm": 0.01}, 128),
    "A2C": ("CartPole-v1", {"n_steps": 8, "max_grad_norm": 0.01}, 64),
    "DQN": ("CartPole-v1", {"learning_starts": 16, "target_update_interval": 8, "max_grad_norm": 0.1}, 80),
    "SAC": ("Pendulum-v1", {"learning_starts": 16}, 40),
    "TD3": ("Pendulum-v1", {"learning_starts": 16}, 40),
}
KINDS = {
    "PPO": {"ClipGradNorm"},
    "A2C": {"ClipGradNorm"},
    "DQN": {"ClipGradNorm", "Polyak"},
    "SAC": {"Polyak"},
    "TD3": {"Polyak"},
}

PROGRAM = """
import json, sys
import torch
import stable_baselines3
from goptim.testing import ieee_sqrt
name, environment, options, steps, path = json.loads(sys.argv[1])
with ieee_sqrt():
    model = getattr(stable_baselines3, name)("MlpPolicy", environment, device="cpu", seed=0, **options)
    model.learn(steps)
torch.save(model.policy.state_dict(), path)
"""


def learn(name):
    environment, options, steps = ALGORITHMS[name]
    model = getattr(sb3, name)("MlpPolicy", environment, **SMALL, **options)
    model.learn(steps)
    return model


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_unchanged_program(rows, name):
    with ieee_sqrt():
        expected = learn(name)
        assert not rows
        with goptim.patch():
            actual = learn(name)
    assert set(rows) == KINDS[name]
    assert_bit_equal(actual.policy.state_dict(), expected.policy.state_dict())
    optimizers = [x for m in (actual, actual.policy) for x in vars(m).values() if isinstance(x, torch.optim.Optimizer)]
    optimizers += [m.optimizer for m in (getattr(actual, "actor", None), getattr(actual, "critic", None)) if m]
    assert optimizers
    assert all(type(x).__module__.startswith("goptim.") for x in optimizers)


@pytest.mark.parametrize("name", ["PPO", "DQN", "SAC"])
def test_an_unchanged_program_under_run(tmp_path, name):
    (tmp_path / "train.py").write_text(PROGRAM)
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "python"))
    states = []
    for run in ([], ["-m", "goptim", "run"]):
        path = tmp_path / f"{len(states)}.pt"
        words = [*run, tmp_path / "train.py", json.dumps([name, *ALGORITHMS[name], str(path)])]
        done = subprocess.run(
            [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        states.append(torch.load(path))
    report = [line for line in done.stderr.splitlines() if line.startswith("goptim:")]
    assert any(line.startswith("goptim: Adam: ") for line in report), done.stderr
    functions = {"ClipGradNorm": "clip_grad_norm_", "Polyak": "polyak_update"}
    for kind in KINDS[name]:
        assert any(line.startswith(f"goptim: {functions[kind]}: ") for line in report), done.stderr
    assert "fell back" not in done.stderr
    assert_bit_equal(states[1], states[0])


class Actor(nn.Module):
    """As CleanRL's DDPG."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.mean = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return torch.tanh(self.mean(x)) * self.scale


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 16), nn.Linear(16, 1)

    def forward(self, x, a):
        return self.fc2(torch.relu(self.fc1(torch.cat([x, a], 1))))


def like_cleanrl(polyak):
    """DDPG of a few steps on Pendulum."""
    torch.manual_seed(0)
    environment = gymnasium.make("Pendulum-v1")
    observation, _ = environment.reset(seed=0)
    actor, critic = Actor(), Critic()
    target_actor, target_critic = copy.deepcopy(actor), copy.deepcopy(critic)
    actor_optimizer = torch.optim.Adam(list(actor.parameters()), lr=3e-4)
    critic_optimizer = torch.optim.Adam(list(critic.parameters()), lr=3e-4)
    memory = []
    for step in range(60):
        with torch.no_grad():
            x = torch.as_tensor(observation)[None]
            action = (actor(x) + torch.randn(1, 1) * 0.1).clamp(-2, 2)
        following, reward, *_ = environment.step(action[0].numpy())
        memory.append((x[0], action[0], torch.tensor([reward], dtype=torch.float32), torch.as_tensor(following)))
        observation = following
        if step < 16:
            continue
        xs, actions, rewards, nexts = map(
            torch.stack, zip(*[memory[i] for i in torch.randint(step, (16,))], strict=True)
        )
        with torch.no_grad():
            value = rewards + 0.99 * target_critic(nexts, target_actor(nexts))
        critic_optimizer.zero_grad()
        nn.functional.mse_loss(critic(xs, actions), value).backward()
        nn.utils.clip_grad_norm_(list(critic.parameters()), 0.5)
        critic_optimizer.step()
        if step % 2 == 0:
            actor_optimizer.zero_grad(set_to_none=False)
            (-critic(xs, actor(xs)).mean()).backward()
            nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
            actor_optimizer.step()
            for module, target in ((actor, target_actor), (critic, target_critic)):
                polyak(module.parameters(), target.parameters(), 0.005)
    return [m.state_dict() for m in (actor, critic, target_actor, target_critic)]


def test_a_loop_like_cleanrls(rows):
    with ieee_sqrt():
        expected = like_cleanrl(common.polyak_update)
        assert not rows
        with goptim.patch():
            assert_bit_equal(like_cleanrl(common.polyak_update), expected)
        assert set(rows) == {"ClipGradNorm", "Polyak", "Zero"}
        rows.clear()
        assert_bit_equal(like_cleanrl(goptim.polyak_update), expected)
        assert set(rows) == {"Polyak"}


class Loop:
    """The names that the recipe's own loop needs."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.target = copy.deepcopy(self.network)
        self.batches = [
            (torch.randn(8, 4), torch.randint(2, (8, 1)), torch.randn(8), torch.randn(8, 4), torch.zeros(8))
            for _ in range(5)
        ]


def torch_names():
    """The names of goptim in the recipe, with torch's and stable-baselines3's functions."""
    return SimpleNamespace(
        Adam=torch.optim.Adam,
        patch=contextlib.nullcontext,
        clip_grad_norm_=nn.utils.clip_grad_norm_,
        polyak_update=common.polyak_update,
    )


@snippets("reinforcement-learning.md")
def test_recipe(rows, threads, code):
    def run(optim):
        names = {"environment": "Pendulum-v1" if "SAC" in code else "CartPole-v1", **vars(Loop())}
        after = execute(code, optim, **names)
        if hasattr(after, "model"):
            return after.model.policy.state_dict()
        return after.network.state_dict(), after.target.state_dict()

    n = torch.get_num_threads()
    try:
        with ieee_sqrt():
            expected = run(torch_names())
            assert not rows
            assert_bit_equal(run(goptim), expected)
    finally:
        torch.set_num_threads(n)
    assert rows or "optimizer_class" in code
