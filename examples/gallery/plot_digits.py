"""
Training on digits
==================

A network learns to read scanned digits, once with ``torch.optim.AdamW`` and once with ``goptim.AdamW``. Both losses are
one curve, because all weights and states are equal bit for bit.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

# %%
# 1797 images of 8 x 8 pixels, and a network with the same weights in every call:

data = load_digits()
x = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16
y = torch.tensor(data.target)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))


# %%
# The program does not depend on where the class comes from:


def train(optim, epochs=8):
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    batches = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=batches).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model, optimizer, losses


# %%
# PyPI's builds of torch do not round all square roots correctly. With roots that are, nothing differs:

with ieee_sqrt():
    expected, theirs, losses_of_torch = train(torch.optim)
model, optimizer, losses = train(goptim)
assert_bit_equal(model.state_dict(), expected.state_dict())
assert_bit_equal(optimizer.state_dict()["state"], theirs.state_dict()["state"])

# %%

fig, ax = plt.subplots(figsize=(7, 3.6))
ax.plot(losses_of_torch, linewidth=3.5, alpha=0.35, label="torch.optim.AdamW")
ax.plot(losses, linewidth=1, label="goptim.AdamW")
ax.set(yscale="log", xlabel="step", ylabel="training loss")
ax.legend()
fig.tight_layout()
