"""python -m goptim bench measures every implementation on every list of shapes, and notes what it cannot measure."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import pytest
import torch
from configurations import BEYOND

import goptim
from goptim import _native
from goptim.__main__ import main
from goptim._bench import command, conditions, contenders, pages, phase, steps, subjects, training
from goptim.testing import assert_bit_equal

ROOT = Path(__file__).parents[1]
TINY = ("--scale", "0.001", "--rounds", "1", "--threads", "1")
RATIO = r" *\d+\.\d\d \|"


@pytest.fixture
def bench(capsys, tmp_path, threads):
    """Runs the subcommand, and returns its output and its JSON."""

    def run(*arguments: object):
        out = tmp_path / "out.json"
        main(["bench", *map(str, arguments), "--json", str(out)])
        return capsys.readouterr().out, json.loads(out.read_text())

    return run


@pytest.fixture
def refused(capsys):
    """Runs the subcommand, and returns its error message."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as e:
            main(["bench", *map(str, arguments)])
        assert e.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes modules of a user into the import path."""
    monkeypatch.syspath_prepend(tmp_path)
    names = (f"own{i}" for i in itertools.count())

    def write(text: str) -> str:
        name = next(names)
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def row(seconds: dict[str, list[float]], optimizer: str = "AdamW", shapes: str = "big", threads: int = 1) -> steps.Row:
    return steps.Row(optimizer, subjects.SHAPES[shapes], threads, torch.float32, seconds=seconds)


@pytest.mark.parametrize(
    "optimizer",
    [
        name
        if name in ("SGD momentum", "AdamW amsgrad", "Adafactor", "Muon", *BEYOND)
        else pytest.param(name, marks=pytest.mark.full)
        for name in subjects.OPTIMIZERS
    ],
)
def test_every_optimizer(optimizer, bench):
    out, found = bench("--optimizer", optimizer, *TINY)
    assert [r["shapes"] for r in found["rows"]] == [s.title for s in subjects.default_shapes(optimizer)]
    for r in found["rows"]:
        assert r["tensors_in_go"] == r["tensors"], r["notes"]
        paths = ["goptim", "for"]
        if subjects.OPTIMIZERS[optimizer].cls in BEYOND:
            paths.append("bound")
        elif optimizer != "Muon":
            paths.append("foreach")
            if optimizer in ("SGD", "SGD momentum", "Adam", "AdamW", "AdamW amsgrad", "Adagrad"):
                paths.append("fused")
            paths.append("bound")
        assert list(r["seconds"]) == paths, r["notes"]
        assert re.search(rf"(?m)^\| {optimizer} \| {r['shapes']} \| 1 \| \d+ \|", out), out
        assert f"{r['seconds']['for']['best'] / r['seconds']['goptim']['best']:.2f} |" in out


@pytest.mark.parametrize(
    ("shapes", "dtype"),
    [
        *itertools.product(subjects.SHAPES, ["float32"]),
        *itertools.product(["big", "few"], ["float64", "bfloat16", "float16"]),
    ],
)
def test_every_shapes_and_dtype(shapes, dtype, bench):
    _, found = bench("--optimizer", "AdamW", "--shapes", shapes, "--dtype", dtype, "--against", "fused", *TINY)
    [r] = found["rows"]
    assert (r["shapes"], r["dtype"], found["scale"]) == (subjects.SHAPES[shapes].title, dtype, 0.001)
    assert set(r["seconds"]) >= {"goptim", "bound"}
    if r["tensors_in_go"] < r["tensors"]:
        assert any(re.match(r"AdamW: goptim: \d+ of \d+ tensors fall back to torch: ", note) for note in found["notes"])


@pytest.mark.parametrize(
    ("shapes", "tensors", "elements"),
    [("gpt2", 148, 124_439_808), ("resnet50", 161, 25_557_032), ("big", 8, 1 << 24), ("few", 20, 1280)],
)
def test_shapes_are_those_of_the_model(shapes, tensors, elements):
    assert (len(subjects.SHAPES[shapes].shapes), subjects.SHAPES[shapes].elements) == (tensors, elements)


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"goptim {goptim.__version__}: {_native.platform_line()}\n"
    with pytest.raises(SystemExit):
        main([])
    assert "a command is required" in capsys.readouterr().err


def test_json(bench):
    out, found = bench("--optimizer", "AdamW", "--shapes", "few,small-matrices", "--threads", "1,2", "--rounds", 1)
    assert found.keys() == {"measured", "conditions", "scale", "patience", "cpu_seconds", "notes", "rows"}
    assert found["measured"] == "steps"
    assert found["conditions"].keys() == {
        "cpu", "cores", "machine", "torch_vectors", "go_vector_bits", "go", "goptim", "torch", "python", "system",
        "allocator", "load_before", "load_after", "busy",
    }  # fmt: skip
    assert found["conditions"]["torch"] == torch.__version__
    assert found["conditions"]["go"].startswith("go1.")
    for name in ("cpu", "goptim", "go"):
        assert found["conditions"][name] in out
    assert [(r["shapes"], r["threads"]) for r in found["rows"]] == [
        (s, t) for s in ("20 x 64", "100 x 64 x 64") for t in (1, 2)
    ]
    for r in found["rows"]:
        assert r.keys() == {
            "optimizer", "shapes", "tensors", "elements", "dtype", "threads", "tensors_in_go", "compile_seconds",
            "seconds", "notes",
        }  # fmt: skip
        for times in r["seconds"].values():
            assert times.keys() == {"best", "median", "rounds"}
            assert 0 < times["best"] <= times["median"]
            assert times["rounds"] >= 2


def test_threads_are_restored(bench, threads):
    bench("--optimizer", "SGD", "--shapes", "few", "--threads", 2, "--rounds", 1)
    assert torch.get_num_threads() == 1


def test_ratios_below_one_are_printed():
    line = pages.line(row({"goptim": [2e-6, 3e-6], "for": [9e-6], "fused": [1e-6]}), ["for", "fused", "compile"], True)
    assert line == "| AdamW | 8 x 2M | 1 | 2 | 4.50 | 0.50 |  |  |"


def test_turns_are_interleaved_and_spread(monkeypatch, threads):
    """The slowest implementation has few rounds, spread out, and the order changes."""
    calls = []

    def build(path, subject, parameters):
        optimizer = goptim.SGD(parameters)

        def step():
            calls.append(path)
            optimizer.step()

        return contenders.Contender(optimizer, parameters, step)

    monkeypatch.setattr(contenders, "build", build)
    monkeypatch.setattr(contenders, "bound_library", lambda: (None, ""))
    monkeypatch.setattr(steps, "SLOW", 0.0)
    r = row({}, shapes="few")
    steps.measure(r, ["for"], 20, 10.0, conditions.Watch(), lambda: None)
    assert {path: len(times) for path, times in r.seconds.items()} == {"goptim": 5, "for": 5}
    timed = calls[2 * steps.WARM_UP :]
    assert {tuple(timed[i : i + 2]) for i in range(0, 10, 2)} == {("goptim", "for"), ("for", "goptim")}


@pytest.mark.full
def test_compile(tmp_path, server):
    (tmp_path / "own.py").write_text("shapes = [(16,)]\n")
    words = ["--optimizer", "SGD", "--shapes", "own:shapes", "small", "--against", "compile,fused", *TINY]
    done = server.run("-m", "goptim", "bench", *words, "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, many = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert set(one["seconds"]) == {"goptim", "compile", "fused", "bound"}, one["notes"]
    assert one["seconds"]["compile"]["best"] < one["compile_seconds"]
    assert "compile: compilation took up to" in done.stdout
    assert "compile" not in many["seconds"]
    assert "compile: a step of more than 200 tensors would take many minutes to compile" in many["notes"]


def test_deepspeed_is_not_installed(bench, monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    out, found = bench("--optimizer", "AdamW", "--shapes", "few", "--against", "deepspeed", *TINY)
    assert "- deepspeed: not measured because it is not installed: pip install deepspeed" in out
    assert set(found["rows"][0]["seconds"]) == {"goptim", "bound"}
    out, _ = bench("--optimizer", "AdamW", "--shapes", "few", "--against", "deepspeed", "--dtype", "bfloat16", *TINY)
    assert "- deepspeed: not measured because it is not installed: pip install deepspeed" in out


def test_deepspeed(bench, monkeypatch):
    """With a fake package that has the arguments of DeepSpeed 0.18."""
    asked = []

    class CPUAdam(torch.optim.AdamW):
        def __init__(self, model_params, lr=1, eps=1, weight_decay=0, adamw_mode=True, fp32_optimizer_states=True):
            asked.append((lr, eps, weight_decay, adamw_mode, fp32_optimizer_states))
            super().__init__(model_params, lr=lr, weight_decay=weight_decay)

    class CPUAdagrad(torch.optim.Adagrad):
        def __init__(self, model_params, lr=1, eps=1, fp32_optimizer_states=True):
            asked.append((lr, eps, fp32_optimizer_states))
            super().__init__(model_params, lr=lr)

    for name, attributes in {
        "deepspeed": {},
        "deepspeed.ops": {},
        "deepspeed.ops.adam": {"DeepSpeedCPUAdam": CPUAdam},
        "deepspeed.ops.adagrad": {"DeepSpeedCPUAdagrad": CPUAdagrad},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    names = ["Adam", "AdamW", "Adagrad", "NAdam"]
    out, found = bench("--optimizer", *names, "--shapes", "few", "--against", "deepspeed", *TINY)
    assert asked == [(1e-3, 1e-8, 0, False, True), (1e-3, 1e-8, 0.01, True, True), (1e-2, 1e-10, True)]
    assert ["deepspeed" in r["seconds"] for r in found["rows"]] == [True, True, True, False]
    assert "- deepspeed: only Adam, AdamW and Adagrad have a counterpart" in out
    bench("--optimizer", "AdamW", "--shapes", "few", "--against", "deepspeed", "--dtype", "bfloat16", *TINY)
    assert asked[-1] == (1e-3, 1e-8, 0.01, True, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_installed_deepspeed_matches_torch(dtype, threads):
    """DeepSpeed compiles its optimizers on first use, which takes a minute or two. For bfloat16, it rounds once."""
    if not importlib.util.find_spec("deepspeed"):
        pytest.skip("needs deepspeed: docs/benchmarks.md says how to install it")
    for name in ("Adam", "AdamW", "Adagrad"):
        of = torch.Generator().manual_seed(0)
        start = [torch.randn(shape, generator=of).to(dtype) for shape in ((5,), (70, 30), (70_000,))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing it warns
            torchs, deepspeed = (
                contenders.build(path, subjects.OPTIMIZERS[name], [p.clone().requires_grad_() for p in start])
                for path in ("for" if dtype == torch.float32 else "fused", "deepspeed")
            )
        assert contenders.NVML not in os.environ
        for _ in range(4):
            for p, q in zip(torchs.parameters, deepspeed.parameters, strict=True):
                p.grad = torch.randn(p.shape, generator=of).to(dtype)
                q.grad = p.grad.clone()
            torchs.step()
            deepspeed.step()
        states = [t for state in deepspeed.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
        assert {t.dtype for t in states if t.dim()} == {dtype}
        for p, q, s in zip(torchs.parameters, deepspeed.parameters, start, strict=True):
            if dtype == torch.float32:
                torch.testing.assert_close(q - s, p - s, rtol=1e-3, atol=5e-6)
            else:  # an ulp of the parameter or of its update, and seldom
                torch.testing.assert_close(q, p, rtol=2**-7, atol=2e-5)
                assert (p != q).float().mean() < 1e-3


def test_importing_deepspeed_does_not_slow_torch_down(own, monkeypatch):
    """DeepSpeed sets a variable that makes torch's steps load NVML each time."""
    text = f"""
import os, torch
os.environ.setdefault({contenders.NVML!r}, "1")
make = lambda model_params, lr: torch.optim.SGD(model_params, lr)
"""
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    ps = [torch.zeros(3, requires_grad=True)]
    for before in (None, "0"):
        if before is not None:
            monkeypatch.setenv(contenders.NVML, before)
        contenders.build("deepspeed", subjects.Optimizer("SGD", {}, (own(text), "make", {})), ps)
        assert os.environ.get(contenders.NVML) == before


