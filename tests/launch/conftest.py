"""Running ``dprun`` as a user does, with a time limit, and finding what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_LIMIT_S = 30


class Dprun:
    """Starts ``dprun`` on scripts in a folder of their own; every process carries a mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"DPTRAIN_TEST_MARK={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        self.env = {**os.environ, name: value}
        for variable in ("OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
            self.env.pop(variable, None)

    def script(self, text: str, name: str = "script.py") -> str:
        """Writes a script and returns its path."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
        """Starts it in the background with its output in pipes."""
        defaults = {
            "env": self.env,
            "cwd": self.folder,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "start_new_session": True,
        }
        command = [sys.executable, "-m", "dptrain.launch", *arguments]
        return subprocess.Popen(command, **{**defaults, **options})  # type: ignore[call-overload,no-any-return]

    def run(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        process = self.start(*arguments, **options)
        try:
            stdout, stderr = process.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill_leftovers()
            stdout, stderr = process.communicate()
            pytest.fail(f"dprun did not end within {_LIMIT_S} s\n{stdout!r}\n{stderr!r}")
        texts = [None if text is None else text.decode() for text in (stdout, stderr)]
        return subprocess.CompletedProcess(process.args, process.returncode, *texts)

    def leftovers(self) -> list[int]:
        """Processes that carry the mark and are no zombies."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    # A zombie's environment reads as empty.
                    if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def kill_leftovers(self) -> list[int]:
        """Kills them and returns which there were."""
        found = self.leftovers()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 10.0) -> None:
    """Polls until the condition holds; fails with ``what`` when it does not in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit_s} s: {what}")
        time.sleep(0.01)


@pytest.fixture
def until() -> Callable[..., None]:
    """``until(condition, what)``: waiting on a condition, with a deadline."""
    return wait_until


@pytest.fixture
def dprun(tmp_path: Path) -> Iterator[Dprun]:
    """A ``Dprun``; after the test no process of it may be left."""
    runner = Dprun(tmp_path)
    yield runner
    left = runner.kill_leftovers()
    assert not left, f"dprun left processes behind: {left}"
