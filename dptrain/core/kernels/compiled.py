"""Compiled kernels: one native function per kernel and element type, made on first use, kept on disk.

Owns: `kernel`, the names under which compiled code is cached, and who compiles when several processes
start together. Must not know: what a kernel computes.

A kernel is a function `(args, share, shares, worker)`: `args` points to 64-bit integers (addresses,
sizes, strides), `share` of `shares` is the part to compute, `worker` numbers the thread. All kernels
having one form is what lets one pool of threads run them all, and a call costs no type dispatch.
The global name `real` stands in a kernel for the element type; each type gets a copy of its own.

The name of a cached file holds a hash of the sources of this folder, since a cache that looks at one
source file only would not see that a generator in another has changed. The files lie where numba puts
them: `NUMBA_CACHE_DIR`, else beside the source, else in the user's cache folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic as _intrinsic

from dptrain.core.kernels.target import target


def _load_arrays_of_numba() -> None:
    """Import numba's functions over arrays, which it does before anything runs, without SciPy.

    They import SciPy's linear algebra (0.1 s, 20 MB) only to see whether it is there. Whether it is installed
    says as much; whatever needs it imports it when it is used.
    """
    from numba.np import linalg

    original = getattr(linalg, "ensure_blas", None)
    if original is not None and "scipy.linalg" not in sys.modules and find_spec("scipy"):
        linalg.ensure_blas = lambda: None
    try:
        import_module("numba.np.arraymath")
    finally:
        if original is not None:
            linalg.ensure_blas = original


_load_arrays_of_numba()

#: For operations that are written as LLVM code; a call looks unlike the definition, so it has no type.
intrinsic: Any = _intrinsic

_OPTIONS = {"nopython": True, "error_model": "numpy"}
_SHARE = "void(CPointer(int64), int64, int64, int64)"
#: What a sum may be: taken in another order, and fused with a product. NaN and infinity stay what they are.
FAST = {"contract", "reassoc", "nsz", "arcp"}

#: Products fused with sums, nothing else.
KEEP_NAN = {"contract"}


@intrinsic
def whole_registers(typing_context: Any) -> Any:
    """Let loops of this function use whole registers: of those of AVX-512, LLVM prefers the half by itself.

    It pays in loops that compute more than they move.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        # llvmlite's own `add` knows a few names only.
        width = f'"prefer-vector-width"="{8 * target().width}"'
        set.add(builder.function.attributes, width)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call what was compiled by its address, with a tuple of 64-bit integers."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        numbers = cgutils.unpack_tuple(builder, values[1])
        form = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(numbers))
        builder.call(builder.inttoptr(values[0], form.as_pointer()), numbers)
        return context.get_dummy_value()

    return types.void(address, arguments), generate


@cache
def source_digest() -> str:
    """Names the sources of all kernels and generators."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Kernel:
    """A kernel and its compiled copies.

    Args:
        function: the kernel.
        signature: its types.
        options: of the compiler.
    """

    def __init__(self, function: Any, signature: str, options: dict[str, Any]) -> None:
        self._function, self._signature, self._options = function, signature, options
        self._addresses: dict[Any, int] = {}
        self._made: list[Any] = []  # keeps the code alive
        #: `_address`; every call of a kernel asks for it.
        self.address: Callable[..., int] = lru_cache(64)(self._address)

    def _address(self, real: Any = None, variant: str = "", **names: Any) -> int:
        """Where the compiled copy for an element type lies; compiles it if it is not there yet.

        Args:
            real: a NumPy scalar type, or None for a kernel that moves bytes.
            variant: names what `names` are.
            **names: further global names of the copy.
        """
        found = self._addresses.get((real, variant))
        if found is None:
            made = self._compile(variant, {"real": real, **names})
            self._made.append(made)
            found = self._addresses[real, variant] = made.address
        return found

    def _compile(self, variant: str, names: dict[str, Any]) -> Any:
        original = self._function
        copy = FunctionType(original.__code__, {**original.__globals__, **names}, original.__name__)
        kind = [variant] if names["real"] is None else [variant, names["real"].__name__]
        copy.__qualname__ = "_".join([original.__qualname__, *filter(None, kind), source_digest()])
        copy.__module__ = original.__module__
        try:
            folder = Path(FunctionCache(copy).cache_path)
        except RuntimeError:  # nowhere to write
            return numba.cfunc(self._signature, **self._options)(copy)
        with _one_process(folder):
            if copy.__qualname__ not in _names_in(folder):
                _names_in.cache_clear()  # another process may have made it since
                if copy.__qualname__ not in _names_in(folder):
                    _announce()
            return numba.cfunc(self._signature, cache=True, **self._options)(copy)


@cache
def _names_in(folder: Path) -> str:
    """The names of all files in which compiled code may lie, in one text."""
    return "\n".join(name for name in os.listdir(folder) if name.endswith(".nbi"))


@contextmanager
def _one_process(folder: Path) -> Iterator[None]:
    """Lets one process at a time compile; the others find what it made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / "dptrain.lock", "w")  # noqa: SIM115  closed below
    except OSError:
        yield
        return
    with handle:
        with suppress(
            OSError
        ):  # a file system without locks: all compile, the last one's file stays
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@cache
def _announce() -> None:
    print(
        "dptrain: compiling CPU kernels for this machine (once; some seconds per kind of layer)",
        file=sys.stderr,
        flush=True,
    )


def kernel(
    function: Callable[..., None] | None = None, *, signature: str = _SHARE, **options: Any
) -> Any:
    """Make a function a kernel.

    Args:
        function: takes (args, share, shares, worker) unless `signature` says otherwise.
        signature: numba's text of its types.
        **options: for numba's compiler, such as `fastmath`.
    """
    if function is None:
        return lambda f: Kernel(f, signature, {**_OPTIONS, **options})
    return Kernel(function, signature, {**_OPTIONS, **options})
