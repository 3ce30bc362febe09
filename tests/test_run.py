"""``python -m goptim run`` runs programs for torch.optim with goptim, with the same output."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pythons
import torch

from goptim import _native
from goptim.testing import assert_bit_equal

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "programs"
RUN = ("-m", "goptim", "run")

# IEEE square roots for the whole process.
IEEE = """
import atexit, goptim.testing
_roots = goptim.testing.ieee_sqrt()
_roots.__enter__()
atexit.register(_roots.__exit__, None, None, None)
"""
# The effects of the environment and sitecustomize.py on a new process.
FIRST = IEEE + "import torch, warnings\ntorch.set_num_threads(1)\nwarnings.simplefilter('ignore')\n"


def new_in(tmp_path, *folders):
    """Run Python in a folder, with these folders in its path."""
    path = os.pathsep.join(map(str, [*folders, ROOT / "python"]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def run(*words, code=0):
        done = pythons.new(*words, cwd=tmp_path, env=environment, timeout=240)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    return run


@pytest.fixture
def new_python(tmp_path):
    """Run Python in a separate folder, where torch rounds square roots correctly."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(IEEE)
    return new_in(tmp_path, folder)


@pytest.fixture
def new_python_without_torch(tmp_path):
    """The same where nothing imports torch at the start, which takes seconds in each of a program's processes."""
    return new_in(tmp_path)


