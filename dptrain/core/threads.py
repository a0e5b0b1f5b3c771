"""How many threads the matrix library of this process uses.

Owns: `set_num_threads`, `get_num_threads`. Must not know: ranks; whoever does divides the cores.
"""

from __future__ import annotations

import os

import numpy  # noqa: F401  loads the BLAS library that is limited here


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(num_threads: int) -> None:
    """Let matrix products use `num_threads` threads, from now on and for the whole process.

    Raises:
        RuntimeError: fewer than one thread.
    """
    if num_threads < 1:
        raise RuntimeError(f"set_num_threads expects a positive integer, got {num_threads}")
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=num_threads, user_api="blas")


def get_num_threads() -> int:
    """Threads that matrix products use."""
    from threadpoolctl import threadpool_info

    return max((p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"), default=1)
