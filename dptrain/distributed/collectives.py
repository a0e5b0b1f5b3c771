"""Collectives over one tensor per rank.

Owns: the translation of tensors to arrays, and of PyTorch's calls to the communicator's.
Must not know: how bytes move.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from dptrain.comm.communicator import Communicator, ReduceOp
from dptrain.comm.reduction import check_reducible
from dptrain.comm.work import Work as ArrayWork
from dptrain.core.arrays import address, beside, namespace_of
from dptrain.core.history import check_writeable
from dptrain.core.tensor import Tensor
from dptrain.distributed.groups import Group, ProcessGroup, member, peer, seconds
from dptrain.distributed.work import Work

Array = np.ndarray[Any, Any]


def joined(op: str, group: Group) -> ProcessGroup | None:
    """The group of a collective; None, with a warning, on a rank outside."""
    found = member(group)
    if found is None:
        warnings.warn(f"{op}: this rank does not belong to the given group", stacklevel=3)
    return found


def checked(op: str, tensor: Any, name: str = "tensor") -> Tensor:
    """`tensor`, if it is one.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{op}: Invalid function argument. Expected parameter `{name}` of type Tensor but got "
            f"{type(tensor)} instead."
        )
    return tensor


def checked_list(op: str, tensors: Any, name: str) -> list[Tensor]:
    """`tensors`, if it is a list of tensors.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(tensors, list | tuple) or not all(isinstance(t, Tensor) for t in tensors):
        raise TypeError(
            f"{op}: Invalid function argument. Expected parameter `{name}` of type list of Tensor but "
            f"got {type(tensors)} instead."
        )
    return list(tensors)


def same_dtype(op: str, tensors: Sequence[Tensor]) -> None:
    """Refuse tensors of several element types.

    Raises:
        ValueError: see above.
    """
    found = {str(t.dtype): None for t in tensors}
    if len(found) > 1:
        raise ValueError(
            f"{op}: Invalid usage of tensors with different dtypes: {' and '.join(found)}"
        )


def reduction(op: Any, tensor: Tensor) -> ReduceOp:
    """The operator that an argument names, for the values of `tensor`.

    Raises:
        TypeError: no operator.
        RuntimeError: one that has no meaning for the dtype.
    """
    if not isinstance(op, ReduceOp):
        raise TypeError(f"expected a ReduceOp, such as ReduceOp.SUM, got {op!r}")
    try:
        check_reducible(op, tensor._array.dtype)
    except TypeError as error:
        raise RuntimeError(str(error)) from None
    return op


def read(tensor: Tensor) -> Array:
    """The values of a tensor that is only read, without gaps."""
    with beside(tensor._array):
        values = namespace_of(tensor._array).ascontiguousarray(tensor._array)
        return values.reshape(tensor._array.shape)


def fill(target: Array, values: Array) -> None:
    """Copy values into an array on the same device."""
    with beside(target):
        np.copyto(target, values.reshape(target.shape))


class Targets:
    """Tensors that a collective writes: their own memory where that has no gaps, else a copy.

    Raises:
        RuntimeError: elements of a tensor share memory, as after `expand`.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        for tensor in tensors:
            check_writeable(tensor, "collective")
        self.arrays = [read(tensor) for tensor in tensors]
        for tensor in tensors:
            tensor._bump_version()

    def bring_home(self) -> None:
        """Copy back what was received into copies."""
        for tensor, array in zip(self._tensors, self.arrays, strict=True):
            if array.size and address(tensor._array) != address(array):
                fill(tensor._array, array)

    def done(
        self,
        works: Sequence[ArrayWork],
        async_op: bool,
        group: ProcessGroup,
        first: Callable[[], None] | None = None,
    ) -> Work | None:
        """The `Work` of calls that fill `arrays`, or None once they are over.

        Args:
            first: what is to be done before the arrays are complete.
        """

        def finish() -> None:
            if first is not None:
                first()
            self.bring_home()

        work = Work(works, finish, self._tensors, group)
        if async_op:
            return work
        work.wait()
        return None


