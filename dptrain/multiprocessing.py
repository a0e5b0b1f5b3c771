"""`torch.multiprocessing`'s names: Python's `multiprocessing`, and `spawn` over MPI ranks.

Owns: nothing; the rank starter is `dptrain.launch`.
"""

from multiprocessing import *  # noqa: F403
from multiprocessing import __all__ as _pythons

from dptrain.launch.spawning import (
    ProcessContext,
    ProcessException,
    ProcessExitedException,
    ProcessRaisedException,
    spawn,
)

__all__ = [
    *_pythons,
    "ProcessContext",
    "ProcessException",
    "ProcessExitedException",
    "ProcessRaisedException",
    "spawn",
]
