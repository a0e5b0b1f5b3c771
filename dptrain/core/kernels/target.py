"""What the processor offers, and the sizes of register tiles that follow from it.

Pure functions of the processor's features: equal processors choose alike, whatever they are busy with.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm

from dptrain.core.settings import settings


class Target(NamedTuple):
    """A kind of vector unit.

    Attributes:
        name: for people.
        width: bytes of a vector register.
        accumulators: registers that a tile of sums may take; the others hold what is multiplied.
    """

    name: str
    width: int
    accumulators: int

    def lanes(self, itemsize: int) -> int:
        """Numbers of `itemsize` bytes in a register."""
        return self.width // itemsize

    def most_rows(self, vectors: int) -> int:
        """Rows of a tile that is `vectors` registers wide."""
        # Wider than 16 rows only makes the code longer: the sums already hide the latency of a product.
        return min(16, self.accumulators // vectors)


def target_of(features: Mapping[str, bool], architecture: str) -> Target:
    """The vector unit of a processor with these LLVM features."""
    if features.get("avx512f"):
        return Target("AVX-512", 64, 24)
    if features.get("avx2") or features.get("avx"):
        return Target("AVX2" if features.get("avx2") else "AVX", 32, 12)
    if architecture in ("aarch64", "arm64"):
        return Target("NEON", 16, 24)
    return Target("128-bit vectors", 16, 12)


@cache
def target() -> Target:
    """That of the processor which numba compiles for."""
    # What numba was told to compile for, if it was told.
    told = dict(settings().compiler)
    named, name = told.get("NUMBA_CPU_FEATURES"), told.get("NUMBA_CPU_NAME")
    if named is not None:
        features = {f[1:]: f[0] == "+" for f in named.split(",") if f}
    elif name not in (None, llvm.get_host_cpu_name()):
        features = {}  # a processor given by name only: assume the least
    else:
        features = dict(llvm.get_host_cpu_features())
    return target_of(features, llvm.get_default_triple().split("-")[0])
