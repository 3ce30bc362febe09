"""Steps with concurrent changes: of lists and states, by interrupts and other threads; and shared memory."""

import collections
import contextlib
import copy
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import rows
import torch
from configurations import ELEMENTWISE, IN_TABLES, MOMENTUM, both_classes, needs_late_state
from torch.nn import Parameter

import goptim
from goptim import _for_loop, _native, _sparse
from goptim._kinds import Kind
from goptim._lists import order_of_norms
from goptim.testing import assert_bit_equal, ieee_sqrt

OPTIONS = {name: {"momentum": 0.9} for name in MOMENTUM}
every = pytest.mark.parametrize("name", ELEMENTWISE)


def leaf(*shape, dtype=torch.float32):
    return Parameter(torch.randn(shape, dtype=dtype))


def gaps(*shape):
    """A parameter that falls back to torch, because there are gaps between its elements."""
    return Parameter(torch.randn(*shape, 2)[..., 0])


def mixed(optimizer, groups=3, **options):
    """Groups of which some parameters fall back."""
    torch.default_generator.manual_seed(0)
    makes = [leaf, gaps, lambda *shape: leaf(*shape, dtype=torch.float64), leaf]
    return optimizer([{"params": [make(3, 4) for make in makes]} for _ in range(groups)], **options)


