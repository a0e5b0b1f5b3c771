"""Random numbers on the GPU: NumPy's Philox streams, with the place in the stream kept on the GPU.

Owns: `DeviceStream`. Uniform numbers are, bit for bit, those of `numpy.random.Generator` over the
stream of the same key, so that a dropout mask does not depend on where it is drawn. Normal numbers
come from the same words but by another method (the host's rejects and retries, which cannot be split
over threads), and so differ from the host's.

The place is advanced by a kernel: a replayed CUDA graph draws new numbers each time.

Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11 (Philox4x64-10);
Box & Muller, "A note on the generation of random normal deviates", 1958.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import beside, to_host
from dptrain.core.kernels.cuda.launch import Family
from dptrain.core.random import words_drawn

_SOURCE = r"""
typedef unsigned long long word;
// state: key (two words), words used, whether half a word is left, that half.
// Word n of a stream: lane n % 4 of the block whose counter is n / 4 + 1, as NumPy counts.
__device__ word word_at(const word* state, word n) {
    word c0 = n / 4 + 1, c1 = 0, c2 = 0, c3 = 0, k0 = state[0], k1 = state[1];
    for (int round = 0; round < 10; round++) {
        word high0 = __umul64hi(0xD2E7470EE14C6C93ULL, c0), low0 = 0xD2E7470EE14C6C93ULL * c0;
        word high1 = __umul64hi(0xCA5A826395121157ULL, c2), low1 = 0xCA5A826395121157ULL * c2;
        c0 = high1 ^ c1 ^ k0; c1 = low1; c2 = high0 ^ c3 ^ k1; c3 = low0;
        k0 += 0x9E3779B97F4A7C15ULL; k1 += 0xBB67AE8584CAA73BULL;
    }
    int lane = n % 4;
    return lane == 0 ? c0 : lane == 1 ? c1 : lane == 2 ? c2 : c3;
}
__device__ float unit(unsigned int half) { return (half >> 8) * (1.0f / 16777216.0f); }

// One thread for each element, 53 bits of a word.
extern "C" __global__ void uniform_double(const word* state, double* out, long long count) {
    EACH(i, count) out[i] = (word_at(state, state[2] + i) >> 11) * (1.0 / 9007199254740992.0);
}

// One thread for each word: its lower half, then its upper; a half left over comes first.
extern "C" __global__ void uniform_float(const word* state, float* out, long long count) {
    long long left = state[3];
    EACH(i, count / 2 + 1) {
        word w = word_at(state, state[2] + i);
        long long first = left + 2 * i;
        if (i == 0 && left) out[0] = unit((unsigned int)state[4]);
        if (first < count) out[first] = unit((unsigned int)w);
        if (first + 1 < count) out[first + 1] = unit((unsigned int)(w >> 32));
    }
}

// One thread for each pair of elements, from two words.
extern "C" __global__ void normal(const word* state, T* out, long long count) {
    EACH(i, (count + 1) / 2) {
        word a = word_at(state, state[2] + 2 * (word)i), b = word_at(state, state[2] + 2 * (word)i + 1);
        A u = ((A)(a >> 11) + 1) * A(1.0 / 9007199254740992.0);  // in (0, 1]
        A angle = (A)(b >> 11) * A(2 * 3.14159265358979323846 / 9007199254740992.0);
        A radius = sqrt(-2 * log(u));
        out[2 * i] = T(radius * cos(angle));
        if (2 * i + 1 < count) out[2 * i + 1] = T(radius * sin(angle));
    }
}

// One thread, after the draw: `words` were used, or so many halves of words.
extern "C" __global__ void advance(word* state, long long words, long long halves) {
    state[2] += words;
    long long more = halves - (long long)state[3];
    if (halves == 0) return;
    state[2] += (more + 1) / 2;
    state[3] = more % 2;
    if (more % 2) state[4] = word_at(state, state[2] - 1) >> 32;
}
"""

FAMILY = Family("philox", _SOURCE, ("float32", "float64"))


class DeviceStream:
    """The Philox stream of a key, on one GPU: the part of `numpy.random.Generator` that ops use.

    Args:
        xp: makes arrays there.
        stream: the host's stream with that key; where it stands is where this one starts.
    """

    def __init__(self, xp: Any, stream: np.random.Generator) -> None:
        self._xp = xp
        self._state = xp.asarray(device_state(stream))

    def random(self, size: Any = None, dtype: Any = np.float64) -> Any:
        """Uniform numbers in [0, 1): float64 or float32, the same as the host's."""
        kind, out = self._empty(size, dtype)
        if kind == np.float64:
            self._draw("uniform_double", kind, out, out.size, words=out.size)
        else:
            self._draw("uniform_float", kind, out, out.size // 2 + 1, halves=out.size)
        return out

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> Any:
        """Numbers from the normal distribution (0, 1)."""
        kind, out = self._empty(size, dtype)
        pairs = -(-out.size // 2)
        self._draw("normal", kind, out, pairs, words=2 * pairs)
        return out

    def host_state(self) -> np.ndarray:
        """Key and place, copied to the host: the five words of `device_state`."""
        return to_host(self._state)

    def restore(self, state: np.ndarray) -> None:
        """Go on from a `host_state`, in the same memory: a graph that draws goes on from there too.

        Raises:
            ValueError: it is none.
        """
        if np.shape(state) != (5,):
            raise ValueError(f"the state of a stream on a GPU is five words, not {np.shape(state)}")
        with beside(self._state):
            self._state[...] = self._xp.asarray(np.asarray(state, np.uint64))

    def follow(self, other: DeviceStream) -> None:
        """Go on from where another stream of this GPU stands, in the same memory; nothing is waited for."""
        with beside(self._state):
            self._state[...] = other._state

    def _empty(self, size: Any, dtype: Any) -> tuple[np.dtype[Any], Any]:
        kind = np.dtype(dtype)
        if kind.name not in FAMILY.kinds:
            raise TypeError(f"random numbers are drawn as float32 or float64, not {kind}")
        return kind, self._xp.empty(() if size is None else size, kind)

    def _draw(
        self,
        kernel: str,
        kind: np.dtype[Any],
        out: Any,
        threads: int,
        words: int = 0,
        halves: int = 0,
    ) -> None:
        if math.prod(out.shape) == 0:
            return
        with beside(self._state):
            FAMILY.launch(kernel, kind, threads, self._state, out, out.size)
            FAMILY.launch("advance", kind, 1, self._state, words, halves, block=1)


def device_state(stream: np.random.Generator) -> np.ndarray:
    """A host stream's key and place, as the kernels keep them."""
    state: Any = stream.bit_generator.state
    key = [int(k) for k in state["state"]["key"]]
    return np.array(
        [*key, words_drawn(state), state["has_uint32"], state["uinteger"]], dtype=np.uint64
    )
