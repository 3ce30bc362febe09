"""Writes torch's results for the Go tests to goptim/testdata/golden.json and goptim/testdata/torch: `make golden`.

A case has the options of a configuration, under the names of the Go options in lower case, and the parameters after
every step of torch's for-loop with IEEE square roots. Numbers are concatenated hexadecimal bits. A case with a shape
uses as many of the numbers as the shape has elements. A case of lists has an operation on several tensors.

A file of testdata/torch has a run of torch, and one of testdata/half a run of goptim with 16-bit parameters. It has the
state after some of its steps, as written by goptim.save_state. The tensors value.0.NAME are the initial parameters,
grad.T.NAME the gradients of step T, or rows of them if there is an index.T.NAME, and value.T.NAME the parameters after
step T. Go's tests write such files to testdata/go. A file of testdata/storage has a run of goptim with the
keywords of docs/half.md, which test_storage.py compares with torch.
"""

import json
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from configurations import CLASSES, ORACLES, TABLE, Configuration, class_of, for_loop_flags, oracle_of
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import goptim
from goptim import _safetensors
from goptim.testing import ieee_sqrt

PATH = Path(__file__).parents[1] / "goptim" / "testdata" / "golden.json"
SHAPES = [(36,), (4, 9), (2, 1, 18), (9, 2, 2), (36, 1), (2, 18)]

FACTORED = ("Adafactor",)  # whose bits depend on a parameter's shape


