"""goptim.swa_utils against torch.optim.swa_utils."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils as theirs

import goptim
from goptim import _lists, _native, swa_utils as ours
from goptim.testing import assert_bit_equal

F32, F64 = torch.float32, torch.float64


def policy():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def normalized():
    """A module with buffers, of which one is an integer."""
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 1003))


def both_dtypes():
    return nn.ModuleList([nn.Linear(5, 7), nn.Linear(1, 40001).double()])


def of_many_kinds():
    module = nn.Module()
    module.a = nn.Parameter(torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last))
    module.b = nn.Parameter(torch.randn(4).bfloat16())
    module.c = nn.Parameter(torch.tensor([3, 4]), requires_grad=False)
    module.d = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    module.e = nn.Parameter(torch.randn(()))
    module.f = nn.Parameter(torch.randn(0))
    module.register_buffer("h", torch.randn(3, 4).t())
    module.register_buffer("none", None)
    module.register_parameter("no", None)
    return module


def tied():
    """A shared parameter, a shared module, and a module with the name None."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    module.append(module[2])
    module.register_module("nothing", None)
    module.register_buffer("again", module[2].weight.detach())
    return module


class Lists(nn.Module):
    """A module that lists its tensors in its own order."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def named_modules(self, *args, **kwargs):
        yield from reversed(list(super().named_modules(*args, **kwargs)))


class Reversed(nn.Linear):
    def named_parameters(self, *args, **kwargs):
        yield from reversed(list(super().named_parameters(*args, **kwargs)))


def on_meta():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3, device="meta"))


# Modules, and how many of their parameters and then of all tensors run in Go.
MODULES = {
    "policy": (policy, 4, 4),
    "normalized": (normalized, 6, 8),
    "both dtypes": (both_dtypes, 4, 4),
    "many kinds": (of_many_kinds, 4, 5),
    "tied": (tied, 5, 6),
    "empty": (nn.Sequential, 0, 0),
    "on meta": (on_meta, 2, 2),
    "of its own order": (lambda: nn.Sequential(Lists(), Lists()), None, None),
    "root of its own order": (lambda: Reversed(3, 2), None, None),
}

FORMS = {
    "swa": lambda module: {},
    "swa, one": lambda module: {"avg_fn": module.get_swa_avg_fn()},
    "swa, many": lambda module: {"multi_avg_fn": module.get_swa_multi_avg_fn()},
    "ema, one": lambda module: {"avg_fn": module.get_ema_avg_fn(0.9)},
    "ema, many": lambda module: {"multi_avg_fn": module.get_ema_multi_avg_fn(0.9)},
    "ema, slow": lambda module: {"multi_avg_fn": module.get_ema_multi_avg_fn()},
    "ema, fast": lambda module: {"multi_avg_fn": module.get_ema_multi_avg_fn(0.1)},
    "ema, 0": lambda module: {"multi_avg_fn": module.get_ema_multi_avg_fn(0)},
    "ema, 1": lambda module: {"avg_fn": module.get_ema_avg_fn(1)},
    "torch's": lambda module: {"multi_avg_fn": theirs.get_ema_multi_avg_fn(0.9)},
    "torch's one": lambda module: {"avg_fn": theirs.get_ema_avg_fn(0.9)},
}


@pytest.fixture
def rows(monkeypatch):
    """The number of rows that ran in Go, by kind."""
    found = {}

    def count(kind, n):
        found[kind] = found.get(kind, 0) + n

    monkeypatch.setattr(_lists, "watch", count)
    return found


def change(model, seed):
    of = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            if t.is_meta:
                continue
            new = torch.randn(t.shape, generator=of)
            t.copy_(new if t.dtype.is_floating_point or t.dtype.is_complex else new.mul(10).round())


def versions(averaged):
    return [t._version for t in [*averaged.parameters(), *averaged.buffers()]]


def outcome(module, make, form, use_buffers=False, updates=4, prepare=lambda averaged, model: None):
    """The states after each update, or the error."""
    torch.default_generator.manual_seed(0)
    model = make()
    averaged = module.AveragedModel(model, use_buffers=use_buffers, **form(module))
    found = []
    for i in range(updates):
        change(model, i)
        if i == 2:
            prepare(averaged, model)
        try:
            averaged.update_parameters(model)
        except Exception as e:
            found.append((type(e), str(e)))
        else:
            tensors = [t for t in averaged.state_dict().values() if not t.is_meta]
            found.append((copy.deepcopy(tensors), versions(averaged)))
    return found


def assert_same(expected, actual):
    for a, b in zip(expected, actual, strict=True):
        if isinstance(a[0], type):
            assert b == a
        else:
            assert_bit_equal(b, a)


@pytest.mark.parametrize("use_buffers", [False, True], ids=["parameters", "buffers"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", MODULES)
@pytest.mark.covering("make form", "form use_buffers")
def test_updates_are_torchs(rows, make, form, use_buffers, threads):
    make, of_params, of_all = MODULES[make]
    expected = outcome(theirs, make, FORMS[form], use_buffers)
    assert not rows
    actual = outcome(ours, make, FORMS[form], use_buffers)
    assert_same(expected, actual)
    kind = {"swa": "SWA", "swa, one": "SWA", "ema, one": "MulAdd", "ema, 1": "MulAdd", "torch's one": "MulAdd"}
    done = rows.get(kind.get(form, "Lerp"), 0)
    if of_params is not None and not isinstance(actual[1][0], type):
        assert done == 3 * (of_all if use_buffers else of_params)
        if make is not nn.Sequential:
            assert rows["Copy"] >= of_params


def pair_of_dtypes(averaged, model):
    model.double()


def odd_strides(averaged, model):
    model[0].weight = nn.Parameter(torch.randn(5, 7).t())


def other_number(averaged, model):
    model.append(nn.Linear(2, 2))


def fewer(averaged, model):
    del model[2]


def more_buffers(averaged, model):
    model.register_buffer("more", torch.zeros(2))


def another_parameter(averaged, model):
    model[0].weight = nn.Parameter(torch.randn(7, 5))
    averaged.module[2].bias = nn.Parameter(torch.randn(3))


def other_shape(averaged, model):
    model[2].bias = nn.Parameter(torch.randn(1))


def frozen(averaged, model):
    averaged.requires_grad_(False)
    model.requires_grad_(False)


def counted(averaged, model):
    averaged.n_averaged.fill_(1000003)


def negative(averaged, model):
    averaged.n_averaged.fill_(-3)


def reset(averaged, model):
    averaged.n_averaged.zero_()


def of_its_own(averaged, model):
    averaged.own = nn.Parameter(torch.randn(7, 5))


def number_on_meta(averaged, model):
    averaged.n_averaged = averaged.n_averaged.to("meta")


def listed_elsewhere(averaged, model):
    model.parameters = lambda: reversed(list(nn.Module.parameters(model)))


CHANGES = [pair_of_dtypes, odd_strides, other_number, fewer, more_buffers, another_parameter, other_shape, frozen,
           counted, negative, reset, of_its_own, number_on_meta, listed_elsewhere]  # fmt: skip


@pytest.mark.parametrize("form", ["swa", "swa, many", "ema, one", "ema, many"])
@pytest.mark.parametrize("prepare", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.covering("prepare", "form")
def test_changes_between_updates(prepare, form):
    runs = [outcome(module, policy, FORMS[form], prepare=prepare, updates=5) for module in (theirs, ours)]
    assert_same(*runs)


def users_own(e, p, n):
    return (e * n + p) / (n + 1)


def users_many(es, ps, n):
    for e, p in zip(es, ps, strict=True):
        e.mul_(0.5).add_(p, alpha=0.5 / n.item())


def wraps_torchs():
    """A function that looks like torch's for introspection, but does more."""
    average = theirs.get_ema_multi_avg_fn(0.9)

    def more(es, ps, n):
        average(es, ps, n)
        torch._foreach_add_(es, 1)

    more.__wrapped__ = average.__wrapped__
    return more


