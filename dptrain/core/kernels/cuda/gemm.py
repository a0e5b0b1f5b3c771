"""Products of matrices on the GPU by cuBLAS, over arrays as they lie in memory.

Owns: the calls, PyTorch's flags of them; how strided arrays become matrices is in `matrices`. Floating point of
16 bits is multiplied in tensor cores, added up in float32 and rounded once. What else there is (integers,
complex numbers) is multiplied by CuPy.

A row-major array is a matrix by columns transposed, so that C = A B is asked for as C^T = B^T A^T.

The calls go by `cublas` (those with a bias by `cublaslt`), on CuPy's current stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dptrain.core.arrays import address, namespace_of
from dptrain.core.half import lift
from dptrain.core.kernels.cuda.cublas import Library
from dptrain.core.kernels.cuda.cublaslt import CublasLt, Request, load
from dptrain.core.kernels.cuda.matrices import Plan, Sizes, lead_of, plan
from dptrain.core.modes import get_float32_matmul_precision, set_float32_matmul_precision

#: cuBLAS counts in 32 bits; matrices of one call are a dimension of its grid.
_MOST, _MOST_MATRICES = 2**31 - 1, 65535


_HALF, _BRAIN = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
#: The types that cuBLAS multiplies here.
KINDS = frozenset([_HALF, _BRAIN, _SINGLE, _DOUBLE])


class MatmulFlags:
    """`dptrain.backends.cuda.matmul`, read at each product.

    Attributes:
        allow_fp16_reduced_precision_reduction: float16 products that are split may add up their parts in float16.
        allow_bf16_reduced_precision_reduction: likewise.
    """

    allow_fp16_reduced_precision_reduction = True
    allow_bf16_reduced_precision_reduction = True

    @property
    def allow_tf32(self) -> bool:
        """Whether float32 may be multiplied with 10 bits of mantissa; another name of the float32 precision."""
        return get_float32_matmul_precision() != "highest"

    @allow_tf32.setter
    def allow_tf32(self, allowed: bool) -> None:
        set_float32_matmul_precision("high" if allowed else "highest")

    def reduces_in_full(self, kind: np.dtype[Any]) -> bool:
        """Whether partial sums may not be rounded to this 16-bit type."""
        return (kind == _HALF and not self.allow_fp16_reduced_precision_reduction) or (
            kind == _BRAIN and not self.allow_bf16_reduced_precision_reduction
        )


flags = MatmulFlags()


class _Kind(NamedTuple):
    """What cuBLAS is told of an element type.

    Attributes:
        code: its number.
        computed: number of the type that products are added up in.
        fast: likewise where 10 bits of mantissa do for float32.
        scalar: type of the numbers that products are multiplied by.
    """

    code: int
    computed: int
    fast: int
    scalar: np.dtype[Any]


class Cublas:
    """Products by cuBLAS.

    Args:
        binding: a `cublas.Library`.
        runtime: `cupy.cuda.runtime`, which names the element types.
        handle: returns the handle of this thread's GPU.
        fused: cuBLASLt over these handles, if there is one.
    """

    def __init__(
        self, binding: Any, runtime: Any, handle: Callable[[], int], fused: CublasLt | None = None
    ) -> None:
        self._blas, self._handle, self._fused = binding, handle, fused
        self._lock = threading.Lock()  # threads may share a handle, whose stream each call sets
        full, fast = binding.CUBLAS_COMPUTE_32F, binding.CUBLAS_COMPUTE_32F_FAST_TF32
        wide = binding.CUBLAS_COMPUTE_64F
        self._kinds = {
            _HALF: _Kind(runtime.CUDA_R_16F, full, full, _SINGLE),
            _BRAIN: _Kind(runtime.CUDA_R_16BF, full, full, _SINGLE),
            _SINGLE: _Kind(runtime.CUDA_R_32F, full, fast, _SINGLE),
            _DOUBLE: _Kind(runtime.CUDA_R_64F, wide, wide, _DOUBLE),
        }
        # By value and type: a number in memory, and where it lies.
        self._scalars: dict[tuple[float, Any], tuple[np.ndarray, int]] = {}

    def _scalar(self, value: float, kind: np.dtype[Any]) -> int:
        """The address of a number that stays where it is."""
        held = self._scalars.get((value, kind))
        if held is None:
            if len(self._scalars) > 1000:
                self._scalars.clear()
            array = np.array(value, kind)
            held = self._scalars[value, kind] = array, int(array.ctypes.data)
        return held[1]

    def _computed(self, kind: np.dtype[Any]) -> int:
        held = self._kinds[kind]
        return held.fast if kind == _SINGLE and flags.allow_tf32 else held.computed

    def add_bias(self, p: Plan, a: Any, b: Any, bias: Any, out: Any) -> bool:
        """out = a b + bias, in one kernel.

        Args:
            p: the plan of `a` and `b`, which asks for no copies.
            a, b: arrays of one type, not float64.
            bias: contiguous, one element for each column of the result, of the same type.
            out: contiguous, likewise.

        Returns:
            False if there is no such kernel; nothing was computed then.
        """
        if self._fused is None or p.matrices > 1 or max(*p.sizes, *p.leads) > _MOST:
            return False
        (m, n, k), kind = p.sizes, self._kinds[a.dtype]
        # By columns: the second operand comes first.
        request = Request(
            kind.code,
            self._computed(a.dtype),
            flags.reduces_in_full(a.dtype),
            (n, m, k),
            p.transposed[::-1],
            p.leads[::-1],
        )
        places = address(b), address(a), address(bias), address(out)
        with self._lock:
            scales = self._scalar(1.0, kind.scalar), self._scalar(0.0, kind.scalar)
            return self._fused.run(self._handle(), request, places, scales)

    def multiply(
        self,
        p: Plan,
        a: Any,
        b: Any,
        out: Any,
        lead: int,
        step: int,
        alpha: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        """out = alpha * a b + beta * out.

        Args:
            p: the plan of `a` and `b`, which asks for no copies.
            a, b: arrays of one type.
            out: of that type, or float32 for 16-bit types.
            lead: elements from row to row of `out`.
            step: elements from matrix to matrix of `out`.
            alpha, beta: numbers; with a beta of 0 what stands in `out` is not read.

        Raises:
            RuntimeError: a dimension is too large for cuBLAS.
        """
        (m, n, k), kind = p.sizes, self._kinds[a.dtype]
        if max(m, n, k, lead, *p.leads) > _MOST:
            raise RuntimeError(
                f"matmul: cuBLAS multiplies matrices of up to {_MOST} rows, columns and elements between them, got "
                f"{m} x {k} and {k} x {n}"
            )
        computed, code, of_out = self._computed(a.dtype), kind.code, self._kinds[out.dtype].code
        blas, whole = self._blas, flags.reduces_in_full(a.dtype)
        ops = [blas.CUBLAS_OP_T if t else blas.CUBLAS_OP_N for t in p.transposed]
        size = a.dtype.itemsize
        with self._lock:
            handle = self._handle()
            scales = self._scalar(alpha, kind.scalar), self._scalar(beta, kind.scalar)
            # By columns: the second operand comes first.
            left, right, target = address(b), address(a), address(out)
            if whole:
                blas.setMathMode(handle, _WITHOUT_16_BIT_SUMS)
            try:
                if p.matrices == 1:
                    blas.gemmEx(
                        handle, ops[1], ops[0], n, m, k, scales[0], left, code, p.leads[1], right, code, p.leads[0],
                        scales[1], target, of_out, lead, computed, blas.CUBLAS_GEMM_DEFAULT,
                    )  # fmt: skip
                    return
                for first in range(0, p.matrices, _MOST_MATRICES):
                    blas.gemmStridedBatchedEx(
                        handle, ops[1], ops[0], n, m, k, scales[0],
                        left + first * p.steps[1] * size, code, p.leads[1], p.steps[1],
                        right + first * p.steps[0] * size, code, p.leads[0], p.steps[0],
                        scales[1], target + first * step * out.dtype.itemsize, of_out, lead, step,
                        min(p.matrices - first, _MOST_MATRICES), computed, blas.CUBLAS_GEMM_DEFAULT,
                    )  # fmt: skip
            finally:
                if whole:
                    blas.setMathMode(handle, blas.CUBLAS_DEFAULT_MATH)


#: CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, which the binding does not name.
_WITHOUT_16_BIT_SUMS = 16

_library: list[Cublas] = []


def cublas() -> Cublas:
    """cuBLAS, loaded on first use."""
    if not _library:
        cupy = import_module("cupy")
        library = Library(cupy)
        _library.append(Cublas(library, cupy.cuda.runtime, library.handle, load(cupy)))
    return _library[0]


def _product(a: Any, b: Any, out: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
    """alpha * a b + beta * out, in `out` if it is given; matrices or batches of them, of one type of `KINDS`."""
    xp = namespace_of(a)
    if not (a.size and b.size):
        if out is None:
            batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
            return xp.zeros((*batch, a.shape[-2], b.shape[-1]), a.dtype)
        if beta == 0:  # not even the NaNs that stand there count
            out.fill(0)
        elif beta != 1:
            out[...] = lift(out) * beta
        return out
    size = a.dtype.itemsize
    p = plan(a.shape, a.strides, b.shape, b.strides, size)
    while p.copies != (False, False):
        a, b = (
            _copied(xp, x, p.shape) if wanted else x
            for x, wanted in zip((a, b), p.copies, strict=True)
        )
        p = plan(a.shape, a.strides, b.shape, b.strides, size)
    target, lead = out, p.shape[-1]
    if out is None:
        target = xp.empty(p.shape, a.dtype)
    elif not out.flags.c_contiguous:
        steps = [t // out.dtype.itemsize for t in out.strides]
        found = lead_of(*p.shape, *steps) if out.ndim == 2 else None
        if found is None or found[1]:
            target = xp.ascontiguousarray(out)
        else:
            lead = found[0]
    cublas().multiply(p, a, b, target, lead, p.sizes[0] * lead, alpha, beta)
    if out is not None and target is not out:
        out[...] = target
        return out
    return target


def _copied(xp: Any, x: Any, shape: Sizes) -> Any:
    """An operand, contiguous; if it is that already, it has no common step because it is broadcast."""
    if x.flags.c_contiguous:
        x = xp.broadcast_to(x, (*shape[:-2], *x.shape[-2:]))
    return xp.ascontiguousarray(x)


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """See `reference.matmul`."""
    if a.dtype not in KINDS or a.dtype != b.dtype or (out is not None and out.dtype != a.dtype):
        return np.matmul(a, b) if out is None else np.matmul(a, b, out=out)
    if a.ndim > 1 and b.ndim > 1:
        return _product(a, b, out)
    # A vector is a row on the left and a column on the right, and the result lacks that dimension.
    found = _product(a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b, None)
    if b.ndim == 1:
        found = found[..., 0]
    if a.ndim == 1:
        found = found[0] if b.ndim == 1 else found[..., 0, :]
    if out is None:
        return found
    out[...] = found
    return out


def unrounded(a: Any, b: Any) -> Any:
    """The product of batches of matrices alike, of a type of `KINDS`, in the type that it is added up in."""
    kind = _DOUBLE if a.dtype == _DOUBLE else _SINGLE
    shape = (*a.shape[:-1], b.shape[-1])
    return _product(a, b, namespace_of(a).empty(shape, kind))


def linear(x: Any, weight: Any, bias: Any) -> Any:
    """See `reference.linear`; product and bias are rounded once, in one kernel where there is one."""
    if bias is None or x.dtype not in KINDS or not x.dtype == weight.dtype == bias.dtype:
        out = matmul(x, weight.T)
        return out if bias is None else out + bias
    out = namespace_of(x).empty((*x.shape[:-1], len(weight)), x.dtype)
    rows, matrix = x if x.ndim > 1 else x[None], weight.T
    if x.size and weight.size and x.dtype != _DOUBLE and bias.flags.c_contiguous:
        p = plan(rows.shape, rows.strides, matrix.shape, matrix.strides, x.dtype.itemsize)
        if p.copies == (False, False) and cublas().add_bias(p, rows, matrix, bias, out):
            return out
    out[...] = bias
    _product(rows, matrix, out if x.ndim > 1 else out[None], beta=1.0)
    return out


def add_product(input: Any, a: Any, b: Any, beta: float, alpha: float) -> Any:
    """beta * input + alpha * a b, rounded once.

    Args:
        input: broadcasts to the shape of the product.
        a: (..., n, m), of a type of `KINDS`.
        b: (..., m, p), of the same type.
        beta: with 0 the input is not looked at, not even at its NaNs.
        alpha: factor of the product.
    """
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = namespace_of(a).empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    if beta != 0:
        out[...] = input
    return _product(a, b, out, float(alpha), float(beta))
