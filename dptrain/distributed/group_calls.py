"""A process group's own collectives, as older scripts call them: `group.allreduce([tensor]).wait()`.

Owns: `GroupCalls`, the base of `ProcessGroup`. Must not know: how they are carried out.

Each is the function of `dptrain.distributed` with `async_op=True`. Tensors may come in a list of one; roots and
peers are ranks of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from dptrain.comm.communicator import ReduceOp


def _run(place: str, name: str, *args: Any, **kwargs: Any) -> Any:
    # The collectives are written over groups; they are looked up when they are used.
    return getattr(import_module(f"dptrain.distributed.{place}"), name)(*args, **kwargs)


def _one(value: Any) -> Any:
    """The tensor, or the list of one for each rank, that may be the only thing in a list."""
    alone = isinstance(value, (list, tuple)) and len(value) == 1
    return value[0] if alone else value


class GroupCalls:
    """Collectives of one group; each returns a `Work`."""

    def allreduce(self, tensors: Any, op: Any = ReduceOp.SUM, timeout: Any = None) -> Any:
        """See `all_reduce`."""
        return self._async("collectives", "all_reduce", _one(tensors), op)

    def broadcast(self, tensors: Any, root: int = 0, timeout: Any = None) -> Any:
        """See `broadcast`."""
        return self._async("collectives", "broadcast", _one(tensors), group_src=root)

    def reduce(
        self, tensors: Any, root: int = 0, op: Any = ReduceOp.SUM, timeout: Any = None
    ) -> Any:
        """See `reduce`."""
        return self._async("collectives", "reduce", _one(tensors), op=op, group_dst=root)

    def allgather(self, output_tensors: Any, input_tensors: Any, timeout: Any = None) -> Any:
        """See `all_gather`."""
        return self._async("lists", "all_gather", _nested(output_tensors), _one(input_tensors))

    def gather(
        self, output_tensors: Any, input_tensors: Any, root: int = 0, timeout: Any = None
    ) -> Any:
        """See `gather`; on other ranks than the root `output_tensors` is empty."""
        outputs = _nested(output_tensors) or None
        return self._async("lists", "gather", _one(input_tensors), outputs, group_dst=root)

    def scatter(
        self, output_tensors: Any, input_tensors: Any, root: int = 0, timeout: Any = None
    ) -> Any:
        """See `scatter`; on other ranks than the root `input_tensors` is empty."""
        inputs = _nested(input_tensors) or None
        return self._async("lists", "scatter", _one(output_tensors), inputs, group_src=root)

    def reduce_scatter(
        self, output_tensors: Any, input_tensors: Any, op: Any = ReduceOp.SUM, timeout: Any = None
    ) -> Any:
        """See `reduce_scatter`."""
        inputs = _nested(input_tensors)
        return self._async("lists", "reduce_scatter", _one(output_tensors), inputs, op)

    def alltoall(self, output_tensors: Any, input_tensors: Any) -> Any:
        """See `all_to_all`."""
        return self._async("lists", "all_to_all", output_tensors, input_tensors)

    def alltoall_base(
        self,
        output: Any,
        input: Any,
        output_split_sizes: Sequence[int],
        input_split_sizes: Sequence[int],
        timeout: Any = None,
    ) -> Any:
        """See `all_to_all_single`; no sizes: equal parts."""
        sizes = list(output_split_sizes) or None, list(input_split_sizes) or None
        return self._async("collectives", "all_to_all_single", output, input, *sizes)

    def barrier(self, timeout: Any = None) -> Any:
        """See `barrier`."""
        return self._async("collectives", "barrier")

    def send(self, tensors: Any, dstRank: int, tag: int = 0) -> Any:
        """See `isend`."""
        return _run("messages", "isend", _one(tensors), group=self, tag=tag, group_dst=dstRank)

    def recv(self, tensors: Any, srcRank: int, tag: int = 0) -> Any:
        """See `irecv`."""
        return _run("messages", "irecv", _one(tensors), group=self, tag=tag, group_src=srcRank)

    def _async(self, place: str, name: str, *args: Any, **kwargs: Any) -> Any:
        return _run(place, name, *args, group=self, async_op=True, **kwargs)


def _nested(value: Any) -> Any:
    """A list of tensors, which may itself be the only thing in a list."""
    inner = value[0] if len(value) == 1 else None
    return inner if isinstance(inner, (list, tuple)) else value
