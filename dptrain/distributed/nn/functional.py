"""Collectives through which gradients flow.

Owns: the derivative of each collective, which is a collective itself. Must not know: how either
moves its data.

The loss is the sum of the ranks' losses: what a rank's input contributes to the others' outputs comes
back from them. Every rank has to run backward, through the same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dptrain.autograd import Function
from dptrain.comm.communicator import ReduceOp
from dptrain.core.creation import empty, empty_like, zeros_like
from dptrain.core.ops.join import _cat as cat
from dptrain.core.tensor import Tensor
from dptrain.distributed import collectives, lists
from dptrain.distributed.groups import Group, get_rank, get_world_size


def _alike(tensor: Tensor, group: Group) -> list[Tensor]:
    return [empty_like(tensor) for _ in range(get_world_size(group))]


class _AllReduce(Function):
    @staticmethod
    def forward(ctx: Any, op: ReduceOp, group: Group, tensor: Tensor) -> Tensor:
        ctx.op, ctx.group = op, group
        result = tensor.clone()
        collectives.all_reduce(result, op, group)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, _AllReduce.apply(ctx.op, ctx.group, grad)


class _Broadcast(Function):
    @staticmethod
    def forward(ctx: Any, src: int, group: Group, tensor: Tensor) -> Tensor:
        ctx.src, ctx.group = src, group
        result = tensor.clone()
        collectives.broadcast(result, src, group)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found = _Reduce.apply(ctx.src, ReduceOp.SUM, ctx.group, grad)
        return None, None, found if get_rank() == ctx.src else zeros_like(found)


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, dst: int, op: ReduceOp, group: Group, tensor: Tensor) -> Tensor:
        ctx.dst, ctx.group = dst, group
        result = tensor.clone()
        collectives.reduce(result, dst, op, group)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, None, _Broadcast.apply(ctx.dst, ctx.group, grad)


class _AllGather(Function):
    @staticmethod
    def forward(ctx: Any, group: Group, tensor: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        found = _alike(tensor, group)
        lists.all_gather(found, tensor, group)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, _ReduceScatter.apply(ReduceOp.SUM, ctx.group, *grads)


class _ReduceScatter(Function):
    @staticmethod
    def forward(ctx: Any, op: ReduceOp, group: Group, *tensors: Tensor) -> Tensor:
        ctx.group = group
        result = empty_like(tensors[get_rank(group)])
        lists.reduce_scatter(result, list(tensors), op, group)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, *_AllGather.apply(ctx.group, grad)


class _AllToAll(Function):
    @staticmethod
    def forward(
        ctx: Any, group: Group, shapes: Sequence[Sequence[int]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.shapes = [tuple(tensor.shape) for tensor in tensors]
        found = [empty(*shape, dtype=tensors[0].dtype) for shape in shapes]
        lists.all_to_all(found, list(tensors), group)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, *_AllToAll.apply(ctx.group, ctx.shapes, *grads)


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, dst: int, group: Group, tensor: Tensor) -> tuple[Tensor, ...]:
        ctx.dst, ctx.group = dst, group
        at_root = get_rank() == dst
        found = _alike(tensor, group) if at_root else None
        lists.gather(tensor, found, dst, group)
        return tuple(found or (zeros_like(tensor) for _ in range(get_world_size(group))))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, _Scatter.apply(ctx.dst, ctx.group, *grads)


class _Scatter(Function):
    @staticmethod
    def forward(ctx: Any, src: int, group: Group, *tensors: Tensor) -> Tensor:
        ctx.src, ctx.group = src, group
        result = empty_like(tensors[0])
        lists.scatter(result, list(tensors) if get_rank() == src else None, src, group)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, *_Gather.apply(ctx.src, ctx.group, grad)


def all_reduce(tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: Group = None) -> Tensor:
    """The reduction over the ranks, as a new tensor; its gradient is reduced in the same way."""
    return _AllReduce.apply(op, group, tensor)


def broadcast(tensor: Tensor, src: int, group: Group = None) -> Tensor:
    """The tensor of rank `src`, as a new tensor; all ranks' gradients add up there."""
    return _Broadcast.apply(src, group, tensor)


def reduce(tensor: Tensor, dst: int, op: ReduceOp = ReduceOp.SUM, group: Group = None) -> Tensor:
    """The reduction on rank `dst`, as a new tensor; that rank's gradient goes to all."""
    return _Reduce.apply(dst, op, group, tensor)


def all_gather(tensor: Tensor, group: Group = None) -> tuple[Tensor, ...]:
    """The tensors of all ranks, by rank; each gets the sum of the gradients of its copies."""
    return _AllGather.apply(group, tensor)


def gather(tensor: Tensor, dst: int = 0, group: Group = None) -> tuple[Tensor, ...]:
    """The tensors of all ranks, by rank, on rank `dst`; zeros elsewhere."""
    return _Gather.apply(dst, group, tensor)


def scatter(tensors: Sequence[Tensor], src: int = 0, group: Group = None) -> Tensor:
    """Tensor r of rank `src`, on rank r; the gradients are gathered on `src`."""
    return _Scatter.apply(src, group, *tensors)


def reduce_scatter(
    output: Tensor, input_list: Sequence[Tensor], op: ReduceOp = ReduceOp.SUM, group: Group = None
) -> Tensor:
    """The reduction of the ranks' `input_list[rank]`, as a new tensor of the shape of `output`."""
    return _ReduceScatter.apply(op, group, *input_list).reshape(output.shape)


def all_to_all(
    output_tensor_list: Sequence[Tensor], input_tensor_list: Sequence[Tensor], group: Group = None
) -> tuple[Tensor, ...]:
    """What each rank has for this one, as new tensors of the shapes of `output_tensor_list`."""
    shapes = [tuple(tensor.shape) for tensor in output_tensor_list]
    return _AllToAll.apply(group, shapes, *input_tensor_list)


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: Group = None,
) -> Tensor:
    """Part i of `input` goes to rank i; the result is what came, by rank, in the shape of `output`."""
    size = get_world_size(group)
    coming = list(output_split_sizes or [output.shape[0] // size] * size)
    going = list(input_split_sizes or [input.shape[0] // size] * size)
    found = _AllToAll.apply(
        group, [(rows, *output.shape[1:]) for rows in coming], *input.split(going)
    )
    return cat(list(found))
