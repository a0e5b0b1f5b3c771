"""Which rank's output the user sees, and how.

Owns: the rule (rank 0 as it is; other ranks' errors prefixed; with ``all`` everything prefixed),
lines and cursor positions. Must not know: where the bytes come from, what they mean.
"""

from __future__ import annotations

import os
import select
from collections import defaultdict

from .logs import STREAM_BITS, LogFiles

_MAX_LINE_NBYTES = 1 << 16
_TAIL_NBYTES = 1 << 14


class Output:
    """Writes the ranks' output to the launcher's own stdout and stderr.

    Rank 0's bytes pass unchanged and at once, so that its progress bar and last line are exactly
    its own. Lines of others are written whole, behind ``[rank r] ``.

    Args:
        show_all: prefix and show every line of every rank, instead of the rule above.
        stdout: file descriptor.
        stderr: file descriptor.
        logs: files that keep what the ranks wrote, shown or not.
        hidden: sum of the `STREAM_BITS` of the ranks' streams that are not shown.
    """

    def __init__(
        self,
        show_all: bool = False,
        stdout: int = 1,
        stderr: int = 2,
        logs: LogFiles | None = None,
        hidden: int = 0,
    ) -> None:
        self._show_all = show_all
        self._logs = logs
        self._hidden = hidden
        self._target = {"stdout": stdout, "stderr": stderr}
        self._partial: defaultdict[tuple[str, str], bytearray] = defaultdict(bytearray)
        self._tail: defaultdict[int, bytearray] = defaultdict(bytearray)
        # stdout and stderr may be the same terminal: its cursor is one.
        self._file = {name: _identity(fd) for name, fd in self._target.items()}
        self._mid_line: dict[tuple[int, int], bool] = {}

    def from_rank(self, rank: int, stream: str, data: bytes) -> None:
        """Handles bytes that a rank wrote to ``stream`` ("stdout" or "stderr").

        Raises:
            OSError: the launcher's own stream does not take them (for example, the pipe is broken).
        """
        if stream == "stderr":
            tail = self._tail[rank]
            tail += data
            del tail[:-_TAIL_NBYTES]
        if self._logs is not None:
            try:
                self._logs.write(rank, stream, data)
            except OSError as error:
                self.message(f"dprun: no more log files: {error}\n")
        if STREAM_BITS[stream] & self._hidden:
            return
        if self._show_all or (rank > 0 and stream == "stderr"):
            self._lines(f"[rank {rank}] ", stream, data)
        elif rank == 0:
            self._write(stream, data)

    def from_mpirun(self, data: bytes) -> None:
        """Handles what mpirun itself says."""
        self._lines("[mpirun] ", "stderr", data)

    def message(self, text: str) -> None:
        """Writes the launcher's own words on stderr, from the start of a line."""
        self._write_line("stderr", text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Writes the lines that their ranks did not finish; at the end of the job."""
        if self._logs is not None:
            self._logs.close()
        for (prefix, stream), partial in self._partial.items():
            if partial:
                self._write_line(stream, prefix.encode() + _last_state(bytes(partial)) + b"\n")
                partial.clear()

    def stderr_tail(self, rank: int) -> str:
        """The last 16 KiB that the rank wrote to stderr."""
        return bytes(self._tail[rank]).decode("utf-8", "replace")

    def _lines(self, prefix: str, stream: str, data: bytes) -> None:
        partial = self._partial[prefix, stream]
        *complete, rest = (bytes(partial) + data).split(b"\n")
        partial[:] = rest
        if len(partial) > _MAX_LINE_NBYTES:
            complete.append(bytes(partial))
            partial.clear()
        for line in complete:
            self._write_line(stream, prefix.encode() + _last_state(line) + b"\n")

    def _write_line(self, stream: str, line: bytes) -> None:
        # Not behind rank 0's unfinished line, usually its progress bar.
        start = b"\n" if self._mid_line.get(self._file[stream]) else b""
        self._write(stream, start + line)

    def _write(self, stream: str, data: bytes) -> None:
        if not data:
            return
        fd = self._target[stream]
        self._mid_line[self._file[stream]] = not data.endswith(b"\n")
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # a terminal that another program set non-blocking
                select.select([], [fd], [], 1.0)


def _last_state(line: bytes) -> bytes:
    # Of a line that was overwritten by carriage returns, what a terminal would show in the end.
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def _identity(fd: int) -> tuple[int, int]:
    try:
        status = os.fstat(fd)
    except OSError:
        return (-1, fd)
    return (status.st_dev, status.st_ino)
