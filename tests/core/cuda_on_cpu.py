"""Runs the CUDA kernels on the CPU: the same sources, compiled by g++ over a shim, the same launches.

Blocks run one after the other. The threads of a block run one after the other too, as coroutines, so
that `__syncthreads` can hand over to the next until all have arrived. This shows that indexing, launch
arithmetic, arguments and formulas are right; races, and what NVRTC makes of it, it cannot show.
"""

import ctypes
import hashlib
import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest

from dptrain.core.kernels.cuda import FAMILIES, launch
from dptrain.core.kernels.dense import dense

COMPILER = shutil.which("g++")
on_cpu = pytest.mark.skipif(COMPILER is None, reason="no g++ to run the CUDA kernels with")

_SHIM = r"""
#undef _FORTIFY_SOURCE  // which takes a jump to another stack for an error
#include <cmath>
#include <csetjmp>
#include <cstdlib>
#include <ucontext.h>
using std::sqrt; using std::exp; using std::log; using std::erf; using std::fabs; using std::cos; using std::sin;
using std::erfc; using std::tanh; using std::log1p; using std::expm1;
#define __global__
#define __device__
#define __shared__ static
struct Index { unsigned int x; };
static Index threadIdx, blockIdx, blockDim, gridDim;
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
static inline int __popc(unsigned int word) { return __builtin_popcount(word); }
static inline void atomicMax(int* place, int value) { if (value > *place) *place = value; }
static inline void atomicAdd(int* place, int value) { *place += value; }
struct half16 {
    _Float16 held;
    half16() = default;
    half16(float value) : held(value) {}
    operator float() const { return held; }
};
// A thread is made once and begins the next block where it ended the last. Handing over is by `_longjmp`:
// `swapcontext` asks the kernel for the signal mask every time.
static jmp_buf scheduler;
static struct Thread { ucontext_t start; jmp_buf place; bool made, finished; } threads[1024];
static void (*body)();
static __attribute__((noinline)) void __syncthreads() {
    if (!_setjmp(threads[threadIdx.x].place)) _longjmp(scheduler, 1);
}
static void live() {
    for (;;) { body(); threads[threadIdx.x].finished = true; __syncthreads(); }
}
static __attribute__((noinline)) void resume(Thread& thread) {
    if (_setjmp(scheduler)) return;
    if (thread.made) _longjmp(thread.place, 1);
    const size_t depth = 65536;
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = malloc(depth);
    thread.start.uc_stack.ss_size = depth;
    makecontext(&thread.start, live, 0);
    thread.made = true;
    setcontext(&thread.start);
}
// What the threads of a warp tell each other; all threads of the block come here.
static double told[1024];
template <class V> static V __shfl_xor_sync(unsigned int, V value, int mask) {
    told[threadIdx.x] = value;
    __syncthreads();
    V other = told[threadIdx.x ^ mask];
    __syncthreads();
    return other;
}
static unsigned int __ballot_sync(unsigned int, bool vote) {
    told[threadIdx.x] = vote;
    __syncthreads();
    unsigned int votes = 0;
    for (int lane = 0; lane < 32; lane++) votes |= (unsigned int)told[threadIdx.x / 32 * 32 + lane] << lane;
    __syncthreads();
    return votes;
}

static void run_blocks(long long grid, int block, bool meets) {
    gridDim.x = grid; blockDim.x = block;
    for (long long b = 0; b < grid; b++) {
        blockIdx.x = b;
        if (!meets) { for (threadIdx.x = 0; threadIdx.x < (unsigned)block; threadIdx.x++) body(); continue; }
        for (int t = 0; t < block; t++) threads[t].finished = false;
        for (bool more = true; more;) {
            more = false;
            for (int t = 0; t < block; t++) {
                if (threads[t].finished) continue;
                threadIdx.x = t;
                resume(threads[t]);
                more = more || !threads[t].finished;
            }
        }
    }
}
static void** given;
"""

