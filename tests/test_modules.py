"""Changes of parameters and optimizers between steps, by torch.nn, torch.utils and users, compared with torch.optim."""

import contextlib
import copy
import warnings

import pytest
import torch
from configurations import ELEMENTWISE, IN_TABLES, for_loop_flags, needs_late_state
from runs import Run, assert_same, both_classes
from torch import nn
from torch.nn.utils import clip_grad_norm_, parametrizations, parametrize, prune, vector_to_parameters

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = pytest.mark.usefixtures("threads")

every = pytest.mark.parametrize("name", IN_TABLES)


@pytest.fixture(autouse=True)
def exact():
    with ieee_sqrt():
        yield


@contextlib.contextmanager
def swaps():
    """Modules swap their parameters' contents instead of setting their data."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def swapped(module):
    for p in module.parameters():
        torch.utils.swap_tensors(p, nn.Parameter(p.detach().flip(0)))


def swapped_states(module, opt):
    for state in opt.state.values():
        for t in state.values():
            if isinstance(t, torch.Tensor) and t.dim():
                torch.utils.swap_tensors(t, t.clone())


def reloaded(module, **options):
    module.load_state_dict({k: t.clone().mul_(0.5) for k, t in module.state_dict().items()}, **options)


def resized(module):
    for p in module.parameters():
        p.data.resize_(p.shape[0] + 1000, *p.shape[1:]).fill_(0.25)  # other memory, and larger


def shared(module):
    for p in module.parameters():
        p.data.share_memory_()


def freed_and_filled_again(module, opt):
    """Free the memory, as FSDP does between uses."""
    for p in module.parameters():
        value, storage = p.detach().clone(), p.untyped_storage()
        n = storage.size()
        storage.resize_(0)
        storage.resize_(n)
        p.data.copy_(value)


def to_another_and_back(module):
    module.double()
    module.float()


def emptied(module):
    module.to_empty(device="cpu")
    for p in module.parameters():
        p.data.fill_(0.5)
        p.grad.fill_(0.1)


def all_to_double(module, opt):
    module.double()
    for state in opt.state.values():
        for key, t in state.items():
            if key != "step" and isinstance(t, torch.Tensor):
                state[key] = t.double()


def frozen(module):
    module[0].requires_grad_(False)
    module[0].weight.grad = None


CHANGES = {
    "to another dtype": lambda module, opt: to_another_and_back(module),
    "to another dtype, state too": all_to_double,
    "channels_last": lambda module, opt: module.to(memory_format=torch.channels_last),
    "to_empty": lambda module, opt: emptied(module),
    "load_state_dict": lambda module, opt: reloaded(module),
    "load_state_dict, assign": lambda module, opt: reloaded(module, assign=True),
    "swap_tensors": lambda module, opt: swapped(module),
    "swap_tensors of the state": swapped_states,
    "resize_, and the state is forgotten": lambda module, opt: (resized(module), opt.state.clear()),
    "share_memory_": lambda module, opt: shared(module),
    "storage freed": freed_and_filled_again,
    "vector_to_parameters": lambda module, opt: vector_to_parameters(
        torch.linspace(-1, 1, sum(p.numel() for p in module.parameters())), module.parameters()
    ),
    "requires_grad_(False)": lambda module, opt: frozen(module),
    "clip_grad_norm_": lambda module, opt: clip_grad_norm_(module.parameters(), 0.1),
    "clip_grad_norm_, foreach": lambda module, opt: clip_grad_norm_(module.parameters(), 0.1, foreach=True),
    "zero_grad in place": lambda module, opt: opt.zero_grad(set_to_none=False),
    "state on disk": lambda module, opt: opt.load_state_dict(copy.deepcopy(opt.state_dict())),
}


def module_of():
    torch.default_generator.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.LazyLinear(2))


def trained(optimizer, change, swap):
    module = module_of()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, 4, 4, generator=generator)
    module(x)
    opt = optimizer(module.parameters(), lr=0.01)
    with swaps() if swap else contextlib.nullcontext():
        for i in range(5):
            params = list(module.parameters())
            x = torch.randn(5, 3, 4, 4, generator=generator).to(params[0].dtype)
            if params[-2].shape[0] == 2:
                module(x).square().sum().backward()
            else:  # resized
                for p in params:
                    p.grad = torch.full_like(p, 0.1 * i)
            opt.step()
            if i == 1:
                CHANGES[change](module, opt)
            else:
                opt.zero_grad()
    return list(module.parameters()), opt.state_dict()["state"]


@every
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("swap", [False, True], ids=["data is set", "contents are swapped"])
@pytest.mark.covering("name swap", "change swap")
def test_changes_between_steps(name, change, swap):
    if swap and change not in ("to another dtype", "to_empty", "load_state_dict", "load_state_dict, assign"):
        pytest.skip("it is the same")
    if "forgotten" in change:
        needs_late_state(name)
    outcomes = []
    for optimizer in both_classes(name):
        try:
            outcomes.append(trained(optimizer, change, swap))
        except RuntimeError as e:
            outcomes.append(str(e).splitlines()[0])
    ours, expected = outcomes
    assert_bit_equal(ours, expected)


@every
def test_tied_weights_and_two_optimizers_of_one_model(name):
    """A parameter that two modules share and two optimizers step in turn."""
    results = []
    for optimizer in both_classes(name):
        torch.default_generator.manual_seed(0)
        one, two = nn.Linear(4, 4), nn.Linear(4, 4)
        two.weight = one.weight
        opts = [optimizer(one.parameters(), lr=0.01), optimizer(two.parameters(), lr=0.02)]
        for i in range(4):
            for module in (one, two):
                module(torch.linspace(-1, 1, 12).view(3, 4) * (i + 1)).square().sum().backward()
            for opt in opts:
                opt.step()
            opts[0].zero_grad()
        results.append((one.state_dict(), two.state_dict(), [opt.state_dict()["state"] for opt in opts]))
    assert_bit_equal(*results)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor"])
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal", "pruned"])
def test_parametrized_modules(name, how):
    results = []
    for optimizer in both_classes(name):
        torch.default_generator.manual_seed(0)
        module = nn.Linear(4, 3)
        if how == "pruned":
            prune.l1_unstructured(module, "weight", 0.5)
        else:
            getattr(parametrizations, how)(module)
        opt = optimizer(module.parameters(), lr=0.01)
        for i in range(4):
            module(torch.linspace(-1, 1, 8).view(2, 4) * (i + 1)).square().sum().backward()
            opt.step()
            opt.zero_grad()
        if how == "pruned":
            prune.remove(module, "weight")
        else:
            parametrize.remove_parametrizations(module, "weight")
        results.append((module.state_dict(), opt.state_dict()["state"]))
    assert_bit_equal(*results)


@every
def test_a_quantized_parameter(name):
    """torch's own error, and other parameters are not written."""
    outcomes = []
    for optimizer in both_classes(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates these tensors
            q = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        p = nn.Parameter(torch.ones(3))
        try:
            opt = optimizer([p, q])
            p.grad = torch.ones(3)
            opt.step()
            outcomes.append((p, opt.state[p]))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as e:
            outcomes.append((type(e), str(e)))
            assert_bit_equal(p, torch.ones(3))
    if isinstance(outcomes[1][0], type):
        assert outcomes[0] == outcomes[1]
    else:
        assert_bit_equal(*outcomes)


@pytest.mark.parametrize("name", [*IN_TABLES, "SparseAdam", "LBFGS", *({"Muon"} & set(torch.optim.__all__))])
@pytest.mark.parametrize("unscaled", [False, True], ids=["unscaled by step", "unscale_"])
def test_grad_scaler(name, unscaled):
    """Scaled losses. In the second step gradients are infinite, and the step is skipped."""
    results = []
    for optimizer in both_classes(name):
        run = Run(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        scales = []
        for i in range(5):
            run.opt.zero_grad()
            for p in run.params:
                p.grad = (run.gradient(p) * (float("inf") if i == 1 else 8)).detach()
            scaler.scale(torch.ones(()))  # since the scale is initialized by the first loss
            if unscaled:
                scaler.unscale_(run.opt)
                if name != "SparseAdam":
                    clip_grad_norm_(run.params, 1.0)
            if name == "LBFGS":
                with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
                    scaler.step(run.opt, closure=run.closure)
                break
            scaler.step(run.opt)
            scaler.update()
            scales.append((scaler.get_scale(), [p.grad.to_dense() for p in run.params]))
        results.append((run, scales))
    (ours, scales), (theirs, expected) = results
    assert_bit_equal(scales, expected)
    assert_same(ours, theirs)


# Options that torch added over time, which __setstate__ adds to old pickles.
YOUNG = ("amsgrad", "nesterov", "momentum", "centered", "maximize", "foreach", "capturable", "differentiable", "fused")


@every
def test_pickles_of_older_torch(name):
    if name == "RMSpropTF":
        pytest.skip("it has no older version without momentum and centered")
    results = []
    for optimizer in both_classes(name):
        run = Run(optimizer, **for_loop_flags(name) if name != "Adafactor" else {}).steps(2)
        state = run.opt.__getstate__()
        groups = [{k: v for k, v in group.items() if k not in YOUNG} for group in state["param_groups"]]
        for kept in state["state"].values():
            if "step" in kept:
                kept["step"] = float(kept["step"])
        run.opt = optimizer.__new__(optimizer)
        run.opt.__setstate__(state | {"param_groups": groups})
        calls = []
        run.opt.register_step_pre_hook(lambda *args, calls=calls: calls.append(len(args)))
        try:
            results.append((run.steps(2), None, calls))
        except (KeyError, RuntimeError, AttributeError) as e:  # torch's Adafactor, for example, adds nothing
            results.append((run, (type(e), str(e)), calls))
    (ours, error, calls), (theirs, expected_error, expected_calls) = results
    assert error == expected_error
    assert calls == expected_calls
    assert_same(ours, theirs)


def subclass_with_a_step(base):
    class Scaled(base):
        """As users write them: additional arguments, a step that calls torch's, and additional state."""

        def __init__(self, params, *args, scale=0.5, **kwargs):
            super().__init__(params, *args, **kwargs)
            for group in self.param_groups:
                group.setdefault("scale", scale)
            self.calls = 0

        def step(self, closure=None):
            self.calls += 1
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.mul_(group["scale"])
            return super().step(closure)

    return Scaled


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_subclasses_of_users(name):
    results = []
    for optimizer in map(subclass_with_a_step, both_classes(name)):
        torch.default_generator.manual_seed(0)
        p = nn.Parameter(torch.randn(3, 4))
        opt = optimizer([p], scale=0.25)
        for _ in range(3):
            p.grad = torch.randn(3, 4)
            opt.step()
        other = copy.deepcopy(opt)
        assert opt.calls == 3
        opt.param_groups[0]["scale"] = 2.0
        p.grad = torch.randn(3, 4)
        opt.step()
        results.append((p, opt.state_dict(), other.state_dict()))
    ours, expected = results
    assert_bit_equal(ours[0], expected[0])
    assert_bit_equal([s["state"] for s in ours[1:]], [s["state"] for s in expected[1:]])
    assert ours[1]["param_groups"][0]["scale"] == 2.0


def test_a_subclass_that_makes_its_own_state():
    """A user's state under additional keys does not change."""

    class Averaged(goptim.AdamW):
        def step(self, closure=None):
            loss = super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    state["average"] = p.detach() if "average" not in state else state["average"].lerp(p.detach(), 0.1)
            return loss

    p = nn.Parameter(torch.ones(3))
    opt = Averaged([p])
    for _ in range(3):
        p.grad = torch.ones(3)
        opt.step()
    assert list(opt.state[p]) == ["step", "exp_avg", "exp_avg_sq", "average"]
    assert opt.state[p]["step"] == 3
