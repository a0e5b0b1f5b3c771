"""`torch.multiprocessing`'s names: Python's `multiprocessing`, and `spawn` over MPI ranks.

Owns: `start_processes`, the names of sharing strategies. The rank starter is `dptrain.launch`.
"""

from collections.abc import Callable, Sequence
from multiprocessing import *  # noqa: F403
from multiprocessing import __all__ as _pythons
from typing import Any

from dptrain.launch.spawning import (
    ProcessContext,
    ProcessException,
    ProcessExitedException,
    ProcessRaisedException,
    spawn,
)

#: PyTorch's older name.
SpawnContext = ProcessContext


def start_processes(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    nprocs: int = 1,
    join: bool = True,
    daemon: bool = False,
    start_method: str = "spawn",
) -> ProcessContext | None:
    """As `spawn`, for scripts that choose how processes start; ranks always start anew.

    Raises:
        ValueError: `start_method` is none of Python's.
    """
    if start_method not in ("fork", "forkserver", "spawn"):
        raise ValueError(f"cannot find context for {start_method!r}")
    return spawn(fn, args, nprocs, join, daemon)


def get_all_sharing_strategies() -> set[str]:
    """The names that `set_sharing_strategy` takes."""
    return {"file_descriptor", "file_system"}


def get_sharing_strategy() -> str:
    """How batches of workers share memory here: through files without a name."""
    return "file_descriptor"


def set_sharing_strategy(new_strategy: str) -> None:
    """Accept a name of PyTorch's, without effect: how workers share memory is not chosen here.

    Raises:
        AssertionError: no such name.
    """
    if new_strategy not in get_all_sharing_strategies():
        raise AssertionError(
            f"invalid sharing strategy {new_strategy!r}, expected one of {get_all_sharing_strategies()}"
        )


__all__ = [
    *_pythons,
    "ProcessContext",
    "ProcessException",
    "ProcessExitedException",
    "ProcessRaisedException",
    "SpawnContext",
    "get_all_sharing_strategies",
    "get_sharing_strategy",
    "set_sharing_strategy",
    "spawn",
    "start_processes",
]
