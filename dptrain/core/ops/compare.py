"""Comparisons, logic and selection. One block per operation."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, namespace_of
from dptrain.core.dtypes import result_dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor, wrap


class _Comparison(Op):
    promotes = 2
    differentiable = False


@export("eq", methods=("eq", "__eq__"))
class Eq(_Comparison):
    """input == other."""

    def forward(self, input: Any, other: Any) -> Any:
        return input == other


@export("ne", "not_equal", methods=("ne", "not_equal", "__ne__"))
class Ne(_Comparison):
    """input != other."""

    def forward(self, input: Any, other: Any) -> Any:
        return input != other


@export("lt", "less", methods=("lt", "less", "__lt__"))
class Lt(_Comparison):
    """input < other."""

    def forward(self, input: Any, other: Any) -> Any:
        return input < other


@export("le", "less_equal", methods=("le", "less_equal", "__le__"))
class Le(_Comparison):
    """input <= other."""

    def forward(self, input: Any, other: Any) -> Any:
        return input <= other


@export("gt", "greater", methods=("gt", "greater", "__gt__"))
class Gt(_Comparison):
    """input > other."""

    def forward(self, input: Any, other: Any) -> Any:
        return input > other


@export("ge", "greater_equal", methods=("ge", "greater_equal", "__ge__"))
class Ge(_Comparison):
    """input >= other."""

    def forward(self, input: Any, other: Any) -> Any:
        return input >= other


class _Logic(_Comparison):
    """Bitwise on integers, logical on booleans; floating point is refused as in PyTorch."""

    num_tensors = 0
    run: Callable[[Any, Any], Any]

    def forward(self, input: Any, other: Any) -> Any:
        if input.dtype.kind not in "biu":
            raise RuntimeError(
                f"{self.name} is not implemented for floating point tensors ({input.dtype})"
            )
        return type(self).run(input, other)


@export(
    "bitwise_and",
    methods=("bitwise_and", "__and__", "__rand__"),
    inplace=("bitwise_and_", "__iand__"),
)
class BitwiseAnd(_Logic):
    """input & other."""

    run = staticmethod(operator.and_)


@export(
    "bitwise_or", methods=("bitwise_or", "__or__", "__ror__"), inplace=("bitwise_or_", "__ior__")
)
class BitwiseOr(_Logic):
    """input | other."""

    run = staticmethod(operator.or_)


@export(
    "bitwise_xor",
    methods=("bitwise_xor", "__xor__", "__rxor__"),
    inplace=("bitwise_xor_", "__ixor__"),
)
class BitwiseXor(_Logic):
    """input ^ other."""

    run = staticmethod(operator.xor)


@export("bitwise_not", methods=("bitwise_not", "__invert__"))
class BitwiseNot(Op):
    """~input."""

    differentiable = False

    def forward(self, input: Any) -> Any:
        if input.dtype.kind not in "biu":
            raise RuntimeError(
                f"bitwise_not is not implemented for floating point tensors ({input.dtype})"
            )
        return ~input


@export("logical_not", methods=("logical_not",))
class LogicalNot(Op):
    """True where the input is zero."""

    differentiable = False

    def forward(self, input: Any) -> Any:
        return self.xp.logical_not(input)


@export("logical_and", methods=("logical_and",))
class LogicalAnd(_Comparison):
    """True where both are non-zero."""

    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        return self.xp.logical_and(input, other)


@export("logical_or", methods=("logical_or",))
class LogicalOr(_Comparison):
    """True where either is non-zero."""

    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        return self.xp.logical_or(input, other)


@export("isnan", methods=("isnan",))
class IsNan(Op):
    """True where the value is not a number."""

    differentiable = False

    def forward(self, input: Any) -> Any:
        return self.xp.isnan(input)


@export("isinf", methods=("isinf",))
class IsInf(Op):
    """True where the value is plus or minus infinity."""

    differentiable = False

    def forward(self, input: Any) -> Any:
        return self.xp.isinf(input)


@export("isfinite", methods=("isfinite",))
class IsFinite(Op):
    """True where the value is neither infinite nor NaN."""

    differentiable = False

    def forward(self, input: Any) -> Any:
        return self.xp.isfinite(input)


def _where(condition: Any, input: Any = None, other: Any = None) -> Any:
    """`input` where the condition holds, else `other`; the three broadcast together.

    With the condition alone: the indices where it holds, one vector a dimension.
    """
    if input is None and other is None and isinstance(condition, Tensor):
        return tuple(wrap(places) for places in np.nonzero(np.atleast_1d(condition._array)))
    return Where.apply(condition, input, other)


@export(
    "where",
    function=_where,
    kinds={"input": "Tensor | Number!", "other": "Tensor | Number!"},
)
class Where(Op):
    """Select element by element."""

    takes_host_scalars = True

    def forward(self, condition: Any, input: Any, other: Any) -> Any:
        if condition.dtype == np.uint8:
            warnings.warn(
                "where received a uint8 condition tensor. This behavior is deprecated; use a boolean condition "
                "instead.",
                UserWarning,
                stacklevel=2,
            )
            condition = condition != 0
        if condition.dtype != np.bool_:
            raise RuntimeError(
                f"where expected condition to be a boolean tensor, but got a tensor with dtype {condition.dtype}"
            )
        target = result_dtype((input, other)).numpy
        self.condition, self.kind = condition, target
        return self.xp.where(
            condition, self.xp.asarray(input, target), self.xp.asarray(other, target)
        )

    def backward(self, grad: Any) -> Any:
        zero = self.xp.zeros(
            (), self.kind
        )  # not grad * 0, which is no zero where the gradient is not finite
        d_input = Where.call(self.condition, grad, zero) if self.needs[1] else None
        return None, d_input, Where.call(self.condition, zero, grad) if self.needs[2] else None


def zeros_for(grad: Any) -> Any:
    """Zeros in the shape and type of a gradient, an array or a Tensor.

    Not `grad * 0`, which is NaN where the gradient is not finite: behind a function that is flat there, or
    that did not take the value, PyTorch's gradient is 0.
    """
    if isinstance(grad, Tensor):  # kept in the graph, so that it can be derived once more
        return Where.apply(wrap(as_array(namespace_of(grad._array).ones((), bool))), 0, grad)
    return namespace_of(grad).zeros_like(grad)


def _method_where(self: Any, condition: Any, other: Any) -> Any:
    """The tensor's values where the condition holds, else `other`."""
    return Where.apply(condition, self, other)


export(methods=("where",), function=_method_where)(Where)


def _equal(input: Any, other: Any) -> bool:
    """Whether both tensors have the same shape and the same values."""
    return input._array.shape == other._array.shape and bool((input._array == other._array).all())


export("equal", methods=("equal",), function=_equal)(Eq)
