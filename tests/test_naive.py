"""The tests detect common mistakes: naive drop-in classes, each with the tests that must fail for it."""

import inspect

import pytest
import test_compile
import test_dropin
import test_modules
import test_optim_db
import test_schedulers
import torch
from configurations import IN_TABLES, class_of, oracle_of

from goptim import _for_loop, _step
from goptim._parts import PYTHON, TORCH, Part
from goptim.testing import ieee_sqrt


class StepsTwice:
    def step(self, closure=None):
        super().step(closure)
        return super().step()


class HooksTwice:
    """Calls torch's wrapped step directly."""

    def step(self, closure=None):
        return self.torch_class.step(self, closure)


class ClosuresWithoutGradients:
    def step(self, closure=None):
        return super().step(closure and torch.no_grad()(closure))


class ReturnsNothing:
    def step(self, closure=None):
        super().step(closure)


class CachesAddresses:
    """Reuses the tensors of the first step with as many parameters."""

    def _go(self, groups, kind=None):
        done = super()._go(groups, -1)
        if type(done) is not int:
            return done
        cache, rows = vars(self).setdefault("_cache", {}), []
        for i, (params, columns, scalars) in enumerate(groups):
            found = []
            for p in params:
                if type(p) is tuple or p.grad is None:
                    found += [p] if type(p) is tuple else []
                    continue
                state = self.state.get(p, {})
                names = [state.get("step") if self.counts else None, *(state.get(key) for key in columns)]
                row = [p, p.grad, *names, *[None] * (4 - len(names))]
                found.append((*(t if t is None else t.detach() for t in row), None))
            rows.append((cache.setdefault((i, len(found)), tuple(found)), columns, scalars))
        return super()._go(tuple(rows), kind)


class LayoutlessPart(Part):
    def sort(self, p, code):
        super().sort(p, PYTHON if code == TORCH else code)

    def _reason_of_parameter(self, p):
        gaps = "its elements have gaps or overlap"
        return None if (why := super()._reason_of_parameter(p)) == gaps else why

    def reason_of(self, p, g, state):
        why = super().reason_of(p, g, state)
        return None if why and why.endswith("different strides than the parameter") else why


class IgnoresLayouts:
    part_class = LayoutlessPart

    def _step_parts(self, groups, asked, codes):
        super()._step_parts(groups, asked, codes.replace(bytes([TORCH]), bytes([PYTHON])))


class ForgetsVersions:
    def _go(self, groups, kind=None):
        tensors = [t for p, state in self.state.items() for t in (p, *state.values()) if isinstance(t, torch.Tensor)]
        tensors += [p for params, _, _ in groups for p in params if isinstance(p, torch.Tensor)]
        versions = [t._version for t in tensors if not t.is_inference()]
        done = super()._go(groups, kind)
        for t, version in zip([t for t in tensors if not t.is_inference()], versions, strict=True):
            set_version(t, version)
        return done


def set_version(t, version):
    try:
        torch._C._autograd._unsafe_set_version_counter((t,), (version,))
    except TypeError:  # of torch 2.6
        torch._C._autograd._unsafe_set_version_counter(t, version)


class CachesHyperparameters:
    def options(self, group):
        return vars(self).setdefault("_options", dict(super().options(group)))


class GoesOnWithoutState:
    """Stores states outside of state_dict."""

    def state_dict(self):
        return super().state_dict() | {"state": {}}


class WritesBehindTracers:
    def step(self, closure=None):
        reason, _step.reason_of_optimizer = _step.reason_of_optimizer, lambda optimizer: None
        compiling, torch.compiler.is_compiling = torch.compiler.is_compiling, lambda: False
        try:
            return super().step(closure)
        finally:
            _step.reason_of_optimizer, torch.compiler.is_compiling = reason, compiling


class StatesAsTheyCome:
    def _make_states(self, parts):
        pass

    def _torch_step(self, groups, asked, parts):
        super()._torch_step(groups, asked, parts)
        for part in parts or ():
            if part.fresh:
                part.init_group(part.fresh)


def default(name):
    """The first of torch's test inputs of a class."""
    return {"name": name, "i": 0}


