"""The job's processes on this host, read from ``/proc``: who is left, ending them, what they leave.

Owns: finding processes by session and ancestry, killing them for certain, and the MPI libraries'
shared-memory files of a killed job. Must not know: ranks, failures, the side channel. Linux; where
there is no ``/proc`` nothing is found and only mpirun's own group can be signalled.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Names under which Open MPI and MPICH create segments; the rest of the name is the job's own.
_SEGMENT = re.compile(r" (/dev/shm/(?:sm_segment\.|mpich_shm_)[\w.-]+)(?: \(deleted\))?$", re.M)


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose parent dies, so that none gets away."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """In a child between fork and exec: have the kernel end it when the launcher dies."""
    # SIGTERM lets mpirun end its ranks and remove its session directory.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _table() -> dict[int, tuple[int, int]]:
    """Parent and session of every process that is not a zombie."""
    table: dict[int, tuple[int, int]] = {}
    if not os.path.isdir("/proc/self"):
        return table
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{name}/stat", "rb") as file:
                # "pid (command) state ppid pgrp session ..."; the command may contain anything
                fields = file.read().rpartition(b")")[2].split()
            if fields[0] not in (b"Z", b"X"):
                table[int(name)] = (int(fields[1]), int(fields[3]))
    return table


def of_job(session: int) -> list[int]:
    """Processes of the session and descendants of this process, this one excluded."""
    table = _table()
    me = os.getpid()
    found: set[int] = set()
    for pid in table:
        if pid == me:
            continue
        ancestor, seen = pid, 0
        while ancestor in table and seen < 1000:
            parent, own_session = table[ancestor]
            if own_session == session or parent == me:
                found.add(pid)
                break
            ancestor, seen = parent, seen + 1
    return sorted(found)


def signal_each(pids: list[int], number: int) -> None:
    """Sends a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_job(session: int, patience_s: float = 2.0) -> list[int]:
    """Kills every process of the job and waits until they are gone.

    Returns:
        The processes that did not go within ``patience_s`` (blocked in the kernel).
    """
    deadline = time.monotonic() + patience_s
    while True:
        _reap()
        left = of_job(session)
        if not left or time.monotonic() > deadline:
            return left
        # Again and again: a process may have been forked since the list was made.
        signal_each(left, signal.SIGKILL)
        time.sleep(0.005)


def _reap() -> None:
    # Orphans adopted from mpirun; its own status was collected before.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def mapped_segments(pids: list[int]) -> set[str]:
    """Shared-memory files of MPI libraries that these processes have mapped."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as file:
            found.update(_SEGMENT.findall(file.read()))
    return found


def remove_segments(paths: set[str]) -> None:
    """Removes segments that a killed job left behind."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
