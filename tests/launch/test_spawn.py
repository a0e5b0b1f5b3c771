"""``spawn``: functions on MPI ranks, from scripts, notebooks and tests; failures; nothing left."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from dptrain.launch import mpirun
from dptrain.launch.report import parse_block

if TYPE_CHECKING:
    from .conftest import Dprun


def _has_mpirun() -> bool:
    try:
        mpirun.find()
    except mpirun.LaunchError:
        return False
    return True


needs_mpirun = [
    pytest.mark.launch,
    pytest.mark.skipif(not _has_mpirun(), reason="no mpirun: extra mpi not installed"),
]

# No __main__ guard, and functions that no module holds: as in a notebook.
_SCRIPT = """
import os, pathlib, signal, sys, time
from dptrain.multiprocessing import ProcessExitedException, ProcessRaisedException, spawn
here = pathlib.Path(__file__).parent
k = 7
"""


def _run(dprun: Dprun, text: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, dprun.script(_SCRIPT + text)]
    return subprocess.Popen(
        command,
        env=dprun.env,
        cwd=dprun.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )


class TestSpawn:
    pytestmark = needs_mpirun

    def test_functions_of_a_script_without_a_guard_meet_over_mpi(self, dprun: Dprun) -> None:
        process = _run(
            dprun,
            "def work(rank, factor):\n"
            "    import dptrain, dptrain.distributed as dist\n"
            "    dist.init_process_group('gloo', rank=rank, world_size=2)\n"
            "    x = dptrain.ones(2) * (rank + k) * factor\n"
            "    dist.all_reduce(x)\n"
            "    (here / str(rank)).write_text(str(x.tolist()))\n"
            "print('once')\n"
            "assert spawn(work, (10,), nprocs=2) is None\n",
        )
        out, err = process.communicate(timeout=40)
        assert (process.returncode, out.decode()) == (0, "once\n"), err
        assert [(dprun.folder / r).read_text() for r in "01"] == ["[150.0, 150.0]"] * 2

    def test_failures_are_exceptions_of_pytorchs_kinds(self, dprun: Dprun) -> None:
        process = _run(
            dprun,
            "def raises(rank):\n"
            "    if rank == 1:\n        raise KeyError('boom on 1')\n"
            "    time.sleep(30)\n"
            "def dies(rank):\n"
            "    os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(30)\n"
            "def exits(rank):\n"
            "    os._exit(5) if rank == 0 else time.sleep(30)\n"
            "try:\n    spawn(raises, nprocs=2)\n"
            "except ProcessRaisedException as error:\n"
            "    print(error.error_index, 'Process 1 terminated with the following error' in str(error),\n"
            "          str(error).rstrip().endswith(\"KeyError: 'boom on 1'\"), error.pid > 0)\n"
            "try:\n    spawn(dies, nprocs=2)\n"
            "except ProcessExitedException as error:\n"
            "    print(error.error_index, error.exit_code, error.signal_name)\n"
            "try:\n    spawn(exits, nprocs=2)\n"
            "except ProcessExitedException as error:\n"
            "    print(error.error_index, error.exit_code, error.signal_name)\n",
        )
        out, err = process.communicate(timeout=60)
        assert out.decode() == "1 True True True\n1 -9 SIGKILL\n0 5 None\n", err

    def test_a_context_waits_with_a_limit_and_ends_its_ranks(self, dprun: Dprun) -> None:
        process = _run(
            dprun,
            "def work(rank):\n"
            "    while not (here / 'go').exists():\n        time.sleep(0.01)\n"
            "context = spawn(work, nprocs=2, join=False)\n"
            "print(context.join(timeout=0.1))\n"
            "(here / 'go').touch()\n"
            "print(context.join(), context.join())\n"
            "(here / 'go').unlink()\n"
            "context = spawn(work, nprocs=2, join=False)\n"
            "while None in context.pids():\n    time.sleep(0.01)\n"
            "context.terminate()\n",
        )
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.decode()) == (0, "False\nTrue True\n"), err

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
    def test_ranks_end_with_the_process_that_spawned_them(
        self, dprun: Dprun, until, number: int
    ) -> None:
        process = _run(
            dprun,
            "def work(rank):\n"
            "    (here / str(rank)).touch()\n"
            "    time.sleep(60)\n"
            "spawn(work, nprocs=2)\n",
        )
        until(lambda: all((dprun.folder / r).exists() for r in "01"), "ranks started", 30)
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode != 0
        until(lambda: not dprun.leftovers(), "no process is left")

    def test_a_function_of_any_module_is_found(self) -> None:
        from dptrain.launch import spawn

        spawn(divmod, (3,), nprocs=1)
        with pytest.warns(FutureWarning, match="start_method=spawn"):
            spawn(time.sleep, nprocs=1, start_method="fork")


def test_arguments_are_pytorchs() -> None:
    mp = pytest.importorskip("torch.multiprocessing", reason="PyTorch is not installed")
    from dptrain import multiprocessing

    for name in ("spawn", "start_processes"):
        ours = inspect.signature(getattr(multiprocessing, name)).parameters
        theirs = inspect.signature(getattr(mp, name)).parameters
        assert [(p.name, p.default) for p in ours.values()] == [
            (p.name, p.default) for p in theirs.values()
        ]
    assert multiprocessing.Queue is not None
    assert multiprocessing.SpawnContext is multiprocessing.ProcessContext
    assert multiprocessing.get_all_sharing_strategies() == mp.get_all_sharing_strategies()
    assert multiprocessing.get_sharing_strategy() == mp.get_sharing_strategy()
    multiprocessing.set_sharing_strategy("file_system")
    with pytest.raises(AssertionError, match="invalid sharing strategy 'x'"):
        multiprocessing.set_sharing_strategy("x")
    with pytest.raises(ValueError, match="cannot find context for 'thread'"):
        multiprocessing.start_processes(print, start_method="thread")
    with pytest.raises(ValueError, match="1 or more"):
        multiprocessing.spawn(print, nprocs=0)


def test_a_final_block_is_read_back() -> None:
    from dptrain.launch import report
    from dptrain.launch.hub import RankState

    state = RankState(1, 1, 42, "a host, of mine")
    failure = report.Failure(
        state, "ValueError: (x)", 1, "Traceback\n  dprun: no\nValueError: (x)", "hint"
    )
    found = parse_block(report.block(failure, [failure], 3))
    assert found == (1, 42, "ValueError: (x)", failure.detail + "\n", None)
    killed = report.of_death(state, None, 128 + 9, "")
    found = parse_block(report.block(killed, [], 3))
    assert found is not None
    assert found.signal_name == "SIGKILL"
    assert parse_block("mpirun: no such host\n") is None
