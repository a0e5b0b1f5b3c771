"""Comparisons with tolerance, membership, in-place forms of comparisons, arithmetic of integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import common_namespace
from dptrain.core.dtypes import scalar_dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.compare import (
    BitwiseNot,
    Eq,
    Ge,
    Gt,
    Le,
    LogicalAnd,
    LogicalNot,
    LogicalOr,
    Lt,
    Ne,
    _Comparison,
    _Logic,
)
from dptrain.core.tensor import Tensor, wrap

for _cls, _names in {
    Eq: ("eq_",),
    Ne: ("ne_", "not_equal_"),
    Lt: ("lt_", "less_"),
    Le: ("le_", "less_equal_"),
    Gt: ("gt_", "greater_"),
    Ge: ("ge_", "greater_equal_"),
    LogicalAnd: ("logical_and_",),
    LogicalOr: ("logical_or_",),
    LogicalNot: ("logical_not_",),
    BitwiseNot: ("bitwise_not_",),
}.items():
    export(inplace=_names)(_cls)


@export("logical_xor", methods=("logical_xor",), inplace=("logical_xor_",))
class LogicalXor(_Comparison):
    """True where exactly one is non-zero."""

    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        return self.xp.logical_xor(input, other)


@export("isclose", methods=("isclose",))
class IsClose(Op):
    """True where |input - other| <= atol + rtol * |other|."""

    differentiable = False
    num_tensors = 2

    def forward(
        self,
        input: Any,
        other: Any,
        rtol: float = 1e-05,
        atol: float = 1e-08,
        equal_nan: bool = False,
    ) -> Any:
        if input.dtype != other.dtype:
            raise RuntimeError(
                f"isclose: expected both tensors to have one dtype, got {input.dtype} and {other.dtype}"
            )
        if not (rtol >= 0 and atol >= 0):
            raise RuntimeError(
                f"isclose: rtol and atol must be greater than or equal to zero, but got {rtol} and {atol}"
            )
        return self.xp.isclose(input, other, rtol=rtol, atol=atol, equal_nan=equal_nan)


def _allclose(
    input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Whether |input - other| <= atol + rtol * |other| everywhere."""
    return bool(IsClose.apply(input, other, rtol, atol, equal_nan)._array.all())


export("allclose", methods=("allclose",), function=_allclose)(IsClose)


@export("isposinf", methods=("isposinf",))
class IsPosInf(Op):
    """True where the value is plus infinity."""

    differentiable = False

    def forward(self, input: Any) -> Any:
        return (
            input == np.inf if input.dtype.kind not in "biu" else self.xp.zeros(input.shape, bool)
        )


@export("isneginf", methods=("isneginf",))
class IsNegInf(Op):
    """True where the value is minus infinity."""

    differentiable = False

    def forward(self, input: Any) -> Any:
        return (
            input == -np.inf if input.dtype.kind not in "biu" else self.xp.zeros(input.shape, bool)
        )


@export("isreal", methods=("isreal",))
class IsReal(Op):
    """True everywhere: no dtype here is complex."""

    differentiable = False

    def forward(self, input: Any) -> Any:
        return self.xp.ones(input.shape, bool)


def _isin(
    elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False
) -> Any:
    """Whether each of `elements` is one of `test_elements` (one of them may be a number)."""
    if not (isinstance(elements, Tensor) or isinstance(test_elements, Tensor)):
        raise TypeError(
            "isin(): expected a Tensor for elements or test_elements, got "
            f"{type(elements).__name__} and {type(test_elements).__name__}"
        )
    both = (elements, test_elements)
    xp = common_namespace(v._array for v in both if isinstance(v, Tensor))
    a, b = (
        v._array if isinstance(v, Tensor) else xp.asarray(v, scalar_dtype(v).numpy) for v in both
    )
    return wrap(xp.asarray(np.isin(a, b, assume_unique=assume_unique, invert=invert)))


export("isin", function=_isin)(Eq)


class _Integers(Op):
    promotes = 2
    num_tensors = 2
    differentiable = False

    def _check(self, input: Any) -> None:
        if input.dtype.kind not in "iu":
            raise RuntimeError(f"{self.name}: not implemented for {input.dtype}; expected integers")


@export("gcd", methods=("gcd",), inplace=("gcd_",))
class Gcd(_Integers):
    """The greatest common divisor."""

    def forward(self, input: Any, other: Any) -> Any:
        self._check(input)
        return self.xp.gcd(input, other)


@export("lcm", methods=("lcm",), inplace=("lcm_",))
class Lcm(_Integers):
    """The least common multiple."""

    def forward(self, input: Any, other: Any) -> Any:
        self._check(input)
        return self.xp.lcm(input, other)


class _Shift(_Logic):
    def forward(self, input: Any, other: Any) -> Any:
        if input.dtype.kind not in "iu":
            raise RuntimeError(f"{self.name}: not implemented for {input.dtype}; expected integers")
        return type(self).run(input, other)


@export(
    "bitwise_left_shift",
    methods=("bitwise_left_shift", "__lshift__"),
    inplace=("bitwise_left_shift_", "__ilshift__"),
    reflected=("__rlshift__",),
)
class BitwiseLeftShift(_Shift):
    """input << other."""

    run = staticmethod(np.left_shift)


@export(
    "bitwise_right_shift",
    methods=("bitwise_right_shift", "__rshift__"),
    inplace=("bitwise_right_shift_", "__irshift__"),
    reflected=("__rrshift__",),
)
class BitwiseRightShift(_Shift):
    """input >> other."""

    run = staticmethod(np.right_shift)
