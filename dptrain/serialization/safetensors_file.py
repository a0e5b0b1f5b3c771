"""Tensors by name in safetensors files, both ways, and the names that the format has for element types.

Owns: `save_file`, `load_file`, `save`, `load` of that format. Must not know: checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dptrain.core.arrays import move, to_host
from dptrain.core.device import as_device
from dptrain.core.dtypes import ALL_DTYPES
from dptrain.core.parts import owner_of
from dptrain.core.tensor import Tensor, wrap

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
}
_NUMPY_OF = {d.name: d.numpy for d in ALL_DTYPES}


def pack(arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a file with these arrays."""
    held = {n: np.ascontiguousarray(a).reshape(a.shape) for n, a in arrays.items()}
    data: bytes = safetensors.numpy.save(held, metadata)
    return data


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """New arrays with what the bytes of a file hold.

    Raises:
        RuntimeError: the bytes are damaged, or of an element type that is not here.
    """
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise RuntimeError(f"no complete safetensors file: {error}") from None
    found = {}
    for name, entry in entries:
        if entry["dtype"] not in _NAMES:
            raise RuntimeError(
                f"{name!r} in the safetensors file is of type {entry['dtype']}, which dptrain does not have"
            )
        kind = _NUMPY_OF[_NAMES[entry["dtype"]]]
        found[name] = np.frombuffer(bytearray(entry["data"]), kind).reshape(entry["shape"])
    return found


def save_file(
    tensors: Mapping[str, Tensor], filename: Any, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors by name into a safetensors file, as `safetensors.torch.save_file`.

    Raises:
        ValueError: values that are no tensors.
        RuntimeError: tensors that share memory, which the format cannot say.
    """
    wrong = {name: type(t).__name__ for name, t in tensors.items() if not isinstance(t, Tensor)}
    if wrong:
        raise ValueError(f"save_file expects a dict of tensors, but found {wrong}")
    _refuse_sharing(tensors)
    data = pack({name: to_host(t._array) for name, t in tensors.items()}, metadata)
    with open(filename, "wb") as file:
        file.write(data)


def _refuse_sharing(tensors: Mapping[str, Tensor]) -> None:
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if not tensor._array.size:
            continue
        memory = owner_of(tensor._array).__array_interface__["data"][0]
        other = first.setdefault(memory, name)
        if other != name:
            raise RuntimeError(
                f"save_file: {other!r} and {name!r} share memory, which a safetensors file cannot say; "
                "save a clone() of one of them, or use dptrain.save"
            )


def load_file(filename: Any, device: Any = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, as `safetensors.torch.load_file`.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: it is damaged, or the device is not there.
    """
    place = as_device(device)
    with open(os.fspath(filename), "rb") as file:
        return {name: wrap(move(array, place)) for name, array in unpack(file.read()).items()}
