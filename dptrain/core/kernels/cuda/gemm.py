"""Products of matrices on the GPU by cuBLAS, over arrays as they lie in memory.

Owns: how strided arrays become cuBLAS's matrices (`plan`), the calls, PyTorch's flags of them. Floating point
of 16 bits is multiplied in tensor cores, added up in float32 and rounded once. What else there is (integers,
complex numbers) is multiplied by CuPy.

cuBLAS knows matrices by columns: a row-major array is its matrix transposed, so that C = A B is asked for as
C^T = B^T A^T. A matrix needs unit stride along one of its dimensions and room for it along the other; a batch
needs one stride from matrix to matrix. Only operands that have neither are copied.

The calls go by `cublas`, on CuPy's current stream.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dptrain.core.arrays import address, namespace_of
from dptrain.core.half import lift
from dptrain.core.kernels.cuda.cublas import Library
from dptrain.core.modes import get_float32_matmul_precision, set_float32_matmul_precision

Sizes = tuple[int, ...]

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


class Plan(NamedTuple):
    """A product as cuBLAS is asked for it, first and second operand as in C = A B.

    Attributes:
        shape: of the result, without the dimensions that vectors lack.
        copies: which operands have to be contiguous first (the rest is of no meaning then).
        sizes: rows, columns and terms of one product.
        transposed: which operands lie by columns.
        leads: elements from row to row, or from column to column.
        steps: elements from matrix to matrix.
        matrices: how many products.
    """

    shape: Sizes
    copies: tuple[bool, bool] = (False, False)
    sizes: tuple[int, int, int] = (0, 0, 0)
    transposed: tuple[bool, bool] = (False, False)
    leads: tuple[int, int] = (1, 1)
    steps: tuple[int, int] = (0, 0)
    matrices: int = 1


def lead_of(rows: int, columns: int, down: int, right: int) -> tuple[int, bool] | None:
    """Of a matrix with these steps, in elements: the leading dimension, whether it lies by columns.

    None where cuBLAS cannot take it.
    """
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return max(down if rows > 1 else 1, columns, 1), False
    if (down == 1 or rows == 1) and (right >= rows or columns == 1):
        return max(right if columns > 1 else 1, rows, 1), True
    return None


def _one_step(sizes: Sizes, steps: Sizes) -> int | None:
    """The step of one dimension that stands for all of these; None if none can."""
    step = span = None
    for size, there in zip(reversed(sizes), reversed(steps), strict=True):
        if size == 1:
            continue
        if there < 0 or (step is not None and there != span):
            return None
        step, span = there if step is None else step, size * there
    return step or 0


@lru_cache(maxsize=8192)
def plan(a_shape: Sizes, a_strides: Sizes, b_shape: Sizes, b_strides: Sizes, itemsize: int) -> Plan:
    """How two arrays of these shapes and strides (in bytes), none of them empty, are multiplied.

    Raises:
        ValueError: batches that cannot be broadcast against each other.
    """
    (m, k), n = a_shape[-2:], b_shape[-1]
    batch = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    shape = (*batch, m, n)
    a_steps, b_steps = (
        _steps(batch, s, t, itemsize) for s, t in ((a_shape, a_strides), (b_shape, b_strides))
    )
    a_lead, b_lead = lead_of(m, k, *a_steps[-2:]), lead_of(k, n, *b_steps[-2:])
    if b_lead is not None and not any(b_steps[:-2]):
        # One matrix on the right: the batch is so many more rows of the left one.
        rows, row = math.prod(batch) * m, _one_step((*batch, m), a_steps[:-1])
        folded = None if row is None else lead_of(rows, k, row, a_steps[-1])
        if folded is not None:
            (la, ta), (lb, tb) = folded, b_lead
            return Plan(shape, sizes=(rows, n, k), transposed=(ta, tb), leads=(la, lb))
    a_step, b_step = _one_step(batch, a_steps[:-2]), _one_step(batch, b_steps[:-2])
    copies = (a_lead is None or a_step is None, b_lead is None or b_step is None)
    if a_lead is None or b_lead is None or a_step is None or b_step is None:
        return Plan(shape, copies)
    return Plan(
        shape,
        copies,
        (m, n, k),
        (a_lead[1], b_lead[1]),
        (a_lead[0], b_lead[0]),
        (a_step, b_step),
        math.prod(batch),
    )


def _steps(batch: Sizes, shape: Sizes, strides: Sizes, itemsize: int) -> Sizes:
    """Steps in elements over the whole batch; those that are no whole number of elements, as -1."""
    own = [t // itemsize if t % itemsize == 0 else -1 for t in strides]
    lead = [0 if size == 1 else t for size, t in zip(shape[:-2], own[:-2], strict=True)]
    return (0,) * (len(batch) - len(lead)) + (*lead, *own[-2:])


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
    """

    def __init__(self, binding: Any, runtime: Any, handle: Callable[[], int]) -> None:
        self._blas, self._handle = binding, handle
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
            a, b, out: arrays of one type.
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
        computed = kind.fast if a.dtype == _SINGLE and flags.allow_tf32 else kind.computed
        blas, code, whole = self._blas, kind.code, flags.reduces_in_full(a.dtype)
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
                        scales[1], target, code, lead, computed, blas.CUBLAS_GEMM_DEFAULT,
                    )  # fmt: skip
                    return
                for first in range(0, p.matrices, _MOST_MATRICES):
                    blas.gemmStridedBatchedEx(
                        handle, ops[1], ops[0], n, m, k, scales[0],
                        left + first * p.steps[1] * size, code, p.leads[1], p.steps[1],
                        right + first * p.steps[0] * size, code, p.leads[0], p.steps[0],
                        scales[1], target + first * step * size, code, lead, step,
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
        _library.append(Cublas(library, cupy.cuda.runtime, library.handle))
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
        steps = [t // size for t in out.strides]
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


def linear(x: Any, weight: Any, bias: Any) -> Any:
    """See `reference.linear`; the product is added to the bias before the one rounding."""
    if bias is None or x.dtype not in KINDS or not x.dtype == weight.dtype == bias.dtype:
        out = matmul(x, weight.T)
        return out if bias is None else out + bias
    out = namespace_of(x).empty((*x.shape[:-1], len(weight)), x.dtype)
    out[...] = bias
    if x.ndim > 1:
        return _product(x, weight.T, out, beta=1.0)
    _product(x[None], weight.T, out[None], beta=1.0)
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
