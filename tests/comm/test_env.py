"""Rank discovery from launcher variables."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dptrain.comm.env import ProcessEnv, discover

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_ID": "0",
}


def test_no_launcher_is_a_world_of_one():
    assert discover({"PATH": "/bin", "SLURM_JOB_ID": "7"}) == ProcessEnv()


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        (TORCHRUN, "torchrun-style"),
        (OPEN_MPI, "Open MPI"),
        (MPICH, "MPICH or Intel MPI"),
        (SLURM, "Slurm"),
        ({**TORCHRUN, "DPTRAIN_SIDE_CHANNEL": "127.0.0.1:1:token"}, "dprun"),
    ],
)
def test_every_launcher_is_understood(variables, launcher):
    found = discover(variables)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (3, 4, 1, 2)
    assert found.launcher == launcher
    assert next(iter(variables)) in found.source
    assert found.side_channel == (launcher == "dprun")


def test_explicit_variables_come_before_those_of_mpi():
    found = discover({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "2"})
    assert (found.rank, found.world_size) == (0, 2)


def test_the_shell_of_an_salloc_is_no_rank():
    for missing in ("SLURM_PROCID", "SLURM_STEP_ID"):
        variables = {name: value for name, value in SLURM.items() if name != missing}
        assert discover(variables).world_size == 1


@pytest.mark.parametrize(
    ("variables", "present", "missing"),
    [
        ({"RANK": "1"}, "RANK=1", "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "WORLD_SIZE=2, LOCAL_RANK=0", "RANK"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE"),
    ],
)
def test_half_an_environment_is_an_error_that_lists_both_halves(variables, present, missing):
    with pytest.raises(RuntimeError) as caught:
        discover(variables)
    found, _, lacking = str(caught.value).partition(" present, ")
    assert found.endswith(present) or present in found
    assert lacking.startswith(f"{missing} missing")


@pytest.mark.parametrize(
    "change",
    [{"RANK": "4"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": "2"}],
)
def test_contradictions_are_errors(change):
    with pytest.raises(RuntimeError, match="contradicts itself"):
        discover({**TORCHRUN, **change})


def test_what_is_no_number_is_an_error_that_names_the_variable():
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE='two' is no whole number"):
        discover({**TORCHRUN, "WORLD_SIZE": "two"})


def test_discovery_and_the_whole_room_import_no_mpi():
    code = "import dptrain.comm, sys; dptrain.comm.discover(); sys.exit('mpi4py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
