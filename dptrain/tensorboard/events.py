"""The event file: TensorBoard's records, written by a thread.

Owns: the file's name, the queue, what flushing promises. Must not know: what the events say.
"""

from __future__ import annotations

import atexit
import os
import queue
import socket
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

from dptrain.tensorboard import protos

_number = count().__next__


class FileWriter:
    """Appends events to one new file in `log_dir`, without holding up the caller.

    Args:
        log_dir: its folder, made if missing.
        max_queue: how many events may wait to be written; the caller of the next one waits.
        flush_secs: how often the file is brought to disk, in seconds.
        filename_suffix: the end of the file's name.

    Raises:
        ImportError: tensorboardX is not installed.
        OSError: the folder or the file cannot be made. What fails later (a full disk) is raised by the
            next call, never swallowed; no call waits for a thread that has died.
    """

    def __init__(
        self,
        log_dir: str | Path,
        max_queue: int = 10,
        flush_secs: float = 120,
        filename_suffix: str = "",
    ) -> None:
        protos.require()
        self._log_dir = str(log_dir)
        self._max_queue, self._flush_s, self._suffix = max_queue, flush_secs, filename_suffix
        self._closed = True
        self.reopen()

    def get_logdir(self) -> str:
        """The folder of the file."""
        return self._log_dir

    def add_event(self, event: Any, step: Any = None, walltime: float | None = None) -> None:
        """Write an `Event`.

        Args:
            event: the message; its time and step are set here.
            step: anything that `int()` takes.
            walltime: seconds since the epoch; now by default.
        """
        self._check()
        event.wall_time = time.time() if walltime is None else walltime
        if step is not None:
            event.step = int(step)
        if not self._closed:
            self._queue.put(event.SerializeToString())

    def add_summary(
        self, summary: Any, global_step: Any = None, walltime: float | None = None
    ) -> None:
        """Write a `Summary`."""
        self.add_event(protos.Event(summary=summary), global_step, walltime)

    def add_graph(self, graph: Any, walltime: float | None = None) -> None:
        """Write a `GraphDef`."""
        self.add_event(protos.Event(graph_def=graph.SerializeToString()), None, walltime)

    def flush(self) -> None:
        """Return when everything added so far is in the file and on disk."""
        if not self._closed:
            done = threading.Event()
            self._queue.put(done)
            done.wait()
        self._check()

    def close(self) -> None:
        """Flush and close the file; what is added afterwards is dropped until `reopen`."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        atexit.unregister(self.close)
        self._check()

    def reopen(self) -> None:
        """After `close`, go on in a new file of the same folder."""
        if not self._closed:
            return
        protos.directory_check(self._log_dir)
        # Process and number keep apart the files of one second.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{_number()}"
        self._records = protos.RecordWriter(os.path.join(self._log_dir, name + self._suffix))
        self._queue: queue.Queue[Any] = queue.Queue(self._max_queue)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="tensorboard", daemon=True)
        self._closed = False
        self._thread.start()
        atexit.register(self.close)
        self.add_event(protos.Event(file_version="brain.Event:2"))

    def _check(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise OSError(
                f"events for TensorBoard could not be written in {self._log_dir}: {error}"
            ) from error

    def _write(self) -> None:
        """The thread: until None comes; after an error it goes on emptying the queue."""
        due = time.monotonic() + self._flush_s
        while True:
            try:
                entry = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                entry = b""
            try:
                if isinstance(entry, bytes) and entry:
                    self._records.write(entry)
                if not isinstance(entry, bytes) or time.monotonic() >= due:
                    self._records.flush()
                    due = time.monotonic() + self._flush_s
                if entry is None:
                    self._records.close()
            except Exception as error:
                self._error = error
                due = time.monotonic() + self._flush_s
            if isinstance(entry, threading.Event):
                entry.set()
            if entry is None:
                return


class NoFile:
    """`FileWriter` of a rank that does not write: scripts may call it, and nothing happens."""

    def __init__(self, log_dir: str | Path) -> None:
        self._log_dir = str(log_dir)

    def get_logdir(self) -> str:
        """The folder in which there is no file of this rank."""
        return self._log_dir

    def add_event(self, event: Any, step: Any = None, walltime: float | None = None) -> None:
        """Write nothing."""

    def add_summary(
        self, summary: Any, global_step: Any = None, walltime: float | None = None
    ) -> None:
        """Write nothing."""

    def add_graph(self, graph: Any, walltime: float | None = None) -> None:
        """Write nothing."""

    def flush(self) -> None:
        """Nothing to flush."""

    def close(self) -> None:
        """Nothing to close."""

    def reopen(self) -> None:
        """Nothing to open."""
