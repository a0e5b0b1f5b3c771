"""A stand-in for CuPy's binding of cuBLAS over host memory: computes from the addresses that it is told.

It knows nothing of arrays: matrices by columns, leading dimensions, steps between matrices, as cuBLAS does, and
refuses what cuBLAS refuses.
"""

import ctypes
from contextlib import contextmanager
from types import SimpleNamespace

import ml_dtypes
import numpy as np

RUNTIME = SimpleNamespace(CUDA_R_32F=0, CUDA_R_64F=1, CUDA_R_16F=2, CUDA_R_16BF=14)
_TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 14: ml_dtypes.bfloat16}


def _matrices(address, code, rows, columns, lead, step, count):
    """(count, rows, columns) by columns at an address."""
    kind = np.dtype(_TYPES[code])
    assert lead >= max(rows, 1)
    assert address % kind.itemsize == 0
    length = step * (count - 1) + lead * (columns - 1) + rows
    memory = (ctypes.c_char * (length * kind.itemsize)).from_address(address)
    flat = np.frombuffer(memory, kind)
    return np.lib.stride_tricks.as_strided(
        flat, (count, rows, columns), [s * kind.itemsize for s in (step, 1, lead)]
    )


class Binding:
    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F = 68, 77, 70
    CUBLAS_GEMM_DEFAULT, CUBLAS_DEFAULT_MATH = -1, 0

    def __init__(self):
        self.calls, self.mode = [], 0

    def setMathMode(self, handle, mode):
        self.mode = mode

    def gemmEx(
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc,
        computeType, algo,
    ):  # fmt: skip
        self.gemmStridedBatchedEx(
            handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1,
            computeType, algo,
        )  # fmt: skip

    def gemmStridedBatchedEx(
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta,
        C, Ctype, ldc, strideC, batchCount, computeType, algo,
    ):  # fmt: skip
        for number in (
            transa,
            transb,
            m,
            n,
            k,
            alpha,
            A,
            lda,
            strideA,
            B,
            ldb,
            strideB,
            beta,
            C,
            ldc,
        ):
            assert type(number) is int
        assert min(m, n, k, batchCount) > 0
        assert min(strideA, strideB, strideC) >= 0
        assert batchCount <= 65535
        assert algo == self.CUBLAS_GEMM_DEFAULT
        self.calls.append(
            SimpleNamespace(A=A, B=B, C=C, count=batchCount, compute=computeType, mode=self.mode, sizes=(m, n, k))
        )  # fmt: skip
        wide = np.float64 if computeType == self.CUBLAS_COMPUTE_64F else np.float32
        number = ctypes.c_double if wide is np.float64 else ctypes.c_float
        alpha, beta = (number.from_address(at).value for at in (alpha, beta))
        shape_a, shape_b = (k, m) if transa else (m, k), (n, k) if transb else (k, n)
        a = _matrices(A, Atype, *shape_a, lda, strideA, batchCount).astype(wide)
        b = _matrices(B, Btype, *shape_b, ldb, strideB, batchCount).astype(wide)
        out = _matrices(C, Ctype, m, n, ldc, strideC, batchCount)
        a, b = a.swapaxes(1, 2) if transa else a, b.swapaxes(1, 2) if transb else b
        result = wide(alpha) * (a @ b)
        if beta:
            result += wide(beta) * out.astype(wide)
        out[...] = result.astype(out.dtype)


@contextmanager
def installed(monkeypatch):
    """The products of arrays on GPUs are asked of the stand-in."""
    from dptrain.core.kernels.cuda import gemm

    binding = Binding()
    monkeypatch.setattr(gemm, "_library", [gemm.Cublas(binding, RUNTIME, lambda: 7)])
    yield binding
