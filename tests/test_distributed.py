"""goptim in two processes that train together: DTensors, DDP, ZeRO, FSDP and checkpoints, over gloo.

Every test does the same with torch's class and goptim's on both ranks, and compares bit for bit. The two processes are
shared by the module, because importing torch and connecting takes seconds.
"""

import collections
import contextlib
import functools
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from configurations import ELEMENTWISE, both_classes
from counting import rows_of_lists, rows_per_call
from torch.nn import Parameter

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo")

RANKS = 2
PATIENCE = 20  # seconds per test, after which both ranks are killed
PATIENCE_AT_START = 120
OPTIONS = {"SGD": {"lr": 0.1, "momentum": 0.9}}
OLD = torch.__version__.startswith("2.6.")

every = pytest.mark.parametrize("name", ELEMENTWISE)
few = pytest.mark.parametrize("name", ["AdamW", "SGD", "ASGD"])


class Ranks:
    """Processes of a process group. A call runs a function of this module in each of them."""

    def __init__(self):
        self.processes = []

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        pipes = [context.Pipe() for _ in range(RANKS)]
        self.connections = [ours for ours, _ in pipes]
        args = [(rank, theirs, self.folder.name) for rank, (_, theirs) in enumerate(pipes)]
        self.processes = [context.Process(target=serve, args=a, daemon=True) for a in args]
        for process in self.processes:
            process.start()

    def stop(self):
        for process in self.processes:
            process.kill()
            process.join()
        if self.processes:
            self.folder.cleanup()
        self.processes = []

    def __call__(self, function, *args):
        end = time.monotonic() + PATIENCE
        if not self.processes:
            self.start()
            end += PATIENCE_AT_START
        errors = {}
        try:
            for connection in self.connections:
                connection.send((function, args))
            for rank, connection in enumerate(self.connections):
                if not connection.poll(max(0, end - time.monotonic())):
                    errors[rank] = "it hangs"
                elif (error := connection.recv()) is not None:
                    errors[rank] = error
        except (EOFError, OSError) as e:
            errors[RANKS] = f"a rank has died: {e}"
        if errors:
            self.stop()  # they may be at different positions now
            pytest.fail("\n".join(f"rank {rank}: {error}" for rank, error in errors.items()), pytrace=False)


