"""Reading from a file whose lengths are not believed: nothing is asked for that the file cannot hold.

Owns: `Source`, `shown`. Must not know: what the bytes mean.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

_MAX_LINE = 1 << 16


def shown(value: Any) -> str:
    """A short text of a value from a file, for messages.

    `repr` of what a file holds may never end: a tuple that holds another twice, which holds another twice,
    and so on, is as small in the file as it is in memory.
    """
    if isinstance(value, str):
        return repr(value[:40])
    if type(value) is bool or value is None or (type(value) is int and abs(value) < 1 << 64):
        return repr(value)
    if type(value) is tuple and all(type(v) in (int, str) for v in value[:8]):
        return f"({', '.join(map(shown, value[:8]))}{', ...' * (len(value) > 8)})"
    return f"a {type(value).__name__}"


class Source:
    """An open file, from where it stands to its end.

    Args:
        file: readable and seekable.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        here = file.tell()
        self.size: int = file.seek(0, io.SEEK_END) or file.tell()
        file.seek(here)

    def left(self) -> int:
        """Bytes to the end."""
        return self.size - int(self.file.tell())

    def read(self, count: int) -> bytes:
        """So many bytes.

        Raises:
            EOFError: the file ends before.
        """
        if count > 64 and count > self.left():  # short reads are cheap to try
            raise EOFError(f"Ran out of input: {count} bytes expected, {self.left()} left")
        data: bytes = self.file.read(count)
        if len(data) != count:
            raise EOFError("Ran out of input")
        return data

    def readline(self) -> bytes:
        """A line without its end.

        Raises:
            EOFError: the file ends before the line does.
        """
        line: bytes = self.file.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise EOFError("Ran out of input")
        return line[:-1]

    def read_into(self, array: np.ndarray) -> None:
        """Fill an array's memory.

        Raises:
            EOFError: the file ends before.
        """
        memory = array.reshape(-1).view(np.uint8).data
        done, read_into = 0, getattr(self.file, "readinto", None)
        while done < len(memory):
            if read_into is not None:
                count = read_into(memory[done:])
            else:
                data = self.file.read(min(len(memory) - done, 1 << 24))
                count = len(data)
                memory[done : done + count] = data
            if not count:
                raise EOFError(f"Ran out of input: {len(memory)} bytes expected, {done} found")
            done += count
