"""What NumPy's functions are to a recording: which change an argument, which only look, which take `out=`.

Owns: that table. A function that is in none of the lists is called again, and its result copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.compiler.arrays import Address, TracedArray, place_in, put_in

_CHANGES_FIRST = frozenset(
    [np.copyto, np.put, np.putmask, np.place, np.put_along_axis, np.fill_diagonal, put_in]
)
_CHANGING_METHODS = frozenset(["fill", "sort", "partition", "put", "setfield"])

#: Results of these are facts of shapes and types, or are answered from addresses.
_FACTS = frozenset(
    [
        *(np.may_share_memory, np.shares_memory, np.result_type, np.shape, np.ndim, np.size),
        *(np.iscomplexobj, np.isrealobj, np.can_cast, np.broadcast_shapes, np.min_scalar_type),
    ]
)
_BY_VALUE = frozenset(
    [
        *("nonzero", "flatnonzero", "argwhere", "unique", "unique_values", "unique_counts"),
        *("unique_inverse", "unique_all", "compress", "extract", "bincount", "union1d"),
        *(
            "setdiff1d",
            "intersect1d",
            "trim_zeros",
            "delete",
            "histogram",
            "count_nonzero",
            "arange",
        ),
    ]
)
#: Functions and methods that take `out=` and compute the same values then.
_TAKES_OUT = frozenset(
    [
        *("sum", "prod", "max", "min", "amax", "amin", "any", "all", "argmax", "argmin"),
        *("cumsum", "cumprod", "concatenate", "stack", "dot"),
    ]
)
_COPIES = frozenset(["copy", "astype", "ascontiguousarray", "asarray", "array"])
_RESHAPES = frozenset(["reshape", "ravel", "flatten"])


def name_of(function: Any) -> str:
    """How a function is called, for people and for lists of names."""
    return getattr(function, "__name__", type(function).__name__)


def _of_numpy(function: Any) -> bool:
    """Whether it is a function or a method of NumPy, rather than one of the same name."""
    owner = getattr(function, "__objclass__", None)
    return owner is np.ndarray or (getattr(function, "__module__", None) or "").startswith("numpy")


def changes_first(function: Any) -> bool:
    """Whether the function writes to its first argument."""
    if name_of(function) == "at" and isinstance(getattr(function, "__self__", None), np.ufunc):
        return True
    try:
        if function in _CHANGES_FIRST:
            return True
    except TypeError:  # cannot be hashed
        return False
    return getattr(function, "__objclass__", None) is np.ndarray and (
        name_of(function) in _CHANGING_METHODS
    )


def shape_depends_on_values(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether other values could give a result of another shape."""
    if function is place_in:
        places = args[1] if type(args[1]) is tuple else (args[1],)
        return any(type(p) is TracedArray and p.dtype == np.bool_ for p in places)
    name = name_of(function)
    if name == "repeat":  # by how often, not by what
        return len(args) > 1 and type(args[1]) is TracedArray
    return name in _BY_VALUE and any(type(a) is TracedArray for a in args)


def is_fact(function: Any) -> bool:
    """Whether what is no array in the result does not depend on values."""
    return function in _FACTS


def is_empty(function: Any) -> bool:
    """Whether the values of the result are anything."""
    return name_of(function) in ("empty", "empty_like") and _of_numpy(function)


def is_zeros(function: Any) -> bool:
    """Whether the values of the result are zeros."""
    return name_of(function) in ("zeros", "zeros_like") and _of_numpy(function)


def into(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: np.ndarray
) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]]:
    """How to call a function again so that its result is in `out`: form, function, arguments."""
    name = name_of(function)
    bound = getattr(function, "__self__", None)
    if isinstance(function, np.ufunc) or (
        isinstance(bound, np.ufunc) and name in ("reduce", "accumulate")
    ):
        return "call", function, args, {**kwargs, "out": out}
    if _of_numpy(function):
        source = args[0] if args and isinstance(args[0], np.ndarray) else None
        if name in _TAKES_OUT and not ("dtype" in kwargs and name in ("concatenate", "stack")):
            return "call", function, args, {**kwargs, "out": out}
        if name == "zeros_like":
            return "call", np.ndarray.fill, (out, 0), {}
        if name in _COPIES and source is not None and source.shape == out.shape:
            return "call", np.copyto, (out, source), {"casting": "unsafe"}
        in_rows = kwargs.get("order", "C") == "C" and len(args) < 3 and out.flags.c_contiguous
        if name in _RESHAPES and source is not None and in_rows:
            return "call", np.copyto, (out.reshape(source.shape), source), {}
    return "store", function, args, kwargs


def describe(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call without its memory, to compare it with that of another recording."""
    return (
        name_of(function),
        tuple(_kind(a) for a in args),
        tuple((k, _kind(v)) for k, v in sorted(kwargs.items())),
    )


def _kind(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.strides, str(value.dtype))
    if isinstance(value, Address):
        return value.place
    if isinstance(value, (list, tuple)):
        return tuple(_kind(v) for v in value)
    if isinstance(value, (int, float, complex, str, bool, type(None), np.generic, slice)):
        return repr(value)
    return type(value).__name__
