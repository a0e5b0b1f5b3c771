"""beta * input + alpha * (a product of matrices or vectors), fused: one rounding in 16-bit types."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import on_gpu
from dptrain.core.export import export
from dptrain.core.half import times
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.matmul import Matmul, check_inner
from dptrain.core.ops.shape import Reshape, Transpose, Unsqueeze


def _factor(value: Any, kind: np.dtype[Any]) -> Any:
    """alpha or beta as PyTorch takes it: cut to an integer for integers, modulo the type's range."""
    if kind.kind not in "iu":
        return value
    return np.asarray(int(value)).astype(kind)[()]


class _AddProduct(Op):
    in_float32 = True
    num_tensors = 3
    #: Dimensions of both factors.
    dims: ClassVar[tuple[int, int]] = (2, 2)

    def _run(self, input: Any, first: Any, second: Any, beta: Any, alpha: Any) -> Any:
        for name, factor, ndim in zip(
            self._parameters[1:3], (first, second), self.dims, strict=True
        ):
            if factor.ndim != ndim:
                raise RuntimeError(
                    f"{self.name}: Expected {name} to be a {ndim}-D tensor, but got shape {list(factor.shape)}"
                )
        if not input.dtype == first.dtype == second.dtype:
            raise RuntimeError(
                f"{self.name}: self and both factors must have the same dtype, got {input.dtype}, {first.dtype} and "
                f"{second.dtype}"
            )
        self.shapes = first.shape, second.shape
        if first.ndim > 1:
            check_inner(type(self).name, first, second)
        self.beta, self.alpha = _factor(beta, input.dtype), _factor(alpha, input.dtype)
        if self.halves_on_gpu and on_gpu(first):
            from dptrain.core.kernels.cuda import gemm

            if first.dtype in gemm.KINDS:
                self._check_input(input, (*first.shape[:-1], second.shape[-1]))
                return gemm.add_product(input, first, second, self.beta, self.alpha)
        product = self._product(first, second)
        self._check_input(input, product.shape)
        if alpha != 1:
            product = product * self.alpha
        if beta == 0:  # then the input is not looked at, not even at its NaNs
            return product
        return (input if beta == 1 else input * self.beta) + product

    def _check_input(self, input: Any, shape: tuple[int, ...]) -> None:
        lead = len(shape) - input.ndim
        if lead < 0 or any(s not in (1, t) for s, t in zip(input.shape, shape[lead:], strict=True)):
            raise RuntimeError(
                f"{self.name}: The expanded size of the tensor {list(shape)} must match the existing size of "
                f"the input {list(input.shape)}"
            )

    def _product(self, first: Any, second: Any) -> Any:
        return kernels_for(first).matmul(*_as_matrices(first, second))

    def _gradients(self, grad: Any, first: Any, second: Any) -> Any:
        scaled = grad if self.alpha == 1 else times(grad, self.alpha)
        a, b = _as_matrices(first, second)
        matrix = Reshape.call(scaled, (a.shape[-2], b.shape[-1])) if scaled.ndim < 2 else scaled
        d_first = d_second = None
        if self.needs[1]:
            d_first = Reshape.call(Matmul.call(matrix, Transpose.call(b, -1, -2)), self.shapes[0])
        if self.needs[2]:
            d_second = Reshape.call(Matmul.call(Transpose.call(a, -1, -2), matrix), self.shapes[1])
        return grad if self.beta == 1 else times(grad, self.beta), d_first, d_second


def _as_matrices(first: Any, second: Any) -> tuple[Any, Any]:
    """A vector on the left of a vector is a column, on the right of anything a column or a row."""
    if first.ndim == 1:
        return Unsqueeze.call(first, 1), Unsqueeze.call(second, 0)
    return first, Unsqueeze.call(second, 1) if second.ndim == 1 else second


@export("addmm", methods=("addmm",), inplace=("addmm_",))
class Addmm(_AddProduct):
    """beta * input + alpha * (mat1 @ mat2): (n, m) @ (m, p), the input broadcasts to (n, p)."""

    halves_on_gpu = True

    def forward(self, input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        return self._run(input, mat1, mat2, beta, alpha)

    def backward(self, grad: Any, mat1: Any, mat2: Any) -> Any:
        return self._gradients(grad, mat1, mat2)


@export("addmv", methods=("addmv",), inplace=("addmv_",))
class Addmv(_AddProduct):
    """beta * input + alpha * (mat @ vec): (n, m) @ (m,), the input broadcasts to (n,)."""

    dims = (2, 1)

    def forward(self, input: Any, mat: Any, vec: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        return self._run(input, mat, vec, beta, alpha)

    def _product(self, first: Any, second: Any) -> Any:
        return kernels_for(first).matmul(first, second)

    def backward(self, grad: Any, mat: Any, vec: Any) -> Any:
        return self._gradients(grad, mat, vec)


@export("addr", methods=("addr",), inplace=("addr_",))
class Addr(_AddProduct):
    """beta * input + alpha * outer(vec1, vec2); the input broadcasts to (n, m)."""

    promotes = 3
    dims = (1, 1)

    def forward(self, input: Any, vec1: Any, vec2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        if input.dtype.kind in "biu" and (isinstance(beta, float) or isinstance(alpha, float)):
            raise RuntimeError(
                "addr: For integral input tensors, argument beta and alpha must not be floating point numbers."
            )
        if input.dtype == np.bool_:
            beta, alpha = bool(beta), bool(alpha)
        return self._run(input, vec1, vec2, beta, alpha)

    def backward(self, grad: Any, vec1: Any, vec2: Any) -> Any:
        return self._gradients(grad, vec1, vec2)


def _check_batches(op: str, batch1: Any, batch2: Any) -> None:
    if batch1.ndim == batch2.ndim == 3 and batch1.shape[0] != batch2.shape[0]:
        raise RuntimeError(
            f"{op}: batch1 and batch2 must have same number of batches, got {batch1.shape[0]} and {batch2.shape[0]}"
        )


@export("baddbmm", methods=("baddbmm",), inplace=("baddbmm_",))
class Baddbmm(_AddProduct):
    """beta * input + alpha * (batch1 @ batch2): (b, n, m) @ (b, m, p)."""

    halves_on_gpu = True
    dims = (3, 3)

    def forward(
        self, input: Any, batch1: Any, batch2: Any, *, beta: Any = 1, alpha: Any = 1
    ) -> Any:
        _check_batches(type(self).name, batch1, batch2)
        return self._run(input, batch1, batch2, beta, alpha)

    def backward(self, grad: Any, batch1: Any, batch2: Any) -> Any:
        return self._gradients(grad, batch1, batch2)


@export("addbmm", methods=("addbmm",), inplace=("addbmm_",))
class Addbmm(_AddProduct):
    """beta * input + alpha * (sum over the batch of batch1 @ batch2): (b, n, m) @ (b, m, p) -> (n, p)."""

    dims = (3, 3)

    def forward(
        self, input: Any, batch1: Any, batch2: Any, *, beta: Any = 1, alpha: Any = 1
    ) -> Any:
        _check_batches(type(self).name, batch1, batch2)
        return self._run(input, batch1, batch2, beta, alpha)

    def _product(self, first: Any, second: Any) -> Any:
        return kernels_for(first).matmul(first, second).sum(axis=0, dtype=first.dtype)

    def backward(self, grad: Any, batch1: Any, batch2: Any) -> Any:
        return self._gradients(grad, batch1, batch2)