def all_reduce(
    tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: Group = None, async_op: bool = False
) -> Work | None:
    """Replace the tensor on every rank by the reduction over all ranks.

    Returns:
        A `Work` to wait for with `async_op`, else None.
    """
    checked("all_reduce", tensor)
    pg = joined("all_reduce", group)
    if pg is None:
        return None
    chosen, targets = reduction(op, tensor), Targets([tensor])
    work = pg.communicator.all_reduce(targets.arrays[0], chosen, async_op=async_op)
    return targets.done([work], async_op, pg)


def all_reduce_coalesced(
    tensors: list[Tensor], op: ReduceOp = ReduceOp.SUM, group: Group = None, async_op: bool = False
) -> Work | None:
    """`all_reduce` of several tensors of one dtype, as one call."""
    found = checked_list("all_reduce_coalesced", tensors, "tensors")
    same_dtype("all_reduce_coalesced", found)
    pg = joined("all_reduce_coalesced", group)
    if pg is None or not found:
        return None
    chosen, targets = reduction(op, found[0]), Targets(found)
    with beside(targets.arrays[0]):
        flat = np.concatenate([array.reshape(-1) for array in targets.arrays])

    def cut() -> None:
        begin = 0
        for array in targets.arrays:
            fill(array, flat[begin : begin + array.size])
            begin += array.size

    work = pg.communicator.all_reduce(flat, chosen, async_op=async_op)
    return targets.done([work], async_op, pg, cut)


