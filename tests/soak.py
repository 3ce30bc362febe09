"""A long run with random changes of everything that a user can change, compared with torch bit for bit.

``python tests/soak.py --steps 100000 --tensors 200`` prints its progress, the memory and threads of the process, and
its seed. ``--seed`` and a single ``--optimizer`` repeat a run. Parameters are compared after every step, and states and
groups every 20 steps and after events that change them. A difference is reported with the preceding events.
"""

import argparse
import collections
import copy
import ctypes
import gc
import inspect
import io
import math
import os
import pickle
import random
import sys
import time
from collections.abc import Callable

import torch
from configurations import CLASSES, accepts_complex, both_classes, for_loop_flags
from torch import Tensor
from torch.nn import Parameter

from goptim._step import GoStep
from goptim.testing import assert_bit_equal, ieee_sqrt

OPTIMIZERS = [name for name, c in CLASSES.items() if isinstance(c, type) and issubclass(c, GoStep)]
# torch 2.6's Adagrad creates states only in the constructor, and not for groups that are added later.
if "len(state)" not in inspect.getsource(torch.optim.Adagrad._init_group):
    OPTIMIZERS.remove("Adagrad")

# With these, all other options of a group are valid. torch rejects the other two only in the constructor.
SPARSE = {"SparseAdam": {}, "SGD": {"momentum": 0, "weight_decay": 0}, "Adagrad": {"weight_decay": 0}}

# Values of a group's options that may change between steps.
VALUES = {
    "lr": [1e-4, 1e-3, 0.0123, 0.1, 0.0, 1, torch.tensor(0.01)],
    "weight_decay": [0, 0.01, 0.037],
    "betas": [(0.9, 0.999), (0.2, 0.95), (0.5, 0.807)],
    "beta1": [0.9, 0.2],
    "beta2": [0.99, 0.807],
    "eps": [1e-8, 1e-3],
    "rho": [0.9, 0.3],
    "alpha": [0.99, 0.3],
    "lambd": [1e-4, 0.11],
    "t0": [1e6, 40],
    "etas": [(0.5, 1.2), (0.1, 1.7)],
    "step_sizes": [(1e-6, 50), (5e-3, 0.02)],
    "momentum_decay": [4e-3, 0.3],
    "beta2_decay": [-0.8, -0.3],
    "d": [1.0, 1.7],
    "lr_decay": [0, 0.11],
    "dampening": [0, 0.3],
    "maximize": [False, True],
    "nesterov": [False, True],
    "decoupled_weight_decay": [False, True],
    "max_lr": [0.1, 0.7],
    "momentum": [0, 0.5, 0.9],
    "ns_steps": [1, 5],
    "warmup_steps": [0, 7, 2.5],
    "r": [0.0, 1, 0.7],
    "weight_lr_power": [2.0, 0, 0.5],
    "silent_sgd_phase": [False, True],
    "k": [0, 3, 100],
    "weight_sum": [0.0, 1.5],
    "lr_max": [-1.0, 0.02],
    "clip_exp": [0.333, None],
    "decouple": [False, True],
    "decoupled": [False, True],
    "corrected_weight_decay": [False, True],
    "caution": [False, True],
    "bias_correction": [True, False],
    "grad_averaging": [True, False],
    "max_grad_norm": [1.0, 1e3, None],
    "trust_coeff": [1e-3, 0.1],
    "trust_clip": [False, True],
    "always_adapt": [False, True],
    "clipping_threshold": [None, 0.3, 1.0],
    "max_lr_snapshot": [0.0123, 1],
    "decoupled_decay": [False, True],
    "lr_in_momentum": [False, True],
    "no_prox": [False, True],
    "step": [0, 3, 100],
    "t_alpha": [None, 100],
    "t_alpha_beta3": [None, 100],
    "t_beta3": [None, 50.5],
    "weight_decouple": [False, True],
    "fixed_decay": [False, True],
    "beta3": [None, 0.7],
    "use_bias_correction": [False, True],
    "safeguard_warmup": [False, True],
    "d0": [1e-6, 0.01],
    "d_max": [0.01, 0.1],
    "d_numerator": [0.0, 1.5],
    "d_coef": [1.0, 0.5],
    "growth_rate": [math.inf, 1.02],
}
# Flags that decide which states exist: only for new groups.
FLAGS = {"amsgrad": [False, True], "centered": [False, True], "decouple_lr": [False, True], "slice_p": [1, 3]}
FLAGS |= {"decouple_wd": [False, True], "torch_init": [False, True]}

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Options that the groups of these do not change. All groups of Prodigy have the same lr. VALUES has Prodigy's beta3.
OWN = (("eps", "Adafactor"), ("lr", "Prodigy"), ("beta3", "OptimiAdan"))


