"""The checks of what a caller passes to a collective, before any rank is asked.

Owns: the errors about arrays, shapes, dtypes, ranks and tags, and the `Call` made of good
arguments. Must not know: ranks' states, queues or backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.comm.call import Call, Kind, Parts
from dptrain.comm.errors import rank_prefix
from dptrain.comm.reduction import (
    DTYPE_NAMES,
    ReduceOp,
    check_reducible,
    dtype_name,
    reduce_arrays,
)
from dptrain.core.arrays import device_of, is_array, namespace_of, span

Array = np.ndarray[Any, Any]
MAX_TAG = 32767  # The largest tag that every MPI library has to accept.
_SUPPORTED = frozenset(DTYPE_NAMES)


def check_array(label: str, array: Array, *, writeable: bool = False) -> None:
    """Refuse what the collectives cannot take.

    Raises:
        TypeError: no array, or a dtype that is not supported.
        ValueError: not C-contiguous, or read-only where a result is to be written.
    """
    if not is_array(array):
        raise TypeError(
            f"{label} has to be a numpy.ndarray or an array on a GPU, got {type(array).__name__}"
        )
    if dtype_name(array.dtype) not in _SUPPORTED or not array.dtype.isnative:
        raise TypeError(
            f"{label} has dtype {array.dtype}; communicators move {', '.join(DTYPE_NAMES)}"
        )
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{label} has to be C-contiguous, got shape {array.shape} with strides "
            f"{array.strides} (bytes); pass numpy.ascontiguousarray({label}) and copy back"
        )
    # What lies on a GPU is never read-only.
    if writeable and type(array) is np.ndarray and not array.flags.writeable:
        raise ValueError(f"{label} receives the result but is read-only (shape {array.shape})")


def check_rank(label: str, value: int, rank: int, world_size: int) -> None:
    """Refuse what is no rank.

    Raises:
        ValueError: `value` is not 0 to `world_size - 1`.
    """
    if not isinstance(value, int | np.integer) or not 0 <= value < world_size:
        raise ValueError(
            f"{rank_prefix(rank, world_size)} {label}={value!r} is no rank of a group of "
            f"{world_size}; expected 0 to {world_size - 1}"
        )


def check_peer(label: str, peer: int | None, tag: int, rank: int, world_size: int) -> None:
    """Refuse a peer of a send or receive that is no other rank, and a tag out of range.

    Raises:
        ValueError: see above.
    """
    if peer is not None:
        check_rank(label, peer, rank, world_size)
    if peer == rank:
        raise ValueError(
            f"{rank_prefix(rank, world_size)} {label}={peer} is this rank itself; "
            "send and recv connect two ranks"
        )
    if not 0 <= tag <= MAX_TAG:
        raise ValueError(f"tag={tag} is out of range; expected 0 to {MAX_TAG}")


def flat_bytes(array: Array) -> Array:
    """The memory of a C-contiguous array as (nbytes,) uint8."""
    return array.reshape(-1).view(np.uint8)


def _rows(array: Array) -> list[Array]:
    return [flat_bytes(array[i]) for i in range(array.shape[0])]


def _placed(call: Call, first: Array, *others: Array) -> Call:
    """`call`, with the device on which its arrays live.

    Raises:
        ValueError: they live on several.
    """
    if type(first) is np.ndarray and all(type(other) is np.ndarray for other in others):
        return call
    found = device_of(first)
    for other in others:
        if device_of(other) != found:
            raise ValueError(
                f"{call.kind.name.lower()} was given arrays on {found} and {device_of(other)}; all arrays "
                "of a call have to live on one device"
            )
    call.device = None if type(first) is np.ndarray else found
    return call


def _overlap(first: Array, second: Array) -> bool:
    if device_of(first) != device_of(second):
        return False
    (start, end), (other_start, other_end) = span(first), span(second)
    return start < other_end and other_start < end


def reduction(kind: Kind, array: Array, op: ReduceOp | str) -> Call:
    """The call of an `all_reduce` or `reduce`."""
    check_array("array", array, writeable=True)
    chosen = ReduceOp.of(op)
    check_reducible(chosen, array.dtype)
    return _in_place(Call(kind, op=chosen), array)


def broadcast(array: Array, *, writeable: bool) -> Call:
    """The call of a `broadcast`."""
    check_array("array", array, writeable=writeable)
    return _in_place(Call(Kind.BROADCAST), array)


def _in_place(call: Call, array: Array) -> Call:
    call.dtype, call.shape, call.columns = array.dtype, array.shape, array.size
    call.target = array.reshape(-1)
    call.source = call.target.reshape(1, -1)
    return _placed(call, array)


def all_gather(out: Array, array: Array, world_size: int) -> Call:
    """The call of an `all_gather`."""
    check_array("array", array)
    check_array("out", out, writeable=True)
    _check_like("out", out, (world_size, *array.shape), array.dtype, "(world_size, *array.shape)")
    call = Call(
        Kind.ALL_GATHER,
        dtype=array.dtype,
        shape=array.shape,
        columns=array.size,
        source=array.reshape(1, array.size),
        target=out.reshape(world_size, array.size),
    )
    return _placed(call, array, out)


def reduce_scatter(out: Array, array: Array, op: ReduceOp | str, world_size: int) -> Call:
    """The call of a `reduce_scatter`."""
    check_array("array", array)
    check_array("out", out, writeable=True)
    chosen = ReduceOp.of(op)
    check_reducible(chosen, array.dtype)
    length = _part_length("reduce_scatter", array, world_size)
    expected = (length, *array.shape[1:])
    _check_like("out", out, expected, array.dtype, "a part of array")
    call = Call(
        Kind.REDUCE_SCATTER,
        op=chosen,
        dtype=array.dtype,
        shape=array.shape,
        rows=world_size,
        columns=out.size,
        source=array.reshape(world_size, out.size),
        target=out.reshape(-1),
    )
    return _placed(call, array, out)


def all_to_all(out: Array, array: Array, world_size: int) -> Call:
    """The call of an `all_to_all`."""
    check_array("array", array)
    check_array("out", out, writeable=True)
    _part_length("all_to_all", array, world_size)
    _check_like("out", out, array.shape, array.dtype, "array.shape")
    if array.size and _overlap(out, array):
        raise ValueError("all_to_all needs out and array to be different memory")
    columns = array.size // world_size
    call = Call(
        Kind.ALL_TO_ALL,
        dtype=array.dtype,
        shape=array.shape,
        rows=world_size,
        columns=columns,
        source=array.reshape(world_size, columns),
        target=out.reshape(world_size, columns),
    )
    return _placed(call, array, out)


def all_gather_uneven(outs: Sequence[Array], array: Array) -> Call:
    """The call of an `all_gather_uneven`; `outs` has one array for each rank."""
    check_array("array", array)
    _check_parts("outs", outs, array.dtype, writeable=True)
    sent = flat_bytes(array)
    parts = Parts([sent] * len(outs), [flat_bytes(out) for out in outs], same_to_all=True)
    call = _placed(Call(Kind.ALL_GATHER), array, *outs)
    return _in_parts(call, parts, array.dtype, array.size)


def reduce_scatter_uneven(out: Array, arrays: Sequence[Array], op: ReduceOp | str) -> Call:
    """The call of a `reduce_scatter_uneven`; `arrays` has one array for each rank."""
    check_array("out", out, writeable=True)
    _check_parts("arrays", arrays, out.dtype)
    chosen = ReduceOp.of(op)
    check_reducible(chosen, out.dtype)
    call = _placed(Call(Kind.REDUCE_SCATTER, op=chosen), out, *arrays)
    come = namespace_of(out).empty((len(arrays), out.size), out.dtype)
    target = out.reshape(-1)
    parts = Parts(
        [flat_bytes(array) for array in arrays],
        _rows(come),
        finish=lambda: reduce_arrays([come[i] for i in range(len(arrays))], [target], chosen),
    )
    size = sum(array.size for array in arrays)
    return _in_parts(call, parts, out.dtype, size)


def all_to_all_uneven(outs: Sequence[Array], arrays: Sequence[Array]) -> Call:
    """The call of an `all_to_all_uneven`; both lists have one array for each rank."""
    dtype = arrays[0].dtype if len(arrays) and is_array(arrays[0]) else None
    _check_parts("arrays", arrays, dtype)
    _check_parts("outs", outs, dtype, writeable=True)
    if any(_overlap(out, array) for out in outs for array in arrays if array.size and out.size):
        raise ValueError("all_to_all_uneven needs outs and arrays to be different memory")
    parts = Parts([flat_bytes(array) for array in arrays], [flat_bytes(out) for out in outs])
    size = sum(array.size for array in arrays)
    call = _placed(Call(Kind.ALL_TO_ALL), *arrays, *outs)
    return _in_parts(call, parts, arrays[0].dtype, size)


def gather(out: Array | None, array: Array, root: int, rank: int, world_size: int) -> Call:
    """The call of a `gather`; `out` is looked at on the root only."""
    check_array("array", array)
    lengths = np.zeros((world_size, world_size), np.int64)
    lengths[:, root] = array.nbytes
    outgoing = [_NOTHING] * world_size
    outgoing[root] = flat_bytes(array)
    incoming = [_NOTHING] * world_size
    if rank == root:
        if out is None:
            raise ValueError("gather needs out on the root rank, got None")
        check_array("out", out, writeable=True)
        expected = (world_size, *array.shape)
        _check_like("out", out, expected, array.dtype, "(world_size, *array.shape)")
        incoming = _rows(out.reshape(world_size, array.size))
    at_root = (out,) if rank == root and out is not None else ()
    call = _placed(Call(Kind.GATHER, root=root, shape=array.shape), array, *at_root)
    return _in_parts(call, Parts(outgoing, incoming, lengths), array.dtype, array.size)


def scatter(out: Array, array: Array | None, root: int, rank: int, world_size: int) -> Call:
    """The call of a `scatter`; `array` is looked at on the root only."""
    check_array("out", out, writeable=True)
    lengths = np.zeros((world_size, world_size), np.int64)
    lengths[root] = out.nbytes
    incoming = [_NOTHING] * world_size
    incoming[root] = flat_bytes(out)
    outgoing = [_NOTHING] * world_size
    if rank == root:
        if array is None:
            raise ValueError("scatter needs array on the root rank, got None")
        check_array("array", array)
        _check_like("array", array, (world_size, *out.shape), out.dtype, "(world_size, *out.shape)")
        outgoing = _rows(array.reshape(world_size, out.size))
    at_root = (array,) if rank == root and array is not None else ()
    call = _placed(Call(Kind.SCATTER, root=root, shape=out.shape), out, *at_root)
    return _in_parts(call, Parts(outgoing, incoming, lengths), out.dtype, out.size)


_NOTHING = np.empty(0, np.uint8)


def _in_parts(call: Call, parts: Parts, dtype: np.dtype[Any], size: int) -> Call:
    call.dtype, call.columns, call.parts = dtype, size, parts
    if call.is_uneven:
        call.source = parts.sizes()
    return call


def check_count(label: str, arrays: Sequence[Array], world_size: int) -> None:
    """Refuse a list that has not one array for each rank.

    Raises:
        ValueError: see above.
    """
    if len(arrays) != world_size:
        raise ValueError(
            f"{label} has to have one array for each of {world_size} ranks, got {len(arrays)}"
        )


def _check_parts(
    label: str, arrays: Sequence[Array], dtype: np.dtype[Any] | None, *, writeable: bool = False
) -> None:
    for rank, array in enumerate(arrays):
        check_array(f"{label}[{rank}]", array, writeable=writeable)
        if array.dtype != dtype:
            raise ValueError(
                f"{label}[{rank}] has dtype {array.dtype}; expected {dtype}, as the other arrays "
                "of the call have"
            )


def _part_length(call: str, array: Array, world_size: int) -> int:
    if array.ndim == 0 or array.shape[0] % world_size:
        raise ValueError(
            f"{call} splits the first dimension among {world_size} ranks, which does not divide "
            f"shape {array.shape}; pad it to a multiple of {world_size}"
        )
    return array.shape[0] // world_size


def _check_like(
    label: str, array: Array, shape: tuple[int, ...], dtype: np.dtype[Any], meaning: str
) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{label} has shape {array.shape} and dtype {array.dtype}; "
            f"expected shape {shape}, which is {meaning}, and dtype {dtype}"
        )
