"""Copies in a memory format, and the same memory read as another element type."""

from __future__ import annotations

from typing import Any

from dptrain.core.export import export
from dptrain.core.layout import contiguous_format, copy_in, preserve_format
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor


def _clone(input: Any, *, memory_format: Any = preserve_format) -> Any:
    """A copy that passes gradients, with the strides of `input` unless another format is given."""
    return Clone.apply(input, memory_format)


@export("clone", methods=("clone",), function=_clone)
class Clone(Op):
    """A copy that passes gradients."""

    def forward(self, input: Any, memory_format: Any = preserve_format) -> Any:
        self.order_asked = memory_format is not preserve_format
        if memory_format is preserve_format and input.flags.c_contiguous:
            return input.copy()
        return copy_in(input, memory_format)

    def backward(self, grad: Any) -> Any:
        return grad


def _contiguous(self: Tensor, memory_format: Any = contiguous_format) -> Tensor:
    """The tensor itself if its elements lie in that order without gaps, else a copy that does."""
    if self.is_contiguous(contiguous_format if memory_format is preserve_format else memory_format):
        return self
    if memory_format is preserve_format:
        raise RuntimeError("contiguous: preserve_format asks for no order")
    return Clone.apply(self, memory_format)


export(methods=("contiguous",), function=_contiguous)(Clone)
