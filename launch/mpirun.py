"""The MPI library's own launcher: finding it, its family, the command and environment it needs.

Owns: everything that differs between Open MPI, MPICH and Intel MPI before the job runs (command
line, environment) and after (what its last words say about a rank's end). Must not know: running
processes, the side channel. Pure functions, except ``find`` and ``identify``.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class LaunchError(Exception):
    """The job cannot be started; the message is one line for the user."""


class Family(enum.Enum):
    """MPI launchers that take the same options and variables."""

    OPENMPI = "Open MPI"
    MPICH = "MPICH"
    INTEL = "Intel MPI"


@dataclass(frozen=True)
class Job:
    """What to start.

    Attributes:
        nproc: number of ranks.
        argv: command of one rank, interpreter included.
        hostfile: passed to mpirun, or None.
        host: passed to mpirun, or None.
        threads: threads per rank, or None for cores divided by local ranks.
    """

    nproc: int
    argv: tuple[str, ...]
    hostfile: str | None = None
    host: str | None = None
    threads: int | None = None


def find(requested: str | None = None) -> str:
    """Path of mpirun: the requested one, else beside this interpreter, else on PATH.

    Beside the interpreter comes first because that is the library mpi4py loads in a virtual
    environment, activated or not; not beside the system's own, where mpi4py does not look either.

    Raises:
        LaunchError: there is none.
    """
    if requested is not None:
        path = shutil.which(requested)
        if path is None:
            raise LaunchError(f"--mpi {requested}: no such executable")
        return path
    for name in ("mpirun", "mpiexec") if sys.prefix != "/usr" else ():
        beside = Path(sys.prefix, "bin", name)
        if os.access(beside, os.X_OK):
            return str(beside)
    for name in ("mpirun", "mpiexec"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise LaunchError(
        "no MPI launcher (mpirun) found beside this Python or on PATH: "
        'pip install "dptrain[mpi]", or load your cluster\'s MPI module'
    )


def identify(path: str, env: Mapping[str, str]) -> Family:
    """Asks ``mpirun --version`` whose it is.

    Raises:
        LaunchError: it cannot be run, or its answer is not of a known MPI library.
    """
    try:
        answer = subprocess.run(
            [path, "--version"],
            env={**env, "PATH": _path_with(path, env)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as exception:
        raise LaunchError(f"cannot run {path} --version: {exception}") from None
    text = answer.stdout + answer.stderr
    family = family_of(text)
    if family is None:
        first = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
        raise LaunchError(
            f"{path} --version answered {first!r}: expected Open MPI, MPICH (hydra) or Intel MPI; "
            "name another launcher with --mpi PATH"
        )
    return family


def family_of(version_text: str) -> Family | None:
    """The family that a ``--version`` answer names, or None."""
    text = version_text.lower()
    if "intel(r) mpi" in text:
        return Family.INTEL
    if "open mpi" in text or "openrte" in text or "prterun" in text:
        return Family.OPENMPI
    if "hydra" in text or "mpich" in text:
        return Family.MPICH
    return None


def gpu_count(env: Mapping[str, str], device_dir: str = "/dev") -> int:
    """NVIDIA GPUs this job may use, from the device files and ``CUDA_VISIBLE_DEVICES``.

    As CUDA does, the list in the variable is read up to its first invalid entry.
    """
    names = os.listdir(device_dir) if os.path.isdir(device_dir) else []
    present = sum(re.fullmatch(r"nvidia[0-9]+", name) is not None for name in names)
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is None or present == 0:
        return present
    count = 0
    for entry in visible.split(","):
        entry = entry.strip()
        if not entry or (re.fullmatch(r"-?[0-9]+", entry) and not 0 <= int(entry) < present):
            break
        count += 1
    return count


def hosts_of(job: Job) -> list[str]:
    """Distinct host names in ``--host`` and ``--hostfile``, in order.

    Raises:
        LaunchError: the hostfile cannot be read.
    """
    entries = [part.split(":")[0].strip() for part in (job.host or "").split(",")]
    if job.hostfile is not None:
        try:
            lines = Path(job.hostfile).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as exception:
            reason = getattr(exception, "strerror", None) or "not a text file"
            raise LaunchError(f"--hostfile {job.hostfile}: {reason}") from None
        # "name slots=4" (Open MPI) or "name:4" (MPICH, Intel)
        words = (line.split("#")[0].split() for line in lines)
        entries += [word[0].split(":")[0] for word in words if word]
    return list(dict.fromkeys(entry for entry in entries if entry))


def is_multi_host(hosts: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether ranks may start on other hosts: named ones, or those of a batch allocation."""
    here = {"localhost", "127.0.0.1", socket.gethostname(), socket.gethostname().split(".")[0]}
    if hosts:
        return any(name not in here for name in hosts)
    nodes = env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES") or "1"
    return nodes.isdigit() and int(nodes) > 1


# What an enclosing MPI job leaves in the environment; a job started inside it must not see it.
_FOREIGN_JOB = re.compile(
    r"(PMIX_(RANK|NAMESPACE|SERVER|HOSTNAME|GDS|SECURITY|BFROP|VERSION|DSTORE|PTL|SYSTEM)|"
    r"PMI_|PRTE_LAUNCHED|"
    r"OMPI_(COMM_WORLD|WORLD|UNIVERSE|APP_CTX|FIRST_RANKS|FILE_LOCATION|ARGV|COMMAND|NUM_APP)|"
    r"MPI_LOCAL|HYDI_|(LOCAL_)?RANK$|(LOCAL_)?WORLD_SIZE$)"
)


