"""Pickling with PyTorch's names: tensors as calls of its functions over storages that lie elsewhere.

Owns: how our values are named in a file, which storages it needs. Must not know: where storages are
written.

A pickler can only write names that it can import, and PyTorch's are not there. So stand-ins are written,
names that our own modules have, and replaced in the finished pickle, which protocols 2 and 3 allow: a name
is text that ends with its line there. For later protocols Python's pickler in Python is used, with its
table of types extended; it is several times slower.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import address, device_of, to_host
from dptrain.core.device import device
from dptrain.core.dtypes import FROM_NUMPY, dtype, uint8
from dptrain.core.host_array import HostArray
from dptrain.core.layout import layout, memory_format, strides_of
from dptrain.core.parts import owner_of
from dptrain.core.size import Size
from dptrain.core.storage import TypedStorage, UntypedStorage
from dptrain.core.tensor import Tensor
from dptrain.serialization.names import TorchGlobal, parameter_class, storage_global, torch_global
from dptrain.serialization.rebuild import state_of

#: A stand-in in a pickle: of a `TorchGlobal` the full name with colons, of a dtype or memory format its own.
_STAND_IN = re.compile(rb"cdptrain\.(?:serialization\.names|core\.dtypes|core\.layout)\n([^\n]+)\n")


class _Reference:
    """A storage in a pickle: the name of its type, its key, its place, its number of elements."""

    __slots__ = ("location", "memory", "numel", "type")

    def __init__(self, memory: np.ndarray, kind: dtype, location: str) -> None:
        self.memory = memory
        self.type = storage_global(kind)
        self.numel = memory.nbytes // kind.itemsize
        self.location = location


class StorageTable:
    """The storages that a pickle refers to, each once, in the order in which they were met.

    Attributes:
        memories: the bytes of each, by key.
        itemsizes: bytes of one element of each.
    """

    def __init__(self) -> None:
        self.memories: dict[str, np.ndarray] = {}
        self.itemsizes: dict[str, int] = {}
        self._keys: dict[Any, str] = {}
        self._types: dict[int, Any] = {}
        self._alive: list[Any] = []  # an address names a storage only while its memory lives

    def key(self, reference: _Reference) -> str:
        """The key of a storage.

        Raises:
            RuntimeError: the same memory was met before with elements of another type.
        """
        memory = reference.memory
        start = address(memory) if memory.nbytes else None
        if (
            start is not None
            and self._types.setdefault(start, reference.type) is not reference.type
        ):
            raise RuntimeError(
                "Cannot save multiple tensors or storages that view the same data as different types"
            )
        identity = id(memory) if start is None else (start, memory.nbytes)
        found = self._keys.get(identity)
        if found is None:
            found = self._keys[identity] = str(len(self._keys))
            self._alive.append(memory)
            self.memories[found] = memory.view(np.uint8)
            self.itemsizes[found] = memory.nbytes // reference.numel if reference.numel else 1
        return found


def _storage_of(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """The memory to save for an array, one-dimensional, and the array on the host.

    Both are a copy where the memory is no row of elements of the array's type (a view with steps
    backwards, bytes that start between two elements).
    """
    host = to_host(array) if type(array) is not HostArray else array.host
    memory, step = owner_of(host), host.itemsize
    first = address(host) - address(memory) if host.size else 0
    fits = memory.flags.forc and not (first % step or memory.nbytes % step)
    if not fits or any(s < 0 or s % step for s in host.strides):
        memory = host = np.array(host, order="C")
    return memory.ravel(order="A"), host


def _location(array: Any) -> str:
    """PyTorch's tag of a device; the first host device is its CPU."""
    place = device_of(array)
    return str(place) if place.index else "cpu"


def _tensor_call(tensor: Tensor) -> tuple[Any, tuple[Any, ...]]:
    memory, host = _storage_of(tensor._settled())
    step = host.itemsize
    return torch_global("torch._utils._rebuild_tensor_v2"), (
        _Reference(memory, FROM_NUMPY[host.dtype], _location(tensor._array)),
        (address(host) - address(memory)) // step if host.size else 0,
        tuple(host.shape),
        strides_of(host),
        tensor.requires_grad,
        OrderedDict(),
    )


def _reduce_tensor(tensor: Tensor) -> Any:
    """A tensor as PyTorch writes it: by its storage, offset, size and stride."""
    if not tensor._has_values:
        return tensor.__reduce__()
    tensor._settled()  # before its class is asked for: a pending result's is not its last
    cls, state = type(tensor), state_of(tensor)
    if cls is not Tensor and cls is parameter_class():
        args: tuple[Any, ...] = tensor.data, tensor.requires_grad, OrderedDict()
        if state:
            name = "torch._utils._rebuild_parameter_with_state"
            return torch_global(name), (*args, state)
        return torch_global("torch._utils._rebuild_parameter"), args
    rebuild, parts = _tensor_call(tensor)
    if cls is Tensor and not state:
        return rebuild, parts
    named = torch_global("torch.Tensor") if cls is Tensor else cls
    return torch_global("torch._tensor._rebuild_from_type_v2"), (rebuild, named, parts, state)


