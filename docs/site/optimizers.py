"""Pages of optimizers, from goptim's classes, Go's description of them, the examples in Go, and the benchmarks.

A page has the docstring of the class and what can be derived: nothing about an optimizer is written here.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import derive
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import goptim
from goptim import _core
from goptim._bench import pages as bench_pages, subjects
from goptim._step import GoStep
from goptim._wrapper import Wrapper

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (256, 128)
STEPS = 7  # the sixth makes the state of Lookahead
OLD = "https://docs.pytorch.org/docs/stable/generated/torch.optim."


def public_modules() -> dict[str, Any]:
    """The modules that goptim imports under their own names (``amp as amp``)."""
    tree = ast.parse(Path(goptim.__file__).read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "goptim"]
    names = [x.name for node in imports for x in node.names if x.name == x.asname and not x.name.startswith("_")]
    return {
        name: importlib.import_module(f"goptim.{name}") for name in names if isinstance(vars(goptim)[name], ModuleType)
    }


@functools.cache
def classes() -> dict[str, type]:
    """Every optimizer under its public name: ``AdamW``, and those of other modules such as ``hf.Adafactor``."""

    def is_optimizer(c: Any) -> bool:
        return isinstance(c, type) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer

    found = {name: c for name in goptim.__all__ if is_optimizer(c := getattr(goptim, name))}
    for module, content in public_modules().items():
        for name, c in vars(content).items():
            ours = is_optimizer(c) and issubclass(c, GoStep) and c.__module__ == content.__name__
            if ours and c not in found.values() and not name.startswith("_"):
                found[f"{module}.{name}"] = c
    return found


def place(name: str) -> str:
    return name.lower().replace(".", "-")


def reference(name: str) -> str:
    """The class with the same results."""
    cls = classes()[name]
    if getattr(cls, "reference", ""):
        return str(cls.reference)  # type: ignore[attr-defined]
    if "." in name:
        return {"hf": "transformers"}.get(name.split(".")[0], name.split(".")[0]) + "." + name.split(".")[1]
    return f"torch.optim.{name}" if hasattr(torch.optim, name) else "torch.optim.Adam(amsgrad=True)"


# A step of each kind of optimizer. The arguments are those of the constructor.
DENSE, SPARSE, CLOSURE, AROUND = "dense", "sparse", "closure", "around another optimizer"


def kind(name: str) -> str:
    if issubclass(classes()[name], Wrapper):
        return AROUND
    if not issubclass(classes()[name], GoStep):
        return CLOSURE
    return SPARSE if name == "SparseAdam" else DENSE


def needed(name: str) -> dict[str, str]:
    """The arguments of a constructor that have no default, with their types."""
    parameters = inspect.signature(classes()[name]).parameters.values()
    return {x.name: x.annotation for x in parameters if x.default is x.empty and x.kind is not x.VAR_KEYWORD}


def construct(name: str, params: list[Tensor], **options: Any) -> Any:
    """An optimizer. One around another is around SGD, which has no state."""
    values: dict[str, Any] = {"params": params}
    if "param_groups" in needed(name):
        values["param_groups"], options = [{"params": params, **options}], {}
    if "base_optimizer" in needed(name):
        of_class = needed(name)["base_optimizer"] != "Optimizer"
        values["base_optimizer"] = goptim.SGD if of_class else goptim.SGD(params)
    return classes()[name](*(values[key] for key in needed(name)), **options)


def steps(name: str, n: int, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Any]:
    """The state of a matrix after n steps, and what was in it during a step."""
    of = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(SHAPE, generator=of).to(dtype))
    optimizer = construct(name, [p], **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    target = torch.randn(SHAPE, generator=of).to(dtype)
    found: dict[str, Any] = {}

    def closure() -> Tensor:
        found.update(optimizer.state[p])
        optimizer.zero_grad()
        loss = ((p - target).float() ** 2).mean()
        loss.backward()
        return loss

    for _ in range(n):
        if kind(name) == CLOSURE:
            optimizer.step(closure)
            continue
        closure()
        if kind(name) == SPARSE:
            assert p.grad is not None
            p.grad = p.grad.to_sparse(1)
        optimizer.step(*[closure] * (kind(name) == AROUND))
    return found | optimizer.state[p]


class Operations(TorchDispatchMode):
    """Notes the names of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@functools.cache