def without_foreign_job(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without the rank variables of an MPI job that this process is part of."""
    return {name: value for name, value in env.items() if not _FOREIGN_JOB.match(name)}


def additions(
    family: Family,
    path: str,
    job: Job,
    env: Mapping[str, str],
    *,
    hosts: int = 1,
    cores: int | None = None,
    uid: int | None = None,
) -> dict[str, str]:
    """Variables to add to ``env`` for the job. What the user has set is left as it is.

    Args:
        hosts: number of hosts the ranks are spread over.
        cores: cores available on a host; default: those this process may run on.
        uid: user id; default: of this process.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    uid = os.getuid() if uid is None else uid
    wanted: dict[str, str] = {}
    if family is Family.OPENMPI:
        # A rank has helper threads; bound to one core (the default) they would share it.
        wanted["PRTE_MCA_hwloc_default_binding_policy"] = "none"
        wanted["OMPI_MCA_hwloc_base_binding_policy"] = "none"  # the same for version 4
        if uid == 0:
            wanted["OMPI_ALLOW_RUN_AS_ROOT"] = "1"
            wanted["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
        if hosts == 1:
            # More ranks than cores is fine here. Networks are left out because probing them takes a second,
            # by name because version 4 calls shared memory otherwise; only ob1 ends reliably after a failure.
            wanted["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
            wanted["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
            wanted["OMPI_MCA_pml"] = "ob1"
            wanted["OMPI_MCA_btl"] = "^ofi,uct,openib,usnic,smcuda"
            wanted["OMPI_MCA_osc"] = "^ucx"
    elif family is Family.INTEL:
        wanted["I_MPI_PIN"] = "0"
        wanted["I_MPI_THREAD_YIELD"] = "3"
    local_ranks = -(-job.nproc // hosts)
    threads = str(job.threads or max(1, cores // local_ranks))
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        wanted[f"{name}_NUM_THREADS"] = threads
    wanted["HOME"] = _home()
    added = {name: value for name, value in wanted.items() if name not in env}
    if job.threads is not None:  # asked for on this very command line
        added |= {name: threads for name in wanted if name.endswith("_NUM_THREADS")}
    if os.path.dirname(path) not in env.get("PATH", "").split(os.pathsep):
        # Intel's and MPICH's mpirun start their helpers by name.
        added["PATH"] = _path_with(path, env)
    return added


def command(family: Family, path: str, job: Job, exported: Sequence[str] = ()) -> list[str]:
    """The mpirun command line.

    Args:
        exported: names of variables that ranks on other hosts need; Open MPI passes them only when
            told to, the others pass the whole environment.
    """
    line = [path, "-n", str(job.nproc)]
    if job.hostfile is not None:
        line += ["--hostfile" if family is Family.OPENMPI else "-f", job.hostfile]
    if job.host is not None:
        line += ["--host" if family is Family.OPENMPI else "-hosts", job.host]
    if family is Family.OPENMPI:
        for name in exported:
            line += ["-x", name]
    return [*line, *job.argv]


@dataclass(frozen=True)
class RankEnd:
    """How mpirun says that a rank ended; None is what it does not say.

    Attributes:
        verb: "MPI_Abort", or "no finalize" for a rank that left the others without MPI_Finalize.
    """

    rank: int | None = None
    pid: int | None = None
    code: int | None = None
    signal: int | None = None
    verb: str | None = None


def parse_end(text: str) -> RankEnd | None:
    """Reads mpirun's last words: which process failed first, and how. None: nothing recognised."""
    match = re.search(r"process rank (\d+) with PID (\d+) .*?exited on\s+signal (\d+)", text, re.S)
    if match:  # Open MPI, signal
        return RankEnd(rank=int(match[1]), pid=int(match[2]) or None, signal=int(match[3]))
    match = re.search(r"Process name:\s+\[.*,\s*(\d+)\]\s+Exit code:\s+(\d+)", text)
    if match:  # Open MPI, exit status
        return RankEnd(rank=int(match[1]), code=int(match[2]))
    match = re.search(r"MPI_ABORT was invoked on rank (\d+) .*?[Ee]rror ?code:? +(\d+)", text, re.S)
    if match:
        return RankEnd(rank=int(match[1]), code=int(match[2]), verb="MPI_Abort")
    match = re.search(r"process rank (\d+) with PID (\d+) .*?\s(calling|exiting)\s", text, re.S)
    if match:  # Open MPI: 'calling "abort"', 'exiting improperly'
        verb = "MPI_Abort" if match[3] == "calling" else "no finalize"
        return RankEnd(rank=int(match[1]), pid=int(match[2]) or None, verb=verb)
    match = re.search(r"RANK (\d+) PID (\d+) RUNNING AT .*\s+=\s+KILLED BY SIGNAL: (\d+)", text)
    if match:  # Intel MPI, signal
        return RankEnd(rank=int(match[1]), pid=int(match[2]), signal=int(match[3]))
    match = re.search(r"PID (\d+) RUNNING AT .*\s+=\s+EXIT (?:CODE|STATUS): (\d+)", text)
    if match:  # MPICH; for a signal, the exit code is the signal's number
        by_signal = re.search(r"EXIT STRING: .*\(signal (\d+)\)", text)
        if by_signal:
            return RankEnd(pid=int(match[1]), signal=int(by_signal[1]))
        return RankEnd(pid=int(match[1]), code=int(match[2]))
    return None


def _path_with(path: str, env: Mapping[str, str]) -> str:
    return os.pathsep.join(filter(None, (os.path.dirname(path), env.get("PATH", os.defpath))))


def _home() -> str:
    # Open MPI does not start without HOME; a container's user may have no entry in the user list.
    home = os.path.expanduser("~")
    return home if os.path.isabs(home) else "/"