def reduce(
    tensor: Tensor,
    dst: int | None = None,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Replace the tensor on rank `dst` by the reduction; the others' tensors keep their values."""
    checked("reduce", tensor)
    pg = joined("reduce", group)
    if pg is None:
        return None
    root = peer("reduce", pg, dst, group_dst, None)
    chosen, targets = reduction(op, tensor), Targets([tensor])
    work = pg.communicator.reduce(targets.arrays[0], root, chosen, async_op=async_op)
    return targets.done([work], async_op, pg)


def broadcast(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Replace the tensor on every rank by that of rank `src`."""
    checked("broadcast", tensor)
    pg = joined("broadcast", group)
    if pg is None:
        return None
    root = peer("broadcast", pg, src, group_src, None)
    targets = Targets([tensor])
    work = pg.communicator.broadcast(targets.arrays[0], root, async_op=async_op)
    return targets.done([work], async_op, pg)


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill `output_tensor` with the ranks' tensors, one after another (or stacked) along dim 0.

    Raises:
        RuntimeError: `output_tensor` has not the size of all ranks' tensors together.
    """
    op = "all_gather_into_tensor"
    checked(op, output_tensor, "output_tensor")
    same_dtype(op, [output_tensor, checked(op, input_tensor, "input_tensor")])
    pg = joined(op, group)
    if pg is None:
        return None
    source = read(input_tensor)
    _sized(op, "output_tensor", output_tensor, pg.size() * source.size, f"{pg.size()} inputs")
    targets = Targets([output_tensor])
    out = targets.arrays[0].reshape((pg.size(), *source.shape))
    return targets.done([pg.communicator.all_gather(out, source, async_op=async_op)], async_op, pg)


def reduce_scatter_tensor(
    output: Tensor,
    input: Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Write this rank's part of the reduction of `input` (split along dim 0) into `output`.

    Raises:
        RuntimeError: `input` has not `world_size` times the size of `output`.
    """
    what = "reduce_scatter_tensor"
    checked(what, output, "output")
    same_dtype(what, [output, checked(what, input, "input")])
    pg = joined(what, group)
    if pg is None:
        return None
    chosen, source = reduction(op, input), read(input)
    _sized(what, "input", input, pg.size() * output.numel(), f"{pg.size()} outputs")
    targets = Targets([output])
    out, rows = targets.arrays[0].reshape(1, -1), source.reshape(pg.size(), -1)
    work = pg.communicator.reduce_scatter(out, rows, chosen, async_op=async_op)
    return targets.done([work], async_op, pg)


def _sized(op: str, name: str, tensor: Tensor, wanted: int, meaning: str) -> None:
    if tensor.numel() != wanted:
        raise RuntimeError(
            f"{op}: invalid tensor size: {name} must have {wanted} elements ({meaning}), got "
            f"{tensor.numel()}"
        )


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send part i of `input` to rank i; `output` collects what came, by rank.

    Args:
        output_split_sizes: rows of dim 0 that come from each rank; None or empty: equal.
        input_split_sizes: rows of dim 0 that go to each rank; None or empty: equal. Where one rank
            gives sizes, all have to.

    Raises:
        RuntimeError: sizes that do not fit the tensors or the number of ranks.
    """
    op = "all_to_all_single"
    checked(op, output, "output")
    same_dtype(op, [output, checked(op, input, "input")])
    pg = joined(op, group)
    if pg is None:
        return None
    source, targets = read(input), Targets([output])
    out = targets.arrays[0]
    if not output_split_sizes and not input_split_sizes:
        for name, array in (("output", out), ("input", source)):
            if array.ndim == 0 or array.shape[0] % pg.size():
                raise RuntimeError(
                    f"{op}: tensor's dim 0 does not divide equally across group size: {name} has shape "
                    f"{array.shape}, the group {pg.size()} ranks"
                )
        work = pg.communicator.all_to_all(out.reshape(source.shape), source, async_op=async_op)
    else:
        outs = _cut(op, out, output_split_sizes, pg.size())
        parts = _cut(op, source, input_split_sizes, pg.size())
        work = pg.communicator.all_to_all_uneven(outs, parts, async_op=async_op)
    return targets.done([work], async_op, pg)


def _cut(op: str, array: Array, sizes: Sequence[int] | None, count: int) -> list[Array]:
    """The parts of an array along dim 0."""
    if not sizes:
        if array.shape[0] % count:
            raise RuntimeError(
                f"{op}: tensor's dim 0 does not divide equally across group size: shape {array.shape}, "
                f"{count} ranks"
            )
        sizes = [array.shape[0] // count] * count
    if len(sizes) != count:
        raise RuntimeError(
            f"{op}: Number of tensor splits not equal to group size: {len(sizes)} splits, {count} ranks"
        )
    if sum(sizes) != array.shape[0] or min(sizes) < 0:
        raise RuntimeError(
            f"{op}: Split sizes don't match total dim 0 size: {list(sizes)} of {array.shape[0]} rows"
        )
    ends = np.cumsum(sizes)
    return [array[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def barrier(
    group: Group = None,
    async_op: bool = False,
    device_ids: Sequence[int] | None = None,
    timeout: timedelta | float | None = None,
) -> Work | None:
    """Wait until every rank has come here.

    Args:
        device_ids: accepted: with NCCL this rank's GPU is waited for, which is the only one it drives.
    """
    pg = joined("barrier", group)
    if pg is None:
        return None
    if not async_op:
        pg.communicator.barrier(timeout=seconds(timeout))
        return None
    # A reduction of nothing meets as a barrier does, and need not be waited for here.
    nothing = np.empty(0, np.uint8)
    return Work([pg.communicator.all_reduce(nothing, name="barrier", timeout=seconds(timeout))])


def monitored_barrier(
    group: Group = None, timeout: timedelta | float | None = None, wait_all_ranks: bool = False
) -> None:
    """A barrier that says which ranks have not come within the timeout.

    Args:
        wait_all_ranks: accepted; all missing ranks are always named.

    Raises:
        RuntimeError: ranks are missing; raised on all that have come.
    """
    pg = joined("monitored_barrier", group)
    if pg is not None:
        communicator: Communicator = pg.communicator
        communicator.barrier(name="monitored_barrier", timeout=seconds(timeout))
