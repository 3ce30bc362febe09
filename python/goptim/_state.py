"""An optimizer's state in a safetensors file, which Go programs share: docs/state.md."""

from __future__ import annotations

import functools
import inspect
import json
import math
import operator
import os
import re
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from goptim import _for_loop, _originals, _safetensors, _storage
from goptim._eligible import NARROW
from goptim._files import StrOrBytesPath
from goptim._for_loop import ForLoop

_VERSION = "1"

# The states of a parameter in each class of torch.optim, and when they exist: always, optionally (in some versions or
# with other hyperparameters), or if a hyperparameter is not 0. LBFGS has a different kind of state.
_ALWAYS, _MAYBE = True, False
_MOMENTS = {"step": _ALWAYS, "exp_avg": _ALWAYS, "exp_avg_sq": _ALWAYS}
_STATES: dict[str, dict[str, bool | str]] = {
    "SGD": {"momentum_buffer": _MAYBE},
    "Adam": {**_MOMENTS, "max_exp_avg_sq": "amsgrad"},
    "AdamW": {**_MOMENTS, "max_exp_avg_sq": "amsgrad"},
    "Adagrad": {"step": _ALWAYS, "sum": _ALWAYS},
    "Adadelta": {"step": _ALWAYS, "square_avg": _ALWAYS, "acc_delta": _ALWAYS},
    "Adafactor": {"step": _ALWAYS},  # and others: see _keys
    "Adamax": {"step": _ALWAYS, "exp_avg": _ALWAYS, "exp_inf": _ALWAYS},
    "ASGD": {"step": _ALWAYS, "eta": _ALWAYS, "mu": _ALWAYS, "ax": _ALWAYS},
    "NAdam": {**_MOMENTS, "mu_product": _ALWAYS},
    "RAdam": {**_MOMENTS},
    "RMSprop": {"step": _ALWAYS, "square_avg": _ALWAYS, "momentum_buffer": "momentum", "grad_avg": "centered"},
    "Rprop": {"step": _ALWAYS, "prev": _ALWAYS, "step_size": _ALWAYS},
    "SparseAdam": {**_MOMENTS},
    "Muon": {"momentum_buffer": _MAYBE},
}
_SCALARS = ("eta", "mu", "mu_product")

# The hyperparameters that are not a flag, a number or a tuple of numbers.
_COUNTS = {
    "max_iter": (1, math.inf),
    "max_eval": (1, math.inf),
    "history_size": (1, math.inf),
    "ns_steps": (0, 99),
    "k": (0, math.inf),
    "step": (0, math.inf),
    "slice_p": (1, math.inf),
}
_CHOICES = {
    "line_search_fn": (None, "strong_wolfe"),
    # torch's constructor rejects "none", but torch's step accepts it and does not adjust the learning rate.
    "adjust_lr_fn": (None, "original", "match_rms_adamw", "spectral_unclamped", "none"),
}
_PATHS = ("foreach", "fused", "kahan_sum", "triton")  # flags that may be None
_MAY_BE_NONE = (
    "beta3",
    "clip_exp",
    "clipping_threshold",
    "max_grad_norm",
    "max_lr",
    "t_alpha",
    "t_alpha_beta3",
    "t_beta3",
)
_NOT_OPTIONS = ("optimizer", "params", "param_names")


def _classes() -> dict[str, type[Optimizer]]:
    """The classes whose states can be saved: torch's, even if a program has replaced them, and those of _for_loop."""
    return {**_originals.CLASSES, **_for_loop.CLASSES}


@functools.cache
def _arguments(class_name: str) -> dict[str, Any]:
    """The defaults of a class's arguments."""
    parameters = inspect.signature(_classes()[class_name].__init__).parameters
    found = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    for key, keys in _parts(class_name).items():
        found |= zip(keys, found.pop(key), strict=True)
    return found


def _parts(class_name: str) -> dict[str, tuple[str, ...]]:
    """The arguments whose elements are entries of a group."""
    return _for_loop.CLASSES[class_name].parts if class_name in _for_loop.CLASSES else {}


def _defaults(class_name: str) -> dict[str, Any]:
    """The defaults of a class's hyperparameters, and of the other entries of its groups."""
    if class_name in _for_loop.CLASSES:
        return _arguments(class_name) | _for_loop.CLASSES[class_name].entries
    return _arguments(class_name)


