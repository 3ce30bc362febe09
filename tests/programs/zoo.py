"""Fits a curve with optimizers that are imported in many ways."""

import functools
import sys

import torch
from torch.optim import SGD, AdamW as DecayedAdam, Optimizer
from torch.optim.adam import Adam
from torch.optim.lbfgs import LBFGS
from torch.optim.rmsprop import RMSprop


class Lookahead(torch.optim.AdamW):
    """AdamW that moves back half of the way every fifth step."""

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
        self.count = 0
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure=None):
        loss = super().step(closure)
        self.count += 1
        if self.count % 5 == 0:
            with torch.no_grad():
                for group in self.param_groups:
                    for p, slow in zip(group["params"], self.slow, strict=True):
                        slow.lerp_(p, 0.5)
                        p.copy_(slow)
        return loss


class Trainer:
    optimizer_class = torch.optim.Adagrad

    def build(self, params):
        return self.optimizer_class(params, lr=0.05)


def build_default(params, optimizer=torch.optim.NAdam):
    return optimizer(params, lr=0.01)


REGISTRY = {
    "sgd": functools.partial(SGD, lr=0.05, momentum=0.9),
    "adam": Adam,
    "adamw": functools.partial(DecayedAdam, weight_decay=0.1),
    "rmsprop": RMSprop,
    "class attribute": Trainer().build,
    "default argument": build_default,
    "subclass": Lookahead,
}

x = torch.linspace(-1, 1, 64).unsqueeze(1)
y = torch.sin(3 * x)


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def loss_of(model):
    return torch.nn.functional.mse_loss(model(x.to(model[0].weight.dtype)), y.to(model[0].weight.dtype))


weights = {}
for name, build in REGISTRY.items():
    model = make_model()
    optimizer = build(model.parameters())
    assert isinstance(optimizer, Optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
    print(f"{name}: {type(optimizer).__name__}, loss {loss.item()!r}")
    weights[name] = model.state_dict()

model = make_model().double()
optimizer = LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()
    return loss


for _ in range(3):
    loss = optimizer.step(closure)
print(f"lbfgs: {type(optimizer).__name__}, loss {loss.item():.6f}")

torch.save(weights, sys.argv[1])
