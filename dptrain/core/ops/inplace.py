"""In-place changes that are no operation's result: `zero_`, `fill_`, `copy_`, random fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import on_gpu, placed_beside
from dptrain.core.capturing import recorders
from dptrain.core.dtypes import held
from dptrain.core.export import export, public
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.history import Overwrite, check_writeable, overwrite_values, record_overwrite
from dptrain.core.host_array import DeviceMismatchError
from dptrain.core.op import Op
from dptrain.core.pinning import copy_without_waiting
from dptrain.core.random import Generator, default_generator
from dptrain.core.tensor import Tensor


class CopyInto(Op):
    """The second tensor broadcast to the first one's shape and type: what `copy_` leaves behind."""

    name = "copy_"
    backward_name = "CopyBackwards"
    num_tensors = 2

    def forward(self, input: Any, source: Any) -> Any:
        out = np.empty_like(input)
        out[...] = source
        return out

    def backward(self, grad: Any) -> Any:
        return Overwrite.call(grad), grad


@export(inplace=("fill_diagonal_",))
class FillDiagonal(Op):
    """The main diagonal (all indices equal) set to one value; with `wrap` again after each tall block."""

    name = "fill_diagonal_"
    backward_name = "FillDiagonalBackward0"

    def forward(self, input: Any, fill_value: Any, wrap: bool = False) -> Any:
        if input.ndim < 2:
            raise RuntimeError("fill_diagonal_: dimensions must larger than 1")
        if input.ndim > 2 and len(set(input.shape)) > 1:
            raise RuntimeError("fill_diagonal_: all dimensions of input must be of equal length")
        out = input.copy()
        if out.size:
            np.fill_diagonal(out, fill_value, wrap)
        self.wrap = wrap
        return out

    def backward(self, grad: Any) -> Any:
        return FillDiagonal.call(grad, 0, self.wrap)


def _fill(self: Tensor, value: Any) -> Tensor:
    """Set every element to `value`."""
    if isinstance(value, Tensor):
        if value.ndim:
            raise RuntimeError(
                f"fill_ only supports 0-dimension value tensor but got tensor with {value.ndim} dimensions"
            )
        return _copy(self, value)
    self._check_inplace("fill_")
    return _overwrite(self, "fill_", held("fill_", value, self._array.dtype))


def _zero(self: Tensor) -> Tensor:
    """Set every element to 0."""
    self._check_inplace("zero_")
    return _overwrite(self, "zero_", 0)


def _overwrite(self: Tensor, name: str, values: Any) -> Tensor:
    check_writeable(self, name)
    token = ignore_float_errors()
    try:
        overwrite_values(self, values)
    finally:
        restore_float_errors(token)
    self._bump_version()
    record_overwrite(self, name)
    return self


def _copy(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """Take over the values of `src`, broadcast and converted to this tensor's type.

    With `non_blocking` the host does not wait for a copy between page-locked memory and a GPU.
    """
    self._check_inplace("copy_")
    if _copied_at_once(self, src):
        return self
    if non_blocking and _copied_without_waiting(self, src):
        return self
    try:
        copied = CopyInto.apply(self, src)
    except DeviceMismatchError:  # a copy is a move as well
        unwaited = non_blocking and on_gpu(self._array)  # else the host reads it next
        copied = CopyInto.apply(self, src.to(self.device, non_blocking=unwaited))
    self._assign_result(copied.to(self._array.dtype), "copy_")
    return self


def _copied_at_once(self: Tensor, src: Tensor) -> bool:
    """The case of nearly every copy: one shape and type, no history, both here."""
    to, source = self._array, src._array
    if type(to) is not np.ndarray or type(source) is not np.ndarray or to.shape != source.shape:
        return False
    if to.dtype != source.dtype:
        return False
    if recorders or (is_grad_enabled() and (self.requires_grad or src.requires_grad)):
        return False
    check_writeable(self, "copy_")
    np.copyto(to, source, casting="unsafe")
    self._bump_version()
    return True


def _copied_without_waiting(self: Tensor, src: Tensor) -> bool:
    if is_grad_enabled() and (self.requires_grad or src.requires_grad):
        return False
    check_writeable(self, "copy_")
    copied = copy_without_waiting(self, src)
    if copied:
        self._bump_version()
    return copied


def _random(self: Tensor, name: str, values: Any) -> Tensor:
    self._check_inplace(name)
    return _overwrite(self, name, placed_beside(values, self._array))


def check_floating_fill(self: Tensor, name: str) -> None:
    """Refuse draws from a continuous distribution for integers.

    Raises:
        NotImplementedError: the tensor is not of floating point.
    """
    if not self.dtype.is_floating_point:
        raise NotImplementedError(
            f"{name}: not implemented for {self.dtype}; expected floating point"
        )


def _uniform(
    self: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill with draws from the uniform distribution over [a, b)."""
    check_floating_fill(self, "uniform_")
    if not a <= b:
        raise RuntimeError(
            f"uniform_ expects to return a [from, to) range, but found from={a} > to={b}"
        )
    stream = (generator or default_generator()).stream()
    return _random(self, "uniform_", stream.random(self._array.shape) * (b - a) + a)


def _normal(
    self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill with draws from the normal distribution."""
    check_floating_fill(self, "normal_")
    if not std >= 0:
        raise RuntimeError(f"normal_ expects std >= 0.0, but found std {std}")
    stream = (generator or default_generator()).stream()
    return _random(self, "normal_", stream.standard_normal(self._array.shape) * std + mean)


_METHODS: dict[str, Callable[..., Any]] = {
    "fill_": _fill,
    "zero_": _zero,
    "copy_": _copy,
    "uniform_": _uniform,
    "normal_": _normal,
}
for _name, _function in _METHODS.items():
    setattr(Tensor, _name, public(_function, name=_name))