@pytest.mark.parametrize("use_buffers", [False, True], ids=["parameters", "buffers"])
@pytest.mark.parametrize(
    "form",
    [{"avg_fn": users_own}, {"multi_avg_fn": users_many}, {"multi_avg_fn": wraps_torchs()}],
    ids=["one", "many", "wrapped"],
)
def test_functions_of_users(rows, form, use_buffers):
    assert_same(*(outcome(module, policy, lambda _: form, use_buffers) for module in (theirs, ours)))
    assert set(rows) <= {"Copy"}


@pytest.mark.parametrize("name", ["get_ema_multi_avg_fn", "get_swa_multi_avg_fn"])
@pytest.mark.parametrize("n", [1, 7, torch.tensor(7), torch.tensor(3.0), None, -1, -3], ids=str)
@pytest.mark.parametrize("kind", ["lists", "tuples", "integers", "bfloat16", "mixed"])
@pytest.mark.covering
def test_functions_called_directly(name, n, kind):
    def run(module):
        of = torch.Generator().manual_seed(0)
        es, ps = ([torch.randn(5, generator=of) * 10 for _ in range(3)] for _ in range(2))
        if kind == "tuples":
            es, ps = tuple(es), tuple(ps)
        elif kind in ("integers", "bfloat16"):
            es, ps = ([t.to(torch.int64 if kind == "integers" else torch.bfloat16) for t in ts] for ts in (es, ps))
        elif kind == "mixed":
            es[1], ps[1] = es[1].bfloat16(), ps[1].bfloat16()
        try:
            getattr(module, name)()(es, ps, n)
        except Exception as e:
            return type(e), str(e)
        return es, [e._version for e in es]

    assert_same([run(theirs)], [run(ours)])


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_a_decay_out_of_range(decay):
    for get in (ours.get_ema_multi_avg_fn, ours.get_ema_avg_fn):
        with pytest.raises(ValueError, match=f"Invalid decay value {decay}"):
            get(decay)