def params_of(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def give_gradients(opt, seed=0):
    torch.default_generator.manual_seed(seed)
    for p in params_of(opt):
        p.grad = torch.randn(p.shape).to(p.dtype)


def train(opt, steps=3):
    with ieee_sqrt():
        for i in range(steps):
            give_gradients(opt, i)
            opt.step()
    return opt


def everything(opt):
    return params_of(opt), [dict(opt.state.get(p, {})) for p in params_of(opt)]


def run(body, timeout=300):
    """Run a program in a process that a fault would end."""
    program = (
        "import torch, goptim, gc, threading, time, random, sys\nfrom torch.nn import Parameter\n"
        + textwrap.dedent(body)
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


# Lists that change


CHANGES = """
def change(params, how):
    if how == "fewer":
        del params[1:]
    elif how == "none":
        params.clear()
    else:
        params.extend(params[:1] * 300)

def make(name, kind=list, dtypes=(torch.float32,) * 8):
    options = {"momentum": 0.9} if name in MOMENTUM else {}
    options["foreach"] = torch.bfloat16 in dtypes or None  # torch steps these then
    opt = getattr(goptim, name)([Parameter(torch.randn(64).to(d)) for d in dtypes], **options)
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.randn(64).to(p.dtype)
    opt.step()
    opt.param_groups[0]["params"] = kind(opt.param_groups[0]["params"])
    return opt
"""


def test_lists_that_change_during_a_step():
    """By a flag, a hash function, a gradient's descriptor and the garbage collector."""
    run(
        CHANGES
        + """
    class Mine(list):
        pass

    class Flag:
        def __init__(self, do): self.do = do
        def __bool__(self): self.do(); return False

    mixed = (torch.float32, torch.bfloat16) * 4
    hash_ = torch.Tensor.__hash__
    for name in ("SGD", "AdamW", "Rprop", "Adafactor", "ASGD"):
        for how in ("fewer", "none", "more"):
            for kind in (list, Mine):
                for dtypes in ((torch.float32,) * 8, mixed):
                    opt = make(name, kind, dtypes)
                    group = opt.param_groups[0]
                    group["maximize"] = Flag(lambda: change(group["params"], how))
                    opt.step()

                    opt = make(name, kind, dtypes)
                    params = opt.param_groups[0]["params"]
                    items = list(opt.state.items())[::-1]
                    opt.state.clear()
                    opt.state.update(items)  # so that states are looked for by their hashes
                    def hashed(t):
                        change(params, how)
                        return hash_(t)
                    torch.Tensor.__hash__ = hashed
                    try:
                        opt.step()
                    finally:
                        torch.Tensor.__hash__ = hash_

                    opt = make(name, kind, dtypes)
                    params = opt.param_groups[0]["params"]
                    collected = lambda *_: change(params, how)
                    gc.callbacks.append(collected)
                    gc.set_threshold(1)
                    try:
                        opt.step()
                    finally:
                        gc.set_threshold(700)
                        gc.callbacks.remove(collected)
    """
    )


def test_states_that_are_replaced_during_a_step():
    """While rows are collected, between groups, and during torch's part. The old states are freed."""
    run(
        CHANGES
        + """
    class Flag:
        def __init__(self, do): self.do = do
        def __bool__(self): self.do(); return False

    hash_ = torch.Tensor.__hash__
    for name in ("SGD", "AdamW", "Adagrad", "Adafactor", "ASGD", "Muon"):
        for dtypes in ((torch.float32,) * 8, (torch.float32, torch.bfloat16) * 4):
            shape = (8, 8) if name == "Muon" else (64,)
            groups = [{"params": [Parameter(torch.randn(shape).to(d)) for d in dtypes]} for _ in range(3)]
            options = {"momentum": 0.9} if name in MOMENTUM else {}
            if name != "Muon":
                options["foreach"] = torch.bfloat16 in dtypes or None  # torch steps these then
            opt = getattr(goptim, name)(groups, **options)
            for g in opt.param_groups:
                for p in g["params"]:
                    p.grad = torch.randn(shape).to(p.dtype)
            opt.step()
            times = [0]

            def replace():
                times[0] += 1
                for p, state in opt.state.items():
                    for key, t in list(state.items()):
                        state[key] = torch.full_like(t, 0.5) if isinstance(t, torch.Tensor) else t
                    p.data = p.data.clone()
                    p.grad = p.grad.clone()
                trash = [torch.full(shape, float("nan")) for _ in range(50)]

            flag = "nesterov" if name == "Muon" else "maximize"
            opt.param_groups[-1][flag] = Flag(replace)
            opt.step()
            opt.param_groups[-1][flag] = False

            def hashed(t):
                if times[0] < 400:
                    replace_without_hashes()
                return hash_(t)

            def replace_without_hashes():
                torch.Tensor.__hash__ = hash_
                replace()
                torch.Tensor.__hash__ = hashed

            items = list(opt.state.items())[::-1]
            opt.state.clear()
            opt.state.update(items)
            torch.Tensor.__hash__ = hashed
            try:
                opt.step()
            finally:
                torch.Tensor.__hash__ = hash_
            for g in opt.param_groups:
                for p in g["params"]:
                    assert p.isfinite().all(), (name, p)
    """
    )


def test_another_thread_loads_states_while_one_steps():
    run("""
    opt = goptim.AdamW([Parameter(torch.randn(64)) for _ in range(100)])
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.randn(64)
    opt.step()
    saved = opt.state_dict()
    saved = {"state": {k: {n: t.clone() for n, t in s.items()} for k, s in saved["state"].items()},
             "param_groups": saved["param_groups"]}
    end, errors = time.time() + 2, []
    sys.setswitchinterval(1e-5)

    def load():
        while time.time() < end:
            opt.load_state_dict(saved)

    thread = threading.Thread(target=load)
    thread.start()
    while time.time() < end:
        opt.step()
    thread.join()
    assert all(p.isfinite().all() for p in opt.param_groups[0]["params"])
    """)


# The part that falls back


@every
def test_interrupts_in_torchs_part_lose_nothing(name):
    """A KeyboardInterrupt at every line of a step does not change the groups, and the run can continue."""
    opt = train(mixed(both_classes(name)[1], **OPTIONS.get(name, {})), 1)
    groups = [(group, group["params"], list(group["params"])) for group in opt.param_groups]
    of_groups = opt.param_groups
    give_gradients(opt)

    def interrupted(n):
        """Whether the step was interrupted at its line number n."""
        count = itertools.count()

        def trace(frame, event, arg):
            if event == "line" and next(count) == n:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            opt.step()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
            torch.set_grad_enabled(True)  # torch's own decorators leave it disabled if they are interrupted on exit
        return False

    n = 0
    while interrupted(n):
        assert opt.param_groups is of_groups
        assert [(id(g), id(g["params"]), list(map(id, g["params"]))) for g in of_groups] == [
            (id(g), id(params), list(map(id, was))) for g, params, was in groups
        ]
        n += 7 if n > 60 else 1
    assert n > 100
    train(opt, 1)


def test_other_threads_see_whole_groups():
    opt = train(mixed(goptim.AdamW))
    expected = [list(map(id, group["params"])) for group in opt.param_groups]
    keys = opt.state_dict()["param_groups"]
    wrong, stop = [], threading.Event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def look():
        looks = 0
        while not stop.is_set():
            looks += 1
            if [list(map(id, group["params"])) for group in opt.param_groups] != expected:
                wrong.append("groups")
            if opt.state_dict()["param_groups"] != keys:
                wrong.append("state_dict")
        assert looks

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(300):
            opt.step()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert wrong == []


@every
def test_a_group_that_is_added_during_a_step_is_kept(name):
    needs_late_state(name)
    cls = both_classes(name)[1]

    class Adds(cls):
        def _init_group(self, *args):
            if len(opt.param_groups) == 3:
                opt.add_param_group({"params": [added]})
            return super()._init_group(*args)

    added = leaf(2)
    opt = mixed(Adds, **OPTIONS.get(name, {}))
    train(opt, 2)
    assert [len(group["params"]) for group in opt.param_groups] == [4, 4, 4, 1]
    assert opt.param_groups[-1]["params"][0] is added


def test_attributes_set_during_a_fallback_are_kept():
    """Attributes of the optimizer and values of its groups that a subclass sets during torch's part."""

    def derived(base):
        class Counts(base):
            def _init_group(self, group, *lists):
                self.calls = getattr(self, "calls", 0) + 1
                vars(self).pop("first", None)
                group["seen"] = group.get("seen", 0) + 1
                group.pop("once", None)
                return super()._init_group(group, *lists)

        return Counts

    opts = [mixed(derived(base)) for base in both_classes("AdamW")]
    for opt in opts:
        opt.first = True
        opt.param_groups[1]["once"] = 1
        opt.param_groups[2]["params"][:] = opt.param_groups[2]["params"][1:2]
        train(opt, 3)
    expected, ours = opts
    assert not hasattr(ours, "first")
    assert ours.calls > 0
    assert [set(g) for g in ours.param_groups] == [set(g) for g in expected.param_groups]
    assert ours.param_groups[2]["seen"] == expected.param_groups[2]["seen"] == 3
    assert vars(ours).keys() == vars(expected).keys()


def test_slots_are_there_while_torch_steps():
    """Attributes in __slots__ of a subclass, which torch's step reads, sets and deletes."""

    def derived(base):
        class Slotted(base):
            __slots__ = ("__scale", "empty", "once", "seen")

            def __init__(self, *args, **kwargs):
                self.__scale = 2
                self.once = True
                super().__init__(*args, **kwargs)

            def _init_group(self, group, *lists):
                self.seen = getattr(self, "seen", 0) + self.__scale
                with contextlib.suppress(AttributeError):
                    del self.once
                return super()._init_group(group, *lists)

        return Slotted

    expected, ours = [train(mixed(derived(base)), 3) for base in both_classes("SGD")]
    assert ours.seen == expected.seen == 18
    assert not hasattr(ours, "once")
    assert not hasattr(ours, "empty")
    assert_bit_equal(everything(ours), everything(expected))


@pytest.mark.parametrize(
    ("second", "lr"),
    [(leaf, torch.tensor(0.1)), (lambda n: leaf(n, dtype=torch.bfloat16), torch.tensor(0.1)), (gaps, 0.1)],
    ids=["torch steps all", "and another dtype", "torch steps one"],
)
def test_fused_flag_of_torch_is_remembered(second, lr):
    """torch's SGD and Adagrad set an attribute of the optimizer in their first fused step."""
    for name in ("SGD", "Adagrad"):
        opts = [cls([leaf(3), second(3)], fused=True, lr=lr) for cls in both_classes(name)]
        for opt in opts:
            with contextlib.suppress(RuntimeError):
                train(opt, 1)
        ours, expected = ({k: v for k, v in vars(opt).items() if isinstance(v, bool)} for opt in opts)
        assert ours == expected, name


@every
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)], ids=str)
def test_states_come_in_the_order_of_the_parameters(name, order):
    def make(cls):
        torch.default_generator.manual_seed(0)
        params = [leaf(3), gaps(3), gaps(5)]
        return train(cls([params[i] for i in order], **OPTIONS.get(name, {})), 1)

    expected, ours = map(make, both_classes(name))
    places = [[[q is p for q in params_of(opt)].index(True) for p in opt.state] for opt in (ours, expected)]
    assert places[0] == places[1]
    assert_bit_equal(everything(ours), everything(expected))


