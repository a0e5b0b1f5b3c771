"""Which samples a rank sees: one order over all samples per epoch, dealt out to the ranks in turn.

Owns: `DistributedSampler`. Must not know: how ranks talk to each other, gradients, models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np

from dptrain.core.random import numpy_stream
from dptrain.data.ranks import group_of_ranks
from dptrain.data.sampler import ORDER_STREAM, Sampler, is_positive_int


class DistributedSampler(Sampler[int]):
    """Deals the samples of a dataset out to the ranks, as `torch.utils.data.DistributedSampler`.

    All ranks compute the same order of all samples; rank r takes places r, r + num_replicas, ... of it.
    If the samples do not divide evenly, the order is first extended by its own front (repeated as often
    as necessary), or, with `drop_last`, cut short, so that all ranks have equally many.

    Beyond PyTorch:

    * The permutation of an epoch comes from a Philox stream keyed by the pair (seed, epoch). PyTorch
      seeds with the sum, so that there (seed 0, epoch 1) repeats (seed 1, epoch 0). The permutations
      themselves differ from PyTorch's.
    * `pad=False` is for evaluation: ranks get unequal shares (by one at most), every sample exactly once.
    * `DataLoader` advances the epoch by itself when `set_epoch` was not called since the last pass.
    * The position within an epoch, `samples_consumed`, counts places of the one order over all ranks;
      what is left of the epoch can therefore be dealt out to another number of ranks.

    Args:
        dataset: the dataset, of which only the length is used; it may be empty.
        num_replicas: number of ranks; by default that of the default communicator.
        rank: which of them this is; by default the default communicator's.
        shuffle: a new random order every epoch, else the order of the dataset.
        seed: must be equal on all ranks.
        drop_last: cut the order short instead of extending it.
        pad: whether the order is extended at all; must be True with `drop_last`.

    Attributes:
        num_samples: samples per whole epoch on this rank.
        total_size: samples per whole epoch on all ranks, repeated ones included.
        epoch: the epoch of the next pass.
        samples_consumed: place of the order, over all ranks, at which the next pass begins.

    Raises:
        ValueError: `num_replicas` is not positive, `rank` is not below it, or `drop_last` meets `pad=False`.
        RuntimeError: both are to be found out, a launcher started several ranks, and the process group
            is not initialised.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        pad: bool = True,
    ) -> None:
        if num_replicas is None or rank is None:
            group = group_of_ranks("DistributedSampler without num_replicas and rank")
            num_replicas = group.world_size if num_replicas is None else num_replicas
            rank = group.rank if rank is None else rank
        if not is_positive_int(num_replicas):
            raise ValueError(
                f"num_replicas should be a positive integer value, but got num_replicas={num_replicas}"
            )
        if rank >= num_replicas or rank < 0:
            raise ValueError(
                f"Invalid rank {rank}, rank should be in the interval [0, {num_replicas - 1}]"
            )
        if drop_last and not pad:
            raise ValueError(
                "drop_last=True drops samples and pad=False keeps every one exactly once; choose one"
            )
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        self.drop_last = drop_last
        self.pad = pad
        self.shuffle = shuffle
        self.seed = seed
        self.samples_consumed = 0
        self._epoch_chosen = False
        self._passes_begun = False
        self.total_size = self._dealt(len(dataset))
        self.num_samples = len(range(rank, self.total_size, num_replicas))

    def _dealt(self, remaining: int) -> int:
        """How many places are dealt out when `remaining` samples are left."""
        if not self.pad:
            return remaining
        whole_rounds, left_over = divmod(remaining, self.num_replicas)
        if left_over and not self.drop_last:
            whole_rounds += 1
        return whole_rounds * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        # A position restored from a checkpoint holds for one pass.
        start, self.samples_consumed = min(self.samples_consumed, len(order)), 0
        rest = order[start:]
        dealt = self._dealt(len(rest))
        if dealt > len(rest):
            # np.resize repeats the front of the whole order as often as necessary.
            rest = np.concatenate([rest, np.resize(order, dealt - len(rest))])
        return iter(rest[self.rank : dealt : self.num_replicas].tolist())

    def _order(self) -> np.ndarray:
        size = len(self.dataset)
        if not self.shuffle:
            return np.arange(size)
        return numpy_stream(self.seed, ORDER_STREAM, self.epoch).permutation(size)

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; another one than the present begins at its first sample.

        Args:
            epoch: counted from 0, equal on all ranks.
        """
        if epoch != self.epoch:
            self.samples_consumed = 0
        self.epoch = epoch
        self._epoch_chosen = True

    def begin_pass(self) -> int:
        """Settle the epoch of the pass that a loader is about to begin, and return it.

        It is the one given to `set_epoch` since the last pass began, else the one after the last
        pass's, the first being 0.
        """
        if self._passes_begun and not self._epoch_chosen:
            self.set_epoch(self.epoch + 1)
        self._passes_begun, self._epoch_chosen = True, False
        return self.epoch

    def place_after(self, place: int, count: int) -> int:
        """The place of the order that is reached when every rank takes `count` samples from `place` on."""
        return min(place + count * self.num_replicas, len(self.dataset))

    def state_dict(self) -> dict[str, Any]:
        """What the order of an epoch depends on, equal on all ranks: seed, epoch, shuffle."""
        return {"seed": self.seed, "epoch": self.epoch, "shuffle": self.shuffle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass be of a saved seed and epoch; the number of ranks may be another one.

        Raises:
            ValueError: the state is of a shuffled order and this sampler's is not, or the reverse.
        """
        if state["shuffle"] != self.shuffle:
            raise ValueError(
                f"the saved data order has shuffle={state['shuffle']}, this DistributedSampler has "
                f"shuffle={self.shuffle}; continue with the arguments that the run began with"
            )
        self.seed = state["seed"]
        self.samples_consumed = 0
        self.set_epoch(state["epoch"])
