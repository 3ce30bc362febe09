"""torch's test database of optimizers, arguments and errors, with the checks of torch's own tests.

Each test does the same with torch's class and goptim's, and compares bit for bit. LBFGS sums in goptim's order.
"""

import copy
import io
import warnings

import pytest
import torch
from problems import sums_in_our_order
from runs import INFOS, Run, assert_same, both_classes, options_of
from torch import Tensor
from torch.nn import Parameter
from torch.optim import optimizer as torch_optimizer

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that hypothesis is not installed
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum

INPUTS = [
    pytest.param(name, i, id=f"{name}-{x.desc}")
    for name, info in INFOS.items()
    for i, x in enumerate(info.optim_inputs_func(device="cpu"))
]
every_input = pytest.mark.parametrize(("name", "i"), INPUTS)
every = pytest.mark.parametrize("name", INFOS)

pytestmark = [
    pytest.mark.usefixtures("threads"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


@pytest.fixture(autouse=True)
def exact():
    with ieee_sqrt(), sums_in_our_order():
        yield


@every_input
def test_inputs(name, i):
    ours, expected = (Run(optimizer, **options_of(name, i)).steps(4) for optimizer in both_classes(name))
    assert_same(ours, expected)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_errors(name, dtype):
    if dtype.is_complex and not INFOS[name].supports_complex:
        pytest.skip("torch has none")
    errors = INFOS[name].optim_error_inputs_func(device="cpu", dtype=dtype)
    assert errors
    for error in errors:
        given = error.optimizer_error_input
        expect = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
        params = [torch.ones(3, 4, requires_grad=True)] if given.params is None else given.params
        if error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with expect(error.error_type, match=error.error_regex):
                getattr(goptim, name)(params, **given.kwargs)
        else:
            opt = getattr(goptim, name)(params, **given.kwargs)
            with expect(error.error_type, match=error.error_regex):
                opt.step()


@every_input
@pytest.mark.parametrize("ours_first", [False, True], ids=["theirs to ours", "ours to theirs"])
@pytest.mark.covering(1)
def test_state_dict_round_trip(name, i, ours_first):
    """Each class loads what the other saved, and continues in the same way."""
    ours, theirs = both_classes(name)
    first, second = (ours, theirs) if ours_first else (theirs, ours)
    run = Run(first, **options_of(name, i)).steps(3)
    file = io.BytesIO()
    torch.save(run.opt.state_dict(), file)
    file.seek(0)
    other = run.follow(torch.load(file, weights_only=True), second)
    assert_same(other, run)
    assert_same(other.steps(3), run.steps(3))
    back = other.follow(other.opt.state_dict(), first)
    assert_same(back.steps(2), run.steps(2))


@every_input
def test_deepcopy(name, i):
    runs = []
    for optimizer in both_classes(name):
        run = Run(optimizer, **options_of(name, i)).steps(2)
        other = run.copy()
        assert type(other.opt) is optimizer
        before = copy.deepcopy(other.everything())
        if optimizer is torch.optim.LBFGS:  # a copy of torch's optimizer fails; goptim's works
            other.opt._params, other.opt._numel_cache = other.params, None
        run.steps(2)
        assert_bit_equal(other.everything()[0], before[0])  # a copy has its own tensors
        assert_bit_equal(other.everything()[1]["state"], before[1]["state"])
        runs.append((run, other.steps(2)))
    (ours, our_copy), (theirs, _) = runs
    assert_same(ours, theirs)
    assert_same(our_copy, theirs)


@every
def test_hooks(name):
    """Hooks before and after step, state_dict and load_state_dict, of all optimizers and of one."""
    logs = []
    for optimizer in both_classes(name):
        run = Run(optimizer)
        opt, log = run.opt, []

        def note(what, opt=opt, log=log):
            return lambda *args: log.append((what, args[0] is opt, [type(x).__name__ for x in args[1:]]))

        opt.register_step_pre_hook(note("step pre"))
        opt.register_step_post_hook(note("step post"))
        opt.register_state_dict_pre_hook(note("state_dict pre"))
        opt.register_state_dict_post_hook(note("state_dict post"))
        opt.register_state_dict_post_hook(note("state_dict post, before the others"), prepend=True)
        opt.register_load_state_dict_pre_hook(note("load_state_dict pre"))
        opt.register_load_state_dict_post_hook(note("load_state_dict post"))
        handles = [
            torch_optimizer.register_optimizer_step_pre_hook(note("every step pre")),
            torch_optimizer.register_optimizer_step_post_hook(note("every step post")),
        ]
        try:
            run.steps(2)
            opt.load_state_dict(opt.state_dict())
            run.steps(1)
        finally:
            for handle in handles:
                handle.remove()
        logs.append(log)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3 * 4 + 5


@every
def test_hooks_change_what_is_saved_and_loaded(name):
    runs = []
    for optimizer in both_classes(name):
        run = Run(optimizer).steps(2)
        run.opt.register_state_dict_post_hook(lambda opt, saved: saved | {"note": "extra"})
        run.opt.register_load_state_dict_pre_hook(
            lambda opt, saved: saved | {"param_groups": [g | {"lr": 0.5} for g in saved["param_groups"]]}
        )
        saved = run.opt.state_dict()
        assert saved["note"] == "extra"
        run.opt.load_state_dict(saved)
        assert run.opt.param_groups[0]["lr"] == 0.5
        runs.append(run.steps(2))
    assert_same(*runs)


@every_input
def test_closures(name, i):
    if INFOS[name].only_supports_sparse_grads:
        pytest.skip("gradients from autograd are dense")
    runs = []
    for optimizer in both_classes(name):
        run = Run(optimizer, **options_of(name, i))
        with torch.no_grad():
            run.steps(3, closure=True)
        assert run.returned is run.losses[0] or torch.equal(run.returned, run.losses[0])
        runs.append(run)
    ours, expected = runs
    assert_bit_equal(ours.losses, expected.losses)
    assert_same(ours, expected)


@every_input
def test_groups_with_other_hyperparameters(name, i):
    """A group with the input's options, a group with only an lr, and a group that is added later."""
    if name == "LBFGS":
        pytest.skip("it has one group")
    runs = []
    for optimizer in both_classes(name):
        options = options_of(name, i)
        if any(isinstance(x, Tensor) for x in options.values()):
            pytest.skip("a tensor for lr is for every group")

        def groups(params, options=options):
            return [{"params": params[:1], **options}, {"params": params[1:], "lr": 0.037}]

        run = Run(optimizer, groups, **({"foreach": False} if "foreach" in options else {})).steps(2)
        late = Parameter(torch.full((2, 3), 0.5))
        if name != "Adagrad" or not torch.__version__.startswith("2.6."):  # it only has a state for the first parameter
            run.params.append(late)
            run.opt.add_param_group({"params": [late], "lr": 0.3})
        runs.append(run.steps(3))
    assert_same(*runs)


LAYOUTS = {
    "every other element": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "rows of a wider matrix": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]] if t.dim() else t,
    "a view into a buffer": lambda t: torch.cat([t.new_zeros(3), t.reshape(-1)])[3:].view(t.shape),
}


