"""Samplers of one process: in which order sample numbers come, and how they are cut into batches.

Owns: `Sampler`, `SequentialSampler`, `RandomSampler`, `SubsetRandomSampler`, `WeightedRandomSampler`,
`BatchSampler`, `EndlessSampler`. Must not know: processes (see
`dptrain.data.distributed`), the samples themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain, islice, repeat
from typing import Any, Generic, TypeVar

import numpy as np

from dptrain.core.creation import as_tensor
from dptrain.core.dtypes import float64
from dptrain.core.random import Generator, default_generator, numpy_stream
from dptrain.core.tensor import Tensor

T_co = TypeVar("T_co", covariant=True)

#: The purpose in the random stream's key: keeps data order apart from other uses of the same seed.
ORDER_STREAM = 2


class Sampler(Generic[T_co]):
    """Base of the samplers: implement `__iter__()`, and `__len__()` where the length is known.

    A sampler whose order can be repeated says so with `state_dict()` and `load_state_dict(state)`;
    `DataLoader` needs both to continue in the middle of an epoch.
    """

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(f"{type(self).__name__} must implement __iter__()")


class SequentialSampler(Sampler[int]):
    """Sample numbers in order.

    Args:
        data_source: the dataset, of which only the length is used.
    """

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the order is always the same."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class _SeededSampler(Sampler[int]):
    """A random order that can be repeated from one number.

    Every pass draws one 64-bit seed from the generator and keys its own Philox stream with it. The
    orders differ from PyTorch's for equal seeds.
    """

    def __init__(self, generator: Generator | None) -> None:
        self.generator = generator
        self._pass_seed: int | None = None
        self._repeat_seed: int | None = None

    def __iter__(self) -> Iterator[int]:
        if self._repeat_seed is not None:
            seed, self._repeat_seed = self._repeat_seed, None
        else:
            generator = default_generator() if self.generator is None else self.generator
            seed = int(generator.stream().integers(2**63))
        self._pass_seed = seed
        return self._order(numpy_stream(seed, ORDER_STREAM))

    def _order(self, stream: np.random.Generator) -> Iterator[int]:
        """The numbers of one pass."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What repeats the order of the pass begun last: `{"seed": int}` (None before the first)."""
        return {"seed": self._pass_seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass have the order of a saved one; the passes after it are drawn again."""
        self._repeat_seed = self._pass_seed = state["seed"]


class RandomSampler(_SeededSampler):
    """Sample numbers in random order, with or without replacement.

    Args:
        data_source: the dataset, of which only the length is used.
        replacement: draw each number independently of the others.
        num_samples: how many numbers a pass yields; by default the length of the dataset.
        generator: source of the seeds; by default the generator that `dptrain.manual_seed` seeds.

    Raises:
        TypeError: `replacement` is no bool.
        ValueError: `num_samples` is no positive integer (also for an empty dataset, as in PyTorch).
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(generator)
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        if not isinstance(replacement, bool):
            raise TypeError(
                f"replacement should be a boolean value, but got replacement={replacement}"
            )
        _check_count(self.num_samples)

    @property
    def num_samples(self) -> int:
        """How many numbers a pass yields."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def _order(self, stream: np.random.Generator) -> Iterator[int]:
        return chain.from_iterable(self._runs(stream))  # list by list, not number by number

    def _runs(self, stream: np.random.Generator) -> Iterator[list[int]]:
        size, remaining = len(self.data_source), self.num_samples
        while remaining > 0:
            count = min(size, remaining)
            drawn = (
                stream.integers(size, size=count) if self.replacement else stream.permutation(size)
            )
            yield drawn[:count].tolist()
            remaining -= count

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(_SeededSampler):
    """The given sample numbers in random order, each once.

    Args:
        indices: the numbers.
        generator: as in `RandomSampler`.
    """

    def __init__(self, indices: Sequence[int], generator: Generator | None = None) -> None:
        super().__init__(generator)
        self.indices = indices

    def _order(self, stream: np.random.Generator) -> Iterator[int]:
        return (self.indices[i] for i in stream.permutation(len(self.indices)).tolist())

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(_SeededSampler):
    """Sample numbers drawn with given probabilities.

    Args:
        weights: one per sample, not negative; they need not sum to one.
        num_samples: how many numbers a pass yields.
        replacement: draw each independently of the others, else every number at most once.
        generator: as in `RandomSampler`.

    Raises:
        ValueError: `num_samples` is no positive integer, `replacement` no bool, or `weights` have more
            than one dimension.
        RuntimeError: when a pass begins: the weights are no distribution, or too few for so many samples.
    """

    weights: Tensor

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(generator)
        _check_count(num_samples)
        if not isinstance(replacement, bool):
            raise ValueError(
                f"replacement should be a boolean value, but got replacement={replacement}"
            )
        self.weights = as_tensor(weights, dtype=float64)
        if self.weights.dim() != 1:
            raise ValueError(
                "weights should be a 1d sequence but given weights have shape "
                f"{tuple(self.weights.shape)}"
            )
        self.num_samples = num_samples
        self.replacement = replacement

    def _order(self, stream: np.random.Generator) -> Iterator[int]:
        weights = self.weights.numpy()
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise RuntimeError(
                "invalid multinomial distribution: the weights must be finite and not negative"
            )
        if not weights.any():
            raise RuntimeError("invalid multinomial distribution: the weights sum to 0")
        if self.replacement:
            drawn = stream.choice(weights.size, self.num_samples, p=weights / weights.sum())
        elif self.num_samples > weights.size:
            raise RuntimeError(
                f"cannot sample {self.num_samples} of {weights.size} numbers without replacement"
            )
        else:
            # The waiting times of independent Poisson processes with these rates: which comes first is drawn
            # by weight, and so is the next of those that are left.
            waiting = np.full(weights.size, np.inf)
            np.divide(stream.exponential(size=weights.size), weights, waiting, where=weights > 0)
            drawn = np.argsort(waiting, kind="stable")[: self.num_samples]
        return iter(drawn.tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Cuts the numbers of another sampler into lists.

    Args:
        sampler: any iterable of sample numbers.
        batch_size: numbers per list.
        drop_last: leave out a last list that is shorter.

    Raises:
        ValueError: `batch_size` is no positive integer, or `drop_last` is no bool.
    """

    def __init__(
        self, sampler: Sampler[int] | Iterable[int], batch_size: int, drop_last: bool
    ) -> None:
        if not is_positive_int(batch_size):
            raise ValueError(
                f"batch_size should be a positive integer value, but got batch_size={batch_size}"
            )
        if not isinstance(drop_last, bool):
            raise ValueError(f"drop_last should be a boolean value, but got drop_last={drop_last}")
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        return self.cut(iter(self.sampler))

    def cut(self, indices: Iterator[int]) -> Iterator[list[int]]:
        """The lists of the numbers in `indices` (the whole of a pass, or what is left of one)."""
        while batch := list(islice(indices, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            yield batch

    def __len__(self) -> int:
        count = len(self.sampler)  # type: ignore[arg-type]
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)


class EndlessSampler(Sampler[None]):
    """Asks an iterable dataset for one more sample, without end."""

    def __iter__(self) -> Iterator[None]:
        return repeat(None)


def _check_count(num_samples: Any) -> None:
    if not is_positive_int(num_samples):
        raise ValueError(
            f"num_samples should be a positive integer value, but got num_samples={num_samples}"
        )


def is_positive_int(value: Any) -> bool:
    """Whether `value` is a positive Python integer (a bool is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
