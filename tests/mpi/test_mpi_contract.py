"""The contract between processes: in shared memory, over messages, and on several hosts' ranks."""

from __future__ import annotations

import contract_collectives
import contract_values
import numpy as np
import pytest
from comm_contract import BREAKING, CONTRACT
from contract_misuse import (
    CALLS,
    CASES,
    check_case,
    gaps_in_memory,
    one_call_more_than_the_others,
    two_threads_in_another_order,
    use_after_close,
)

pytestmark = pytest.mark.mpi
# Which host each rank counts as being on.
GROUPINGS = {"2 and 2": [0, 0, 1, 1], "1 and 3": [0, 1, 1, 1], "3 and 1": [0, 0, 0, 1]}


@pytest.mark.parametrize("check", [*CONTRACT, *BREAKING], ids=lambda check: check.__name__)
def test_contract(comm, check):
    check(comm)


MOVING = [check for check in CONTRACT if check.__module__ == "contract_collectives"]


@pytest.mark.parametrize("check", MOVING, ids=lambda check: check.__name__)
def test_contract_through_staging_areas(check):
    from dptrain.comm.mpi import connect

    with connect(timeout_s=20.0, peer_memory=False) as staged:
        check(staged)


@pytest.fixture(params=[True, False], ids=["shared memory", "messages"])
def fresh(request):
    """Runs checks that break a communicator, each with a new one; needs several ranks."""
    from dptrain.comm.mpi import connect

    def run(check, *arguments):
        with connect(timeout_s=20.0, shared_memory=request.param) as found:
            if found.world_size == 1:
                pytest.skip("one rank cannot disagree")
            check(found, *arguments)

    return run


@pytest.mark.parametrize("call", CALLS)
def test_a_rank_that_differs_is_an_error_on_every_rank(fresh, call):
    for name, case in CASES.items():
        if case[0] == call:
            fresh(check_case, name)


@pytest.mark.parametrize("call", CALLS)
def test_bad_use(fresh, call):
    for check in (one_call_more_than_the_others, use_after_close, gaps_in_memory):
        fresh(check, call)


def test_two_threads_of_a_rank(fresh):
    fresh(two_threads_in_another_order)


@pytest.fixture
def grouped(request, monkeypatch):
    """A communicator over ranks that count as being on several hosts."""
    from mpi4py import MPI

    from dptrain.comm.mpi import connect

    hosts = GROUPINGS[request.param]
    if MPI.COMM_WORLD.size != len(hosts):
        pytest.skip(f"needs {len(hosts)} ranks")
    monkeypatch.setattr(contract_values, "exact", True)
    with connect(timeout_s=20.0, host=hosts[MPI.COMM_WORLD.rank]) as found:
        assert found.local_world_size == hosts.count(hosts[MPI.COMM_WORLD.rank])
        yield found


# The whole contract where two hosts are alike, what moves data where they are not.
ACROSS_HOSTS = [
    pytest.param(grouping, check, id=f"{grouping}-{check.__name__}")
    for grouping in GROUPINGS
    for check in (*CONTRACT, *BREAKING)
    if grouping == "2 and 2" or check.__module__ == "contract_collectives"
]


@pytest.mark.parametrize(("grouped", "check"), ACROSS_HOSTS, indirect=["grouped"])
def test_contract_across_hosts(grouped, check):
    check(grouped)


@pytest.mark.parametrize("grouped", GROUPINGS, indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sums_across_hosts_are_those_of_the_hosts_in_order(grouped, dtype, request):
    hosts = GROUPINGS[request.node.callspec.params["grouped"]]
    shape, dtype = (200_001,), np.dtype(dtype)
    parts = [
        contract_values.values(rank, shape, dtype, contract_values.NOT_EXACT)
        for rank in range(grouped.world_size)
    ]
    wide = [part.astype(np.float32) for part in parts]
    by_host = []
    for host in (0, 1):
        members = [part for part, on in zip(wide, hosts, strict=True) if on == host]
        total = members[0]
        for part in members[1:]:
            total = total + part
        by_host.append(total)
    expected = (by_host[0] + by_host[1]).astype(dtype)
    for _ in range(3):  # The same bits on every rank and in every run.
        array = parts[grouped.rank].copy()
        grouped.all_reduce(array).wait()
        assert array.tobytes() == expected.tobytes()


def test_arrays_of_a_virtual_device_are_staged(comm, monkeypatch):
    from on_device import OnDevice

    from dptrain.core import device
    from dptrain.core.settings import settings

    def forget():
        for cached in (settings, device.host_device_count, device.host_device):
            cached.cache_clear()

    monkeypatch.setenv("DPTRAIN_HOST_DEVICES", "2")
    forget()
    try:
        for check in vars(contract_collectives).values():
            if check in CONTRACT:
                check(OnDevice(comm, "cpu:1"))
    finally:
        monkeypatch.undo()
        forget()