def _few(name: str) -> list[dict[str, Any]]:
    """Options of a row of the parity table: the plain ones, some flags, and most flags."""
    row = [c.options for c in TABLE[name] if not c.unusual]
    known = oracle_of(name)([torch.zeros(1)]).defaults.keys()  # of a group, which a file has, and Go
    if name == "Adam":  # in torch 2.6, only AdamW is decoupled
        known -= {"decoupled_weight_decay"}
    row = [{k: v for k, v in o.items() if k in known} for o in row]
    row = [o for i, o in enumerate(row) if o not in row[:i]]
    return [row[0], row[len(row) // 2], row[-1]]


def _cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in TABLE:
        for options in _few(name):
            for shape in [(LENGTH,)] if name not in FACTORED else SHAPES:
                yield name, {**options, "shape": shape}


STEPS = 6
LENGTH = 37  # two of the widest vectors and a tail
DTYPES = {"float32": (torch.float32, torch.int32, 8), "float64": (torch.float64, torch.int64, 16)}
CASES = list(_cases())


def text() -> str:
    """The content of golden.json."""
    uniform = random.Random(1).uniform  # the same in every version of Python
    start = torch.tensor([uniform(-1, 1) for _ in range(LENGTH)], dtype=torch.float64)
    scales = [10.0 ** (step % 3 - 1) for step in range(STEPS)]
    grads = [torch.tensor([uniform(-s, s) for _ in range(LENGTH)], dtype=torch.float64) for s in scales]
    data: dict[str, Any] = {
        name: {"start": _bits(start, name), "grads": [_bits(g, name) for g in grads]} for name in DTYPES
    }
    data["cases"] = [_case(name, options, start, grads) for name, options in CASES]
    data["lists"], data["norms"] = _lists(start, grads), _norms()
    return json.dumps(data, indent=1) + "\n"


def _case(name: str, options: dict[str, Any], start: Tensor, grads: list[Tensor]) -> dict[str, Any]:
    options = dict(options)
    shape = options.pop("shape")
    n = math.prod(shape)
    configuration = Configuration(name, options, name)
    case: dict[str, Any] = {
        "optimizer": configuration.optimizer,
        "options": {k.replace("_", ""): v for k, v in configuration.options.items()},
    }
    if shape != (LENGTH,):
        case["shape"] = shape
    for name, (dtype, _, _) in DTYPES.items():
        p = start[:n].to(dtype, copy=True).view(shape).requires_grad_()
        optimizer = configuration.theirs([p])
        case[name] = []
        for g in grads:
            p.grad = g[:n].to(dtype).view(shape)
            with ieee_sqrt():
                optimizer.step()
            case[name].append(_bits(p, name))
    return case


# Lengths of the list of tensors for operations on lists. Tensor i has the first elements of gradient i.
LENGTHS = [37, 1, 3, 16, 8, 30]


def _lists(start: Tensor, grads: list[Tensor]) -> list[dict[str, Any]]:
    """Results of torch's functions on lists of tensors: the norm, if the operation has one, and all elements."""
    clip, value = torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_

    def mul_add(average: Tensor, new: Tensor, decay: float) -> None:
        average.copy_(get_ema_avg_fn(decay)(average, new, torch.tensor(3)))

    def swa(average: Tensor, new: Tensor, averaged: int) -> None:
        model = AveragedModel(torch.nn.ParameterList([average]))
        model.n_averaged.fill_(averaged)
        model.update_parameters(torch.nn.ParameterList([new]))
        average.copy_(next(model.parameters()))

    def polyak(average: Tensor, new: Tensor, tau: float) -> None:  # as stable-baselines3 does
        average.mul_(1 - tau)
        torch.add(average, new, alpha=tau, out=average)

    def each(update: Any) -> Any:
        return lambda p, *args: [update(x.data, x.grad, *args) for x in p] and None

    operations: list[tuple[str, dict[str, Any], Any]] = [
        *(("ClipGradNorm", {"maxnorm": x}, lambda p, x=x: clip(p, x)) for x in (0.5, 20.0, 1e3, math.inf)),
        ("ClipGradNorm", {"maxnorm": 0.3, "normtype": math.inf}, lambda p: clip(p, 0.3, math.inf)),
        ("ClipGradNorm", {"maxnorm": 0.1, "errorifnonfinite": True}, lambda p: clip(p, 0.1, 2.0, True)),
        *(("ClipGradValue", {"clipvalue": x}, lambda p, x=x: value(p, x)) for x in (0.1, 1.0)),
        *(
            ("EMA", {"decay": x}, lambda p, x=x: get_ema_multi_avg_fn(x)([q.data for q in p], [q.grad for q in p], 3))
            for x in (0.99, 0.3, 1.0)
        ),
        *(("EMA", {"decay": x, "form": 1}, lambda p, x=x: each(mul_add)(p, x)) for x in (0.99, 0.3)),
        *(("SWA", {"averaged": n}, lambda p, n=n: each(swa)(p, n)) for n in (0, 1, 2, 16777216)),
        *(("PolyakUpdate", {"tau": x}, lambda p, x=x: each(polyak)(p, x)) for x in (0.005, 0.7, 1.0)),
    ]
    cases = []
    for operation, options, do in operations:
        case: dict[str, Any] = {"operation": operation, "options": {k: str(v) for k, v in options.items()}}
        for name, (dtype, _, _) in DTYPES.items():
            params = [start[:n].to(dtype, copy=True).requires_grad_() for n in LENGTHS]
            for p, g in zip(params, grads, strict=True):
                p.grad = g[: p.numel()].to(dtype, copy=True)
            norm = do(params)
            written = [p.grad if operation.startswith("Clip") else p for p in params]
            case[name] = ([] if norm is None else [_bits(norm, name)]) + ["".join(_bits(x, name) for x in written)]
        cases.append(case)
    return cases


def _norms() -> dict[str, dict[str, str]]:
    """Norms of long tensors, by the number of elements."""

    def elements(n: int, dtype: torch.dtype) -> Tensor:
        return ((torch.arange(n) * 2654435761 & 0xFFFFFF).double() / 2**24 - 0.5).to(dtype)

    return {
        name: {
            str(n): _bits(torch.nn.utils.get_total_norm([elements(n, dtype)]), name)
            for n in (1, 3, 1003, 70001, 3000001)
        }
        for name, (dtype, _, _) in DTYPES.items()
    }


def _bits(x: Tensor, name: str) -> str:
    dtype, integer, digits = DTYPES[name]
    mask = 16**digits - 1
    return "".join(f"{i & mask:0{digits}x}" for i in x.detach().flatten().to(dtype).view(integer).tolist())


RUNS_PATH = PATH.parent / "torch"
DENSE, ROWS, MATRICES = {"a": (2, 3), "b.weight": (2,), "c": (2, 2, 2)}, {"words": (5, 3)}, {"a": (2, 3), "b": (4, 2)}
# The name of a file; the class, its options, and the shapes of the parameters.
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    **{name: (name, _few(name)[-1], DENSE) for name in TABLE if name not in ORACLES},
    "AMSGrad": ("Adam", {"amsgrad": True}, DENSE),
    # Not decouple_wd, with which the class in Go is OptimiAdamW.
    "OptimiAdam": ("OptimiAdam", {"weight_decay": 0.037, "decouple_lr": True}, DENSE),
    "Rprop": ("Rprop", {"etas": (0.1, 3.7), "step_sizes": (5e-3, math.inf)}, DENSE),
    "SparseAdam": ("SparseAdam", {"betas": (0.5, 0.807)}, ROWS),
    "SparseSGD": ("SGD", {"maximize": True}, ROWS),
    "SparseAdagrad": ("Adagrad", {"lr_decay": 0.11, "initial_accumulator_value": 0.3}, ROWS),
    "Muon": ("Muon", {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}, MATRICES),
    "LBFGS": ("LBFGS", {"lr": 0.5, "max_iter": 3}, DENSE),
    "LBFGS-strong-wolfe": (
        "LBFGS",
        {"lr": 0.5, "max_iter": 3, "history_size": 2, "line_search_fn": "strong_wolfe"},
        DENSE,
    ),
}
INEXACT = ("Muon", "LBFGS", "LBFGS-strong-wolfe")  # which sum in another order
RUN_STEPS, SAVED = 5, 3


def curvature(n: int, dtype: torch.dtype) -> Tensor:
    """The curvature of LBFGS' quadratic function, whose gradient is curvature * (x - 1)."""
    return 1 + torch.arange(n, dtype=dtype) % 97


def valley(params: list[Tensor]) -> float:
    """Compute the loss, and store its gradients in the parameters."""
    loss = 0.0
    for p in params:
        x, c = p.detach().flatten() - 1, curvature(p.numel(), p.dtype)
        p.grad = (c * x).view(p.shape)
        loss += float((0.5 * c.double() * x.double() * x.double()).sum())
    return loss


def run(name: str, dtype: str, path: Path) -> None:
    """Write the file of a run."""
    class_name, options, shapes = RUNS[name]
    uniform = random.Random(name).uniform

    def draw(shape: tuple[int, ...]) -> Tensor:
        numbers = torch.tensor([uniform(-1, 1) for _ in range(math.prod(shape))], dtype=torch.float64)
        return numbers.view(shape).to(getattr(torch, dtype))

    params = {n: draw(shape).requires_grad_() for n, shape in shapes.items()}
    tensors = {f"value.0.{n}": p.detach().clone() for n, p in params.items()}
    options = {"lr": 0.0123, **options}
    if "foreach" in for_loop_flags(class_name) and dtype in DTYPES:
        options["foreach"] = False
    kind = oracle_of(class_name) if dtype in DTYPES else class_of(class_name)
    optimizer = kind(params.values(), **options)
    for step in range(1, RUN_STEPS + 1):
        if class_name == "LBFGS":
            optimizer.step(lambda: valley(list(params.values())))
        else:
            for i, (n, p) in enumerate(params.items()):
                if i == 1 and step == 1:
                    continue  # its state is created at a later step than the others'
                if shapes is ROWS:
                    index, rows = torch.tensor([1, step % 5, 1]), draw((3, 3))
                    p.grad = torch.sparse_coo_tensor(index[None], rows, p.shape, check_invariants=True)
                    tensors |= {f"index.{step}.{n}": index, f"grad.{step}.{n}": rows}
                else:
                    p.grad = draw(p.shape)
                    tensors[f"grad.{step}.{n}"] = p.grad.clone()
            with ieee_sqrt():
                optimizer.step()
        tensors |= {f"value.{step}.{n}": p.detach().clone() for n, p in params.items()}
        if step == SAVED:
            goptim.save_state(optimizer, path, params.items())
    state, metadata = _safetensors.read(path)
    _safetensors.write(path, tensors | state, metadata)


def runs() -> dict[str, bytes]:
    """All files of testdata/torch, except those of classes that this torch does not have."""
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        for name, (class_name, _, _) in RUNS.items():
            if class_name in CLASSES:
                for dtype in DTYPES:
                    run(name, dtype, path)
                    files[f"{name}-{dtype}.safetensors"] = path.read_bytes()
    return files


STORED_PATH = PATH.parent / "storage"
# The class, its options, and the dtype of the parameters.
STORED: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "kahan": ("AdamW", {"rounding": "kahan", "state_dtype": torch.float32}, torch.bfloat16),
    "master": ("AdamW", {"master_weights": True, "state_dtype": torch.bfloat16}, torch.float16),
    "stochastic": ("SGD", {"momentum": 0.9, "rounding": "stochastic", "seed": 2**64 - 5}, torch.bfloat16),
    "stochastic-lion": ("Lion", {"rounding": "stochastic", "state_dtype": torch.float32}, torch.float16),
    "states": ("NAdam", {"state_dtype": torch.bfloat16}, torch.float32),
    "adafactor-master": ("Adafactor", {"master_weights": True, "state_dtype": torch.float32}, torch.bfloat16),
    "adafactor-kahan": ("Adafactor", {"rounding": "kahan", "state_dtype": torch.bfloat16}, torch.float16),
    "adafactor-stochastic": ("Adafactor", {"rounding": "stochastic", "seed": 7}, torch.bfloat16),
    "schedule-free-stochastic": (
        "AdamWScheduleFree",
        {"rounding": "stochastic", "state_dtype": torch.float32},
        torch.bfloat16,
    ),
    "schedule-free-kahan": ("SGDScheduleFree", {"rounding": "kahan"}, torch.float16),
    "schedule-free-master": (
        "RAdamScheduleFree",
        {"master_weights": True, "state_dtype": torch.bfloat16},
        torch.float16,
    ),
    "sparse-adam-kahan": ("SparseAdam", {"rounding": "kahan", "state_dtype": torch.float32}, torch.bfloat16),
    "sparse-adagrad-master": (
        "SparseAdagrad",
        {"master_weights": True, "initial_accumulator_value": 0.3},
        torch.float16,
    ),
    "sparse-adagrad-states": ("SparseAdagrad", {"state_dtype": torch.bfloat16}, torch.float32),
    "sparse-sgd-stochastic": ("SparseSGD", {"rounding": "stochastic", "seed": 3}, torch.bfloat16),
}


