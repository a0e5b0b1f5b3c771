"""Which backends there are, and the start and end of the default group.

Owns: what the arguments of `init_process_group` mean here. Must not know: tensors, collectives.
"""

from __future__ import annotations

from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from dptrain.comm import default as _default
from dptrain.comm.communicator import DEFAULT_TIMEOUT_S
from dptrain.comm.default import nccl_trouble
from dptrain.comm.env import discover, thread_count_is_set
from dptrain.core import random
from dptrain.core.cuda import device_count
from dptrain.core.threads import set_num_threads, usable_cores
from dptrain.distributed.backend_names import BACKENDS, Backend, BackendConfig, known
from dptrain.distributed.groups import (
    Group,
    GroupMember,
    ProcessGroup,
    forget,
    member,
    seconds,
    world,
)
from dptrain.distributed.stores import Store

default_pg_timeout = timedelta(seconds=DEFAULT_TIMEOUT_S)


_METHODS = ("env://", "tcp://", "file://")


def is_available() -> bool:
    """Whether the package can communicate at all: always."""
    return True


def is_gloo_available() -> bool:
    """Whether the backend name "gloo" is accepted: always; MPI carries it."""
    return True


def is_mpi_available() -> bool:
    """Whether the backend name "mpi" is accepted: always; its library is looked for on use."""
    return True


def is_nccl_available() -> bool:
    """Whether CuPy is installed and finds NCCL. Whether there is a GPU is another question."""
    return find_spec("cupy") is not None and nccl_trouble() is None


def is_ucc_available() -> bool:
    """Never: MPI is what connects the ranks."""
    return False


def is_xccl_available() -> bool:
    """Never: there is no such device here."""
    return False


def is_backend_available(backend: str) -> bool:
    """Whether `init_process_group` takes this name."""
    return backend.lower() in BACKENDS


def is_initialized() -> bool:
    """Whether `init_process_group` was called."""
    return _default.is_initialized()


def is_torchelastic_launched() -> bool:
    """Whether a launcher that watches the ranks started this process: `dprun` here."""
    return discover().side_channel


