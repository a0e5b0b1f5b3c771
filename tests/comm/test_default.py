"""The default communicator: of the process, of a context, of none."""

from __future__ import annotations

import threading

import pytest

from dptrain.comm import default, default_communicator, init, is_initialized, run_ranks, set_default
from dptrain.comm.serial import SerialCommunicator

LAUNCH_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK",
)


@pytest.fixture(autouse=True)
def _no_default(monkeypatch):
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    set_default(None, process_wide=True)
    yield
    set_default(None, process_wide=True)


def test_without_init_it_is_a_world_of_one():
    assert not is_initialized()
    comm = default_communicator()
    assert (comm.backend, comm.world_size, comm.rank) == ("serial", 1, 0)
    assert default_communicator() is comm
    assert not is_initialized()


def test_init_alone_is_serial_and_seen_by_all_threads():
    comm = init()
    assert comm.backend == "serial"
    assert is_initialized()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(default_communicator()))
    thread.start()
    thread.join()
    assert seen == [comm]


def test_init_passes_its_timeout_on():
    assert init("serial", timeout=5.0).timeout_s == 5.0


def test_init_twice_is_an_error():
    init()
    with pytest.raises(RuntimeError, match="exists already"):
        init()


def test_serial_in_a_job_of_several_ranks_is_an_error(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"started 2 ranks \(RANK, WORLD_SIZE\)"):
        init("serial")


def test_an_unknown_backend_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match=r"'smoke' is not one of 'mpi', 'nccl', 'serial'"):
        init("smoke")


def test_without_an_mpi_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dptrain.comm.mpi", None)
    with pytest.raises(RuntimeError, match=r'pip install "dptrain\[mpi\]"'):
        init("mpi")


def test_ranks_that_are_threads_see_their_own():
    outer = SerialCommunicator()
    set_default(outer)
    ranks = run_ranks(3, lambda comm: default_communicator() is comm and comm.rank)
    assert ranks == [0, 1, 2]
    assert default_communicator() is outer
    set_default(None)
    assert default_communicator() is default._alone()