# After this step, a Schedule-Free optimizer changes to eval mode and back.
SWITCHED = 2


def stored_run(name: str, path: Path) -> None:
    """Write the file of a run of goptim whose states or parameters are stored in another way than torch's."""
    class_name, options, dtype = STORED[name]
    sparse = class_name.startswith("Sparse")
    if sparse:
        class_name = class_name if hasattr(goptim, class_name) else class_name.removeprefix("Sparse")
    uniform = random.Random(name).uniform

    def draw(shape: tuple[int, ...]) -> Tensor:
        numbers = torch.tensor([uniform(-1, 1) for _ in range(math.prod(shape))], dtype=torch.float64)
        return numbers.view(shape).to(dtype)

    shapes: dict[str, tuple[int, ...]] = {"a": (70,), "b": (33,)}
    if class_name == "Adafactor":
        shapes["c"] = (9, 5)
    if sparse:
        shapes = {"a": (7, 35), "b": (6, 3)}
    params = {n: draw(shape).requires_grad_() for n, shape in shapes.items()}
    tensors = {f"value.0.{n}": p.detach().clone() for n, p in params.items()}
    optimizer = class_of(class_name)(params.values(), lr=0.0123, **options)
    for step in range(1, RUN_STEPS + 1):
        for n, p in params.items():
            if sparse:
                index, rows = torch.tensor([1, step % 5, 1]), draw((3, p.shape[1]))
                p.grad = torch.sparse_coo_tensor(index[None], rows, p.shape, check_invariants=True)
                tensors |= {f"index.{step}.{n}": index, f"grad.{step}.{n}": rows}
            else:
                p.grad = draw(p.shape)
                tensors[f"grad.{step}.{n}"] = p.grad.clone()
        optimizer.step()
        if step == SWITCHED and class_name.endswith("ScheduleFree"):
            optimizer.eval()
            optimizer.train()
        tensors |= {f"value.{step}.{n}": p.detach().clone() for n, p in params.items()}
        if step == SAVED:
            goptim.save_state(optimizer, path, params.items())
    state, metadata = _safetensors.read(path)
    _safetensors.write(path, tensors | state, metadata)