class Difference(AssertionError):
    """A difference from torch, and the preceding events."""


def same_bits(a: object, b: object) -> bool:
    """A quick check. False may mean two NaNs with different bits, which assert_bit_equal decides."""
    if type(a) is not Tensor and type(a) is not Parameter:
        return False
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = _INTEGERS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


def with_layout(t: Tensor, how: str) -> Tensor:
    """A copy of a tensor with other strides."""
    if how == "transposed" and t.dim() == 2:
        return t.t().contiguous().t()
    if how == "channels last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last).clone(memory_format=torch.preserve_format)
    if how == "with gaps" and t.dim():
        wide = torch.zeros(2 * t.shape[0], *t.shape[1:], dtype=t.dtype)
        wide[::2] = t
        return wide[::2]
    if how == "in larger memory":
        return torch.cat([t.new_zeros(5), t.reshape(-1), t.new_zeros(3)])[5 : 5 + t.numel()].view(t.shape)
    return t.contiguous().clone()


class Pair:
    """An optimizer of goptim and of torch, with equal parameters, and the events that are applied to both."""

    def __init__(self, name: str, tensors: int, seed: object) -> None:
        self.name = name
        self.random = random.Random(f"{seed} {name}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(40))
        self.classes = both_classes(name)[::-1]
        self.steps = 0
        self.history: collections.deque[str] = collections.deque(maxlen=60)
        self.counts: collections.Counter[str] = collections.Counter()
        self.sick: dict[int, int] = {}  # parameters with a NaN, and the step at which it is removed
        self.grads: list[Tensor | None] = []
        self.sparse: set[int] = set()
        self.params: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.opts: list[torch.optim.Optimizer] = []
        first = self.more_params(tensors - tensors // 4, sparse=name in SPARSE)
        has = inspect.signature(self.classes[1]).parameters
        fixed = SPARSE.get(name, {"weight_decay": 0.037} if "weight_decay" in has else {})
        for side, flags in enumerate(({}, for_loop_flags(name))):
            self.opts.append(self.classes[side]([self.params[side][i] for i in first], **fixed, **flags))
        while len(self.params[0]) < tensors:
            self.add_group()
        self.events: list[tuple[int, Callable[[], str | None]]] = [
            (40, self.drop_gradients),
            (20, self.zero_gradients),
            (15, self.strided_gradients),
            (10, self.no_gradients),
            (30, self.change_option),
            (6, self.turn_group),
            (20, self.swap_data),
            (8, self.other_threads),
            (6, self.cross_load),
            (6, self.duplicate),
            (6, self.poison),
            (6, self.forget_state),
            (4, self.replace_state),
        ]

    # Parameters and gradients

    def value(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=self.generator)

    def more_params(self, n: int, sparse: bool = False) -> list[int]:
        """Create parameters of all kinds for both, and return their description."""
        pick = self.random.choice
        first = len(self.params[0])
        for i in range(first, first + n):
            layout = "plain"
            dtype = pick([torch.float32] * 6 + [torch.float64] * 3)
            if self.name == "Muon":
                shape = pick([(8, 8), (5, 3), (3, 12), (1, 7), (16, 16)])
                layout = pick(["plain", "plain", "transposed", "with gaps"])
            elif sparse:
                shape = pick([(30, 4), (7, 3), (100, 16), (5, 1), (2, 3, 4)])
            else:
                shape = pick([(3, 4), (17,), (64,), (8, 8), (), (1,), (2, 3, 4, 5), (40, 25), (100,), (0,), (20000,)])
                layout = pick(["plain"] * 5 + ["transposed", "channels last", "with gaps", "in larger memory"])
                dtype = pick([dtype] * 9 + [torch.complex64])
                if self.name == "Adafactor" and (dtype.is_complex or shape == (0,)):
                    shape, dtype = (9, 5), torch.float32
                if self.name == "LAMB" and shape == ():  # timm raises an error if others are wider
                    dtype = torch.float64
                if self.name == "Rprop" and dtype.is_complex:  # slow in torch, with a warning
                    dtype = torch.float32
                if dtype.is_complex and not accepts_complex(self.name):
                    dtype = torch.float32
            value = self.value(shape, dtype)
            for side in self.params:
                side.append(Parameter(with_layout(value, layout)))
            self.grads.append(None)
            if sparse:
                self.sparse.add(i)
        return list(range(first, first + n))

    def gradient(self, i: int) -> Tensor:
        p = self.params[0][i]
        scale = 10.0 ** self.random.randint(-2, 1)
        if i in self.sparse and (self.name == "SparseAdam" or self.random.random() < 0.8):
            rows = self.random.randint(0, 2 * p.shape[0])
            indices = torch.randint(0, p.shape[0], (1, rows), generator=self.generator)
            g = torch.sparse_coo_tensor(
                indices, self.value((rows, *p.shape[1:]), p.dtype) * scale, p.shape, check_invariants=True
            )
            return g.coalesce() if self.random.random() < 0.3 else g
        return torch.empty_like(p, requires_grad=False).copy_(self.value(tuple(p.shape), p.dtype) * scale)

    def some(self, most: int) -> list[int]:
        alive = self.alive()
        return self.random.sample(alive, min(len(alive), self.random.randint(1, most)))

    def alive(self) -> list[int]:
        """The parameters of all groups."""
        return self._alive

    def index(self) -> None:
        at = {id(p): i for i, p in enumerate(self.params[0])}
        self._groups = [[at[id(p)] for p in group["params"]] for group in self.opts[0].param_groups]
        self._alive = [i for group in self._groups for i in group]

    def give(self) -> None:
        for side in self.params:
            for p, g in zip(side, self.grads, strict=True):
                p.grad = g

    # Events. Each changes both, and returns a description.

    def drop_gradients(self) -> str:
        chosen = self.some(30)
        for i in chosen:
            self.grads[i] = None
        return f"no gradients of {chosen}"

    def no_gradients(self) -> str:
        self.grads = [None] * len(self.grads)
        in_place = self.random.random() < 0.5
        for opt in self.opts:
            opt.zero_grad(set_to_none=not in_place)
        if in_place:
            self.grads = [p.grad for p in self.params[0]]
        return f"zero_grad(set_to_none={not in_place})"

    def zero_gradients(self) -> str:
        chosen = self.some(20)
        for i in chosen:
            if self.grads[i] is not None:
                self.grads[i].zero_()
        return f"gradients zeroed in place of {chosen}"

    def strided_gradients(self) -> str | None:
        """Gradients with other strides than the parameter."""
        chosen = [i for i in self.some(10) if i not in self.sparse]
        how = self.random.choice(["transposed", "with gaps", "channels last", "in larger memory"])
        for i in chosen:
            self.grads[i] = with_layout(self.gradient(i), how)
        return f"gradients {how} of {chosen}"

    def change_option(self) -> str | None:
        at = self.random.randrange(len(self._groups))
        group = self.opts[0].param_groups[at]
        fixed = SPARSE.get(self.name, {}) if self.sparse.intersection(self._groups[at]) else {}
        keys = [k for k in VALUES if k in group and k not in fixed]
        keys = [k for k in keys if (k, self.name) not in OWN]
        if self.name == "RMSprop":
            keys.remove("momentum")
        key = self.random.choice(keys)
        value = self.random.choice(VALUES[key])
        if key == "betas":
            value = (*value, 0.9)[: len(group[key])]
        if key == "maximize" and self.name == "SGD" and fixed:
            return None
        for opt in self.opts:
            opt.param_groups[at][key] = copy.copy(value)
        return f"group {at}: {key} = {value}"

    def turn_group(self) -> str:
        """Remove the last group, and add others."""
        if len(self._groups) > 1:
            gone = self._groups[-1]
            for side, opt in enumerate(self.opts):
                del opt.param_groups[-1]
                for i in gone:
                    opt.state.pop(self.params[side][i], None)
            keep = [i for i in range(len(self.params[0])) if i not in set(gone)]
            self.sparse = {new for new, old in enumerate(keep) if old in self.sparse}
            self.sick = {new: self.sick[old] for new, old in enumerate(keep) if old in self.sick}
            self.params = tuple([side[i] for i in keep] for side in self.params)  # type: ignore[assignment]
            self.grads = [self.grads[i] for i in keep]
            missing = len(gone)
        else:
            missing = 3
        while missing > 0:
            missing -= self.add_group(missing)
        return f"groups are now {[len(g['params']) for g in self.opts[0].param_groups]}"

    def add_group(self, most: int = 20) -> int:
        new = self.more_params(self.random.randint(1, min(most, 20)), sparse=self.name == "SparseAdam")
        defaults = self.opts[0].defaults
        options = {
            k: self.random.choice(v)
            for k, v in (VALUES | FLAGS).items()
            if k in defaults and self.random.random() < 0.3 and (k, self.name) not in OWN
        }
        if "betas" in options:
            options["betas"] = (*options["betas"], 0.9)[: len(defaults["betas"])]
        if options.get("nesterov"):
            options.pop("nesterov")
        if options.get("decouple_lr"):
            options["max_lr"] = 0.7
        for side, opt in enumerate(self.opts):
            opt.add_param_group({"params": [self.params[side][i] for i in new], **copy.deepcopy(options)})
        self.index()
        return len(new)

    def swap_data(self) -> str:
        chosen = self.some(8)
        how = self.random.choice(["plain", "in larger memory", "transposed"])
        if self.sparse:
            how = "plain"
        for i in chosen:
            for side in self.params:
                side[i].data = with_layout(side[i].data, how)
        return f"memory of {chosen} replaced: {how}"

    def other_threads(self) -> str:
        n = self.random.randint(1, 3)
        torch.set_num_threads(n)
        return f"{n} threads"

    def cross_load(self) -> str:
        """Continue with new optimizers, each from the state that the other one saved."""
        saved = [through_a_file(opt.state_dict()) for opt in self.opts]
        for side, opt in enumerate(self.opts):
            new = type(opt)([{"params": group["params"]} for group in opt.param_groups])
            new.load_state_dict(saved[1 - side])
            self.opts[side] = new
        return "state loaded from the other"

    def duplicate(self) -> str:
        """Continue with copies of everything."""
        how = self.random.choice(["deepcopy", "pickle", "torch.save"])
        copies = []
        for side, opt in enumerate(self.opts):
            for p in self.params[side]:
                p.grad = None
            both = self.params[side], opt
            if how == "deepcopy":
                both = copy.deepcopy(both)
            elif how == "pickle":
                both = pickle.loads(pickle.dumps(both))
            else:
                both = through_a_file(both, weights_only=False)
            copies.append(both)
        self.params = tuple(params for params, _ in copies)  # type: ignore[assignment]
        self.opts = [opt for _, opt in copies]
        self.index()
        return how

    def poison(self) -> str:
        chosen = [i for i in self.some(3) if self.params[0][i].numel()]
        bad = self.random.choice([float("nan"), float("inf"), -float("inf"), 1e30, 1e-40])
        for i in chosen:
            g = self.gradient(i)
            if g.is_sparse:
                g._values().fill_(bad)
            else:
                g.view(-1)[0:1].fill_(bad) if g.is_contiguous() else g.fill_(bad)
            self.grads[i] = g
            self.sick[i] = self.steps + self.random.randint(1, 4)
        return f"{bad} in the gradients of {chosen}"

    def heal(self) -> None:
        chosen = [i for i, step in self.sick.items() if step <= self.steps]
        for i in chosen:
            del self.sick[i]
            self.grads[i] = None
            p = self.params[0][i]
            value = self.value(tuple(p.shape), p.dtype)
            with torch.no_grad():
                for side, opt in enumerate(self.opts):
                    self.params[side][i].copy_(value)
                    for t in opt.state.get(self.params[side][i], {}).values():
                        if isinstance(t, Tensor) and t.dim():
                            t.copy_(torch.where(t.isfinite() & (t.abs() < 1e15), t, torch.zeros_like(t)))
        if chosen:
            self.say("heal", f"new values for {chosen}")

    def forget_state(self) -> str | None:
        if self.name == "Adagrad":  # torch 2.6 creates it only in the constructor
            return None
        chosen = self.some(4)
        for i in chosen:
            for side, opt in enumerate(self.opts):
                opt.state.pop(self.params[side][i], None)
        return f"states of {chosen} forgotten"

    def replace_state(self) -> str:
        chosen = self.some(10)
        for i in chosen:
            for side, opt in enumerate(self.opts):
                state = opt.state.get(self.params[side][i], {})
                state.update({k: t.clone() for k, t in state.items() if isinstance(t, Tensor)})
        return f"memory of the states of {chosen} replaced"

    # The run

    def say(self, event: str, what: str) -> None:
        self.counts[event] += 1
        self.history.append(f"  step {self.steps}: {what}")

    def step(self) -> None:
        for i in self.random.sample(self._alive, max(1, len(self._alive) // 20)):
            self.grads[i] = self.gradient(i)
        whole = self.steps % 20 == 0
        if self.random.random() < 0.3:
            [event] = self.random.choices([e for _, e in self.events], [weight for weight, _ in self.events])
            what = event()
            if what is not None:
                self.say(event.__name__, what)
                whole = whole or event.__name__ in ("cross_load", "duplicate", "forget_state")
        self.heal()
        self.give()
        closure = self.random.random() < 0.1
        results = []
        for side, opt in enumerate(self.opts):
            results.append(opt.step(self.closure(side)) if closure else opt.step())
        self.steps += 1
        self.compare(results, whole)

    def closure(self, side: int) -> Callable[[], Tensor]:
        self.say("closure", "a closure")
        params = self.params[side]
        chosen = [] if self.name == "SparseAdam" else [i for i in self._alive[:5] if i not in self.sparse]
        if any(params[i].dtype.is_complex for i in chosen):
            chosen = []

        def evaluate() -> Tensor:
            assert torch.is_grad_enabled()
            for i in chosen:
                params[i].grad = None
            loss = sum(((params[i] - 1) ** 2).sum() for i in chosen) if chosen else torch.zeros((), requires_grad=True)
            loss.backward()
            return loss.detach()

        return evaluate

    def compare(self, results: list[object], whole: bool) -> None:
        try:
            assert_bit_equal(results[0], results[1], "what step returned")
            with torch.no_grad():
                for i, (a, b) in enumerate(zip(*self.params, strict=True)):
                    if not same_bits(a, b):
                        assert_bit_equal(a, b, f"parameter {i}")
                if whole:
                    self.compare_states()
        except AssertionError as e:
            counts = ", ".join(f"{n} {event}" for event, n in self.counts.most_common())
            raise Difference(
                f"{self.name} differs after step {self.steps - 1}: {e}\nThe last events, of {counts}:\n"
                + "\n".join(self.history)
            ) from None

    def compare_states(self) -> None:
        ours, theirs = self.opts
        left_out = ("params", "foreach", "fused", "triton")
        groups = [[{k: v for k, v in g.items() if k not in left_out} for g in o.param_groups] for o in self.opts]
        assert_bit_equal(groups[0], groups[1], "param_groups")
        for i, (p, q) in enumerate(zip(*self.params, strict=True)):
            a, b = ours.state.get(p, {}), theirs.state.get(q, {})
            if list(a) != list(b):
                raise AssertionError(f"state of parameter {i}: keys {list(a)}, expected {list(b)}")
            for key in b:
                if not same_bits(a[key], b[key]):
                    assert_bit_equal(a[key], b[key], f"state {key!r} of parameter {i}")
            if i not in self.sick and (not p.isfinite().all() or (p.abs() > 1e12).any()):
                self.sick[i] = self.steps
        if len(ours.state) != len(theirs.state):
            raise AssertionError(f"{len(ours.state)} states, expected {len(theirs.state)}")


def through_a_file(x: object, weights_only: bool = True) -> object:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


class Use:
    """The resident memory in MiB, the number of threads, and Python's allocated blocks."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/statm") as statm:
            self.memory = int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
        self.threads = len(os.listdir("/proc/self/task"))
        self.blocks = sys.getallocatedblocks()

    def __str__(self) -> str:
        return f"{self.memory:.1f} MiB, {self.threads} threads, {self.blocks} blocks"


def soak(
    names: list[str],
    steps: int,
    tensors: int,
    seed: object,
    turn: int = 100,
    say: Callable[[str], None] = lambda line: None,
    points: int = 10,
) -> list[Use]:
    """Step the optimizers in turns. Return the resources in use from the first tenth of the steps on.

    Raises:
        Difference: a result differs from torch's.
    """
    before = torch.get_num_threads()
    start = time.perf_counter()
    uses: list[Use] = []
    with ieee_sqrt():
        try:
            pairs = [Pair(name, tensors, seed) for name in names]
            done, at = 0, 0
            while done < steps:
                n = min(turn, steps - done)
                for _ in range(n):
                    pairs[at % len(pairs)].step()
                at += 1
                done += n
                if done * points >= steps * (len(uses) + 1):
                    uses.append(Use())
                    events = sum(sum(t.counts.values()) for t in pairs)
                    say(f"{done} steps, {events} events, {time.perf_counter() - start:.0f} s, {uses[-1]}")
            for t in pairs:
                t.compare([None, None], whole=True)
        finally:
            torch.set_num_threads(before)
    return uses


def growth(uses: list[Use]) -> str | None:
    """The resources that have grown from the second measurement on, beyond fluctuations."""
    first, rest = uses[1], uses[len(uses) // 2 :]
    if min(u.memory for u in rest) > first.memory + 8:
        return "memory"
    if min(u.threads for u in rest) > first.threads + 4:
        return "threads"
    if min(u.blocks for u in rest) > 1.02 * first.blocks + 2000:
        return "blocks of Python's memory"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000, help="of all optimizers together")
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="random, and printed, by default")
    parser.add_argument("--optimizer", action="append", choices=OPTIMIZERS, help="may be repeated; all by default")
    args = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if args.seed is None else args.seed
    names = args.optimizer or OPTIMIZERS
    print(f"torch {torch.__version__}, seed {seed}, {', '.join(names)}", flush=True)
    try:
        uses = soak(names, args.steps, args.tensors, seed, say=lambda line: print(line, flush=True), points=20)
    except Difference as e:
        sys.exit(f"{e}\nseed {seed}: --seed {seed} --tensors {args.tensors}")
    grown = growth(uses)
    if grown:
        sys.exit(f"{grown} grew: {uses[1]}, then {uses[-1]}")
    print("exact in every step; no resource grew")


if __name__ == "__main__":
    main()
