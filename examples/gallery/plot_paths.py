"""
Paths of all optimizers
=======================

Every optimizer of goptim takes 150 steps in Rosenbrock's valley :math:`(1-x)^2 + 100 (y-x^2)^2`, whose lowest point is
(1, 1), with the best of ten learning rates with which it stays in the picture. The valley has two variables and no
noise, so it says little about training a network.
"""

import math
import warnings

import matplotlib.pyplot as plt
import torch

import goptim

STEPS, RATES = 150, [3.0**-i for i in range(-2, 8)]
START = (-1.2, 1.0)


def path(name, lr):
    """The last value of the function, and the points of a run."""
    v = torch.tensor([START], dtype=torch.float64, requires_grad=True)
    optimizer = getattr(goptim, name)([v], lr=lr)
    if hasattr(optimizer, "train"):  # the Schedule-Free optimizers
        optimizer.train()

    def closure():
        optimizer.zero_grad()
        loss = (1 - v[0, 0]) ** 2 + 100 * (v[0, 1] - v[0, 0] ** 2) ** 2
        loss.backward()
        if name == "SparseAdam":
            v.grad = v.grad.to_sparse(1)
        return loss

    points = [START]
    for _ in range(STEPS):
        optimizer.step(closure)
        points.append(tuple(v.detach()[0].tolist()))
    inside = all(abs(x) <= 2 and -1 <= y <= 3 for x, y in points)
    return (closure().item() if inside else math.inf), points


# %%
# The optimizers are those in ``goptim.__all__`` that parameters and a learning rate construct:

names = [name for name in goptim.__all__ if isinstance(getattr(goptim, name), type)]
names = [name for name in names if issubclass(getattr(goptim, name), torch.optim.Optimizer) and name != "Optimizer"]
names = [name for name in names if name not in ("Lookahead", "MuonWithAuxAdam", "SAM")]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of learning rates for which an optimizer diverges
    best = {name: min((*path(name, lr), lr) for lr in RATES) for name in names}

# %%

columns = 4
rows = -(-len(names) // columns)
fig, axes = plt.subplots(rows, columns, figsize=(8, 1.9 * rows), sharex=True, sharey=True)
x, y = torch.meshgrid(torch.linspace(-2, 2, 121), torch.linspace(-1, 3, 121), indexing="ij")
height = ((1 - x) ** 2 + 100 * (y - x**2) ** 2 + 1).log()
for ax in axes.flat[len(names) :]:
    ax.axis("off")
for ax, name in zip(axes.flat, names, strict=False):
    loss, points, lr = best[name]
    ax.contour(x, y, height, levels=8, linewidths=0.5, cmap="Greys_r")
    ax.plot(*zip(*points, strict=True), linewidth=1.2, color="tab:blue")
    ax.plot(*points[-1], ".", color="tab:red")
    ax.plot(1, 1, "+", color="black")
    ax.set(xlim=(-2, 2), ylim=(-1, 3), xticks=[-2, 0, 2], yticks=[-1, 1, 3])
    ax.set_title(f"{name}, lr {lr:.2g}", fontsize=8)
fig.tight_layout()
