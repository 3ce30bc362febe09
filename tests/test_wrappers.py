"""Lookahead and SAM around optimizers of goptim, compared with torch's operations around the same optimizers.

tests/integrations compares them with timm's and pytorch-optimizer's.
"""

import copy
import pickle

import pytest
import torch
from configurations import gradients, normal
from torch.nn import Parameter

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SHAPES = [(37,), (5, 7), (), (0,), (1003,)]


def made(dtype=torch.float32, base=None):
    shapes = [shape for shape in SHAPES if shape != (0,) or base is not goptim.Adafactor]  # torch's divides by the size
    params = [Parameter(normal(shape, dtype, i)) for i, shape in enumerate(shapes)]
    return [*params, Parameter(normal((9, 4), dtype, 7).t())]


def set_gradients(params, step, skip=()):
    for i, (p, g) in enumerate(zip(params, gradients(params, step), strict=True)):
        p.grad = None if i in skip else g


def groups_of(params, **options):
    return [{"params": params[:3], "lr": 0.05}, {"params": params[3:], **options}]


BASES = [
    (goptim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (goptim.AdamW, {"lr": 0.1}),
    (goptim.Lion, {"lr": 0.01}),
    (goptim.Adafactor, {"lr": 0.1}),
]
bases = pytest.mark.parametrize(("base", "options"), BASES, ids=lambda x: getattr(x, "__name__", ""))


class SlowByHand:
    """Lookahead in operations of torch."""

    def __init__(self, base, alpha, k):
        self.base, self.alpha, self.k, self.steps = base, alpha, k, 0

    @torch.no_grad()
    def step(self):
        self.base.step()
        self.steps += 1
        if self.steps % self.k == 0:
            for p in [p for group in self.base.param_groups for p in group["params"] if p.grad is not None]:
                slow = self.base.state[p].setdefault("lookahead_slow_buff", p.detach().clone())
                slow.add_(p - slow, alpha=self.alpha)
                p.copy_(slow)


@FLOATS
@bases
@pytest.mark.parametrize(("alpha", "k"), [(0.5, 3), (0.8, 1), (0.0, 2), (1.0, 2)])
@pytest.mark.covering(1)
def test_lookahead(base, options, alpha, k, dtype, go, threads):
    """Bit for bit, also for parameters that have no gradient at an update."""
    runs = [made(dtype, base) for _ in range(2)]
    expected = SlowByHand(base(groups_of(runs[0]), **options), alpha, k)
    opt = goptim.Lookahead(base(groups_of(runs[1]), **options), alpha, k)
    for step in range(7):
        for params in runs:
            set_gradients(params, step, skip=(1,) if step == 2 else ())
        rows = len(go)
        opt.step()
        if base is not goptim.Adafactor:
            assert len(go) - rows == 1 + ((step + 1) % k == 0)
        expected.step()
        assert_bit_equal(runs[1], runs[0], f"step {step}")
        assert_bit_equal(opt.state_dict()["state"], expected.base.state_dict()["state"], f"step {step}")
    assert [group["lookahead_step"] for group in opt.param_groups] == [7, 7]


def test_lookahead_that_falls_back(threads):
    """A complex parameter is updated by torch, beside others."""
    runs = [[*made(), Parameter(normal((4,), torch.complex64, 0))] for _ in range(2)]
    expected = SlowByHand(goptim.AdamW(runs[0]), 0.5, 2)
    opt = goptim.Lookahead(goptim.AdamW(runs[1]), 0.5, 2)
    for step in range(4):
        for params in runs:
            set_gradients(params, step)
        opt.step()
        expected.step()
        assert_bit_equal(runs[1], runs[0], f"step {step}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lookahead_of_16_bits(dtype, threads):
    """It is computed in float32 and rounded once."""
    p = Parameter(normal((1003,), torch.float32, 0).to(dtype))
    opt = goptim.Lookahead(goptim.SGD([p], 0.1), 0.3, 1)
    for step in range(3):
        p.grad = normal((1003,), torch.float32, step).to(dtype)
        other = p.detach().float().add(p.grad.float(), alpha=-0.1).to(dtype).float()
        slow = opt.state[p].get("lookahead_slow_buff", other).float()
        opt.step()
        assert_bit_equal(opt.state[p]["lookahead_slow_buff"], slow.add(other - slow, alpha=0.3).to(dtype))
        assert_bit_equal(p.detach(), opt.state[p]["lookahead_slow_buff"])


def test_state_of_lookahead(threads):
    """A state_dict continues the run, one of the optimizer alone too, and so do copies."""
    params = made()
    opt = goptim.Lookahead(goptim.AdamW(params), 0.5, 2)
    for step in range(3):
        set_gradients(params, step)
        opt.step()
    others = [copy.deepcopy((opt, params)), pickle.loads(pickle.dumps((opt, params)))]
    loaded = [Parameter(p.detach().clone()) for p in params]
    other = goptim.Lookahead(goptim.AdamW(loaded), 0.1, 7)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    others.append((other, loaded))
    for other, copies in [(opt, params), *others]:
        set_gradients(copies, 3)
        other.step()
        assert type(other) is goptim.Lookahead
        assert other.param_groups[0]["lookahead_step"] == 4
        assert_bit_equal((copies, other.state_dict()), (params, opt.state_dict()))
    plain = goptim.AdamW(made())
    other.load_state_dict(plain.state_dict())
    assert other.param_groups[0]["lookahead_alpha"] == 0.1
    assert repr(other).startswith("Lookahead (")


def test_lookahead_and_schedulers(threads):
    """A scheduler of either changes the groups of both, and hooks run once a step."""
    params = made()
    opt = goptim.Lookahead(goptim.SGD(params, 0.1), k=2)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
    calls = []
    opt.register_step_post_hook(lambda *_: calls.append("step"))
    for step in range(2):
        set_gradients(params, step)
        opt.step()
        scheduler.step()
    assert opt._base_optimizer.param_groups[0]["lr"] == 0.025
    assert calls == ["step", "step"]
    opt.zero_grad()
    assert all(p.grad is None for p in params)
    opt.add_param_group({"params": [Parameter(torch.ones(2))]})
    assert opt.param_groups[1]["lookahead_k"] == 2
    assert isinstance(opt, torch.optim.Optimizer)


def test_around_lookahead(threads):
    """Averages are updated after the slow weights."""
    results = []
    for together in (True, False):
        params = made()
        opt, ema = goptim.Lookahead(goptim.AdamW(params), k=1), goptim.EMA(params, 0.9)
        for step in range(2):
            set_gradients(params, step)
            if together:
                opt.step(max_grad_norm=0.5, ema=ema)
            else:
                torch.nn.utils.clip_grad_norm_(params, 0.5)
                opt.step()
                ema.update()
        results.append((params, ema.averages))
    assert_bit_equal(*results)


def test_sync_lookahead(threads):
    params = made()
    opt = goptim.Lookahead(goptim.SGD(params, 0.1), 0.25, k=100)
    opt.sync_lookahead()
    set_gradients(params, 0)
    opt.sync_lookahead()
    before = [p.detach().clone() for p in params]
    opt.step()
    after = [p.detach().clone() for p in params]
    opt.sync_lookahead()
    expected = [b.add(a - b, alpha=0.25) for a, b in zip(after, before, strict=True)]
    assert_bit_equal([p.detach() for p in params], expected)


def test_errors_of_lookahead(threads):
    p = Parameter(torch.ones(2, dtype=torch.bfloat16))
    base = goptim.SGD([p], 0.1)
    for arguments, message in (
        ((base, 1.5), "Invalid slow update rate: 1.5, expected 0 to 1"),
        ((base, 0.5, 0), "Invalid lookahead steps: 0, expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            goptim.Lookahead(*arguments)
    with pytest.raises(TypeError, match="Lookahead: base_optimizer is a list, expected an Optimizer"):
        goptim.Lookahead([p])
    for keywords in ({"master_weights": True}, {"rounding": "kahan"}):
        opt = goptim.Lookahead(goptim.SGD([p], 0.1, **keywords))
        p.grad = torch.ones_like(p)
        with pytest.raises(
            ValueError, match="Lookahead: group 0 has master_weights or rounding='kahan', expected neither"
        ):
            opt.step()
        assert not opt.state
    assert_bit_equal(p.detach(), torch.ones(2, dtype=torch.bfloat16))


class SAMByHand:
    """SAM in operations of torch."""

    def __init__(self, base, rho, adaptive, eps=1e-12):
        self.base, self.rho, self.adaptive, self.eps = base, rho, adaptive, eps
        self.params = [p for group in base.param_groups for p in group["params"]]

    @torch.no_grad()
    def first_step(self):
        params = [p for p in self.params if p.grad is not None]
        norms = [((p.abs() if self.adaptive else 1.0) * p.grad).norm().float() for p in params]
        scale = self.rho / torch.tensor(torch.stack(norms).square().sum().item() ** 0.5).add_(self.eps)
        self.old = [p.clone() for p in params]
        for p in params:
            p.add_((p.pow(2) if self.adaptive else 1.0) * p.grad * scale.to(p))

    @torch.no_grad()
    def second_step(self):
        for p, old in zip([p for p in self.params if p.grad is not None], self.old, strict=True):
            p.copy_(old)
        self.base.step()


@FLOATS
@bases
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.covering(1)
def test_sam(base, options, adaptive, dtype, go, threads):
    runs = [made(dtype, base) for _ in range(2)]
    expected = SAMByHand(base(groups_of(runs[0]), **options), 0.3, adaptive)
    opt = goptim.SAM(groups_of(runs[1]), base, rho=0.3, adaptive=adaptive, **options)
    for step in range(5):
        skip = (1,) if step == 2 else ()
        for params in runs:
            set_gradients(params, 2 * step, skip)
        rows = len(go)
        expected.first_step()
        opt.first_step()
        assert len(go) == rows + 1
        assert_bit_equal(runs[1], runs[0], f"perturbed, step {step}")
        for params in runs:
            set_gradients(params, 2 * step + 1, skip)
        expected.second_step()
        opt.second_step()
        assert_bit_equal(runs[1], runs[0], f"step {step}")
        assert_bit_equal(opt.state_dict()["state"], expected.base.state_dict()["state"], f"step {step}")


def test_sam_with_a_closure(threads):
    """The closure is called once, at the perturbed parameters, with gradients enabled."""
    x = Parameter(torch.tensor([3.0, 4.0]))
    opt = goptim.SAM([x], goptim.SGD, rho=0.5, lr=0.1)

    def closure():
        opt.zero_grad()
        loss = x.square().sum() / 2
        loss.backward()
        points.append(x.detach().clone())
        return loss.detach()

    points = []
    closure()
    assert opt.step(closure) == points[1].square().sum() / 2
    torch.testing.assert_close(points[1], torch.tensor([3.3, 4.4]))
    torch.testing.assert_close(x.detach(), torch.tensor([3 - 0.33, 4 - 0.44]))
    assert len(points) == 2
    with pytest.raises(ValueError, match="SAM: step without a closure, expected one that computes the gradients again"):
        opt.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_of_16_bits(dtype, adaptive, threads):
    """The norm is that of float32, and the perturbed parameter is rounded once."""
    p = Parameter(normal((1003,), torch.float32, 0).to(dtype))
    p.grad = normal((1003,), torch.float32, 1).to(dtype)
    old, g = p.detach().clone(), p.grad
    norm = ((p.detach().abs() if adaptive else 1.0) * g.float()).norm()
    scale = (0.3 / torch.tensor(norm.square().item() ** 0.5).add_(1e-12)).to(dtype)
    opt = goptim.SAM([p], goptim.SGD, rho=0.3, adaptive=adaptive, lr=0.1)
    opt.first_step()
    wide = old.float()
    assert_bit_equal(p.detach(), (wide + (wide.pow(2) if adaptive else 1.0) * g.float() * scale.float()).to(dtype))
    opt.second_step(zero_grad=True)
    assert_bit_equal(p.detach(), old.float().add(g.float(), alpha=-0.1).to(dtype))


def test_sam_of_several_dtypes_and_what_falls_back(threads):
    runs = []
    for _ in range(2):
        params = [Parameter(normal((33,), dtype, 0)) for dtype in (torch.float32, torch.float64)]
        runs.append([*params, Parameter(normal((33,), torch.float32, 1).view(3, 11).t())])
        for p in runs[-1]:
            p.grad = normal(p.shape, p.dtype, 4)
        runs[-1][2].grad = runs[-1][2].grad.contiguous()  # other strides
    expected = SAMByHand(goptim.AdamW(runs[0]), 0.05, False)
    opt = goptim.SAM(runs[1], goptim.AdamW)
    for run in (expected, opt):
        run.first_step()
    assert_bit_equal(runs[1], runs[0])


def test_state_of_sam(threads):
    params = made()
    opt = goptim.SAM(params, goptim.AdamW, adaptive=True, lr=0.01)
    for step in range(2):
        set_gradients(params, step)
        opt.first_step()
        opt.second_step()
    loaded = [Parameter(p.detach().clone()) for p in params]
    other = goptim.SAM(loaded, goptim.AdamW)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for changed, of in (
        (opt, params),
        (other, loaded),
        copy.deepcopy((opt, params)),
        pickle.loads(pickle.dumps((opt, params))),
    ):
        set_gradients(of, 9)
        changed.first_step()
        assert changed.param_groups[0]["adaptive"] is True
        assert_bit_equal(of, params)
    assert isinstance(opt.base_optimizer, goptim.AdamW)


def test_gradient_centralization(threads):
    p = Parameter(normal((4, 3, 2), torch.float32, 0))
    p.grad = normal((4, 3, 2), torch.float32, 1)
    expected = p.grad - p.grad.mean(dim=(1, 2), keepdim=True)
    goptim.SAM([p], goptim.SGD, use_gc=True, lr=0.1).first_step()
    assert_bit_equal(p.grad, expected)


@pytest.mark.parametrize(
    ("name", "message"), [("rho", "Invalid rho value: -1"), ("perturb_eps", "Invalid perturb_eps")]
)
def test_errors_of_sam(name, message):
    with pytest.raises(ValueError, match=message):
        goptim.SAM([torch.ones(1)], goptim.SGD, lr=0.1, **{name: -1})


def test_wrappers_of_each_other(threads):
    """Lookahead around an optimizer in SAM."""
    params = made()
    opt = goptim.Lookahead(goptim.AdamW(params), k=1)
    outer = goptim.SAM(params, lambda p, **_: opt)
    set_gradients(params, 0)
    outer.first_step()
    with ieee_sqrt():
        outer.second_step()
    assert opt.param_groups[0]["lookahead_step"] == 1
