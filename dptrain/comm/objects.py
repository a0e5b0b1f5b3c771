"""Objects between ranks, pickled: derived from the array calls of any communicator.

Owns: the functions that are the object methods of `Communicator`. Must not know: backends.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dptrain.comm.communicator import Communicator

Array = np.ndarray[Any, Any]


def broadcast_object(
    comm: Communicator, obj: Any, root: int = 0, *, name: str | None = None
) -> Any:
    """The object of rank `root`, on every rank (pickled; `obj` is ignored elsewhere)."""
    data = _pickled(obj) if comm.rank == root else np.empty(0, np.uint8)
    length = np.array([data.size], np.int64)
    comm.broadcast(length, root, name=name, async_op=False)
    if comm.rank == root:
        comm.broadcast(data, root, name=name, async_op=False)
        return obj
    data = np.empty(int(length[0]), np.uint8)
    comm.broadcast(data, root, name=name, async_op=False)
    return pickle.loads(data.data)


def all_gather_object(comm: Communicator, obj: Any, *, name: str | None = None) -> list[Any]:
    """The objects of all ranks, by rank, on every rank (pickled)."""
    data = _pickled(obj)
    lengths = np.empty((comm.world_size, 1), np.int64)
    comm.all_gather(lengths, np.array([data.size], np.int64), name=name, async_op=False)
    outs = [np.empty(int(length), np.uint8) for length in lengths[:, 0]]
    comm.all_gather_uneven(outs, data, name=name, async_op=False)
    return [pickle.loads(out.data) for out in outs]


def gather_object(
    comm: Communicator, obj: Any, root: int = 0, *, name: str | None = None
) -> list[Any] | None:
    """The objects of all ranks, by rank, on rank `root`; None on the others (pickled)."""
    mine, nothing = _pickled(obj), np.empty(0, np.uint8)
    sent = [mine if rank == root else nothing for rank in range(comm.world_size)]
    found = _exchange_pickled(comm, sent, name)
    return [pickle.loads(data.data) for data in found] if comm.rank == root else None


def scatter_object(
    comm: Communicator, objects: Sequence[Any] | None, root: int = 0, *, name: str | None = None
) -> Any:
    """`objects[rank]` of rank `root` (pickled; `objects` is ignored elsewhere)."""
    sent = [np.empty(0, np.uint8)] * comm.world_size
    if comm.rank == root:
        given = [] if objects is None else list(objects)
        if len(given) != comm.world_size:
            raise ValueError(
                f"scatter_object needs one object for each of {comm.world_size} ranks on the "
                f"root, got {len(given)}"
            )
        sent = [_pickled(obj) for obj in given]
    return pickle.loads(_exchange_pickled(comm, sent, name)[root].data)


def all_to_all_object(
    comm: Communicator, objects: Sequence[Any], *, name: str | None = None
) -> list[Any]:
    """What each rank has for this one in its `objects`, by rank (pickled)."""
    if len(objects) != comm.world_size:
        raise ValueError(
            f"all_to_all_object needs one object for each of {comm.world_size} ranks, got "
            f"{len(objects)}"
        )
    found = _exchange_pickled(comm, [_pickled(obj) for obj in objects], name)
    return [pickle.loads(data.data) for data in found]


def _exchange_pickled(comm: Communicator, sent: Sequence[Array], name: str | None) -> list[Array]:
    """What each rank has for this one in its `sent`, by rank."""
    out_sizes = np.array([data.size for data in sent], np.int64)
    in_sizes = np.empty_like(out_sizes)
    comm.all_to_all(in_sizes, out_sizes, name=name, async_op=False)
    found = [np.empty(int(size), np.uint8) for size in in_sizes]
    comm.all_to_all_uneven(found, sent, name=name, async_op=False)
    return found


def send_object(comm: Communicator, obj: Any, dst: int, tag: int = 0) -> None:
    """Send a picklable object to rank `dst`, which calls `recv_object`."""
    data = _pickled(obj)
    works = [comm.send(np.array([data.size], np.int64), dst, tag), comm.send(data, dst, tag)]
    for work in works:
        work.wait()


def recv_object(comm: Communicator, src: int | None = None, tag: int = 0) -> tuple[Any, int]:
    """The next object that rank `src` (None: any rank) has sent with `tag`, and who sent it."""
    length = np.empty(1, np.int64)
    work = comm.recv(length, src, tag)
    work.wait()
    source = work.peer
    assert source is not None
    data = np.empty(int(length[0]), np.uint8)
    comm.recv(data, source, tag).wait()
    return pickle.loads(data.data), source


def _pickled(obj: Any) -> Array:
    return np.frombuffer(bytearray(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)), np.uint8)
