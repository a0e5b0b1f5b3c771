"""How the CUDA kernels are compiled and started: element types, arguments, grids.

Owns: `Family` (one CUDA C source, compiled for each element type), the common beginning of all sources,
and the arithmetic of grids and blocks. Must not know: any particular kernel.

A source is written over the types `T` (elements), `A` (what is computed in: float for the 16-bit
types) and `I` (indices, 64 bits wide only where an array needs it). Compiled without fused
multiply-add, so that an update rounds as the NumPy twin rounds. NVRTC gets no header from outside;
the 16-bit types are defined here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.arrays import is_array

#: Threads of a block where a kernel does not say otherwise.
BLOCK = 256
#: Largest number of blocks; kernels step over the whole grid until all elements are done.
_MOST_BLOCKS = 65535
#: From so many elements on, indices need 64 bits.
_WIDE = 2**31 - 1

OPTIONS = ("-std=c++17", "--fmad=false")

#: NumPy's name of an element type -> T and A.
ELEMENTS = {
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "float16": ("half16", "float"),
    "bfloat16": ("brain16", "float"),
}

_BEGINNING = r"""
__device__ inline float lowest() {  // -inf: NVRTC brings no header that names it
    union { float f; unsigned int u; } word;
    word.u = 0xff800000u;
    return word.f;
}
struct brain16 {
    unsigned short bits;
    __device__ brain16() {}
    __device__ brain16(float value) {
        union { float f; unsigned int u; } word;
        word.f = value;
        // To nearest, ties to even; a NaN stays one.
        bits = value != value ? 0x7fc0 : (word.u + 0x7fff + ((word.u >> 16) & 1)) >> 16;
    }
    __device__ operator float() const {
        union { float f; unsigned int u; } word;
        word.u = (unsigned int)bits << 16;
        return word.f;
    }
};
#ifdef __CUDACC_RTC__
struct half16 {
    unsigned short bits;
    __device__ half16() {}
    __device__ half16(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
    __device__ operator float() const {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
};
#endif
#define EACH(i, count)                                                                     \
    for (long long i##_ = (long long)blockIdx.x * blockDim.x + threadIdx.x; i##_ < (count); \
         i##_ += (long long)gridDim.x * blockDim.x)                                        \
        if (I i = (I)i##_; true)
"""


#: For sources whose blocks share a row: what all threads of a block have, combined, for each of them.
REDUCTION = r"""
// NaN counts as larger than everything.
__device__ A larger(A a, A b) { return b > a || b != b ? b : a; }
__device__ A plus(A a, A b) { return a + b; }
#define REDUCE(value, combine)                                          \
    cache[threadIdx.x] = value;                                         \
    __syncthreads();                                                    \
    for (int half = blockDim.x / 2; half > 0; half /= 2) {              \
        if (threadIdx.x < half)                                         \
            cache[threadIdx.x] = combine(cache[threadIdx.x], cache[threadIdx.x + half]); \
        __syncthreads();                                                \
    }                                                                   \
    value = cache[0];                                                   \
    __syncthreads();
"""


class Parameter(NamedTuple):
    """One parameter of a kernel: its C type ("T*", "int", ...) and name."""

    kind: str
    name: str


_KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')


def parameters(source: str) -> dict[str, tuple[Parameter, ...]]:
    """The kernels of a source and their parameters."""
    found = {}
    for name, text in _KERNEL.findall(source):
        declared = (" ".join(part.split()).removeprefix("const ") for part in text.split(","))
        found[name] = tuple(Parameter(*d.rsplit(" ", 1)) for d in declared)
    return found


def grid_of(threads: int, block: int = BLOCK) -> int:
    """Blocks for so many threads, at least one."""
    return max(1, min(-(-threads // block), _MOST_BLOCKS))


def row_block(columns: int) -> int:
    """Threads that share a row: a power of two, as the reduction halves it."""
    return min(BLOCK, max(32, 1 << max(0, columns - 1).bit_length()))


class Program(NamedTuple):
    """A source for one element type, and what tells it from the others."""

    family: str
    kind: str
    wide: bool
    text: str


class Family:
    """The kernels of one CUDA C source.

    Args:
        name: for messages and caches.
        source: `extern "C" __global__` kernels over T, A and I.
        kinds: NumPy's names of the element types it is compiled for.
    """

    def __init__(self, name: str, source: str, kinds: tuple[str, ...] = tuple(ELEMENTS)) -> None:
        self.name = name
        self.source = source
        self.kinds = kinds
        self.kernels = parameters(source)
        self._programs: dict[tuple[str, bool], Program] = {}

    def program(self, kind: str, wide: bool = False) -> Program:
        """The source for an element type.

        Raises:
            TypeError: it is not made for that type.
        """
        found = self._programs.get((kind, wide))
        if found is None:
            if kind not in self.kinds:
                raise TypeError(
                    f"the CUDA kernels of '{self.name}' are not made for {kind}; expected one of {', '.join(self.kinds)}"
                )
            element, computed = ELEMENTS[kind]
            types = f"typedef {element} T;\ntypedef {computed} A;\n"
            index = f"typedef {'long long' if wide else 'int'} I;\n"
            found = Program(self.name, kind, wide, _BEGINNING + types + index + self.source)
            self._programs[kind, wide] = found
        return found

    def launch(
        self,
        kernel: str,
        kind: np.dtype[Any],
        threads: int,
        *args: Any,
        block: int = BLOCK,
        blocks: int | None = None,
    ) -> None:
        """Start a kernel; nothing is started for no thread.

        Args:
            kernel: its name.
            kind: the element type.
            threads: how many elements (or rows of a block each) there are to do.
            args: one for each parameter; `None` for an absent array. Numbers take the declared type.
            block: threads of a block.
            blocks: how many, where it is not one thread for each element.
        """
        if threads == 0:
            return
        declared = self.kernels[kernel]
        wide = any(is_array(a) and a.size > _WIDE for a in args)
        program = self.program(kind.name, wide)
        computed = np.float64 if kind == np.float64 else np.float32
        values = [_argument(p, a, computed) for p, a in zip(declared, args, strict=True)]
        grid = grid_of(threads, block) if blocks is None else min(blocks, _MOST_BLOCKS)
        driver(program, kernel, declared, grid, block, values)


def _argument(parameter: Parameter, value: Any, computed: type) -> Any:
    """A launch argument of the declared type."""
    if parameter.kind.endswith("*"):
        return np.uint64(0) if value is None else value
    if parameter.kind == "A":
        return computed(value)
    return np.int64(value) if parameter.kind == "long long" else np.int32(value)


class _CupyDriver:
    """Compiles with NVRTC on first use (CuPy keeps the result on disk) and starts on the current stream."""

    def __init__(self) -> None:
        self._functions: dict[tuple[Any, ...], Callable[..., None]] = {}

    def __call__(
        self,
        program: Program,
        kernel: str,
        declared: tuple[Parameter, ...],
        grid: int,
        block: int,
        values: list[Any],
    ) -> None:
        import cupy

        # A loaded module belongs to one GPU.
        key = program[:3], kernel, cupy.cuda.runtime.getDevice()
        function = self._functions.get(key)
        if function is None:
            module = cupy.RawModule(code=program.text, options=OPTIONS)
            function = self._functions[key] = module.get_function(kernel)
        function((grid,), (block,), tuple(values))


#: What compiles and starts; tests put a C++ compiler in its place.
driver: Callable[..., None] = _CupyDriver()
