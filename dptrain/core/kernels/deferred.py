"""numba's names as kernels use them; numba is imported when something of it is needed, which is to compile.

Owns: what stands for numba's objects, and `for_numba`, a function that sees the objects in their place.

A process whose kernels lie compiled on disk needs no compiler, and to import one takes longer than anything else
that the process does before its first step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from types import CellType, CodeType, FunctionType
from typing import Any


class Deferred:
    """Stands for what `make()` returns, which is made once, when it is asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @cached_property
    def made(self) -> Any:
        """The object itself."""
        return self._make()


class DeferredModule(Deferred):
    """A module that is imported when something of it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(lambda: import_module(name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python and its libraries ask of any object
            raise AttributeError(name)
        return getattr(self.made, name)


ir = DeferredModule("llvmlite.ir")
types = DeferredModule("numba.types")
cgutils = DeferredModule("numba.core.cgutils")
carray: Any = Deferred(lambda: import_module("numba").carray)


@cache
def numba() -> Any:
    """The compiler, which has to be asked for before anything else of numba's is."""
    _load_arrays_of_numba()
    return import_module("numba")


def _load_arrays_of_numba() -> None:
    """Import numba's functions over arrays, which it does before anything runs, without SciPy.

    They import SciPy's linear algebra (0.1 s, 20 MB) only to see whether it is there. Whether it is installed
    says as much; whatever needs it imports it when it is used.
    """
    linalg: Any = import_module("numba.np.linalg")
    original = getattr(linalg, "ensure_blas", None)
    if original is not None and "scipy.linalg" not in sys.modules and find_spec("scipy"):
        linalg.ensure_blas = lambda: None
    try:
        import_module("numba.np.arraymath")
    finally:
        if original is not None:
            linalg.ensure_blas = original


def intrinsic(function: Any) -> Any:
    """An operation that is written as LLVM code. A call looks unlike the definition, so it has no type."""
    return Deferred(lambda: import_module("numba.extending").intrinsic(function))


class Function(Deferred):
    """A function for kernels to call; Python, which may call it too, runs the definition."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__(lambda: numba().njit(**options)(for_numba(function)))
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def njit(function: Any = None, **options: Any) -> Any:
    """Make a function one that kernels call.

    Args:
        function: the definition.
        **options: for numba's compiler.
    """
    if function is None:
        return lambda f: Function(f, options)
    return Function(function, options)


class ArrayFunction(Deferred):
    """A function that Python calls with arrays, of any element type."""

    def __call__(self, *args: Any) -> Any:
        return self.made(*args)


def njit_for_arrays(**options: Any) -> Callable[[Any], ArrayFunction]:
    """A decorator for a function that Python calls with arrays; numba keeps what it compiles."""
    return lambda function: ArrayFunction(lambda: numba().njit(**options)(function))


def foreign(name: str, result: str, *arguments: str) -> Any:
    """A function of a C library, for kernels to call, by the names of its types."""

    def make() -> Any:
        form = getattr(types, result)(*(getattr(types, a) for a in arguments))
        return types.ExternalFunction(name, form)

    return Deferred(make)


def for_numba(function: FunctionType, **names: Any) -> FunctionType:
    """A copy of a function that sees objects where deferred ones stand, and `names` among its global ones."""
    space = {**function.__globals__, **names}
    for name in _names_in(function.__code__):
        if name in space:
            space[name] = _real(space[name])
    cells = tuple(CellType(_real(cell.cell_contents)) for cell in function.__closure__ or ())
    copy = FunctionType(function.__code__, space, function.__name__, None, cells or None)
    copy.__defaults__, copy.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    return copy


def _real(value: Any) -> Any:
    return value.made if isinstance(value, Deferred) else value


def _names_in(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(_names_in, inner))
