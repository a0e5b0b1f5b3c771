"""Communicators: arrays between ranks, whatever connects them.

Owns: the contract (`communicator.py`), its backends, rank discovery and the watch over missing
ranks. Must not know: tensors, models, gradients.
"""

from dptrain.comm.communicator import Communicator, JoinResult, ReduceOp, Work
from dptrain.comm.default import default_communicator, init, is_initialized, set_default
from dptrain.comm.env import ProcessEnv, discover
from dptrain.comm.errors import (
    CollectiveMismatchError,
    CollectiveTimeoutError,
    CommunicatorError,
    NetworkError,
    RankLeftError,
)
from dptrain.comm.thread import run_ranks

__all__ = [
    "CollectiveMismatchError",
    "CollectiveTimeoutError",
    "Communicator",
    "CommunicatorError",
    "JoinResult",
    "ProcessEnv",
    "NetworkError",
    "RankLeftError",
    "ReduceOp",
    "Work",
    "default_communicator",
    "discover",
    "init",
    "is_initialized",
    "run_ranks",
    "set_default",
]