def _states(class_name: str) -> dict[str, bool | str]:
    """The states of a class, as in _STATES."""
    if class_name in _for_loop.CLASSES:
        loop = _for_loop.CLASSES[class_name]
        return {key: loop.when.get(key, _ALWAYS) for key in loop.states}
    return _STATES.get(class_name, {})


def save_state(optimizer: Optimizer, path: StrOrBytesPath, names: Iterable[tuple[str, Tensor]] | None = None) -> None:
    """Write an optimizer's state and hyperparameters as a safetensors file.

    ``goptim.ReadState`` reads it in Go, ``goptim.load_state`` in Python. An existing file is replaced
    atomically: after an error, or if the process is killed, it has its old content. Its permissions are preserved, and
    symbolic links are followed. A FIFO or a character device is written, not replaced.

    Args:
        optimizer: one of torch.optim's classes, or of goptim's.
        path: the file.
        names: the parameters' names, as ``model.named_parameters()``. By default the optimizer's own, if it was
            constructed with named parameters, and otherwise the parameters' indices.

    Raises:
        OSError: the file cannot be written.
        TypeError: the optimizer is of another class, or has a state or a hyperparameter that cannot be saved.
        ValueError: names are missing or not distinct, or the storage of a state is too small.
    """
    class_name = _class_name(optimizer)
    groups, tensors = [], {}
    for i, (group, ns) in enumerate(zip(optimizer.param_groups, _names(optimizer, names), strict=True)):
        options = {k: v for key, value in group.items() for k, v in _option_to_json(class_name, key, value, i)}
        groups.append({"optimizer": class_name, "params": ns, **options})
        for p, n in zip(group["params"], ns, strict=True):
            for key, value in optimizer.state.get(p, {}).items():
                if key == "al" and class_name == "LBFGS":  # which computes it again
                    continue
                if not isinstance(key, str) or not re.fullmatch(r"[^.]*[^.0-9][^.]*", key):
                    raise TypeError(f"parameter {n}: a state under {key!r}, expected a key with letters and no dot")
                for j, v in enumerate(value) if isinstance(value, list) else ((None, value),):
                    if v is not None:
                        tensors[f"state.{n}.{key}" + ("" if j is None else f".{j}")] = _to_tensor(n, key, v)
    metadata = {"goptim_state": _VERSION, "param_groups": json.dumps(groups, allow_nan=False)}
    _safetensors.write(path, tensors, metadata)


def load_state(optimizer: Optimizer, path: StrOrBytesPath, names: Iterable[tuple[str, Tensor]] | None = None) -> None:
    """Load the state and hyperparameters of an optimizer from a file of ``save_state``, or ``goptim.WriteState`` in Go.

    Args:
        optimizer: of the same class, with the same groups of parameters.
        path: the file.
        names: the parameters' names, as for ``save_state``.

    Raises:
        OSError: the file cannot be read.
        TypeError: the optimizer is not of one of torch.optim's or goptim's classes, or has a hyperparameter that a file
            cannot hold.
        ValueError: the file is damaged, belongs to another optimizer or other parameters, or has hyperparameters that
            the class's constructor rejects. Nothing has changed.
    """
    class_name = _class_name(optimizer)
    all_names = _names(optimizer, names)
    tensors, metadata = _safetensors.read(path)
    try:
        new, exact = _prepare(optimizer, class_name, all_names, tensors, metadata)
    except ValueError as e:
        raise ValueError(f"{os.fsdecode(path)}: {e}") from e
    before = {key: vars(optimizer)[key] for key in ("state", "param_groups")}
    try:
        optimizer.load_state_dict(new)
        for p, numbers in exact:
            optimizer.state[p].update(numbers)
        for group, saved in zip(optimizer.param_groups, new["param_groups"], strict=True):
            if (key := "decoupled_weight_decay") in saved:  # torch's AdamW overwrites it
                group[key] = saved[key]
    except BaseException:  # from a hook, or an interrupt
        vars(optimizer).update(before)
        raise