def serve(rank, connection, folder):
    """The loop of a rank: run what it receives, and answer None or a traceback."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    with contextlib.suppress(EOFError):
        while True:
            function, args = connection.recv()
            try:
                torch.default_generator.manual_seed(0)
                with ieee_sqrt():
                    function(*args)
                dist.barrier()
                connection.send(None)
            except BaseException:
                connection.send(traceback.format_exc())


@pytest.fixture(scope="module")
def ranks():
    ranks = Ranks()
    yield ranks
    ranks.stop()


@functools.cache
def mesh():
    return dist.device_mesh.init_device_mesh("cpu", (RANKS,))


def params_of(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def plain(x):
    """Tensors, and of DTensors the placements and the local shard."""
    from torch.distributed.tensor import DTensor

    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, DTensor):
        part = x.detach().to_local()
        return ["DTensor", str(x.placements), tuple(x.shape), part.stride(), part.clone()]
    return x.detach().clone() if isinstance(x, torch.Tensor) else x


def everything(opt):
    return plain([params_of(opt), [opt.state.get(p, {}) for p in params_of(opt)]])


def dtensor(shape, placements, dtype=torch.float32, scale=1.0):
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(torch.randn(shape, dtype=dtype) * scale, mesh(), placements)


def placed():
    """Parameters of every kind: shards that differ by one row, or have all rows, or none."""
    from torch.distributed.tensor import Replicate, Shard

    return [
        Parameter(dtensor((5, 3), [Shard(0)])),
        Parameter(dtensor((1, 4), [Shard(0)])),
        Parameter(dtensor((4, 8 if OLD else 7), [Shard(1)])),  # in torch 2.6 a padded shard has gaps
        Parameter(dtensor((300, 33), [Shard(0)])),
        Parameter(dtensor((8,), [Shard(0)], torch.float64)),
        Parameter(dtensor((6, 5), [Replicate()])),
        Parameter(dtensor((), [Replicate()])),
    ]


def train_dtensors(optimizer, name, make=placed, steps=3, grad=None, between=lambda i, opt: None, part=lambda t: t):
    """Train DTensors; or, with ``part``, their local shards."""
    torch.default_generator.manual_seed(1)
    wholes = make()
    placements = [p.placements for p in wholes]
    opt = optimizer([Parameter(part(p.detach())) for p in wholes], **OPTIONS.get(name, {}))
    for i in range(steps):
        for p, whole, at in zip(params_of(opt), wholes, placements, strict=True):
            g = dtensor(whole.shape, at, whole.dtype, 10.0 ** (i - 1))
            p.grad = part(grad(g) if grad else g)
        opt.step()
        between(i, opt)
    return opt


def here(t):
    return t.to_local().clone()


def step_dtensors(name):
    theirs, optimizer = both_classes(name)
    with rows_per_call() as calls:
        ours = train_dtensors(optimizer, name)
        assert calls == [len(params_of(ours))] * 3, calls
    if name != "Rprop":  # torch's own class cannot step all DTensors
        assert_bit_equal(everything(ours), everything(train_dtensors(theirs, name)))
    assert_like_shards(ours, train_dtensors(theirs, name, part=here))


def assert_like_shards(ours, parts):
    for p, part in zip(params_of(ours), params_of(parts), strict=True):
        assert_bit_equal(here(p.detach()), part)
        for key, t in ours.state[p].items():
            assert_bit_equal(here(t) if hasattr(t, "to_local") else t, parts.state[part][key])


@every
def test_dtensors_run_in_go(name, ranks):
    ranks(step_dtensors, name)


def of_bfloat16():
    return [Parameter(p.detach().bfloat16()) for p in placed()[:4]]


def step_dtensors_of_bfloat16(name):
    """As local shards on their own, which test_half.py compares with torch."""
    optimizer = both_classes(name)[1]
    with rows_per_call() as calls:
        ours = train_dtensors(optimizer, name, make=of_bfloat16)
    assert calls == [4] * 3, calls
    assert_like_shards(ours, train_dtensors(optimizer, name, make=of_bfloat16, part=here))


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_dtensors_of_bfloat16_run_in_go(name, ranks):
    ranks(step_dtensors_of_bfloat16, name)


def version_counters(name):
    ours = train_dtensors(both_classes(name)[1], name)
    tensors = [t for p in params_of(ours) for t in (p, *ours.state[p].values()) if getattr(t, "ndim", 0)]
    tensors += [t._local_tensor for t in tensors]
    before = [t._version for t in tensors]
    p = params_of(ours)[0]
    for saved in (lambda: p, lambda: p.to_local()):
        square = saved().pow(2).sum()
        ours.step()
        with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
            square.backward()
    assert all(t._version > v for t, v in zip(tensors, before, strict=True))


@every
def test_versions_of_dtensors_and_shards(name, ranks):
    ranks(version_counters, name)


def pairs_to_average():
    """DTensors of all kinds and others, each with what it is averaged with."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    torch.manual_seed(1)
    pairs = [(p.detach(), dtensor(p.shape, p.placements, p.dtype)) for p in placed()]
    pairs += [
        (torch.randn(5), torch.randn(5)),
        (torch.randn(5, dtype=torch.bfloat16), torch.randn(5, dtype=torch.bfloat16)),
        (dtensor((4, 6), [Shard(0)]), dtensor((4, 6), [Replicate()])),  # redistributed by torch
        (dtensor((4, 6), [Shard(0)]), dtensor((4, 6), [Shard(0)], torch.float64).float()),
        (dtensor((3,), [Replicate()]), DTensor.from_local(torch.randn(3), mesh(), [Partial()], run_check=False)),
    ]
    return pairs


def polyak(a, p, x):
    a.mul_(1 - x)
    a.add_(p, alpha=x)


AVERAGES = {
    "lerp": (goptim.ema_, lambda a, p, x: a.lerp_(p, 1 - x)),
    "mul_add": (
        functools.partial(goptim.ema_, form="mul_add"),
        lambda a, p, x: a.copy_(x * a + (1 - x) * p),
    ),
    "polyak": (lambda a, p, x: goptim.polyak_update(p, a, x), polyak),
}


