"""Compiled functions over integers that Python calls, without its lock while they run.

Owns: `python_function`, which makes one as CPython's own modules do: the machine code is the method.
"""

from __future__ import annotations

import ctypes
from typing import Any

from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.deferred import cgutils, foreign, intrinsic, ir, njit, types

_error = foreign("PyErr_Occurred", "int64")
_give_lock = foreign("PyEval_SaveThread", "int64")
_take_lock = foreign("PyEval_RestoreThread", "void", "int64")
_hold = foreign("Py_IncRef", "void", "int64")


def _integers(count: int) -> Any:
    """A function that makes a tuple of so many arguments."""

    @intrinsic
    def integers(typing_context: Any, objects: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            word = ir.IntType(64)
            convert = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(word, [word]), "PyLong_AsLongLong"
            )
            start = builder.inttoptr(values[0], word.as_pointer())
            places = (builder.gep(start, [word(k)]) for k in range(count))
            return cgutils.pack_array(
                builder, [builder.call(convert, [builder.load(p)]) for p in places]
            )

        return types.UniTuple(types.int64, count)(objects), generate

    return integers


#: Each compiled copy has its own.
integers: Any = None
body: Any = None
wanted: Any = None


@kernel(signature="int64(int64, int64, int64)")
def _method(nothing, objects, count):
    """A method in the form METH_FASTCALL, of None: it takes objects and gives None, or 0 for an error."""
    if count != wanted:
        return 0
    numbers = integers(objects)
    if _error():
        return 0
    state = _give_lock()
    body(*numbers)
    _take_lock(state)
    _hold(nothing)
    return nothing


class _Definition(ctypes.Structure):
    """CPython's `PyMethodDef`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("method", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_FASTCALL = 0x80  # METH_FASTCALL

_new = ctypes.pythonapi.PyCFunction_NewEx
_new.restype, _new.argtypes = (
    ctypes.py_object,
    (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p),
)
_definitions: list[_Definition] = []  # as long as their functions, which is forever


def python_function(function: Any) -> Any:
    """Compile a function that takes integers and gives nothing."""
    count, name = function.__code__.co_argcount, function.__name__
    address = _method.address(
        None,
        name,
        integers=_integers(count),
        body=njit(error_model="numpy")(function),
        wanted=count,
    )
    _definitions.append(_Definition(name.encode(), address, _FASTCALL, None))
    return _new(ctypes.addressof(_definitions[-1]), None, None)