@pytest.mark.parametrize("half_first", [False, True])
def test_hf_adafactor_orders_states_as_transformers_does(half_first):
    transformers = pytest.importorskip("transformers.optimization")

    def order(cls):
        params = [leaf(3, 4), leaf(3, 4, dtype=torch.bfloat16), leaf(5), leaf(3, dtype=torch.bfloat16)]
        params = params[::-1] if half_first else params
        opt = train(cls([{"params": params[:2]}, {"params": params[2:]}]), 1)
        return [[q is p for q in params].index(True) for p in opt.state], [list(s) for s in opt.state.values()]

    assert order(goptim.hf.Adafactor) == order(transformers.Adafactor)


def classes():
    return [name for name in torch.optim.__all__ if name in (*IN_TABLES, "SparseAdam", "LBFGS", "Muon")]


@pytest.mark.full
@pytest.mark.parametrize("first", classes())
def test_a_state_of_another_class(first):
    """A state_dict of every class in every other: goptim accepts what torch accepts, with the same types of errors."""

    def outcome(a, b):
        torch.default_generator.manual_seed(0)
        p = leaf(4, 3)

        def closure():
            p.grad = torch.ones(4, 3)
            if "SparseAdam" in step_of:
                p.grad = p.grad.to_sparse(1)
            return p.sum()

        opt, step_of = a([p], **({"momentum": 0.9} if a.__name__ == "SGD" else {})), a.__name__
        for _ in range(2):
            opt.step(closure)
        other, step_of = b([p], **({"momentum": 0.9} if b.__name__ == "SGD" else {})), b.__name__
        saved = {"state": copy.deepcopy(opt.state_dict()["state"]), "param_groups": other.state_dict()["param_groups"]}
        try:
            other.load_state_dict(saved)  # some classes reject it
            with ieee_sqrt():
                other.step(closure)
        except Exception as e:
            return type(e)
        return p.detach().clone()

    for second in classes():
        expected, ours = (outcome(getattr(m, first), getattr(m, second)) for m in (torch.optim, goptim))
        if isinstance(expected, type):
            assert ours is expected, (first, second)
        else:
            assert_bit_equal(ours, expected, f"{first} {second}")


