"""The timeline of all ranks: a file that viewers open, whose intervals nest, on one clock."""

import json
import time
from itertools import combinations

import pytest
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
from dptrain import nn
from dptrain.parallel import DistributedDataParallel
from dptrain.profiler import Timeline, clock_offsets

STEPS, BUCKETS = 4, 5


def record(comm, path):
    model = DistributedDataParallel(
        nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(BUCKETS)]), bucket_cap_mb=0
    )
    model(dptrain.ones(8, 64)).sum().backward()  # not recorded
    with Timeline(model) as timeline:
        for _ in range(STEPS):
            model(dptrain.ones(8, 64)).sum().backward()
    model(dptrain.ones(8, 64)).sum().backward()  # not recorded either
    timeline.write(path)
    return timeline


@pytest.fixture(params=[1, 3])
def written(request, tmp_path):
    path = tmp_path / "steps.json"
    on_ranks(request.param, record, path)
    return request.param, json.loads(path.read_text())


def test_every_rank_and_thread_is_there_with_its_name(written):
    world_size, found = written
    names = {
        (e["pid"], e.get("tid")): e["args"]["name"]
        for e in found["traceEvents"]
        if e["ph"] == "M" and "name" in e["args"]
    }
    for rank in range(world_size):
        assert names[rank, None] == f"rank {rank}"
        assert (names[rank, 0], names[rank, 1]) == ("compute", "communication")
    assert len(found["otherData"]["clock offsets in ns"]) == world_size


def test_every_step_and_bucket_is_there_once(written):
    world_size, found = written
    events = [e for e in found["traceEvents"] if e["ph"] == "X"]
    for e in events:
        assert e["dur"] >= 0
        assert e["ts"] >= 0
        assert set(e) == {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"}
    for rank in range(world_size):
        mine = [e["name"] for e in events if e["pid"] == rank]
        for name in ("forward", "backward", "wait for gradients"):
            assert mine.count(name) == STEPS
        for i in range(BUCKETS):
            assert mine.count(f"DDP(Sequential) bucket {i}") == STEPS
    backward = next(e for e in events if e["name"] == "backward")
    assert [b["bytes"] for b in backward["args"]["buckets"]][:-1] == [64 * 64 * 4] * (BUCKETS - 1)
    assert all(0 <= b["hidden"] <= 1 for b in backward["args"]["buckets"])


def test_intervals_of_a_thread_nest(written):
    """Two intervals are one inside the other or apart: what a viewer stacks."""
    world_size, found = written
    events = [e for e in found["traceEvents"] if e["ph"] == "X"]
    slack = 0.002  # microseconds; times were nanoseconds
    for rank in range(world_size):
        for thread in (0, 1):
            mine = [e for e in events if (e["pid"], e["tid"]) == (rank, thread)]
            for a, b in combinations(sorted(mine, key=lambda e: (e["ts"], -e["dur"])), 2):
                inside = b["ts"] + b["dur"] <= a["ts"] + a["dur"] + slack
                apart = b["ts"] >= a["ts"] + a["dur"] - slack
                assert inside or apart, (a, b)


def test_buckets_are_launched_while_backward_computes(written):
    """All but the last are asked for before backward has nothing left to compute."""
    _, found = written
    events = [e for e in found["traceEvents"] if e["ph"] == "X" and e["pid"] == 0]
    backward = next(e for e in events if e["name"] == "backward")
    wait = next(e for e in events if e["name"] == "wait for gradients")
    launched = [b["launched us"] for b in backward["args"]["buckets"]]
    assert launched == sorted(launched)
    assert launched[BUCKETS - 2] < wait["ts"] - backward["ts"]


def test_clocks_that_differ_are_brought_together():
    def rank(comm):
        return clock_offsets(comm, lambda: time.perf_counter_ns() + comm.rank * 5_000_000_000)

    for offsets in on_ranks(3, rank):
        for r, found in enumerate(offsets):
            assert abs(found - r * 5_000_000_000) < 100_000_000


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (error,) = errors_on_ranks(1, lambda comm: record(comm, tmp_path / "no" / "such.json"))
    assert isinstance(error, OSError)
