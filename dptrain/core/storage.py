"""The memory behind tensors: storages, offsets, memory that processes share.

Owns: `UntypedStorage`, `TypedStorage` and the Tensor methods that speak of memory. Must not know:
derivatives.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from dptrain.core.arrays import device_of, is_array, namespace_of, on_gpu, span
from dptrain.core.device import device
from dptrain.core.dtypes import FROM_NUMPY, dtype
from dptrain.core.layout import layout, row_major, strided
from dptrain.core.parts import owner_of
from dptrain.core.pinning import is_pinned
from dptrain.core.tensor import Tensor, wrap


def _owner(tensor: Tensor) -> np.ndarray:
    """The array that owns the memory that the tensor looks into; a parameter's own part of a flat buffer."""
    return owner_of(tensor._settled())


class PrivateMap(mmap.mmap):
    """A file in memory whose changes stay in this process."""


class UntypedStorage:
    """The bytes that one or several tensors look into. `tensor.untyped_storage()` gives it."""

    def __init__(self, owner: np.ndarray) -> None:
        self._owner = owner
        self._start, end = span(owner)
        self._nbytes = end - self._start

    @property
    def device(self) -> device:
        """Where the bytes are."""
        return device_of(self._owner)

    @property
    def is_cuda(self) -> bool:
        """Whether they are on a GPU."""
        return self.device.type == "cuda"

    def data_ptr(self) -> int:
        """Address of the first byte."""
        return self._start

    def nbytes(self) -> int:
        """Number of bytes."""
        return self._nbytes

    def size(self) -> int:
        """Number of bytes."""
        return self._nbytes

    def element_size(self) -> int:
        """Bytes of one element: 1."""
        return 1

    def is_shared(self) -> bool:
        """Whether other processes that were forked from this one see changes."""
        return _is_shared(self._owner)

    def is_pinned(self) -> bool:
        """Whether they are in page-locked memory."""
        return is_pinned(self._owner)

    def cpu(self) -> UntypedStorage:
        """The bytes on the CPU: themselves."""
        return self

    def cuda(self, device: Any = None, non_blocking: bool = False) -> UntypedStorage:
        """A copy on a GPU.

        Raises:
            RuntimeError: always, as there is none.
        """
        raise RuntimeError(
            "storage.cuda(): no GPU is available; this version computes on 'cpu' only"
        )

    def _elements(self) -> np.ndarray:
        return self._owner.ravel(order="K").view(np.uint8)

    def tolist(self) -> list[Any]:
        """The elements as Python numbers."""
        return list(self._elements().tolist())

    def __len__(self) -> int:
        return self.size()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def __getitem__(self, index: int) -> Any:
        return self._elements()[index].item()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, UntypedStorage)
            and type(self) is type(other)
            and (self._start, self._nbytes) == (other._start, other._nbytes)
        )

    def __hash__(self) -> int:
        return hash((self._start, self._nbytes))


class TypedStorage(UntypedStorage):
    """The same memory counted in elements of a type. `tensor.storage()` gives it."""

    def __init__(self, owner: np.ndarray, kind: np.dtype[Any]) -> None:
        super().__init__(owner)
        self._kind = kind

    @property
    def dtype(self) -> dtype:
        """Type of the elements."""
        return FROM_NUMPY[self._kind]

    def size(self) -> int:
        """Number of elements."""
        return self._nbytes // self._kind.itemsize

    def element_size(self) -> int:
        """Bytes of one element."""
        return self._kind.itemsize

    def untyped(self) -> UntypedStorage:
        """The memory counted in bytes."""
        return UntypedStorage(self._owner)

    def _elements(self) -> np.ndarray:
        return super()._elements().view(self._kind)


def is_storage(obj: Any, /) -> bool:
    """Whether `obj` is a storage."""
    return isinstance(obj, UntypedStorage)


def _untyped_storage(self: Tensor) -> UntypedStorage:
    """The memory that the tensor looks into."""
    return UntypedStorage(_owner(self))


def _typed_storage(self: Tensor) -> TypedStorage:
    """The memory that the tensor looks into, counted in its elements."""
    return TypedStorage(_owner(self), self._array.dtype)