# Fallbacks


def test_fallback_does_not_copy(monkeypatch):
    """A step count of shape (1,), as of Adam in shared memory, falls back without clones."""
    opts = [cls([leaf(3, 4), leaf(5)]) for cls in both_classes("AdamW")]
    for opt in opts:
        train(opt, 1)
        for state in opt.state.values():
            state["step"] = state["step"].reshape(1)
    monkeypatch.setattr(torch.Tensor, "clone", lambda *_: pytest.fail("something is cloned"))
    reasons = []
    monkeypatch.setattr(goptim._parts.Part, "reason_of", lambda *_: reasons.append(1))
    opts[1].step()
    assert reasons == []


@every
@pytest.mark.parametrize("seconds", [0.3])
def test_a_fallback_costs_little_more_than_torch(name, seconds):
    """A fallback takes at most 1.1 times torch's own step plus ten microseconds, in the best of many runs."""
    opts = [cls([gaps(64) for _ in range(20)], **OPTIONS.get(name, {})) for cls in both_classes(name)]
    best = [float("inf")] * 2
    for opt in opts:
        train(opt, 8)  # RAdam's first steps are faster than later ones
    end = time.perf_counter() + 10
    done = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i, opt in enumerate(opts):
            start = time.perf_counter()
            opt.step()
            best[i] = min(best[i], time.perf_counter() - start)
        if best[1] <= 1.1 * best[0] + 10e-6 and time.perf_counter() > done:
            return
    pytest.fail(f"{best[1] * 1e6:.0f} µs, and torch needs {best[0] * 1e6:.0f}")


# Shared memory


def gradient_is_parameter(opt, p):
    p.grad = p.data


def gradient_overlaps(opt, p):
    memory = torch.cat([p.data, torch.zeros(5)])
    p.data = memory[: len(p)]
    p.grad = memory[3 : 3 + len(p)]


def parameter_is_state(opt, p):
    key = next(key for key, t in opt.state[p].items() if getattr(t, "ndim", 0) and key != "step")
    p.data = opt.state[p][key]


def states_overlap(opt, p):
    keys = [key for key, t in opt.state[p].items() if getattr(t, "ndim", 0)]
    memory = torch.rand(len(p) + 9)
    for i, key in enumerate(keys):
        opt.state[p][key] = memory[3 * i : 3 * i + len(p)]


