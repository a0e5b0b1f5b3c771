"""What ranks that train together do in a call of a compiled function: all the same, or each as it is.

Owns: `Ranks`, why communication cannot be recorded. Must not know: recordings.

A replay makes no meetings over MPI: what NCCL does is in the graph. A rank that replays beside one that
does not would let it wait for ever, so that the ranks agree before each call, in one message of a few bytes.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

from dptrain.compiler.state import Survey
from dptrain.parallel.ddp import DistributedDataParallel


class Wish(enum.IntEnum):
    """What a rank is ready for."""

    AS_IT_IS = 0
    RECORD = 1
    REPLAY = 2


def why_not_recorded(found: Survey, on_gpu: bool) -> str | None:
    """Why the communication of what is in reach cannot be recorded, if so."""
    for value in found.parallel:
        if not on_gpu or not isinstance(value, DistributedDataParallel):
            return f"{type(value).__name__} is in reach: its communication is not recorded"
        reason = value.why_not_recorded()
        if reason is not None:
            return reason
    return None


def is_of_ranks(hook: Any) -> bool:
    """Whether a hook belongs to what connects ranks, which a graph holds."""
    return type(getattr(hook, "__self__", None)).__module__.startswith("dptrain.parallel")


class Ranks:
    """The groups of ranks whose models are in reach of a compiled function.

    Args:
        found: what is in its reach.
    """

    def __init__(self, found: Survey) -> None:
        models = [v for v in found.parallel if isinstance(v, DistributedDataParallel)]
        groups = {
            id(m.communicator): m.communicator for m in models if m.why_not_recorded() is None
        }
        self._groups = [group for group in groups.values() if group.world_size > 1]

    def agree(self, wish: Wish) -> bool:
        """Whether all ranks are ready for the same. Collective.

        A rank that has run out of data, whose part in the others' averages is answered for it, is not.
        """
        same = True
        for group in self._groups:
            votes = np.zeros(len(Wish))
            votes[wish] = 1
            group.all_reduce(votes, name="compile: replay or not", joinable=True, async_op=False)
            same = same and votes[wish] == group.world_size
        return same
