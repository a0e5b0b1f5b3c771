"""`torch.distributed`'s names over tensors, on top of `dptrain.comm`.

Owns: the translation between tensors and arrays, names and defaults. Must not know: backends.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np

from dptrain.comm import default as _default
from dptrain.comm.communicator import Communicator, ReduceOp, Work
from dptrain.comm.env import discover, thread_count_is_set
from dptrain.core import random
from dptrain.core.tensor import Tensor
from dptrain.core.threads import set_num_threads, usable_cores

__all__ = [
    "ReduceOp",
    "Work",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "destroy_process_group",
    "get_backend",
    "get_local_rank",
    "get_local_world_size",
    "get_rank",
    "get_world_size",
    "init_process_group",
    "is_available",
    "is_initialized",
    "recv",
    "reduce",
    "reduce_scatter_tensor",
    "send",
]

#: PyTorch's backend names -> ours. On the CPU both gloo and mpi mean MPI.
_BACKENDS = {"mpi": "mpi", "gloo": "mpi", "serial": "serial"}


def is_available() -> bool:
    """Whether the package can communicate at all: always."""
    return True


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: timedelta | float | None = None,
    world_size: int = -1,
    rank: int = -1,
) -> None:
    """Connect this process with the other ranks that the launcher started.

    The bootstrap is MPI's: under `dprun`, `mpirun` or `srun` the ranks find each other; without a
    launcher this is a world of one, and the same script runs.

    Args:
        backend: "mpi" or "gloo" (both: CPU tensors over MPI); None chooses.
        init_method: None or "env://"; addresses are MPI's business.
        timeout: of every collective; seconds or a timedelta; default 30 minutes.
        world_size, rank: if given, they must be what the launcher says.

    Raises:
        RuntimeError: initialised already; no MPI; the launcher and MPI disagree.
        ValueError: an unknown backend, or a rank or size that differs from the launcher's.
    """
    chosen = None if backend is None else _BACKENDS.get(backend.lower())
    if backend is not None and chosen is None:
        raise ValueError(
            f"backend {backend!r} is not available in this version; expected one of {', '.join(_BACKENDS)}"
        )
    if init_method not in (None, "env://"):
        raise ValueError(
            f"init_method={init_method!r} is not used: MPI connects the ranks; leave it out or pass 'env://'"
        )
    found = discover()
    for asked, actual, what in (
        (world_size, found.world_size, "world_size"),
        (rank, found.rank, "rank"),
    ):
        if asked not in (-1, actual):
            raise ValueError(
                f"{what}={asked} was asked for, but the launcher ({found.source}) says {actual}; start the "
                "script with `dprun -n N` and leave it out"
            )
    if chosen == "mpi" and found.world_size == 1:
        chosen = None  # one process: a world of one needs no MPI library
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    communicator = _default.init(chosen, *(() if seconds is None else (seconds,)))
    if communicator.local_world_size > 1 and not thread_count_is_set():
        # dprun sets the variables itself; under mpirun every rank would start a thread per core.
        set_num_threads(max(1, usable_cores() // communicator.local_world_size))
    # Ranks draw different dropout masks; parameters and the user's draws stay equal.
    random.set_shard(communicator.rank)


def destroy_process_group() -> None:
    """Leave the group. Ranks that still wait for this one get an error that names it."""
    if not _default.is_initialized():
        raise RuntimeError("destroy_process_group: no process group was initialized")
    _default.default_communicator().close()
    _default.set_default(None, process_wide=True)
    random.set_shard(0)


def is_initialized() -> bool:
    """Whether `init_process_group` was called."""
    return _default.is_initialized()


def _group(group: Communicator | None) -> Communicator:
    if group is not None:
        return group
    if not _default.is_initialized():
        raise ValueError(
            "default process group has not been initialized, please make sure to call init_process_group"
        )
    return _default.default_communicator()


def get_rank(group: Communicator | None = None) -> int:
    """This process's rank in the group."""
    return _group(group).rank


def get_world_size(group: Communicator | None = None) -> int:
    """Number of ranks in the group."""
    return _group(group).world_size


def get_local_rank(group: Communicator | None = None) -> int:
    """Position of this process among the ranks of its host."""
    return _group(group).local_rank


def get_local_world_size(group: Communicator | None = None) -> int:
    """Number of ranks on this host."""
    return _group(group).local_world_size


def get_backend(group: Communicator | None = None) -> str:
    """Name of the backend: "mpi", "thread" or "serial"."""
    return _group(group).backend


