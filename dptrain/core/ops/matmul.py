"""Matrix products. One block per operation."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from dptrain.core.autocast_policy import casting
from dptrain.core.export import export
from dptrain.core.half import refuse_mixed
from dptrain.core.kernels import kernels_for, total
from dptrain.core.op import Op
from dptrain.core.ops.shape import Expand, Reshape, SumToSize, Unsqueeze
from dptrain.core.tensor import Tensor


def check_inner(op: str, a: Any, b: Any) -> None:
    """Refuse factors whose inner dimensions differ.

    Raises:
        RuntimeError: naming both shapes.
    """
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        raise RuntimeError(
            f"{op}: shapes cannot be multiplied ({_times(a)} and {_times(b)}): the last dimension of the "
            f"first ({a.shape[-1]}) must equal the {'second last' if b.ndim > 1 else 'only'} dimension of "
            f"the second ({inner})"
        )


#: By the dimensions of both operands; products of batches end in a view in PyTorch.
_NODE_NAMES = {
    (1, 1): "DotBackward0",
    (2, 1): "MvBackward0",
    (1, 2): "SqueezeBackward4",
    (2, 2): "MmBackward0",
}


@export("matmul", methods=("matmul", "__matmul__"), reflected=("__rmatmul__",))
class Matmul(Op):
    """Matrix product with NumPy's and PyTorch's rules for vectors and batches."""

    in_float32 = True
    halves_on_gpu = True
    drawn_as = "Matmul"
    alike = 2
    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        if input.dtype is not other.dtype:
            refuse_mixed("matmul", (input, other))
        if input.ndim == 0 or other.ndim == 0:
            raise RuntimeError(
                f"matmul: both arguments need to be at least 1D, but they are {input.ndim}D and {other.ndim}D"
            )
        check_inner("matmul", input, other)
        self.backward_name = _NODE_NAMES.get((input.ndim, other.ndim), "UnsafeViewBackward0")
        return kernels_for(input).matmul(input, other)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        # Vectors take part as one-row or one-column matrices.
        a = Unsqueeze.call(input, 0) if input.ndim == 1 else input
        b = Unsqueeze.call(other, 1) if other.ndim == 1 else other
        g = grad
        if other.ndim == 1:
            g = Unsqueeze.call(g, g.ndim)
        if input.ndim == 1:
            g = Unsqueeze.call(g, g.ndim - 1)
        d_input = Product.call(g, b, False, True) if self.needs[0] else None
        if d_input is not None and input.ndim == 1:
            d_input = Reshape.call(_sum_batch(d_input), tuple(input.shape))
        d_other = None
        if self.needs[1]:
            if b.ndim == 2 < a.ndim:  # one matrix on the right: the batch is so many more rows
                a, g = _matrix(a, a.shape[-1]), _matrix(g, g.shape[-1])
            d_other = Product.call(a, g, True, False)
            if other.ndim == 1:
                d_other = Reshape.call(_sum_batch(d_other), tuple(other.shape))
        return d_input, d_other


class Product(Op):
    """Product of two matrices, or of batches of them, each of which may be turned around first."""

    in_float32 = True
    halves_on_gpu = True
    alike = 2
    num_tensors = 2

    def forward(self, input: Any, other: Any, turn_input: bool, turn_other: bool) -> Any:
        self.turned = turn_input, turn_other
        a = input.swapaxes(-1, -2) if turn_input else input
        b = other.swapaxes(-1, -2) if turn_other else other
        self.backward_name = _NODE_NAMES.get((a.ndim, b.ndim), "UnsafeViewBackward0")
        return kernels_for(input).matmul(a, b)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        turn_input, turn_other = self.turned
        d_input = d_other = None
        if self.needs[0]:
            if turn_input:
                d_input = Product.call(other, grad, turn_other, True)
            else:
                d_input = Product.call(grad, other, False, not turn_other)
        if self.needs[1]:
            a = input
            if other.ndim == 2 < a.ndim and not turn_input:  # the batch is so many more rows
                a, grad = _matrix(a, a.shape[-1]), _matrix(grad, grad.shape[-1])
            if turn_other:
                d_other = Product.call(grad, a, True, turn_input)
            else:
                d_other = Product.call(a, grad, not turn_input, False)
        return d_input, d_other


def _sum_batch(value: Any) -> Any:
    """The sum of all matrices of a batch."""
    return SumToSize.call(value, tuple(value.shape[-2:])) if value.ndim > 2 else value


def _times(a: Any) -> str:
    return "x".join(str(s) for s in a.shape) or "scalar"


def _mm(input: Any, mat2: Any) -> Any:
    """Product of two matrices: (n, m) @ (m, p) -> (n, p)."""
    if input.ndim != 2 or mat2.ndim != 2:
        raise RuntimeError(
            f"mm: both arguments must be 2D, got shapes {list(input.shape)} and {list(mat2.shape)}"
        )
    return Matmul.apply(input, mat2)


def _bmm(input: Any, mat2: Any) -> Any:
    """Products of matrices in a batch: (b, n, m) @ (b, m, p) -> (b, n, p)."""
    if input.ndim != 3 or mat2.ndim != 3 or input.shape[0] != mat2.shape[0]:
        raise RuntimeError(
            f"bmm: batch1 and batch2 must be 3D with the same batch size, got {list(input.shape)} and {list(mat2.shape)}"
        )
    return Matmul.apply(input, mat2)


def _dot(input: Any, other: Any) -> Any:
    """Inner product of two vectors of one length."""
    if input.ndim != 1 or other.ndim != 1:
        raise RuntimeError(
            f"dot: 1D tensors expected, but got {input.ndim}D and {other.ndim}D tensors"
        )
    return Matmul.apply(input, other)


#: The product of which other public functions are made: cast by autocast, as in PyTorch.
matmul = casting("matmul", Matmul.apply)

export("mm", methods=("mm",), function=_mm)(Matmul)
export("bmm", methods=("bmm",), function=_bmm)(Matmul)
export("dot", "vdot", methods=("dot", "vdot"), function=_dot, tensors=2)(Matmul)


def _matrix(value: Any, columns: int) -> Any:
    """(..., columns) as the rows of one matrix."""
    if value.ndim == 2:
        return value
    shape = math.prod(value.shape[:-1]), columns
    return value.reshape(shape) if type(value) is np.ndarray else Reshape.call(value, shape)


class Linear(Op):
    """y = x W^T + b over the last dimension of x: (..., in) with (out, in) -> (..., out)."""

    in_float32 = True
    halves_on_gpu = True
    saved_for: ClassVar[dict[str, int]] = {"input": 1, "weight": 0}
    direct = 1
    name = "linear"
    drawn_as = "Linear"
    alike = 2
    num_tensors = 2

    def forward(self, input: Any, weight: Any, bias: Any = None) -> Any:
        kind = input.dtype
        if weight.dtype is not kind or (bias is not None and bias.dtype is not kind):
            refuse_mixed("linear", (input, weight) if bias is None else (input, weight, bias))
        if weight.ndim != 2:
            raise RuntimeError(
                f"linear: weight must be 2D (out_features, in_features), got {list(weight.shape)}"
            )
        if input.ndim == 0 or input.shape[-1] != weight.shape[1]:
            raise RuntimeError(
                f"linear: input of shape {list(input.shape)} and weight of shape {list(weight.shape)} cannot be "
                f"multiplied: the input's last dimension must be {weight.shape[1]} (in_features)"
            )
        if bias is not None and bias.shape != (weight.shape[0],):
            raise RuntimeError(
                f"linear: bias must have shape [{weight.shape[0]}], got {list(bias.shape)}"
            )
        self.features = weight.shape  # (out, in)
        if bias is None:
            self.backward_name = _NODE_NAMES.get((input.ndim, 2), "UnsafeViewBackward0")
        elif input.ndim == 2:
            self.backward_name = "AddmmBackward0"
        else:  # one addmm over the rows where that needs no copy
            self.backward_name = "ViewBackward0" if input.flags.c_contiguous else "AddBackward0"
        return kernels_for(input).linear(input, weight, bias)

    def backward(self, grad: Any, input: Any, weight: Any) -> Any:
        needs = tuple([need is not None for need in self.needs])
        if isinstance(grad, Tensor) or isinstance(input, Tensor) or isinstance(weight, Tensor):
            found = iter(LinearGrad.apply(grad, input, weight, needs))
            return tuple([next(found) if need else None for need in needs])
        return _linear_gradients(grad, input, weight, needs, self.target)


def _linear_gradients(
    grad: Any, input: Any, weight: Any, needs: tuple[bool, ...], target: Any = None
) -> tuple[Any, Any, Any]:
    """Those of the arguments of `Linear` that are needed, None for the others.

    Args:
        grad: (..., out), the gradient of the result.
        input: (..., in); None where `weight` needs no gradient.
        weight: (out, in); None where `input` needs none.
        needs: for input, weight and bias, if there is one.
        target: memory for the gradient of `weight`.
    """
    kernels = kernels_for(grad)
    d_input = kernels.matmul(grad, weight) if needs[0] else None
    d_weight = d_bias = None
    rows = _matrix(grad, grad.shape[-1])
    if needs[1]:
        columns = _matrix(input, input.shape[-1])
        if target is not None and rows.dtype == target.dtype:
            d_weight = kernels.matmul(rows.T, columns, out=target)
        else:
            d_weight = kernels.matmul(rows.T, columns)
    if len(needs) > 2 and needs[2]:
        d_bias = kernels.column_sums(rows)
    return d_input, d_weight, d_bias


class LinearGrad(Op):
    """The gradients of the arguments of `Linear`, as one operation."""

    in_float32 = True
    halves_on_gpu = True
    backward_name = "LinearBackwardBackward0"

    def forward(self, grad: Any, input: Any, weight: Any, needs: tuple[bool, ...]) -> Any:
        self.wanted = needs
        found = _linear_gradients(grad, input, weight, needs)
        return tuple([f for f in found if f is not None])

    def backward(self, twice: Any, grad: Any, input: Any, weight: Any) -> Any:
        # grad W, grad^T x and the sum of grad's rows are linear in each of their factors.
        given = iter(twice if isinstance(twice, list) else [twice])
        by_input, by_weight, by_bias = (
            next(given) if need else None for need in (*self.wanted, False)[:3]
        )
        needs, found = self.needs, [None] * len(self.edges)
        if needs[0]:
            if by_weight is not None:
                found[0] = Linear.call(input, by_weight, by_bias)
            elif by_input is None:
                found[0] = Expand.call(by_bias, tuple(grad.shape))
            if by_input is not None:
                product = Linear.call(by_input, weight, by_bias if by_weight is None else None)
                found[0] = product if by_weight is None else total(found[0], product)
        if needs[1] and by_weight is not None:
            found[1] = Product.call(grad, by_weight, False, False)
        if needs[2] and by_input is not None:
            rows = _matrix(grad, grad.shape[-1])
            found[2] = Product.call(rows, _matrix(by_input, by_input.shape[-1]), True, False)
        return tuple(found)
