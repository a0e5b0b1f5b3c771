"""A key-value store in a file that several processes can open.

Owns: `FileStore`. Must not know: what is stored.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from collections.abc import Iterator
from typing import Any, BinaryIO

from dptrain.distributed.stores import TableStore
from dptrain.distributed.table import Table, decode, encode

#: Operations after which the table is another; the others only read it.
_CHANGES = frozenset(("set", "append", "add", "compare_set", "delete", "push", "pop"))
#: Those that wait, with the timeout as their last argument.
_WAITING = frozenset(("get", "wait", "pop"))
_POLL_S = 0.01
_USERS = "refcount/"


class FileStore(TableStore):
    """A store in a file, for processes that see the same file system.

    The file is a log of all changes, one a line, written under a lock; each process replays what the
    others have added. A file system without `flock` (old NFS) is no place for it.

    Args:
        file_name: the path; created where there is none.
        world_size: how many processes use it; when as many have come and gone, the file is removed.

    Attributes:
        path: `file_name`.
    """

    def __init__(self, file_name: str, world_size: int = -1) -> None:
        super().__init__()
        self.path, self._world_size = os.fspath(file_name), world_size
        self._table, self._read_until = Table(), 0
        self._ask("add", _USERS, 1)
        self._ask("add", f"{_USERS}total", 1)
        self._close = weakref.finalize(self, _leave, self.path, world_size)

    def _ask(self, operation: str, *args: Any) -> Any:
        if operation not in _WAITING:
            return self._once(operation, args)
        deadline_s = time.monotonic() + args[-1]
        attempt = (*args[:-1], 0.0)
        while True:
            found = self._once(operation, attempt)
            if found or time.monotonic() > deadline_s:
                return found
            time.sleep(_POLL_S)

    def _once(self, operation: str, args: tuple[Any, ...]) -> Any:
        with _locked(self.path) as file:
            file.seek(self._read_until)
            for line in file:
                name, *rest = decode(line)
                getattr(self._table, name)(*rest)
            self._read_until = file.tell()
            found = getattr(self._table, operation)(*args)
            if operation in _CHANGES and not (operation == "pop" and found is None):
                file.write(encode([operation, *args]) + b"\n")
                self._read_until = file.tell()
        return found

    def _own_keys(self) -> int:
        return 1

    def list_keys(self) -> list[str]:
        return [key for key in super().list_keys() if not key.startswith(_USERS)]

    def clone(self) -> FileStore:
        return FileStore(self.path, self._world_size)

    def __repr__(self) -> str:
        return f"FileStore({self.path})"


@contextlib.contextmanager
def _locked(path: str) -> Iterator[BinaryIO]:
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file  # Closing it gives the lock back, after what was written.


def _leave(path: str, world_size: int) -> None:
    """Count one user less; the last of all removes the file."""
    if not os.path.exists(path):
        return
    table = Table()
    with _locked(path) as file:
        file.seek(0)
        for line in file:
            name, *rest = decode(line)
            getattr(table, name)(*rest)
        here = table.add(_USERS, -1)
        came = table.add(f"{_USERS}total", 0)
        if here <= 0 and 0 <= world_size <= came:
            os.unlink(path)
        else:
            file.write(encode(["add", _USERS, -1]) + b"\n")