def average(form):
    ours, theirs = AVERAGES[form]
    pairs, expected = pairs_to_average(), pairs_to_average()
    if form == "polyak":  # torch.add(out=) requires the same placement
        del pairs[-1], pairs[-2], expected[-1], expected[-2]
    versions = [a._version for a, _ in pairs]
    for a, p in expected:
        theirs(a, p, 0.3)
    with rows_of_lists() as calls:
        ours([a for a, _ in pairs], [p for _, p in pairs], 0.3)
    assert sum(calls) == (9 if form == "polyak" else 10), calls  # of 16 bits, polyak_update is torch's
    assert_bit_equal(plain(pairs), plain(expected))
    assert [a._version - v for (a, _), v in zip(pairs, versions, strict=True)] == [form != "polyak"] * len(pairs)


@pytest.mark.parametrize("form", AVERAGES)
def test_averages(form, ranks):
    ranks(average, form)


def one_of_placed():
    return placed()[:1]


def two_of_placed():
    return placed()[:2]


def late_gradients(name):
    """Rank 1 is late, so that rank 0 steps before the gradients are reduced."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.distributed.tensor import DTensor, Partial, Replicate

    def run(optimizer):
        p = Parameter(dtensor((1 << 16,), [Replicate()]))
        opt = optimizer([p], **OPTIONS.get(name, {}))
        for _ in range(2):
            if dist.get_rank() == 1:
                time.sleep(0.3)
            sums = DTensor.from_local(torch.randn(p.shape), mesh(), [Partial()], run_check=False)
            p.grad = sums.redistribute(mesh(), [Replicate()], async_op=True)
            assert type(p.grad._local_tensor) is AsyncCollectiveTensor
            opt.step()
        return everything(opt)

    theirs, optimizer = both_classes(name)
    torch.default_generator.manual_seed(dist.get_rank())
    expected = run(theirs)
    torch.default_generator.manual_seed(dist.get_rank())
    with rows_per_call() as calls:
        assert_bit_equal(run(optimizer), expected)
    assert calls == [1, 1]


@few
def test_pending_gradients(name, ranks):
    ranks(late_gradients, name)


def partial_sums(g):
    from torch.distributed.tensor import DTensor, Partial

    return DTensor.from_local(g.full_tensor() / RANKS, mesh(), [Partial()], run_check=False)


def placed_otherwise(g):
    from torch.distributed.tensor import Replicate, Shard

    return g.redistribute(mesh(), [Replicate() if g.placements[0].is_shard() else Shard(0)])


def replicated(g):
    from torch.distributed.tensor import Replicate

    return g.redistribute(mesh(), [Replicate()])


def replicated_state(i, opt):
    for state in opt.state.values():
        state.update({key: replicated(t) for key, t in state.items() if t.dim()})


def gaps(g):
    """The same gradient with a shard that is not contiguous."""
    from torch.distributed.tensor import DTensor

    part = here(g).repeat_interleave(2, -1)[..., ::2]
    return DTensor.from_local(part, g.device_mesh, g.placements, run_check=False, shape=g.shape, stride=g.stride())


# Unsupported DTensors: arguments of train_dtensors, and the number of parameters that run in Go at each step.
OTHERS = {
    "partial gradients": ({"grad": partial_sums}, []),
    "gradients placed otherwise": ({"grad": placed_otherwise}, []),
    "gradients with gaps": ({"grad": gaps, "make": one_of_placed}, []),
    "states placed otherwise": ({"between": replicated_state}, [2]),
}


def leave_to_torch(name, what):
    kwargs, expected_calls = OTHERS[what]

    def run(optimizer):
        try:
            return everything(train_dtensors(optimizer, name, **{"make": two_of_placed} | kwargs))
        except RuntimeError as e:  # newer versions of torch reject some
            return ["refused", str(e)]

    theirs, optimizer = both_classes(name)
    expected = run(theirs)
    with rows_per_call() as calls:
        ours = run(optimizer)
    assert calls == expected_calls, calls
    assert_bit_equal(ours, expected)


@few
@pytest.mark.parametrize("what", OTHERS)
def test_dtensors_that_fall_back(name, what, ranks):
    ranks(leave_to_torch, name, what)


def shared_shards(name, of, falls_back):
    """A parameter has the memory of a local shard. One of the two falls back, or Python decides about both."""
    from torch.distributed.tensor import Shard

    def run(optimizer, first):
        torch.default_generator.manual_seed(1)
        p, other = Parameter(dtensor((6, 4), [Shard(0)])), Parameter(torch.randn(3, 4))
        opt = optimizer([p, other] if first else [other, p], **OPTIONS.get(name, {}))
        for i in range(3):
            g = dtensor(p.shape, p.placements)
            p.grad = gaps(g) if falls_back == "DTensor" and i else g
            g = torch.randn(3, 4)
            other.grad = g.t().contiguous().t() if falls_back == "other" and i else g
            if i == 1:
                state = next(t for t in opt.state[p].values() if t.dim())
                shard = {"parameter": p, "gradient": p.grad, "state": state}[of]
                other.data = shard.detach().to_local().as_strided((3, 4), (4, 1))
                if falls_back == "DTensor, and Python decides":
                    p.grad = gaps(p.grad)
                    opt.state[other] = collections.OrderedDict(opt.state[other])
            opt.step()
        return everything(opt)

    theirs, optimizer = both_classes(name)
    for first in (True, False):
        assert_bit_equal(run(optimizer, first), run(theirs, first))


@few
@pytest.mark.parametrize("of", ["parameter", "gradient", "state"])
@pytest.mark.parametrize("falls_back", ["DTensor", "DTensor, and Python decides", "other"])
def test_memory_of_shards(name, of, falls_back, ranks):
    ranks(shared_shards, name, of, falls_back)


def whole_tensors(name):
    def run(optimizer):
        torch.default_generator.manual_seed(1)
        from torch.distributed.tensor import Shard

        opt = optimizer([p := Parameter(dtensor((6, 4), [Shard(0)]))])
        p.grad = dtensor(p.shape, p.placements)
        try:
            opt.step()
        except RuntimeError as e:
            return str(e)
        return everything(opt)

    expected, ours = map(run, both_classes(name))
    assert isinstance(ours, str) == isinstance(expected, str)
    if isinstance(ours, str):
        assert ours == expected
    else:
        assert_bit_equal(ours, expected)


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_optimizers_that_need_whole_tensors_fall_back(name, ranks):
    if not hasattr(torch.optim, name):
        pytest.skip("this torch has none")
    ranks(whole_tensors, name)


def bad_dtensors(name):
    from torch.distributed.tensor import Shard

    ours = train_dtensors(both_classes(name)[1], name, make=two_of_placed)
    good, bad = params_of(ours)
    before = everything(ours)
    key = list(ours.state[bad])[-1]
    state = ours.state[bad]
    # Rank 0 has a shard with the same shape as the parameter's.
    ours.state[bad] = state | {key: dtensor((2, 4), [Shard(0)])}
    message = rf"{name}: parameter 1 of group 0.*{key}.* has shape \(2, 4\), expected \(1, 4\)"
    with pytest.raises(ValueError, match=message):
        ours.step()
    ours.state[bad] = state
    assert_bit_equal(everything(ours), before)
    assert [(row.to, row.reason) for row in goptim.explain(ours)] == [("go", "")] * 2
    bad.grad = placed_otherwise(bad.grad)
    assert [row.to for row in goptim.explain(ours)] == ["go", "torch"]
    assert "its gradient is placed as (Replicate(),), and the parameter as (Shard(dim=0),)" in str(goptim.explain(ours))
    assert good.grad is not None


@few
def test_errors_of_dtensors(name, ranks):
    ranks(bad_dtensors, name)


def network():
    torch.default_generator.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3))


def ddp(model):
    return torch.nn.parallel.DistributedDataParallel(model)


def fsdp1(model, **kwargs):
    return torch.distributed.fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"), **kwargs)


def fsdp2(model, **kwargs):
    from torch.distributed.fsdp import fully_shard

    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh(), **kwargs)
    return model


def fsdp2_mixed(model):
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return fsdp2(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))


def fsdp2_offloaded(model):
    from torch.distributed.fsdp import CPUOffloadPolicy

    return fsdp2(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


no_fsdp2 = pytest.mark.skipif(OLD, reason="torch 2.6 cannot run FSDP2 on the CPU: 'Stream' has no 'record_event'")
WRAPPERS = {
    "DDP": ddp,
    "FSDP1": functools.partial(fsdp1, use_orig_params=False),
    "FSDP1, original parameters": functools.partial(fsdp1, use_orig_params=True),
    "FSDP2": fsdp2,
    "FSDP2, mixed precision": fsdp2_mixed,
    "FSDP2, CPU offload": fsdp2_offloaded,
}


def backward(model, i, dtype=torch.float32):
    generator = torch.Generator().manual_seed(10 * i + dist.get_rank())
    x = torch.randn(4, 6, generator=generator)
    model(x).float().pow(2).sum().backward()


def train(model, opt, steps=range(4), clip=None):
    for i in steps:
        opt.zero_grad()
        backward(model, i)
        if clip is not None:
            clip(model)
        opt.step()
    return opt


def clip(model):
    if isinstance(model, torch.distributed.fsdp.FullyShardedDataParallel):
        model.clip_grad_norm_(0.5)
    else:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)


def wrapped(name, what):
    theirs, optimizer = both_classes(name)
    runs = []
    for cls in (theirs, optimizer):
        model = WRAPPERS[what](network())
        with rows_per_call() as calls:
            opt = train(model, cls(model.parameters(), **OPTIONS.get(name, {})), clip=clip)
        runs.append([everything(opt), plain(opt.state_dict())])
    assert len(calls) == 4, calls
    assert_bit_equal(runs[1], runs[0])


@few
@pytest.mark.parametrize("what", [pytest.param(w, marks=no_fsdp2) if "FSDP2" in w else w for w in WRAPPERS])
def test_data_parallel_models(name, what, ranks):
    ranks(wrapped, name, what)


def fsdp2_of_bfloat16(model):
    return fsdp2(model.bfloat16())


def fsdp2_mixed_and_offloaded(model):
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return fsdp2(model, mp_policy=mixed, offload_policy=CPUOffloadPolicy(pin_memory=False))


def fsdp2_of_bfloat16_offloaded(model):
    return fsdp2_mixed_and_offloaded(model.bfloat16())


IN_16_BITS = {
    "bfloat16": fsdp2_of_bfloat16,
    "float32, mixed precision, CPU offload": fsdp2_mixed_and_offloaded,
    "bfloat16, mixed precision, CPU offload": fsdp2_of_bfloat16_offloaded,
}


def in_16_bits(name, what):
    """A program of torch.optim, unchanged under a patch. torch's fused kernels round bfloat16 once, as goptim does.

    A shard has whole vectors of 32 elements, as torch rounds the elements after them in another way.
    """
    narrow = what.startswith("bfloat16")
    runs = []
    for patch in (contextlib.nullcontext, goptim.patch):
        torch.default_generator.manual_seed(3)
        model = IN_16_BITS[what](torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64)))
        params = list(model.parameters())
        shards = [Parameter(p.to_local().detach()) for p in params]
        # torch's fused Adam supports DTensors. Fused SGD and Adagrad step the shards, whose memory is the model's.
        given = shards if narrow and name != "AdamW" and patch is not goptim.patch else params
        with patch(), rows_per_call() as calls:
            opt = getattr(torch.optim, name)(given, **OPTIONS.get(name, {}), **({"fused": True} if narrow else {}))
            for i in range(4):
                model.zero_grad()
                generator = torch.Generator().manual_seed(10 * i + dist.get_rank())
                x = torch.randn(4, 8, generator=generator, dtype=torch.bfloat16)
                model(x).float().pow(2).sum().backward()
                torch.nn.utils.clip_grad_norm_(params, 0.5)
                if given is shards:
                    for shard, p in zip(shards, params, strict=True):
                        shard.grad = p.grad.to_local()
                opt.step()
        assert {p.dtype for p in shards} == {torch.bfloat16 if narrow else torch.float32}
        assert all(p.numel() % 32 == 0 for p in shards)
        states = [opt.state[p].values() for p in given]
        runs.append([[p.to_local().detach().clone() for p in params], [local(list(s)) for s in states]])
    rows = goptim.explain(opt)
    assert [row.to for row in rows] == ["go"] * 4, str(rows)
    assert calls == [4] * 4, calls
    assert_bit_equal(runs[1], runs[0])


def snippet(code):
    torch.default_generator.manual_seed(3)
    model = network()
    names = {"model": model, "layers": [model[0], model[2]], "mesh": mesh()}
    exec(code, names)
    opt = train(model, names["optimizer"])
    rows = goptim.explain(opt)
    assert [row.to for row in rows] == ["go"] * 4, str(rows)


@no_fsdp2
@pytest.mark.full
def test_snippet_for_fsdp2(ranks):
    page = (Path(__file__).parents[1] / "docs/half.md").read_text()
    [code] = [code for code in re.findall(r"(?ms)^```python\n(.*?)^```", page) if "fully_shard" in code]
    ranks(snippet, code)


PROGRAM = """
import torch
import torch.distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