def test_a_failing_implementation_is_a_note(bench, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such thing\nhere")

    monkeypatch.setattr(contenders, "_compiled", fail)
    out, found = bench("--optimizer", "SGD", "--shapes", "few", "--against", "compile,for", *TINY)
    assert "- SGD: compile: RuntimeError: no such thing" in out
    assert set(found["rows"][0]["seconds"]) == {"goptim", "for", "bound"}


def test_a_failure_is_reported_with_its_cause(bench, monkeypatch):
    def fail(*_):
        try:
            raise ValueError("no compiler\nhere")
        except ValueError as e:
            raise RuntimeError("failed to build") from e

    monkeypatch.setattr(contenders, "_deepspeed", fail)
    out, _ = bench("--optimizer", "AdamW", "--shapes", "few", "--against", "deepspeed", *TINY)
    assert "- AdamW: deepspeed: RuntimeError: failed to build (ValueError: no compiler)" in out


@pytest.mark.parametrize(
    ("seconds", "turns"),
    [(1e-6, 120), (0.01, 50), (0.4, 5), (1.9, 5), (2.6, 3), (9.0, 1)],
)
def test_slow_implementations_have_few_rounds(seconds, turns):
    assert steps.turns_of(seconds, 120, 10.0) == turns


def test_a_slow_implementation_is_left_out(bench, monkeypatch):
    build = contenders.build

    def slow(path, subject, parameters):
        contender = build(path, subject, parameters)
        if path == "foreach":
            contender.step = lambda: time.sleep(0.6)
        return contender

    monkeypatch.setattr(contenders, "build", slow)
    out, found = bench("--optimizer", "SGD", "--shapes", "few", *TINY, "--patience", 0.5)
    says = r"- SGD, 20 x 64, 1 thread: foreach: not measured: a step takes \d\.\d+ s here, and --patience is 0\.5"
    assert re.search(says, out)
    assert set(found["rows"][0]["seconds"]) == {"goptim", "for", "fused", "bound"}
    assert found["patience"] == 0.5


def test_a_slow_row_is_left_out(bench, monkeypatch):
    """A quarter of one tensor is enough to find out."""
    stepped = []
    build = contenders.build

    def slow(path, subject, parameters):
        contender = build(path, subject, parameters)
        step = contender.step

        def count():
            stepped.append([tuple(p.shape) for p in parameters])
            time.sleep(0.01)
            step()

        contender.step = count
        return contender

    monkeypatch.setattr(contenders, "build", slow)
    out, found = bench("--optimizer", "SGD", "--shapes", "big", "few", *TINY, "--patience", 0.3)
    says = r"- SGD, 8 x 2M, 1 thread: not measured: a step takes at least 0\.\d+ s here, and --patience is 0\.3"
    assert re.search(says, out)
    assert stepped[:3] == [[(524,)], [(524,)], [(1,)] * 20]
    assert [r["shapes"] for r in found["rows"]] == ["20 x 64"]


@pytest.fixture
def no_library():
    contenders.bound_library.cache_clear()
    yield
    contenders.bound_library.cache_clear()


def test_bound_without_a_compiler(bench, monkeypatch, no_library):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "nowhere")
    out, found = bench("--optimizer", "SGD", "--shapes", "few", *TINY)
    assert "- the memory bound is missing: there is no C compiler: set CC, or install gcc or clang" in out
    assert "share of bandwidth" not in out
    assert "bound" not in found["rows"][0]["seconds"]


