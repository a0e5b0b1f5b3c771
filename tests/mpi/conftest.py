"""Tests on real ranks: `mpirun -n N python -m pytest --with-mpi tests/mpi`.

What one rank finds is a failure on all of them: after every test the ranks tell each other how it
went, so that they stay in step and rank 0's report shows every rank's traceback.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "comm"))

# How long a rank waits for the others at the end of a test, in seconds.
GRACE_S = 40.0


def _world(config: pytest.Config):
    """A communicator for the reports alone; None outside an MPI job."""
    if not config.getoption("--with-mpi", default=False):
        return None
    if not hasattr(config, "_report_comm"):
        from mpi4py import MPI

        config._report_comm = MPI.COMM_WORLD.Dup()
    return config._report_comm


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    world = _world(config)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if world is not None and world.rank > 0 and reporter is not None:
        reporter._tw._file = open(os.devnull, "w")  # noqa: SIM115 - Open until the process ends.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    world = _world(item.config)
    if world is None:
        return report
    failures = item.__dict__.setdefault("_failures", [])
    if report.failed:
        failures.append(report.longreprtext)
    if report.when == "teardown":
        _meet(world, failures)
        everyone = world.allgather(failures)
        others = [
            f"---- rank {rank} of {world.size} ----\n{text}"
            for rank, texts in enumerate(everyone)
            for text in texts
            if rank != world.rank
        ]
        if others and not report.failed:
            report.outcome = "failed"
            report.longrepr = "\n".join(others)
    return report


def _meet(world, failures: list[str]) -> None:
    """Wait for the other ranks, but not for ever: a rank that hangs must not hide a failure."""
    from mpi4py import MPI

    request = world.Ibarrier()
    deadline_s = time.monotonic() + GRACE_S
    while not request.Test():
        if time.monotonic() > deadline_s:
            print(f"rank {world.rank}: the others do not come", *failures, file=sys.__stderr__)
            MPI.COMM_WORLD.Abort(1)
        time.sleep(0.0005)


@pytest.fixture(params=["shared memory", "messages"])
def comm(request: pytest.FixtureRequest):
    """A communicator over all ranks of the job, new for every test, over both ways to connect."""
    from dptrain.comm.mpi import connect

    found = connect(timeout_s=20.0, shared_memory=request.param == "shared memory")
    yield found
    found.close()