def has_roots(name: str) -> bool:
    """Whether some steps compute square roots of tensors. In a dispatch mode, steps fall back to torch."""
    with warnings.catch_warnings(), Operations() as operations:
        warnings.simplefilter("ignore")
        for options in usual(name):
            steps(name, STEPS, **options)
    return bool(operations.names & {"sqrt", "sqrt_", "_foreach_sqrt", "_foreach_sqrt_"})


def usual(name: str) -> list[dict[str, Any]]:
    """Options with which states are those by default. An option without a default has all its values."""
    return [{"use_muon": True}, {"use_muon": False}] if "param_groups" in needed(name) else [{}]


def options_of_states(name: str) -> dict[str, Any]:
    """The options that add states, with a value that does."""
    cls = classes()[name]
    accepted = inspect.signature(cls).parameters
    kinds = {k: x for x in json.loads(_core.Describe())["kinds"] for k in x["classes"]}
    torch_class = getattr(cls, "torch_class", None)
    described = kinds.get(torch_class.__name__ if torch_class else name, {"states": []})
    words = [state["when"] for state in described["states"] if "when" in state]
    found = {}
    for word in dict.fromkeys(words):
        default = accepted[word].default if word in accepted else None
        if word in accepted and not default:
            found[word] = True if isinstance(default, bool) else 0.9
    return found


@functools.cache
def states(name: str, dtype: torch.dtype, **options: Any) -> dict[str, list[Tensor]]:
    """The tensors of each state after some steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = steps(name, STEPS, dtype, **options)
    found: dict[str, list[Tensor]] = {}
    for key, value in state.items():
        values = value if isinstance(value, list) else [value]
        found[key] = [t if isinstance(t, Tensor) else torch.tensor(float(t or 0)) for t in values if t is not None]
    return found


def shape_of(tensors: list[Tensor]) -> str:
    shapes = {tuple(d for d in t.shape if d != 1) for t in tensors}
    if not tensors:
        return ""
    [shape] = shapes
    many = "a list, each like " if len(tensors) > 1 else ""
    named = {SHAPE: "that of the parameter", (): "a number", SHAPE[:1]: "one per row", SHAPE[1:]: "one per column"}
    flat = (SHAPE[0] * SHAPE[1],)
    return many + named.get(shape, "that of all parameters" if shape == flat else " x ".join(map(str, shape)))


def bytes_of(tensors: list[Tensor]) -> float:
    """The bytes per element of the parameter, without numbers."""
    return sum(t.numel() * t.element_size() for t in tensors if t.numel() > 1) / (SHAPE[0] * SHAPE[1])


def number(x: float) -> str:
    return "0" if x == 0 else f"{x:.3f}" if x < 0.1 else f"{x:.0f}" if abs(x - round(x)) < 0.005 else f"{x:.2f}"


def memory(name: str) -> list[str]:
    lines = ["| state | shape | bytes per float32 element | bfloat16 | |", "|---|---|--:|--:|---|"]
    seen: set[str] = set()
    for options in (*usual(name), *({option: value} for option, value in options_of_states(name).items())):
        a, b = states(name, torch.float32, **options), states(name, torch.bfloat16, **options)
        for key in a:
            if key not in seen and a[key]:
                cells = [number(bytes_of(t[key][:1])) for t in (a, b)]  # of a list, one
                lines.append(f"| `{key}` | {shape_of(a[key])} | {cells[0]} | {cells[1]} | {with_(options)} |")
                seen.add(key)
    for options in usual(name):
        sums = [together(states(name, dtype, **options)) for dtype in (torch.float32, torch.bfloat16)]
        when = with_(options) or "by default"
        lines.append(f"| **together**, {when} | | **{sums[0]}** | **{sums[1]}** | |")
    measured = (
        "Measured with a matrix. Parameters and gradients are not counted; a number is a few bytes per parameter."
    )
    if kind(name) == AROUND:
        measured += " Neither is the state of the optimizer that this one is around."
    return [*lines, "", measured]


def with_(options: dict[str, Any]) -> str:
    return ", ".join(f"with `{option}={value}`" for option, value in options.items())


def together(tensors: dict[str, list[Tensor]]) -> str:
    """The bytes per element of all states. Lists grow, so they are not counted."""
    fixed = number(sum(bytes_of(t) for t in tensors.values() if len(t) < 2))
    return fixed + " and lists" * any(len(t) > 1 for t in tensors.values())


def total(name: str) -> str:
    sums = [together(states(name, torch.float32, **options)) for options in usual(name)]
    return "+ " * (kind(name) == AROUND) + " or ".join(sums)


def exactness(name: str) -> str:
    other = reference(name)
    link = f"[`{other}`]({OLD}{name}.html)" if hasattr(torch.optim, name) else f"`{other}`"
    if kind(name) == CLOSURE:
        return f"The reference is {link}. Sums over vectors are rounded in another order, as described above."
    if kind(name) == AROUND:
        return (
            f"Parameters and states are bit for bit those of {link} around the same optimizer, for float32 and "
            f"float64, if the optimizer's are. [Numerics](../numerics.md) has the contract, and the one for 16 bits."
        )
    flags = [f"{flag}=False" for flag in ("foreach", "fused") if flag in inspect.signature(classes()[name]).parameters]
    how = f" with `{', '.join(flags)}`" if other.startswith("torch.") and flags else ""
    if has_roots(name):
        roots = (
            "A step computes square roots, which PyPI's builds of torch do not round correctly: compare within "
            "[`goptim.testing.ieee_sqrt()`](../numerics.md#square-roots)."
        )
    else:
        roots = "No square root of a tensor is computed, so results also equal those of PyPI's builds of torch."
    return (
        f"Parameters and states are bit for bit those of {link}{how}, for float32 and float64. {roots} "
        f"[Numerics](../numerics.md) has the contract, and the one for 16 bits."
    )


@functools.cache
def measured() -> tuple[list[str], dict[str, list[list[str]]], str]:
    """The benchmark's columns, its rows by title, and its conditions."""
    page = ROOT / "docs/benchmarks.md"
    text, start, end = bench_pages.find(page, "goptim bench")
    lines = text[start:end].strip().splitlines()
    head, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row)
    return head, found, lines[0]


