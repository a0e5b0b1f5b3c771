"""`dptrain.save` and `dptrain.load`: PyTorch's own files, without PyTorch.

Owns: the two functions, and which format a file is in. Must not know: how formats are laid out.
"""

from __future__ import annotations

import io
import mmap as mapping
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.core.dtypes import dtype
from dptrain.core.storage import PrivateMap
from dptrain.serialization.archive import ALIGNMENT, SIGNATURE, ArchiveReader, ArchiveWriter
from dptrain.serialization.endianness import assumed_byteorder
from dptrain.serialization.legacy import kind_of, legacy_parts, read_legacy
from dptrain.serialization.names import memory_formats, value_globals, why_unsupported
from dptrain.serialization.pickler import dump
from dptrain.serialization.placing import Place, placing
from dptrain.serialization.rebuild import REBUILD, LoadedStorage
from dptrain.serialization.safe_globals import built_in
from dptrain.serialization.safetensors_file import load_file
from dptrain.serialization.scan import unsafe_names
from dptrain.serialization.source import Source, shown
from dptrain.serialization.unpickler import load_safely

DEFAULT_PROTOCOL = 2


def save(
    obj: Any,
    f: Any,
    pickle_module: Any = pickle,
    pickle_protocol: int = DEFAULT_PROTOCOL,
    _use_new_zipfile_serialization: bool = True,
    _disable_byteorder_record: bool = False,
) -> None:
    """Write a value into a file that `torch.load` and `dptrain.load` read.

    Tensors that share memory share it again after loading; a view brings the whole of its storage. A
    parameter's storage is its own values, also where an optimizer keeps all of them in one buffer. The value
    is pickled before the file is opened, so that what cannot be pickled leaves an older file alone; from then
    on the file is written in place, as by PyTorch, and a file that was cut short is refused by `load`. For
    files that are there whole or not at all see `dptrain.checkpoint`.

    Args:
        obj: what to write: tensors, state_dicts, nested containers of these and plain values, or whatever
            pickles (a whole module; only dptrain reads that, with `weights_only=False`).
        f: a path, or an object with `write`.
        pickle_module: whose `Pickler` is used; from protocol 4 on it has to be one written in Python (pickle's, dill's).
        pickle_protocol: of the pickle, 2 or more; `torch.load` reads protocol 2 with `weights_only=True`.
        _use_new_zipfile_serialization: False writes PyTorch's format before 1.6.
        _disable_byteorder_record: leave out the mark of the byte order, as files before 2.1.

    Raises:
        AttributeError: `f` is neither a path nor has `write`.
        RuntimeError: one memory that is seen as two types.
    """
    if not _is_path(f) and not hasattr(f, "write"):
        raise AttributeError(
            "expected 'f' to be string, path, or a file-like object with a 'write' attribute"
        )
    if not _use_new_zipfile_serialization:
        parts = legacy_parts(obj, pickle_module, pickle_protocol)
        with _opened(f, "wb") as file:
            for part in parts:
                file.write(part)
        return
    data, storages = dump(
        obj,
        pickle_module,
        pickle_protocol,
        lambda held, key: ("storage", held.type, key, held.location, held.numel),
    )
    with _opened(f, "wb") as file:
        writer = ArchiveWriter(file, _folder_name(f))
        writer.write("data.pkl", data)
        writer.write(".format_version", b"1")
        writer.write(".storage_alignment", str(ALIGNMENT).encode())
        if not _disable_byteorder_record:
            writer.write("byteorder", sys.byteorder.encode())
        for key, memory in storages.memories.items():
            writer.write(f"data/{key}", memory.data)
        writer.finish()