@every_input
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.covering(1)
def test_layouts(name, i, layout):
    if name == "LBFGS" and layout == "transposed":
        for optimizer in both_classes(name):
            with pytest.raises(RuntimeError, match="view size is not compatible"):
                Run(optimizer, layout=LAYOUTS[layout], **options_of(name, i)).steps(1)
        return
    ours, expected = (
        Run(optimizer, layout=LAYOUTS[layout], **options_of(name, i)).steps(3) for optimizer in both_classes(name)
    )
    assert_same(ours, expected)


@every
@pytest.mark.parametrize("meta", [0, 1])
def test_devices_in_one_optimizer(name, meta):
    """meta represents another device. goptim rejects what torch rejects, with its error, before any write."""
    runs, errors = [], []
    for optimizer in both_classes(name):
        run = Run(optimizer)
        run.params[meta] = Parameter(run.params[meta].to("meta"))
        run.opt = optimizer(run.params)
        before = copy.deepcopy([p for p in run.params if not p.is_meta])
        try:
            run.steps(2)
        except (RuntimeError, NotImplementedError, ValueError) as e:
            errors.append(type(e))
            if optimizer is both_classes(name)[0] and name != "LBFGS":
                assert_bit_equal([p for p in run.params if not p.is_meta], before)
        run.params = [p for p in run.params if not p.is_meta]
        runs.append(run)
    assert len(errors) in (0, 2), errors
    if not errors:
        ours, expected = runs
        assert_bit_equal(ours.params, expected.params)
        for p, q in zip(ours.params, expected.params, strict=True):
            assert_bit_equal(dict(ours.opt.state[p]), dict(expected.opt.state[q]))


@every_input
def test_complex(name, i):
    """Complex parameters fall back, next to real ones in Go in the same step."""
    if not INFOS[name].supports_complex:
        pytest.skip("torch has none")

    def make(optimizer):
        run = Run(optimizer, **options_of(name, i))
        complexes = Run(optimizer, dtype=torch.complex64)
        params = [p for pair in zip(complexes.params, run.params, strict=True) for p in pair]
        params = complexes.params if name == "LBFGS" else params  # LBFGS treats all parameters as one vector
        run.params, run.opt = params, optimizer(params, **options_of(name, i))
        return run.steps(3)

    ours, expected = map(make, both_classes(name))
    assert_same(ours, expected)
