"""PyTorch's format before 1.6: pickles one after the other, then the storages.

Owns: `legacy_parts`, `read_legacy`. Must not know: zip files.

Source of the layout: files written by PyTorch with `_use_new_zipfile_serialization=False`: magic number,
version and sizes of C's types as pickles; the value, its storages as persistent ids; the list of their keys;
for each key the number of elements (8 bytes, little-endian) and the elements.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.dtypes import dtype
from dptrain.serialization.names import StorageType
from dptrain.serialization.pickler import dump
from dptrain.serialization.placing import Place
from dptrain.serialization.rebuild import LoadedStorage
from dptrain.serialization.source import Source, shown

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_SYSTEM = {
    "protocol_version": _VERSION,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}

#: Reads the next pickle of a source; persistent ids go to the function, if there is one.
Load = Callable[[Source, Callable[[Any], Any] | None], Any]


def legacy_parts(obj: Any, pickle_module: Any, protocol: int) -> list[Any]:
    """What is to be written for a value, in its order; see `dptrain.save`."""
    data, storages = dump(
        obj,
        pickle_module,
        protocol,
        lambda held, key: ("storage", held.type, key, held.location, held.numel, None),
    )
    keys = sorted(storages.memories)
    parts: list[Any] = [pickle.dumps(value, protocol) for value in (_MAGIC, _VERSION, _SYSTEM)]
    parts += [data, pickle.dumps(keys, protocol)]
    for key in keys:
        memory = storages.memories[key]
        parts += [struct.pack("<q", memory.nbytes // storages.itemsizes[key]), memory.data]
    return parts


class _Storages:
    """The storages of a file that is being read: made when they are named, filled at the end."""

    def __init__(self, source: Source, place: Place) -> None:
        self._source = source
        self._place = place
        self._memories: dict[Any, np.ndarray] = {}
        self._placed: dict[Any, LoadedStorage] = {}
        self._budget = source.left()

    def find(self, pid: Any) -> Any:
        """The storage of a persistent id.

        Raises:
            UnpicklingError: the id is none of a storage, or the file is too short for it.
        """
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # a class, with its source beside it, which is of no use here
        if not (isinstance(pid, tuple) and len(pid) == 6 and _text(pid[0]) == "storage"):
            raise pickle.UnpicklingError(f"wrong persistent id: {shown(pid)}")
        _, type_, key, location, numel, view = pid
        kind = kind_of(type_)
        if type(key) not in (str, int, bytes) or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("wrong persistent id: key or size of a storage")
        if key not in self._placed:
            self._budget -= numel * kind.itemsize
            if self._budget < 0:
                raise pickle.UnpicklingError(
                    "the file is damaged or cut short: its storages are larger than the file"
                )
            memory = self._memories[key] = np.empty(numel, kind.numpy)
            self._placed[key] = self._place(memory, kind, _text(location))
        whole = self._placed[key]
        if whole.dtype is not kind:
            raise pickle.UnpicklingError("wrong persistent id: one storage of two types")
        return whole if view is None else self._view(whole, view)

    def _view(self, whole: LoadedStorage, view: Any) -> LoadedStorage:
        """A part of a storage that counts as a storage, which files of the first versions have."""
        _, offset, size = view
        if not 0 <= offset <= offset + size <= whole.size():
            raise pickle.UnpicklingError("wrong persistent id: a view outside of its storage")
        return LoadedStorage(whole._owner[offset : offset + size], whole.dtype, whole.index)

    def fill(self, keys: Any) -> None:
        """Read the elements of the storages, which follow the list of their keys."""
        if not isinstance(keys, list) or not all(type(k) in (str, int, bytes) for k in keys):
            raise pickle.UnpicklingError("the file is damaged: no list of storages")
        if set(keys) != set(self._memories):
            raise RuntimeError("the file is damaged: it lists other storages than its tensors name")
        for key in keys:
            memory = self._memories[key]
            (numel,) = struct.unpack("<q", self._source.read(8))
            if numel != memory.size:
                raise RuntimeError(
                    f"the file is damaged: a storage has {numel} elements, its tensors name {memory.size}"
                )
            self._source.read_into(memory)


def kind_of(type_: Any) -> dtype:
    """The element type of what a persistent id names as a storage's type."""
    if not isinstance(type_, StorageType):
        raise pickle.UnpicklingError(
            f"wrong persistent id: a {type(type_).__name__} as the type of a storage"
        )
    return type_.dtype


def _text(value: Any) -> str:
    if isinstance(value, bytes):  # a string of Python 2
        return value.decode("ascii")
    if not isinstance(value, str):
        raise pickle.UnpicklingError(f"wrong persistent id: a {type(value).__name__} for a text")
    return value


def read_legacy(source: Source, load: Load, place: Place) -> Any:
    """The value in a file; see `dptrain.load`."""
    if load(source, None) != _MAGIC:
        raise RuntimeError("Invalid magic number; corrupt file?")
    version = load(source, None)
    if version != _VERSION:
        raise RuntimeError(f"Invalid protocol version: {shown(version)}")
    load(source, None)  # sizes of the writer's C types; elements are little-endian in all files
    storages = _Storages(source, place)
    result = load(source, storages.find)
    storages.fill(load(source, None))
    return result