def _check(op: str, tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: expected a Tensor, got {type(tensor).__name__}")
    if tensor.requires_grad and tensor.is_leaf is False:
        raise RuntimeError(f"{op}: the tensor has a history; pass tensor.detach()")
    return tensor


class _Staged(Work):
    """A collective on a tensor that is not contiguous: copied back when it is waited for."""

    def __init__(self, work: Work, copy_back: Callable[[], None]) -> None:
        self._work, self._copy_back = work, copy_back

    def wait(self, timeout: float | None = None) -> bool:
        self._work.wait(timeout)
        self._copy_back()
        return True

    def is_completed(self) -> bool:
        return self._work.is_completed()


def _in_place(
    op: str, tensor: Any, async_op: bool, call: Callable[[np.ndarray], Work]
) -> Work | None:
    """Run a collective on the tensor's memory, through a contiguous copy where it has gaps."""
    target = _check(op, tensor)
    array = target._array
    target._bump_version()
    if array.flags.c_contiguous:
        work = call(array)
    else:
        packed = np.ascontiguousarray(array)
        work = _Staged(call(packed), lambda: np.copyto(array, packed.reshape(array.shape)))
    if async_op:
        return work
    work.wait()
    return None


def all_reduce(
    tensor: Tensor,
    op: ReduceOp | str = ReduceOp.SUM,
    group: Communicator | None = None,
    async_op: bool = False,
) -> Work | None:
    """Replace the tensor on every rank by the reduction over all ranks.

    Returns:
        A `Work` to wait for with `async_op`, else None.
    """
    comm = _group(group)
    return _in_place(
        "all_reduce", tensor, async_op, lambda a: comm.all_reduce(a, op, async_op=async_op)
    )


def reduce(
    tensor: Tensor,
    dst: int = 0,
    op: ReduceOp | str = ReduceOp.SUM,
    group: Communicator | None = None,
    async_op: bool = False,
) -> Work | None:
    """Replace the tensor on rank `dst` by the reduction over all ranks."""
    comm = _group(group)
    return _in_place(
        "reduce", tensor, async_op, lambda a: comm.reduce(a, dst, op, async_op=async_op)
    )


def broadcast(
    tensor: Tensor, src: int = 0, group: Communicator | None = None, async_op: bool = False
) -> Work | None:
    """Replace the tensor on every rank by that of rank `src`."""
    comm = _group(group)
    return _in_place(
        "broadcast", tensor, async_op, lambda a: comm.broadcast(a, src, async_op=async_op)
    )


def all_gather_into_tensor(
    output_tensor: Tensor,
    input_tensor: Tensor,
    group: Communicator | None = None,
    async_op: bool = False,
) -> Work | None:
    """Fill `output_tensor` with the ranks' tensors, one after another (or stacked) along dim 0."""
    comm = _group(group)
    source = np.ascontiguousarray(_check("all_gather_into_tensor", input_tensor)._array)
    wanted = comm.world_size * source.size
    if output_tensor.numel() != wanted:
        raise ValueError(
            f"all_gather_into_tensor: output_tensor must have {wanted} elements ({comm.world_size} x "
            f"{source.size}), got {output_tensor.numel()}"
        )
    return _in_place(
        "all_gather_into_tensor",
        output_tensor,
        async_op,
        lambda out: comm.all_gather(
            out.reshape((comm.world_size, *source.shape)), source, async_op=async_op
        ),
    )


def all_gather(
    tensor_list: list[Tensor],
    tensor: Tensor,
    group: Communicator | None = None,
    async_op: bool = False,
) -> Work | None:
    """Fill `tensor_list` with the tensors of all ranks, by rank."""
    comm = _group(group)
    if len(tensor_list) != comm.world_size:
        raise ValueError(
            f"all_gather: tensor_list must have one tensor per rank ({comm.world_size}), got {len(tensor_list)}"
        )
    source = np.ascontiguousarray(_check("all_gather", tensor)._array)
    out = np.empty((comm.world_size, *source.shape), source.dtype)

    def copy_back() -> None:
        for target, values in zip(tensor_list, out, strict=True):
            np.copyto(target._array, values)
            target._bump_version()

    work = _Staged(comm.all_gather(out, source, async_op=async_op), copy_back)
    if async_op:
        return work
    work.wait()
    return None


def reduce_scatter_tensor(
    output: Tensor,
    input: Tensor,
    op: ReduceOp | str = ReduceOp.SUM,
    group: Communicator | None = None,
    async_op: bool = False,
) -> Work | None:
    """Write this rank's part of the reduction of `input` (split along dim 0) into `output`."""
    comm = _group(group)
    source = np.ascontiguousarray(_check("reduce_scatter_tensor", input)._array)
    return _in_place(
        "reduce_scatter_tensor",
        output,
        async_op,
        lambda out: comm.reduce_scatter(out, source, op, async_op=async_op),
    )


def all_to_all_single(
    output: Tensor, input: Tensor, group: Communicator | None = None, async_op: bool = False
) -> Work | None:
    """Send part i of `input` (split evenly along dim 0) to rank i; `output` collects what came."""
    comm = _group(group)
    source = np.ascontiguousarray(_check("all_to_all_single", input)._array)
    return _in_place(
        "all_to_all_single",
        output,
        async_op,
        lambda out: comm.all_to_all(out, source, async_op=async_op),
    )


def send(tensor: Tensor, dst: int, group: Communicator | None = None, tag: int = 0) -> None:
    """Send the tensor to rank `dst`."""
    _group(group).send(np.ascontiguousarray(_check("send", tensor)._array), dst, tag).wait()


def recv(tensor: Tensor, src: int, group: Communicator | None = None, tag: int = 0) -> int:
    """Receive into the tensor from rank `src`; returns `src`."""
    comm = _group(group)
    _in_place("recv", tensor, False, lambda a: comm.recv(a, src, tag))
    return src


def barrier(group: Communicator | None = None) -> None:
    """Wait until every rank has come here."""
    _group(group).barrier()


def all_gather_object(object_list: list[Any], obj: Any, group: Communicator | None = None) -> None:
    """Fill `object_list` with the picklable objects of all ranks, by rank."""
    found = _group(group).all_gather_object(obj)
    if len(object_list) != len(found):
        raise ValueError(
            f"all_gather_object: object_list must have one place per rank ({len(found)}), got {len(object_list)}"
        )
    object_list[:] = found


def broadcast_object_list(
    object_list: list[Any], src: int = 0, group: Communicator | None = None
) -> None:
    """Replace the objects in the list by those of rank `src`."""
    object_list[:] = _group(group).broadcast_object(list(object_list), src)
