"""Compiled kernels: one native function per kernel and element type, made on first use, kept on disk.

Owns: `kernel`, and how one is compiled. Must not know: what a kernel computes.

A kernel is a function `(args, share, shares, worker)`: `args` points to 64-bit integers (addresses,
sizes, strides), `share` of `shares` is the part to compute, `worker` numbers the thread. All kernels
having one form is what lets one pool of threads run them all, and a call costs no type dispatch.
The global name `real` stands in a kernel for the element type; each type gets a copy of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dptrain.core.kernels import code_files
from dptrain.core.kernels.code_files import Code
from dptrain.core.kernels.deferred import cgutils, for_numba, intrinsic, ir, numba, types
from dptrain.core.kernels.target import target

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
            made = self._make(variant, {"real": real, **names})
            found = self._addresses[real, variant] = made
        return found

    def _make(self, variant: str, names: dict[str, Any]) -> int:
        original, real = self._function, names["real"]
        parts = original.__module__.rpartition(".")[2], original.__qualname__, variant
        name = "-".join(filter(None, (*parts, real and real.__name__)))
        return code_files.address(name, lambda: self.compile(name, names))

    def compile(self, name: str, names: dict[str, Any]) -> Code:
        """Compile a copy.

        Args:
            name: under which no other code is known.
            names: global names of the copy.
        """
        compiler = numba()
        copy = for_numba(self._function, **names)
        copy.__qualname__ = name
        return code_files.code_of(compiler.cfunc(self._signature, **self._options)(copy))


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
