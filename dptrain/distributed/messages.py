"""Messages between two ranks: `send`, `recv` and their batches.

Owns: the translation of tensors and ranks. Must not know: how messages travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dptrain.core.tensor import Tensor
from dptrain.distributed.collectives import Targets, checked, joined, read
from dptrain.distributed.groups import Group, ProcessGroup, get_rank, peer
from dptrain.distributed.work import Work


def isend(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> Work | None:
    """Start to send the tensor to rank `dst`; it may be changed after `wait()`.

    Raises:
        ValueError: `dst` is this rank itself or no member.
    """
    checked("isend", tensor)
    pg = joined("isend", group)
    if pg is None:
        return None
    to = other("destination", pg, peer("isend", pg, dst, group_dst, None))
    return Work([pg.communicator.send(read(tensor), to, tag)], None, [tensor], pg)


def other(what: str, pg: ProcessGroup, rank: int) -> int:
    """`rank`, if it is not this one.

    Raises:
        ValueError: it is.
    """
    if rank == pg.rank():
        raise ValueError(
            f"Invalid {what} rank: {what} rank should not be the same as the rank of the current process."
        )
    return rank


def irecv(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_src: int | None = None,
) -> Work | None:
    """Start to receive into the tensor; it holds the message after `wait()`.

    Args:
        src: the source; None (and no `group_src`): whoever sends first.
    """
    checked("irecv", tensor)
    pg = joined("irecv", group)
    if pg is None:
        return None
    source = None
    if src is not None or group_src is not None:
        source = other("source", pg, peer("irecv", pg, src, group_src, None))
    targets = Targets([tensor])
    work = pg.communicator.recv(targets.arrays[0], source, tag)
    return targets.done([work], True, pg)


def send(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> None:
    """Send the tensor to rank `dst`; it may be changed afterwards."""
    work = isend(tensor, dst, group, tag, group_dst)
    if work is not None:
        work.wait()


def recv(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_src: int | None = None,
) -> int:
    """Receive into the tensor; returns the rank, in the whole job, that sent it (-1: no member)."""
    work = irecv(tensor, src, group, tag, group_src)
    if work is None:
        return -1
    work.wait()
    return work.source_rank()


class P2POp:
    """One send or receive of a `batch_isend_irecv`.

    Args:
        op: `isend` or `irecv`.
        tensor: what to send, or where to receive.
        peer: the other rank, in the whole job; or give `group_peer`, in the group.

    Raises:
        ValueError: `op` is neither, or no peer is named.
    """

    def __init__(
        self,
        op: Callable[..., Any],
        tensor: Tensor,
        peer: int | None = None,
        group: Group = None,
        tag: int = 0,
        group_peer: int | None = None,
    ) -> None:
        if op not in (isend, irecv):
            raise ValueError(
                "Invalid ``op``. Expected ``op`` to be of type ``distributed.isend`` or "
                "``distributed.irecv``."
            )
        if (peer is None) == (group_peer is None):
            raise ValueError("name the other rank either by peer or by group_peer")
        self.op, self.tensor, self.tag, self.group = op, checked("P2POp", tensor), tag, group
        self.peer, self.group_peer = peer, group_peer

    def __repr__(self) -> str:
        whom = f"peer={self.peer}" if self.group_peer is None else f"group_peer={self.group_peer}"
        return f"P2POp({self.op.__name__} rank={get_rank(self.group)}, {whom}, {self.tag=})"


def batch_isend_irecv(p2p_op_list: list[P2POp]) -> list[Work]:
    """Start all the sends and receives; the works are in the order of the list.

    Raises:
        ValueError: the list is empty or holds something else.
    """
    if not isinstance(p2p_op_list, list) or not all(isinstance(op, P2POp) for op in p2p_op_list):
        raise ValueError(
            "Invalid ``p2p_op_list``. Each op is expected to to be of type ``distributed.P2POp``."
        )
    if not p2p_op_list:
        raise ValueError("p2p_op_list is empty")
    works = [op.op(op.tensor, op.peer, op.group, op.tag, op.group_peer) for op in p2p_op_list]
    return [work for work in works if work is not None]
