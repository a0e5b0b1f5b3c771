"""Commands and environments for the three MPI families, and reading their last words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dptrain.launch import mpirun
from dptrain.launch.mpirun import Family, Job, LaunchError, RankEnd

_JOB = Job(4, ("python", "-m", "dptrain.launch.rank", "a b.py"))
_ENV = {"PATH": "/opt/mpi/bin:/usr/bin", "HOME": "/home/u"}
_PATH = "/opt/mpi/bin/mpirun"


def _additions(
    family: Family, env: dict[str, str], job: Job = _JOB, **facts: int
) -> dict[str, str]:
    facts = {"cores": 8, "uid": 1000, "hosts": 1, **facts}
    return mpirun.additions(family, _PATH, job, env, **facts)


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org", Family.OPENMPI),
        ("mpirun.real (OpenRTE) 4.1.6", Family.OPENMPI),
        ("HYDRA build details:\n    Version:    5.0.2\n    CC: cc", Family.MPICH),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.18 (built on hydra)", Family.INTEL),
        ("something else 1.0", None),
    ],
)
def test_families_are_told_apart_by_their_version_text(text: str, family: Family | None) -> None:
    assert mpirun.family_of(text) is family


def test_open_mpi_runs_as_root_only_when_root() -> None:
    names = {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"}
    assert not names & set(_additions(Family.OPENMPI, _ENV, uid=1000))
    assert names <= set(_additions(Family.OPENMPI, _ENV, uid=0))


def test_open_mpi_may_oversubscribe_and_is_not_bound_to_cores() -> None:
    added = _additions(Family.OPENMPI, _ENV)
    assert added["PRTE_MCA_rmaps_default_mapping_policy"] == ":oversubscribe"
    assert added["PRTE_MCA_hwloc_default_binding_policy"] == "none"
    # Version 4 has other names for the same, and for the transport of shared memory.
    assert added["OMPI_MCA_rmaps_base_oversubscribe"] == "1"
    assert added["OMPI_MCA_hwloc_base_binding_policy"] == "none"
    assert added["OMPI_MCA_btl"].startswith("^")
    assert added["OMPI_MCA_pml"] == "ob1"


def test_transports_are_left_to_mpi_across_hosts() -> None:
    added = _additions(Family.OPENMPI, _ENV, hosts=2)
    assert not {"OMPI_MCA_pml", "OMPI_MCA_btl"} & set(added)


@pytest.mark.parametrize("family", list(Family))
def test_what_the_user_set_stays(family: Family) -> None:
    everything = _additions(family, {}, uid=0)
    user = dict.fromkeys(everything, "mine") | {"PATH": "/opt/mpi/bin"}
    assert _additions(family, user, uid=0) == {}


@pytest.mark.parametrize(
    ("nproc", "cores", "hosts", "threads"),
    [
        (1, 8, 1, "8"),
        (2, 8, 1, "4"),
        (3, 8, 1, "2"),
        (16, 8, 1, "1"),
        (4, 8, 2, "4"),
        (5, 8, 2, "2"),
    ],
)
def test_threads_are_the_cores_divided_by_the_local_ranks(
    nproc: int, cores: int, hosts: int, threads: str
) -> None:
    added = _additions(Family.MPICH, _ENV, Job(nproc, ("p",)), cores=cores, hosts=hosts)
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        assert added[f"{name}_NUM_THREADS"] == threads


def test_threads_on_the_command_line_win_over_the_environment() -> None:
    env = {**_ENV, "OMP_NUM_THREADS": "7"}
    assert "OMP_NUM_THREADS" not in _additions(Family.OPENMPI, env)
    added = _additions(Family.OPENMPI, env, Job(2, ("p",), threads=3))
    assert added["OMP_NUM_THREADS"] == "3"


def test_home_and_path_are_completed() -> None:
    added = _additions(Family.INTEL, {"PATH": "/usr/bin"})
    assert os.path.isabs(added["HOME"])
    assert added["PATH"] == "/opt/mpi/bin:/usr/bin"
    assert not {"HOME", "PATH"} & set(_additions(Family.INTEL, _ENV))


@pytest.mark.parametrize("family", list(Family))
def test_the_command_ends_with_the_rank_command_unchanged(family: Family) -> None:
    line = mpirun.command(family, _PATH, _JOB, ["A"])
    assert line[:3] == [_PATH, "-n", "4"]
    assert tuple(line[-4:]) == _JOB.argv


def test_hosts_are_passed_in_each_familys_words() -> None:
    job = Job(2, ("p",), hostfile="hosts", host="a,b")
    openmpi = mpirun.command(Family.OPENMPI, _PATH, job, ["X", "Y"])
    assert openmpi[3:] == ["--hostfile", "hosts", "--host", "a,b", "-x", "X", "-x", "Y", "p"]
    for family in (Family.MPICH, Family.INTEL):
        assert mpirun.command(family, _PATH, job, ["X"])[3:] == [
            "-f",
            "hosts",
            "-hosts",
            "a,b",
            "p",
        ]


def test_hosts_are_read_from_both_places(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# cluster\nnode1 slots=4\nnode2:2\n\nnode1\n")
    job = Job(2, ("p",), hostfile=str(file), host="node3:2,node2")
    assert mpirun.hosts_of(job) == ["node3", "node2", "node1"]
    with pytest.raises(LaunchError, match="No such file"):
        mpirun.hosts_of(Job(2, ("p",), hostfile=str(tmp_path / "none")))


def test_multi_host_is_other_hosts_or_an_allocation() -> None:
    assert not mpirun.is_multi_host([], {})
    assert not mpirun.is_multi_host(["localhost", os.uname().nodename], {})
    assert mpirun.is_multi_host(["localhost", "elsewhere"], {})
    assert mpirun.is_multi_host([], {"SLURM_JOB_NUM_NODES": "2"})
    assert not mpirun.is_multi_host([], {"SLURM_JOB_NUM_NODES": "1"})


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 3), ("", 0), ("0", 1), ("2,0", 2), ("0,-1,1", 1), ("0,9,1", 1), ("GPU-abc,MIG-d", 2)],
)
def test_gpus_are_counted_as_cuda_does(tmp_path: Path, visible: str | None, count: int) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert mpirun.gpu_count(env, str(tmp_path)) == count


def test_no_device_file_is_no_gpu(tmp_path: Path) -> None:
    assert mpirun.gpu_count({"CUDA_VISIBLE_DEVICES": "0,1"}, str(tmp_path)) == 0


def test_an_enclosing_jobs_variables_do_not_reach_the_ranks() -> None:
    foreign = ["PMIX_RANK", "PMI_FD", "OMPI_COMM_WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"]
    kept = {"OMPI_MCA_btl": "tcp", "PMIX_MCA_gds": "hash", "RANKING": "x", "PATH": "/bin"}
    assert mpirun.without_foreign_job(dict.fromkeys(foreign, "1") | kept) == kept


def test_a_requested_mpirun_that_does_not_exist_is_named() -> None:
    with pytest.raises(LaunchError, match="no-such-mpirun"):
        mpirun.find("no-such-mpirun")


def test_without_any_mpi_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r'pip install "dptrain\[mpi\]"'):
        mpirun.find()


def test_the_mpirun_beside_the_interpreter_comes_before_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in ("venv/bin", "path"):
        (tmp_path / folder).mkdir(parents=True)
        program = tmp_path / folder / "mpirun"
        program.write_text("#!/bin/sh\necho mystery 1.0\n")
        program.chmod(0o755)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    assert mpirun.find() == str(tmp_path / "venv/bin/mpirun")
    assert mpirun.find("mpirun") == str(tmp_path / "path/mpirun")
    with monkeypatch.context() as system:  # whose Python's mpi4py looks elsewhere, and so do we
        system.setattr("sys.prefix", "/usr")
        assert mpirun.find() == str(tmp_path / "path/mpirun")
    with pytest.raises(LaunchError, match=r"answered 'mystery 1\.0'"):
        mpirun.identify(mpirun.find(), os.environ)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (
            "----\nprterun noticed that process rank 1 with PID 4028 on node vm exited on\n"
            "signal 9 (Killed).\n----",
            RankEnd(rank=1, pid=4028, signal=9),
        ),
        (
            "mpirun noticed that process rank 0 with PID 0 on node vm exited on signal 11 (Seg",
            RankEnd(rank=0, signal=11),
        ),
        (
            "thus causing the job to be terminated. The first process to do so was:\n\n"
            "   Process name: [prterun-vm-4038@1,1]\n   Exit code:    7\n",
            RankEnd(rank=1, code=7),
        ),
        ("  Process name: [[41234,1],3]\n  Exit code:    2\n", RankEnd(rank=3, code=2)),
        (
            "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\n"
            "  Proc: [[28022,1],1]\n  Errorcode: 5\n",
            RankEnd(rank=1, code=5, verb="MPI_Abort"),
        ),
        (
            'prterun has exited due to process rank 1 with PID 5083 on node vm calling\n"abort".',
            RankEnd(rank=1, pid=5083, verb="MPI_Abort"),
        ),
        (
            "prterun has exited due to process rank 1 with PID 5113 on node vm exiting\nimproperly.",
            RankEnd(rank=1, pid=5113, verb="no finalize"),
        ),
        (
            "=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   PID 4128 RUNNING AT vm\n"
            "=   EXIT CODE: 9\n===\nYOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)",
            RankEnd(pid=4128, signal=9),
        ),
        ("=   PID 4128 RUNNING AT vm\n=   EXIT CODE: 7\n", RankEnd(pid=4128, code=7)),
        (
            "=   RANK 1 PID 77 RUNNING AT vm\n=   KILLED BY SIGNAL: 9 (Killed)\n",
            RankEnd(rank=1, pid=77, signal=9),
        ),
        ("nothing of that kind", None),
    ],
)
def test_last_words_are_understood(text: str, end: RankEnd | None) -> None:
    assert mpirun.parse_end(text) == end