def stored_runs() -> dict[str, bytes]:
    """All files of testdata/storage."""
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in STORED:
            stored_run(name, Path(folder) / "run")
            files[f"{name}.safetensors"] = (Path(folder) / "run").read_bytes()
    return files


HALVES_PATH = PATH.parent / "half"
# Runs with 16-bit parameters of goptim's classes, because torch's for-loop rounds after every operation.
HALVES = {
    "bfloat16": ("AdamW", "NAdam", "Adafactor", "SparseSGD", "SparseAdagrad", "SparseAdam"),
    "float16": ("AdamW", "Adafactor", "SparseAdam"),
}


def halves() -> dict[str, bytes]:
    """All files of testdata/half."""
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        for dtype, names in HALVES.items():
            for name in names:
                run(name, dtype, path)
                files[f"{name}-{dtype}.safetensors"] = path.read_bytes()
    return files


SCHEDULES_PATH = PATH.parents[1] / "schedule" / "testdata" / "golden.json"


def schedules() -> str:
    """The content of schedule/testdata/golden.json: torch's rates, and the arguments of the Go functions."""
    from torch.optim import lr_scheduler as s

    def warmup_cosine(o: torch.optim.Optimizer, warmup: int, steps: int, least: float) -> Any:
        linear = s.LinearLR(o, 1 / warmup, 1, warmup - 1)
        return s.SequentialLR(o, [linear, s.CosineAnnealingLR(o, steps - warmup, least)], [warmup])

    def one_cycle(**options: Any) -> dict[str, Any]:
        names = {"pct_start": "PctStart", "div_factor": "DivFactor", "final_div_factor": "FinalDivFactor"}
        go = {names[k]: v for k, v in options.items() if k in names}
        go |= {"Linear": options.get("anneal_strategy") == "linear", "ThreePhase": options.get("three_phase", False)}
        return {"Schedule": "OneCycle", "Ints": [150], "Options": go, "Exact": go["Linear"]} | {
            "torch": lambda o: s.OneCycleLR(o, 0.37, total_steps=150, cycle_momentum=False, **options)
        }

    cases: list[dict[str, Any]] = [
        {"Schedule": "Step", "Ints": [7], "Floats": [0.3], "torch": lambda o: s.StepLR(o, 7, 0.3)},
        {"Schedule": "Step", "Ints": [1], "Floats": [0.97], "torch": lambda o: s.StepLR(o, 1, 0.97)},
        {
            "Schedule": "MultiStep",
            "Ints": [30, 3, 30, 80, 30],
            "Floats": [0.7],
            "torch": lambda o: s.MultiStepLR(o, [30, 3, 30, 80, 30], 0.7),
        },
        {"Schedule": "Exponential", "Floats": [0.993], "torch": lambda o: s.ExponentialLR(o, 0.993)},
        {"Schedule": "Linear", "Ints": [101], "Floats": [0.07, 0.9], "torch": lambda o: s.LinearLR(o, 0.07, 0.9, 101)},
        {"Schedule": "Linear", "Ints": [150], "Floats": [1.0, 0.0], "torch": lambda o: s.LinearLR(o, 1, 0, 150)},
        {"Schedule": "Cosine", "Ints": [40], "Floats": [0.01], "torch": lambda o: s.CosineAnnealingLR(o, 40, 0.01)},
        {"Schedule": "Cosine", "Ints": [1000], "Floats": [0.0], "torch": lambda o: s.CosineAnnealingLR(o, 1000)},
        {
            "Schedule": "WarmupCosine",
            "Ints": [13, 1001],
            "Floats": [1e-3],
            "torch": lambda o: warmup_cosine(o, 13, 1001, 1e-3),
        },
        one_cycle(),
        one_cycle(anneal_strategy="linear"),
        one_cycle(anneal_strategy="linear", pct_start=0.25, div_factor=3.0, final_div_factor=7.0, three_phase=True),
        one_cycle(pct_start=0.4, three_phase=True),
    ]
    data = []
    for case in cases:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.37)
        steps = case.get("Ints", [0])[-1] if "osine" in case["Schedule"] else 150
        scheduler, bits = case.pop("torch")(optimizer), []
        for _ in range(steps):
            bits.append(_bits(torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64), "float64"))
            optimizer.step()
            if len(bits) < steps:
                scheduler.step()
        data.append({"Exact": "osine" not in case["Schedule"], **case, "LR": 0.37, "Bits": bits})
    return json.dumps(data, indent=0) + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text())
    RUNS_PATH.mkdir(exist_ok=True)
    for name, data in runs().items():
        (RUNS_PATH / name).write_bytes(data)
    STORED_PATH.mkdir(exist_ok=True)
    for name, data in stored_runs().items():
        (STORED_PATH / name).write_bytes(data)
    HALVES_PATH.mkdir(exist_ok=True)
    for name, data in halves().items():
        (HALVES_PATH / name).write_bytes(data)
    SCHEDULES_PATH.parent.mkdir(exist_ok=True)
    SCHEDULES_PATH.write_text(schedules())
