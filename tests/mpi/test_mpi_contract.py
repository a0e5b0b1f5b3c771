"""The contract between processes: in shared memory, over messages, and on several hosts' ranks."""

from __future__ import annotations

import contract_values
import pytest
from comm_contract import BREAKING, CONTRACT, MISMATCHES, a_mismatch_is_an_error_on_every_rank

pytestmark = pytest.mark.mpi
# Which host each rank counts as being on.
GROUPINGS = {"2 and 2": [0, 0, 1, 1], "1 and 3": [0, 1, 1, 1], "3 and 1": [0, 0, 0, 1]}


@pytest.mark.parametrize("check", [*CONTRACT, *BREAKING], ids=lambda check: check.__name__)
def test_contract(comm, check):
    check(comm)


@pytest.mark.parametrize("case", MISMATCHES)
def test_mismatch(comm, case):
    a_mismatch_is_an_error_on_every_rank(comm, case)


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