def _storage_offset(self: Tensor) -> int:
    """Elements of the storage before the tensor's first one."""
    if not self._array.size:
        return 0
    return (self.data_ptr() - _untyped_storage(self).data_ptr()) // self._array.itemsize


def _is_shared(owner: np.ndarray) -> bool:
    held: Any = owner
    while is_array(held):
        held = held.base
    memory = held.obj if isinstance(held, memoryview) else held
    return isinstance(memory, mmap.mmap) and not isinstance(memory, PrivateMap)


def _tensor_is_shared(self: Tensor) -> bool:
    """Whether other processes that were forked from this one see changes; of a GPU's tensor yes, as in PyTorch."""
    return on_gpu(self._array) or _is_shared(_owner(self))


def _share_memory(self: Tensor) -> Tensor:
    """Move the values, in place, to memory that processes forked from this one share."""
    if not _tensor_is_shared(self) and self._array.size:
        memory = mmap.mmap(-1, self._array.nbytes)
        shared = (
            namespace_of(self._array)
            .frombuffer(memory, self._array.dtype)
            .reshape(self._array.shape)
        )
        np.copyto(shared, self._array)
        self.data = wrap(shared)
    return self


def _set(
    self: Tensor,
    source: Any = None,
    storage_offset: int | None = None,
    size: Any = None,
    stride: Any = None,
) -> Tensor:
    """Look into the memory of `source` (a tensor or a storage; nothing: an empty one) from here on.

    Raises:
        TypeError: `source` is neither.
        RuntimeError: another dtype, or sizes and strides that leave the storage.
    """
    kind = self._array.dtype
    if size is not None and not isinstance(size, (tuple, list)):
        raise TypeError(f"set_(): argument 'size' must be tuple of ints, not {type(size).__name__}")
    if (
        isinstance(source, Tensor)
        and len({storage_offset is None, size is None, stride is None}) > 1
    ):
        raise TypeError("set_() takes a Tensor alone, or with storage_offset, size and stride")
    storage_offset = storage_offset or 0
    if source is None:
        found = wrap(namespace_of(self._array).empty(0, kind))
    elif isinstance(source, Tensor):
        found = source if size is None else source.as_strided(size, stride, storage_offset)
    elif isinstance(source, UntypedStorage):
        flat = wrap(source._owner.ravel(order="K").view(kind))
        whole = (flat._array.size,) if size is None else size
        steps = row_major(whole) if stride is None else stride
        found = flat.as_strided(whole, steps, storage_offset)
    else:
        raise TypeError(
            f"set_(): argument 'source' must be Tensor or Storage, not {type(source).__name__}"
        )
    if found._array.dtype != kind:
        raise RuntimeError(
            f"Could not set tensor of type {found.dtype} to a tensor of type {self.dtype}"
        )
    self.data = found
    return self


def _dim_order(self: Tensor, *, ambiguity_check: Any = False) -> tuple[int, ...]:
    """The dimensions from the slowest to the fastest in memory.

    Raises:
        RuntimeError: `ambiguity_check`, and there is more than one such order.
    """
    steps = self.stride()
    if ambiguity_check and len({s for s, n in zip(steps, self.shape, strict=True)}) < len(steps):
        raise RuntimeError(
            "The tensor does not have unique dim order, or cannot map to exact one of the given memory formats."
        )
    return tuple(sorted(range(len(steps)), key=lambda d: -steps[d]))


def _layout(self: Tensor) -> layout:
    """How the values are stored: `dptrain.strided`."""
    return strided


for _name, _method in {
    "untyped_storage": _untyped_storage,
    "storage": _typed_storage,
    "storage_offset": _storage_offset,
    "is_shared": _tensor_is_shared,
    "share_memory_": _share_memory,
    "set_": _set,
    "dim_order": _dim_order,
    "layout": property(_layout),
    "const_data_ptr": Tensor.data_ptr,
    "is_set_to": lambda self, tensor: (
        self.data_ptr() == tensor.data_ptr()
        and self.shape == tensor.shape
        and self.stride() == tensor.stride()
    ),
}.items():
    setattr(Tensor, _name, _method)