dist.init_process_group("gloo")
mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
model = torch.nn.Linear(8, 64).bfloat16()
mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
fully_shard(model, mesh=mesh, mp_policy=mixed, offload_policy=CPUOffloadPolicy(pin_memory=False))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for _ in range(3):
    model(torch.ones(4, 8, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
dist.destroy_process_group()
"""


@no_fsdp2
@pytest.mark.full
def test_a_program_under_torchrun(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM)
    page = (Path(__file__).parents[1] / "docs/half.md").read_text()
    [command] = re.findall(r"(?m)^torchrun (.*) train.py$", page)
    words = [sys.executable, "-m", "torch.distributed.run", *command.split(), tmp_path / "train.py"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = "goptim: AdamW: 1 optimizer, 3 steps; in Go: 2 parameters (6 updates)"
    assert done.stderr.count(report) == 2, done.stderr


def local(tensors):
    return [t.to_local().clone() if hasattr(t, "to_local") else t.clone() for t in tensors]


@no_fsdp2
@pytest.mark.parametrize("what", ["bfloat16", *(pytest.param(w, marks=pytest.mark.full) for w in [*IN_16_BITS][1:])])
@pytest.mark.parametrize("name", ["AdamW", *(pytest.param(n, marks=pytest.mark.full) for n in ("Adagrad", "SGD"))])
def test_fsdp2_in_16_bits(name, what, ranks):
    ranks(in_16_bits, name, what)


def zero(name):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    runs = []
    for cls in both_classes(name):
        model = ddp(network())
        make = functools.partial(ZeroRedundancyOptimizer, optimizer_class=cls, **{"lr": 0.1} | OPTIONS.get(name, {}))
        with rows_per_call() as calls:
            opt = train(model, make(model.parameters()))
            opt.consolidate_state_dict(to=0)
            saved = opt.state_dict() if dist.get_rank() == 0 else None
            saved = [saved]
            dist.broadcast_object_list(saved)
            other = make(model.parameters())
            other.load_state_dict(saved[0])
            train(model, other, range(4, 6))
        assert isinstance(other.optim, cls)
        runs.append([plain(list(model.parameters())), plain(saved), everything(other.optim)])
    assert len(calls) == 6, calls
    assert_bit_equal(runs[1], runs[0])


@few
def test_zero_redundancy_optimizer(name, ranks):
    ranks(zero, name)


def checkpoint(name, folder):
    """A run that changes classes at a distributed checkpoint continues like one that does not."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    runs = {}
    for first, second in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        at = Path(folder) / f"{name}{first}{second}"
        model = fsdp2(network())
        opt = train(model, both_classes(name)[first](model.parameters(), **OPTIONS.get(name, {})))
        dcp.save(dict(zip(["model", "optimizer"], get_state_dict(model, opt), strict=True)), checkpoint_id=at)

        model = fsdp2(network())
        opt = both_classes(name)[second](model.parameters(), **OPTIONS.get(name, {}))
        saved = dict(zip(["model", "optimizer"], get_state_dict(model, opt), strict=True))
        dcp.load(saved, checkpoint_id=at)
        set_state_dict(model, opt, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        runs[first, second] = everything(train(model, opt, range(4, 6)))
    for run in runs.values():
        assert_bit_equal(run, runs[0, 0])


@few
@no_fsdp2
def test_distributed_checkpoints_go_both_ways(name, ranks, tmp_path):
    ranks(checkpoint, name, str(tmp_path))


def in_backward(name):
    from torch.distributed.optim import _apply_optimizer_in_backward

    runs = []
    for cls in both_classes(name):
        model = network()
        _apply_optimizer_in_backward(cls, model.parameters(), {"lr": 0.1} | OPTIONS.get(name, {}))
        with rows_per_call() as calls:  # without DDP, which would use CUDA
            for i in range(3):
                backward(model, i)
        states = [plain([opt.state[p] for opt in p._in_backward_optimizers]) for p in model.parameters()]
        runs.append([plain(list(model.parameters())), states])
    assert calls == [1] * 12, calls
    assert_bit_equal(runs[1], runs[0])


@few
def test_steps_within_backward(name, ranks):
    ranks(in_backward, name)