def titles(name: str) -> list[str]:
    """The benchmark's names of a class."""
    _, rows, _ = measured()
    return [title for title, s in subjects.OPTIMIZERS.items() if title in rows and s.cls == name]


def cost(name: str) -> list[str]:
    head, rows, conditions = measured()
    found = [row for title in titles(name) for row in rows[title]]
    if not found:
        return [
            "The tables of [Benchmarks](../benchmarks.md) do not have it. "
            f"`python -m goptim bench --optimizer {name}` measures it on your machine."
            if name in subjects.OPTIMIZERS
            else "The tables of [Benchmarks](../benchmarks.md) do not have it."
        ]
    align = ["---" if i < 2 else "--:" for i in range(len(head))]
    table = ["|".join(["", *cells, ""]) for cells in (head, align, *found)]
    return [*table, "", f"{conditions} [How to read the table](../benchmarks.md#reading-the-tables)."]


def speedup(name: str, shapes: str) -> str:
    head, rows, _ = measured()
    found = [r for title in titles(name)[:1] for r in rows[title] if r[1] == shapes]
    return max(found, key=lambda r: int(r[2]))[head.index("speedup over for-loop")] if found else ""


def go_program(name: str, go: list[dict[str, Any]]) -> tuple[str, str] | None:
    """A program in Go, and what it prints; None if the Go package does not have the optimizer."""
    [package] = [p for p in go if p["Name"] == "goptim"]
    functions = {f["Name"]: f for f in package["Funcs"] or ()}
    for t in package["Types"] or ():
        functions |= {f["Name"]: f for f in t["Funcs"] or ()}
    function = functions.get(f"New{name}")
    if function is None:
        return None
    for example in function["Examples"]:
        output = example["Output"]
        if example["Program"]:
            printed = "".join(f"\n\t// {line}" for line in f"Output: {output}".splitlines())
            return example["Program"].strip().removesuffix("\n}") + f"{printed}\n}}", output
        return example["Code"], output
    made = derive.constructors()
    if name not in made:
        return None
    text = f"""package main

import (
	"fmt"
	"log"

	"github.com/goptim/goptim/goptim"
)

func main() {{
	w := &goptim.Param[float32]{{
		Name: "w", Shape: []int{{2, 2}}, Value: []float32{{1, 2, 3, 4}}, Grad: make([]float32, 4),
	}}
	opt, err := goptim.New{name}([]*goptim.Param[float32]{{w}}, goptim.{made[name][1]}{{}})
	if err != nil {{
		log.Fatal(err)
	}}
	for range 100 {{
		copy(w.Grad, w.Value) // the gradient of half the sum of squares
		if err := opt.Step(); err != nil {{
			log.Fatal(err)
		}}
	}}
	fmt.Println(w.Value)
}}
"""
    return text.strip(), ""


