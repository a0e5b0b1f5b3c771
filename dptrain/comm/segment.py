"""Memory that the processes of one host share.

Owns: how such memory is made, found by the other processes, and given back.
Must not know: MPI, ranks, or what is kept in it.

The memory has no name that outlives its making: it belongs to the processes that have mapped it and
is gone with the last of them, however they end. A mapping lives as long as an array that refers to
it, so that closing a communicator cannot pull memory away from under anybody.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from typing import Any

import numpy as np


class Segment:
    """A shared mapping.

    Attributes:
        bytes: (nbytes,) uint8, zeroed when new, page-aligned.
        path: where another process of this host can open it, until `seal`.
    """

    def __init__(self, descriptor: int, nbytes: int, path: str, *, unlink: bool) -> None:
        self.path = path
        self._descriptor = descriptor
        self._unlink = unlink
        self.bytes: np.ndarray[Any, Any] = np.frombuffer(mmap.mmap(descriptor, nbytes), np.uint8)

    @classmethod
    def create(cls, nbytes: int) -> Segment:
        """New shared memory.

        Raises:
            OSError: there is not enough memory.
        """
        present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if nbytes > present:
            raise OSError(errno.ENOMEM, f"{nbytes} bytes of memory asked for, {present} present")
        if hasattr(os, "memfd_create"):
            # Counts as memory of the processes, not against the size of /dev/shm, which in a
            # container is often 64 MiB. As with other memory, pages are taken when first used.
            descriptor = os.memfd_create("dptrain", os.MFD_CLOEXEC)
            path, unlink = f"/proc/{os.getpid()}/fd/{descriptor}", False
        else:
            descriptor, path = tempfile.mkstemp(prefix="dptrain-")
            unlink = True
        try:
            os.ftruncate(descriptor, nbytes)
            return cls(descriptor, nbytes, path, unlink=unlink)
        except BaseException:
            os.close(descriptor)
            if unlink:
                os.unlink(path)
            raise

    @classmethod
    def received(cls, descriptor: int, nbytes: int) -> Segment:
        """The memory behind a descriptor that another process handed over; the descriptor is closed."""
        try:
            return cls(descriptor, nbytes, "", unlink=False)
        finally:
            os.close(descriptor)

    @classmethod
    def attach(cls, path: str, nbytes: int) -> Segment:
        """The memory that another process of this host created and has not sealed yet.

        Raises:
            OSError: it cannot be opened from here.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            segment = cls(descriptor, nbytes, path, unlink=False)
        except BaseException:
            os.close(descriptor)
            raise
        segment.seal()
        return segment

    def fileno(self) -> int:
        """The descriptor by which the memory can be handed to another process, until `seal`."""
        return self._descriptor

    def seal(self) -> None:
        """Let no further process in, and leave nothing behind when the mappings end."""
        if self._descriptor >= 0:
            os.close(self._descriptor)  # The mapping does not need it.
            self._descriptor = -1
            if self._unlink:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
