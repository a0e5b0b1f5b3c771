"""How many threads the matrix library and the kernels of this process use.

Owns: `set_num_threads`, `get_num_threads`. Must not know: ranks; whoever does divides the cores.
"""

from __future__ import annotations

import os

import numpy  # noqa: F401  loads the BLAS library that is limited here

_threads: int | None = None


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(num_threads: int) -> None:
    """Let matrix products and kernels use `num_threads` threads, from now on and for the whole process.

    Raises:
        RuntimeError: fewer than one thread.
    """
    global _threads
    if num_threads < 1:
        raise RuntimeError(f"set_num_threads expects a positive integer, got {num_threads}")
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=num_threads, user_api="blas")
    _threads = num_threads


def get_num_threads() -> int:
    """Threads that matrix products and kernels use; at first as many as the BLAS library's."""
    global _threads
    if _threads is None:
        from threadpoolctl import threadpool_info

        libraries = [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
        _threads = max(libraries, default=1)
    return _threads