def step_is_in_state(opt, p):
    key = next(key for key, t in opt.state[p].items() if getattr(t, "ndim", 0))
    if "step" in opt.state[p]:
        t = opt.state[p][key]
        t[5] = 1.0
        opt.state[p]["step"] = t[5]


@every
@pytest.mark.parametrize("n", [37, 1])
@pytest.mark.parametrize(
    "share", [gradient_is_parameter, gradient_overlaps, parameter_is_state, states_overlap, step_is_in_state]
)
@pytest.mark.parametrize("layout", [True, False], ids=["", "without a layout"])
@pytest.mark.covering("share n layout", "name share")
def test_memory_shared_within_a_row(name, n, share, layout, monkeypatch):
    if share is step_is_in_state and n == 1:
        pytest.skip("there is no sixth element")
    if not layout:
        monkeypatch.setattr(_native, "layout", lambda: None)

    def make(cls):
        torch.default_generator.manual_seed(0)
        opt = cls([p := leaf(n), leaf(4)], **OPTIONS.get(name, {}))
        train(opt, 1)
        share(opt, p)
        try:
            with ieee_sqrt():
                for _ in range(2):
                    opt.step()
        except RuntimeError as e:  # torch's own check of partial overlap
            error.append(str(e))
        return opt

    error = []
    expected, ours = map(make, both_classes(name))
    if error:
        assert error[0] == error[1]
        return
    assert_bit_equal(everything(ours), everything(expected))
    rows = goptim.explain(ours)
    why = rows[0].reason  # RMSpropTFLike's step is a number
    assert [row.to for row in rows] == ["torch" if "memory" in why or "its step is tensor" in why else "go", "go"]
    assert "memory" in rows[0].reason or n == 1 or share in (states_overlap, step_is_in_state)  # some have too few


@every
def test_a_step_of_two_parameters(name):
    """Both have the same step count: the second sees the first one's increment."""
    if not rows.counts(name):
        pytest.skip("it does not count")

    def make(cls):
        torch.default_generator.manual_seed(0)
        opt = train(cls([leaf(5), leaf(3), gaps(2)]), 1)
        shared = torch.tensor(1.0)
        for state in opt.state.values():
            state["step"] = shared
        return train(opt, 3)

    expected, ours = map(make, both_classes(name))
    assert_bit_equal(everything(ours), everything(expected))


@every
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["torch last", "torch first"])
def test_memory_shared_by_what_go_and_torch_step(name, order):
    """Parameters that overlap in a chain, of which the last one falls back, are stepped in order."""

    def make(cls):
        torch.default_generator.manual_seed(0)
        memory = torch.randn(3, 30)
        flat = memory.view(-1)
        params = [Parameter(flat[:20].view(4, 5)), Parameter(flat[10:30].view(4, 5)), Parameter(flat[25:45].view(4, 5))]
        opt = cls([*(params[i] for i in order), leaf(6)], **OPTIONS.get(name, {}))
        with ieee_sqrt():
            for _ in range(3):
                for p in params_of(opt):
                    p.grad = torch.randn(p.shape)
                params[2].grad = torch.randn(5, 4).t()
                opt.step()
        return opt

    expected, ours = map(make, both_classes(name))
    assert_bit_equal(everything(ours), everything(expected))
    assert [row.to for row in goptim.explain(ours)] == ["torch"] * 3 + ["go"]


@every
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["torch last", "torch first"])
@pytest.mark.parametrize("why", ["a subclass", "a negative gradient", "a sparse gradient"])
@pytest.mark.covering("why order", "name")
def test_memory_shared_with_a_parameter_that_python_judges(name, why, order):
    """Python decides that one of two parameters with the same memory falls back. They are stepped in order."""

    class Derived(Parameter):
        pass

    def make(cls):
        torch.default_generator.manual_seed(0)
        memory = torch.randn(6, 5)
        params = [Parameter(memory), (Derived if why == "a subclass" else Parameter)(memory)]
        options = {"lr": 0.1} if why == "a sparse gradient" else {"weight_decay": 0.5, **OPTIONS.get(name, {})}
        if name == "Rprop":
            options.pop("weight_decay", None)
        opt = cls([*(params[i] for i in order), leaf(6)], **options)
        with ieee_sqrt():
            for _ in range(3):
                for p in params_of(opt):
                    p.grad = torch.randn(p.shape)
                if why == "a negative gradient":
                    params[1].grad = torch._neg_view(params[1].grad)
                elif why == "a sparse gradient":
                    rows = torch.tensor([[1, 3]])
                    params[1].grad = torch.sparse_coo_tensor(rows, torch.randn(2, 5), (6, 5), check_invariants=True)
                opt.step()
        return opt

    if why == "a sparse gradient" and name not in ("SGD", "Adagrad"):
        pytest.skip("it has no sparse gradients")
    with torch.sparse.check_sparse_tensor_invariants():
        expected, ours = map(make, both_classes(name))
    assert_bit_equal(everything(ours), everything(expected))