def _prepare(
    optimizer: Optimizer,
    class_name: str,
    all_names: list[list[str]],
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
) -> tuple[dict[str, Any], list[tuple[Tensor, dict[str, Any]]]]:
    """A file's content as a state_dict, and the scalars of each state, whose dtype load_state_dict would change."""
    groups = _groups(metadata)
    if len(groups) != len(all_names):
        raise ValueError(f"{len(groups)} groups of parameters, expected {len(all_names)}")
    states: dict[str, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if name.startswith("state."):
            match = re.fullmatch(r"state\.(.*)\.([^.]*[^.0-9][^.]*(?:\.[0-9]+)?)", name, re.DOTALL)
            if match is None:
                raise ValueError(f"{name}: expected a parameter's name and a key")
            states.setdefault(match[1], {})[match[2]] = t
    new = optimizer.state_dict()
    new["state"] = {}
    exact: list[tuple[Tensor, dict[str, Any]]] = []
    index = 0
    for i, (group, saved, to, ns) in enumerate(
        zip(optimizer.param_groups, groups, new["param_groups"], all_names, strict=True)
    ):
        try:
            _require_class(class_name, saved)
            params = saved["params"]
            if params != ns if class_name == "LBFGS" else sorted(params) != sorted(ns):
                raise ValueError(f"parameters {params}, expected {ns}")
            to.update(_options(class_name, group, saved))
            to.update(_storage_keys(optimizer, group, saved))
            _check(class_name, to)
            stored = bool(_storage.given(group)) or any(key in saved for key in _storage.KEYS)
            for j, (p, n) in enumerate(zip(group["params"], ns, strict=True)):
                try:
                    if class_name != "LBFGS":
                        state = _state(class_name, optimizer, p, states.pop(n, {}), to, stored)
                    else:
                        state = _lbfgs_state(group["params"], states.pop(n, {}), to, first=j == 0)
                except ValueError as e:
                    raise ValueError(f"parameter {n}: {e}") from e
                if state:
                    new["state"][index] = state
                    # torch itself moves the step count of these to the parameter's device.
                    moved = ("step",) if to.get("fused") or to.get("capturable") else ()
                    wide = class_name == "LBFGS" and p.dtype in NARROW and p.is_cpu  # all of its state is float32
                    numbers = {k: v for k, v in state.items() if not isinstance(v, Tensor) or v.dim() == 0 or wide}
                    exact.append((p, {k: v for k, v in numbers.items() if k not in moved}))
                index += 1
        except ValueError as e:
            raise ValueError(f"group {i}: {e}") from e
    if states:
        raise ValueError(f"the state of {next(iter(states))}, which is no parameter")
    return new, exact


def _groups(metadata: dict[str, str]) -> list[dict[str, Any]]:
    """The groups described by a file's metadata."""
    version = metadata.get("goptim_state")
    if version is None:
        raise ValueError("not the state of an optimizer: no goptim_state in its metadata")
    if version != _VERSION:
        raise ValueError(f"goptim_state is {version!r}, expected {_VERSION!r}")
    if "param_groups" not in metadata:
        raise ValueError("no param_groups in its metadata")
    try:
        groups = _safetensors.parse_json(metadata["param_groups"])
    except ValueError as e:
        raise ValueError(f"param_groups: {e}") from e
    if type(groups) is not list or not all(type(group) is dict for group in groups):
        raise ValueError("param_groups: expected a list of objects")
    for i, group in enumerate(groups):
        if type(group.get("optimizer")) is not str:
            raise ValueError(f"group {i}: optimizer is {group.get('optimizer')!r}, expected the name of a class")
        params = group.get("params")
        if type(params) is not list or not all(type(n) is str for n in params):
            raise ValueError(f"group {i}: params is {params!r}, expected a list of names")
    return groups


def _require_class(class_name: str, saved: dict[str, Any]) -> None:
    """Reject the state of another class. Adam and AdamW are compatible; later torch distinguishes them by a flag."""
    adams, optimis = ("Adam", "AdamW"), ("OptimiAdam", "OptimiAdamW")
    if saved["optimizer"] != class_name and not any({class_name, saved["optimizer"]} <= {*x} for x in (adams, optimis)):
        raise ValueError(f"the state of {saved['optimizer']}, expected that of {class_name}")
    if class_name in optimis:
        saved.setdefault("decouple_wd", saved["optimizer"] == "OptimiAdamW")
    if class_name in adams:
        decoupled = saved.setdefault("decoupled_weight_decay", saved["optimizer"] == "AdamW")
        has_flag = "decoupled_weight_decay" in _defaults("Adam")
        if not has_flag and decoupled != (class_name == "AdamW") and saved.get("weight_decay") != 0:
            raise ValueError(f"decoupled_weight_decay is {decoupled!r}, which {class_name} does not have in this torch")


def _options(class_name: str, group: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group of a file, for the corresponding group of the optimizer."""
    defaults = _defaults(class_name)
    options = {}
    for key, old in group.items():
        if key in _NOT_OPTIONS or key in _storage.KEYS:
            continue
        if key in saved:
            try:
                options[key] = _from_json(key, saved[key], old, defaults)
            except ValueError as e:
                raise ValueError(f"{key} is {saved[key]!r}, expected {e}") from e
        elif key in defaults and defaults[key] is not None and _kind(key, defaults[key]) != "flag":
            raise ValueError(f"no {key}")
    return options


def _storage_keys(optimizer: Optimizer, group: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """The keys of _storage.py in a group of a file, unless the optimizer has its own or none at all."""
    found = {key: saved[key] for key in _storage.KEYS if saved.get(key) is not None}
    if not hasattr(optimizer, "torch_class") or _storage.given(group):  # a class of torch.optim
        return {}
    if "state_dtype" in found:
        dtypes = {str(d).removeprefix("torch."): d for d in _storage.STATE_DTYPES}
        found["state_dtype"] = dtypes.get(found["state_dtype"], found["state_dtype"])
    _storage.storage_of(found)
    return found


_Kind = Literal["flag", "count", "choice", "numbers", "number"]


def _kind(key: str, default: Any) -> _Kind:
    """The kind of a hyperparameter."""
    if isinstance(default, bool) or key in _PATHS:
        return "flag"
    if key in _COUNTS and not isinstance(default, float):  # LAMB counts in a tensor
        return "count"
    if key in _CHOICES:
        return "choice"
    return "numbers" if isinstance(default, tuple) else "number"


def _from_json(key: str, value: Any, old: Any, defaults: dict[str, Any]) -> Any:
    """The value of a hyperparameter, with the type of the current value; a ValueError contains what is expected."""
    if key not in defaults:
        return _foreign(value, old)
    match _kind(key, defaults[key]):
        case "flag":
            if type(value) is not bool and (value is not None or key not in _PATHS):
                raise ValueError("true or false")
            return value
        case "count":
            least, most = _COUNTS[key]
            if type(value) is not int or not least <= value <= min(most, 1 << 53):
                raise ValueError(f"a count from {least} on" if most == math.inf else f"a count from {least} to {most}")
            return value
        case "choice":
            if (value is not None and type(value) is not str) or value not in _CHOICES[key]:
                raise ValueError("one of " + ", ".join("null" if x is None else x for x in _CHOICES[key]))
            return value
        case "numbers":
            default = defaults[key]
            if type(value) is not list or len(value) != len(default):
                raise ValueError(f"{len(default)} numbers")
            olds = old if isinstance(old, (tuple, list)) and len(old) == len(value) else default
            numbers = (
                None if v is None and d is None else _number(v, o) for v, o, d in zip(value, olds, default, strict=True)
            )
            return list(numbers) if isinstance(old, list) else tuple(numbers)
        case "number":
            return None if value is None and key in _MAY_BE_NONE else _number(value, old)


def _number(value: Any, old: Any, *, may_be_nan: bool = False) -> Any:
    if type(value) not in (int, float) and not (
        type(value) is str and value in (("inf", "-inf", "nan") if may_be_nan else ("inf", "-inf"))
    ):
        raise ValueError("a number")
    try:
        x = float(value)
    except OverflowError:
        raise ValueError("a number that a float64 holds") from None
    if isinstance(old, Tensor):
        try:
            return torch.full_like(old, x)
        except RuntimeError:
            raise ValueError(f"a number that a {str(old.dtype).removeprefix('torch.')} holds") from None
    return value if type(value) is int and not isinstance(old, float) else x


def _foreign(value: Any, old: Any) -> Any:
    """An entry that is not a hyperparameter of the class, such as a scheduler's initial_lr; unchanged if not saved."""
    if type(old) in (tuple, list):
        if type(value) is not list or len(value) != len(old):
            raise ValueError(f"{len(old)} values")
        return type(old)(_foreign(v, o) for v, o in zip(value, old, strict=True))
    if isinstance(old, (bool, str)):
        if type(value) is not type(old):
            raise ValueError(f"a {type(old).__name__}")
        return value
    if isinstance(old, (int, float)) or _is_scalar(old):
        return _number(value, old, may_be_nan=True)
    if old is None:
        return float(value) if type(value) is str and value in ("inf", "-inf", "nan") else value
    return old


def _check(class_name: str, group: dict[str, Any]) -> None:
    """Reject hyperparameters that torch's constructor rejects."""
    kind = _classes()[class_name]
    options = {
        key: _plain(group[key])
        for key, default in _arguments(class_name).items()
        if key in group and key != "adjust_lr_fn" and (_kind(key, default) != "flag" or key == "nesterov")
    }
    if options.get("lr") == 0:  # the last value of some schedules, which some constructors reject
        del options["lr"]

    def refusal(**options: Any) -> Exception | None:
        for key, keys in _parts(class_name).items():
            given = [options.pop(k, default) for k, default in _arguments(class_name).items() if k in keys]
            options[key] = tuple(given)
        try:
            kind([torch.zeros(1, 1, device="cpu")], **options)
        except (ValueError, TypeError, ArithmeticError, RuntimeError, AssertionError) as e:
            return e
        return None

    if (e := refusal(**options)) is not None:
        for key, value in options.items():
            if key != "nesterov" and (why := refusal(**{key: value})) is not None:
                raise ValueError(f"{key} is {value}: {why}") from why
        raise ValueError(str(e)) from e


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return tuple(_plain(v) for v in value) if isinstance(value, (tuple, list)) else value


def _keys(class_name: str, p: Tensor, group: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The keys that a parameter's state must have, and those that it may have."""
    keys = dict(_states(class_name))
    if class_name == "Adafactor":
        keys |= dict.fromkeys(("row_var", "col_var") if p.dim() > 1 else ("variance",), _ALWAYS)

    def on(when: bool | str) -> bool:
        value = group.get(when) if isinstance(when, str) else when
        return bool(value[0] if isinstance(value, (tuple, list)) else value)

    return {key for key, when in keys.items() if on(when)}, set(keys)


def _state(
    class_name: str,
    optimizer: Optimizer,
    p: Tensor,
    saved: dict[str, Tensor],
    group: dict[str, Any],
    stored: bool,
) -> dict[str, Any]:
    """The state of a parameter in the form of its class. If stored, it may have what _storage.py adds."""
    dtypes: tuple[torch.dtype, ...] = (p.dtype,)
    extra: set[str] = set()
    if stored and p.dtype in _storage.CONVERTED:
        dtypes = (p.dtype, *_storage.CONVERTED)
        extra = {_storage.MASTER, _storage.COMPENSATION, "step"} - _states(class_name).keys()
        if not hasattr(optimizer, "torch_class"):  # a class of torch.optim
            saved = {key: t for key, t in saved.items() if key not in extra}
    if not saved:
        if class_name != "Adagrad":
            return {}
        initial = group["initial_accumulator_value"]
        return {
            "step": torch.tensor(0.0, device="cpu"),
            "sum": torch.full_like(p, initial, memory_format=torch.preserve_format, requires_grad=False),
        }
    if _states(class_name):
        must, may = _keys(class_name, p, group)
        for key in sorted(must - saved.keys()):
            raise ValueError(f"no {key}")
        for key in sorted(saved.keys() - may - extra):
            if _is_ours(optimizer):
                raise ValueError(f"{key}, which {class_name} does not have")
    state: dict[str, Any] = {}
    loop = _for_loop.CLASSES.get(class_name)
    numbers = ("step",) if class_name == "SparseAdam" else loop.numbers if loop else ()
    for key, t in saved.items():
        if key == "step":
            state[key] = _count(key, t) if key in numbers else _step(t)
        elif key in numbers:
            state[key] = _scalar(key, t).item()
        elif key in _SCALARS or (loop and key in loop.scalars):
            state[key] = (
                t if t.dim() == 0 and t.dtype is p.dtype else _scalar(key, t)
            )  # load_state_dict has converted it
        elif loop and key in loop.vectors:
            n = len(range(0, p.numel(), group["slice_p"]))
            if t.shape not in ((n,), () if key == "p0" else (n,)) or t.dtype not in dtypes:
                raise ValueError(f"{_described(key, t)}, expected {p.dtype} and {(n,)}")
            state[key] = t
        elif key in ("row_var", "col_var"):
            want = (*p.shape[:-1], 1) if key == "row_var" else (*p.shape[:-2], 1, p.shape[-1])
            if t.shape != want or t.dtype not in dtypes:
                raise ValueError(f"{_described(key, t)}, expected {p.dtype} and {tuple(want)}")
            state[key] = t
        elif key in _states(class_name) or key == "variance" or t.dim() or key in extra:
            if t.numel() != p.numel() or t.dtype not in dtypes:
                raise ValueError(f"{_described(key, t)}, expected {p.dtype} and {tuple(p.shape)}")
            state[key] = torch.empty_like(p, dtype=t.dtype, memory_format=torch.preserve_format, requires_grad=False)
            state[key].copy_(t.view(p.shape))
        else:  # a subclass
            state[key] = int(t) if t.dtype is torch.int64 else t
    return state


def _is_ours(optimizer: Optimizer) -> bool:
    """Whether all states of an optimizer are known, because its class is not a user's subclass."""
    return type(optimizer) in _classes().values() or type(optimizer).__module__.partition(".")[0] == "goptim"


def _lbfgs_state(
    params: list[Tensor], saved: dict[str, Tensor], group: dict[str, Any], *, first: bool
) -> dict[str, Any]:
    if not first or not saved:
        for key in saved:
            raise ValueError(f"{key}, which is the first parameter's alone")
        return {}
    n, dtype, device = sum(p.numel() for p in params), params[0].dtype, params[0].device
    rest = dict(saved)
    if dtype in NARROW:  # torch's class saves their dtype, and goptim's float32
        rest = {key: t.float() if t.dtype is dtype else t for key, t in rest.items()}
        dtype = torch.float32

    def take(key: str) -> Tensor:
        if key not in rest:
            raise ValueError(f"no {key}")
        return rest.pop(key)

    def vector(key: str) -> Tensor:
        t = take(key)
        if t.shape != (n,) or t.dtype != dtype:
            raise ValueError(f"{_described(key, t)}, expected {dtype} and {(n,)}")
        return t

    def number(key: str) -> Any:
        t = take(key)
        if t.dim() or t.dtype not in (torch.int64, torch.float64, dtype):
            raise ValueError(f"{_described(key, t)}, expected a number")
        return t.to(device) if t.dtype is dtype else t.item()

    state: dict[str, Any] = {key: _count(key, take(key)) for key in ("func_evals", "n_iter")}
    if state["n_iter"]:
        state |= {key: vector(key) for key in ("d", "prev_flat_grad")}
        state |= {key: number(key) for key in ("t", "H_diag")}
        state["prev_loss"] = _scalar("prev_loss", take("prev_loss")).item()
        pairs = sum(re.fullmatch(r"ro\.[0-9]+", key) is not None for key in rest)
        if pairs > group["history_size"]:
            raise ValueError(f"{pairs} pairs of vectors, expected at most {group['history_size']}, its history_size")
        for key in ("old_dirs", "old_stps"):
            state[key] = [vector(f"{key}.{i}") for i in range(pairs)]
        state["ro"] = [take(f"ro.{i}") for i in range(pairs)]
        for i, t in enumerate(state["ro"]):
            if t.dim() or t.dtype != dtype:
                raise ValueError(f"{_described(f'ro.{i}', t)}, expected {dtype} and ()")
    for key in rest:
        raise ValueError(f"{key}, which LBFGS does not have")
    return state


def _described(key: str, t: Tensor) -> str:
    return f"{key} is of {t.dtype} and shape {tuple(t.shape)}"


def _scalar(key: str, t: Tensor) -> Tensor:
    """A scalar that torch stores in a tensor."""
    if t.dim() or t.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{_described(key, t)}, expected a float32 or float64 number")
    return t


def _count(key: str, t: Tensor) -> int:
    """A count, such as a step count."""
    if t.dim() or t.dtype not in (torch.int64, torch.float32, torch.float64):
        raise ValueError(f"{_described(key, t)}, expected a count")
    x = t.item()
    if not 0 <= x <= 1 << 53 or x != int(x):
        raise ValueError(f"{key} is {x}, expected a count")
    return int(x)


def _step(t: Tensor) -> Tensor:
    """A step count in torch's form."""
    n = _count("step", t)
    if t.is_floating_point():
        return t
    dtype = torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32
    step = torch.tensor(float(n), dtype=dtype, device="cpu")
    if step.item() != n:
        raise ValueError(f"step is {n}, expected a count that {step.dtype} holds")
    return step


def _class_name(optimizer: Optimizer) -> str:
    names = {kind: name for name, kind in _classes().items()}
    for c in type(optimizer).__mro__:
        if c in names:
            if isinstance(optimizer, ForLoop) and (why := optimizer.reason_unsaved) is not None:
                raise TypeError(f"{type(optimizer).__name__}: {why}, which a file cannot hold")
            return names[c]
    raise TypeError(f"{type(optimizer).__name__} is none of torch.optim's or goptim's classes")


def _names(optimizer: Optimizer, names: Iterable[tuple[str, Tensor]] | None) -> list[list[str]]:
    """The parameters' names, by group."""
    known = None if names is None else {id(p): n for n, p in names}
    all_names, index = [], 0
    for group in optimizer.param_groups:
        ns = []
        for i, p in enumerate(group["params"]):
            if known is None:
                ns.append(group["param_names"][i] if "param_names" in group else str(index))
            elif id(p) in known:
                ns.append(known[id(p)])
            else:
                raise ValueError(f"parameter {index} has no name")
            index += 1
        all_names.append(ns)
    flat = [n for ns in all_names for n in ns]
    for n in flat:
        if not isinstance(n, str):
            raise TypeError(f"a parameter's name is {n!r}, expected a string")
        n.encode()  # raises ValueError if it is not valid Unicode
    if len(set(flat)) != len(flat):
        raise ValueError("two parameters have the same name")
    return all_names


def _option_to_json(class_name: str, key: str, value: Any, group: int) -> Iterable[tuple[str, Any]]:
    """A hyperparameter and its JSON value; nothing if it is not the class's and JSON cannot represent it."""
    if key in _NOT_OPTIONS:
        return
    if key not in _defaults(class_name):
        if isinstance(value, torch.dtype):  # state_dtype
            value = str(value).removeprefix("torch.")
        if _is_json(value):
            yield key, _to_json(value)
        return
    kind = _kind(key, _defaults(class_name)[key])
    try:
        if kind == "flag":
            yield key, None if value is None else bool(value)
        elif kind == "count":
            yield key, operator.index(value)
        elif kind == "choice":
            if value is not None and not isinstance(value, str):
                raise TypeError
            yield key, value
        elif kind == "numbers":
            yield key, [None if v is None else _number_to_json(v) for v in value]
        else:
            yield key, None if value is None and key in _MAY_BE_NONE else _number_to_json(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as e:
        raise TypeError(f"group {group}: {key} is {value!r}, which a file cannot hold") from e


def _number_to_json(value: Any) -> Any:
    """A number of any type: Python's, NumPy's, or a scalar tensor."""
    if isinstance(value, (str, bytes)):
        raise TypeError
    value = value.item() if isinstance(value, Tensor) else value
    return _to_json(int(value) if isinstance(value, int) else float(value))


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _is_json(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_json(v) for v in value)
    return isinstance(value, (bool, int, float, str, type(None))) or _is_scalar(value)


def _to_json(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return [_to_json(v) for v in value]
    return repr(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def _to_tensor(name: str, key: str, value: Any) -> Tensor:
    """A state's value as a contiguous tensor."""
    if isinstance(value, (bool, int, float)):
        return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64, device="cpu")
    what = f"parameter {name}: its state {key}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} is a {type(value).__name__}, which a file cannot hold")
    t = value.detach()
    if type(t) is not Tensor or t.layout is not torch.strided or t.is_nested or t.is_quantized:
        raise TypeError(f"{what} is a {type(value).__name__}, {t.layout}, expected a plain strided tensor")
    if t.is_cpu and t.numel() and not t._is_zerotensor():
        last = t.storage_offset() + sum(s * (n - 1) for s, n in zip(t.stride(), t.shape, strict=True))
        has, needs = t.untyped_storage().nbytes(), (last + 1) * t.element_size()
        if has < needs or t.data_ptr() == 0:
            raise ValueError(f"{what} has a storage of {has} bytes, expected at least {needs}")
    t = t.cpu().resolve_conj().resolve_neg().contiguous()
    return t.clone() if t._is_zerotensor() else t
