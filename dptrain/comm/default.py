"""The communicator that a program uses when it names none.

Owns: `init`, `default_communicator` and `set_default`. Must not know: what is communicated.
The default is a context variable, so that ranks which are threads have one each, with a
process-wide fallback for threads that were started without a context, such as a loader's.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.communicator import DEFAULT_TIMEOUT_S, Communicator
from dptrain.comm.env import ProcessEnv, discover
from dptrain.comm.serial import SerialCommunicator, SerialTransport
from dptrain.comm.transport import Transport

BACKENDS = ("mpi", "nccl", "serial")

_of_context: contextvars.ContextVar[Communicator | None] = contextvars.ContextVar(
    "dptrain_default_communicator", default=None
)
_of_process: Communicator | None = None
_lock = threading.Lock()


def init(
    backend: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    *,
    warn_after_s: float | None = 30.0,
    device: Any = None,
) -> Communicator:
    """Connect this process with the other ranks and make the result the default communicator.

    Args:
        backend: "mpi", "nccl" (GPUs by NCCL, the host's arrays by MPI) or "serial"; None is "mpi"
            where a launcher started several ranks, else "serial".
        timeout: default timeout of every call, in seconds.
        warn_after_s: when to warn about missing ranks, in seconds; None never does.
        device: with "nccl", the GPU of this rank; None: see `gpus.choose`.

    Raises:
        RuntimeError: already initialised; no GPU or no NCCL for "nccl"; MPI is not installed; or the launcher and MPI disagree
            about the number of ranks.
        ValueError: no such backend.
    """
    if _of_context.get() is not None or _of_process is not None:
        raise RuntimeError(
            "a default communicator exists already; close it and call set_default(None) first"
        )
    found = discover()
    if backend is None:
        backend = "mpi" if found.world_size > 1 else "serial"
    communicator: Communicator
    if backend == "serial":
        if found.world_size > 1:
            raise RuntimeError(
                f"backend 'serial' was asked for, but {found.launcher} started "
                f"{found.world_size} ranks ({found.source}); use backend 'mpi'"
            )
        communicator = SerialCommunicator(timeout_s=timeout, warn_after_s=warn_after_s)
    elif backend == "mpi":
        communicator = _connect_mpi(timeout, warn_after_s)
    elif backend == "nccl":
        communicator = _connect_nccl(found, device, timeout, warn_after_s)
    else:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(map(repr, BACKENDS))}")
    set_default(communicator, process_wide=True)
    return communicator


def is_initialized() -> bool:
    """Whether a default communicator was set, so that `default_communicator` makes none up."""
    return _of_context.get() is not None or _of_process is not None


def default_communicator() -> Communicator:
    """The communicator of this context, else of this process; a world of one if there is none."""
    found = _of_context.get() or _of_process
    return _alone() if found is None else found


def set_default(communicator: Communicator | None, *, process_wide: bool = False) -> None:
    """Make `communicator` the default of this context, or with None remove the default.

    Args:
        process_wide: change it for all threads of the process that have none of their own.
    """
    global _of_process
    if process_wide:
        with _lock:
            _of_process = communicator
        _of_context.set(None)
    else:
        _of_context.set(communicator)


_serial: SerialCommunicator | None = None


def _alone() -> Communicator:
    global _serial
    with _lock:
        if _serial is None:
            _serial = SerialCommunicator()
        return _serial


def _connect_nccl(
    found: ProcessEnv, device: Any, timeout_s: float, warn_after_s: float | None
) -> Communicator:
    from dptrain.comm import gpus, nccl  # They load CuPy, which a program on the CPU never needs.

    index = gpus.choose(found.local_rank, device)
    library = nccl.binding()

    def wrap(host: Transport) -> Transport:
        return nccl.NcclTransport(host, index, library)

    if found.world_size == 1:
        alone = wrap(SerialTransport())
        return TransportCommunicator(alone, timeout_s=timeout_s, warn_after_s=warn_after_s)
    communicator = _connect_mpi(timeout_s, warn_after_s, wrap)
    gpus.check_distinct(communicator, index, library.get_version())
    return communicator


def nccl_trouble() -> str | None:
    """Why NCCL cannot be used with the CuPy that is installed, in one line; None if it can."""
    try:
        from dptrain.comm import nccl

        nccl.binding()
    except (ImportError, RuntimeError) as error:
        return str(error)
    return None


def _connect_mpi(
    timeout_s: float,
    warn_after_s: float | None,
    wrap: Callable[[Transport], Transport] = lambda transport: transport,
) -> Communicator:
    try:
        from dptrain.comm.mpi import connect
    except (ImportError, RuntimeError) as error:  # mpi4py raises RuntimeError without a libmpi.
        raise RuntimeError(
            f"MPI connects the ranks of this job, but it cannot be loaded ({error}); start the script with dprun "
            'or mpirun; pip install "dptrain[mpi]" brings an MPI library, or load the one of your cluster'
        ) from error
    return connect(timeout_s=timeout_s, warn_after_s=warn_after_s, wrap=wrap)
