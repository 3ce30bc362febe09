"""Bad input raises an exception with the reason, before anything is written."""

import ctypes
import itertools
import mmap
import os
import time
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import rows
import torch
from configurations import (
    ELEMENTWISE,
    MOMENTUM,
    both_classes,
    class_of,
    name_of,
    needs_late_state,
    oracle_of,
    that_fall_back,
)
from rows import call_groups
from torch.nn import Parameter

from goptim import _core
from goptim.testing import assert_bit_equal, ieee_sqrt

NAMES = ELEMENTWISE
OPTIONS = {name: {"lr": 0.1, "momentum": 0.9} for name in MOMENTUM}

every = pytest.mark.parametrize("name", NAMES)


def params_of(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def first_state(opt):
    """The key of the first written state with the parameter's shape, in goptim's optimizer or torch's."""
    name = name_of(type(opt))
    return rows.kind_named(name)["states"][rows.scalar_states(name)]["key"]


def give_gradients(opt, i):
    torch.default_generator.manual_seed(i)
    for p in params_of(opt):
        p.grad = torch.randn_like(p)


def train(opt, steps):
    for i in steps:
        give_gradients(opt, i)
        with ieee_sqrt():
            opt.step()


def value(x):
    """A copy that can be compared later."""
    if not isinstance(x, torch.Tensor) or x.is_meta:
        return repr(x)
    x = x.detach().to_dense().clone()
    return torch.view_as_real(x) if x.is_complex() else x


def everything(opt):
    params = params_of(opt)
    return [value(p) for p in params], [{k: value(v) for k, v in opt.state.get(p, {}).items()} for p in params]


def make(optimizer, with_torchs=False, named=False):
    """Three groups, or four with one that falls back. The very last parameter is to be corrupted."""
    torch.default_generator.manual_seed(0)
    groups = [
        [torch.randn(3, 4), torch.randn(())],
        [torch.randn(5, dtype=torch.float64)],
        [torch.randn(7), torch.randn(2, 6)],
    ]
    if with_torchs:
        groups.insert(1, that_fall_back(optimizer, [torch.randn(3, dtype=torch.complex64), torch.randn(8)[::2]]))
    groups = [[Parameter(t) for t in group] for group in groups]
    last = groups[-1][-1]
    if named:
        groups = [[("good" if p is not last else "bad", p) for p in group] for group in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optimizer([{"params": group} for group in groups], **OPTIONS.get(optimizer.__name__, {}))


# Corruptions of a gradient, and the message.
GRADIENTS = {
    "of another length": (lambda g: torch.ones(7), "its gradient has shape (7,), expected (2, 6)"),
    "of another shape": (lambda g: g.t().contiguous(), "its gradient has shape (6, 2), expected (2, 6)"),
    "that would broadcast": (lambda g: g[0].clone(), "its gradient has shape (6,), expected (2, 6)"),
    "empty": (lambda g: torch.ones(0), "its gradient has shape (0,), expected (2, 6)"),
    "of another dtype": (lambda g: g.to(torch.complex64), "its gradient is torch.complex64 on cpu"),
}

# Corruptions of a state, and the message; None if torch's own message is used.
STATES = {
    "of another length": (lambda t: torch.ones(7), "its state '{}' has shape (7,), expected (2, 6)"),
    "of another shape": (lambda t: t.t().contiguous(), "its state '{}' has shape (6, 2), expected (2, 6)"),
    "that would broadcast": (lambda t: t[0].clone(), "its state '{}' has shape (6,), expected (2, 6)"),
    "of another dtype": (lambda t: t.to(torch.complex64), "its state '{}' is torch.complex64 on cpu"),
    "on another device": (lambda t: t.to("meta"), "its state '{}' is torch.float32 on meta"),
    "sparse": (lambda t: t.to_sparse(), None),
    "a number": (lambda t: 1.0, None),
    "a string": (lambda t: "junk", None),
    "an array": (lambda t: t.numpy(), None),
    "None": (lambda t: None, None),
}

STEPS = {
    "of two numbers": lambda t: torch.stack([t, t]),
    "complex": lambda t: t.to(torch.complex64),
    "on another device": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "a string": lambda t: "junk",
    "None": lambda t: None,
}


def spoilt(optimizer, spoil, before, with_torchs):
    """An optimizer after valid steps and before an invalid one, and a function that repairs it."""
    opt = make(optimizer, with_torchs, named=with_torchs)
    train(opt, range(before))
    give_gradients(opt, before)
    bad = params_of(opt)[-1]
    grad, state = bad.grad.data, dict(opt.state.get(bad, {}))
    spoil(opt, bad)

    def repair():
        bad.grad.data = grad
        opt.state.pop(bad, None)
        if state:
            opt.state[bad] = state

    return opt, repair


def error_of(opt):
    try:
        with ieee_sqrt(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about some conversions once per process
            opt.step()
    except Exception as e:
        return e
    return None


def check(name, spoil, says, before, with_torchs):
    """The corrupted step fails before Go writes anything. goptim accepts what torch accepts.

    An error before the first write changes nothing. An error in torch's part leaves what torch leaves of that part.
    """
    ours, repair = spoilt(class_of(name), spoil, before, with_torchs)
    theirs, _ = spoilt(oracle_of(name), spoil, before, with_torchs)
    unspoilt = everything(ours)
    error, their_error = error_of(ours), error_of(theirs)
    if their_error is None and error is None:
        assert_bit_equal(everything(ours), everything(theirs))
        return
    which = f"parameter 1{' (bad)' * with_torchs} of group {len(ours.param_groups) - 1}, of shape (2, 6)"
    who = f"{class_of(name).__name__}: {which}"
    by_torch = not isinstance(error, ValueError) or (says is None and isinstance(their_error, ValueError))
    if by_torch:
        assert type(error) is type(their_error)
    if (type(error), str(error)) != (type(their_error), str(their_error)):
        assert str(error).lstrip("\"'").startswith(who)
        assert (says or "").format(first_state(ours)) in str(error)
        assert ("and torch refuses that" in str(error)) == by_torch

    count = len(params_of(ours))
    part = {count - 1, *((2, 3) if with_torchs else ())} if by_torch else set()  # torch's
    gos = [i for i in range(count) if i not in part]
    assert_bit_equal(some(everything(ours), gos), some(unspoilt, gos))
    assert_bit_equal(some(everything(ours), part), some(everything(theirs), part))

    repair()
    with ieee_sqrt():
        ours.step()
    train(ours, range(before + 1, before + 3))
    expected = make(oracle_of(name), with_torchs)
    train(expected, range(before + 3))
    assert_bit_equal(some(everything(ours), gos), some(everything(expected), gos))


def some(everything, indices):
    return [[values[i] for i in indices] for values in everything]


both = pytest.mark.parametrize("with_torchs", [False, True], ids=["", "with torch's"])


@every
@both
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("fault", GRADIENTS)
@pytest.mark.covering("fault before", "name before", "fault name")
def test_gradient(name, fault, before, with_torchs):
    change, says = GRADIENTS[fault]

    def spoil(opt, p):
        p.grad.data = change(p.grad.data)

    check(name, spoil, says, before, with_torchs)


@every
@both
@pytest.mark.parametrize("fault", STATES)
@pytest.mark.covering("name", "fault with_torchs")
def test_state(name, fault, with_torchs):
    change, says = STATES[fault]

    def spoil(opt, p):
        key = first_state(opt)
        opt.state[p] = opt.state[p] | {key: change(opt.state[p][key])}

    check(name, spoil, says, 2, with_torchs)


@every
@both
@pytest.mark.parametrize("fault", STEPS)
@pytest.mark.covering("name", "fault with_torchs")
def test_step_count(name, fault, with_torchs):
    if not rows.counts(name):
        pytest.skip(f"{name} does not count steps")

    def spoil(opt, p):
        opt.state[p] = opt.state[p] | {"step": STEPS[fault](torch.as_tensor(opt.state[p]["step"]))}

    check(name, spoil, None, 2, with_torchs)


@every
@both
def test_missing_state(name, with_torchs):
    def spoil(opt, p):
        opt.state[p] = {key: t for key, t in opt.state[p].items() if key != first_state(opt)}

    check(name, spoil, None, 2, with_torchs)


@every
def test_convertible_states_fall_back(name):
    """What torch converts stays converted, also after an error elsewhere in torch's step. Or both raise an error."""
    theirs, ours = map(make, both_classes(name))
    errors = []
    for opt in (theirs, ours):
        train(opt, range(2))
        for p in params_of(opt)[-2:]:
            keys = [key for key, t in opt.state[p].items() if t is not None]
            key = keys[-1] if keys else None
            opt.state[p][key] = opt.state[p][key].double()
        give_gradients(opt, 2)
        errors.append(error_of(opt))
        if errors[0] is None:
            train(opt, range(3, 4))
    assert type(errors[0]) is type(errors[1])
    if errors[0] is not None:  # goptim has stepped nothing, and torch the parameters before
        return
    assert_bit_equal(everything(ours), everything(theirs))


@every
def test_error_in_torchs_part_does_not_change_gos(name):
    needs_late_state(name)
    opt = make(class_of(name))
    train(opt, range(2))
    give_gradients(opt, 2)
    unsupported = Parameter(torch.randn(4).expand(3, 4))
    unsupported.grad = torch.randn(3, 4)
    opt.add_param_group({"params": [unsupported]})
    for _ in range(2):  # ADOPT's first step does not write to the parameter
        unspoilt, error = everything(opt), error_of(opt)
        if error is not None:
            break
    assert isinstance(error, RuntimeError)
    assert "more than one element of the written-to tensor" in str(error)
    assert_bit_equal(*([x[:-1] for x in values] for values in (everything(opt), unspoilt)))


@every
@pytest.mark.parametrize("before", [0, 1])
def test_error_of_scalars_precedes_torchs_part(name, before):
    """An lr that float32 cannot represent, in the first group, does not affect the second, which falls back."""
    needs_late_state(name)

    def make(cls):
        torch.default_generator.manual_seed(0)
        return cls([{"params": [Parameter(value)]} for value in (torch.randn(3), torch.randn(3, 2)[:, 0])])

    outcomes = []
    for cls in both_classes(name):
        opt = make(cls)
        train(opt, range(before))
        give_gradients(opt, before)
        for key in ("lr", "weight_decay"):
            opt.param_groups[0][key] = 1e39 if key in opt.param_groups[0] else 0
        unspoilt = everything(opt)
        versions = [p._version for p in opt.param_groups[1]["params"]]
        try:
            opt.step()
        except Exception as e:
            outcomes.append(type(e))
            if cls is class_of(name):
                assert_bit_equal(everything(opt), unspoilt)
                assert [p._version for p in opt.param_groups[1]["params"]] == versions
        else:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@every
def test_rates_that_only_the_constructor_rejects(name):
    with pytest.raises(ValueError, match=r"Invalid learning rate: -0\.1"):
        class_of(name)([Parameter(torch.ones(1))], lr=-0.1)
    theirs, ours = map(make, both_classes(name))
    for opt in (theirs, ours):
        for rate in (-0.1, 0, 1, float("inf"), float("nan")):
            opt.param_groups[0]["lr"] = rate
            train(opt, range(1))
    assert_bit_equal(everything(ours), everything(theirs))


@every
def test_closure_that_raises_changes_nothing(name):
    theirs, ours = (make(cls, with_torchs=True) for cls in both_classes(name))
    train(ours, range(2))
    before = everything(ours)

    def closure():
        assert torch.is_grad_enabled()
        raise ZeroDivisionError

    with torch.no_grad():
        with pytest.raises(ZeroDivisionError):
            ours.step(closure)
        assert not torch.is_grad_enabled()
    assert_bit_equal(everything(ours), before)
    train(ours, range(2, 4))
    train(theirs, range(4))
    assert_bit_equal(everything(ours), everything(theirs))


@every
@pytest.mark.parametrize("before", [0, 2])
def test_interrupt_before_go_leaves_a_valid_state(name, before, monkeypatch):
    """Python may raise KeyboardInterrupt between the creation of states and the call of Go that initializes them."""

    def interrupted_in(kind):
        step_groups = _core.step_groups

        def interrupted(*args):
            """It checks as usual, and raises where Go would step."""
            assert args[0] is kind
            done = step_groups(*args[:-1], 0)
            if type(done) is int:
                raise KeyboardInterrupt
            return done

        return interrupted

    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # uninitialized memory is NaN
    try:
        theirs, ours = map(make, both_classes(name))
        train(ours, range(before))
        give_gradients(ours, before)
        with monkeypatch.context() as patch:
            patch.setattr(_core, "step_groups", interrupted_in(kind=ours.kind.handle))
            with pytest.raises(KeyboardInterrupt):
                ours.step()
        train(ours, range(before, before + 2))
        train(theirs, range(before + 2))
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert_bit_equal(everything(ours), everything(theirs))


PROT_NONE, PROT_READ, PROT_READ_WRITE = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
CALLER, WORKERS = 64, 1 << 20  # elements, for one and for two threads


class Memory:
    """A page-aligned float32 array whose pages can be protected."""

    def __init__(self, n):
        self.map = mmap.mmap(-1, 4 * n)
        self.array = np.frombuffer(self.map, dtype=np.float32)
        self.address = self.array.ctypes.data

    def protect(self, protection, start=0):
        libc = ctypes.CDLL(None, use_errno=True)
        size = ctypes.c_size_t(len(self.map) - start)
        assert libc.mprotect(ctypes.c_void_p(self.address + start), size, protection) == 0


def table_of(columns, n, name):
    """A row of float32 over a parameter, a gradient, a step and states."""
    p, g, step, *states = (m.address for m in columns)
    return rows.table(rows.row(n, p, g, step * rows.counts(name), states[:4], rows.scalar_states(name)))


def scalars_of(name):
    """The scalars of the optimizer's default arguments, except for those that create a state."""
    opt = class_of(name)([Parameter(torch.ones(1))], **OPTIONS.get(name, {}))
    [group] = opt.param_groups
    return (*opt.kind.numbers(opt.options(group)), *opt.extra(group))


def call(name, table, n=1, threads=2):
    """Go's step of a table, or of one at an address, with the scalars of scalars_of."""
    address = table if isinstance(table, int) else ctypes.addressof(table)
    return call_groups(name, [(address, n)], scalars_of(name), threads)


def assert_the_next_step_is_right(name, *sizes):
    for n in sizes:
        opts = []
        for cls in both_classes(name):
            torch.default_generator.manual_seed(0)
            opts.append(cls([Parameter(torch.randn(n))], **OPTIONS.get(name, {})))
            train(opts[-1], range(2))
        assert_bit_equal(everything(opts[1]), everything(opts[0]))


# The cases of each class: every buffer with either protection, with one thread and with two.
FAULTS = {
    "parameter": ((PROT_NONE, CALLER), (PROT_READ, WORKERS)),
    "gradient": ((PROT_NONE, WORKERS), (PROT_READ, CALLER)),
    "step": ((PROT_NONE, CALLER), (PROT_READ, WORKERS)),
    "state": ((PROT_NONE, WORKERS), (PROT_READ, CALLER)),
}


@every
@pytest.mark.parametrize(
    ("column", "protection", "n"),
    [
        pytest.param(
            column, protection, n, id=f"{column}-{ {PROT_NONE: 'no access'}.get(protection, 'read-only') }-{n}"
        )
        for column, cases in FAULTS.items()
        for protection, n in cases
    ],
)
@pytest.mark.covering("column protection n", "name")
def test_fault_in_go_is_an_exception(name, n, column, protection, threads, to_go):
    i = ["parameter", "gradient", "step", "state"].index(column)
    i += (column == "state") * rows.scalar_states(name)
    if column == "step" and not rows.counts(name):
        pytest.skip(f"{name} does not count steps")
    threads(2)
    columns = [Memory(n) for _ in range(7)]
    columns[2].array[0] = 1  # ADOPT's first step uses only exp_avg_sq
    table = table_of(columns, n, name)
    columns[i].protect(protection)
    try:
        if protection is PROT_READ and column == "gradient":
            assert call(name, table) == 1
        else:
            with pytest.raises(RuntimeError, match=r"panic in Go.*invalid memory address"):
                call(name, table)
    finally:
        columns[i].protect(PROT_READ_WRITE)
    assert_the_next_step_is_right(name, n)


def share_of_workers(name, table):
    """The work of the other threads in 20 steps, relative to the caller's."""
    time.sleep(0.1)  # wait until torch's threads sleep
    own, all_threads = time.thread_time(), time.process_time()
    for _ in range(20):
        call(name, table)
    own, all_threads = time.thread_time() - own, time.process_time() - all_threads
    return (all_threads - own) / own


@every
def test_fault_in_the_last_chunk_of_many(name, threads, to_go):
    """One of two threads faults after most of the work is done."""
    threads(2)
    columns = [Memory(WORKERS) for _ in range(7)]
    table = table_of(columns, WORKERS, name)
    last_page = 4 * WORKERS - mmap.PAGESIZE
    for _ in range(20):
        columns[1].protect(PROT_NONE, last_page)
        with pytest.raises(RuntimeError, match="panic in Go"):
            call(name, table)
        columns[1].protect(PROT_READ_WRITE, last_page)
    assert call(name, table) == 1
    assert_the_next_step_is_right(name, CALLER, WORKERS)
    if len(os.sched_getaffinity(0)) > 1:
        # on a busy machine the workers may get no work in one round
        assert any(share_of_workers(name, table) > 0.1 for _ in range(100)), "the workers are idle"


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam", "Rprop"])
@pytest.mark.parametrize("n", [CALLER, WORKERS], ids=["caller", "workers"])
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_parameter_in_a_read_only_file(name, n, tmp_path, threads, to_go):
    threads(2)
    np.ones(n, dtype=np.float32).tofile(tmp_path / "weights")
    weights = np.memmap(tmp_path / "weights", dtype=np.float32, mode="r")
    opt = class_of(name)([p := Parameter(torch.from_numpy(weights))])
    p.grad = torch.ones(n)
    with pytest.raises(RuntimeError, match="panic in Go"):
        opt.step()
    assert (np.fromfile(tmp_path / "weights", dtype=np.float32) == 1).all()
    assert_the_next_step_is_right(name, n)


def unmapped():
    """An unmapped address that stays unmapped: the middle of the largest gap."""
    with open("/proc/self/maps") as maps:
        ranges = [[int(x, 16) for x in line.split()[0].split("-")] for line in maps]
    holes = [(b[0] - a[1], a[1]) for a, b in itertools.pairwise(ranges) if b[0] < 1 << 47]
    size, start = max(holes)
    return (start + size // 2) & ~0xFFF


# A field of a row, its value, and the message.
BAD_ROWS = {
    "count below 0": ("n", lambda: 2**64 - 1, "row 1: -1 elements"),
    "count too large": ("n", lambda: 1 << 62, r"row 1: \d+ elements"),
    "dtype 0": ("param_type", lambda: 0, "row 1: elements of none; expected float32,? (or )?float64"),
    "dtype 99": ("param_type", lambda: 99, "row 1: elements of dtype 99; expected float32,? (or )?float64"),
    "parameter 0": ("param", lambda: 0, "row 1: address 0x0 of the parameter"),
    "parameter in page 0": ("param", lambda: 4095, "row 1: address 0xfff of the parameter"),
    "parameter beyond all memory": ("param", lambda: 2**64 - 8, "row 1: address 0xfffffffffffffff8 of the parameter"),
    "parameter at the end of memory": (
        "param",
        lambda: 2**63 - 16,
        "row 1: address 0x7f{14}0 of the parameter",
    ),
    "parameter without an address of this machine": ("param", lambda: 1 << 56, "panic in Go"),
    "parameter where nothing is": ("param", unmapped, "panic in Go"),
    "gradient 0": ("grad", lambda: 0, "row 1: address 0x0 of the gradient"),
    "gradient where nothing is": ("grad", unmapped, "panic in Go"),
    "gradient of bfloat16": ("grad_type", lambda: 3, "row 1: a gradient of bfloat16; expected float32"),
    "parameter of float16": (
        "param_type",
        lambda: 4,
        "row 1: (elements of float16; expected float32|a gradient of float32; expected float16)",
    ),
    "state 0": ("state", lambda: 0, "row 1: address 0x0 of state 0"),
    "state where nothing is": ("state", unmapped, "panic in Go"),
}
BAD_STEPS = {
    "step 0": ("step", lambda: 0, "row 1: address 0x0 of the step"),
    "step where nothing is": ("step", unmapped, "panic in Go"),
    "step of dtype 0": ("step_type", lambda: 0, "row 1: the step of none; expected float32,? (or )?float64"),
    "step of dtype 7": ("step_type", lambda: 7, "row 1: the step of dtype 7; expected float32,? (or )?float64"),
}


@every
@pytest.mark.parametrize("what", BAD_ROWS | BAD_STEPS)
@pytest.mark.covering("name", "what")
def test_bad_row(name, what, to_go):
    if what in BAD_STEPS and not rows.counts(name):
        pytest.skip(f"{name} does not count steps")
    field, value, says = (BAD_ROWS | BAD_STEPS)[what]
    good, bad = ([Memory(CALLER) for _ in range(7)] for _ in range(2))
    good[2].array[0] = bad[2].array[0] = 1  # as above
    table = rows.table(*table_of(good, CALLER, name), *table_of(bad, CALLER, name))
    if field == "state":  # the first one that is a column
        first = rows.scalar_states(name)
        table[1].state[first], says = value(), says.replace("state 0", f"state {first}")
    else:
        setattr(table[1], field, value())
    with pytest.raises(RuntimeError, match=says):
        call(name, table, 2)
    if "panic" not in says:
        assert [m.array.sum() for m in (*good, *bad)] == [0, 0, 1, 0, 0, 0, 0] * 2
    assert_the_next_step_is_right(name, CALLER)


@every
def test_bad_row_of_one_group_of_several(name, to_go):
    good, bad = ([Memory(CALLER) for _ in range(7)] for _ in range(2))
    tables = [table_of(good, CALLER, name), table_of(bad, CALLER, name)]
    tables[1][0].param = 0
    with pytest.raises(RuntimeError, match=r"table 1: .*row 0: address 0x0 of the parameter"):
        call_groups(name, [(ctypes.addressof(table), 1) for table in tables], scalars_of(name))
    assert not any(m.array.any() for m in [*good, *bad])


@every
def test_bad_groups(name):
    with pytest.raises(RuntimeError, match=r"group 0 has 3 scalars, expected \d"):
        call_groups(name, [(4096, 0)], (1.0, 2.0, 3.0))
    for address in (0, 16, 4099, -8):
        with pytest.raises(RuntimeError, match=f"group 0 is at {address:#x}"):
            _core.Step(_core.Kind(name), address, 1)


class LooksLikeANumber:
    def __float__(self):
        raise TypeError("it is not")


def test_scalars_that_are_not_numbers():
    p = Parameter(torch.ones(2))

    def ask(*scalars):
        """Whether C takes scalars: of a group by their keys, of a sequence, and beside it."""
        keys = tuple((f"x{i}", -1, 0, False, None) for i in range(len(scalars)))
        elements = tuple(("xs", i, len(scalars), False, None) for i in range(len(scalars)))
        group = {f"x{i}": x for i, x in enumerate(scalars)}
        answers = [
            _core.step_groups(
                _core.make_kind(0, described, (), None, False, (), None, False, False),
                None,
                (torch.Tensor, Parameter),
                {},
                (((p,), *of),),
                0,
            )
            for described, of in ((keys, (group, ())), (elements, ({"xs": scalars}, ())), ((), ({}, scalars)))
            if len(scalars) <= 16 or not described
        ]
        assert all(answer == answers[0] for answer in answers)
        return answers[0]

    for number in (0.5, 2, True, float("nan"), np.float64(0.5)):
        assert ask(0.5, number) == 0
    for unsupported in (
        np.float32(0.5),
        np.int64(3),
        Fraction(1, 3),
        Decimal("0.1"),
        None,
        "1",
        b"1",
        bytearray(b"1"),
        torch.tensor(1.0),
        p,
        1j,
        [1.0],
        LooksLikeANumber(),
    ):
        assert ask(0.5, unsupported) == b"\2"
    with pytest.raises(ValueError, match="29 scalars, expected up to 28"):
        ask(*[0.5] * 29)
    assert ask((1 << 63) - 1, -(1 << 63)) == 0
    for large in (1 << 63, -(1 << 63) - 1, 10**400):
        assert ask(0.5, large) == b"\2"


def test_bad_kinds():
    for kind in (-1, 99):
        with pytest.raises(RuntimeError, match=f"kind {kind}, expected one of {len(rows.KINDS)}"):
            _core.Step(kind, 4096, 1)
    with pytest.raises(RuntimeError, match='no kind "Madam"'):
        _core.Kind("Madam")


@every
def test_bad_table(name, to_go):
    columns = [Memory(CALLER) for _ in range(7)]
    table = table_of(columns, CALLER, name)
    address = ctypes.addressof(table)
    for where, n, says in [
        (address, -1, "a table of -1 rows"),
        (0, 1, "a table of 1 rows at 0x0"),
        (16, 1, "a table of 1 rows at 0x10"),
        (address + 4, 1, "a table of 1 rows at"),
        (unmapped(), 1, "panic in Go"),
        (address, 1 << 62, "panic in Go"),
    ]:
        with pytest.raises(RuntimeError, match=says):
            call(name, where, n)
    assert not any(m.array.any() for m in columns)
    assert call(name, 0, 0) == 0
    for threads in (-(2**63), -1, 0, 1, 2**63 - 1):
        assert call(name, table, threads=threads) == 1
