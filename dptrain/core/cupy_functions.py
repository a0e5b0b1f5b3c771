"""What NumPy's functions take and CuPy's do not, made of what CuPy has; `core.cuda` hands it out.

Owns: what stands in for functions and ufuncs of CuPy, each under NumPy's name and with its arguments. Must not know: tensors, operations.

Running values (`accumulate`, `at`) are made in steps of doubling distance, deterministic for a given shape.
Source: W. D. Hillis, G. L. Steele, "Data parallel algorithms", Communications of the ACM 29 (1986).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np

from dptrain.core.cuda_capture import noting_capture
from dptrain.core.modes import are_deterministic_algorithms_enabled

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

#: What CuPy adds atomically, as it is or as the type of the same bits; floating point sums then depend on
#: the order in which threads arrive.
_ADDED = {
    "int32": "int32",
    "uint32": "uint32",
    "int64": "uint64",
    "uint64": "uint64",
    "float32": "float32",
    "float64": "float64",
}


def _running(xp: Any, ufunc: Any, x: Any, keys: Any = None) -> Any:
    """`ufunc` of all entries of the first dimension up to each; with sorted `keys`, of those of its key."""
    step = 1
    while step < len(x):
        joined = ufunc(x[:-step], x[step:])
        if keys is not None:
            joined = xp.where(keys[step:] == keys[:-step], joined, x[step:])
        x = concatenate(xp, [x[:step], joined.astype(x.dtype, copy=False)])
        step *= 2
    return x


def accumulate(xp: Any, ufunc: Any, array: Any, axis: int = 0) -> Any:
    """`ufunc.accumulate` of any associative ufunc."""
    if ufunc is xp.add or ufunc is xp.multiply:
        return ufunc.accumulate(array, axis=axis)
    along = xp.moveaxis(array, axis, 0)
    return xp.ascontiguousarray(xp.moveaxis(_running(xp, ufunc, along), 0, axis))


def at(xp: Any, ufunc: Any, array: Any, places: Any, values: Any) -> None:
    """`ufunc.at` of any associative ufunc: values that meet at a place are joined, none is lost.

    Sums are made by atomic additions, whose order varies from run to run, unless
    `use_deterministic_algorithms(True)` asks for the same bits each time.
    """
    kind = array.dtype
    exact = kind.kind in "iu" or not are_deterministic_algorithms_enabled()
    if ufunc is xp.add and kind.name in _ADDED and exact:
        bits = np.dtype(_ADDED[kind.name])
        addends = xp.asarray(values, kind)
        ufunc.at(array.view(bits), places, addends.view(bits))
        return
    targets = xp.arange(array.size).reshape(array.shape)[places]
    if not targets.size:
        return
    addends = xp.broadcast_to(xp.asarray(values, kind), targets.shape).reshape(-1)
    order = xp.argsort(targets.reshape(-1), kind="stable")
    keys = targets.reshape(-1)[order]
    joined = _running(xp, ufunc, addends[order], keys)
    # What stands last for its place holds all of them; the others go to a place behind the array.
    last = concatenate(xp, [keys[1:] != keys[:-1], xp.ones(1, bool)])
    place = xp.where(last, keys, array.size)
    found = xp.zeros(array.size + 1, kind)
    found[place] = joined
    touched = xp.zeros(array.size + 1, bool)
    touched[place] = True
    found, touched = (a[:-1].reshape(array.shape) for a in (found, touched))
    array[...] = xp.where(touched, ufunc(array, found), array)


def _checked(xp: Any) -> AbstractContextManager[Any]:
    """Inside, a matrix that a routine cannot take is a LinAlgError, as in NumPy; not while a graph is captured.

    To know that, the host waits for the GPU.
    """
    if xp.cuda.get_current_stream().is_capturing():
        return nullcontext()
    guard: AbstractContextManager[Any] = import_module("cupyx").errstate(linalg="raise")
    return guard


def inv(xp: Any, a: Any) -> Any:
    """`linalg.inv`, where a singular matrix is an error."""
    with _checked(xp):
        return xp.linalg.inv(a)


def cholesky(xp: Any, a: Any) -> Any:
    """`linalg.cholesky`, where a matrix that is not positive-definite is an error."""
    with _checked(xp):
        return xp.linalg.cholesky(a)


def solve(xp: Any, a: Any, b: Any) -> Any:
    """`linalg.solve` with batches that broadcast, where a singular matrix is an error."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (xp.broadcast_to(m, (*lead, *m.shape[-2:])) for m in (a, b))
    with _checked(xp):
        return xp.linalg.solve(a, b)