def test_the_next_compiler_is_tried(monkeypatch, no_library):
    monkeypatch.setenv("CC", "false -with arguments")
    assert contenders.bound_library()[0] is not None
    contenders.bound_library.cache_clear()
    monkeypatch.setattr(contenders.shutil, "which", lambda name: name if name == "false" else None)
    assert contenders.bound_library() == (
        None,
        "the memory bound is missing: false cannot compile it: exit status 1",
    )


def test_two_passes_restore_the_values(threads):
    library, why = contenders.bound_library()
    assert library is not None, why
    ps = [torch.randn(n, requires_grad=True) for n in (5, 70_000, 600_000)]
    optimizer = goptim.AdamW(ps, amsgrad=True)
    for p in ps:
        p.grad = torch.randn_like(p)
    optimizer.step()
    before = [t.clone() for p in ps for t in (p.detach(), p.grad, *optimizer.state[p].values())]
    for n in (1, 2):
        preferred, widest = contenders.bound_of(library, optimizer, n)
        preferred()
        assert not torch.equal(before[0], ps[0])
        widest()
        assert all(
            map(torch.equal, before, [t for p in ps for t in (p.detach(), p.grad, *optimizer.state[p].values())])
        )


OWN = """
import torch
model = torch.nn.Linear(3, 2)
class Model(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1, bias=False))
        self[1].weight.requires_grad_(False)
def make():
    return model
shapes = [(2, 3), 5, [4]]
class Space:
    def inner(): return [torch.Size([7])]
empty, number, frozen, negative = [], 3, torch.nn.ReLU(), [(2, -1)]
def fails(): raise OSError("no weights")
"""


