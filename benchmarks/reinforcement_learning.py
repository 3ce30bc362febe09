"""Print environment steps per second of stable-baselines3's DQN, PPO and SAC: torch, goptim's run, and the recipe.

    python benchmarks/reinforcement_learning.py [--algorithms DQN PPO SAC] [--rounds 5] [--steps 1]

The contenders train in turn, each with the same seed, in one process: unchanged, with torch's number of threads and
with one; under ``goptim.patch()``, which is what ``python -m goptim run`` does; and as
docs/recipes/reinforcement-learning.md suggests, also with one thread. A figure is that of the best round, in elapsed
time and in CPU time. It needs the packages of ``make test-integrations``.
"""

from __future__ import annotations

import argparse
import contextlib
import time
import warnings
from typing import Any

import torch

import goptim

# The environment, the arguments, and how many steps to train.
ALGORITHMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "DQN": ("CartPole-v1", {"learning_starts": 100, "train_freq": 1, "target_update_interval": 1, "tau": 0.005}, 2000),
    "PPO": ("CartPole-v1", {"n_steps": 512}, 2048),
    "SAC": ("Pendulum-v1", {"learning_starts": 100}, 600),
}
CONTENDERS = ("torch", "torch, one thread", "run", "recipe")


def train(name: str, contender: str, scale: float) -> tuple[float, float]:
    """Train once. Return the steps per second of elapsed time and of CPU time."""
    import stable_baselines3

    environment, options, steps = ALGORITHMS[name]
    steps = int(steps * scale)
    threads = torch.get_num_threads()
    if contender in ("torch, one thread", "recipe"):
        torch.set_num_threads(1)
    try:
        with contextlib.nullcontext() if contender.startswith("torch") else goptim.patch():
            model = getattr(stable_baselines3, name)("MlpPolicy", environment, device="cpu", seed=0, **options)
            start, cpu = time.perf_counter(), time.process_time()
            model.learn(steps)
            return model.num_timesteps / (time.perf_counter() - start), model.num_timesteps / (
                time.process_time() - cpu
            )
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=float, default=1, help="a factor of the numbers of steps")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, best of {options.rounds} rounds")
    print("| steps per second (of CPU time) | " + " | ".join(CONTENDERS) + " |\n|---|" + "--:|" * len(CONTENDERS))
    for name in options.algorithms:
        best = dict.fromkeys(CONTENDERS, (0.0, 0.0))
        for _ in range(options.rounds):
            for contender in CONTENDERS:
                found = train(name, contender, options.steps)
                best[contender] = max(best[contender][0], found[0]), max(best[contender][1], found[1])
        cells = [f"{elapsed:,.0f} ({cpu:,.0f})" for elapsed, cpu in best.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
