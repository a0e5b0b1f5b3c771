"""Limiting values to bounds that are numbers or tensors."""

from __future__ import annotations

from typing import Any

from dptrain.core.arrays import as_array
from dptrain.core.dtypes import result_dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.compare import Where
from dptrain.core.ops.elementwise import Clamp
from dptrain.core.tensor import Tensor


def _clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    """Limit to [min, max]: numbers or tensors that broadcast; either may be None."""
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        numbers = [b for b in (min, max) if b is not None and not isinstance(b, Tensor)]
        if numbers and any(isinstance(b, Tensor) and b.ndim for b in (min, max)):
            raise TypeError(
                f"clamp(): 'min' and 'max' must be two numbers or two Tensors, not {type(min).__name__} and "
                f"{type(max).__name__}"
            )
        return ClampTensor.apply(input, min, max)
    return Clamp.apply(input, min, max)


export("clamp", "clip", methods=("clamp", "clip"), inplace=("clamp_", "clip_"), function=_clamp)(
    Clamp
)


class ClampTensor(Op):
    """Limit to tensors of bounds; the gradient goes to the bound where it cut."""

    name = "clamp"
    backward_name = "ClampBackward0"

    def forward(self, input: Any, min: Any, max: Any) -> Any:
        given = [v for v in (input, min, max) if v is not None]
        kind = result_dtype(given).numpy
        input = input.astype(kind, copy=False)
        low, high = (None if v is None else self.xp.asarray(v, dtype=kind) for v in (min, max))
        out = input
        self.below = self.above = self.xp.asarray(False)
        if low is not None:
            out, self.below = self.xp.maximum(out, low), self.xp.asarray(input < low)
        if high is not None:
            out, self.above = self.xp.minimum(out, high), self.xp.asarray(input > high)
            if low is not None:  # where the bounds cross, the upper one decides
                self.above = self.above | (low > high)
                self.below = self.below & ~self.above
        return out

    def backward(self, grad: Any) -> Any:
        inside = Where.call(as_array(self.above | self.below), 0, grad)
        low, high = (Where.call(as_array(m), grad, 0) for m in (self.below, self.above))
        return inside, low, high


def _clamp_max(input: Any, max: Any) -> Any:
    """Limit to at most `max`, a number or a tensor."""
    return _clamp(input, None, max)


def _clamp_min(input: Any, min: Any) -> Any:
    """Limit to at least `min`, a number or a tensor."""
    return _clamp(input, min, None)


export("clamp_max", methods=("clamp_max",), inplace=("clamp_max_",), function=_clamp_max)(Clamp)
export("clamp_min", methods=("clamp_min",), inplace=("clamp_min_",), function=_clamp_min)(Clamp)