@every
@pytest.mark.parametrize("falls_back", [False, True], ids=["", "with a parameter of torch's"])
def test_first_step_of_a_parameter_in_two_groups(name, falls_back):
    """Its state is new only in the first group. Only a program that changes param_groups can cause this."""

    def make(cls):
        torch.default_generator.manual_seed(0)
        opt = cls([leaf(3, 4), leaf(5), *([gaps(2)] if falls_back else [])], **OPTIONS.get(name, {}))
        [group] = opt.param_groups
        opt.param_groups.append({**group, "params": group["params"][1::-1], "lr": 0.3})
        return train(opt, 3)

    expected, ours = map(make, both_classes(name))
    assert_bit_equal(everything(ours), everything(expected))


@every
def test_states_with_their_own_lookup(name):
    """A dict that overrides the lookup, such as one with states by name, falls back."""
    needs_late_state(name)

    class ByName(dict):
        def __init__(self):
            self.kept = {}

        def __getitem__(self, p):
            return self.kept.setdefault(id(p), {})

        def __contains__(self, p):
            return id(p) in self.kept

    def make(cls):
        torch.default_generator.manual_seed(0)
        opt = cls([leaf(3, 4), leaf(5)], **OPTIONS.get(name, {}))
        opt.state = ByName()
        train(opt, 3)
        return params_of(opt), [opt.state[p] for p in params_of(opt)]

    expected, ours = map(make, both_classes(name))
    assert_bit_equal(ours, expected)


@pytest.mark.full
def test_stress(capfd):
    """Interrupts, threads, and changing lists and states for a minute: no crash, and no lost update.

    What happens depends on the time that each step takes, so no seed repeats it. STRESS_SECONDS sets another length.
    """
    seconds = int(os.environ.get("STRESS_SECONDS", "30"))
    names, momentum = ([*map(_for_loop.name_in_goptim, some)] for some in (IN_TABLES, MOMENTUM))
    values = f"{seconds}, {seconds}, {names}, {momentum}"
    run(f"\n    SEED, SECONDS, NAMES, MOMENTUM = {values}" + STRESS, timeout=seconds + 180)


