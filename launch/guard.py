"""A process that outlives a launcher killed without a word, and ends an mpirun that does not end.

Owns: the guard. Must not know: what a job is, beyond the session of mpirun.

The kernel sends mpirun SIGTERM when the launcher dies. Open MPI's mpirun then ends its ranks and
removes its files, but now and then it hangs while doing so; the guard kills what is left of its
session after a grace time. While the launcher lives, the guard sleeps in one read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

_GRACE_S = 2.0
_DONE = b"done"


class Guard:
    """Forked before the launcher has threads or adopts orphans, so that it is not part of the job."""

    def __init__(self) -> None:
        read, self._write = os.pipe()
        child = os.fork()
        if child == 0:
            # The grandchild is nobody's child here: the launcher does not wait for it, and does not
            # count it among the processes of the job.
            if os.fork() == 0:
                with contextlib.suppress(BaseException):
                    _stand_guard(read)
            os._exit(0)
        os.close(read)
        os.waitpid(child, 0)

    def watch(self, session: int) -> None:
        """Name the session that has to end with the launcher."""
        os.write(self._write, f"{session}\n".encode())

    def dismiss(self) -> None:
        """The launcher has ended the job itself."""
        with contextlib.suppress(OSError):
            os.write(self._write, _DONE)
        os.close(self._write)


def _stand_guard(read: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Nobody may wait for the end of a pipe because the guard still holds it.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(read, 3)
    os.closerange(4, 65536)
    heard = b""
    while data := os.read(3, 64):
        heard += data
    session, _, last = heard.partition(b"\n")
    if last == _DONE or not session:
        return
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline:
        try:
            os.killpg(int(session), 0)
        except OSError:
            return  # it ended by itself
        time.sleep(0.05)
    with contextlib.suppress(OSError):
        os.killpg(int(session), signal.SIGKILL)
