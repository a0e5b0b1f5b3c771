"""A rank that is killed inside a collective, under an MPI that leaves the others alive to tell."""

import os
import re
import sys

import pytest
from mpi_job import run_job

SCRIPT = """
import os, signal, sys, threading, time
import numpy as np
from dptrain.comm.mpi import connect
from mpi4py import MPI

how, victim, rank = sys.argv[1], int(sys.argv[2]), MPI.COMM_WORLD.rank
options = {
    "across hosts": {"host": rank // 2},
    "messages": {"shared_memory": False},
    "memory of the peers": {},
    "staging areas": {"peer_memory": False},
}
comm = connect(timeout_s=30.0, **options[how])
array = np.zeros(2 << 20, np.float32)
comm.barrier()
if rank == victim:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
begun_s = time.monotonic()
try:
    while True:
        comm.all_reduce(array, name="gradients").wait()
except Exception as error:
    took_s = time.monotonic() - begun_s
    # One write: print() makes several, between which the other ranks' may come.
    sys.stdout.write(f"<{rank}|{type(error).__name__}|{took_s:.3f}|{error}>\\n")
    sys.stdout.flush()
comm.close()
time.sleep(1.0)  # The others learn of the death, not of this end.
os._exit(0)
"""


@pytest.mark.skipif(
    not os.path.exists(os.path.join(sys.prefix, "bin", "mpirun")), reason="needs Open MPI's wheel"
)
@pytest.mark.parametrize(
    ("how", "victim"),
    [
        ("across hosts", 3),  # Who has a leader,
        ("across hosts", 2),  # and the leader.
        ("messages", 1),
        ("memory of the peers", 1),
        ("staging areas", 1),
    ],
)
def test_every_other_rank_names_it_within_seconds(how, victim):
    result = run_job(4, how, str(victim), script=SCRIPT, limit_s=60, options=("--with-ft", "ulfm"))
    found = re.findall(r"<(\d)\|(\w+)\|([\d.]+)\|(.*?)>\n", result.stdout, re.DOTALL)
    assert sorted(int(rank) for rank, *_ in found) == [r for r in range(4) if r != victim], (
        result.stdout + result.stderr
    )
    for _, kind, took_s, text in found:
        assert kind == "RankLeftError", text
        assert f"rank {victim} has ended without closing its communicator" in text
        assert "name='gradients'" in text
        assert float(took_s) < 0.2 + 5