def test_names_and_signatures():
    assert set(theirs.__all__) <= set(ours.__all__)
    for name in theirs.__all__:
        signatures = [inspect.signature(getattr(module, name)) for module in (theirs, ours)]
        assert [list(s.parameters) for s in signatures[1:]] == [list(signatures[0].parameters)]
        assert [p.default for p in signatures[1].parameters.values()] == [
            p.default for p in signatures[0].parameters.values()
        ]
    assert issubclass(ours.AveragedModel, theirs.AveragedModel)
    assert ours.update_bn is theirs.update_bn
    assert ours.SWALR is theirs.SWALR


@pytest.mark.parametrize("to", ["state_dict", "pickle", "deepcopy", "torch's state_dict"])
def test_copies_continue(to):
    """A copied or saved model continues, with torch's class too."""

    def run(module):
        torch.default_generator.manual_seed(0)
        model = normalized()
        averaged = module.AveragedModel(model)
        for i in range(5):
            change(model, i)
            if i == 2:
                if to == "pickle":
                    averaged = pickle.loads(pickle.dumps(averaged))
                elif to == "deepcopy":
                    averaged = copy.deepcopy(averaged)
                else:
                    file = io.BytesIO()
                    torch.save(averaged.state_dict(), file)
                    file.seek(0)
                    averaged = (theirs if "torch" in to else module).AveragedModel(normalized())
                    averaged.load_state_dict(torch.load(file))
            averaged.update_parameters(model)
        return averaged.state_dict()

    assert_bit_equal(run(ours), run(theirs))


