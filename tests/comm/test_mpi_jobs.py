"""Whole MPI jobs, started from an ordinary pytest run: the contract on real ranks, and bad ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_job import job_environment, run_job

TESTS = Path(__file__).parents[1] / "mpi"
CONNECT = """
import sys, time
import numpy as np
import dptrain.comm as comm_room
comm = comm_room.init(timeout=30.0, warn_after_s=0.3)
"""


PYTEST = ["-m", "pytest", "--with-mpi", "-q", "-p", "no:cacheprovider", "--color=no", str(TESTS)]
JOBS = [
    *((ranks, "not across_hosts and not gigabytes") for ranks in (1, 2, 3)),
    (4, "across_hosts"),
]


def _passes(result):
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    assert " passed" in result.stdout


@pytest.mark.parametrize(("world_size", "which"), JOBS)
def test_contract_on_real_ranks(world_size, which):
    _passes(run_job(world_size, *PYTEST, "-k", which, limit_s=110))


@pytest.mark.slow
def test_more_bytes_than_a_32_bit_number_counts():
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 10 << 30:
        pytest.skip(f"needs 10 GiB of memory, {free >> 30} are free")
    _passes(run_job(2, *PYTEST, "-k", "gigabytes", limit_s=110))


@pytest.mark.parametrize("world_size", [2, 4])
def test_contract_under_mpich(world_size):
    python = os.environ.get("DPTRAIN_MPICH_PYTHON")
    if not python:
        pytest.skip("DPTRAIN_MPICH_PYTHON names no interpreter with mpich, mpi4py and dptrain")
    _passes(run_job(world_size, *PYTEST, "-k", "not gigabytes", limit_s=110, python=python))


def test_a_script_that_ends_leaves_nothing_behind():
    script = CONNECT + (
        "room = comm.allocate(1 << 20).view(np.float32)\n"
        "room[:] = 1\n"
        "comm.all_reduce(room)\n"  # Neither waited for nor closed.
        # One write: print() makes several, between which the other rank's may come.
        "sys.stdout.write(f'rank {comm.rank} done\\n')\n"
    )
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    result = run_job(2, script=script, limit_s=30)
    after = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert result.code == 0, result.stderr
    assert result.stderr == ""
    assert sorted(result.stdout.splitlines()) == ["rank 0 done", "rank 1 done"]
    assert not [name for name in after - before if "dptrain" in name]


def test_an_exception_on_one_rank_ends_the_job():
    script = CONNECT + ("if comm.rank == 1:\n    1 / 0\ncomm.all_reduce(np.zeros(3)).wait()\n")
    result = run_job(2, script=script, limit_s=30)
    assert result.code != 0
    assert "[rank 1/2] ZeroDivisionError" in result.stderr


def test_a_rank_whose_script_ends_early_is_named():
    script = CONNECT + (
        "if comm.rank == 1:\n    sys.exit(0)\ncomm.all_reduce(np.zeros(3), name='alone').wait()\n"
    )
    result = run_job(2, script=script, limit_s=30)
    assert result.code != 0
    assert "rank 1 closed its communicator" in result.stderr
    assert "name='alone'" in result.stderr


def test_abort_ends_ranks_that_wait():
    script = CONNECT + "comm.abort(7) if comm.rank == 1 else comm.barrier()\n"
    assert run_job(2, script=script, limit_s=30).code == 7


def test_two_ranks_that_both_send_first_are_told_where_they_wait():
    script = CONNECT + (
        "array, other = np.zeros(1 << 20), 1 - comm.rank\n"
        "def sends_first():\n"
        "    comm.send(array, other, timeout=3.0).wait()\n"
        "sends_first()\n"
    )
    result = run_job(2, script=script, limit_s=30)
    assert result.code != 0
    for rank in (0, 1):
        waits = (
            rf"\[rank {rank}/2\] waiting for .* in send of {8 << 20} bytes with rank {1 - rank} at "
        )
        assert re.search(rf"{waits}.*asked for the Python stack of rank {1 - rank}", result.stderr)
    assert "in sends_first" in result.stderr


def test_a_late_rank_is_named_and_shows_its_stack():
    # Rank 1 stalls until rank 0 has complained about it.
    script = CONNECT + (
        "class Complaints:\n"
        "    def write(self, text):\n"
        "        sys.__stderr__.write(text)\n"
        "        if 'asked for the Python stack of rank 1' in text:\n"
        "            comm.send(np.zeros(1), 1).wait()\n"
        "    def flush(self):\n"
        "        sys.__stderr__.flush()\n"
        "def stalled_in_my_function():\n"
        "    work = comm.recv(np.zeros(1), 0)\n"
        "    while not work.is_completed():\n"
        "        time.sleep(0.001)\n"
        "comm.barrier(name='first')\n"
        "if comm.rank == 0:\n"
        "    sys.stderr = Complaints()\n"
        "else:\n"
        "    stalled_in_my_function()\n"
        "comm.all_reduce(np.zeros(3), name='second').wait()\n"
    )
    result = run_job(2, script=script, limit_s=30)
    assert result.code == 0, result.stderr
    assert result.stderr.count("[rank 0/2] waiting for") == 1
    assert "name='second'" in result.stderr
    assert "rank 1 is missing (its last collective: barrier(name='first'), number 1)" in (
        result.stderr
    )
    assert "in stalled_in_my_function" in result.stderr


@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_late_rank_is_a_timeout_for_the_others_and_ends_the_job(shared_memory):
    script = (
        "import time\nimport numpy as np\nfrom dptrain.comm.mpi import connect\n"
        f"comm = connect(timeout_s=0.3, warn_after_s=None, shared_memory={shared_memory})\n"
        "while comm.rank == 1:\n"
        "    time.sleep(0.1)\n"
        "comm.all_reduce(np.zeros(3), name='lonely').wait()\n"
    )
    result = run_job(2, script=script, limit_s=30)
    assert result.code != 0
    assert "CollectiveTimeoutError: [rank 0/2] all_reduce(" in result.stderr
    assert "rank 1 is missing (its last collective: none yet)" in result.stderr


def test_ranks_that_mpi_does_not_know_of_are_an_error():
    environment = {**job_environment(), "RANK": "1", "WORLD_SIZE": "2"}
    result = subprocess.run(
        [sys.executable, "-c", CONNECT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode != 0
    assert "started this process as rank 1 of 2 (RANK, WORLD_SIZE)" in result.stderr
    assert "MPI says rank 0 of 1" in result.stderr