#: What the other pointers point to.
_ARRAYS = {
    "int*": "int32",
    "long long*": "int64",
    "word*": "uint64",
    "double*": "float64",
    "float*": "float32",
    "unsigned char*": "uint8",
}
_TYPES = {"long long": ctypes.c_longlong, "int": ctypes.c_int}


def _entries(program, kernels):
    lines = []
    for name, declared in kernels.items():
        args = ", ".join(f"*({p.kind}*)given[{i}]" for i, p in enumerate(declared))
        lines.append(f"static void body_{name}() {{ {name}({args}); }}")
        lines.append(
            f'extern "C" void run_{name}(void** args, long long grid, int block, int meets) '
            f"{{ given = args; body = body_{name}; run_blocks(grid, block, meets); }}"
        )
    return "\n".join(lines)


class CpuDriver:
    """Takes the place of `launch.driver`; arrays are NumPy's.

    Args:
        folder: for what is compiled.
        kernels: name of a family -> its kernels and their parameters.
    """

    def __init__(self, folder, families):
        self.folder = folder
        self.families = {f.name: f for f in families}
        self.libraries = {}
        self.launches = []

    def __call__(self, program, kernel, declared, grid, block, values):
        self.launches.append((kernel, program.kind, grid, block))
        library = self.libraries.get(program[:3])
        if library is None:
            library = self.libraries[program[:3]] = self._compile(program)
        # A kernel sees its arguments as declared: a value of another type is an error here.
        holders = []
        for parameter, value in zip(declared, values, strict=True):
            if parameter.kind.endswith("*"):
                pointer = (
                    0 if isinstance(value, np.uint64) else self._address(program, parameter, value)
                )
                holders.append(ctypes.c_void_p(pointer))
            elif parameter.kind == "A":
                assert type(value) is (np.float64 if program.kind == "float64" else np.float32)
                kind = ctypes.c_double if program.kind == "float64" else ctypes.c_float
                holders.append(kind(value))
            else:
                wide = parameter.kind == "long long"
                assert type(value) is (np.int64 if wide else np.int32)
                holders.append(_TYPES[parameter.kind](int(value)))
        args = (ctypes.c_void_p * len(holders))(*[ctypes.addressof(h) for h in holders])
        # What a kernel calls stands before it.
        meets = any(w in program.text for w in ("__syncthreads", "_sync("))
        getattr(library, f"run_{kernel}")(args, ctypes.c_longlong(grid), block, int(meets))

    @staticmethod
    def _address(program, parameter, array):
        assert dense(array) or array.flags.c_contiguous
        computed = "float64" if program.kind == "float64" else "float32"
        kinds = {"T*": program.kind, "A*": computed, **_ARRAYS}
        assert array.dtype.name == kinds[parameter.kind], (parameter, array.dtype)
        return array.ctypes.data

    def _compile(self, program):
        family = self.families[program.family]
        text = _SHIM + program.text + _entries(program, family.kernels)
        stem = hashlib.sha1(text.encode()).hexdigest()[:12]
        source, target = self.folder / f"{stem}.cpp", self.folder / f"{stem}.so"
        if target.exists():  # another module of this run made it
            return ctypes.CDLL(str(target))
        source.write_text(text)
        options = [
            "-O1",
            "-std=c++17",
            "-ffp-contract=off",
            "-fno-strict-aliasing",
            "-shared",
            "-Wl,-Bsymbolic",  # else a kernel's name could mean another library's function
            "-fPIC",
            "-w",
        ]
        done = subprocess.run(
            [COMPILER, *options, str(source), "-o", str(target)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[:3000]
        return ctypes.CDLL(str(target))


@contextmanager
def using_cpu(tmp_path_factory):
    """Launches run on the CPU meanwhile; what is compiled serves the whole run."""
    folder = tmp_path_factory.getbasetemp() / "cuda_on_cpu"
    folder.mkdir(exist_ok=True)
    before, launch.driver = launch.driver, CpuDriver(folder, FAMILIES)
    try:
        yield launch.driver
    finally:
        launch.driver = before
