"""What a profile consists of: events, their averages, the table, the trace; `torch.autograd.profiler_util`'s names."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

__all__ = ["DeviceType", "EventList", "FunctionEvent", "FunctionEventAvg", "Interval"]


class DeviceType(Enum):
    """Where an event took its time."""

    CPU = 0
    CUDA = 1


class Interval:
    """From when to when, in microseconds."""

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end

    def elapsed_us(self) -> float:
        """The length."""
        return self.end - self.start

    def __repr__(self) -> str:
        return f"Interval(start={self.start}, end={self.end})"


def _time(us: float) -> str:
    if us >= 1e6:
        return f"{us / 1e6:.3f}s"
    return f"{us / 1e3:.3f}ms" if us >= 1e3 else f"{us:.3f}us"


class _Times:
    """Times of an event or of several of one name, in microseconds; those of a GPU are not measured: 0."""

    key: str
    count: int
    cpu_time_total: float
    self_cpu_time_total: float
    device_type = DeviceType.CPU
    device_time = device_time_total = self_device_time_total = 0.0
    cuda_time = cuda_time_total = self_cuda_time_total = 0.0

    @property
    def cpu_time(self) -> float:
        """The mean."""
        return self.cpu_time_total / self.count if self.count else 0.0

    @property
    def cpu_time_str(self) -> str:
        """The mean with its unit."""
        return _time(self.cpu_time)

    @property
    def cpu_time_total_str(self) -> str:
        """The sum with its unit."""
        return _time(self.cpu_time_total)

    @property
    def self_cpu_time_total_str(self) -> str:
        """The sum, without what was called from there, with its unit."""
        return _time(self.self_cpu_time_total)


class FunctionEvent(_Times):
    """One call of an operation, of a node of the backward pass, or one labelled block.

    Attributes:
        id: its place in the list of events.
        name, key: "aten::mul", "MulBackward0", or the user's label; "ProfilerStep*" for each step.
        trace_name: the same with the number of the step.
        thread: number of the thread, from 1.
        cpu_parent, cpu_children: the event around it, the events inside it.
        input_shapes: of each argument the shape, [] for what is no tensor; None if not recorded.
        stack: "file(line): function" of the frames outside the package, innermost first.
        is_user_annotation: whether the user labelled it.
    """

    count = 1

    def __init__(self, id: int, name: str, thread: int, parent: FunctionEvent | None) -> None:
        self.id, self.trace_name, self.thread = id, name, thread
        self.name = self.key = "ProfilerStep*" if name.startswith("ProfilerStep#") else name
        self.cpu_parent = parent
        self.cpu_children: list[FunctionEvent] = []
        self.input_shapes: list[Any] | None = None
        self.stack: list[str] = []
        self.is_user_annotation = False
        self.start_ns = 0
        self.end_ns: int | None = None
        if parent is not None:
            parent.cpu_children.append(self)

    @property
    def time_range(self) -> Interval:
        """From when to when, after the profile began."""
        return Interval(self.start_ns / 1e3, (self.end_ns or self.start_ns) / 1e3)

    @property
    def cpu_time_total(self) -> float:  # type: ignore[override]
        """How long it took."""
        return self.time_range.elapsed_us()

    @property
    def self_cpu_time_total(self) -> float:  # type: ignore[override]
        """How long it took without the events inside it."""
        return self.cpu_time_total - sum(child.cpu_time_total for child in self.cpu_children)

    def __repr__(self) -> str:
        span = self.time_range
        return (
            f"<FunctionEvent id={self.id} name={self.name} device_type=DeviceType.CPU "
            f"cpu_time={self.cpu_time_str} start_us={span.start:.3f} end_us={span.end:.3f} "
            f"cpu_children={[child.id for child in self.cpu_children]} thread={self.thread} "
            f"input_shapes={self.input_shapes}>"
        )


class FunctionEventAvg(_Times):
    """All events of one name."""

    def __init__(self, first: FunctionEvent | None = None) -> None:
        self.key = "Total" if first is None else first.key
        self.count = 0
        self.cpu_time_total = self.self_cpu_time_total = 0.0
        self.input_shapes = None if first is None else first.input_shapes
        self.stack = [] if first is None else first.stack

    def add(self, other: FunctionEvent | FunctionEventAvg) -> FunctionEventAvg:
        """Count one more."""
        self.count += other.count
        self.cpu_time_total += other.cpu_time_total
        self.self_cpu_time_total += other.self_cpu_time_total
        return self

    def __repr__(self) -> str:
        return (
            f"<FunctionEventAvg key={self.key} self_cpu_time={self.self_cpu_time_total_str} "
            f"cpu_time={self.cpu_time_str} count={self.count} input_shapes={self.input_shapes}>"
        )


class EventList(list[Any]):
    """Events, or averages of them."""

    def __str__(self) -> str:
        return self.table()

    @property
    def self_cpu_time_total(self) -> float:
        """Microseconds of all events, what was called from them counted once."""
        return float(sum(event.self_cpu_time_total for event in self))

    def key_averages(
        self, group_by_input_shape: bool = False, group_by_stack_n: int = 0
    ) -> EventList:
        """One entry per name.

        Args:
            group_by_input_shape: one entry per name and shapes.
            group_by_stack_n: one entry per name and innermost frames, that many.
        """
        found: dict[Any, FunctionEventAvg] = {}
        for event in self:
            shapes = str(event.input_shapes) if group_by_input_shape else None
            key = event.key, shapes, tuple(event.stack[:group_by_stack_n])
            if key not in found:
                entry = found[key] = FunctionEventAvg(event)
                entry.input_shapes = event.input_shapes if group_by_input_shape else None
                entry.stack = event.stack[:group_by_stack_n]
            found[key].add(event)
        return EventList(found.values())

    def total_average(self) -> FunctionEventAvg:
        """All events as one entry."""
        total = FunctionEventAvg()
        for event in self:
            total.add(event)
        return total

    def table(
        self,
        sort_by: str | None = None,
        row_limit: int = 100,
        max_src_column_width: int = 75,
        max_name_column_width: int = 55,
        max_shapes_column_width: int = 80,
        header: str | None = None,
        top_level_events_only: bool = False,
    ) -> str:
        """The events as text.

        Args:
            sort_by: an attribute, largest first: "cpu_time", "cpu_time_total", "self_cpu_time_total", "count".
            row_limit: how many rows at most; -1 for all.
            max_src_column_width, max_name_column_width, max_shapes_column_width: what is longer is cut.
            header: a line above.
            top_level_events_only: only events that are inside no other one.

        Raises:
            AttributeError: `sort_by` is no attribute of events.
        """
        if not self:
            return ""
        events = list(self)
        if sort_by is not None:
            events.sort(key=lambda event: getattr(event, sort_by), reverse=True)
        if top_level_events_only:
            events = [event for event in events if getattr(event, "cpu_parent", None) is None]
        if row_limit >= 0:
            events = events[:row_limit]
        total = self.self_cpu_time_total
        names = ["Name", "Self CPU %", "Self CPU", "CPU total %", "CPU total", "CPU time avg"]
        rows = [
            [
                _cut(event.key, max_name_column_width),
                _share(event.self_cpu_time_total, total),
                event.self_cpu_time_total_str,
                _share(event.cpu_time_total, total),
                event.cpu_time_total_str,
                event.cpu_time_str,
                str(event.count),
            ]
            for event in events
        ]
        names.append("# of Calls")
        if any(event.input_shapes for event in events):
            names.append("Input Shapes")
            for row, event in zip(rows, events, strict=True):
                row.append(_cut(str(event.input_shapes or []), max_shapes_column_width))
        if any(event.stack for event in events):
            names.append("Source Location")
            for row, event in zip(rows, events, strict=True):
                row.append(_cut(event.stack[0] if event.stack else "", max_src_column_width))
        return _set(names, rows, header) + f"\nSelf CPU time total: {_time(total)}\n"

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the events for chrome://tracing, Perfetto or TensorBoard.

        Args:
            path: of the file; one that ends in ".gz" is compressed.

        Raises:
            OSError: the file cannot be written.
        """
        write_trace(path, self, {})

    def export_stacks(self, path: str, metric: str = "self_cpu_time_total") -> None:
        """Write a line "frame;frame;frame microseconds" for each stack, outermost first.

        Raises:
            ValueError: another metric, or a list of averages.
        """
        if metric != "self_cpu_time_total":
            raise ValueError(f"metric should be one of: ['self_cpu_time_total'], got {metric!r}")
        sums: dict[str, int] = {}
        for event in self:
            if event.stack:
                line = ";".join(frame.replace(" ", "_") for frame in reversed(event.stack))
                sums[line] = sums.get(line, 0) + int(event.self_cpu_time_total)
        lines = (f"{line} {us}\n" for line, us in sums.items() if us > 0)
        Path(path).write_text("".join(lines), encoding="utf-8")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _share(part: float, total: float) -> str:
    return f"{part / total:.2%}" if total else "NaN"


