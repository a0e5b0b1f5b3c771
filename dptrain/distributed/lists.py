"""Collectives over lists of tensors, one for each rank.

Owns: gathering, scattering and exchanging lists. Must not know: how bytes move.

Where all tensors of a list are alike they go as rows of one array; else the ranks tell each other
the sizes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.comm.communicator import ReduceOp
from dptrain.core.arrays import beside, namespace_of
from dptrain.core.tensor import Tensor
from dptrain.distributed.collectives import (
    Targets,
    checked,
    checked_list,
    fill,
    joined,
    read,
    reduction,
    same_dtype,
)
from dptrain.distributed.groups import Group, ProcessGroup, peer
from dptrain.distributed.work import Work

Array = np.ndarray[Any, Any]


def _one_each(op: str, name: str, tensors: Sequence[Tensor], size: int) -> None:
    if len(tensors) != size:
        raise RuntimeError(
            f"{op}: invalid tensor list: {name} must have one tensor for each rank (expected length {size}, "
            f"got {len(tensors)})"
        )


def all_gather(
    tensor_list: list[Tensor], tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill `tensor_list` with the tensors of all ranks, by rank; their sizes may differ.

    Raises:
        RuntimeError: not one tensor for each rank, or sizes that are not those of the ranks.
        ValueError: different dtypes.
    """
    outputs = checked_list("all_gather", tensor_list, "tensor_list")
    same_dtype("all_gather", [*outputs, checked("all_gather", tensor)])
    pg = joined("all_gather", group)
    if pg is None:
        return None
    _one_each("all_gather", "tensor_list", outputs, pg.size())
    source, targets = read(tensor), Targets(outputs)
    comm = pg.communicator
    if any(array.shape != source.shape for array in targets.arrays):
        if targets.arrays[pg.rank()].size != source.size:
            raise RuntimeError(
                f"all_gather: invalid tensor size at index {pg.rank()} (expected {source.shape}, got "
                f"{targets.arrays[pg.rank()].shape})"
            )
        works = [comm.all_gather_uneven(targets.arrays, source, async_op=async_op)]
        return targets.done(works, async_op, pg)
    out = namespace_of(source).empty((pg.size(), *source.shape), source.dtype)
    works = [comm.all_gather(out, source, async_op=async_op)]
    return targets.done(works, async_op, pg, lambda: _fill(targets.arrays, out))


def _stacked(arrays: Sequence[Array]) -> Array:
    with beside(arrays[0]):
        return np.stack(arrays)


def _fill(targets: Sequence[Array], rows: Array) -> None:
    for rank, target in enumerate(targets):
        fill(target, rows[rank])