def fields() -> dict[str, str]:
    """The names of Go's options in Python."""
    text = "".join(path.read_text() for path in sorted((ROOT / "goptim").glob("*.go")))
    return dict(re.findall(r'(?m)^\s+(\w+)\s+\S+\s+`torch:"(\w+)', text))


def python_program(name: str, go: tuple[str, str] | None) -> tuple[str, str]:
    """A program in Python, and what it prints: if Go's example is Rosenbrock's valley, the same descent."""
    valley = go and re.search(r"goptim\.New\w+\(.*?, goptim\.\w+Options\{([^}]*)\}\)", go[0])
    start = go and re.search(r"valleyFrom\(([-\d.]+), ([-\d.]+)\)|Value: \[\]float64\{([-\d.]+), ([-\d.]+)\}", go[0])
    count = go and re.search(r"descend\(v, opt, (\d+)\)|for range (\d+)", go[0])
    point = go and re.fullmatch(r"\[[\d.]+ [\d.]+\]", go[1])
    if go and valley and start and count and point and "rosenbrockGrad" in go[0] and kind(name) == DENSE:
        x, y = [float(n) for n in start.groups() if n]
        [n] = [n for n in count.groups() if n]
        names, given = fields(), {}
        for field, value in re.findall(r"(\w+): ([^,]+)", valley[1]):
            given[names[field]] = {"true": "True", "false": "False"}.get(value, value)
        arguments = "".join(f", {key}={value}" for key, value in given.items())
        digits = re.findall(r"\.(\d+)", go[1])
        return (
            f"""import goptim
import torch

v = torch.tensor([{x}, {y}], dtype=torch.float64, requires_grad=True)
optimizer = goptim.{name}([v]{arguments})
for _ in range({n}):
    optimizer.zero_grad()
    ((1 - v[0]) ** 2 + 100 * (v[1] - v[0] ** 2) ** 2).backward()
    optimizer.step()
x, y = v.tolist()
print(f"[{{x:.{len(digits[0])}f}} {{y:.{len(digits[0])}f}}]")""",
            go[1],
        )
    if kind(name) == CLOSURE:
        return (
            f"""import goptim
import torch

v = torch.tensor([-1.5, 2.0], dtype=torch.float64, requires_grad=True)
optimizer = goptim.{name}([v], line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = (1 - v[0]) ** 2 + 100 * (v[1] - v[0] ** 2) ** 2
    loss.backward()
    return loss


for _ in range(5):
    optimizer.step(closure)
x, y = v.tolist()
print(f"[{{x:.3f}} {{y:.3f}}]")""",
            "[1.000 1.000]",
        )
    values = {"params": "model.parameters()"}
    model = "torch.nn.Embedding(1000, 8, sparse=True)" if kind(name) == SPARSE else "torch.nn.Linear(8, 4, bias=False)"
    inputs = "torch.randint(1000, (16,))" if kind(name) == SPARSE else "torch.randn(16, 8)"
    train = "optimizer.train()\n" if hasattr(classes()[name], "train") else ""
    if "param_groups" in needed(name):
        model = "torch.nn.Linear(8, 4)"
        groups = [{"params": f"[model.{p}]", **o} for p, o in zip(("weight", "bias"), usual(name), strict=True)]
        texts = ["{" + ", ".join(f'"{key}": {value}' for key, value in group.items()) + "}" for group in groups]
        values["param_groups"] = "".join(["\n    [\n", *(f"        {text},\n" for text in texts), "    ]\n"])
    if "base_optimizer" in needed(name):
        of_class = needed(name)["base_optimizer"] != "Optimizer"
        values["base_optimizer"] = "goptim.AdamW" if of_class else "goptim.AdamW(model.parameters())"
    constructor = f"goptim.{name}({', '.join(values[key] for key in needed(name))})"
    if hasattr(classes()[name], "second_step"):
        return (
            f"""import goptim
import torch

model, inputs = {model}, {inputs}
optimizer = {constructor}


def closure():
    optimizer.zero_grad()
    loss = model(inputs).pow(2).mean()
    loss.backward()
    return loss


for _ in range(10):
    closure()
    optimizer.step(closure)""",
            "",
        )
    return (
        f"""import goptim
import torch

model = {model}
optimizer = {constructor}
{train}for _ in range(10):
    loss = model({inputs}).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()""",
        "",
    )