STRESS = """
    import inspect, itertools, operator, signal
    random.seed(SEED)
    torch.default_generator.manual_seed(SEED)
    print("seed", SEED)
    dtypes = [torch.float32, torch.float64, torch.bfloat16]
    sys.setswitchinterval(1e-5)
    end = time.time() + SECONDS

    class Interrupt(Exception):
        pass

    def interrupt(*_):
        raise KeyboardInterrupt

    def make(name, mixed):
        options = {"eps": (1e-30, 1e-3)} if name == "Adafactor" else {}
        if name in MOMENTUM:
            options["momentum"] = 0.9  # so that there is a state
        if mixed and "foreach" in inspect.signature(operator.attrgetter(name)(goptim)).parameters:
            options["foreach"] = random.choice([None, True])  # with it, torch steps 16-bit parameters
        groups = []
        for _ in range(random.randrange(1, 5)):
            kinds = random.choices(dtypes if mixed else dtypes[:2], k=random.randrange(1, 9))
            groups.append({"params": [Parameter(torch.randn(random.randrange(1, 80)).to(d)) for d in kinds]})
        opt = operator.attrgetter(name)(goptim)(groups, **options)
        if hasattr(opt, "train"):
            opt.train()
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape).to(p.dtype)
        return opt

    def cloned(state):
        return {k: t.clone() if isinstance(t, torch.Tensor) else t for k, t in state.items()}

    signal.signal(signal.SIGALRM, interrupt)
    rounds = interrupts = 0
    names = itertools.cycle(random.sample(NAMES, len(NAMES)))
    while time.time() < end:
        rounds += 1
        # Interrupts at any moment of mixed steps: the groups stay what they are, and a run can go on.
        name = next(names)
        opt = make(name, True)
        opt.step()  # or torch itself is left with half a state
        was = [(id(group), id(group["params"]), list(map(id, group["params"]))) for group in opt.param_groups]
        for _ in range(200):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
                    for _ in range(50):
                        opt.step()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
            assert [(id(g), id(g["params"]), list(map(id, g["params"]))) for g in opt.param_groups] == was
        signal.setitimer(signal.ITIMER_REAL, 0)
        opt.step()
        assert all(p in opt.state for group in opt.param_groups for p in group["params"])

        # Threads that load states, change lists and read, while one steps.
        opt = make(name, random.random() < 0.5)
        opt.step()
        stop = time.time() + 1
        lasting = [p for group in opt.param_groups for p in group["params"]]
        # Not of state_dict(), where bitsandbytes' classes have other names for the states.
        saved = [cloned(opt.state[p]) for p in lasting]
        unexpected = []

        def load():
            while time.time() < stop:
                for p, state in zip(lasting, saved):
                    opt.state[p] = cloned(state)

        def change():
            while time.time() < stop:
                params = random.choice(opt.param_groups)["params"]
                extra = [Parameter(torch.randn(5)) for _ in range(random.randrange(1, 40))]
                for p in extra:
                    p.grad = torch.randn(5)
                    params.append(p)
                time.sleep(1e-4)
                for p in extra:
                    params.pop([q is p for q in params].index(True))

        def read():
            while time.time() < stop:
                for group in list(opt.param_groups):
                    ids = set(map(id, list(group["params"])))
                    if not ids:
                        unexpected.append("an empty group")
                try:
                    opt.state_dict()
                except RuntimeError as e:
                    if "changed size during iteration" not in str(e):
                        raise
                except KeyError:
                    pass  # of a parameter that was removed, as in torch

        threads = [threading.Thread(target=target, daemon=True) for target in (load, change, read)]
        for thread in threads:
            thread.start()
        while time.time() < stop:
            try:
                opt.step()
            except (KeyError, RuntimeError) as e:
                unexpected.append(repr(e))
        for thread in threads:
            thread.join()
        assert not unexpected, unexpected[:3]
        assert [id(p) for group in opt.param_groups for p in group["params"]] == list(map(id, lasting))
    print(rounds, "rounds,", interrupts, "interrupts")
"""


class Doubled(dict):  # type: ignore[type-arg]
    """A group that says another learning rate than stands in it."""

    def __getitem__(self, key):
        return 2 * super().__getitem__(key) if key == "lr" else super().__getitem__(key)


@every
def test_group_that_looks_keys_up_in_its_own_way(name, go):
    opts = []
    for cls in both_classes(name):
        torch.default_generator.manual_seed(0)
        opts.append(cls([leaf(3, 4), leaf(5)], **OPTIONS.get(name, {})))
        opts[-1].param_groups[:] = [Doubled(group) for group in opts[-1].param_groups]
        train(opts[-1])
    assert_bit_equal(everything(opts[1]), everything(opts[0]))
    assert go == [2, 2, 2]


class Kept(dict):  # type: ignore[type-arg]
    """A group that contains other values than those of the dict in which it looks keys up."""

    def __init__(self, kept):
        super().__init__({**kept, "lr": 7.0, "weight_decay": 7.0})
        self.kept = kept

    def __getitem__(self, key):
        return self.kept[key]

    def __setitem__(self, key, value):
        self.kept[key] = value

    def __contains__(self, key):
        return key in self.kept

    def get(self, key, default=None):
        return self.kept.get(key, default)

    def setdefault(self, key, default=None):
        return self.kept.setdefault(key, default)


class Defaults(dict):  # type: ignore[type-arg]
    """A group without a learning rate, which is 0.03."""

    def __init__(self, group):
        super().__init__({key: value for key, value in group.items() if key != "lr"})

    def __missing__(self, key):
        if key == "lr":
            return 0.03
        raise KeyError(key)


class Another(collections.UserDict):  # type: ignore[type-arg]
    """A group that is not a dict."""


LOOKUPS = [Doubled, Kept, Defaults, Another]


