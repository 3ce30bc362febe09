"""States as safetensors files: between goptim, torch.optim and the Go package, and on with the same bits."""

import json

import golden
import pytest
import torch
from configurations import oracle_of

import goptim
from goptim import _safetensors
from goptim.testing import assert_bit_equal, ieee_sqrt

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

NAMES = [name for name, (class_name, _, _) in golden.RUNS.items() if hasattr(torch.optim, class_name)]
GO = sorted((golden.PATH.parent / "go").glob("*.safetensors"))
BUILDERS = pytest.mark.parametrize("build", [lambda name: getattr(goptim, name), oracle_of], ids=["goptim", "torch"])


def start(build, name, dtype, tensors, step):
    """An optimizer with a class's defaults, and its parameters as they were after a step."""
    class_name, _, shapes = golden.RUNS[name]
    params = {n: tensors[f"value.{step}.{n}"].clone().requires_grad_() for n in shapes}
    options = {} if class_name in ("SparseAdam", "Muon", "LBFGS") else {"foreach": False}
    return build(class_name)(params.values(), lr=0.5, **options), params


def step(optimizer, params, tensors, t):
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(lambda: golden.valley(list(params.values())))
        return
    for n, p in params.items():
        grad, index = tensors.get(f"grad.{t}.{n}"), tensors.get(f"index.{t}.{n}")
        if index is not None:
            grad = torch.sparse_coo_tensor(index[None], grad, p.shape, check_invariants=True)
        p.grad = grad
    with ieee_sqrt():
        optimizer.step()


def compare(name, tensors, params, t):
    for n, p in params.items():
        want = tensors[f"value.{t}.{n}"]
        if name in golden.INEXACT:
            tolerance = 2e-4 if name == "Muon" else 1e-4 if p.dtype is torch.float32 else 1e-11
            torch.testing.assert_close(p.detach(), want, rtol=tolerance, atol=tolerance)
        else:
            assert_bit_equal(p.detach(), want)


@BUILDERS
@pytest.mark.parametrize("path", GO, ids=lambda path: path.stem)
def test_goes_on_where_go_stopped(build, path):
    name = path.stem.removesuffix("-float32")
    if name not in NAMES:
        pytest.skip("this torch has no such class")
    tensors, _ = _safetensors.read(path)
    optimizer, params = start(build, name, "float32", tensors, golden.SAVED)
    goptim.load_state(optimizer, path, params.items())
    for t in range(golden.SAVED + 1, golden.RUN_STEPS + 1):
        step(optimizer, params, tensors, t)
        compare(name, tensors, params, t)


def test_go_has_a_file_of_every_run():
    assert [path.stem for path in GO] == sorted(f"{name}-float32" for name in golden.RUNS)