def svd(
    xp: Any, a: Any, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False
) -> Any:
    """`linalg.svd`; of symmetric matrices by their eigenvalues, whose signs go into V."""
    if not hermitian:
        return xp.linalg.svd(a, full_matrices=full_matrices, compute_uv=compute_uv)
    if not compute_uv:
        return xp.flip(xp.sort(xp.abs(xp.linalg.eigvalsh(a)), axis=-1), axis=-1)
    values, u = xp.linalg.eigh(a)
    order = xp.flip(xp.argsort(xp.abs(values), axis=-1), axis=-1)
    values = xp.take_along_axis(values, order, axis=-1)
    u = xp.take_along_axis(u, order[..., None, :], axis=-1)
    signs = xp.where(values < 0, values.dtype.type(-1), values.dtype.type(1))
    return u, xp.abs(values), xp.swapaxes(u * signs[..., None, :], -1, -2)


def as_strided(xp: Any, x: Any, shape: Any, strides: Any, writeable: bool = True) -> Any:
    """`as_strided`; views on a GPU cannot be made read-only."""
    return xp.lib.stride_tricks.as_strided(x, shape, strides)


def concatenate(
    xp: Any,
    arrays: Any,
    axis: int | None = 0,
    out: Any = None,
    dtype: Any = None,
    casting: str = "same_kind",
) -> Any:
    """`concatenate`; where a CUDA graph is going to hold it, part by part.

    CuPy's kernel reads a table of addresses that the host has made and copies.
    """
    arrays = list(arrays)
    if noting_capture() is None or out is not None:
        return xp.concatenate(arrays, axis, out, dtype=dtype, casting=casting)
    if axis is None:
        arrays, axis = [a.ravel() for a in arrays], 0
    first, axis = arrays[0], axis % arrays[0].ndim
    kind = np.result_type(*{a.dtype for a in arrays}) if dtype is None else dtype
    size = sum(a.shape[axis] for a in arrays)
    joined = xp.empty((*first.shape[:axis], size, *first.shape[axis + 1 :]), kind)
    start, before = 0, (slice(None),) * axis
    for a in arrays:
        stop = start + a.shape[axis]
        joined[(*before, slice(start, stop))] = a
        start = stop
    return joined


def stack(
    xp: Any,
    arrays: Any,
    axis: int = 0,
    out: Any = None,
    dtype: Any = None,
    casting: str = "same_kind",
) -> Any:
    """`stack`, likewise."""
    parts = [xp.expand_dims(a, axis) for a in arrays]
    return concatenate(xp, parts, axis, out, dtype, casting)


def where(xp: Any, condition: Any, x: Any = None, y: Any = None) -> Any:
    """`where` in the type of its operands; CuPy's has none for bfloat16, and takes float32."""
    if x is None:
        return xp.where(condition)
    kinds = {v.dtype for v in (x, y) if hasattr(v, "dtype")}
    if kinds != {_BFLOAT16}:
        return xp.where(condition, x, y)
    bits = [
        v.view(np.uint16) if type(v) is xp.ndarray else np.asarray(v, _BFLOAT16).view(np.uint16)[()]
        for v in (x, y)
    ]
    return xp.where(condition, *bits).view(_BFLOAT16)


#: NumPy's name -> what stands in for CuPy's function of that name; CuPy comes first among the arguments.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "linalg.cholesky": cholesky,
    "linalg.inv": inv,
    "linalg.solve": solve,
    "linalg.svd": svd,
    "lib.stride_tricks.as_strided": as_strided,
    "concatenate": concatenate,
    "stack": stack,
    "where": where,
}

#: Ufuncs that are asked for methods which CuPy's lack.
UFUNCS = ("add", "logaddexp", "maximum", "minimum", "multiply")


class Ufunc:
    """A ufunc of CuPy, with `accumulate` and `at`.

    Args:
        cupy: the module.
        name: the ufunc's.
    """

    def __init__(self, cupy: Any, name: str) -> None:
        self._ufunc = getattr(cupy, name)
        self.accumulate = partial(accumulate, cupy, self._ufunc)
        self.at = partial(at, cupy, self._ufunc)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ufunc(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ufunc, name)


def function(cupy: Any, module: Any, name: str) -> Any:
    """What stands in for a function of `cupy` or of a module below it; None: nothing does."""
    if module is cupy and name in UFUNCS:
        return Ufunc(cupy, name)
    package, _, place = module.__name__.partition(".")
    if package != cupy.__name__:
        return None
    found = FUNCTIONS.get(f"{place}.{name}" if place else name)
    return None if found is None else partial(found, cupy)