def _set(names: list[str], rows: list[list[str]], header: str | None) -> str:
    """Set rows in columns, right-aligned between lines of dashes."""
    widths = [
        max(12, len(name), *(len(row[i]) for row in rows)) if rows else max(12, len(name))
        for i, name in enumerate(names)
    ]
    line = "  ".join("-" * width for width in widths)
    body = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in [names, *rows]]
    top = [] if header is None else ["=" * len(line), header]
    return "\n".join([*top, line, body[0], line, *body[1:], line])


def write_trace(
    path: str | os.PathLike[str], events: Iterable[FunctionEvent], metadata: dict[str, Any]
) -> None:
    """Write events as a trace in Chrome's format.

    Args:
        path: of the file; one that ends in ".gz" is compressed.
        events: what happened.
        metadata: further entries of the file.
    """
    pid = os.getpid()
    traced: list[dict[str, Any]] = []
    for event in events:
        args: dict[str, Any] = {"Ev Idx": event.id}
        if event.input_shapes is not None:
            args["Input Dims"] = event.input_shapes
        if event.stack:
            args["Call stack"] = ";".join(event.stack)
        span = event.time_range
        traced.append(
            {
                "ph": "X",
                "cat": "user_annotation" if event.is_user_annotation else "cpu_op",
                "name": event.trace_name,
                "pid": pid,
                "tid": event.thread,
                "ts": span.start,
                "dur": span.elapsed_us(),
                "args": args,
            }
        )
    text = json.dumps(
        {"schemaVersion": 1, "deviceProperties": [], **metadata, "traceEvents": traced}
    )
    raw = text.encode()
    Path(path).write_bytes(gzip.compress(raw) if os.fspath(path).endswith(".gz") else raw)
