"""Which ranks write a run's event files, and where.

Owns: the choice of ranks, the run's folder and its files. Must not know: what is written.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from dptrain.comm.default import default_communicator, is_initialized
from dptrain.comm.env import discover
from dptrain.tensorboard import protos
from dptrain.tensorboard.events import FileWriter, NoFile

_Method = TypeVar("_Method", bound=Callable[..., None])


def on_writing_ranks(method: _Method) -> _Method:
    """On ranks that do not write, the call does nothing: no value is converted, no model runs."""

    @wraps(method)
    def call(self: RunFiles, *args: Any, **kwargs: Any) -> None:
        if self.writes:
            method(self, *args, **kwargs)

    return call  # type: ignore[return-value]


def own_rank() -> int:
    """This process's rank, before `init_process_group` too."""
    return default_communicator().rank if is_initialized() else discover().rank


class RunFiles:
    """The files of one run on the ranks that write; the arguments are `SummaryWriter`'s."""

    def __init__(
        self,
        log_dir: str | Path | None = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: float = 120,
        filename_suffix: str = "",
        *,
        ranks: int | Iterable[int] | str = 0,
    ) -> None:
        protos.require()
        rank = own_rank()
        if not log_dir:
            if not isinstance(ranks, int):
                raise ValueError(
                    f"SummaryWriter: ranks={ranks!r} needs log_dir, the folder of all of them"
                )
            started = datetime.now().strftime("%b%d_%H-%M-%S")
            log_dir = os.path.join("runs", f"{started}_{socket.gethostname()}{comment}")
        if isinstance(ranks, int):
            self.writes = rank == ranks
        else:
            if isinstance(ranks, str) and ranks != "all":
                raise ValueError(
                    f"SummaryWriter: ranks must be a rank, several, or 'all', got {ranks!r}"
                )
            self.writes = ranks == "all" or rank in ranks
            log_dir = os.path.join(log_dir, f"rank{rank}")
        self.log_dir = log_dir
        self.purge_step = purge_step
        self.max_queue = max_queue
        self.flush_secs = flush_secs
        self.filename_suffix = filename_suffix
        self.file_writer: FileWriter | NoFile | None = None
        self.all_writers: dict[str, FileWriter | NoFile] | None = None
        self._embeddings = ""
        self._get_file_writer()

    def _get_file_writer(self) -> FileWriter | NoFile:
        """The run's file; opened anew after `close`. On ranks that do not write, a stand-in."""
        if self.file_writer is None or self.all_writers is None:
            self.file_writer = self._open(self.log_dir)
            self.all_writers = {self.file_writer.get_logdir(): self.file_writer}
            if self.writes and self.purge_step is not None:
                start = protos.SessionLog(status=protos.SessionLog.START)
                for event in ({"file_version": "brain.Event:2"}, {"session_log": start}):
                    self.file_writer.add_event(protos.Event(**event), self.purge_step)
                self.purge_step = None
        return self.file_writer

    def _open(self, log_dir: str | Path) -> FileWriter | NoFile:
        if not self.writes:
            return NoFile(log_dir)
        return FileWriter(log_dir, self.max_queue, self.flush_secs, self.filename_suffix)

    def _add(self, made: Any, global_step: Any = None, walltime: float | None = None) -> None:
        self._get_file_writer().add_summary(made, global_step, walltime)

    def get_logdir(self) -> str | Path:
        """The run's folder."""
        return self.log_dir

    def flush(self) -> None:
        """Return when everything added so far is on disk."""
        for writer in (self.all_writers or {}).values():
            writer.flush()

    def close(self) -> None:
        """Flush and close; a later call of `add_...` goes on in new files."""
        writers, self.file_writer, self.all_writers = self.all_writers, None, None
        for writer in (writers or {}).values():
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
