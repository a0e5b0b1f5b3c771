"""The backward formulas of activations, as operations of their own: one node and one kernel under `create_graph`.

Owns: `Slope`, `PassWhere`, `slanted`. Must not know: any particular activation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import on_gpu
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op


def wide(input: Any) -> Any:
    """16-bit types as float32: a chain of roundings would cost half of their digits."""
    return input.astype(np.float32) if input.dtype.itemsize == 2 else input


def ready(input: Any) -> Any:
    """What the kernels take: those of a GPU 16-bit types too."""
    return input if on_gpu(input) else wide(input)


def slanted(name: str, grad: Any, kept: Any, *parameters: float) -> Any:
    """The gradient of an activation's input, of raw arrays; `name` is its own among the kernels."""
    g, x = ready(grad), ready(kept)
    found = kernels_for(x).activation_grad(name, g, x, *parameters)
    return found if found.dtype == grad.dtype else found.astype(grad.dtype)


class Slope(Op):
    """grad * f'(kept), where `kept` is the input of f, or its result."""

    #: The name of f among the kernels.
    of: ClassVar[str]
    num_tensors = 2

    @property
    def grad_name(self) -> str:
        """As PyTorch names these nodes."""
        return f"{type(self).__name__.removesuffix('Grad')}BackwardBackward0"

    def forward(self, grad: Any, kept: Any, *parameters: float) -> Any:
        self.parameters = parameters
        return slanted(self.of, grad, kept, *parameters)

    def second(self, kept: Any) -> Any:
        """The derivative of f' by `kept`; None where it is zero everywhere."""
        return None

    def backward(self, twice: Any, grad: Any, kept: Any) -> Any:
        d_grad = type(self).call(twice, kept, *self.parameters) if self.needs[0] else None
        second = self.second(kept) if self.needs[1] else None
        return d_grad, None if second is None else twice * grad * second


class PassWhere(Op):
    """grad * factor where `passes`, else 0, whatever the gradient is there."""

    def forward(self, grad: Any, passes: Any, factor: float = 1) -> Any:
        self.passes, self.factor = passes, factor
        return kernels_for(grad).pass_where(grad, passes, factor)

    def backward(self, twice: Any) -> Any:
        return PassWhere.call(twice, self.passes, self.factor)