def _reduce_device(value: device) -> Any:
    index = () if value.index is None else (value.index,)
    return torch_global("torch.device"), (value.type, *index)


def _reduce_size(value: Size) -> Any:
    return torch_global("torch.Size"), (tuple(value),)


def _reduce_layout(value: layout) -> Any:
    return torch_global("torch.serialization._get_layout"), (f"torch.{value.name}",)


class _Reducers:
    """How values of our types are written, and for others what the table of the pickler says.

    Attributes:
        written: how many of PyTorch's names were written as their stand-ins.
    """

    _OURS: ClassVar[dict[Any, Callable[[Any], Any]]] = {
        device: _reduce_device,
        Size: _reduce_size,
        layout: _reduce_layout,
    }

    def __init__(self, others: Any) -> None:
        self._others = others
        self.written = 0

    def __getitem__(self, cls: type) -> Any:
        found = self.get(cls)
        if found is None:
            raise KeyError(cls)
        return found

    def get(self, cls: type) -> Any:
        """The function for a type, or None."""
        if issubclass(cls, Tensor):
            return _reduce_tensor
        if cls in (TorchGlobal, dtype, memory_format):
            return self._stand_in
        return self._OURS.get(cls) or self._others.get(cls)

    def _stand_in(self, value: TorchGlobal | dtype | memory_format) -> str:
        """A name in the module of the value's class, under which the value is found."""
        self.written += 1
        if isinstance(value, TorchGlobal):
            return value.stand_in
        return "bool_" if value.name == "bool" else value.name


def _write_named(pickler: Any, value: dtype | memory_format) -> None:
    pickler.save(torch_global(f"torch.{value.name}"))


def _write_global(pickler: Any, value: TorchGlobal) -> None:
    if pickler.proto >= 4:
        pickler.save(value.module)
        pickler.save(value.name)
        pickler.write(pickle.STACK_GLOBAL)
    else:
        pickler.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
    pickler.memoize(value)


def _python_pickler(pickle_module: Any) -> Any:
    if pickle_module is pickle:
        return pickle._Pickler
    if issubclass(pickle_module.Pickler, pickle._Pickler):
        return pickle_module.Pickler
    raise TypeError(
        f"save: the Pickler of {pickle_module.__name__} is not written in Python, so that it can write PyTorch's "
        "names with pickle_protocol=2 (the default) or 3 only"
    )


def dump(
    obj: Any,
    pickle_module: Any,
    protocol: int,
    identify: Callable[[_Reference, str], tuple[Any, ...]],
) -> tuple[bytes, StorageTable]:
    """The pickle of a value, and the storages that it needs.

    Args:
        obj: the value.
        pickle_module: whose Pickler is used for what is not ours.
        protocol: of the pickle.
        identify: gives the persistent id of a storage that has a key.

    Raises:
        TypeError: `pickle_module` cannot serve.
        RuntimeError: one memory as two types.
        PicklingError: what cannot be pickled.
    """
    if protocol < 2:
        raise ValueError(f"save: pickle_protocol must be 2 or more, got {protocol}")
    if not isinstance(getattr(pickle_module, "Pickler", None), type):
        raise TypeError(f"save: pickle_module={pickle_module!r} has no Pickler")
    if protocol < 4:
        data, storages, reducers = _run(obj, pickle_module.Pickler, protocol, identify, False)
        # Each name is written once, and later from the memo. More of them: a text that looks like one.
        if len(_STAND_IN.findall(data)) == reducers.written:
            return _STAND_IN.sub(_torch_name, data), storages
    return _run(obj, _python_pickler(pickle_module), protocol, identify, True)[:2]


def _torch_name(found: re.Match[bytes]) -> bytes:
    module, _, name = found[1].replace(b":", b".").rpartition(b".")
    return b"c%s\n%s\n" % (module or b"torch", name.removesuffix(b"_"))


def _run(
    obj: Any,
    base: Any,
    protocol: int,
    identify: Callable[[_Reference, str], tuple[Any, ...]],
    names_in_python: bool,
) -> tuple[bytes, StorageTable, _Reducers]:
    storages = StorageTable()
    others = getattr(base, "dispatch_table", None)  # C's own Pickler has a slot there
    reducers = _Reducers(others if hasattr(others, "get") else copyreg.dispatch_table)

    class TorchPickler(base):
        dispatch_table = reducers

        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, UntypedStorage):
                kind = value.dtype if isinstance(value, TypedStorage) else uint8
                value = _Reference(value._owner.ravel(order="A"), kind, "cpu")
            if type(value) is _Reference:
                return identify(value, storages.key(value))
            return None

    if names_in_python:
        ours = {TorchGlobal: _write_global, dtype: _write_named, memory_format: _write_named}
        TorchPickler.dispatch = {**base.dispatch, **ours}
    buffer = io.BytesIO()
    TorchPickler(buffer, protocol=protocol).dump(obj)
    return buffer.getvalue(), storages, reducers