CAUGHT = {
    StepsTwice: [
        (test_dropin.test_hooks_run_once_in_order_with_torchs_arguments, {"name": "AdamW", "kwargs": {}}),
        (test_dropin.test_profiler_sees_one_step, {"name": "RMSprop", "kwargs": {}}),
        (test_dropin.test_closure, {"name": "SGD", "dtypes": [torch.float32]}),
        (test_dropin.test_inference_mode, {"name": "Adam"}),
        (test_dropin.test_grad_scaler_skips_infinite_gradients, {"name": "Adam", "fused": None}),
        (test_dropin.test_a_parameter_given_twice, {"name": "Adam"}),
        (test_dropin.test_one_gradient_for_two_parameters, {"name": "Adam"}),
        (test_dropin.test_named_parameters, {"name": "AdamW"}),
        (test_optim_db.test_hooks, {"name": "NAdam"}),
        (test_optim_db.test_inputs, default("LBFGS")),
        (test_optim_db.test_closures, default("Adadelta")),
        (test_optim_db.test_deepcopy, default("ASGD")),
        (test_optim_db.test_complex, default("Adam")),
        (test_optim_db.test_devices_in_one_optimizer, {"name": "Rprop", "meta": 0}),
        (test_schedulers.test_averaged_models, {"name": "SGD", "average": "swa"}),
        (test_schedulers.test_an_averaged_model_is_stepped_itself, {}),
        (test_modules.test_changes_between_steps, {"name": "AdamW", "change": "swap_tensors", "swap": False}),
        (test_modules.test_changes_between_steps, {"name": "Adam", "change": "to another dtype", "swap": True}),
        (test_modules.test_tied_weights_and_two_optimizers_of_one_model, {"name": "AdamW"}),
        (test_modules.test_parametrized_modules, {"name": "AdamW", "how": "weight_norm"}),
        (test_modules.test_grad_scaler, {"name": "SparseAdam", "unscaled": False}),
        (test_modules.test_grad_scaler, {"name": "Adam", "unscaled": True}),
        (test_modules.test_pickles_of_older_torch, {"name": "AdamW"}),
        (test_modules.test_subclasses_of_users, {"name": "Adagrad"}),
        (test_modules.test_a_subclass_that_makes_its_own_state, {}),
    ],
    HooksTwice: [
        (test_dropin.test_hooks_run_once_in_order_with_torchs_arguments, {"name": "AdamW", "kwargs": {}}),
        (test_optim_db.test_hooks, {"name": "NAdam"}),
    ],
    ClosuresWithoutGradients: [
        (test_dropin.test_closure, {"name": "SGD", "dtypes": [torch.float32]}),
        (test_optim_db.test_closures, default("Adam")),
    ],
    ReturnsNothing: [
        (test_dropin.test_closure, {"name": "SGD", "dtypes": [torch.float32]}),
        (test_optim_db.test_closures, default("Adam")),
    ],
    CachesAddresses: [
        (test_dropin.test_parameter_data_replaced_between_steps, {"name": "AdamW", "how": how, "forget": True})
        for how in test_dropin.MOVES
    ]
    + [
        (test_dropin.test_state_replaced_between_steps, {"name": "Adam"}),
        (test_dropin.test_memory_that_is_freed_and_given_to_another, {"name": "Adam"}),
        (test_dropin.test_parameters_of_groups_replaced_between_steps, {"name": "Adam", "container": list}),
        (test_optim_db.test_deepcopy, default("Adam")),
        (test_optim_db.test_layouts, default("Adam") | {"layout": "a view into a buffer"}),
        (test_modules.test_tied_weights_and_two_optimizers_of_one_model, {"name": "AdamW"}),
    ]
    + [
        (test_modules.test_changes_between_steps, {"name": "AdamW", "change": change, "swap": False})
        for change in ("load_state_dict, assign", "swap_tensors", "swap_tensors of the state")
    ],
    IgnoresLayouts: [
        (test_optim_db.test_layouts, default("Adam") | {"layout": "every other element"}),
        (test_optim_db.test_layouts, default("SGD") | {"layout": "rows of a wider matrix"}),
        (test_modules.test_changes_between_steps, {"name": "AdamW", "change": "channels_last", "swap": False}),
        (
            test_dropin.test_parameter_data_replaced_between_steps,
            {"name": "AdamW", "how": "other strides", "forget": False},
        ),
    ],
    ForgetsVersions: [
        (test_dropin.test_autograd_notices_that_a_saved_tensor_has_changed, {"name": "AdamW", "shape": (3, 4)}),
        (test_dropin.test_versions_of_all_that_is_written, {"name": "Rprop"}),
    ],
    CachesHyperparameters: [
        (test_schedulers.test_schedulers, {"name": name, "scheduler": scheduler, "lr": "float"})
        for name, scheduler in [("AdamW", "StepLR"), ("SGD", "OneCycleLR"), ("NAdam", "CyclicLR"), ("ASGD", "SWALR")]
    ]
    + [
        (test_optim_db.test_groups_with_other_hyperparameters, default("Adam")),
        (test_optim_db.test_hooks_change_what_is_saved_and_loaded, {"name": "Adam"}),
        (test_dropin.test_groups_have_their_own_arguments, {"name": "Adam"}),
        (
            test_schedulers.test_a_schedule_that_is_saved_midway,
            {"name": "Adam", "scheduler": "LinearLR", "ours_first": True},
        ),
    ],
    GoesOnWithoutState: [
        (test_optim_db.test_state_dict_round_trip, default("Adam") | {"ours_first": True}),
        (test_optim_db.test_state_dict_round_trip, default("Adam") | {"ours_first": False}),
    ],
    WritesBehindTracers: [
        (test_compile.test_a_compiled_step, {"name": "SGD", "schedule": False}),
        (test_dropin.test_dispatch_modes_see_every_operation, {"name": "Adam"}),
        (test_dropin.test_functorch_sees_the_step, {"name": "Adam"}),
        (test_dropin.test_grad_scaler_skips_infinite_gradients, {"name": "Adam", "fused": True}),
    ],
    StatesAsTheyCome: [(test_optim_db.test_complex, default("Adam"))],
}

CASES = [
    pytest.param(naive, test, arguments, id=f"{naive.__name__}-{test.__name__}{i}")
    for naive, tests in CAUGHT.items()
    for i, (test, arguments) in enumerate(tests)
]


@pytest.mark.parametrize(("naive", "test", "arguments"), CASES)
def test_naive_classes_are_detected(naive, test, arguments, monkeypatch, threads, go):
    if "go" in inspect.signature(test).parameters:
        arguments = arguments | {"go": go}
    for name in {*IN_TABLES, "LBFGS", "SparseAdam"}:
        ours = class_of(name)
        for optimizer in (ours, oracle_of(name)):
            optimizer([torch.zeros(1)])  # torch wraps a class's step when it creates the first instance
        monkeypatch.setattr(f"goptim.{_for_loop.name_in_goptim(name)}", type(ours.__name__, (naive, ours), {}))
    with ieee_sqrt(), pytest.raises((Exception, pytest.fail.Exception)):
        test(**arguments)