def test_a_graph_that_saved_an_average_is_refused():
    model = policy()
    averaged = ours.AveragedModel(model)
    averaged.update_parameters(model)
    loss = averaged(torch.ones(1, 5)).sum()
    averaged.update_parameters(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("where", ["compiled", "dispatch mode", "inference mode", "grad", "forked"])
def test_where_go_cannot_be_used(rows, monkeypatch, where):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    model = policy()
    averaged = {module: module.AveragedModel(model) for module in (theirs, ours)}
    for a in averaged.values():
        a.update_parameters(model)
    change(model, 1)
    rows.clear()
    for a in averaged.values():
        if where == "compiled":
            torch.compile(lambda a=a: a.update_parameters(model), backend="eager")()
        elif where == "dispatch mode":
            with Seen():
                a.update_parameters(model)
            assert seen
            seen.clear()
        elif where == "inference mode":
            with torch.inference_mode():
                a.update_parameters(model)
        elif where == "grad":
            with torch.enable_grad():
                a.update_parameters(model)
        else:
            monkeypatch.setattr(_native, "_forked", True)
            a.update_parameters(model)
    assert bool(rows) == (where in ("inference mode", "grad"))
    assert_bit_equal(averaged[ours].state_dict(), averaged[theirs].state_dict())
    assert all(p.grad_fn is None for p in averaged[ours].parameters())


class Other(Tensor):
    """A subclass that changes nothing."""


def test_a_tensor_subclass_falls_back(rows):
    def prepare(averaged, model):
        model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Other))

    assert_same(*(outcome(module, policy, FORMS["ema, many"], prepare=prepare) for module in (theirs, ours)))
    assert rows["Lerp"] == 4 + 3 + 3


def test_an_optimizer_of_the_averages_and_update_bn():
    """The model is a module as any other."""
    model = normalized()
    averaged = goptim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    ours.update_bn([torch.randn(8, 5) for _ in range(3)], averaged)
    assert averaged.module[1].num_batches_tracked == 3


def test_tensors_are_listed_as_torch_lists_them():
    for make, _, _ in MODULES.values():
        module = make()
        found = ours.tensors_of(module)
        listed = list(module.parameters()), list(module.buffers())
        if found is not None:
            assert [list(map(id, ts)) for ts in found] == [list(map(id, ts)) for ts in listed]
        else:
            assert make is MODULES["of its own order"][0] or make is MODULES["root of its own order"][0]
    module = policy()
    module.loop = module
    assert [len(ts) for ts in ours.tensors_of(module)] == [4, 0]


@pytest.fixture
def mesh():
    distributed = pytest.importorskip("torch.distributed", reason="needs torch.distributed")
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip("needs a process without a process group")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:DTensor random operators may not have complete support")
@pytest.mark.parametrize("form", ["swa", "ema, one", "ema, many"])
@pytest.mark.parametrize("placed", ["alike", "otherwise"])
def test_dtensors(rows, mesh, form, placed):
    """Their local shards run in Go, unless a model and its average are placed differently."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    together = form == "ema, many"  # torch has no lists of DTensors and others

    def make():
        module = policy()
        for layer in (module[0], module[2]) if together else (module[0],):
            for name, p in layer.named_parameters() if together else [("weight", layer.weight)]:
                setattr(layer, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
        return module

    def run(module):
        torch.default_generator.manual_seed(0)
        model = make()
        averaged = module.AveragedModel(model, **FORMS[form](module))
        if placed == "otherwise":
            for layer in model:
                for name, p in layer.named_parameters():
                    if isinstance(p, DTensor):
                        setattr(layer, name, nn.Parameter(p.detach().redistribute(mesh, [Replicate()])))
        for i in range(3):
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.5 + i)
            averaged.update_parameters(model)
        averages = averaged.state_dict().values()
        versions = [p._version for p in averaged.parameters()]
        return [t.to_local() if isinstance(t, DTensor) else t for t in averages], [type(t) for t in averages], versions

    expected = run(theirs)
    assert not rows
    actual = run(ours)
    assert_bit_equal(actual[0], expected[0])
    assert actual[1] == expected[1]
    assert all(x >= y for x, y in zip(actual[2], expected[2], strict=True))  # torch's lists of DTensors count nothing
    dtensors = 4 if together else 1
    assert sum(rows.values()) == 3 * (4 if placed == "alike" else 4 - dtensors)


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_of_two_dtypes(form):
    """Where torch raises an error, the averages before it have changed."""

    def run(module):
        torch.default_generator.manual_seed(0)
        model = policy()
        averaged = module.AveragedModel(model, **FORMS[form](module))
        averaged.update_parameters(model)
        change(model, 1)
        model[2].double()
        try:
            averaged.update_parameters(model)
        except RuntimeError as e:
            return str(e), averaged.state_dict()
        return "", averaged.state_dict()

    expected, actual = run(theirs), run(ours)
    assert actual[0] == expected[0]
    assert_bit_equal(actual[1], expected[1])
