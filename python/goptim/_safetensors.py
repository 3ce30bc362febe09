"""The safetensors format, https://huggingface.co/docs/safetensors."""

from __future__ import annotations

import ctypes
import json
import math
import os
import struct
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from goptim._files import StrOrBytesPath, naming, replace

_DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "C64": torch.complex64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
if hasattr(torch, "float8_e8m0fnu"):
    _DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_FIELDS = ("dtype", "shape", "data_offsets")
_MAX_HEADER = 100_000_000  # as in the format's reference implementation


def write(path: StrOrBytesPath, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write contiguous tensors on the CPU as a safetensors file, wider elements first.

    Raises:
        OSError: the file cannot be written. An existing file is unchanged.
    """
    header: dict[str, Any] = {_METADATA: metadata}
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

    def chunks() -> Iterator[Any]:
        yield struct.pack("<Q", len(text)) + text
        for _, t in ordered:
            if t.numel():
                yield (ctypes.c_char * (t.numel() * t.element_size())).from_address(t.data_ptr())

    replace(path, chunks())


def read(path: StrOrBytesPath) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        ValueError: it is not a safetensors file, or damaged.
        OSError: it cannot be read; its filename is the path.
    """
    with naming(path), open(path, "rb") as f:
        data = bytearray(f.read())
    try:
        return _parse(data)
    except ValueError as e:
        raise ValueError(f"{os.fsdecode(path)}: no safetensors file, or damaged: {e}") from e


def _parse(data: bytearray) -> tuple[dict[str, Tensor], dict[str, str]]:
    if len(data) < 8:
        raise ValueError(f"{len(data)} bytes, expected at least 8")
    (n,) = struct.unpack_from("<Q", data)
    if n > _MAX_HEADER:
        raise ValueError(f"a header of {n} bytes, expected at most {_MAX_HEADER}")
    start = 8 + n
    if start > len(data):
        raise ValueError(f"{len(data)} bytes, expected a header of {n}")
    if data[8:9] != b"{":
        raise ValueError("the header is not an object in JSON")
    header: dict[str, Any] = parse_json(data[8:start].decode())
    metadata = header.pop(_METADATA, {})
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise ValueError(f"{_METADATA}: expected an object of strings")
    entries = sorted((_entry(name, entry) for name, entry in header.items()), key=lambda e: (e.begin, e.end))
    tensors, end = {}, start
    for e in entries:
        if e.begin != end - start:
            raise ValueError(f"{e.name!r} begins at {e.begin} of the data, expected {end - start}")
        end = start + e.end
        if end > len(data):
            raise ValueError(f"{e.name!r} ends at {e.end} of the data, which is {len(data) - start} bytes")
        tensors[e.name] = e.tensor(data, start)
    if end != len(data):
        raise ValueError(f"{len(data) - start} bytes of data, expected {end - start}")
    return tensors, metadata


class _Entry:
    """The header's entry of a tensor."""

    def __init__(self, name: str, dtype: torch.dtype, shape: list[int], begin: int, end: int) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.begin = begin
        self.end = end

    def tensor(self, data: bytearray, start: int) -> Tensor:
        try:
            t = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        except RuntimeError as e:  # a dimension is 0, and the product of the others overflows
            raise ValueError(f"{self.name!r} is of shape {self.shape}") from e
        if size := self.end - self.begin:
            ctypes.memmove(t.data_ptr(), (ctypes.c_char * size).from_buffer(data, start + self.begin), size)
        return t


def _entry(name: str, entry: Any) -> _Entry:
    if type(entry) is not dict or entry.keys() != set(_FIELDS):
        raise ValueError(f"{name!r}: expected an object with {', '.join(_FIELDS)}")
    dtype, shape, offsets = (entry[field] for field in _FIELDS)
    if type(dtype) is not str or dtype not in _DTYPES:
        raise ValueError(f"{name!r}: dtype {dtype!r}, expected one of {', '.join(_DTYPES)}")
    if not _are_sizes(shape):
        raise ValueError(f"{name!r}: shape {shape!r}, expected a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name!r}: data_offsets {offsets!r}, expected two in order")
    begin, end = offsets
    size = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != size:
        raise ValueError(f"{name!r}: data_offsets {offsets}, expected {size} bytes of {dtype} of shape {shape}")
    return _Entry(name, _DTYPES[dtype], shape, begin, end)


def _are_sizes(value: object) -> bool:
    """Whether a JSON value is a list of valid sizes or offsets."""
    return type(value) is list and len(value) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def parse_json(text: str) -> Any:
    """Parse standard JSON.

    Raises:
        ValueError: it is invalid, an object has a duplicate member, a number exceeds float64, or it is nested too
            deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_float=_finite, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        first = {key: i for i, (key, _) in reversed(list(enumerate(pairs)))}
        raise ValueError(f"two members {next(key for i, (key, _) in enumerate(pairs) if first[key] < i)!r}")
    return members


def _finite(text: str) -> float:
    if math.isinf(x := float(text)):
        raise ValueError(f"{text}, which a float64 does not hold")
    return x


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant}, which is not JSON")
