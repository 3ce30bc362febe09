"""
Rounding of bfloat16 weights
============================

A bfloat16 number has 8 significant bits. An update that is smaller than half of a weight's last bit is lost when the
weight is rounded to the nearest number. With ``rounding="stochastic"`` it is kept on average, with ``rounding="kahan"``
what is lost is added to the next update, and with ``master_weights=True`` the weights are also stored in float32.
"""

import matplotlib.pyplot as plt
import torch

import goptim

STEPS = 400
WAYS = {
    "float32": {},
    "nearest": {},
    "stochastic": {"rounding": "stochastic", "seed": 0},
    "Kahan": {"rounding": "kahan"},
    "master weights": {"master_weights": True},
}
target = torch.rand(4096, generator=torch.Generator().manual_seed(0)) + 1


def distances(way, options):
    """The mean distance of the weights from a target, after each step of Adam with small steps."""
    dtype = torch.float32 if way == "float32" else torch.bfloat16
    w = torch.ones(4096, dtype=dtype, requires_grad=True)
    optimizer = goptim.Adam([w], lr=2e-3, **options)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        w.grad = (w.detach().float() - target).to(dtype)
        optimizer.step()
        found.append((w.detach().float() - target).abs().mean().item())
    return found


# %%
# From 1 on, neighbouring bfloat16 numbers differ by 1/128. A step of 0.002 is less than half of that:

fig, ax = plt.subplots(figsize=(7, 3.6))
for way, options in WAYS.items():
    wide = {"linewidth": 4, "alpha": 0.3} if way == "float32" else {"linewidth": 1}
    ax.plot(distances(way, options), label=way, **wide)
ax.set(ylim=0, xlabel="step", ylabel="mean distance from the target")
ax.legend()
fig.tight_layout()
