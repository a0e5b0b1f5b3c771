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
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  makes its types known to NumPy by name
import numpy as np

from dptrain.core import arrays

#: Threads of a block where a kernel does not say otherwise.
BLOCK = 256
#: Most threads that share a row.
_LARGEST_BLOCK = 512
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
    brain16() = default;
    __device__ brain16(float value) {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
        union { float f; unsigned int u; } word;
        word.f = value;
        // To nearest, ties to even; a NaN stays one.
        bits = value != value ? 0x7fc0 : (word.u + 0x7fff + ((word.u >> 16) & 1)) >> 16;
#endif
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
    half16() = default;
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


#: For sources that move 16 bytes at once, where the memory allows it.
PACKS = r"""
constexpr int PACK = 16 / sizeof(T);
struct alignas(16) Pack { T at[PACK]; };
struct alignas(16) Wide { A at[PACK]; };
__device__ inline bool even(const void* place) { return (unsigned long long)place % 16 == 0; }
// N values from one place: a pack, or one.
template <int N> __device__ inline void load(const T* from, A* values) {
    if constexpr (N == 1) values[0] = A(*from);
    else {
        const Pack pack = *(const Pack*)from;
        for (int j = 0; j < N; j++) values[j] = A(pack.at[j]);
    }
}
union Words { Pack pack; Wide wide; unsigned int word[sizeof(Wide) / 4]; };
// 16 bytes to an even place. Said outright: of a copy of a struct the compiler may make small stores.
__device__ inline void put(void* to, const unsigned int* words) {
#ifdef __CUDACC_RTC__
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" : : "l"(__cvta_generic_to_global(to)),
        "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]));
#else
    for (int j = 0; j < 4; j++) ((unsigned int*)to)[j] = words[j];
#endif
}
template <int N> __device__ inline void store(T* to, const A* values) {
    if constexpr (N == 1) *to = T(values[0]);
    else {
        Words all;
        for (int j = 0; j < N; j++) all.pack.at[j] = T(values[j]);
        put(to, all.word);
    }
}
// Likewise of what is computed in; the place of a vector that may be absent, where all values are `other`.
template <int N> __device__ inline void load_wide(const A* from, long long k, A other, A* values) {
    if (!from) for (int j = 0; j < N; j++) values[j] = other;
    else if constexpr (N == 1) values[0] = from[k];
    else {
        const Wide wide = *(const Wide*)(from + k);
        for (int j = 0; j < N; j++) values[j] = wide.at[j];
    }
}
"""

#: For sources whose blocks share a row: what all threads of a block have, combined, for each of them. Blocks are
#: warps, a power of two of them; all threads come here.
REDUCTION = r"""
// NaN counts as larger than everything.
__device__ inline A larger(A a, A b) { return b > a || b != b ? b : a; }
__device__ inline A plus(A a, A b) { return a + b; }
#define REDUCE(value, combine)                                                                 \
    for (int step_ = 16; step_ > 0; step_ /= 2)                                                \
        value = combine(value, __shfl_xor_sync(0xffffffffu, value, step_));                    \
    if (blockDim.x > 32) {                                                                     \
        __syncthreads();                                                                       \
        if (threadIdx.x % 32 == 0) cache[threadIdx.x / 32] = value;                            \
        __syncthreads();                                                                       \
        value = cache[threadIdx.x % (blockDim.x / 32)];                                        \
        for (int step_ = blockDim.x / 64; step_ > 0; step_ /= 2)                               \
            value = combine(value, __shfl_xor_sync(0xffffffffu, value, step_));                \
    }
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


def with_kept_numbers(source: str) -> str:
    """A source and, for each of its kernels, a twin `<name>_kept` that reads its numbers from memory.

    All but the arrays and `count` come from a table of doubles then, in the order of the parameters, so
    that a recorded launch computes with what the table holds when it runs. Numbers take the type that the
    kernel declares, rounded as the host rounds them.
    """
    twins = []
    for match in _KERNEL.finditer(source):
        declared = parameters(match[0])[match[1]]
        by_value = [p for p in declared if _is_number(p)]
        given = ", ".join(f"{p.kind} {p.name}" for p in declared if not _is_number(p))
        lines = [f"    {p.kind} {p.name} = ({p.kind})table[{i}];\n" for i, p in enumerate(by_value)]
        body = _body(source, match.end())
        twins.append(
            f'extern "C" __global__ void {match[1]}_kept({given}, const double* table) {{\n'
            f"{''.join(lines)}{body}\n"
        )
    return source + "".join(twins)


def _is_number(parameter: Parameter) -> bool:
    return not parameter.kind.endswith("*") and parameter.name != "count"


def _body(source: str, start: int) -> str:
    """What stands between the brace that opens after `start` and the one that closes it, that included."""
    first = source.index("{", start) + 1
    depth, place = 1, first
    while depth:
        depth += {"{": 1, "}": -1}.get(source[place], 0)
        place += 1
    return source[first:place]


def grid_of(threads: int, block: int = BLOCK) -> int:
    """Blocks for so many threads, at least one."""
    return max(1, min(-(-threads // block), _MOST_BLOCKS))


def empty_beside(array: Any, kind: np.dtype[Any] | None = None) -> Any:
    """Memory of the shape of an array, in which elements are to lie as its do."""
    if array.flags.c_contiguous:
        return arrays.namespace_of(array).empty(array.shape, array.dtype if kind is None else kind)
    return np.empty_like(array, dtype=kind)


def in_rows(array: Any) -> Any:
    """The array with its elements in row-major order without gaps: itself, or a copy; None stays None."""
    if array is None or array.flags.c_contiguous:
        return array
    return arrays.namespace_of(array).ascontiguousarray(array)


def pack_size(kind: np.dtype[Any]) -> int:
    """Elements in 16 bytes."""
    return 16 // kind.itemsize


def pack_threads(size: int, kind: np.dtype[Any]) -> int:
    """Threads for so many elements where each takes 16 bytes at once."""
    return -(-size // pack_size(kind))


#: Packs of a row that a thread takes, where it is long enough.
_PACKS_EACH = 4


def row_block(columns: int, kind: np.dtype[Any]) -> int:
    """Threads that share a row: warps, a power of two of them."""
    threads = pack_threads(columns, kind) // _PACKS_EACH
    return min(_LARGEST_BLOCK, max(32, 1 << max(0, threads - 1).bit_length()))


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
        self._made_for = frozenset(map(np.dtype, kinds))
        self.kernels = parameters(source)
        self._converters = {
            name: tuple(_CONVERTERS.get(p.kind) for p in declared)
            for name, declared in self.kernels.items()
        }
        self._programs: dict[tuple[str, bool], Program] = {}
        self._of_types: dict[tuple[np.dtype[Any], bool], Program] = {}  # names of types are slow

    def serves(self, kind: np.dtype[Any]) -> bool:
        """Whether it is made for elements of a type."""
        return (
            kind in self._made_for
        )  # asking for a type's name would take longer than starting a kernel

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
        wide = False
        values = []
        for convert, value in zip(self._converters[kernel], args, strict=True):
            if convert is None:  # an array
                if value is None:
                    value = _NULL
                elif value.size > _WIDE:
                    wide = True
                values.append(value)
            elif convert is np.float32 and kind == np.float64:
                values.append(np.float64(value))
            else:
                values.append(convert(value))
        grid = grid_of(threads, block) if blocks is None else min(blocks, _MOST_BLOCKS)
        program = self._of_types.get((kind, wide))
        if program is None:
            program = self._of_types[kind, wide] = self.program(kind.name, wide)
        driver(program, kernel, self.kernels[kernel], grid, block, values)


_NULL = np.uint64(0)
#: C type of a parameter -> what makes a number of it; "A" is float64's where elements are.
_CONVERTERS: dict[str, Any] = {"A": np.float32, "long long": np.int64, "int": np.int32}


@cache
def _cupy() -> Any:
    return import_module("cupy")


class _CupyDriver:
    """Compiles with NVRTC on first use (CuPy keeps the result on disk) and starts on the current stream."""

    def __init__(self) -> None:
        self._functions: dict[tuple[Any, ...], Callable[..., None]] = {}
        self._modules: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self,
        program: Program,
        kernel: str,
        declared: tuple[Parameter, ...],
        grid: int,
        block: int,
        values: list[Any],
    ) -> None:
        # A loaded module belongs to one GPU.
        place = _cupy().cuda.runtime.getDevice() if arrays.several_gpus else 0
        of = program.family, program.kind, program.wide, place
        function = self._functions.get((of, kernel))
        if function is None:
            module = self._modules.get(of)
            if module is None:
                module = _cupy().RawModule(code=program.text, options=OPTIONS)
                self._modules[of] = module
            function = self._functions[of, kernel] = module.get_function(kernel)
        function((grid,), (block,), tuple(values))


#: What compiles and starts; tests put a C++ compiler in its place.
driver: Callable[..., None] = _CupyDriver()
