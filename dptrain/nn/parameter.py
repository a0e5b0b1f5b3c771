"""The tensors that a module counts as its own.

Owns: `Parameter`, `Buffer`, and their forms without a shape yet. Must not know: modules, optimizers.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from dptrain.core.arrays import device_of
from dptrain.core.creation import empty
from dptrain.core.dtypes import FROM_NUMPY, dtype
from dptrain.core.tensor import Tensor, wrap


class Parameter(Tensor):
    """A tensor that becomes a parameter of the module it is assigned to.

    Args:
        data: the values, shared and not copied; an empty tensor by default.
        requires_grad: whether backward computes a gradient for it.

    Raises:
        TypeError: `data` is no tensor.
        RuntimeError: integers that should require gradients.
    """

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        if data is None:
            super().__init__()
        elif isinstance(data, Tensor):
            self._array = data._settled()
            self._counter = data._version_counter()
        else:
            raise TypeError(f"Parameter data must be a Tensor, got {type(data).__name__}")
        self.requires_grad_(requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        # Unlike other tensors, a copied parameter starts without a gradient.
        memo[id(self)] = copy = type(self)(self.detach().clone(), self.requires_grad)
        return copy

    # mypy knows no keywords of special methods
    def __repr__(self, *, tensor_contents: str | None = None) -> str:  # type: ignore[override]
        text = super().__repr__(tensor_contents=tensor_contents)  # type: ignore[call-arg]
        return "Parameter containing:\n" + text


class _Marked(type(Tensor)):  # type: ignore[misc]
    """Buffers are plain tensors with a mark, as in PyTorch."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Tensor) and "_is_buffer" in instance.__dict__


class Buffer(Tensor, metaclass=_Marked):
    """A tensor that becomes a buffer of the module it is assigned to.

    Args:
        data: the values, shared and not copied; an empty tensor by default.
        persistent: whether it is part of `state_dict()`.
    """

    persistent: bool
    _is_buffer: bool

    def __new__(cls, data: Tensor | None = None, *, persistent: bool = True) -> Any:
        """A tensor with the mark."""
        data = Tensor() if data is None else data
        if not isinstance(data, Tensor):
            raise TypeError(f"Buffer data must be a Tensor, got {type(data).__name__}")
        result = data.detach().requires_grad_(data.requires_grad)
        result.__dict__.update(persistent=persistent, _is_buffer=True)
        return result


class UninitializedTensorMixin(Tensor):
    """A tensor whose shape is not known yet; what needs the shape or the values raises."""

    cls_to_become: Any
    _has_values = False
    _held: np.ndarray

    def materialize(self, shape: Any, device: Any = None, dtype: Any = None) -> None:
        """Give it a shape; the values are arbitrary, and the class becomes the ordinary one.

        Args:
            shape: the sizes.
            device: its own by default.
            dtype: its own by default.
        """
        place = self.device if device is None else device
        made = empty(shape, device=place, dtype=self.dtype if dtype is None else dtype)
        del self.__dict__["_held"]
        self.__class__ = self.cls_to_become
        self.__dict__["_array"] = made._array

    @property
    def _array(self) -> Any:  # type: ignore[override]
        # Every operation starts here, so that none can compute with a tensor that has no values.
        raise ValueError(
            f"Attempted to use an {type(self).__name__} in an operation. Call `forward` of the lazy module with a "
            "dummy batch first, which gives its parameters their shapes"
        )

    @property
    def shape(self) -> NoReturn:
        """Unknown.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "Can't access the shape of an uninitialized parameter or buffer. Call `forward` to initialize the "
            "parameters before accessing their attributes; an uninitialized one cannot be loaded into an "
            "initialized one."
        )

    @property
    def device(self) -> Any:
        """Where it will live."""
        return device_of(self._held)

    @property
    def dtype(self) -> dtype:
        """The element type that it will have."""
        return FROM_NUMPY[self._held.dtype]

    @property
    def data(self) -> Tensor:
        """An empty tensor of its type; assigning one of another type changes the type."""
        return wrap(self._held)

    @data.setter
    def data(self, value: Tensor) -> None:
        self._held = value._array

    def __repr__(self, *, tensor_contents: str | None = None) -> str:  # type: ignore[override]
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._requires_grad, self.device, self.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = copy = type(self)(self._requires_grad, self.device, self.dtype)
        return copy


class UninitializedParameter(UninitializedTensorMixin, Parameter):  # type: ignore[misc]
    """A parameter whose shape the first call of a lazy module gives.

    Args:
        requires_grad: whether backward computes a gradient for it.
        device: where it will live.
        dtype: its type; the default dtype if None.
    """

    cls_to_become = Parameter

    def __init__(self, requires_grad: bool = True, device: Any = None, dtype: Any = None) -> None:
        self._held = empty(0, device=device, dtype=dtype)._array
        self.requires_grad = requires_grad


class UninitializedBuffer(UninitializedTensorMixin):
    """A buffer whose shape the first call of a lazy module gives.

    Args:
        requires_grad: whether backward computes a gradient for it.
        device: where it will live.
        dtype: its type; the default dtype if None.
        persistent: whether it is part of `state_dict()`.
    """

    cls_to_become = Tensor

    def __init__(
        self,
        requires_grad: bool = False,
        device: Any = None,
        dtype: Any = None,
        persistent: bool = True,
    ) -> None:
        self._held = empty(0, device=device, dtype=dtype)._array
        self.requires_grad = requires_grad
        self.__dict__.update(persistent=persistent, _is_buffer=True)


def is_lazy(param: Any) -> bool:
    """Whether it is a parameter or buffer without a shape yet."""
    return isinstance(param, UninitializedTensorMixin)