def all_gather_coalesced(
    output_tensor_lists: list[list[Tensor]],
    input_tensor_list: list[Tensor],
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """`all_gather` of several tensors: `output_tensor_lists[r][i]` is tensor i of rank r."""
    op = "all_gather_coalesced"
    pg = joined(op, group)
    if pg is None:
        return None
    inputs = checked_list(op, input_tensor_list, "input_tensor_list")
    lists = [checked_list(op, one, "output_tensor_lists") for one in output_tensor_lists]
    if len(lists) != pg.size() or any(len(one) != len(inputs) for one in lists):
        raise RuntimeError(f"{op}: expected {pg.size()} lists of {len(inputs)} tensors")
    works = [
        all_gather([one[i] for one in lists], tensor, pg, async_op=True)
        for i, tensor in enumerate(inputs)
    ]
    return _together([work for work in works if work is not None], async_op)


def _together(works: list[Work], async_op: bool) -> Work | None:
    def finish() -> None:
        for work in works:
            work.wait()

    tensors = [tensor for work in works for tensor in work.result()]
    whole = Work([one for work in works for one in work._works], finish, tensors)
    if async_op:
        return whole
    whole.wait()
    return None


def gather(
    tensor: Tensor,
    gather_list: list[Tensor] | None = None,
    dst: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Fill `gather_list` on rank `dst` (default 0) with the tensors of all ranks, by rank.

    Raises:
        ValueError: `gather_list` is missing on `dst`, or given elsewhere.
        RuntimeError: not one tensor of the shape of `tensor` for each rank.
    """
    checked("gather", tensor)
    pg = joined("gather", group)
    if pg is None:
        return None
    root = peer("gather", pg, dst, group_dst, 0)
    source = read(tensor)
    if pg.rank() != root:
        if gather_list:
            raise ValueError(
                "Argument ``gather_list`` must NOT be specified on non-destination ranks."
            )
        work = pg.communicator.gather(None, source, root, async_op=async_op)
        return Targets([]).done([work], async_op, pg)
    if not gather_list:
        raise ValueError("Argument ``gather_list`` must be specified on destination rank.")
    targets = _alike("gather", "gather_list", gather_list, tensor, pg)
    out = namespace_of(source).empty((pg.size(), *source.shape), source.dtype)
    works = [pg.communicator.gather(out, source, root, async_op=async_op)]
    return targets.done(works, async_op, pg, lambda: _fill(targets.arrays, out))


def _alike(op: str, name: str, tensors: list[Tensor], model: Tensor, pg: ProcessGroup) -> Targets:
    found = checked_list(op, tensors, name)
    _one_each(op, name, found, pg.size())
    same_dtype(op, [*found, model])
    for i, tensor in enumerate(found):
        if tensor.shape != model.shape:
            raise RuntimeError(
                f"{op}: invalid tensor size at index {i} of {name} (expected {tuple(model.shape)}, got "
                f"{tuple(tensor.shape)})"
            )
    return Targets(found)


def scatter(
    tensor: Tensor,
    scatter_list: list[Tensor] | None = None,
    src: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Write tensor r of rank `src`'s `scatter_list` into `tensor` on rank r.

    Raises:
        ValueError: `scatter_list` is missing on `src`, or given elsewhere.
        RuntimeError: not one tensor of the shape of `tensor` for each rank.
    """
    checked("scatter", tensor)
    pg = joined("scatter", group)
    if pg is None:
        return None
    root = peer("scatter", pg, src, group_src, 0)
    rows = None
    if pg.rank() == root:
        if not scatter_list:
            raise ValueError("Argument ``scatter_list`` must be specified on source rank.")
        found = checked_list("scatter", scatter_list, "scatter_list")
        _one_each("scatter", "scatter_list", found, pg.size())
        same_dtype("scatter", [*found, tensor])
        for i, one in enumerate(found):
            if one.shape != tensor.shape:
                raise RuntimeError(
                    f"scatter: invalid tensor size at index {i} of scatter_list (expected "
                    f"{tuple(tensor.shape)}, got {tuple(one.shape)})"
                )
        rows = _stacked([read(one) for one in found])
    elif scatter_list:
        raise ValueError("Argument ``scatter_list`` must NOT be specified on non-source ranks.")
    targets = Targets([tensor])
    work = pg.communicator.scatter(targets.arrays[0], rows, root, async_op=async_op)
    return targets.done([work], async_op, pg)


def reduce_scatter(
    output: Tensor,
    input_list: list[Tensor],
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Write the reduction of all ranks' `input_list[rank]` into `output`; sizes may differ by place.

    Raises:
        RuntimeError: not one tensor for each rank, or `output` has another size than its place.
    """
    checked("reduce_scatter", output, "output")
    found = checked_list("reduce_scatter", input_list, "input_list")
    same_dtype("reduce_scatter", [*found, output])
    pg = joined("reduce_scatter", group)
    if pg is None:
        return None
    _one_each("reduce_scatter", "input_list", found, pg.size())
    if found[pg.rank()].numel() != output.numel():
        raise RuntimeError(
            f"reduce_scatter: invalid tensor size at index {pg.rank()} of input_list: it has "
            f"{found[pg.rank()].numel()} elements, output {output.numel()}"
        )
    chosen, targets = reduction(op, output), Targets([output])
    sources, out, comm = [read(one) for one in found], targets.arrays[0], pg.communicator
    if len({source.shape for source in sources}) == 1:
        work = comm.reduce_scatter(
            out.reshape(1, *sources[0].shape), _stacked(sources), chosen, async_op=async_op
        )
    else:
        work = comm.reduce_scatter_uneven(out, sources, chosen, async_op=async_op)
    return targets.done([work], async_op, pg)


def all_to_all(
    output_tensor_list: list[Tensor],
    input_tensor_list: list[Tensor],
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send tensor i to rank i; tensor j of `output_tensor_list` is what rank j sent."""
    outputs = checked_list("all_to_all", output_tensor_list, "output_tensor_list")
    inputs = checked_list("all_to_all", input_tensor_list, "input_tensor_list")
    same_dtype("all_to_all", [*outputs, *inputs])
    pg = joined("all_to_all", group)
    if pg is None:
        return None
    _one_each("all_to_all", "output_tensor_list", outputs, pg.size())
    _one_each("all_to_all", "input_tensor_list", inputs, pg.size())
    targets = Targets(outputs)
    sources = [read(one) for one in inputs]
    work = pg.communicator.all_to_all_uneven(targets.arrays, sources, async_op=async_op)
    return targets.done([work], async_op, pg)
