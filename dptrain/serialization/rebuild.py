"""Making tensors again from storages, sizes and strides that a file states, none of which is believed.

Owns: what PyTorch's `_rebuild_...` functions are here, `LoadedStorage`. Must not know: file formats.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from dptrain.core.device import as_device, device
from dptrain.core.dtypes import dtype
from dptrain.core.host_array import HostArray
from dptrain.core.storage import TypedStorage
from dptrain.core.tensor import Tensor, wrap
from dptrain.serialization.names import parameter_class
from dptrain.serialization.source import shown

_Device, _Dtype = device, dtype
#: More dimensions than NumPy has.
_MAX_DIMS = 64
#: What the engine keeps in a tensor; the rest of its `__dict__` is the user's.
_ENGINE_FIELDS = frozenset(
    name for base in Tensor.__mro__ for name in inspect.get_annotations(base)
) | {"_held"}


class LoadedStorage(TypedStorage):
    """A storage that came from a file, on host device `index`."""

    def __init__(self, owner: np.ndarray, kind: dtype, index: int = 0) -> None:
        super().__init__(owner, kind.numpy)
        self.index = index


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _check_inside(op: str, length: int, offset: Any, size: Any, stride: Any) -> None:
    """Every element that the sizes and strides reach lies in the storage of `length` elements.

    Raises:
        RuntimeError: it does not, or they are no sizes and strides.
    """
    well_formed = (
        _is_count(offset)
        and isinstance(size, (tuple, list))
        and isinstance(stride, (tuple, list))
        and len(size) == len(stride) <= _MAX_DIMS
        and all(map(_is_count, size))
        and all(map(_is_count, stride))
    )
    if not well_formed:
        raise RuntimeError(
            f"{op}: the file is damaged: it states storage offset, size and stride of a tensor that are none "
            f"({shown(offset)}, {shown(size)}, {shown(stride)})"
        )
    end = offset
    if 0 not in size:
        end += 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if end > length:
        raise RuntimeError(
            f"{op}: setStorage: sizes {list(size)}, strides {list(stride)}, storage offset {offset} require "
            f"{end} elements, but the storage has {length}: out of bounds, the file is damaged"
        )


def _tensor(op: str, storage: Any, kind: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    if not isinstance(storage, LoadedStorage) or not isinstance(kind, dtype):
        raise RuntimeError(
            f"{op}: expected a storage and a dtype, got {type(storage).__name__} and {type(kind).__name__}"
        )
    itemsize = kind.itemsize
    _check_inside(op, storage.nbytes() // itemsize, offset, size, stride)
    try:
        array: Any = np.ndarray(
            tuple(size),
            kind.numpy,
            buffer=storage._owner if 0 not in size else np.empty(0, kind.numpy),
            offset=offset * itemsize if 0 not in size else 0,
            strides=tuple(s * itemsize for s in stride),
        )
    except (ValueError, TypeError, OverflowError) as error:  # too big for an address
        raise RuntimeError(f"{op}: sizes {list(size)} are not possible ({error})") from None
    if storage.index:
        array = HostArray(array, storage.index)
    return wrap(array)


def _with_grad(tensor: Tensor, requires_grad: Any) -> Tensor:
    if requires_grad:
        tensor.requires_grad = True
    return tensor


def _check_metadata(op: str, metadata: Any) -> None:
    if isinstance(metadata, dict) and any(metadata.values()):
        raise RuntimeError(
            f"{op}: the tensor is a lazy conjugate or negative view, which dptrain does not have; call "
            "resolve_conj().resolve_neg() before saving"
        )


def rebuild_tensor(storage: Any, storage_offset: Any, size: Any, stride: Any) -> Tensor:
    """A tensor over a storage, of its type."""
    kind = getattr(storage, "dtype", None)
    return _tensor("_rebuild_tensor", storage, kind, storage_offset, size, stride)


def rebuild_tensor_v2(
    storage: Any,
    storage_offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    backward_hooks: Any,
    metadata: Any = None,
) -> Tensor:
    """Likewise; hooks are functions, and no file brings those."""
    _check_metadata("_rebuild_tensor_v2", metadata)
    return _with_grad(rebuild_tensor(storage, storage_offset, size, stride), requires_grad)


def rebuild_tensor_v3(
    storage: Any,
    storage_offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    backward_hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor:
    """Likewise, of a type that is stated."""
    _check_metadata("_rebuild_tensor_v3", metadata)
    made = _tensor("_rebuild_tensor_v3", storage, dtype, storage_offset, size, stride)
    return _with_grad(made, requires_grad)


def rebuild_parameter(data: Any, requires_grad: Any, backward_hooks: Any) -> Tensor:
    """A Parameter over a tensor's values."""
    made: Tensor = parameter_class()(data, bool(requires_grad))
    return made


def rebuild_parameter_with_state(
    data: Any, requires_grad: Any, backward_hooks: Any, state: Any
) -> Tensor:
    """Likewise, with the attributes that the user gave it."""
    return set_state(rebuild_parameter(data, requires_grad, backward_hooks), state)


def rebuild_from_type(func: Any, new_type: Any, args: Any, state: Any) -> Tensor:
    """A tensor of a class, with the attributes that the user gave it.

    Raises:
        RuntimeError: `func` makes no plain tensor, or `new_type` is no class of tensors.
    """
    if not any(func is plain for plain in PLAIN):  # never itself: a file could nest without end
        raise RuntimeError("_rebuild_from_type_v2: the function given in the file makes no tensor")
    if not (isinstance(new_type, type) and issubclass(new_type, Tensor)):
        raise RuntimeError(
            "_rebuild_from_type_v2: the type given in the file is no class of tensors"
        )
    made: Tensor = func(*args)
    if type(made) is not new_type:
        made = made.as_subclass(new_type)
    return set_state(made, state)


def rebuild_on_device(data: Any, dtype: Any, device: Any, requires_grad: Any) -> Tensor:
    """A tensor that was saved from an accelerator through its values on the CPU."""
    if not isinstance(device, (str, _Device)) or not isinstance(dtype, _Dtype):
        raise RuntimeError(
            f"a tensor of another device: {shown(device)} is no device, or {shown(dtype)} no dtype"
        )
    as_device(device)
    return _with_grad(data.to(dtype), requires_grad)


def set_state(tensor: Tensor, state: Any) -> Tensor:
    """Give a tensor attributes from a file; what the engine keeps in it stays out of reach.

    Raises:
        RuntimeError: the state is no dictionary of names, or names what the engine keeps.
    """
    if isinstance(state, tuple) and len(state) == 2 and not state[1]:
        state = state[0]
    state = state or {}
    if not isinstance(state, dict) or not all(isinstance(k, str) for k in state):
        raise RuntimeError("the state of a tensor in the file is no dictionary of attributes")
    if refused := _ENGINE_FIELDS.intersection(state):
        raise RuntimeError(f"a file may not set {', '.join(sorted(refused))} of a tensor")
    tensor.__dict__.update(state)
    return tensor


def state_of(tensor: Tensor) -> dict[str, Any]:
    """The attributes that the user gave a tensor."""
    return {k: v for k, v in tensor.__dict__.items() if k not in _ENGINE_FIELDS}


PLAIN = (rebuild_tensor, rebuild_tensor_v2, rebuild_tensor_v3)

#: PyTorch's name -> what it is here.
REBUILD = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter_with_state,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": rebuild_on_device,
    "torch._tensor._rebuild_from_type_v2": rebuild_from_type,
}
