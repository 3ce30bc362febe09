"""States of optimizers as safetensors files, which Go programs share: docs/state.md."""

from __future__ import annotations

import ctypes
import json
import math
import os
import struct
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

_DTYPES = {"F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_VERSION = "1"


def save_state(
    optimizer: Optimizer, path: str | os.PathLike[str], names: Iterable[tuple[str, Tensor]] | None = None
) -> None:
    """Write an optimizer's state and hyperparameters as a safetensors file.

    ``goptim.ReadState`` reads it in Go, ``goptim.load_state`` in Python.

    Args:
        optimizer: one of torch.optim's classes, or of goptim's.
        path: the file, which is replaced as a whole.
        names: the parameters' names, as ``model.named_parameters()``. Without them the optimizer's own, if it was made
            of named parameters, or else the parameters' indices.
    """
    groups, tensors = [], {}
    for group, ns in zip(optimizer.param_groups, _names(optimizer, names), strict=True):
        options = {k: _to_json(v) for k, v in group.items() if k not in ("params", "param_names") and _is_option(v)}
        groups.append({"optimizer": _class_name(optimizer), "params": ns, **options})
        for p, n in zip(group["params"], ns, strict=True):
            for key, value in optimizer.state.get(p, {}).items():
                if key == "al":  # LBFGS computes it anew
                    continue
                for i, v in enumerate(value) if isinstance(value, list) else ((None, value),):
                    if v is not None:
                        tensors[f"state.{n}.{key}" + ("" if i is None else f".{i}")] = _to_tensor(v)
    write(path, tensors, {"goptim_state": _VERSION, "param_groups": json.dumps(groups, allow_nan=False)})


def load_state(
    optimizer: Optimizer, path: str | os.PathLike[str], names: Iterable[tuple[str, Tensor]] | None = None
) -> None:
    """Give an optimizer the state and hyperparameters that ``save_state``, or ``goptim.WriteState`` in Go, has written.

    Args:
        optimizer: of the same class, with the same groups of parameters.
        path: the file.
        names: the parameters' names, as for ``save_state``.

    Raises:
        ValueError: the file is damaged, or of another optimizer or other parameters; nothing has changed.
    """
    tensors, metadata = read(path)
    if metadata.get("goptim_state") != _VERSION:
        raise ValueError(f"{path}: not the state of an optimizer, or of another version")
    groups = json.loads(metadata["param_groups"])
    all_names = _names(optimizer, names)
    if len(groups) != len(all_names):
        raise ValueError(f"{path}: {len(groups)} groups of parameters, expected {len(all_names)}")
    states: dict[str, dict[str, Any]] = {}
    for name, t in tensors.items():
        if name.startswith("state."):
            parts = name[len("state.") :].split(".")
            at = -2 if parts[-1].isdigit() else -1
            states.setdefault(".".join(parts[:at]), {})[".".join(parts[at:])] = t
    new = optimizer.state_dict()
    new["state"] = {}
    exact: list[tuple[Tensor, dict[str, Any]]] = []
    index = 0
    for group, saved, to, ns in zip(optimizer.param_groups, groups, new["param_groups"], all_names, strict=True):
        class_name = _class_name(optimizer)
        if saved["optimizer"] != class_name and {saved["optimizer"], class_name} != {"Adam", "AdamW"}:
            raise ValueError(f"{path}: the state of {saved['optimizer']}, expected that of {class_name}")
        if saved["params"] != ns if class_name == "LBFGS" else sorted(saved["params"]) != sorted(ns):
            raise ValueError(f"{path}: parameters {saved['params']}, expected {ns}")
        for key, old in group.items():
            if key in saved and key != "params":
                to[key] = _from_json(saved[key], old)
        for p, n in zip(group["params"], ns, strict=True):
            if state := _state(class_name, p, n, states.pop(n, {}), to):
                new["state"][index] = state
                exact.append((p, {k: v for k, v in state.items() if not isinstance(v, Tensor) or v.dim() == 0}))
            index += 1
    if states:
        raise ValueError(f"{path}: the state of {next(iter(states))}, which is no parameter")
    optimizer.load_state_dict(new)
    for p, numbers in exact:  # which torch takes for elements, and gives these's type
        optimizer.state[p].update(numbers)


def _state(class_name: str, p: Tensor, name: str, saved: dict[str, Tensor], group: dict[str, Any]) -> dict[str, Any]:
    """The state of a parameter as its class keeps it."""
    if not saved and class_name == "Adagrad":
        initial = group["initial_accumulator_value"]
        return {
            "step": torch.tensor(0.0),
            "sum": torch.full_like(p, initial, memory_format=torch.preserve_format),
        }
    if class_name == "LBFGS":
        return _lbfgs_state(p, saved)
    state: dict[str, Any] = {}
    for key, t in saved.items():
        if t.dim() == 0 and t.dtype is torch.int64:
            state[key] = int(t)
        elif t.dim() == 0 and key in ("step", "eta", "mu", "mu_product"):
            state[key] = t
        elif key in ("row_var", "col_var"):
            want = (*p.shape[:-1], 1) if key == "row_var" else (*p.shape[:-2], 1, p.shape[-1])
            if t.shape != want:
                raise ValueError(f"parameter {name}: {key} is of shape {tuple(t.shape)}, expected {tuple(want)}")
            state[key] = t
        elif t.numel() != p.numel() or t.dtype != p.dtype:
            raise ValueError(
                f"parameter {name}: {key} is of {t.dtype} and shape {tuple(t.shape)}, "
                f"expected {p.dtype} and {tuple(p.shape)}"
            )
        else:
            state[key] = torch.empty_like(p, memory_format=torch.preserve_format).copy_(t.view(p.shape)).detach()
    return state


def _lbfgs_state(p: Tensor, saved: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    if not saved:
        return state
    for key, t in saved.items():
        if "." in key:
            continue
        if t.dim() == 0 and (t.dtype is torch.int64 or key == "prev_loss" or t.dtype != p.dtype):
            state[key] = t.item()
        else:
            state[key] = t
    if state.get("n_iter"):
        for key in ("old_dirs", "old_stps", "ro"):
            state[key] = []
            while (one := saved.get(f"{key}.{len(state[key])}")) is not None:
                state[key].append(one)
    return state


def _class_name(optimizer: Optimizer) -> str:
    for c in type(optimizer).__mro__:
        if getattr(torch.optim, c.__name__, None) is c and c is not Optimizer:
            return str(c.__name__)
    raise TypeError(f"{type(optimizer).__name__} is none of torch.optim's classes")


def _names(optimizer: Optimizer, names: Iterable[tuple[str, Tensor]] | None) -> list[list[str]]:
    """The parameters' names, group by group."""
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
    if len(set(flat)) != len(flat):
        raise ValueError("two parameters have the same name")
    return all_names


def _is_option(value: object) -> bool:
    return isinstance(value, (bool, int, float, str, tuple, list, type(None))) or (
        isinstance(value, Tensor) and value.numel() == 1
    )


def _to_json(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return [_to_json(v) for v in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any, like: Any) -> Any:
    if isinstance(like, (tuple, list)):
        return type(like)(_from_json(v, x) for v, x in zip(value, like, strict=True))
    if isinstance(like, Tensor):
        return torch.full_like(like, float(value))
    if isinstance(like, float) or (isinstance(value, str) and value in ("inf", "-inf", "nan")):
        return float(value)
    return value


def _to_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous()
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64, device="cpu")


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write contiguous tensors on the CPU as a safetensors file, wider elements first."""
    header: dict[str, Any] = {"__metadata__": metadata}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    end = 0
    for name, t in ordered:
        if t.dtype not in _NAMES:
            raise TypeError(f"{name} is of {t.dtype}")
        size = t.numel() * t.element_size()
        header[name] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for _, t in ordered:
                if t.numel():
                    f.write((ctypes.c_char * (t.numel() * t.element_size())).from_address(t.data_ptr()))
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        ValueError: it is none, or damaged.
    """
    with open(path, "rb") as f:
        data = bytearray(f.read())
    try:
        (n,) = struct.unpack_from("<Q", data)
        if n > len(data) - 8:
            raise ValueError(f"{len(data)} bytes, expected a header of {n}")
        header = cast(dict[str, Any], json.loads(data[8 : 8 + n]))
        metadata = header.pop("__metadata__", {})
        tensors, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (begin, stop) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            count = math.prod(shape)
            if begin != end or stop - begin != count * dtype.itemsize or stop > len(data) - 8 - n:
                raise ValueError(f"{name} is from {begin} to {stop} of the data")
            end = stop
            t = torch.empty(shape, dtype=dtype, device="cpu")
            if count:
                ctypes.memmove(
                    t.data_ptr(), (ctypes.c_char * (stop - begin)).from_buffer(data, 8 + n + begin), stop - begin
                )
            tensors[name] = t
        if end != len(data) - 8 - n:
            raise ValueError(f"{len(data) - 8 - n} bytes of data, expected {end}")
    except (KeyError, TypeError, ValueError, struct.error, AttributeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: no safetensors file, or damaged: {e!r}") from e
    return tensors, metadata