@pytest.mark.parametrize("dtype", golden.DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_goes_on_after_a_round_trip(name, dtype, tmp_path):
    """A state goes from torch's class to ours through two files."""
    golden.run(name, dtype, tmp_path / "run")
    tensors, _ = _safetensors.read(tmp_path / "run")
    first, params = start(lambda c: getattr(goptim, c), name, dtype, tensors, golden.SAVED)
    goptim.load_state(first, tmp_path / "run", params.items())
    goptim.save_state(first, tmp_path / "again", params.items())
    again, _ = _safetensors.read(tmp_path / "again")
    for key in again:
        assert_bit_equal(again[key], tensors[key])
    assert {k for k in tensors if k.startswith("state.")} == set(again)
    second, params = start(lambda c: getattr(goptim, c), name, dtype, tensors, golden.SAVED)
    goptim.load_state(second, tmp_path / "again", params.items())
    for t in range(golden.SAVED + 1, golden.RUN_STEPS + 1):
        step(second, params, tensors, t)
        compare(name, tensors, params, t)


@pytest.mark.skipif(torch.__version__ < "2.15", reason="the options of an older torch are others")
def test_files_are_fresh():
    """But for those that depend on the machine's matrix products."""
    for file, data in golden.runs().items():
        if not file.startswith(golden.INEXACT):
            assert data == (golden.RUNS_PATH / file).read_bytes(), f"{file}: run `make golden`"
    assert golden.SCHEDULES_PATH.read_text() == golden.schedules(), "run `make golden`"


def test_a_reader_of_the_format_reads_them():
    torchs = pytest.importorskip("safetensors.torch")
    for path in [*GO, *golden.RUNS_PATH.glob("*")]:
        theirs, (ours, _) = torchs.load_file(path), _safetensors.read(path)
        assert theirs.keys() == ours.keys()
        for key, t in theirs.items():
            assert_bit_equal(t, ours[key])


def test_names_and_options(tmp_path):
    model = torch.nn.Linear(2, 3)
    lr = torch.tensor(0.1)
    groups = [{"params": [model.weight], "lr": lr}, {"params": [model.bias], "betas": (0.5, 0.6), "initial_lr": 1}]
    optimizer = goptim.AdamW(groups)
    goptim.save_state(optimizer, tmp_path / "state", model.named_parameters())
    saved = json.loads(_safetensors.read(tmp_path / "state")[1]["param_groups"])
    assert [g["params"] for g in saved] == [["weight"], ["bias"]]
    fresh = goptim.AdamW([{"params": [p]} for p in model.parameters()])
    goptim.load_state(fresh, tmp_path / "state", model.named_parameters())
    assert fresh.param_groups[0]["lr"] == lr.item()
    assert fresh.param_groups[1]["betas"] == (0.5, 0.6)
    goptim.save_state(optimizer, tmp_path / "numbered")
    assert [g["params"] for g in json.loads(_safetensors.read(tmp_path / "numbered")[1]["param_groups"])] == [
        ["0"],
        ["1"],
    ]
    named = goptim.SGD(model.named_parameters(), momentum=0.9)
    if "param_names" in named.param_groups[0]:
        goptim.save_state(named, tmp_path / "named")
        assert json.loads(_safetensors.read(tmp_path / "named")[1]["param_groups"])[0]["params"] == ["weight", "bias"]
    assert not list(tmp_path.glob("*.tmp"))


def test_refuses_and_changes_nothing(tmp_path):
    path = tmp_path / "state"
    p, q = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = goptim.Adam([p, q])
    p.grad = torch.ones(3)
    optimizer.step()
    goptim.save_state(optimizer, path)
    data = path.read_bytes()
    before = optimizer.state_dict()

    def refuses(what, match, names=None):
        with pytest.raises(ValueError, match=match):
            goptim.load_state(what, path, names)

    refuses(goptim.SGD([p, q]), "the state of Adam, expected that of SGD")
    refuses(goptim.Adam([p]), "parameters")
    refuses(goptim.Adam([{"params": [p]}, {"params": [q]}]), "1 groups of parameters, expected 2")
    refuses(goptim.Adam([q, p]), r"parameter 0: exp_avg is of torch.float32 and shape \(3,\)")
    refuses(goptim.Adam([p.detach().double().requires_grad_(), q]), "expected torch.float64")
    refuses(optimizer, "parameters", [("a", p), ("b", q)])
    refuses(optimizer, "no name", [("a", p)])
    refuses(optimizer, "the same name", [("a", p), ("a", q)])
    for damaged in (data[:-1], data + b"x", data[:100], b"", data.replace(b'"F32"', b'"F31"', 1)):
        path.write_bytes(damaged)
        refuses(optimizer, "damaged")
    _safetensors.write(path, {}, {})
    refuses(optimizer, "not the state of an optimizer")
    with pytest.raises(TypeError, match="Mine is none of"):
        goptim.save_state(type("Mine", (torch.optim.Optimizer,), {})([p], {}), path)
    assert_bit_equal(optimizer.state_dict()["state"], before["state"])
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
