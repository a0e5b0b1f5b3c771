"""Dealing the samples of a stream out to ranks and their workers.

Owns: `shard`. Must not know: what the samples are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from dptrain.data.ranks import group_of_ranks
from dptrain.data.worker import get_worker_info, ranks_of_training

T = TypeVar("T")


def shard(samples: Iterable[T]) -> Iterator[T]:
    """This rank's and this worker's share of a stream: every sample goes to exactly one of them.

    To be used in `IterableDataset.__iter__`. Sample i goes to rank `i % ranks`, and the samples of a rank go
    to its workers in turn.

    Args:
        samples: the whole stream, the same everywhere.

    Raises:
        RuntimeError: a launcher started several ranks, and the process group was not initialised when
            the workers started.
    """
    info, known = get_worker_info(), ranks_of_training()
    if info is None:
        group = group_of_ranks("shard")
        rank, ranks, worker, workers = group.rank, group.world_size, 0, 1
    elif known is not None:
        rank, ranks, worker, workers = *known, info.id, info.num_workers
    else:
        raise RuntimeError(
            "shard needs to know the ranks, of which a launcher started several, but the process group was "
            "not initialized when the workers started; call dptrain.distributed.init_process_group() first"
        )
    return islice(samples, rank + worker * ranks, None, ranks * workers)
