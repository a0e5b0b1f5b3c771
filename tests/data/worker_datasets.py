"""Datasets for the tests with workers.

In a module of their own, so that a worker that unpickles one does not import pytest.
"""

import random
import time
from collections import namedtuple

import numpy as np

import dptrain
from dptrain.data import Dataset, IterableDataset, get_worker_info, shard

Point = namedtuple("Point", ["x", "y"])


class Drawing(Dataset):
    """Sample i is (i, numbers drawn from three sources)."""

    def __init__(self, size):
        self.size = size

    def __getitem__(self, index):
        return index, dptrain.rand(2), np.random.rand(), random.random()

    def __len__(self):
        return self.size


class Everything(Dataset):
    """Samples of all kinds that a batch can be made of, small and large."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {
            "large": dptrain.full((100, 300), float(i)),
            "strided": np.arange(60000.0).reshape(200, 300).T + i,
            "point": Point(i, np.float32(i)),
            "text": "x" * i,
            "bytes": b"y" * 20000,
            "half": dptrain.ones(5000, dtype=dptrain.bfloat16) * i,
            "empty": dptrain.zeros(0, 3),
            "flag": i > 1,
            "list": [i, (i, 2.5)],
        }


class Stream(IterableDataset):
    def __init__(self, size, dealt):
        self.size, self.dealt = size, dealt

    def __iter__(self):
        return iter(shard(range(self.size)) if self.dealt else range(self.size))


class Asking(Dataset):
    marks = None

    def __len__(self):
        return 4

    def __getitem__(self, index):
        info = get_worker_info()
        return info.id, info.num_workers, info.seed - dptrain.initial_seed(), self.marks


class NeedsTwo(Exception):
    def __init__(self, one, two):
        super().__init__(one, two)


class Failing(Drawing):
    errors = (KeyError("no such key"), ValueError("bad"), NeedsTwo(1, 2), FileNotFoundError(2, "x"))

    def __getitem__(self, index):
        if index % 2:
            raise self.errors[index // 2]
        return index


class Refusing:
    """Has a method `pin_memory` that raises."""

    def pin_memory(self):
        raise LookupError("not this one")


class Refused(Dataset):
    """Sample 3 cannot be pinned; the others are their numbers."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return Refusing() if i == 3 else dptrain.tensor(i)


class Slow(Dataset):
    """Samples that take a while from the second on."""

    def __len__(self):
        return 1000

    def __getitem__(self, i):
        if i:
            time.sleep(0.2)
        return dptrain.full((2,), float(i))


def first(batch):
    """A collate function for batches of one sample."""
    return batch[0]
