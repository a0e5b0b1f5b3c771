"""Ranks as processes that an MPI launcher started.

Owns: the start of MPI, the check that MPI and the launcher agree, the choice of how the ranks are
connected, and the end of the job when a rank fails. Must not know: what is communicated.
"""

from __future__ import annotations

import atexit
import faulthandler
import signal
import sys
import traceback
import weakref
from collections.abc import Callable
from types import TracebackType

from mpi4py import MPI

from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.communicator import DEFAULT_TIMEOUT_S
from dptrain.comm.env import ProcessEnv, discover
from dptrain.comm.errors import rank_prefix
from dptrain.comm.mpi_hierarchy import HierarchicalTransport
from dptrain.comm.mpi_host import HostTransport, control_nbytes, share
from dptrain.comm.mpi_network import NetworkTransport
from dptrain.comm.transport import Transport


def connect(
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    warn_after_s: float | None = 30.0,
    shared_memory: bool = True,
    peer_memory: bool = True,
    host: int | None = None,
    wrap: Callable[[Transport], Transport] = lambda transport: transport,
) -> TransportCommunicator:
    """Connect the ranks of the MPI job. Collective; may be called several times.

    Args:
        timeout_s: default timeout of every call, in seconds.
        warn_after_s: when to warn about missing ranks, in seconds; None never does.
        shared_memory: whether ranks of one host meet in shared memory; False always uses messages.
        peer_memory: whether they may copy from and to each other's own memory, where the system allows
            it; False passes everything through memory that they share.
        host: which host this rank counts as being on, to try a grouping on one machine; None: the
            one it runs on.
        wrap: makes the transport that is used of the one that MPI gives.

    Raises:
        RuntimeError: the launcher says another rank or number of ranks than MPI.
    """
    found = discover()
    check_launch(found, MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, MPI.Get_library_version())
    if not found.side_channel:
        _report_failures()
    transport = wrap(_transport(MPI.COMM_WORLD.Dup(), shared_memory, peer_memory, host))
    communicator = TransportCommunicator(transport, timeout_s=timeout_s, warn_after_s=warn_after_s)
    _connected.add(communicator)
    return communicator


# A rank whose script ends says so, or the others would wait for it until their timeouts.
_connected: weakref.WeakSet[TransportCommunicator] = weakref.WeakSet()


@atexit.register
def _leave_all() -> None:
    for communicator in list(_connected):
        communicator.close()


def check_launch(found: ProcessEnv, rank: int, world_size: int, library: str) -> None:
    """Compare what the launcher's variables say with what MPI says.

    Args:
        found: what the variables say.
        rank: of this process, according to MPI.
        world_size: number of ranks, according to MPI.
        library: the version text of the MPI library.

    Raises:
        RuntimeError: they differ, so that results would be those of another job than was asked for.
    """
    if not found.source or (found.rank, found.world_size) == (rank, world_size):
        return
    name = library.strip("\0 \n").partition("\n")[0]
    raise RuntimeError(
        f"{found.launcher} started this process as rank {found.rank} of {found.world_size} "
        f"({found.source}), but MPI says rank {rank} of {world_size}. The MPI library in use is "
        f"{name!r}; it was not that library's launcher that started the job. Start it with dprun "
        "or with the mpirun that belongs to this library"
    )


def _transport(
    comm: MPI.Intracomm, shared_memory: bool, peer_memory: bool, host: int | None
) -> Transport:
    """Connect the ranks of `comm`, a communicator of their own, in the fastest way there is."""
    if host is None:
        local = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED))
    else:
        local = MPI.Intracomm(comm.Split(host))
    local_rank, local_world_size = local.rank, local.size

    def reconnect(part: MPI.Intracomm) -> Transport:
        return _transport(part, shared_memory, peer_memory, host)

    members = comm.allgather(local.allgather(comm.rank))
    hosts = sorted({tuple(ranks) for ranks in members})
    # Every rank has to decide alike; the one on a host of its own does not see the others'.
    willing = shared_memory and len(hosts) < comm.size
    if not all(comm.allgather(willing)) and comm.size > 1:
        local.Free()
        return NetworkTransport(comm, local_rank, local_world_size, reconnect)
    inside = comm if len(hosts) == 1 else local
    control = share(inside, control_nbytes(inside.size))
    if not all(comm.allgather(control is not None)):
        return NetworkTransport(comm, local_rank, local_world_size, reconnect)
    assert control is not None
    if len(hosts) == 1:
        local.Free()
        return HostTransport(comm, control, reconnect, peer_memory)
    inner = HostTransport(local, control, reconnect, peer_memory)
    leading = MPI.Intracomm(comm.Split(0 if local_rank == 0 else MPI.UNDEFINED))
    leaders = None
    if local_rank == 0:
        leaders = NetworkTransport(leading, 0, 1, reconnect)
    return HierarchicalTransport(comm, inner, leaders, hosts, reconnect)


_reporting = False


def _report_failures() -> None:
    """End the whole job when this rank fails, and be able to show its stacks on request.

    Without this a rank that dies of an exception leaves the others waiting for ever. dprun does all
    this itself.
    """
    global _reporting
    if _reporting or MPI.COMM_WORLD.size == 1:
        return
    _reporting = True
    if not faulthandler.is_enabled():
        faulthandler.enable()
    if signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:
        faulthandler.register(signal.SIGUSR2, all_threads=True)
    previous = sys.excepthook

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if previous is sys.__excepthook__:
            prefix = rank_prefix(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
            text = "".join(traceback.format_exception(kind, error, trace))
            # One write: the ranks share a terminal.
            sys.stderr.write("".join(f"{prefix} {line}\n" for line in text.splitlines()))
        else:
            previous(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        if not MPI.Is_finalized():
            MPI.COMM_WORLD.Abort(130 if issubclass(kind, KeyboardInterrupt) else 1)

    sys.excepthook = report
