"""Workers beside MPI: two ranks with two workers each."""

import pytest

SCRIPT = """
import os, sys
import numpy as np
import dptrain
import dptrain.distributed as dist
from dptrain.data import DataLoader, Dataset, DistributedSampler, IterableDataset, shard

dist.init_process_group("mpi")
rank = dist.get_rank()

class Drawing(Dataset):
    def __len__(self):
        return 14
    def __getitem__(self, index):
        return index, dptrain.rand(1), os.getpid()

class Stream(IterableDataset):
    def __iter__(self):
        return shard(range(11))

dptrain.manual_seed(4)
data = Drawing()
drawn = dptrain.zeros(14)
pids = set()
loader = DataLoader(data, 3, sampler=DistributedSampler(data, pad=False), num_workers=2)
for epoch in range(2):
    for numbers, values, found in loader:
        drawn[numbers] += values.flatten()
        pids.update(found.tolist())
        total = dptrain.ones(20000) * len(numbers)
        dist.all_reduce(total)  # MPI goes on beside the workers
    if epoch == 0:
        dist.all_reduce(drawn)
        first = drawn.clone()
        assert (first > 0).all()
streamed = dptrain.zeros(11)
for numbers in DataLoader(Stream(), 2, num_workers=2):
    streamed[numbers] += 1
dist.all_reduce(streamed)
assert streamed.tolist() == [1.0] * 11
assert os.getpid() not in pids and len(pids) == 4
if rank == 0:
    dptrain.manual_seed(4)
    whole = DataLoader(data, 5, sampler=DistributedSampler(data, 1, 0))
    alone = {n: v for batch in whole for n, v in zip(batch[0].tolist(), batch[1].tolist())}
    assert [alone[i][0] for i in range(14)] == first.tolist()
    print("same draws as one rank")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.launch
def test_two_ranks_with_two_workers_each(tmp_path, dprun):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = dprun(2, script, timeout_s=90)
    assert done.returncode == 0, done.stderr
    assert "same draws as one rank" in done.stdout


@pytest.mark.launch
def test_a_rank_that_fails_with_busy_workers_ends_the_job(tmp_path, dprun):
    script = tmp_path / "train.py"
    script.write_text("""
import time
import dptrain.distributed as dist
from dptrain.data import DataLoader, Dataset

class Slow(Dataset):
    def __len__(self):
        return 50
    def __getitem__(self, index):
        time.sleep(0 if index < 2 else 60)
        return index

dist.init_process_group("mpi")
for index in DataLoader(Slow(), 1, num_workers=2):
    if dist.get_rank() == 1:
        raise ValueError("this rank fails")
""")
    done = dprun(2, script, timeout_s=60)
    assert done.returncode != 0
    assert "ValueError: this rank fails" in done.stderr
