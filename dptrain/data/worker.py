"""A worker process: fetches the batches that it is asked for.

Owns: `WorkerInfo`, `get_worker_info`, the worker's loop, how an exception travels. Must not know: samplers,
how the process was started.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from typing import TYPE_CHECKING, Any

from dptrain.core.random import use_generator
from dptrain.data.channel import Channel, ChannelClosed, dumps
from dptrain.data.fetch import Exhausted, Fetcher, Keys
from dptrain.data.payload import load
from dptrain.data.seeding import SampleGenerator, seed_others

#: Kinds of answers.
BATCH, ERROR, ENDED = "batch", "error", "ended"


class WorkerInfo:
    """What a worker knows of itself.

    Attributes:
        id: 0 to `num_workers - 1`.
        num_workers: workers of this pass.
        seed: `base seed + id`.
        dataset: this worker's copy of the dataset.
        rng: None; PyTorch's threads have one there.
        worker_method: "multiprocessing".
    """

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update({**facts, "rng": None, "worker_method": "multiprocessing"})

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __repr__(self) -> str:
        return f"WorkerInfo({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    if TYPE_CHECKING:
        id: int
        num_workers: int
        seed: int
        dataset: Any


_info: WorkerInfo | None = None
_ranks: tuple[int, int] | None = None


def get_worker_info() -> WorkerInfo | None:
    """In a worker of a DataLoader: its `id`, `num_workers`, `seed` and `dataset`; elsewhere None."""
    return _info


def ranks_of_training() -> tuple[int, int] | None:
    """In a worker: the training process's rank and the number of ranks, if it knew them."""
    return _ranks


@dataclass(frozen=True)
class Failure:
    """An exception on its way to the training process.

    Attributes:
        pickled_type: its class; None if that cannot be pickled.
        name: its class's name.
        text: the traceback with the exception and its notes.
        where: the worker.
    """

    pickled_type: bytes | None
    name: str
    text: str
    where: str

    @classmethod
    def of(cls, error: BaseException, where: str) -> Failure:
        """The exception being handled."""
        try:
            pickled = dumps(type(error))
        except Exception:
            pickled = None
        text = "".join(traceback.format_exception(error))
        return cls(pickled, type(error).__name__, text, where)

    def reraise(self) -> None:
        """Raise an exception of the same class whose message holds the worker's traceback.

        Raises:
            Exception: of that class; a RuntimeError if the class cannot be found here or is not made
                from one message.
        """
        message = f"Caught {self.name} {self.where}.\nOriginal {self.text}"
        try:
            kind = pickle.loads(self.pickled_type) if self.pickled_type else RuntimeError
            error = kind(_Shown(message) if issubclass(kind, KeyError) else message)
        except Exception:
            error = RuntimeError(message)
        raise error from None


class _Shown(str):
    """A message that a KeyError shows with its line breaks."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to fetch batches: the same for all workers of a pass."""

    fetcher: Fetcher
    worker_init_fn: Callable[[int], Any] | None
    num_workers: int
    ranks: tuple[int, int] | None


@dataclass(frozen=True)
class Begin:
    """The order to begin a pass."""

    base_seed: int


def work(
    end: socket.socket, descriptors: list[int], number: int, adopt: Callable[..., None]
) -> int:
    """Answer the tasks that come over `end` until it is closed.

    Args:
        end: the connection to the training process; the first message is the surroundings and a `Begin`.
        descriptors: the payload, a `Recipe`.
        number: of this worker.
        adopt: takes the surroundings.

    Returns:
        The exit status.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    channel = Channel(end)
    try:
        surroundings, begin = channel.recv()
        spread(number)
        adopt(**surroundings)
        try:
            worker = _Worker(load(descriptors), number, begin)
        except Exception as error:
            failure = Failure.of(error, f"in initializing DataLoader worker process {number}")
            _answer_all(channel, failure)
        else:
            worker.answer(channel)
    except ChannelClosed:
        pass
    return 0


def spread(number: int) -> None:
    """Move to a core by this worker's number, and from there wherever the system wants.

    A message wakes its receiver on the sender's core. Where others keep the machine busy, workers that
    never sleep again would stay there, all on one core.
    """
    allowed = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # some containers do not allow it
        os.sched_setaffinity(0, {sorted(allowed)[(number + 1) % len(allowed)]})
        os.sched_setaffinity(0, allowed)


def _answer_all(channel: Channel, failure: Failure) -> None:
    while True:
        task = channel.recv()
        if not isinstance(task, Begin):
            channel.send((task[0], ERROR, failure))


class _Worker:
    def __init__(self, recipe: Recipe, number: int, begin: Begin) -> None:
        global _info, _ranks
        self._recipe = recipe
        self._number = number
        self._where = f"in DataLoader worker process {number}"
        seed = begin.base_seed + number
        _info = WorkerInfo(
            id=number,
            num_workers=recipe.num_workers,
            seed=seed,
            dataset=recipe.fetcher.dataset,
        )
        _ranks = recipe.ranks
        self._generator = SampleGenerator(seed)
        seed_others(begin.base_seed, number)
        if recipe.worker_init_fn is not None:
            with use_generator(self._generator):
                recipe.worker_init_fn(number)
        self._fetching = recipe.fetcher.begin()

    def answer(self, channel: Channel) -> None:
        with use_generator(self._generator):
            while True:
                try:
                    task = channel.recv(wait=False)
                except BlockingIOError:
                    task = channel.recv()
                    spread(self._number)
                if isinstance(task, Begin):
                    self._fetching = self._recipe.fetcher.begin()
                    continue
                number, taken, keys = task
                channel.send((number, *self._fetch(taken, keys)))

    def _fetch(self, taken: Any, keys: Keys) -> tuple[str, Any]:
        if self._recipe.worker_init_fn is None:
            # With one, these states belong to it, as in PyTorch.
            seed_others(*keys)
        try:
            return BATCH, self._fetching.fetch(taken, keys, self._generator)
        except Exhausted:
            return ENDED, None
        except Exception as error:
            return ERROR, Failure.of(error, self._where)
