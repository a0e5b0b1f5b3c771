"""Starts small MPI jobs for tests, and never lets one outlive its test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from launcher_environment import OPEN_MPI


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    stderr: str


def find_mpirun(python: str) -> str:
    """The launcher beside the interpreter, else on the path; the test is skipped without one."""
    beside = Path(python).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun: MPI is not installed")
    return found


def job_environment() -> dict[str, str]:
    """What Open MPI needs to run as root, with more ranks than cores; harmless to others."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("OMPI_COMM")},
        **OPEN_MPI,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def run_job(
    world_size: int,
    *arguments: str,
    limit_s: float,
    script: str | None = None,
    python: str = sys.executable,
    options: tuple[str, ...] = (),
) -> Result:
    """Run `python arguments` (or the text of a script) as an MPI job of that interpreter's library.

    `options` are mpirun's. A job that takes longer than `limit_s` is killed and fails the test, with what it has printed.
    """
    # mpirun sometimes fails to start its own server on a loaded machine, before it starts a rank.
    for _ in range(2):
        result = _run_once(
            world_size, *arguments, limit_s=limit_s, script=script, python=python, options=options
        )
        if result.code == 0 or "listener thread failed to start" not in result.stderr:
            return result
    return _run_once(
        world_size, *arguments, limit_s=limit_s, script=script, python=python, options=options
    )


def _run_once(
    world_size: int,
    *arguments: str,
    limit_s: float,
    script: str | None,
    python: str,
    options: tuple[str, ...],
) -> Result:
    if script is not None:
        arguments = ("-c", script, *arguments)
    process = subprocess.Popen(
        [find_mpirun(python), *options, "-n", str(world_size), python, *arguments],
        env=job_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        pytest.fail(f"the job was not over after {limit_s} s\n{stdout}\n{stderr}", pytrace=False)
    return Result(process.returncode, stdout, stderr)