@pytest.fixture
def python(tmp_path, server):
    """The same as new_python, in a fork of a process that has imported torch."""

    def run(*words, code=0):
        done = server.run(*words, cwd=tmp_path, first=FIRST, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    return run


@pytest.fixture
def plain_python(tmp_path):
    """The same in a new Python without torch, which starts quickly, for tests of the program's environment."""

    def run(*words, code=0):
        done = pythons.new(*words, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    return run


@pytest.fixture
def script(tmp_path):
    def write(text, name="program.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def report(err):
    return [line for line in err.splitlines() if line.startswith("goptim: ")]


def load(*paths):
    return [torch.load(path) for path in paths]


@pytest.mark.full
def test_digits(new_python, tmp_path):
    pytest.importorskip("sklearn")
    program, saved = PROGRAMS / "digits.py", [tmp_path / "torch.pt", tmp_path / "go.pt"]
    expected, _ = new_python(program, "--epochs", 2, "--save-model", saved[0])
    out, err = new_python(*RUN, program, "--epochs", 2, "--save-model", saved[1])
    assert out == expected
    assert "Accuracy" in out
    assert_bit_equal(*load(*saved))
    assert report(err) == ["goptim: Adadelta: 1 optimizer, 44 steps; in Go: 8 parameters (352 updates)"]


def test_names_from_everywhere(python, tmp_path):
    program, saved = PROGRAMS / "zoo.py", [tmp_path / "torch.pt", tmp_path / "go.pt"]
    expected, _ = python(program, saved[0])
    out, err = python(*RUN, program, saved[1])
    assert out == expected
    assert_bit_equal(*load(*saved))
    took = "1 optimizer, 20 steps; in Go: 4 parameters (80 updates)"
    assert report(err) == [
        *(f"goptim: {name}: {took}" for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam")),
        "goptim: Lookahead: 1 optimizer, 20 steps; fell back to torch: 4 parameters (80 updates):",
        "goptim:   80 updates: its optimizer is derived from torch.optim.AdamW and may override what goptim does not "
        "call",
        "goptim: LBFGS: 1 optimizer, 3 steps; in Go: 4 parameters (12 updates)",
    ]


def test_checkpoints_go_both_ways(python, tmp_path):
    """Half a run with each is the same as a whole run with one."""
    program = PROGRAMS / "embeddings.py"
    whole, _ = python(program, tmp_path / "whole.pt")
    for first, then in (((), RUN), (RUN, ()), (RUN, RUN)):
        saved = tmp_path / "halves.pt"
        saved.unlink(missing_ok=True)
        out, _ = python(*first, program, saved, "--until", 10)
        more, err = python(*then, program, saved)
        assert more.startswith("resumes at 10\n")
        assert out + more.removeprefix("resumes at 10\n") == whole
        assert_bit_equal(*load(saved, tmp_path / "whole.pt"))
        if then:
            assert report(err) == [
                "goptim: SparseAdam: 1 optimizer, 10 steps; in Go: 2 parameters (20 updates)",
                "goptim: Adam: 1 optimizer, 10 steps; in Go: 2 parameters (20 updates)",
            ]


REASONS = """
import copy, pickle, torch
from torch.nn import Parameter

p, q, none = Parameter(torch.ones(3)), Parameter(torch.ones(3, dtype=torch.complex64)), Parameter(torch.ones(3))
p.grad, q.grad = torch.ones(3), torch.ones(3, dtype=torch.complex64)
for _ in range(2):
    opt = torch.optim.SGD([p, q, none])
    opt.step()
half = Parameter(torch.ones(3, dtype=torch.bfloat16))
half.grad = torch.ones_like(half)
torch.optim.Adagrad([half]).step()
torch.optim.Adagrad([half], foreach=True).step()
opt = torch.optim.Adam([p, none], lr=torch.tensor(0.1))
opt.step()

class Mine(torch.optim.Optimizer):
    def step(self, closure=None): pass

Mine([p], {}).step()
"""


def test_reasons_in_the_report(python, script):
    _, err = python(*RUN, script(REASONS))
    assert report(err) == [
        "goptim: SGD: 2 optimizers, 2 steps; in Go: 2 parameters (2 updates); "
        "fell back to torch: 2 parameters (2 updates):",
        "goptim:   2 updates: it is torch.complex64",
        "goptim: Adagrad: 2 optimizers, 2 steps; in Go: 1 parameter (1 update); "
        "fell back to torch: 1 parameter (1 update):",
        "goptim:   1 update: foreach=True: torch rounds 16-bit parameters after every operation",
        "goptim: Adam: 1 optimizer, 1 step; fell back to torch: 1 parameter (1 update):",
        "goptim:   1 update: its group's lr is a Tensor",
        "goptim: Mine: 1 optimizer, 1 step; fell back to torch: 1 parameter (1 update):",
        "goptim:   1 update: its optimizer is not a class of torch.optim",
    ]
    _, err = python(*RUN, "-q", script(REASONS))
    assert report(err) == []


FUNCTIONS = """
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

p, q = (torch.nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
r = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
p.grad, q.grad, r.grad = torch.ones_like(p), torch.ones_like(q), torch.ones_like(r)
clip_grad_value_([p], 0.5)
torch.optim.SGD([p]).step()
for _ in range(3):
    clip_grad_norm_([p, q, r], 0.5)
clip_grad_norm_([q], 0.5)
model = torch.nn.Linear(2, 2)
torch.optim.swa_utils.AveragedModel(model).update_parameters(model)
"""


STORED = """
import goptim, torch
from torch.nn import Parameter

params = [Parameter(torch.ones(3, dtype=d)) for d in (torch.bfloat16, torch.bfloat16, torch.float32)]
opt = goptim.AdamW(params, rounding="stochastic", seed=1)
for step in range(3):
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    if step == 1:
        opt.param_groups[0].update(rounding="kahan", state_dtype=torch.float32)
"""


def test_keywords_in_the_report(python, script):
    _, err = python(*RUN, script(STORED))
    assert report(err) == [
        "goptim: AdamW: 1 optimizer, 3 steps; in Go: 3 parameters (9 updates)",
        "goptim:   2 parameters with rounding='stochastic', seed=1",
        "goptim:   2 parameters with state_dtype=torch.float32, rounding='kahan'",
        "goptim:   1 parameter with state_dtype=torch.float32",
    ]


def test_functions_in_the_report(python, script):
    _, err = python(*RUN, script(FUNCTIONS))
    assert report(err) == [
        "goptim: SGD: 1 optimizer, 1 step; in Go: 1 parameter (1 update)",
        "goptim: clip_grad_value_: 1 call; fell back to torch: 1 tensor (1 update):",
        "goptim:   1 update: no optimizer of goptim was constructed before",
        "goptim: clip_grad_norm_: 4 calls; in Go: 2 tensors (7 updates); fell back to torch: 1 tensor (3 updates):",
        "goptim:   3 updates: it is torch.complex64",
        "goptim: AveragedModel: 1 call; in Go: 2 tensors (2 updates)",
    ]


SCALED = """
import torch
from torch.amp import GradScaler
from torch.nn import Parameter

p, q = Parameter(torch.zeros(2)), Parameter(torch.zeros(2, dtype=torch.bfloat16))
scaler = GradScaler("cpu", init_scale=4.0)
kept = torch.optim.SGD([p], lr=1.0)  # the first optimizer loads Go


class Mine(torch.optim.SGD):
    pass


def step(opt, *grads):
    params = [p for group in opt.param_groups for p in group["params"]]
    for p, g in zip(params, grads):
        p.grad = torch.full_like(p, g)
    scaler.scale(torch.ones(()))
    scaler.step(opt)
    scaler.update(4.0)


for g in (4.0, float("inf"), float("nan"), 8.0):
    step(kept, g)
fused = torch.optim.Adam([p, q], fused=True)
step(fused, 4.0, 4.0)
step(torch.optim.Adam([p], fused=True), 4.0)
step(torch.optim.Adam([p], fused=True), float("inf"))
step(Mine([p]), 4.0)
"""


def test_scalers_in_the_report(python, script):
    _, err = python(*RUN, script(SCALED))
    assert report(err) == [
        "goptim: SGD: 1 optimizer, 2 steps; in Go: 1 parameter (2 updates)",
        "goptim: Adam: 2 optimizers, 2 steps; in Go: 1 parameter (1 update); "
        "fell back to torch: 2 parameters (2 updates):",
        "goptim:   2 updates: a GradScaler passes its scale to the optimizer",
        "goptim: Mine: 1 optimizer, 1 step; fell back to torch: 1 parameter (1 update):",
        "goptim:   1 update: its optimizer is derived from torch.optim.SGD and may override what goptim does not call",
        "goptim: GradScaler: 8 calls; in Go: 2 tensors (8 updates); fell back to torch: 1 tensor (1 update):",
        "goptim:   1 update: its optimizer is not one of goptim",
        "goptim:   3 calls found a gradient that is not finite",
        "goptim: GradScaler, dividing by the scale: 2 calls; in Go: 1 tensor (1 update); "
        "fell back to torch: 2 tensors (2 updates):",
        "goptim:   1 update: torch's fused step does not round the quotients of its 16-bit elements (torch.bfloat16)",
        "goptim:   1 update: torch computes it for these arguments or neighbors",
    ]


AROUND = """
import goptim, numpy, torch
from torch.nn import Parameter

p, q = Parameter(torch.zeros(3)), Parameter(torch.zeros(2, 2))


class Own(goptim.EMA):
    def update(self):
        super().update()


def step(opt, **around):
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    opt.step(**around)


opt = torch.optim.AdamW([p, q])
for _ in range(3):
    step(opt, max_grad_norm=1.0, ema=goptim.EMA([p], 0.9), zero_grad=True)
step(opt, ema=Own([p], 0.9), zero_grad=True)
step(opt, ema=goptim.EMA([p], 0.9), zero_grad=True)
step(opt)
step(torch.optim.SGD([p, p.detach().double()]), max_grad_norm=1.0)
step(torch.optim.SGD([p, q.detach().cfloat()]), max_grad_norm=1.0)
step(torch.optim.SGD([p], lr=numpy.float32(0.1)), max_grad_norm=1.0)
step(torch.optim.SGD([p], maximize=True), max_grad_norm=1.0)
opt = torch.optim.Adafactor([q])
opt.max_grad_norm = 1.0
step(opt)
"""


def test_what_surrounds_a_step_in_the_report(python, script):
    _, err = python(*RUN, script(AROUND))
    assert report(err) == [
        "goptim: AdamW: 1 optimizer, 6 steps; in Go: 2 parameters (12 updates)",
        "goptim: AdamW.step(max_grad_norm, ema, zero_grad): 3 steps; in one call of Go: 2 steps; "
        "in several calls: 1 step:",
        "goptim:   1 step: it creates states",
        "goptim: AdamW.step(ema, zero_grad): 2 steps; in one call of Go: 1 step; in several calls: 1 step:",
        "goptim:   1 step: its EMA overrides update, or has a decay that is not a float",
        "goptim: SGD: 4 optimizers, 4 steps; in Go: 5 parameters (5 updates); "
        "fell back to torch: 1 parameter (1 update):",
        "goptim:   1 update: it is torch.complex64",
        "goptim: SGD.step(max_grad_norm): 4 steps; in one call of Go: 1 step; in several calls: 3 steps:",
        "goptim:   1 step: its gradients have several dtypes, or its tensors share memory",
        "goptim:   1 step: not all of its parameters are on the fast path",
        "goptim:   1 step: its group has an argument that is not a float or an int",
        "goptim: Adafactor: 1 optimizer, 1 step; in Go: 1 parameter (1 update)",
        "goptim: Adafactor.step(max_grad_norm): 1 step; in several calls: 1 step:",
        "goptim:   1 step: its class is not elementwise",
    ]


def test_a_program_without_optimizers(python, script):
    assert python(*RUN, script("print(1)")) == ("1\n", "goptim: no optimizer took a step\n")


SELF = """
import sys, os, inspect
print(__name__, __file__, sys.argv, sys.path[0], __doc__, __package__, __spec__ and __spec__.name)
print(sys.modules["__main__"].__dict__ is globals(), sorted(k for k in globals() if not k.startswith("__")))
import beside
def f(): pass
import pickle
print(sys.orig_argv[1:], inspect.getmodule(f) is sys.modules["__main__"])
print(pickle.loads(pickle.dumps(f)) is f, beside.__name__, __annotations__ if "__annotations__" in globals() else {})
"""


@pytest.mark.parametrize("how", [pytest.param("file", marks=pytest.mark.full), "module", "folder"])
def test_a_program_sees_the_usual_environment(python, new_python, plain_python, script, tmp_path, how):
    (tmp_path / "pack").mkdir()
    for name in ("pack/program.py", "pack/__main__.py"):
        script(SELF, name)
    for name in ("pack/__init__.py", "pack/beside.py", "beside.py"):
        script("", name)
    words = {"file": ["pack/program.py"], "module": ["-m", "pack.program"], "folder": ["pack"]}[how]
    words += ["--lr", "1", "-m", "x", "--", "-q"]
    flags = ["-X", "utf8", "-Wignore"] if how == "file" else []
    expected, _ = new_python(*flags, *words) if flags else plain_python(*words)
    out, _ = new_python(*flags, *RUN, *words) if flags else python(*RUN, *words)
    assert out == expected
    if how == "file":
        out, _ = new_python(*flags, "-Bm", "goptim", *RUN[2:], *words)
        assert out == expected.replace("'-Wignore', ", "'-Wignore', '-B', ")


ENDS = {
    "returns": ("", 0),
    "exits": ("import sys; sys.exit(3)", 3),
    "exits with a word": ("raise SystemExit('word')", 1),
    "raises": (
        "def f():\n    raise ValueError('why')\ntry:\n    f()\nexcept ValueError as e:\n    raise KeyError(1) from e",
        1,
    ),
    "has a hook": (
        "import sys\nsys.excepthook = lambda *e: print(len(__import__('traceback').extract_tb(e[2])))\n1 / 0",
        1,
    ),
    "is interrupted": ("raise KeyboardInterrupt", -signal.SIGINT),
    "does not compile": ("x = (", 1),
    "exits at once": ("import os; os._exit(5)", 5),
    "forks": ("import os, sys\nif os.fork() == 0: sys.exit(0)\nos.wait()", 0),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_as_usual(python, plain_python, script, end):
    text, code = ENDS[end]
    program = script(text)
    out, err = python(*RUN, program, code=code)
    says = "" if end == "exits at once" else "goptim: no optimizer took a step\n"
    expected = plain_python(program, code=code)
    assert (out, err) == (expected[0], expected[1] + says)


def test_a_program_has_annotations(python, script):
    """Before Python 3.14, the variable exists before a program's first annotation."""
    program = script("import sys\nprint(sys.version_info >= (3, 14) or __annotations__ == {})")
    assert python(*RUN, program)[0] == "True\n"


@pytest.mark.full
def test_a_new_process_that_raises(new_python, script):
    test_a_program_ends_as_usual(new_python, new_python, script, "raises")


@pytest.mark.parametrize("words", [["nowhere.py"], ["-m", "nowhere"]], ids=str)
def test_a_missing_program(python, plain_python, words):
    code = 1 if "-m" in words else 2
    _, err = python(*RUN, "-q", *words, code=code)
    assert err == plain_python(*words, code=code)[1]


CHILDREN = """
import multiprocessing, os, subprocess, sys
from concurrent.futures import ProcessPoolExecutor

class Result:
    def __init__(self, x): self.x = x

def work(depth):
    import torch
    kind = type(torch.optim.SGD([torch.zeros(1)])).__module__
    if depth:
        return executed("spawn", depth - 1)
    return Result(kind + " " + work.__module__)

class Data:
    def __len__(self): return 1
    def __getitem__(self, i): return work(0)

def flat(x):
    while isinstance(x, list): [x] = x
    assert type(x) is Result, type(x)
    return x.x

def loaded(method):
    from torch.utils.data import DataLoader
    return list(DataLoader(Data(), batch_size=None, num_workers=1, multiprocessing_context=method))

def executed(method, depth=0):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as executor:
        return executor.submit(work, depth).result()

def pooled(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.map(work, [0])

def nested(method):
    return executed(method, 1)

def other(method):
    program = "import torch; print(type(torch.optim.SGD([torch.zeros(1)])).__module__)"
    return Result(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip())

if __name__ == "__main__":
    assert sys.modules["__mp_main__"] is sys.modules["__main__"]
    print(sys.argv, [word for word in sys.orig_argv if "python" not in word], flat(work(0)))
    for word in sys.argv[1:]:
        what, method = word.split(":")
        print(word, flat(globals()[what](method)), flush=True)
"""
METHODS = ("spawn", "forkserver", "fork")
NESTED, LOADED, POOLED = ([f"{what}:{method}" for method in METHODS] for what in ("nested", "loaded", "pooled"))


@pytest.mark.parametrize(
    ("how", "children"),
    [
        ("file", ["executed:spawn"]),
        pytest.param("file", [*NESTED, "other:"], marks=pytest.mark.full),
        pytest.param("module", LOADED, marks=pytest.mark.full),
        pytest.param("file", POOLED, marks=pytest.mark.full),
    ],
    ids=["few", "nested", "loaded", "pooled"],
)
def test_child_processes(new_python_without_torch, script, how, children):
    """Child processes find the program, pickle its classes in both directions, and use goptim's optimizers."""
    script(CHILDREN, "children.py")
    words = ["children.py", *children] if how == "file" else ["-m", "children", *children]
    expected, _ = new_python_without_torch(*words)
    assert "goptim" not in expected
    assert len(expected.splitlines()) == 1 + len(children)
    out, err = new_python_without_torch(*RUN, *words)
    assert out == expected.replace("torch.optim.sgd", "goptim.sgd")
    assert report(err) == ["goptim: no optimizer took a step"]
    assert len(err.splitlines()) == 1


@pytest.mark.full
def test_a_program_that_patches_itself_does_so_in_child_processes(new_python_without_torch, script):
    out, _ = new_python_without_torch(script("import goptim\ngoptim.patch()\n" + CHILDREN), "executed:spawn")
    assert out.count("goptim.sgd") == 2
    assert "torch.optim.sgd" not in out


IMPORTS = """
import os, sys
before = set(sys.modules)
assert not before & {"torch", "goptim"}, "imported at the start"
assert not [path for path in sys.path if "_children" in path], sys.path
import %s as first
import goptim, torch
print(type(torch.optim.SGD([torch.zeros(1)])).__module__, torch.__spec__.loader.exec_module.__name__)
sys.stdout.flush()
if len(sys.argv) > 1:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.full
def test_a_child_imports_goptim_first_or_torch(script, tmp_path):
    """The children of a child are patched too, also after an exec."""
    script("import subprocess, sys\nsubprocess.run([sys.executable, 'a.py', 'b.py'], check=True)")
    script(IMPORTS % "goptim", "a.py")
    script(IMPORTS % "torch", "b.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python")}
    command = [sys.executable, *RUN, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "goptim.sgd exec_module\n" * 2, done.stderr


def test_help(python):
    out, _ = python("-m", "goptim", "--help")
    assert re.search(r"(?m)^ +run +run a program with torch.optim's optimizers in Go", out)
    _, err = python("-m", "goptim", code=2)
    assert "command" in err


PAGE = (ROOT / "docs" / "run.md").read_text()


def test_snippets_of_the_page_run(capsys):
    snippets = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE)
    assert len(snippets) == 3
    for code in snippets:
        names = {"torch": torch, "model": torch.nn.Linear(3, 2)}
        exec(code, names)
        assert type(names["optimizer"]) is names["goptim"].AdamW
        assert type(torch.optim.AdamW([torch.zeros(1)])) is torch.optim.AdamW
    page, n = re.subn(r"(?m)^on .*", lambda _: f"on {_native.platform_line()}", PAGE)
    assert n == 1
    assert capsys.readouterr().out in page


def test_commands_of_the_page_run(python, script, tmp_path):
    commands = re.findall(r"(?ms)^```sh\n(.*?)^```", PAGE)[0].splitlines()
    (tmp_path / "package").mkdir()
    for name in ("train.py", "package/train.py"):
        script("import sys; print(sys.argv[1:])", name)
    for command in commands:
        word, *words = command.split()
        assert word == "python"
        out, err = python(*words)
        assert out == "['--epochs', '3']\n"
        assert " ".join(err.split()) in " ".join(PAGE.split())


@pytest.mark.parametrize(
    ("option", "site", "stays"),
    [("-s", "", False), ("-I", "", False), ("-S", "", True), ("-S", "import site; site.main()", False)],
)
def test_folder_for_children_stays_where_it_cannot_leave(option, site, stays):
    """It is in PYTHONPATH, for the site module to find what takes it from sys.path."""
    folder = Path(pythons.ROOT) / "python" / "goptim" / "_children"
    program = f"import sys; {site}\nprint({str(folder)!r} in sys.path, 'goptim' in sys.modules)"
    environment = {"PYTHONPATH": str(folder), "GOPTIM_RUN": sys.prefix}
    done = subprocess.run(
        [sys.executable, option, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (f"{stays} False\n", "")
