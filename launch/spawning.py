"""``spawn``: a function on N ranks, from a notebook, a script or a test.

Owns: the way of the function to the ranks, the ``ProcessContext`` of the job, and its failure as an
exception here. Must not know: how ranks are started and ended; that is ``dprun``'s work, which runs as
a child of this process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import processes, report
from .mpirun import without_foreign_job

PAYLOAD = "payload"


class ProcessException(Exception):
    """A rank failed.

    Attributes:
        msg: what happened.
        error_index: the rank that failed first.
        error_pid: its process id.
    """

    def __init__(self, msg: str, error_index: int, error_pid: int) -> None:
        super().__init__(msg)
        self.msg = msg
        self.error_index = error_index
        self.error_pid = error_pid

    @property
    def pid(self) -> int:
        """As ``error_pid``."""
        return self.error_pid


class ProcessRaisedException(ProcessException):
    """The function raised; the message holds the traceback of the first rank in which it did."""


class ProcessExitedException(ProcessException):
    """A rank ended by a signal or an exit status.

    Attributes:
        exit_code: the status; minus the number of the signal.
        signal_name: such as "SIGKILL", or None.
    """

    def __init__(
        self,
        msg: str,
        error_index: int,
        error_pid: int,
        exit_code: int,
        signal_name: str | None = None,
    ) -> None:
        super().__init__(msg, error_index, error_pid)
        self.exit_code = exit_code
        self.signal_name = signal_name


class ProcessContext:
    """A job that ``spawn(..., join=False)`` has started.

    Attributes:
        nprocs: number of ranks.
    """

    def __init__(self, launcher: subprocess.Popen[bytes], folder: str, nprocs: int) -> None:
        self.nprocs = nprocs
        self._launcher = launcher
        self._folder = Path(folder)
        self._forget = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._outcome: ProcessException | None = None

    def pids(self) -> list[int | None]:
        """The process ids of the ranks; None for one that has not started."""
        found: list[int | None] = []
        for rank in range(self.nprocs):
            path = self._folder / f"{rank}.pid"
            text = path.read_text() if path.exists() else ""
            found.append(int(text) if text else None)
        return found

    def join(self, timeout: float | None = None, grace_period: float | None = None) -> bool:
        """Wait for the end of all ranks. When one fails, the others are ended.

        Args:
            timeout: seconds to wait at most; None: without limit.
            grace_period: accepted; ``dprun`` gives the other ranks two seconds.

        Returns:
            Whether all ranks have ended.

        Raises:
            ProcessRaisedException: the function raised on some rank.
            ProcessExitedException: a rank ended by a signal or with another exit status than 0.
        """
        try:
            code = self._launcher.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        except BaseException:  # Ctrl-C: no rank outlives it.
            self.terminate(signal.SIGINT)
            raise
        if code and self._outcome is None:
            path = self._folder / "report"
            text = path.read_text(errors="replace") if path.exists() else ""
            self._outcome = _exception(text, code)
        self._forget()
        if self._outcome is not None:
            raise self._outcome
        return True

    def terminate(self, number: int = signal.SIGTERM) -> None:
        """End every rank, and return when they have ended."""
        with contextlib.suppress(ProcessLookupError):
            self._launcher.send_signal(number)
        self._launcher.wait()


def _exception(text: str, code: int) -> ProcessException:
    found = report.parse_block(text)
    if found is None:
        said = text.strip() or "no message"
        return ProcessExitedException(f"the job ended with exit code {code}: {said}", 0, 0, code)
    if found.signal_name is not None:
        number = signal.Signals[found.signal_name]
        message = f"process {found.rank} terminated with signal {found.signal_name}"
        return ProcessExitedException(message, found.rank, found.pid, -number, found.signal_name)
    if found.detail.startswith("Traceback"):
        message = (
            f"\n\n-- Process {found.rank} terminated with the following error:\n{found.detail}"
        )
        return ProcessRaisedException(message, found.rank, found.pid)
    message = f"process {found.rank} terminated with exit code {code}: {found.how}"
    return ProcessExitedException(message, found.rank, found.pid, code)


def _dumps(job: Any) -> bytes:
    # Functions of a notebook or of the script itself have no module that a rank could import:
    # cloudpickle, where it is installed, sends their code. pickle reads both.
    try:
        import cloudpickle
    except ImportError:
        return pickle.dumps(job)
    return bytes(cloudpickle.dumps(job))


def spawn(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    nprocs: int = 1,
    join: bool = True,
    daemon: bool = False,
    start_method: str = "spawn",
) -> ProcessContext | None:
    """Run ``fn(rank, *args)`` on ``nprocs`` ranks, which are MPI processes started by ``dprun``.

    The function may be defined anywhere, in a notebook as well, and a script needs no
    ``if __name__ == "__main__"``. The ranks end with this process, however it ends, and with the
    thread that called ``spawn``.

    Args:
        fn: called with its rank first.
        args: further arguments.
        nprocs: number of ranks, 1 or more.
        join: wait for the end.
        daemon: accepted; ranks never outlive this process.
        start_method: "spawn"; another one warns, as nothing else is done.

    Returns:
        None if ``join``, else a ``ProcessContext``.

    Raises:
        ValueError: ``nprocs`` is no positive number.
        ProcessException: with ``join``, see ``ProcessContext.join``.
    """
    if nprocs < 1:
        raise ValueError(f"spawn: nprocs has to be 1 or more, got {nprocs}")
    if start_method != "spawn":
        warnings.warn(
            f"This method only supports start_method=spawn (got: {start_method}).",
            FutureWarning,
            stacklevel=2,
        )
    folder = tempfile.mkdtemp(prefix="dptrain-spawn-")
    try:
        Path(folder, PAYLOAD).write_bytes(_dumps((fn, tuple(args))))
        package = __package__ or "launch"
        command = [sys.executable, "-P", "-m", package, "-n", str(nprocs), "--output", "all"]
        command += ["--report", str(Path(folder, "report")), "-m", f"{package}.spawned", folder]
        # What is importable here is importable there.
        paths = [os.path.abspath(path) for path in sys.path]
        env = {**without_foreign_job(os.environ), "PYTHONPATH": os.pathsep.join(paths)}
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        launcher = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the job through `join`, once.
            preexec_fn=processes.die_with_parent,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    context = ProcessContext(launcher, folder, nprocs)
    if not join:
        return context
    context.join()
    return None
