"""What a tensor of the host is and is not, and Tensor methods of one line that are no operation.

Owns: the answers that are the same for every tensor here. Must not know: any particular operation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.history import check_writeable
from dptrain.core.tensor import Tensor
from dptrain.core.typed import check_tensor

#: Attributes that ask for a device, an element type or a storage that dptrain does not have.
_FALSE_ATTRIBUTES = [
    "is_ipu",
    "is_maia",
    "is_meta",
    "is_mkldnn",
    "is_mps",
    "is_mtia",
    "is_nested",
    "is_quantized",
    "is_sparse",
    "is_sparse_csr",
    "is_vulkan",
    "is_xla",
    "is_xpu",
]
_FALSE_METHODS = ("is_conj", "is_neg", "is_distributed")


def _real(self: Tensor) -> Tensor:
    """The tensor itself: no dtype here is complex."""
    return self


def _false(self: Tensor) -> bool:
    """False for every tensor."""
    return False


def _hermitian(self: Tensor) -> Tensor:
    """The transpose of a matrix."""
    if self.ndim not in (0, 2):
        raise RuntimeError(
            f"tensor.H is only supported on matrices (2-D tensors). Got {self.ndim}-D tensor"
        )
    return self.mT if self.ndim == 2 else self


def _reversed(self: Tensor) -> Tensor:
    """The elements in reverse order along the first dimension."""
    return self.flip(0) if self.ndim else self


def _reflected_div(self: Tensor, other: Any) -> Any:
    """other / self."""
    return other / self


def is_signed(input: Tensor) -> bool:
    """Whether the element type holds negative values."""
    check_tensor("is_signed", input)
    return input.dtype.is_signed


def is_same_size(input: Tensor, other: Tensor) -> bool:
    """Whether both have the same shape."""
    check_tensor("is_same_size", input)
    check_tensor("is_same_size", other, "other", 2)
    return input._array.shape == other._array.shape


def get_device(input: Tensor) -> int:
    """Index of the GPU, -1 on the CPU."""
    check_tensor("get_device", input)
    return input.get_device()


def is_inference(input: Tensor) -> bool:
    """False: tensors made under `inference_mode` are ordinary ones."""
    check_tensor("is_inference", input)
    return input.is_inference()


def detach(input: Tensor) -> Tensor:
    """The same values (shared memory), cut off from the graph."""
    check_tensor("detach", input)
    return input.detach()


def _same(name: str) -> Any:
    def function(input: Tensor) -> Tensor:
        check_tensor(name, input)
        return input

    function.__name__ = function.__qualname__ = name
    function.__doc__ = _real.__doc__
    return function


conj, conj_physical, real, resolve_conj, resolve_neg = map(
    _same, ("conj", "conj_physical", "real", "resolve_conj", "resolve_neg")
)


def is_conj(input: Tensor) -> bool:
    """False: no dtype here is complex."""
    check_tensor("is_conj", input)
    return False


def is_neg(input: Tensor) -> bool:
    """False: no tensor is a lazily negated view."""
    check_tensor("is_neg", input)
    return False


def _apply(self: Tensor, callable: Any) -> Tensor:
    """Replace every element by `callable(element)`; slow, and without gradients."""
    return _map_many(self, "apply_", callable)


def _map(self: Tensor, tensor: Tensor, callable: Any) -> Tensor:
    """Replace every element by `callable(element, other)`; slow, and without gradients."""
    return _map_many(self, "map_", callable, tensor)


def _map2(self: Tensor, x: Tensor, y: Tensor, callable: Any) -> Tensor:
    """Replace every element by `callable(element, x, y)`; slow, and without gradients."""
    return _map_many(self, "map2_", callable, x, y)


def _map_many(self: Tensor, name: str, callable: Any, *others: Tensor) -> Tensor:
    if self.requires_grad or any(o.requires_grad for o in others):
        raise TypeError(
            f"Can't call {name}() on Variable that requires grad. Use var.detach().{name}() instead."
        )
    check_writeable(self, name)
    arrays = np.broadcast_arrays(self._array, *(o._array for o in others))
    values = [
        callable(*(v.item() for v in row)) for row in zip(*(a.flat for a in arrays), strict=True)
    ]
    self._array[...] = namespace_of(self._array).array(values).reshape(self._array.shape)
    self._bump_version()
    return self


def _as_subclass(self: Tensor, cls: type[Tensor]) -> Tensor:
    """The same values and history as an instance of `cls`.

    Raises:
        TypeError: `cls` is no subclass of Tensor.
    """
    if not (isinstance(cls, type) and issubclass(cls, Tensor)):
        raise TypeError(f"as_subclass: cls must be a type that inherits from Tensor, got {cls!r}")
    result = self.view(self._array.shape) if self.requires_grad else self.detach()
    result.__class__ = cls
    return result


def _module_load(self: Tensor, other: Tensor, assign: bool = False) -> Tensor:
    """What `Module.load_state_dict` puts in the place of this tensor for `other`."""
    return other.detach() if assign else self.copy_(other).detach()


def _resize(self: Tensor, *sizes: Any) -> Tensor:
    """The same elements in another shape.

    Raises:
        RuntimeError: another number of elements.
    """
    shape = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    if int(np.prod(shape, dtype=np.int64)) != self._array.size:
        raise RuntimeError(
            f"requested resize to {tuple(shape)} but the given tensor has {self._array.size} elements; resize keeps "
            "their number (resize_ does not)"
        )
    return self.contiguous().view(shape)


def _new(self: Tensor, *data: Any, device: Any = None) -> Tensor:
    """A tensor of this one's dtype: uninitialised of the given sizes, or of the given values."""
    if len(data) == 1 and not isinstance(data[0], int) and not isinstance(data[0], tuple):
        values = data[0].tolist() if isinstance(data[0], Tensor) else data[0]
        return self.new_tensor(values, device=device)
    return self.new_empty(*data or (0,), device=device)


def _imag(self: Tensor) -> Tensor:
    raise RuntimeError("imag is not implemented for tensors with non-complex dtypes.")


for _name in ("conj", "conj_physical", "conj_physical_", "resolve_conj", "resolve_neg"):
    setattr(Tensor, _name, _real)
for _name in _FALSE_ATTRIBUTES:
    setattr(Tensor, _name, property(_false))
for _name in _FALSE_METHODS:
    setattr(Tensor, _name, _false)
for _name, _value in {
    "real": property(_real),
    "imag": property(_imag),
    "H": property(_hermitian),
    "mH": property(lambda self: self.mT),
    "name": property(lambda self: None),
    "is_cpu": property(lambda self: self.device.type == "cpu"),
    "grad_dtype": property(lambda self: self.dtype),
    "volatile": property(_false),
    "__reversed__": _reversed,
    "is_signed": is_signed,
    "is_same_size": is_same_size,
    "apply_": _apply,
    "map_": _map,
    "map2_": _map2,
    "as_subclass": _as_subclass,
    "module_load": _module_load,
    "resize": _resize,
    "resize_as": lambda self, tensor: _resize(self, tensor._array.shape),
    "new": _new,
    "__nonzero__": Tensor.__bool__,
    "__long__": Tensor.__int__,
    "__rdiv__": _reflected_div,
}.items():
    setattr(Tensor, _name, _value)