@pytest.mark.parametrize("group", LOOKUPS)
@pytest.mark.parametrize("name", [*IN_TABLES, "SparseAdam", "Muon", "LBFGS"])
@pytest.mark.covering("group", "name")
def test_groups_that_look_keys_up_in_their_own_way_with_torch(name, group):
    """A part of the step falls back to torch, which reads the group by its lookup methods."""
    if not hasattr(torch.optim, name):
        pytest.skip(f"torch does not have {name}")

    def train(cls):
        torch.default_generator.manual_seed(0)
        groups = [[leaf(3, 4), gaps(3, 4), leaf(3, 4, dtype=torch.float64)] for _ in range(1 if name == "LBFGS" else 2)]
        if name == "LBFGS":
            groups[0] = groups[0][:1]
        opt = cls([{"params": params} for params in groups], **OPTIONS.get(name, {}))
        opt.param_groups[:1] = [group(opt.param_groups[0])]
        for i in range(3):
            give_gradients(opt, i)
            for p in params_of(opt) if name == "SparseAdam" else ():
                p.grad = p.grad.to_sparse(1)
            with ieee_sqrt():
                opt.step(*([lambda: 1.0] if name == "LBFGS" else []))
        return params_of(opt), [dict(opt.state.get(p, {})) for p in params_of(opt)], dict(opt.param_groups[0])

    expected, ours = map(train, both_classes(name))
    assert_bit_equal(ours, expected)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", [*IN_TABLES, "SparseAdam", "Muon"])
def test_a_default_device(name):
    """A step with states does not create tensors on the default device."""
    if not hasattr(torch.optim, name) or name == "ASGD":
        pytest.skip(f"torch does not have {name}, or it fails")

    def run(cls):
        torch.default_generator.manual_seed(0)
        p = leaf(4, 3)
        opt = cls([p], **OPTIONS.get(name, {}))
        for i in range(2):
            p.grad = torch.randn(4, 3)
            if name == "SparseAdam":
                rows = torch.arange(1 << 15)[None] % 4
                p.grad = torch.sparse_coo_tensor(rows, torch.randn(1 << 15, 3), p.shape)
            order_of_norms.cache_clear()
            _sparse._sorts_by_radix.cache_clear()
            with ieee_sqrt(), torch.device("meta") if i else contextlib.nullcontext():
                opt.step()
        return everything(opt)

    expected, ours = map(run, both_classes(name))
    assert_bit_equal(ours, expected)


@pytest.mark.parametrize("group", LOOKUPS)
def test_explain_knows_that_such_a_group_falls_back_as_a_whole(group):
    opt = mixed(goptim.SGD, groups=2)
    opt.param_groups[:1] = [group(opt.param_groups[0])]
    give_gradients(opt)
    with ieee_sqrt():
        opt.step()
    assert [row.to for row in goptim.explain(opt)] == ["torch"] * 8
    assert sum("another parameter falls back" in row.reason for row in goptim.explain(opt)) == 6


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("decoupled", [True, False, None])
def test_a_group_that_says_how_its_weight_decays(name, decoupled, go):
    """It may say another thing than its class, or nothing: then it is as the class is."""
    opts = []
    for cls in both_classes(name):
        torch.default_generator.manual_seed(0)
        opts.append(cls([leaf(3, 4), leaf(5)], weight_decay=0.1))
        group = opts[-1].param_groups[0]
        if decoupled is not None:
            group["decoupled_weight_decay"] = decoupled
        train(opts[-1])
    assert_bit_equal(everything(opts[1]), everything(opts[0]))
    assert go == [2, 2, 2]


def test_an_option_that_torch_does_not_know_is_not_read():
    """torch 2.6 has no decoupled_weight_decay, whatever a group says that newer ones have saved."""
    kind = goptim.AdamW([leaf(2)]).kind
    old = Kind(0, rows.kind_named("Adam"), {"decoupled_weight_decay": 1}, ["decoupled_weight_decay"])
    group = dict(goptim.AdamW([leaf(2)]).param_groups[0])
    for said in (group, group | {"decoupled_weight_decay": False}, {k: v for k, v in group.items() if k[:3] != "dec"}):
        assert old.numbers(said)[-1] is True
    assert kind.numbers(group | {"decoupled_weight_decay": False})[-1] is False
    with pytest.raises(KeyError, match="lr"):
        old.numbers({})
