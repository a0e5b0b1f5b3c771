"""cuBLAS by its C interface: handles, workspaces, the calls that `gemm` makes.

Owns: one handle for each GPU, put on the current stream, and a workspace for each stream. Must not know: arrays.

CuPy's own binding refuses every call while a CUDA graph is captured. The library is the one that CuPy has loaded.
Functions and constants have cuBLAS's names.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_longlong, c_size_t, c_void_p
from typing import Any

#: Bytes that cuBLAS asks for, from compute capability 9 on and before.
_WORKSPACE, _WORKSPACE_BEFORE_HOPPER = 32 << 20, 8 << 20

#: Under NVIDIA's names, by which `refuse_exhaustion` tells a lack of memory from other errors.
_STATUS = {
    1: "CUBLAS_STATUS_NOT_INITIALIZED",
    3: "CUBLAS_STATUS_ALLOC_FAILED",
    7: "CUBLAS_STATUS_INVALID_VALUE",
    8: "CUBLAS_STATUS_ARCH_MISMATCH",
    11: "CUBLAS_STATUS_MAPPING_ERROR",
    13: "CUBLAS_STATUS_EXECUTION_FAILED",
    14: "CUBLAS_STATUS_INTERNAL_ERROR",
    15: "CUBLAS_STATUS_NOT_SUPPORTED",
}

#: handle, transa, transb, m, n, k, alpha
_BEGINNING = (c_void_p, c_int, c_int, c_int, c_int, c_int, c_void_p)
_GEMM = (
    *_BEGINNING,
    *(c_void_p, c_int, c_int),  # A, its type, its leading dimension
    *(c_void_p, c_int, c_int),
    c_void_p,  # beta
    *(c_void_p, c_int, c_int),
    *(c_int, c_int),  # type of the sums, algorithm
)
_BATCHED = (
    *_BEGINNING,
    *(c_void_p, c_int, c_int, c_longlong),  # and from matrix to matrix
    *(c_void_p, c_int, c_int, c_longlong),
    c_void_p,
    *(c_void_p, c_int, c_int, c_longlong),
    *(c_int, c_int, c_int),  # matrices, type of the sums, algorithm
)


class Library:
    """cuBLAS for the GPUs of this process.

    Args:
        cupy: the module.
        functions: the loaded library; by default that of CuPy's CUDA version.
    """

    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77
    CUBLAS_GEMM_DEFAULT, CUBLAS_DEFAULT_MATH = -1, 0

    def __init__(self, cupy: Any, functions: Any = None) -> None:
        self._cupy = cupy
        if functions is None:
            cupy.cuda.get_cublas_handle()  # CuPy knows where the library lies, and loads it
            major = cupy.cuda.runtime.runtimeGetVersion() // 1000
            functions = ctypes.CDLL(f"libcublas.so.{major}")
        self._functions = functions
        self._set_stream = self._declared("cublasSetStream_v2", c_void_p, c_void_p)
        self._set_workspace = self._declared("cublasSetWorkspace_v2", c_void_p, c_void_p, c_size_t)
        self._set_math_mode = self._declared("cublasSetMathMode", c_void_p, c_int)
        self._gemm = self._declared("cublasGemmEx", *_GEMM)
        self._gemm_batched = self._declared("cublasGemmStridedBatchedEx", *_BATCHED)
        #: GPU -> its handle, and the stream that the handle is on.
        self._handles: dict[int, int] = {}
        self._streams: dict[int, int] = {}
        #: (GPU, stream) -> memory that products on that stream may use.
        self._workspaces: dict[tuple[int, int], Any] = {}

    def _declared(self, name: str, *kinds: Any) -> Any:
        function = getattr(self._functions, name)
        function.argtypes, function.restype = kinds, c_int
        return function

    def handle(self) -> int:
        """The current GPU's handle, on the current stream; the caller lets nobody else use it meanwhile."""
        index = self._cupy.cuda.runtime.getDevice()
        handle = self._handles.get(index)
        if handle is None:
            made, create = c_void_p(), self._declared("cublasCreate_v2", c_void_p)
            self._check("cublasCreate", create(ctypes.byref(made)))
            assert made.value is not None
            handle = self._handles[index] = made.value
        stream = self._cupy.cuda.get_current_stream()
        if stream.is_capturing():
            # The graph's own memory: it may run beside whatever uses the workspace of a stream.
            self._put(handle, stream.ptr, self._workspace(index))
            self._streams.pop(index, None)
        elif self._streams.get(index) != stream.ptr:
            key = index, stream.ptr
            if key not in self._workspaces:
                self._workspaces[key] = self._workspace(index)
            self._put(handle, stream.ptr, self._workspaces[key])
            self._streams[index] = stream.ptr
        return handle

    def _workspace(self, index: int) -> Any:
        hopper = int(self._cupy.cuda.Device(index).compute_capability) >= 90
        return self._cupy.empty(_WORKSPACE if hopper else _WORKSPACE_BEFORE_HOPPER, "uint8")

    def _put(self, handle: int, stream: int, workspace: Any) -> None:
        self._check("cublasSetStream", self._set_stream(handle, stream))
        # After the stream, whose change takes the workspace away.
        where = self._set_workspace(handle, workspace.data.ptr, workspace.size)
        self._check("cublasSetWorkspace", where)

    def setMathMode(self, handle: int, mode: int) -> None:
        """Which roundings products may make."""
        self._check("cublasSetMathMode", self._set_math_mode(handle, mode))

    def gemmEx(self, *args: Any) -> None:
        """One product."""
        self._check("cublasGemmEx", self._gemm(*args))

    def gemmStridedBatchedEx(self, *args: Any) -> None:
        """Products of matrices that lie at equal distances."""
        self._check("cublasGemmStridedBatchedEx", self._gemm_batched(*args))

    @staticmethod
    def _check(name: str, status: int) -> None:
        if status:
            raise RuntimeError(
                f"{name} failed: status {status}, {_STATUS.get(status, 'which has no name here')}"
            )