def get_default_backend_for_device(device: Any) -> str:
    """The name of the backend for a device's kind.

    Raises:
        ValueError: no such kind.
    """
    kind = str(device).partition(":")[0]
    if kind not in Backend.default_device_backend_map:
        raise ValueError(f"Default backend not registered for device : {device}")
    return Backend.default_device_backend_map[kind]


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: timedelta | float | None = None,
    world_size: int = -1,
    rank: int = -1,
    store: Any = None,
    group_name: str = "",
    pg_options: Any = None,
    device_id: Any = None,
) -> None:
    """Connect this process with the other ranks that the launcher started.

    The bootstrap is MPI's: under `dprun`, `mpirun` or `srun` the ranks find each other; without a
    launcher this is a world of one, and the same script runs.

    Args:
        backend: "nccl" (GPU tensors by NCCL, CPU tensors over MPI), "mpi" or "gloo" (both: MPI, GPU
            tensors through the host's memory), or one for each kind of device as in "cpu:gloo,cuda:nccl";
            None is that where every rank of this host has a GPU, else "mpi". Where GPUs are named beside
            the CPU and there is none, that is no error until one is asked for.
        init_method: None, or an "env://", "tcp://" or "file://" address, which is not used.
        timeout: of every collective; seconds or a timedelta; default 30 minutes.
        world_size, rank: if given, they must be what the launcher says.
        store: a `Store` of the user's, with `rank` and `world_size`; accepted, and left to the user.
        group_name, pg_options: accepted; nothing here depends on them.
        device_id: with NCCL, the GPU of this rank; None: the current one if that was set, else the one
            with the number of LOCAL_RANK. It becomes the current one.

    Raises:
        AssertionError: a store without `rank` and `world_size`, or beside an init_method.
        RuntimeError: no MPI; for "nccl" no GPU, no NCCL, or more ranks than GPUs; the launcher and MPI disagree; an init_method of another form.
        ValueError: initialised already; a backend that is not available; another rank or world size
            than the launcher's.
    """
    if _default.is_initialized():
        raise ValueError("trying to initialize the default process group twice!")
    _check_store(store, init_method, rank, world_size)
    if init_method is not None and not init_method.startswith(_METHODS):
        raise RuntimeError(
            f"No rendezvous handler for {init_method!r}: expected one of {', '.join(_METHODS)}, or nothing"
        )
    found = discover()
    chosen = _chosen(backend, found.local_world_size)
    for asked, actual, what in (
        (world_size, found.world_size, "world_size"),
        (rank, found.rank, "rank"),
    ):
        if asked not in (-1, actual):
            said = f"the launcher ({found.source}) says" if found.source else "no launcher: this is"
            raise ValueError(
                f"{what}={asked} was asked for, but {said} {actual}; start the script with `dprun -n N`, or functions of "
                "it with dptrain.multiprocessing.spawn in place of Process"
            )
    if chosen == "mpi" and found.world_size == 1:
        chosen = None  # one process: a world of one needs no MPI library
    limit_s = seconds(timeout)
    limits = () if limit_s is None else (limit_s,)
    communicator = _default.init(chosen, *limits, device=device_id)
    ProcessGroup(communicator, range(communicator.world_size), "default_pg", backend or "")
    if communicator.local_world_size > 1 and not thread_count_is_set():
        # dprun sets the variables itself; under mpirun every rank would start a thread per core.
        set_num_threads(max(1, usable_cores() // communicator.local_world_size))
    # Ranks draw different dropout masks; parameters and the user's draws stay equal.
    random.set_shard(communicator.rank)


def _check_store(store: Any, init_method: str | None, rank: int, world_size: int) -> None:
    if store is None:
        return
    if not isinstance(store, Store):
        raise TypeError(f"init_process_group: store must be a Store, got {type(store).__name__}")
    if init_method is not None:
        raise AssertionError("Cannot specify both init_method and store.")
    if world_size <= 0:
        raise AssertionError("world_size must be positive if using store")
    if rank < 0:
        raise AssertionError("rank must be non-negative if using store")


def _chosen(backend: str | None, local_ranks: int) -> str | None:
    """Our name of the backend that serves what a text of PyTorch's names."""
    if backend is None:
        return "nccl" if 0 < local_ranks <= device_count() and is_nccl_available() else None
    by_device = known(backend).device_backend_map
    names = set(by_device.values())
    if len(names) == 1:
        return BACKENDS[names.pop()]
    return "nccl" if "nccl" in names and device_count() > 0 else "mpi"


def destroy_process_group(group: Group = None) -> None:
    """Leave the group, by default that of all ranks and with it every other.

    Ranks that still wait for this one get an error that names it.

    Raises:
        AssertionError: there is no default group.
    """
    if group is None and not _default.is_initialized():
        raise AssertionError("Process group cannot be None: no process group was initialized")
    found = member(group)
    if found is None:
        return
    whole = found is GroupMember.WORLD
    found.communicator.close()
    forget(found)
    if whole:
        _default.set_default(None, process_wide=True)
        random.set_shard(0)


def get_backend(group: Group = None) -> Backend:
    """The name that the group was asked for with, such as "gloo"; else "mpi", "thread" or "serial".

    Raises:
        ValueError: this rank is no member.
    """
    found = world() if group is None else member(group)
    if found is None:
        raise ValueError("Invalid process group specified: this rank is no member")
    return Backend(BackendConfig(found.name()).device_backend_map.get("cpu", found.name()))


def get_backend_config(group: Group = None) -> str:
    """Which backend serves which kind of device, such as "cpu:gloo,cuda:gloo"."""
    found = world() if group is None else member(group)
    if found is None:
        raise ValueError("Invalid process group specified: this rank is no member")
    return repr(BackendConfig(found.name()))


def get_local_rank(group: Group = None) -> int:
    """Position of this process among the ranks of its host."""
    found = member(group)
    return -1 if found is None else found.communicator.local_rank


def get_local_world_size(group: Group = None) -> int:
    """Number of ranks on this host."""
    found = member(group)
    return -1 if found is None else found.communicator.local_world_size


def get_node_local_rank(fallback_rank: int | None = None) -> int:
    """Position of this process among those of its host, as its launcher says.

    Raises:
        RuntimeError: no launcher says so, and there is no `fallback_rank`.
    """
    found = discover()
    if found.source:
        return found.local_rank
    if fallback_rank is not None:
        return int(fallback_rank)
    raise RuntimeError(
        "LOCAL_RANK is not in the environment. Consider passing fallback_rank to allow `get_node_local_rank` "
        "to work, or start the script with dprun"
    )
