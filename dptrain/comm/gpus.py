"""Which GPU a rank communicates from, and whether each rank has one to itself.

Owns: the choice from the local rank, the check of all ranks' choices, what is said where ranks share one. Must not
know: NCCL's calls.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from functools import cache
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


class Seat(NamedTuple):
    """A rank's GPU: its host, its index there, what no other GPU has, and what it is."""

    host: str
    gpu: int
    identity: bytes
    model: str


def seat(index: int) -> Seat:
    """The seat of this process on one of its GPUs."""
    properties = cuda.library().cupy.cuda.runtime.getDeviceProperties(index)
    return Seat(
        platform.node(), index, bytes(properties["uuid"]), bytes(properties["name"]).decode()
    )


def check_distinct(communicator: Communicator, index: int, nccl_version: int) -> None:
    """Refuse two ranks on one GPU, which NCCL refuses or hangs on. Collective.

    Args:
        nccl_version: as NCCL writes it: 22707 is 2.27.7. From 2.30 on NCCL_MULTI_RANK_GPU_ENABLE=1
            allows it, as an experiment.

    Raises:
        RuntimeError: on every rank; names two such ranks.
    """
    seats = communicator.all_gather_object(seat(index), name="GPUs of the ranks")
    shared = _shared(seats)
    if not shared or (nccl_version >= 23000 and gpu_sharing_is_allowed()):
        return
    first, second, *_ = shared[0]
    place = seats[first]
    local = sum(seat.host == place.host for seat in seats)
    there = len({seat.identity for seat in seats if seat.host == place.host})
    raise RuntimeError(
        f"{rank_prefix(communicator.rank, communicator.world_size)} ranks {first} and {second} share cuda:{place.gpu} "
        f"of {place.host}, but NCCL takes one rank per GPU; {local} ranks run there on {there} of its GPUs. Start "
        f"fewer (dprun -n {there}), or use backend 'mpi', which moves GPU arrays through the host's memory"
    )


def tell_sharing(seats: Sequence[Seat | None]) -> None:
    """Say, once per process and on one line for each GPU, which ranks share it.

    Args:
        seats: by rank; None where a rank computes on the CPU.
    """
    for ranks in _shared(seats):
        place = seats[ranks[0]]
        assert place is not None
        _say(
            f"dptrain: ranks {', '.join(map(str, ranks))} share one GPU, cuda:{place.gpu} ({place.model}) of "
            f"{place.host}: each has a part of its speed and memory"
        )


@cache
def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _shared(seats: Sequence[Seat | None]) -> list[list[int]]:
    """The ranks of each GPU that has several."""
    by_gpu: dict[tuple[str, bytes], list[int]] = {}
    for rank, place in enumerate(seats):
        if place is not None:
            by_gpu.setdefault((place.host, place.identity), []).append(rank)
    return [ranks for ranks in by_gpu.values() if len(ranks) > 1]
