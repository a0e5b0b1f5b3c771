"""Collectives and messages over picklable objects.

Owns: PyTorch's lists of objects. Must not know: how objects travel.
"""

from __future__ import annotations

from typing import Any

from dptrain.distributed.collectives import joined
from dptrain.distributed.groups import Group, peer
from dptrain.distributed.messages import other


def all_gather_object(object_list: list[Any], obj: Any, group: Group = None) -> None:
    """Fill `object_list` with the objects of all ranks, by rank.

    Raises:
        ValueError: `object_list` has not one place for each rank.
    """
    pg = joined("all_gather_object", group)
    if pg is None:
        return
    if len(object_list) != pg.size():
        raise ValueError(
            f"all_gather_object: object_list must have one place per rank ({pg.size()}), got "
            f"{len(object_list)}"
        )
    object_list[:] = pg.communicator.all_gather_object(obj)


def gather_object(
    obj: Any,
    object_gather_list: list[Any] | None = None,
    dst: int | None = None,
    group: Group = None,
    group_dst: int | None = None,
) -> None:
    """Fill `object_gather_list` on rank `dst` (default 0) with the objects of all ranks, by rank.

    Raises:
        ValueError: the list is missing on `dst`, or given elsewhere.
    """
    pg = joined("gather_object", group)
    if pg is None:
        return
    root = peer("gather_object", pg, dst, group_dst, 0)
    if pg.rank() == root and not object_gather_list:
        raise ValueError("Argument ``gather_list`` must be specified on destination rank.")
    if pg.rank() != root and object_gather_list:
        raise ValueError("Argument ``gather_list`` must NOT be specified on non-destination ranks.")
    found = pg.communicator.gather_object(obj, root)
    if found is not None and object_gather_list is not None:
        object_gather_list[: len(found)] = found


def broadcast_object_list(
    object_list: list[Any],
    src: int | None = None,
    group: Group = None,
    device: Any = None,
    group_src: int | None = None,
) -> None:
    """Replace the objects in the list by those of rank `src` (default 0).

    Raises:
        TypeError: no list.
        ValueError: the ranks' lists have different lengths.
    """
    if not isinstance(object_list, list):
        raise TypeError(
            f"broadcast_object_list: expected object_list to be a list, got {type(object_list).__name__}"
        )
    pg = joined("broadcast_object_list", group)
    if pg is None:
        return
    root = peer("broadcast_object_list", pg, src, group_src, 0)
    mine = list(object_list) if pg.rank() == root else None
    found = pg.communicator.broadcast_object(mine, root)
    if len(found) != len(object_list):
        raise ValueError(
            f"broadcast_object_list: rank {pg.ranks[root]} sends {len(found)} objects, this rank has "
            f"room for {len(object_list)}"
        )
    object_list[:] = found


def scatter_object_list(
    scatter_object_output_list: list[Any],
    scatter_object_input_list: list[Any] | None = None,
    src: int | None = None,
    group: Group = None,
    group_src: int | None = None,
) -> None:
    """Put object r of rank `src`'s list into place 0 of the output list of rank r.

    Raises:
        ValueError: no place, or not one object for each rank on `src`.
    """
    pg = joined("scatter_object_list", group)
    if pg is None:
        return
    if not isinstance(scatter_object_output_list, list) or not scatter_object_output_list:
        raise ValueError(
            "Expected argument scatter_object_output_list to be a list of size at least 1."
        )
    root = peer("scatter_object_list", pg, src, group_src, 0)
    if pg.rank() == root and len(scatter_object_input_list or ()) != pg.size():
        raise ValueError(
            f"scatter_object_list: scatter_object_input_list must have one object for each of {pg.size()} "
            f"ranks, got {len(scatter_object_input_list or ())}"
        )
    scatter_object_output_list[0] = pg.communicator.scatter_object(scatter_object_input_list, root)


def send_object_list(
    object_list: list[Any],
    dst: int | None = None,
    group: Group = None,
    device: Any = None,
    group_dst: int | None = None,
    use_batch: bool = False,
) -> None:
    """Send the objects of the list to rank `dst`, which calls `recv_object_list`."""
    pg = joined("send_object_list", group)
    if pg is not None:
        to = other("destination", pg, peer("send_object_list", pg, dst, group_dst, None))
        pg.communicator.send_object(list(object_list), to)


def recv_object_list(
    object_list: list[Any],
    src: int | None = None,
    group: Group = None,
    device: Any = None,
    group_src: int | None = None,
    use_batch: bool = False,
) -> int:
    """Replace the objects in the list by those that rank `src` sends (None: whoever sends first).

    Returns:
        The rank, in the whole job, that sent them; -1 if this rank is no member.

    Raises:
        ValueError: another number of objects comes than the list holds.
    """
    pg = joined("recv_object_list", group)
    if pg is None:
        return -1
    source = None
    if src is not None or group_src is not None:
        source = other("source", pg, peer("recv_object_list", pg, src, group_src, None))
    found, sender = pg.communicator.recv_object(source)
    if len(found) != len(object_list):
        raise ValueError(
            f"recv_object_list: rank {pg.ranks[sender]} sent {len(found)} objects, this rank has room "
            f"for {len(object_list)}"
        )
    object_list[:] = found
    return pg.ranks[sender]
