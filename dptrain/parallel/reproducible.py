"""The same bits on any number of ranks: a step over virtual shards whose gradients are summed exactly.

Owns: `ShardedStep`, `exact_mean`. Must not know: backends, how data is loaded.

Two things make results depend on the number of ranks: kernels that see batches of other shapes, and
floating point sums in another order. So the global batch is cut into a fixed number of shards, each of
which is computed alone, whoever computes it; and sums over shards are made in integers, which add up
to the same in any order. Each tensor is scaled by the power of two that brings its largest element, of
all shards, just below what 64 bits hold for that many summands; the rounding to integers is that of
each shard alone. It is finer than that of a sum in float32, and about that of one in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dptrain.comm.communicator import Communicator
from dptrain.core.arrays import device_of, move, namespace_of, to_host
from dptrain.core.creation import tensor
from dptrain.core.dtypes import float64
from dptrain.core.random import (
    Generator,
    current_shard,
    default_generator,
    set_shard,
    use_generator,
)
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.module import Module
from dptrain.parallel.reducer import Reducer

Array = np.ndarray[Any, Any]
_SHARDS_OF_TRUE = 8


def shard_count(reproducible: bool | int) -> int:
    """The number of shards that the argument `reproducible` means; 0 for none.

    Raises:
        ValueError: negative.
    """
    if reproducible is True:
        return _SHARDS_OF_TRUE
    if reproducible < 0:
        raise ValueError(f"reproducible must be a number of shards, or a bool, got {reproducible}")
    return int(reproducible)


def exact_mean(
    summands: Sequence[Sequence[Array]],
    like: Sequence[Array],
    count: int,
    communicator: Communicator,
    name: str,
) -> list[Array]:
    """For each tensor the sum of all ranks' summands divided by `count`, in any order the same bits.

    Where a summand is not finite, the result is not a number. Computed on the host. Collective.

    Args:
        summands: this rank's summands of each tensor; there may be none.
        like: arrays of the tensors' shapes and types.
        count: how many summands there are on all ranks, at most.
        communicator: connects the ranks.
        name: for messages.
    """
    largest = np.zeros(len(like))
    for i, terms in enumerate(summands):
        for term in terms:
            magnitude = np.abs(to_host(term).astype(np.float64))
            largest[i] = max(largest[i], magnitude[np.isfinite(magnitude)].max(initial=0.0))
    communicator.all_reduce(largest, "max", name=f"{name} scales", async_op=False)
    # Each of `count` summands stays below 2 ** (62 - headroom), so that their sum fits.
    headroom = math.ceil(math.log2(max(count, 1)))
    shifts = 62 - headroom - np.frexp(largest)[1]
    sizes = [a.size for a in like]
    ends = np.cumsum([0, *sizes])
    # The last element counts values that are not finite: only then they are looked for.
    totals = np.zeros(int(ends[-1]) + 1, np.int64)
    bad = np.zeros(int(ends[-1]), np.uint8)
    for i, terms in enumerate(summands):
        part = totals[ends[i] : ends[i + 1]]
        for term in terms:
            flat = to_host(term).reshape(-1).astype(np.float64)
            lost = np.logical_not(np.isfinite(flat))
            if lost.any():
                bad[ends[i] : ends[i + 1]][lost] = 1
                totals[-1] += 1
                flat[lost] = 0
            part += np.rint(np.ldexp(flat, shifts[i])).astype(np.int64)
    communicator.all_reduce(totals, name=f"{name} exact sums", async_op=False)
    if totals[-1]:
        communicator.all_reduce(bad, "max", name=f"{name} not finite", async_op=False)
    found = []
    for i, a in enumerate(like):
        mean = np.ldexp(totals[ends[i] : ends[i + 1]].astype(np.float64), -shifts[i]) / count
        mean[bad[ends[i] : ends[i + 1]] != 0] = np.nan
        found.append(move(mean.astype(a.dtype).reshape(a.shape), device_of(a)))
    return found


class ShardedStep:
    """Forward and backward of a global batch, shard by shard.

    Args:
        module: the model.
        reducer: is switched off meanwhile.
        shards: into how many shards a batch is cut.
        name: first part of the name of every collective.

    Attributes:
        steps: how many batches there were; the random numbers of a step depend on it.
    """

    def __init__(self, module: Module, reducer: Reducer, shards: int, name: str) -> None:
        self._module, self._reducer, self.shards, self._name = module, reducer, shards, name
        self.steps = 0

    @property
    def own(self) -> range:
        """The shards that this rank computes: its part of their contiguous order."""
        comm = self._reducer.communicator
        first, last = (self.shards * r // comm.world_size for r in (comm.rank, comm.rank + 1))
        return range(first, last)

    def run(self, loss_fn: Callable[..., Tensor], batch: Sequence[Tensor]) -> Tensor:
        """See `DistributedDataParallel.shard_backward`."""
        size = self._shard_size(batch)
        params = [p for s in self._reducer.sections for p in s.params()]
        # Copies: the shards' gradients are computed where the held ones lie.
        held = [None if p._grad is None else p._grad._array.copy() for p in params]
        was_enabled, self._reducer.enabled = self._reducer.enabled, False
        try:
            grads, ends, losses = self._shards(loss_fn, batch, size, params)
        finally:
            self._reducer.enabled = was_enabled
            for p, array in zip(params, held, strict=True):
                _put(p, array)
        self._settle_grads(params, grads)
        self._settle_buffers(ends)
        self.steps += 1
        self._reducer.step_check.backward_done()  # Also on a rank that has no shard.
        self._reducer.communicator.all_reduce(losses, name=f"{self._name} losses", async_op=False)
        return tensor(losses.sum() / self.shards, dtype=float64)

    def _shards(
        self,
        loss_fn: Callable[..., Tensor],
        batch: Sequence[Tensor],
        size: int,
        params: Sequence[Tensor],
    ) -> tuple[list[list[Array]], list[list[Array]], Array]:
        """Gradients of each parameter and values of each buffer, by shard, and the shards' losses."""
        buffers = list(self._module.buffers())
        start = [b._array.copy() for b in buffers]
        grads: list[list[Array]] = [[] for _ in params]
        ends: list[list[Array]] = [[] for _ in buffers]
        losses = np.zeros(self.shards)
        for shard in self.own:
            for p in params:
                p._grad = None
            part = [t[shard * size : (shard + 1) * size] for t in batch]
            with self._random_numbers(shard):
                loss = loss_fn(self._module(part[0]), *part[1:])
                loss.backward()
            losses[shard] = loss.item()
            for p, found in zip(params, grads, strict=True):
                if p._grad is not None:
                    found.append(p._grad._array.copy())
            for b, before, after in zip(buffers, start, ends, strict=True):
                after.append(b._array.copy())
                np.copyto(b._array, before)  # every shard starts from the same values
        return grads, ends, losses

    def _shard_size(self, batch: Sequence[Tensor]) -> int:
        if not batch or not all(isinstance(t, Tensor) and t.ndim for t in batch):
            raise TypeError(
                "shard_backward expected tensors with a first dimension: inputs, targets, ..."
            )
        sizes = {t.shape[0] for t in batch}
        if len(sizes) != 1 or (total := sizes.pop()) % self.shards or not total:
            raise ValueError(
                f"shard_backward: the global batch must be a multiple of reproducible={self.shards} samples, got tensors "
                f"of shapes {[list(t.shape) for t in batch]}"
            )
        return int(total) // self.shards

    @contextmanager
    def _random_numbers(self, shard: int) -> Iterator[None]:
        """Random numbers that depend on seed, step and shard, and not on who computes it."""
        seed, before = default_generator().initial_seed(), current_shard()
        key = np.random.SeedSequence((seed % 2**32, seed >> 32, self.steps, shard))
        generator = Generator().manual_seed(
            int(key.generate_state(1, np.uint64)[0] >> np.uint64(1))
        )
        set_shard(shard)
        try:
            with use_generator(generator):
                yield
        finally:
            set_shard(before)

    def _settle_grads(self, params: Sequence[Tensor], grads: Sequence[Sequence[Array]]) -> None:
        communicator = self._reducer.communicator
        used = np.array([len(found) for found in grads], np.int64)
        communicator.all_reduce(used, name=f"{self._name} used parameters", async_op=False)
        means = exact_mean(
            grads, [p._array for p in params], self.shards, communicator, f"{self._name} gradients"
        )
        for p, mean, count in zip(params, means, used, strict=True):
            if count:
                _put(p, mean if p._grad is None else p._grad._array + mean)

    def _settle_buffers(self, ends: Sequence[Sequence[Array]]) -> None:
        """Buffers become the mean of what the shards made of them; counters what one made."""
        communicator = self._reducer.communicator
        pairs = list(zip(self._module.buffers(), ends, strict=True))
        floating = [(b, found) for b, found in pairs if b.is_floating_point()]
        means = exact_mean(
            [found for _, found in floating],
            [b._array for b, _ in floating],
            self.shards,
            communicator,
            f"{self._name} buffers",
        )
        for (b, _), mean in zip(floating, means, strict=True):
            np.copyto(b._array, mean)
            b._bump_version()
        counters = [(b, found) for b, found in pairs if not b.is_floating_point()]
        last = communicator.world_size - 1  # always has a shard, the last one
        for b, found in counters:
            last_seen = found[0] if found else b._array
            array = namespace_of(last_seen).ascontiguousarray(last_seen).reshape(-1)
            communicator.broadcast(array, last, name=f"{self._name} counters", async_op=False)
            np.copyto(b._array, array.reshape(b._array.shape))
            b._bump_version()


def _put(p: Tensor, array: Array | None) -> None:
    """Make `array` the gradient, in its place in flat storage if it has one."""
    if array is None:
        p._grad = None
    elif p._slot is None:
        p._grad = wrap(array)
    else:
        if p._grad is not p._slot:
            p._place.storage.free_slot(p._place.position)
        np.copyto(p._slot._array, array)
        p._grad = p._slot