def load(
    f: Any,
    map_location: Any = None,
    pickle_module: Any = None,
    *,
    weights_only: bool | None = None,
    mmap: bool | None = None,
    **pickle_load_args: Any,
) -> Any:
    """Read a value from a file that `torch.save` or `dptrain.save` wrote; also a `.safetensors` file.

    Args:
        f: a path, or an object with `read`, `readline`, `seek` and `tell`.
        map_location: where storages go: None (where they were), a device or its name, a dict from the
            places in the file to places, or a function of a storage and its place that gives a storage or None.
        pickle_module: whose `Unpickler` is used; only with `weights_only=False`.
        weights_only: True (also the default, without a `pickle_module`) runs nothing from the file and
            allows what `dptrain.serialization.get_safe_globals` and the built-in list allow. False runs whatever the
            file asks for: only for files whose maker you trust.
        mmap: map the file instead of reading it: values are read when they are used, changes stay in memory.
        pickle_load_args: for the `Unpickler`, with `weights_only=False`; `encoding` is for texts of Python 2.

    Raises:
        UnpicklingError: what the file holds is not allowed, not known here, or damaged.
        RuntimeError: the zip archive or a tensor in it is damaged, a device is not there, arguments clash.
        EOFError: the file is cut short.
        ValueError: the file states an unknown byte order.
        FileNotFoundError: there is no such file.
    """
    if weights_only is None:
        weights_only = pickle_module is None
    if weights_only and pickle_module is not None:
        raise RuntimeError("Can not safely load weights when explicit pickle_module is specified")
    if weights_only and pickle_load_args:
        warnings.warn("pickle_load_args only works if `weights_only=False`.", stacklevel=2)
    if mmap and not _is_path(f):
        raise ValueError("f must be a file path in order to use the mmap argument")
    if _is_path(f) and os.fspath(f).endswith(".safetensors"):
        return _load_safetensors(f, map_location)
    place = placing(map_location)
    reader = (
        _safe_reader(pickle_load_args)
        if weights_only
        else _trusting_reader(pickle_module or pickle, pickle_load_args)
    )
    with _opened(f, "rb") as file:
        _check_readable(file)
        source = Source(file)
        if _starts_with(file, SIGNATURE):
            return _read_zip(source, reader, place, bool(mmap))
        if mmap:
            raise RuntimeError(
                "mmap can only be used with files saved with _use_new_zipfile_serialization=True; save the "
                "file again with this option in order to use mmap"
            )
        _refuse_tar(file)
        return read_legacy(source, reader, place)


def get_unsafe_globals_in_checkpoint(f: Any) -> list[str]:
    """The full names in a file that `load(..., weights_only=True)` would refuse; nothing is loaded.

    Raises:
        ValueError: the file is none of the zip format.
    """
    with _opened(f, "rb") as file:
        _check_readable(file)
        if not _starts_with(file, SIGNATURE):
            raise ValueError("Expected input to be a checkpoint returned by save in the zip format")
        return unsafe_names(Source(io.BytesIO(ArchiveReader(Source(file)).record("data.pkl"))))


# ---- files -------------------------------------------------------------------------------------


def _is_path(f: Any) -> bool:
    return isinstance(f, (str, os.PathLike))


@contextmanager
def _opened(f: Any, mode: str) -> Iterator[Any]:
    if _is_path(f):
        if mode == "wb" and not os.path.isdir(parent := os.path.dirname(f) or "."):
            raise RuntimeError(f"Parent directory {parent} does not exist.")
        with open(f, mode) as file:
            yield file
        return
    yield f
    if mode == "wb" and hasattr(f, "flush"):
        f.flush()


def _folder_name(f: Any) -> str:
    """The folder of the records: the file's name without its last ending, as PyTorch has it."""
    name = Path(os.fspath(f)).name if _is_path(f) else "archive"
    return (name.rpartition(".")[0] or name) if name.isascii() else "archive"


def _check_readable(file: Any) -> None:
    missing = [name for name in ("read", "readline", "seek", "tell") if not hasattr(file, name)]
    if missing:
        raise AttributeError(
            f"{type(file).__name__!r} object has no attribute {missing[0]!r}. You can only load from a file that "
            "is seekable. Please pre-load the data into a buffer like io.BytesIO and try to load from it instead."
        )
    try:
        file.seek(file.tell())
    except OSError as error:  # io.UnsupportedOperation is one
        raise io.UnsupportedOperation(
            f"{error}. You can only load from a file that is seekable. Please pre-load the data into a buffer "
            "like io.BytesIO and try to load from it instead."
        ) from None


def _starts_with(file: Any, signature: bytes) -> bool:
    here = file.tell()
    found = file.read(len(signature)) == signature
    file.seek(here)
    return bool(found)


def _refuse_tar(file: Any) -> None:
    """Files of PyTorch before 0.1.12 are tar archives."""
    here = file.tell()
    found = file.read(262)[257:] == b"ustar"
    file.seek(here)
    if found:
        raise RuntimeError(
            "the file is in PyTorch's legacy .tar format (before 0.1.12), which dptrain does not read; load it "
            "in PyTorch and save it again"
        )


