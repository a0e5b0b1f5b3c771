"""A large dataset is in memory once, for the training process and all its workers together."""

import mmap
import os
from itertools import pairwise

import numpy as np
import pytest

import dptrain
from dptrain.data import DataLoader, Dataset
from dptrain.data.backing import LEAST_BYTES, PAGE

ITEMS = LEAST_BYTES // 8 + 3 * PAGE // 8 + 5


def memory_of(*pids):
    """The proportional share of memory (PSS) in bytes that these processes have, files aside."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            total += sum(int(row.split()[1]) for row in rollup if row.startswith("Pss:"))
    return total * 1024


class Holding(Dataset):
    """Sample i: the worker, the sum of its array, and what the array has at i after the worker wrote there."""

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return 8

    def __getitem__(self, i):
        before = self.array[i].item()
        self.array[i] = 1
        return os.getpid(), before, float(self.array[8:].sum())


def results(loader):
    return [tuple(part.item() for part in batch) for batch in loader]


@pytest.mark.parametrize("skipped", [0, 1, 77])  # where in its page the array begins
def test_workers_see_the_array_and_nobody_sees_the_writes_of_others(skipped):
    array = np.arange(float(ITEMS))[skipped:]
    expected = array.copy()
    loader = DataLoader(Holding(array), 1, num_workers=2, persistent_workers=True)
    for _, before, total in results(loader):
        assert before in expected[:8]
        assert total == expected[8:].sum()
    assert np.array_equal(array, expected)  # the workers wrote to pages of their own
    array[8:] = 0.0
    assert {total for *_, total in results(loader)} == {expected[8:].sum()}
    # Another loader has the array as it is now.
    assert {total for *_, total in results(DataLoader(Holding(array), 1, num_workers=1))} == {0.0}
    assert not array[8:].any()


def test_a_tensor_keeps_its_memory():
    tensor = dptrain.arange(float(ITEMS), dtype=dptrain.float64)
    address = tensor.data_ptr()
    results(DataLoader(Holding(tensor), 1, num_workers=1))
    assert tensor.data_ptr() == address
    assert tensor.sum().item() == np.arange(float(ITEMS)).sum()


def test_memory_of_others_is_copied_and_stays_theirs():
    shared = mmap.mmap(-1, 8 * ITEMS)
    array = np.frombuffer(shared, np.float64)
    array[:] = 2.0
    results(DataLoader(Holding(array), 1, num_workers=1))
    if not (pid := os.fork()):
        array[:] = 3.0
        os._exit(0)
    os.waitpid(pid, 0)
    assert array.min() == 3.0


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's smaps")
def test_it_is_there_once():
    array = np.ones(96 << 17)  # 96 MiB

    def memory_with_workers_on(held):
        loader = DataLoader(Holding(held), 1, num_workers=2, persistent_workers=True)
        pids = {pid for pid, *_ in results(loader)}
        assert len(pids) == 2
        return memory_of(os.getpid(), *pids)

    without = memory_with_workers_on(np.ones(16))
    assert memory_with_workers_on(array) - without < 0.3 * array.nbytes


def test_steps_leave_no_gap():
    """Every byte of an array of many steps is there, at each border of steps and pages."""
    array = np.frombuffer(np.random.default_rng(0).bytes(LEAST_BYTES + 12345), np.uint8).copy()
    expected = array.copy()
    results(DataLoader(Holding(array.view()), 1, num_workers=1))
    step = 4 << 20
    for first, last in pairwise(range(0, array.size, step)):
        assert np.array_equal(array[first:last], expected[first:last])
    assert np.array_equal(array, expected)
