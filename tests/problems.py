"""Functions on which LBFGS is compared with torch's, with the initial parameters."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import binary_cross_entropy_with_logits, tanh


class Problem(NamedTuple):
    """A function of several parameters. Some need a step below 1 without a line search."""

    start: Callable[[torch.dtype], list[Tensor]]
    loss: Callable[..., Tensor]
    lr: float = 1


def at(*values: float) -> Callable[[torch.dtype], list[Tensor]]:
    return lambda dtype: [torch.tensor(values, dtype=dtype)]


def normal(*shapes: tuple[int, ...], scale: float = 1.0) -> Callable[[torch.dtype], list[Tensor]]:
    def start(dtype: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(len(shapes))
        return [torch.randn(s, generator=generator, dtype=torch.float64).mul(scale).to(dtype) for s in shapes]

    return start


def data(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def beale(v: Tensor) -> Tensor:
    x, y = v
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def himmelblau(v: Tensor) -> Tensor:
    x, y = v
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def powell(v: Tensor) -> Tensor:
    a, b, c, d = v
    return (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4


def quadratic(x: Tensor) -> Tensor:
    curvature = torch.logspace(0, 3, x.numel(), dtype=torch.float64).to(x.dtype)
    return 0.5 * (curvature * (x - 1) ** 2).sum() + 2


def trigonometric(x: Tensor) -> Tensor:
    n = x.numel()
    i = torch.arange(1, n + 1, dtype=x.dtype)
    return ((n - x.cos().sum() + i * (1 - x.cos()) - x.sin()) ** 2).sum()


def least_squares(w: Tensor, b: Tensor) -> Tensor:
    x, y = data(60, 12).to(w.dtype), data(60, 3, seed=8).to(w.dtype)
    return ((x @ w + b - y) ** 2).mean()


def logistic(w: Tensor, b: Tensor) -> Tensor:
    x = data(80, 9).to(w.dtype)
    labels = (x[:, 0] + 0.5 * x[:, 1] + data(80, seed=9).to(w.dtype) > 0).to(w.dtype)
    return binary_cross_entropy_with_logits(x @ w + b, labels) + 1e-2 * (w**2).sum()


def network(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    x = data(50, 4).to(w1.dtype)
    y = torch.sin(x[:, :1]) + 0.3 * x[:, 1:2] * x[:, 2:3]
    return ((tanh(x @ w1 + b1) @ w2 + b2 - y) ** 2).mean() + 1e-3 * ((w1**2).sum() + (w2**2).sum())


def softmax(w: Tensor, b: Tensor, unused: Tensor) -> Tensor:
    x, labels = data(60, 6).to(w.dtype), data(60, seed=11).mul(2).long().remainder(3)
    return torch.nn.functional.cross_entropy(x @ w + b, labels) + 1e-3 * (w**2).sum()


PROBLEMS = {
    "quadratic": Problem(normal((40,)), quadratic),
    "rosenbrock": Problem(at(-1.2, 1.0), rosenbrock, 0.01),
    "rosenbrock of 30": Problem(normal((30,), scale=0.3), rosenbrock, 0.01),
    "beale": Problem(at(1.0, 1.0), beale, 0.1),
    "himmelblau": Problem(at(0.0, 0.5), himmelblau, 0.1),
    "powell": Problem(at(3.0, -1.0, 0.0, 1.0), powell, 0.1),
    "trigonometric": Problem(lambda dtype: [torch.full((10,), 0.1, dtype=dtype)], trigonometric, 0.5),
    "least squares": Problem(normal((12, 3), (3,)), least_squares),
    "logistic regression": Problem(normal((9,), ()), logistic),
    "network": Problem(normal((4, 8), (8,), (8, 1), (1,), scale=0.5), network, 0.5),
    "softmax, and a parameter without a gradient": Problem(normal((6, 3), (3,), (2, 2)), softmax),
    "large quadratic": Problem(
        normal((70, 130), (5,), (1, 3, 1)), lambda a, b, c: sum(map(quadratic_of_all, (a, b, c)))
    ),
}


def quadratic_of_all(x: Tensor) -> Tensor:
    return quadratic(x.reshape(-1))


BLOCK = 4096


def in_our_order(x: Tensor, y: Tensor) -> Tensor:
    """x·y in goptim's order: blocks of 4096 elements, lanes of 128 bytes within them, and the tail."""
    group = 128 // x.element_size()
    x, y = x.detach(), y.detach()

    def lanes(x: Tensor, y: Tensor) -> Tensor:
        """The lanes' sums of rows."""
        total = x.new_zeros(*x.shape[:-1], group)
        for a, b in zip(x.split(group, -1), y.split(group, -1), strict=True):
            total.addcmul_(a, b)  # fused
        return total

    def halved(lanes: list[float]) -> float:
        lanes = lanes + [0.0] * (group - len(lanes))
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        return lanes[0]

    n = x.numel()
    blocks, whole = n // BLOCK * BLOCK, n // group * group
    total = 0.0
    if blocks:
        for block in lanes(*(t[:blocks].view(-1, BLOCK) for t in (x, y))).tolist():
            total += halved(block)
    last = halved(lanes(x[blocks:whole], y[blocks:whole]).tolist()) if whole > blocks else 0.0
    if n > whole:
        last += halved((x[whole:] * y[whole:]).tolist())
    return torch.tensor(total + last, dtype=x.dtype)


@contextlib.contextmanager
def sums_in_our_order() -> Iterator[None]:
    """A context in which torch's LBFGS sums in goptim's order, so that all results can be compared bit for bit.

    Closures sum as usual, since they run with gradients enabled."""
    dot, total = torch.Tensor.dot, torch.Tensor.sum
    torch.Tensor.dot = in_our_order
    torch.Tensor.sum = lambda x, *args, **kwargs: (
        total(x, *args, **kwargs)
        if torch.is_grad_enabled() or args or kwargs
        else in_our_order(x.view(-1), torch.ones_like(x).view(-1))
    )
    try:
        yield
    finally:
        torch.Tensor.dot, torch.Tensor.sum = dot, total


class Run:
    """Steps of an optimizer on a problem, with the losses of all evaluations."""

    def __init__(self, cls: type, problem: Problem, dtype: torch.dtype, **options: object) -> None:
        self.problem = problem
        self.params = [Parameter(t) for t in problem.start(dtype)]
        self.opt = cls(self.params, **{"lr": 1 if options.get("line_search_fn") else problem.lr, **options})
        self.losses: list[float] = []
        self.returned: list[float] = []

    def closure(self) -> Tensor:
        self.opt.zero_grad()
        loss = self.problem.loss(*self.params)
        loss.backward()
        self.losses.append(loss.item())
        return loss

    def steps(self, n: int) -> "Run":
        self.returned += [self.opt.step(self.closure).item() for _ in range(n)]
        return self

    def state(self) -> dict:
        return dict(self.opt.state.get(self.params[0], {}))

    def everything(self) -> tuple:
        return self.losses, self.returned, self.params, self.state()