@pytest.mark.parametrize(
    ("attribute", "shapes"),
    [
        ("model", ((2, 3), (2,))),
        ("make", ((2, 3), (2,))),
        ("Model", ((3, 4), (3,))),
        ("shapes", ((2, 3), (5,), (4,))),
        ("Space.inner", ((7,),)),
    ],
)
def test_own_shapes(attribute, shapes, own, bench):
    name = f"{own(OWN)}:{attribute}"
    assert subjects.shapes_of(name).shapes == shapes
    out, found = bench("--optimizer", "RAdam", "--shapes", name, "--threads", 1, "--rounds", 1)
    [r] = found["rows"]
    assert (r["shapes"], r["tensors"]) == (name, len(shapes))
    assert f"| RAdam | {name} | 1 |" in out


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("nothing", r"'own\d+:nothing' cannot be imported: module 'own\d+' has no attribute 'nothing'"),
        ("fails", r"calling 'own\d+:fails' without arguments raised OSError: no weights"),
        ("number", r"'own\d+:number' is a int: expected a torch.nn.Module that has parameters, a function or class"),
        ("empty", "is a list: expected"),
        ("frozen", "is a ReLU: expected"),
        ("negative", "is a list: expected"),
    ],
)
def test_bad_own_shapes(attribute, says, own, refused):
    assert re.search(says, refused("--shapes", f"{own(OWN)}:{attribute}"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--optimizer", "AdamX"], "argument --optimizer: invalid choice: 'AdamX'"),
        (
            ["--shapes", "huge"],
            "expected one of big, matrices, resnet50, gpt2, small, small-matrices, tiny, few, policy or",
        ),
        (["--shapes", "no.such:thing"], "'no.such:thing' cannot be imported: No module named 'no'"),
        (["--against", "for,nothing"], "expected one of for, foreach, fused, compile, deepspeed, got 'nothing'"),
        (["--threads", "0"], "argument --threads: expected a whole number, at least 1, got '0'"),
        (["--rounds", "many"], "argument --rounds: expected a whole number, at least 1, got 'many'"),
        (["--scale", "2"], "argument --scale: expected a number above 0, at most 1, got '2'"),
        (["--patience", "0"], "argument --patience: expected a number of seconds above 0, got '0'"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--json", "/nowhere/a.json"], "expected the name of a .json file in a folder that exists"),
        (["--plot", "a.jpg"], "expected the name of a .png or .svg or .pdf file in a folder that exists, got 'a.jpg'"),
        (["--update", "README.md"], "expected page.md#mark with a page that exists, got 'README.md'"),
        (["--update", f"{ROOT}/README.md#none"], "--update: "),
        (
            ["--optimizer", "Muon", "--shapes", "big"],
            "Muon supports only matrices: --shapes matrices or small-matrices",
        ),
        (
            ["--training", "--shapes", "big"],
            "--shapes cannot be used with --training, which has its own models and implementations",
        ),
        (["--training", "--against", "compile"], "--against cannot be used with --training"),
        (["--training", "--plot", "a.png"], "--plot cannot be used with --training"),
        (["--training", "--optimizer", "Muon"], "Muon supports only matrices"),
        (["--phase", "--training"], "--phase cannot be used with --training"),
        (["--phase", "--against", "compile"], "--against cannot be used with --phase"),
        (["--phase", "--plot", "a.png"], "--plot cannot be used with --phase"),
        (["--phase", "--dtype", "float16"], "--phase supports float32 and float64"),
        (["--training", "--dtype", "float16"], "--training supports float32 and bfloat16"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_bad_arguments(arguments, says, refused):
    if "Muon" in arguments and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    assert says in refused(*arguments)


def test_plot_without_matplotlib(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    says = "--plot needs matplotlib, which is not installed: pip install matplotlib"
    assert says in refused("--plot", tmp_path / "a.png")


def test_without_tqdm(bench, monkeypatch):
    find = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "tqdm" else find(name))
    assert len(bench("--optimizer", "SGD", "--shapes", "few", *TINY)[1]["rows"]) == 1


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("shapes", [[], ["--shapes", "few", "small-matrices"]], ids=["default", "chosen"])
@pytest.mark.covering(1)
def test_plot(suffix, shapes, bench, tmp_path):
    out = tmp_path / f"plot{suffix}"
    bench("--optimizer", "SGD", "NAdam", *shapes, "--plot", out, *TINY)
    assert out.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_pages(tmp_path, bench):
    page, short = tmp_path / "page.md", tmp_path / "brief.md"
    page.write_text("above\n<!-- table -->\nold\n<!-- end -->\nbelow\n<!-- other -->\nkept\n<!-- end -->\n")
    short.write_text("<!-- table, brief -->\n<!-- end -->\n")
    pages_ = ["--update", f"{page}#table", f"{short}#table, brief"]
    out, _ = bench("--optimizer", "AdamW", "NAdam", *TINY, *pages_)
    text = page.read_text()
    assert text.startswith("above\n<!-- table -->\n")
    assert text.endswith("\n<!-- end -->\nbelow\n<!-- other -->\nkept\n<!-- end -->\n")
    assert "old" not in text
    assert all(line in text for line in out.splitlines())
    rows = re.findall(r"(?m)^\| (\w+) \| (.*?) \| \d", short.read_text())
    assert rows == [("AdamW", "8 x 2M"), ("NAdam", "8 x 2M")]


def test_brief_is_large_tensors_on_all_threads():
    rows = [row({}, shapes=shapes, threads=n) for shapes in ("small", "big", "matrices") for n in (1, 2)]
    assert [(r.shapes.title, r.threads) for r in rows if command.brief(r, rows)] == [("8 x 2M", 2)]


def test_interrupted(tmp_path, bench, monkeypatch):
    """Measured rows are printed and written as JSON, but no page is updated."""
    page = tmp_path / "page.md"
    page.write_text("<!-- table -->\nold\n<!-- end -->\n")
    measure, calls = steps.measure, itertools.count()

    def interrupted(*arguments):
        if next(calls):
            raise KeyboardInterrupt
        measure(*arguments)

    monkeypatch.setattr(steps, "measure", interrupted)
    words = ["--optimizer", "SGD", "--shapes", "few", "tiny", *TINY, "--update", f"{page}#table"]
    out, found = bench(*words)
    assert [r["shapes"] for r in found["rows"]] == ["20 x 64"]
    assert "- interrupted: the rest was not measured" in out
    assert "old" in page.read_text()


def test_too_little_memory(bench, monkeypatch):
    with pytest.raises(
        MemoryError, match=r"about \d+\.\d GiB are needed, and \d+\.\d are free: list fewer in --against"
    ):
        steps.check_memory([torch.empty(1 << 45, device="meta")], ["for"])

    def none(*_):
        raise MemoryError("about 9 GiB are needed")

    monkeypatch.setattr(steps, "check_memory", none)
    out, found = bench("--optimizer", "SGD", "--shapes", "few", *TINY)
    assert found["rows"] == []
    assert "- SGD, 20 x 64, 1 thread: not measured: about 9 GiB are needed" in out


@pytest.mark.parametrize("optimizer", ["SGD momentum", "AdamW", "NAdam", "Adafactor"])
def test_training(optimizer, bench):
    out, found = bench("--training", "--optimizer", optimizer, "--scale", 0.05, "--rounds", 1, "--threads", 1)
    assert found["measured"] == "training"
    assert [r["model"] for r in found["rows"]] == [model.title for model in training.MODELS]
    for r in found["rows"]:
        fused = ["fused"] if optimizer in ("SGD momentum", "AdamW") else []
        assert list(r["seconds"]) == ["default", *fused, "goptim"]
        for times in r["seconds"].values():
            assert times["rounds"] >= 2
            assert 0 < times["step"] < times["iteration"]
            assert 0 < times["share"] < 1
        assert re.search(rf"(?m)^\| {r['model']} \| [\d.]+[kM] \| {optimizer} \| 1 \| \d+% \|", out), out


@pytest.mark.parametrize("optimizer", ["SGD momentum", "AdamW", "NAdam", "Adafactor"])
def test_phase(optimizer, bench):
    out, found = bench("--phase", "--optimizer", optimizer, "--shapes", "few,resnet50", *TINY)
    assert found["measured"] == "phase"
    assert [r["shapes"] for r in found["rows"]] == ["20 x 64", "ResNet-50"]
    for r in found["rows"]:
        fused = ["fused"] if optimizer in ("SGD momentum", "AdamW") else []
        assert list(r["seconds"]) == ["default", *fused, "goptim", phase.ONE_CALL]
        for path, times in r["seconds"].items():
            assert list(times["parts"]) == ([] if path == phase.ONE_CALL else [*phase.PARTS])
            assert 0 < sum(times["parts"].values()) <= times["best"] <= times["median"] or path == phase.ONE_CALL
        assert re.search(
            rf"(?m)^\| {optimizer} \| {r['shapes']} \| 1 \|( \d+ \|){{6}}( \d+\.\d\d \||  \|){{4}}$", out
        ), out


def test_phase_computes_the_same():
    """All implementations clip, step, average and clear with the same result."""
    results = {}
    for make in (phase._torch_calls, phase._goptim_calls, phase._in_one_call):
        params = [torch.linspace(-1, 1, n).requires_grad_() for n in (5, 70)]
        contender = make(subjects.OPTIMIZERS["SGD momentum"], params)
        for _ in range(3):
            for p in params:
                p.grad = torch.full_like(p, 3)
            for part in contender.parts:
                part()
        assert not any(p.grad.any() for p in params)
        results[make] = [p.detach() for p in params]
    first, *others = results.values()
    for other in others:
        assert_bit_equal(first, other)


def test_training_models_at_their_full_size():
    sizes = [sum(p.numel() for p in model.build(1.0)[0].parameters()) for model in training.MODELS]
    assert sizes[0] > 3e6
    assert sizes[1] > 2e6
    assert sizes[2] == 8 * 64 + 64 + 64 * 64 + 64 + 64 * 4 + 4


def watched(seconds: float = 100.0, others: float = 0.0, stolen: float = 0.0, known: bool = True) -> conditions.Watch:
    return conditions.Watch(seconds, others, stolen, known)


@pytest.mark.parametrize(
    ("watch", "cores", "load", "spreads", "says"),
    [
        (watched(others=9), 2, 9.0, [1.1] * 9, []),
        (watched(others=11), 2, 0.0, [], [r"^other processes used 0\.11 of 2 cores \(the limit is 5%\)$"]),
        (watched(others=11), 16, 0.0, [], []),
        (watched(stolen=3), 2, 0.0, [], []),
        (watched(stolen=5), 2, 0.0, [], [r"^other virtual machines used 2\.5% of the cores' time"]),
        (watched(others=200, stolen=50), 2, 0.0, [], ["^other processes", "^other virtual machines"]),
        (watched(seconds=0.5, others=1), 2, 0.0, [], []),
        (watched(known=False), 2, 2.4, [], []),
        (
            watched(known=False),
            2,
            2.6,
            [],
            [r"^the load average was 2\.6 at the end, and the benchmark had 2 threads$"],
        ),
        (watched(), 2, 0.0, [1.6, 1.1, 1.2], []),
        (watched(), 2, 0.0, [1.6, 1.7, 1.2], [r"^the memory bandwidth varied: in 2 of 3 rows"]),
        (watched(), 2, 0.0, [1.6], [r"^the memory bandwidth varied: in 1 of 1 rows"]),
    ],
)
def test_busy(watch, cores, load, spreads, says):
    reasons = conditions.reasons_busy(watch, cores, 2, load, spreads)
    assert len(reasons) == len(says), reasons
    for reason, pattern in zip(reasons, says, strict=True):
        assert re.search(pattern, reason)
    assert conditions.verdict(reasons, watch).startswith("**The machine was too busy") == bool(says)


def test_verdict():
    assert "The machine was quiet: other processes used 0.02 cores" in conditions.verdict([], watched(others=2))
    assert "too short to tell" in conditions.verdict([], watched(seconds=0.1))
    assert "does not provide" in conditions.verdict([], watched(known=False))


def test_watch_excludes_this_process(monkeypatch):
    counted = iter([(10.0, 4.0, 1.0), (19.0, 11.0, 1.5)])
    monkeypatch.setattr(conditions, "_cpu_times", lambda: next(counted))
    watch = conditions.Watch()
    with watch():
        pass
    assert (watch.others, watch.stolen) == (2.0, 0.5)
    monkeypatch.setattr(conditions, "_cpu_times", lambda: None)
    with watch():
        pass
    assert not watch.known


def test_spread_is_of_large_tensors():
    times = {"goptim": [1.0], "bound": [1.0, 1.6, 9.0]}
    assert row(times).spread == 1.6
    assert row(times, shapes="small").spread is None
    assert row({"goptim": [1.0]}).spread is None


@pytest.mark.parametrize(
    ("script", "mark", "arguments"),
    [
        ("sparse.py", "sparse", ["--case", "10 x 8, 4", "--rounds", 1]),
        ("lbfgs.py", "lbfgs", ["--n", 20000, "--history", 3, "--rounds", 1]),
    ],
)
def test_programs(script, mark, arguments, tmp_path, server):
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {mark} -->\nold\n<!-- end -->\n")
    done = server.run(f"benchmarks/{script}", *arguments, "--threads", 1, "--update", page)
    assert done.returncode == 0, done.stderr
    rows = re.findall(rf"(?m)^\|.*\| 1 \| \d+ \| \d+ \|{RATIO}$", done.stdout)
    assert len(rows) == (3 if mark == "sparse" else 1)
    assert done.stdout.strip() in page.read_text()


@pytest.mark.xdist_group("server")
def test_half_error(tmp_path, server):
    page = tmp_path / "page.md"
    page.write_text("<!-- half_error -->\nold\n<!-- end -->\n")
    arguments = ["--optimizer", "AdamW", "Adafactor", "--steps", 10, "--seeds", 1, "--update", page]
    done = server.run("benchmarks/half_error.py", *arguments)
    assert done.returncode == 0, done.stderr
    [head, row] = re.findall(r"(?m)^\| (?:optimizer|AdamW) \|.*$", done.stdout)
    of = dict(zip(*([cell.strip() for cell in line.split("|")[2:-1]] for line in (head, row)), strict=False))
    assert of["learning rate"] == "0.01"
    assert 1e-3 < float(of["bfloat16: for-loop"]) < 0.1
    assert row.count("not finite") <= 1  # torch's for-loop in float16 rounds eps to 0
    assert done.stdout.strip() in page.read_text()


@pytest.mark.parametrize(("page", "count"), [("README.md", 2), ("docs/benchmarks.md", 7), ("docs/half.md", 1)])
def test_make_bench_finds_its_marks(page, count):
    recipe = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    marks = re.findall(rf"'{page}#([^']+)'", recipe)
    marks += re.findall(rf"benchmarks/(\w+)\.py .*--update {page}", recipe)
    assert len(marks) == count
    for mark in marks:
        pages.find(ROOT / page, mark)


def test_import_is_cheap():
    code = "import sys, goptim; print({'goptim._bench', 'matplotlib', 'deepspeed'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
