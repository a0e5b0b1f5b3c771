"""Products with a bias in one kernel, by cuBLASLt.

CuPy has no binding of it, but its cuBLAS has loaded it: it is called through ctypes. What it is told of a product
(descriptors, the algorithm that its heuristics choose) is kept for each kind of request; only addresses change.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

# cublasLt.h: attributes of a product, of a preference; epilogues; cudaDataType.
_TRANSPOSED_A, _TRANSPOSED_B, _EPILOGUE, _BIAS_POINTER = 3, 4, 7, 8
_MOST_WORKSPACE, _REDUCTIONS, _ALIGNMENT_A = 1, 3, 5
_WITH_BIAS, _SINGLE = 4, 0
#: Parts of a split product may be added up in place or in the computed type, not in the result's.
_FULL_REDUCTIONS = 3
#: Bytes; as much as cuBLAS takes by itself on Hopper.
_WORKSPACE = 32 << 20
#: What is kept; more kinds of requests than a program with fixed sizes has.
_MOST_KEPT = 2048
_MOST_ALIGNED = 256


class Request(NamedTuple):
    """A product D = op(A) op(B) + bias of matrices by columns; the bias has an element for each row.

    Attributes:
        kind: number of the element type.
        computed: number of the type of the sums.
        in_full: partial sums are not rounded to the element type.
        sizes: rows and columns of D, terms.
        transposed: op of A and of B.
        leads: elements between columns of A and of B; those of D lie close.
    """

    kind: int
    computed: int
    in_full: bool
    sizes: tuple[int, int, int]
    transposed: tuple[bool, bool]
    leads: tuple[int, int]


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; the algorithm comes first."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class _Call(NamedTuple):
    """A request as cuBLASLt knows it."""

    product: ctypes.c_void_p
    layouts: tuple[ctypes.c_void_p, ...]
    found: _Heuristic


_P, _I, _N = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtMatmulDescCreate": (_P, _I, _I),
    "cublasLtMatmulDescSetAttribute": (_P, _I, _P, _N),
    "cublasLtMatmulDescDestroy": (_P,),
    "cublasLtMatrixLayoutCreate": (_P, _I, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (_P,),
    "cublasLtMatmulPreferenceCreate": (_P,),
    "cublasLtMatmulPreferenceSetAttribute": (_P, _I, _P, _N),
    "cublasLtMatmulPreferenceDestroy": (_P,),
    "cublasLtMatmulAlgoGetHeuristic": (_P, _P, _P, _P, _P, _P, _P, _I, _P, _P),
    "cublasLtMatmul": (_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _N, _P),
}


class _RefusedError(Exception):
    """A call did not return 0."""


class CublasLt:
    """cuBLASLt on this process's GPUs; one thread at a time.

    Args:
        library: the shared library.
        memory: returns something that holds so many bytes of the current GPU until it is dropped, and their address.
        place: returns index and stream of the current GPU.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        memory: Callable[[int], tuple[Any, int]],
        place: Callable[[], tuple[int, int]],
    ) -> None:
        self._memory, self._place = memory, place
        self._functions: dict[str, Any] = {}
        for name, kinds in _SIGNATURES.items():
            function = library[name]
            function.argtypes, function.restype = kinds, ctypes.c_int
            self._functions[name] = function
        self._calls: dict[tuple[Any, ...], _Call | None] = {}

    def run(
        self,
        handle: int,
        request: Request,
        places: tuple[int, int, int, int],
        scales: tuple[int, int],
    ) -> bool:
        """Compute a request.

        Args:
            handle: cuBLAS's of the current GPU, which is one of cuBLASLt too.
            request: what.
            places: addresses of A, B, bias and D.
            scales: addresses of a one and a zero of the computed type.

        Returns:
            False if there is no algorithm for it.
        """
        index, stream = self._place()
        key = index, request, tuple(min(p & -p, _MOST_ALIGNED) for p in places)
        try:
            if key not in self._calls:
                if len(self._calls) >= _MOST_KEPT:
                    self._forget()
                self._calls[key] = self._prepare(handle, request, places)
            call = self._calls[key]
            if call is None:
                return False
            self._start(handle, call, places, scales, stream)
        except _RefusedError as error:
            warnings.warn(f"products with a bias run as two kernels: {error}", stacklevel=2)
            self._calls[key] = None
            return False
        return True

    def _start(
        self,
        handle: int,
        call: _Call,
        places: tuple[int, int, int, int],
        scales: tuple[int, int],
        stream: int,
    ) -> None:
        (a, b, bias, d), (left, right, result) = places, call.layouts
        size = call.found.workspace
        held, at = self._memory(size) if size else (None, 0)
        self._set(call.product, _BIAS_POINTER, ctypes.c_void_p(bias))
        self._ask(
            "cublasLtMatmul", handle, call.product, scales[0], a, left, b, right, scales[1], d, result, d, result,
            ctypes.addressof(call.found), at, size, stream,
        )  # fmt: skip
        del held  # for what comes later in this stream

    def _prepare(
        self, handle: int, request: Request, places: tuple[int, int, int, int]
    ) -> _Call | None:
        """Descriptors and the algorithm; None if there is none."""
        rows, columns, terms = request.sizes
        product = self._made("cublasLtMatmulDescCreate", request.computed, _SINGLE)
        self._set(product, _TRANSPOSED_A, ctypes.c_int(request.transposed[0]))
        self._set(product, _TRANSPOSED_B, ctypes.c_int(request.transposed[1]))
        self._set(product, _EPILOGUE, ctypes.c_int(_WITH_BIAS))
        self._set(product, _BIAS_POINTER, ctypes.c_void_p(places[2]))
        shapes = (
            (terms, rows) if request.transposed[0] else (rows, terms),
            (columns, terms) if request.transposed[1] else (terms, columns),
            (rows, columns),
        )
        layouts = tuple(
            self._made("cublasLtMatrixLayoutCreate", request.kind, *shape, lead)
            for shape, lead in zip(shapes, (*request.leads, rows), strict=True)
        )
        preference = self._made("cublasLtMatmulPreferenceCreate")
        self._prefer(preference, _MOST_WORKSPACE, ctypes.c_uint64(_WORKSPACE))
        if request.in_full:
            self._prefer(preference, _REDUCTIONS, ctypes.c_uint32(_FULL_REDUCTIONS))
        a, b, _, d = places
        for n, place in enumerate((a, b, d, d)):
            aligned = ctypes.c_uint32(min(place & -place, _MOST_ALIGNED))
            self._prefer(preference, _ALIGNMENT_A + n, aligned)
        found, count = _Heuristic(), ctypes.c_int()
        left, right, result = layouts
        call = _Call(product, layouts, found)
        try:
            self._ask(
                "cublasLtMatmulAlgoGetHeuristic", handle, product, left, right, result, result, preference, 1,
                ctypes.byref(found), ctypes.byref(count),
            )  # fmt: skip
        except _RefusedError:
            count.value = 0
        self._ask("cublasLtMatmulPreferenceDestroy", preference)
        if count.value and found.status == 0:
            return call
        self._destroy(call)
        return None

    def _destroy(self, call: _Call) -> None:
        self._ask("cublasLtMatmulDescDestroy", call.product)
        for layout in call.layouts:
            self._ask("cublasLtMatrixLayoutDestroy", layout)

    def _forget(self) -> None:
        for call in self._calls.values():
            if call is not None:
                self._destroy(call)
        self._calls.clear()

    def _made(self, name: str, *args: Any) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._ask(name, ctypes.byref(made), *args)
        return made

    def _set(self, product: ctypes.c_void_p, attribute: int, value: Any) -> None:
        size = ctypes.sizeof(value)
        self._ask("cublasLtMatmulDescSetAttribute", product, attribute, ctypes.byref(value), size)

    def _prefer(self, preference: ctypes.c_void_p, attribute: int, value: Any) -> None:
        size = ctypes.sizeof(value)
        self._ask(
            "cublasLtMatmulPreferenceSetAttribute", preference, attribute, ctypes.byref(value), size
        )

    def _ask(self, name: str, *args: Any) -> None:
        status = self._functions[name](*args)
        if status:
            raise _RefusedError(f"{name}: cuBLAS status {status}")


def load(cupy: Any) -> CublasLt | None:
    """The cuBLASLt that cuBLAS has loaded; None if there is none."""
    release = cupy.cuda.runtime.runtimeGetVersion() // 1000
    try:
        library = ctypes.CDLL(f"libcublasLt.so.{release}", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return None

    def memory(size: int) -> tuple[Any, int]:
        held = cupy.cuda.alloc(size)
        return held, held.ptr

    def place() -> tuple[int, int]:
        return cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr

    return CublasLt(library, memory, place)
