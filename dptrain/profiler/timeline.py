"""Where a run's time goes, over all ranks: as one table, and as a timeline in one file.

Owns: `RunTimes`, `Timeline`, `clock_offsets`. Must not know: how data is read or gradients travel; both keep their own times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dptrain.comm.communicator import Communicator, Work
from dptrain.comm.default import default_communicator
from dptrain.data.loader import DataLoader
from dptrain.parallel.ddp import DistributedDataParallel
from dptrain.parallel.statistics import StepRecord


class RunTimes:
    """Measures training inside `with` blocks and prints samples/s, data, compute, communication.

    Example::

        times = RunTimes(model, loader)
        with times:
            for images, labels in loader: ...
            times.add_samples(len(loader.dataset))
        print(times.table())            # on all ranks: the figures are averaged over them

    Args:
        model: the wrapped model, whose averaging is measured.
        loader: the training loader, whose waiting time is measured.
    """

    def __init__(self, model: DistributedDataParallel, loader: DataLoader) -> None:
        self._model, self._loader = model, loader
        self._wall_s = self._data_s = 0.0
        self._samples = 0
        self._from = (0.0, 0.0)

    def __enter__(self) -> RunTimes:
        self._from = (time.perf_counter(), self._loader.data_time_s)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._wall_s += time.perf_counter() - self._from[0]
        self._data_s += self._loader.data_time_s - self._from[1]

    def add_samples(self, count: int) -> None:
        """Count samples of this rank."""
        self._samples += count

    def figures(self) -> dict[str, float]:
        """The figures over all ranks: samples/s together, seconds as the mean. Collective."""
        times, communicator = self._model.times, default_communicator()
        compute_s = max(0.0, self._wall_s - self._data_s - times.exposed_s)
        mine = np.array(
            [
                self._samples,
                self._wall_s,
                self._data_s,
                compute_s,
                times.communication_s,
                times.exposed_s,
            ]
        )
        communicator.all_reduce(mine, name="run times").wait()
        samples, wall, data, compute, communication, exposed = mine.tolist()
        n = communicator.world_size
        return {
            "samples/s": samples / (wall / n) if wall else 0.0,
            "total s": wall / n,
            "data s": data / n,
            "compute s": compute / n,
            "communication s": communication / n,
            "overlapped": max(0.0, 1 - exposed / communication) if communication else 0.0,
        }

    def table(self) -> str:
        """The figures as two aligned lines. Collective: call it on all ranks."""
        formats: dict[str, Any] = {"samples/s": "{:.0f}", "overlapped": "{:.0%}"}
        cells = [
            (name, formats.get(name, "{:.2f}").format(v)) for name, v in self.figures().items()
        ]
        widths = [max(len(name), len(value)) for name, value in cells]
        rows = (
            "  ".join(cell[i].rjust(w) for cell, w in zip(cells, widths, strict=True))
            for i in (0, 1)
        )
        return "\n".join(rows)


def clock_offsets(
    communicator: Communicator, clock: Callable[[], int] = time.perf_counter_ns, rounds: int = 15
) -> list[int]:
    """How far each rank's clock is ahead of rank 0's, in nanoseconds. Collective.

    All ranks leave a barrier at about the same moment. The median over the rounds leaves out those
    in which a rank was held up.

    Args:
        communicator: connects the ranks.
        clock: this rank's, in nanoseconds.
        rounds: how often to measure.
    """
    left = np.zeros((communicator.world_size, rounds), np.int64)
    mine = np.zeros(rounds, np.int64)
    for i in range(rounds):
        communicator.barrier(name="clock")
        mine[i] = clock()
    communicator.all_gather(left, mine, name="clock", async_op=False)
    return [int(ns) for ns in np.median(left - left[0], axis=1)]


@dataclass
class _Span:
    """Something that took from `start_ns` to `stop_ns`."""

    name: str
    thread: int
    start_ns: int
    stop_ns: int
    details: dict[str, Any] = field(default_factory=dict)


_THREADS = ("compute", "communication")


class Timeline:
    """Records what ranks compute and communicate, for a picture of all of them in one file.

    Example::

        with Timeline(model) as timeline:
            for images, labels in islice(loader, 20): ...
        timeline.write("steps.json")  # on all ranks; open it in Perfetto or chrome://tracing

    Each rank is a process of the picture, with a thread that computes (forward; backward, and in it
    the wait for gradients) and one that communicates (each call; in it the wait for the other ranks
    and the movement of data). Times are those of rank 0's clock.

    Args:
        model: the wrapped model, whose steps are recorded, with all calls of its communicator.
    """

    COMPUTE, COMMUNICATION = 0, 1

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = model
        self._spans: list[_Span] = []
        self._remove: list[Callable[[], None]] = []

    def __enter__(self) -> Timeline:
        times = self._model.times  # connects a copy of a model
        self._remove = [
            times.add_listener(self._on_step),
            self._model.communicator.add_listener(self._on_work),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for remove in self._remove:
            remove()

    def _on_step(self, record: StepRecord) -> None:
        begun, done = record.forward_ns
        buckets = [
            {
                "bucket": b.index,
                "bytes": b.nbytes,
                "ready us": (b.ready_ns - record.backward_from_ns) / 1000,
                "launched us": (b.launched_ns - record.backward_from_ns) / 1000,
                "hidden": round(record.hidden(b), 3),
            }
            for b in record.buckets
        ]
        self._spans += [
            _Span("forward", self.COMPUTE, begun, done),
            _Span(
                "backward",
                self.COMPUTE,
                record.backward_from_ns,
                record.waited_until_ns,
                {"buckets": buckets},
            ),
            _Span(
                "wait for gradients", self.COMPUTE, record.waited_from_ns, record.waited_until_ns
            ),
        ]

    def _on_work(self, work: Work) -> None:
        if not work.met_ns:
            return  # a message between two ranks, or a call that failed before they met
        details = {"bytes": work.nbytes, "queued us": (work.started_ns - work.queued_ns) / 1000}
        name = work.name or work.kind
        self._spans += [
            _Span(name, self.COMMUNICATION, work.started_ns, work.finished_ns, details),
            _Span("wait for ranks", self.COMMUNICATION, work.started_ns, work.met_ns),
            _Span("move", self.COMMUNICATION, work.met_ns, work.finished_ns),
        ]

    def write(self, path: str | Path) -> None:
        """Write what all ranks recorded to one file, on rank 0. Collective.

        Raises:
            OSError: on rank 0, the file cannot be written.
        """
        communicator = self._model.communicator
        offsets = clock_offsets(communicator)
        offset = offsets[communicator.rank]
        mine = [
            (s.name, s.thread, s.start_ns - offset, s.stop_ns - offset, s.details)
            for s in self._spans
        ]
        everyone = communicator.gather_object(mine, name="timeline")
        if everyone is None:
            return
        origin = min((s[2] for spans in everyone for s in spans), default=0)
        events: list[dict[str, Any]] = []
        for rank, spans in enumerate(everyone):
            events += _names(rank, enumerate(_THREADS))
            events += [
                {
                    "ph": "X",
                    "name": name,
                    "cat": _THREADS[thread],
                    "pid": rank,
                    "tid": thread,
                    "ts": (start - origin) / 1000,
                    "dur": (stop - start) / 1000,
                    "args": details,
                }
                for name, thread, start, stop, details in sorted(spans, key=lambda s: (s[2], -s[3]))
            ]
        text = json.dumps(
            {
                "traceEvents": events,
                "displayTimeUnit": "ms",
                "otherData": {"clock offsets in ns": offsets},
            }
        )
        Path(path).write_text(text, encoding="utf-8")


def _names(rank: int, threads: Iterable[tuple[int, str]]) -> list[dict[str, Any]]:
    """The events that name a process and its threads, and keep them in order."""
    found = [
        {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}},
        {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}},
    ]
    for thread, name in threads:
        found.append(
            {"ph": "M", "name": "thread_name", "pid": rank, "tid": thread, "args": {"name": name}}
        )
    return found