def programs(name: str, go: list[dict[str, Any]]) -> list[str]:
    in_go = go_program(name, go)
    text, printed = python_program(name, in_go)
    lines = ["::::{tab-set}", ":::{tab-item} Python", ":sync: python", "", "```python", text, "```"]
    lines += [f"prints `{printed}`."] * bool(printed) + [":::", ":::{tab-item} Go", ":sync: go", ""]
    if in_go:
        lines += ["```go", in_go[0], "```"]
    else:
        lines.append("The Go package does not have this class.")
    return [*lines, ":::", "::::"]


def pages(go: list[dict[str, Any]]) -> dict[str, str]:
    """A page per optimizer."""
    return {f"optimizers/{place(name)}.md": page(name, go) for name in classes()}


def page(name: str, go: list[dict[str, Any]]) -> str:
    lines = [
        f"# {name}",
        "",
        "```{eval-rst}",
        *directive(f"goptim.{name}", classes()[name], members=kind(name) == AROUND),
        "```",
        "",
        "## In Python and Go",
        "",
        *programs(name, go),
        "",
        "## State and memory",
        "",
        *memory(name),
        "",
        "## Exactness",
        "",
        exactness(name),
        "",
        "## Cost beside torch",
        "",
        *cost(name),
    ]
    return "\n".join(lines) + "\n"


def overview() -> str:
    """A table of all optimizers, and the list of their pages."""
    lines = [
        "| optimizer | results of | state | 8&nbsp;x&nbsp;2M | 1000&nbsp;x&nbsp;1024 |",
        "|---|---|--:|--:|--:|",
    ]
    for name in classes():
        speed = [speedup(name, shapes) for shapes in ("8 x 2M", "1000 x 1024")]
        other = re.sub(r"^(\w+)\.(\w+\.){2,}", r"\1 … ", reference(name))  # the page has the whole name
        lines.append(f"| [{name}]({place(name)}.md) | `{other}` | {total(name)} | {speed[0]} | {speed[1]} |")
    toc = "\n".join(place(name) for name in classes())
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", toc, "```"])


def functions() -> str:
    """The reference of everything in Python that is not an optimizer."""
    ours = [
        name
        for name in dir(goptim)
        if not name.startswith("_")
        and getattr(getattr(goptim, name), "__module__", "").startswith("goptim.")
        and f"goptim.{name}" not in {f"goptim.{c}" for c in classes()}
        and callable(getattr(goptim, name))
    ]
    lines = ["```{eval-rst}"]
    for name in ours:
        lines += directive(f"goptim.{name}", getattr(goptim, name))
    lines.append("```")
    for module, content in public_modules().items():
        of_torch = getattr(torch.optim, module, None)
        public = getattr(content, "__all__", None) or getattr(of_torch, "__all__", ())
        known = [n for n in public if getattr(getattr(content, n, None), "__module__", "") == content.__name__]
        known = [n for n in known if n not in vars(goptim) and f"{module}.{n}" not in classes()]
        if known and inspect.getdoc(content):
            lines += ["", f"## goptim.{module}", "", "```{eval-rst}", f".. automodule:: goptim.{module}", ""]
            for name in known:
                lines += directive(f"goptim.{module}.{name}", getattr(content, name))
            lines.append("```")
    return "\n".join(lines)


def directive(name: str, x: Any, members: bool = True) -> list[str]:
    if isinstance(x, type):
        return [f".. autoclass:: {name}", *["   :members:", "   :exclude-members: replaces"] * members, ""]
    return [f".. autofunction:: {name}", ""]
