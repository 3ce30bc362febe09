"""
Averages in the step
====================

``step(max_grad_norm=, ema=, zero_grad=)`` clips the gradients, steps, updates an average of the weights and clears the
gradients in one pass over the memory. The results are those of separate calls.
"""

import matplotlib.pyplot as plt
import torch

import goptim

# %%
# A line is fitted to noisy points, four at a time. The average is closer to the solution than the weights:

of = torch.Generator().manual_seed(0)
truth = torch.tensor([0.5, -1.0, 2.0])
model = torch.nn.Linear(3, 1, bias=False)
torch.nn.init.zeros_(model.weight)
average = goptim.EMA(model.parameters(), decay=0.98)
optimizer = goptim.SGD(model.parameters(), lr=0.1)
errors = {"weights": [], "average": []}
for _ in range(600):
    x = torch.randn(4, 3, generator=of)
    y = x @ truth + torch.randn(4, generator=of)
    torch.nn.functional.mse_loss(model(x)[:, 0], y).backward()
    optimizer.step(max_grad_norm=1.0, ema=average, zero_grad=True)
    [averaged] = average.averages
    errors["weights"].append((model.weight.detach()[0] - truth).norm().item())
    errors["average"].append((averaged[0] - truth).norm().item())

# %%

fig, ax = plt.subplots(figsize=(7, 3.6))
for title, values in errors.items():
    ax.plot(values, label=title, linewidth=1)
ax.set(yscale="log", xlabel="step", ylabel="distance from the solution")
ax.legend()
fig.tight_layout()
