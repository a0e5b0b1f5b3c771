"""Which GPU a rank communicates from, and whether each rank has one to itself.

Owns: the choice from the local rank, the check of all ranks' choices. Must not know: NCCL's calls.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

from dptrain.comm.communicator import Communicator
from dptrain.comm.env import gpu_sharing_is_allowed
from dptrain.comm.errors import rank_prefix
from dptrain.core import cuda
from dptrain.core.device import device


def trouble() -> str | None:
    """Why no GPU can be used here, in one line; None if one can."""
    return cuda.trouble(cuda.probe())


def choose(local_rank: int, asked: Any = None) -> int:
    """The index of this rank's GPU, which becomes the current one.

    That is the one asked for; else the one that `dptrain.cuda.set_device` chose; else the one of the
    number of the local rank; else the only one (a launcher may show each rank another).

    Args:
        local_rank: position among the ranks of this host.
        asked: what `device_id` names, if anything: a number, a text, a device.

    Raises:
        RuntimeError: no GPU can be used, or there are too few; says why.
        ValueError: what is asked for is no CUDA device.
    """
    reason = trouble()
    if reason is not None:
        raise RuntimeError(
            f"backend 'nccl' was asked for, but {reason}; or use backend 'mpi' (also known as 'gloo') on the CPU"
        )
    found, count = cuda.library(), cuda.probe().count
    if asked is not None:
        place = device("cuda", asked) if isinstance(asked, int) else device(asked)
        if place.type != "cuda":
            raise ValueError(f"device_id has to be a CUDA device with backend 'nccl', got {place}")
        index = local_rank if place.index is None else place.index
    elif found.current() != 0:
        index = found.current()
    else:
        index = local_rank if count > 1 else 0
    cuda.usable(index)
    # Before anything else on a GPU: else this rank would leave a context on GPU 0.
    found.cupy.cuda.runtime.setDevice(index)
    return index


class _Seat(NamedTuple):
    """A rank's GPU: its host, its index there, and what no other GPU has."""

    host: str
    gpu: int
    identity: bytes


def check_distinct(communicator: Communicator, index: int, nccl_version: int) -> None:
    """Refuse two ranks on one GPU, which NCCL refuses or hangs on. Collective.

    Args:
        nccl_version: as NCCL writes it: 22707 is 2.27.7. From 2.30 on NCCL_MULTI_RANK_GPU_ENABLE=1
            allows it, as an experiment.

    Raises:
        RuntimeError: on every rank; names two such ranks.
    """
    properties = cuda.library().cupy.cuda.runtime.getDeviceProperties(index)
    mine = _Seat(platform.node(), index, bytes(properties["uuid"]))
    seats = communicator.all_gather_object(mine, name="GPUs of the ranks")
    pair = _sharing(seats)
    if pair is None or (nccl_version >= 23000 and gpu_sharing_is_allowed()):
        return
    first, second = pair
    place = seats[first]
    local = sum(seat.host == place.host for seat in seats)
    there = len({seat.identity for seat in seats if seat.host == place.host})
    raise RuntimeError(
        f"{rank_prefix(communicator.rank, communicator.world_size)} ranks {first} and {second} share cuda:{place.gpu} "
        f"of {place.host}, but NCCL takes one rank per GPU; {local} ranks run there on {there} of its GPUs. Start "
        f"fewer (dprun -n {there}), or use backend 'mpi', which moves GPU arrays through the host's memory"
    )


def _sharing(seats: Sequence[_Seat]) -> tuple[int, int] | None:
    """The first two ranks with one GPU."""
    seen: dict[tuple[str, bytes], int] = {}
    for rank, seat in enumerate(seats):
        other = seen.setdefault((seat.host, seat.identity), rank)
        if other != rank:
            return other, rank
    return None
