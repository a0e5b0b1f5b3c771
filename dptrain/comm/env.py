"""Which rank this process is, according to whoever started it.

Owns: the reading of launcher variables, the only place of this package that reads the process
environment, and what of it helper processes get. Must not know: MPI; nothing is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessEnv:
    """Rank facts of this process.

    Attributes:
        rank: 0 to `world_size - 1`.
        world_size: number of ranks that were started.
        local_rank: position among the ranks of this host, as far as the launcher says; else 0.
        local_world_size: ranks on this host, as far as the launcher says; else 1.
        source: the variables that were read, for messages; "" for a world of one.
        launcher: "dprun", "torchrun-style", "Open MPI", "MPICH or Intel MPI", "Slurm" or "none".
        side_channel: whether dprun watches this process and reports its failure.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    source: str = ""
    launcher: str = "none"
    side_channel: bool = False


@dataclass(frozen=True, slots=True)
class _Family:
    """The variables of one launcher; each entry lists names of which the first present counts."""

    launcher: str
    rank: tuple[str, ...]
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_world_size: tuple[str, ...]
    # Variables that have to be there for the others to mean a launch.
    needs: tuple[str, ...] = ()


_SIDE_CHANNEL = "DPTRAIN_SIDE_CHANNEL"
_FAMILIES = (
    _Family("torchrun-style", ("RANK",), ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",)),
    _Family(
        "Open MPI",
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Family(
        "MPICH or Intel MPI",
        ("PMI_RANK",),
        ("PMI_SIZE",),
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ),
    # In the shell of an salloc the SLURM_* variables describe the job, not a rank of it: srun adds
    # the step and the rank within it.
    _Family(
        "Slurm",
        ("SLURM_PROCID",),
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        ("SLURM_LOCALID",),
        ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"),
        needs=("SLURM_PROCID", "SLURM_STEP_ID"),
    ),
)


def discover(environ: Mapping[str, str] | None = None) -> ProcessEnv:
    """Read who this process is.

    Asked in this order: RANK and WORLD_SIZE (dprun, torchrun), OMPI_COMM_WORLD_*, PMI_*, SLURM_*.
    Without any of them it is a world of one.

    Args:
        environ: the variables; default the environment of this process.

    Raises:
        RuntimeError: variables are half set, are no numbers, or contradict each other.
    """
    variables = os.environ if environ is None else environ
    watched = bool(variables.get(_SIDE_CHANNEL))
    for family in _FAMILIES:
        if any(name not in variables for name in family.needs):
            continue
        if any(name in variables for name in (*family.rank, *family.world_size)):
            return _read(family, variables, watched)
    return ProcessEnv(side_channel=watched)


def _read(family: _Family, variables: Mapping[str, str], watched: bool) -> ProcessEnv:
    found = {
        "rank": _first(family.rank, variables),
        "world_size": _first(family.world_size, variables),
        "local_rank": _first(family.local_rank, variables),
        "local_world_size": _first(family.local_world_size, variables),
    }
    missing = [
        " or ".join(getattr(family, field))
        for field in ("rank", "world_size")
        if found[field] is None
    ]
    present = ", ".join(f"{name}={variables[name]}" for name in found.values() if name)
    if missing:
        raise RuntimeError(
            f"the environment says half of which rank this is: {present} present, "
            f"{', '.join(missing)} missing; start the script with dprun, mpirun or srun, "
            f"or unset what is present to run alone"
        )
    values = {field: _number(name, variables) for field, name in found.items() if name}
    rank, world_size = values["rank"], values["world_size"]
    local_rank = values.get("local_rank", 0)
    local_world_size = values.get("local_world_size", max(local_rank + 1, 1))
    if not 0 <= rank < world_size or not 0 <= local_rank < local_world_size <= world_size:
        raise RuntimeError(
            f"the environment contradicts itself: {present}; a rank is at least 0 and less than "
            "its world size, on the host as in the whole job"
        )
    return ProcessEnv(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        source=", ".join(name for name in found.values() if name),
        launcher="dprun" if watched and family.rank == ("RANK",) else family.launcher,
        side_channel=watched,
    )


def _first(names: tuple[str, ...], variables: Mapping[str, str]) -> str | None:
    return next((name for name in names if name in variables), None)


def _number(name: str, variables: Mapping[str, str]) -> int:
    # Slurm writes "4(x2),3" for hosts with 4, 4 and 3 tasks; the first is as good as any: the
    # ranks of a host count themselves again once they are connected.
    text = variables[name].partition("(")[0].partition(",")[0].strip()
    try:
        return int(text)
    except ValueError:
        raise RuntimeError(f"{name}={variables[name]!r} is no whole number") from None


def master_address(environ: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Host and port in MASTER_ADDR and MASTER_PORT, at which rank 0 may listen.

    Raises:
        ValueError: one of them is missing, or the port is no number.
    """
    found = os.environ if environ is None else environ
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in found:
            raise ValueError(
                f"Error initializing dptrain.distributed using env:// rendezvous: environment variable {name} "
                "expected, but not set; dprun sets it on one host"
            )
    if not found["MASTER_PORT"].isdigit():
        raise ValueError(f"MASTER_PORT={found['MASTER_PORT']!r} is no port number")
    return found["MASTER_ADDR"], int(found["MASTER_PORT"])


_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def thread_count_is_set(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the user or the launcher chose how many threads a rank computes with."""
    found = os.environ if environ is None else environ
    return any(name in found for name in _THREAD_VARIABLES)


def gpu_sharing_is_allowed(environ: Mapping[str, str] | None = None) -> bool:
    """Whether NCCL was told to let ranks share a GPU."""
    found = os.environ if environ is None else environ
    return found.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1"


#: What makes a process a rank of an MPI job or of dprun, by the beginnings of the variables.
_OF_RANKS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDI_", "HYDRA_", _SIDE_CHANNEL)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def helper_environment() -> dict[str, str]:
    """The environment for a helper process of this rank, which computes on one thread.

    It keeps RANK and the like, which a user may read, but not what would make an MPI library in the
    helper take it for this rank itself.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OF_RANKS)}
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1")}


def adopt_environment(variables: Mapping[str, str]) -> None:
    """In a helper process: have the environment that the rank has by now."""
    os.environ.clear()
    os.environ.update(variables)
