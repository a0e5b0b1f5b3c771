"""Averaged gradients that only the rank that updates their parameters gets.

Owns: `GradientOwners`, which a reducer asks in place of an all-reduce. Must not know: optimizers, how
parameters are divided among ranks.

A bucket is reduced in one call for each rank that owns some of it, and parameters are divided in large
contiguous ranges, so that these are few: together a reduce-scatter of the gradients. It moves half of
what an all-reduce does, in the same order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from dptrain.comm.communicator import Communicator, Work
from dptrain.core.tensor import Tensor
from dptrain.parallel.bucket_state import BucketState
from dptrain.parallel.weights import OnceAveraged

if TYPE_CHECKING:
    from dptrain.parallel.reducer import Reducer

INCOMPLETE = (
    "the gradients of this DistributedDataParallel are divided among the ranks by "
    "ZeroRedundancyOptimizer.reduce_scatter, so that this rank sees its own alone; clip them with the "
    "optimizer's clip_grad_norm_, or do not call reduce_scatter"
)


class GradientOwners:
    """Who gets which averaged gradient.

    Args:
        owner_of: the rank that updates a parameter.
        rank: this rank.
    """

    def __init__(self, owner_of: Callable[[Tensor], int], rank: int) -> None:
        self._owner_of, self._rank = owner_of, rank
        # A rank adds to averages, the others to nothing: their sum would be no gradient.
        self._once = OnceAveraged("ZeroRedundancyOptimizer.reduce_scatter")

    def watch(self, reducer: Reducer, params: Iterable[Tensor]) -> None:
        """Take over these parameters of a reducer."""
        for p in params:
            p.register_hook(self._once.hook(p, reducer.name_of(p)))
        for section in reducer.sections:
            section.storage.incomplete = INCOMPLETE

    def reduce(self, bucket: BucketState, communicator: Communicator, async_op: bool) -> Work:
        """Average the bucket's parts, each on its owner; the last of the calls, which run in order."""
        storage, work = bucket.section.storage, None
        for owner, first, last in self._parts(bucket):
            part = storage.grad_memory[storage.places[first].start : storage.places[last].stop]
            name = f"{bucket.name} for rank {owner}"
            work = communicator.reduce(part, owner, "avg", name=name, async_op=async_op)
        assert work is not None
        return work

    def _parts(self, bucket: BucketState) -> list[tuple[int, int, int]]:
        """Owner, first and last position in the storage, of neighbours with one owner."""
        parts: list[tuple[int, int, int]] = []
        for i in bucket.members:
            owner = self._owner_of(bucket.section.storage.params[i])
            if parts and parts[-1][0] == owner:
                parts[-1] = (owner, parts[-1][1], i)
            else:
                parts.append((owner, i, i))
        return parts

    def keep_own(self, params: Iterable[Tensor]) -> None:
        """Leave `grad` to this rank's parameters alone."""
        own = []
        for p in params:
            if self._owner_of(p) != self._rank:
                p._grad = None
            elif p._grad is not None:
                own.append(p)
        self._once.done(own)