def _load_safetensors(f: Any, map_location: Any) -> Any:
    if isinstance(map_location, dict) or callable(map_location):
        raise RuntimeError(
            "Loading a safetensors file with a dict or function as map_location is not supported; use a device"
        )
    return load_file(f, "cpu" if map_location is None else map_location)


# ---- zip ---------------------------------------------------------------------------------------


def _read_zip(source: Source, reader: Any, place: Place, mapped: bool) -> Any:
    archive = ArchiveReader(source)
    if "constants.pkl" in archive:
        raise RuntimeError(
            "the file is a TorchScript archive, which holds a program; dptrain reads values only. Load it in "
            "PyTorch (torch.jit.load) and save its state_dict"
        )
    order = (
        archive.record("byteorder").decode("ascii", "replace") if "byteorder" in archive else None
    )
    if order not in (None, "little", "big"):
        raise ValueError(f"Unknown endianness type: {order[:40]}")
    swap = (order or assumed_byteorder()) != sys.byteorder
    memory = PrivateMap(source.file.fileno(), 0, access=mapping.ACCESS_COPY) if mapped else None
    found: dict[str, LoadedStorage] = {}

    def persistent_load(pid: Any) -> LoadedStorage:
        key, kind, location, numel = _storage_id(pid)
        if key not in found:
            name, nbytes = f"data/{key}", numel * kind.itemsize
            array = _elements(archive, name, kind, nbytes, memory)
            found[key] = place(array.byteswap() if swap and numel else array, kind, location)
        if found[key].dtype is not kind or found[key].size() < numel:
            raise pickle.UnpicklingError("wrong persistent id: one storage of two types or sizes")
        return found[key]

    return reader(Source(io.BytesIO(archive.record("data.pkl"))), persistent_load)


def _elements(
    archive: ArchiveReader, name: str, kind: dtype, nbytes: int, memory: PrivateMap | None
) -> np.ndarray:
    if memory is not None:
        return archive.mapped(name, memory, kind.numpy, nbytes)
    return archive.array(name, kind.numpy, nbytes)


def _storage_id(pid: Any) -> tuple[str, dtype, str, int]:
    """Key, type, place and number of elements from a persistent id.

    Raises:
        UnpicklingError: it is none of a storage.
    """
    if isinstance(pid, tuple) and len(pid) == 5:
        name, type_, key, location, numel = (
            p.decode("ascii") if isinstance(p, bytes) else p for p in pid
        )
        if (
            name == "storage"
            and isinstance(key, str)
            and isinstance(location, str)
            and type(numel) is int
            and numel >= 0
        ):
            return key, kind_of(type_), location, numel
    raise pickle.UnpicklingError(
        f"Only persistent_load of storage is allowed, but got {shown(pid)}"
    )


# ---- pickles -----------------------------------------------------------------------------------


def _safe_reader(arguments: dict[str, Any]) -> Any:
    encoding = arguments.get("encoding", "utf-8")

    def read(source: Source, persistent_load: Callable[[Any], Any] | None) -> Any:
        try:
            if persistent_load is None:
                return load_safely(source, encoding=encoding)
            return load_safely(source, persistent_load, encoding)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(f"Weights only load failed. {error}") from error.__cause__

    return read


def _trusting_reader(pickle_module: Any, arguments: dict[str, Any]) -> Any:
    """Reads with an ordinary unpickler that knows what PyTorch's names are here."""
    known = {**built_in(), **value_globals(), **memory_formats(), **REBUILD}
    arguments = {"encoding": "utf-8", **arguments}

    class TorchUnpickler(pickle_module.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if module.partition(".")[0] in ("torch", "torchvision"):
                if full in known:
                    return known[full]
                raise pickle.UnpicklingError(
                    f"cannot load {full}: the file holds {why_unsupported(full)}"
                )
            return super().find_class(module, name)

    def read(source: Source, persistent_load: Callable[[Any], Any] | None) -> Any:
        unpickler = TorchUnpickler(source.file, **arguments)
        if persistent_load is not None:
            unpickler.persistent_load = persistent_load
        return unpickler.load()

    return read
