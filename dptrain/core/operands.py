"""The arguments of an operation: brought to one type, and what is said when they do not fit.

Owns: promotion, and the complaints of `Op.apply` about types, number and shapes of arguments. Must not
know: any particular operation, the graph.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from dptrain.core.arrays import HOST_TYPES, common_namespace, device_of, is_array, on_gpu
from dptrain.core.dtypes import FROM_NUMPY, result_dtype
from dptrain.core.half import computed_in
from dptrain.core.host_array import DeviceMismatchError
from dptrain.core.kernels import kernels_for

if TYPE_CHECKING:
    from dptrain.core.op import Op


class LinAlgError(RuntimeError):
    """A matrix is singular or not positive-definite, or an iteration did not converge."""


def one_device(cls: type[Op], raw: list[Any]) -> Any:
    """The namespace of the arguments' device.

    Raises:
        RuntimeError: they live on two devices.
    """
    try:
        return common_namespace(raw)
    except DeviceMismatchError as error:
        raise DeviceMismatchError(f"{cls.name}: {error}") from None


def host_scalars_moved(args: tuple[Any, ...], raw: list[Any]) -> tuple[Any, ...] | None:
    """The arguments with the host's tensors of no dimension moved to the GPU of the others.

    They are values more than places, which is why PyTorch lets them meet a GPU's tensors. Virtual devices
    stay strict: they stand for GPUs, the first of them too.

    Returns:
        None where there is nothing to move.
    """
    scalars = [
        i
        for i, a in enumerate(raw)
        if type(a) is np.ndarray and a.ndim == 0 and a is not args[i]  # of a tensor
    ]
    if not scalars:
        return None
    for a in raw:
        if is_array(a) and (place := device_of(a)).type == "cuda":
            moved = [a.to(place) if i in scalars else a for i, a in enumerate(args)]
            return tuple(moved)
    return None


def promote(cls: type[Op], raw: list[Any], xp: Any) -> None:
    """Bring the first `promotes` arguments to their common type, as PyTorch does."""
    n = cls.promotes
    x, y = raw[0], raw[1]
    if n == 2 and type(x) is type(y) is np.ndarray and x.dtype is y.dtype:
        return
    if n == 2 and (type(x) in HOST_TYPES or on_gpu(x)):
        # With the one below the cases of nearly every call: equal types, and a float tensor with a number.
        if type(y) in HOST_TYPES or on_gpu(y):
            if x.dtype == y.dtype:
                return
        elif type(y) in (float, int) and x.dtype.kind == "f":
            return
    elif n == 2 and type(x) in (float, int) and type(y) in HOST_TYPES and y.dtype.kind == "f":
        raw[0] = xp.asarray(np.asarray(x, y.dtype))
        return
    elif n > 2 and all(type(a) in HOST_TYPES and a.dtype == x.dtype for a in raw[:n]):
        return
    # A scalar of NumPy is a number to PyTorch: it raises the category of a tensor, not its type.
    raw[:n] = (a.item() if isinstance(a, np.generic) else a for a in raw[:n])
    operands = raw[:n]
    for i, a in enumerate(operands):
        if isinstance(a, np.generic):  # counts as the number that it is
            raw[i] = operands[i] = a.item()
    if not (cls.numbers_only or any(is_array(a) for a in operands)):
        raise TypeError(
            f"{cls.name}(): expected at least one Tensor, got {', '.join(type(a).__name__ for a in operands)}"
        )
    for a in operands:
        if not cls.takes_bool and (type(a) is bool or (is_array(a) and a.dtype == np.bool_)):
            raise RuntimeError(
                f"{cls.name}: booleans are not supported; use ~ or logical_not() to invert a mask, else convert "
                "it to numbers first"
            )
        if is_array(a) and a.dtype not in FROM_NUMPY:
            raise TypeError(f"{cls.name}(): unsupported element type {a.dtype}")
    try:
        target = result_dtype(operands).numpy
    except TypeError as error:
        raise TypeError(f"{cls.name}(): {error}") from None
    if cls.takes_mixed and _mix(x, y, target):
        return
    for i, a in enumerate(operands):
        if is_array(a):
            if a.dtype != target:
                raw[i] = kernels_for(a).convert(a, target) if on_gpu(a) else a.astype(target)
        else:
            raw[i] = xp.asarray(np.asarray(a).astype(target))


def _mix(x: Any, y: Any, target: np.dtype[Any]) -> bool:
    """Whether a kernel takes both as they are: of one shape on a GPU, one of 16 bits and one that it is computed in."""
    if not (on_gpu(x) and on_gpu(y)) or x.shape != y.shape or target not in (x.dtype, y.dtype):
        return False
    return computed_in(x.dtype) == computed_in(y.dtype) == target


def refuse_argument(cls: type[Op], args: tuple[Any, ...], i: int) -> None:
    name = cls._parameters[i] if i < len(cls._parameters) else str(i)
    if i >= len(args):
        raise TypeError(f"{cls.name}() missing required argument: {name!r}")
    raise TypeError(
        f"{cls.name}(): argument {name!r} (position {i + 1}) must be Tensor, not {type(args[i]).__name__}"
    )


def check_count(cls: type[Op], args: tuple[Any, ...]) -> None:
    """Complain about missing or surplus arguments in the operation's own name."""
    names = cls._parameters
    if len(args) < len(names) and names[len(args)] not in cls._defaults:
        raise TypeError(f"{cls.name}() missing required argument: {names[len(args)]!r}") from None
    if names and len(args) > len(names):
        raise TypeError(
            f"{cls.name}() takes {len(names)} positional arguments but {len(args)} were given"
        ) from None


def shape_error(cls: type[Op], raw: list[Any], error: ValueError) -> Exception:
    """NumPy's complaint as PyTorch words it: the op, both shapes, what would fit."""
    if isinstance(error, np.linalg.LinAlgError):
        return LinAlgError(f"{cls.name}: the algorithm failed to converge ({error})")
    shapes = [a.shape for a in raw if is_array(a)]
    meeting = cls.promotes or (len(shapes) if "broadcast" in str(error) else 0)
    for a, b in combinations(shapes[:meeting], 2):
        for i in range(1, min(len(a), len(b)) + 1):
            if a[-i] != b[-i] and 1 not in (a[-i], b[-i]):
                return RuntimeError(
                    f"{cls.name}: the size of tensor a ({a[-i]}) must match the size of tensor b ({b[-i]}) at "
                    f"non-singleton dimension {max(len(a), len(b)) - i}; got shapes {list(a)} and {list(b)}"
                )
    given = ", ".join(str(list(s)) for s in shapes)
    if "broadcast" in str(error):
        return RuntimeError(f"{cls.name}: the arguments do not broadcast (shapes: {given})")
    return RuntimeError(f"{cls.name}: {error} (shapes: {given})")
