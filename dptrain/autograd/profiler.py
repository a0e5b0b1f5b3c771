"""`torch.autograd.profiler`'s names: how long operations, their derivatives and labelled blocks take.

Owns: the watching of operations, `profile` and `record_function`. Must not know: schedules of steps, which are
`dptrain.profiler`'s.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ContextDecorator
from pathlib import Path
from threading import get_ident, local
from types import TracebackType
from typing import Any

from dptrain.autograd.profiler_util import (
    EventList,
    FunctionEvent,
    FunctionEventAvg,
    write_trace,
)
from dptrain.core.capturing import WATCHER, recorders, watcher
from dptrain.core.tensor import Tensor

__all__ = ["profile", "record_function"]

_PACKAGE = str(Path(__file__).resolve().parent.parent)
_EVALUATE = "autograd::engine::evaluate_function: "
_ACCUMULATE = "torch::autograd::AccumulateGrad"


class _OfThread(local):
    """What runs in a thread: the innermost event, and whether the next operation is counted already."""

    inside: FunctionEvent | None = None
    counted = False


class Collector:
    """Notes what the core tells while it is entered in `recorders`.

    Args:
        record_shapes: note the shapes of arguments.
        with_stack: note from where the user's code called.
    """

    def __init__(self, record_shapes: bool = False, with_stack: bool = False) -> None:
        self.events: list[FunctionEvent] = []
        self._record_shapes, self._with_stack = record_shapes, with_stack
        self._threads: dict[int, int] = {}
        self._thread = _OfThread()
        self._origin_ns = 0

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: another one has begun.
        """
        if WATCHER in recorders:
            raise RuntimeError("Profiler is already enabled: only one profile can run at a time")
        self._origin_ns = time.perf_counter_ns()
        recorders[WATCHER] = self

    def stop(self) -> None:
        """End; what still runs is counted up to here."""
        recorders.pop(WATCHER, None)
        now = self._now()
        for event in self.events:
            if event.end_ns is None:
                event.end_ns = now

    def _now(self) -> int:
        return time.perf_counter_ns() - self._origin_ns

    def begin(self, name: str, args: tuple[Any, ...] = ()) -> FunctionEvent:
        """An event begins in this thread."""
        thread = self._threads.setdefault(get_ident(), len(self._threads) + 1)
        event = FunctionEvent(len(self.events) + 1, name, thread, self._thread.inside)
        self._thread.inside = event
        self.events.append(event)
        if self._record_shapes:
            event.input_shapes = [list(a.shape) if isinstance(a, Tensor) else [] for a in args]
        if self._with_stack:
            event.stack = _stack()
        event.start_ns = self._now()
        return event

    def end(self, event: FunctionEvent) -> None:
        """It ends."""
        if event.end_ns is None:
            event.end_ns = self._now()
        self._thread.inside = event.cpu_parent

    def counts(self) -> bool:
        """Whether the operation that asks is to be run by `run`, rather than run by it already."""
        counted, self._thread.counted = self._thread.counted, False
        return not counted

    def operation(self, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        """Run an operation, which will ask `counts`."""
        event = self.begin(name, args)
        self._thread.counted = True
        try:
            return call()
        finally:
            self._thread.counted = False
            self.end(event)

    def block(self, name: str, call: Callable[[], Any]) -> Any:
        """Run something else under a label."""
        event = self.begin(name)
        event.is_user_annotation = True
        try:
            return call()
        finally:
            self.end(event)

    def watch(self, walk: Any) -> None:
        """Note the nodes of a backward pass that is about to begin."""
        gradients, announce = walk._node_gradients, walk._announce

        def node_gradients(node: Any, incoming: list[Any]) -> Any:
            return self._node(node.grad_name, lambda: gradients(node, incoming))

        def announced(leaf: Any, grad: Any) -> None:
            self._node(_ACCUMULATE, lambda: announce(leaf, grad))

        walk._node_gradients, walk._announce = node_gradients, announced

    def _node(self, name: str, call: Callable[[], Any]) -> Any:
        outer = self.begin(_EVALUATE + name)
        inner = self.begin(name)
        try:
            return call()
        finally:
            self.end(inner)
            self.end(outer)


def _leave_to_parent() -> None:
    """A forked process, such as a worker that loads data, has nobody who reads its events."""
    recorders.pop(WATCHER, None)


os.register_at_fork(after_in_child=_leave_to_parent)


def _stack() -> list[str]:
    """The frames outside the package, innermost first."""
    frame: Any = sys._getframe(2)
    found = []
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            found.append(f"{code.co_filename}({frame.f_lineno}): {code.co_name}")
        frame = frame.f_back
    return found


def refuse_unmeasured(**asked: Any) -> None:
    """Warn of what a profile is asked for and does not measure."""
    names = [name for name, wanted in asked.items() if wanted]
    if names:
        warnings.warn(
            f"profile: {', '.join(names)} has no effect; the time of operations on the host is measured, with "
            "record_shapes and with_stack where asked",
            UserWarning,
            stacklevel=3,
        )


class profile:
    """Measure the operations of a `with` block, of all threads.

    Operations are named as in PyTorch, "aten::mul" and, in the backward pass, "MulBackward0"; an operation that
    PyTorch makes of several is one event where it is one here, and the replay of a compiled function is none.
    On a GPU it is the time of the call that is measured, not that of the kernels.

    Args:
        enabled: False measures nothing.
        use_cuda, use_device, with_flops, profile_memory, with_modules: not measured; a warning says so.
        record_shapes: note the shapes of arguments.
        with_stack: note from where the user's code called.
        use_kineto, use_cpu, experimental_config, acc_events: accepted.

    Raises:
        RuntimeError: entered twice, or while another profile runs; asked for results before its end.
    """

    def __init__(
        self,
        enabled: bool = True,
        *,
        use_cuda: bool = False,
        use_device: str | None = None,
        record_shapes: bool = False,
        with_flops: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_modules: bool = False,
        use_kineto: bool = False,
        use_cpu: bool = True,
        experimental_config: Any = None,
        acc_events: bool = False,
    ) -> None:
        refuse_unmeasured(
            use_cuda=use_cuda,
            use_device=use_device,
            with_flops=with_flops,
            profile_memory=profile_memory,
            with_modules=with_modules,
        )
        self.enabled, self.entered = enabled, False
        self._collector = Collector(record_shapes, with_stack)
        self.function_events: EventList | None = None

    def __enter__(self) -> profile | None:
        if not self.enabled:
            return None
        if self.entered:
            raise RuntimeError("Profiler context manager is not reentrant")
        self._collector.start()
        self.entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.enabled:
            self._collector.stop()
            self.function_events = EventList(self._collector.events)

    def _events(self) -> EventList:
        if self.function_events is None:
            raise RuntimeError("Profiler didn't finish running")
        return self.function_events

    def __str__(self) -> str:
        return "<unfinished profile>" if self.function_events is None else str(self._events())

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
        """See `EventList.table`."""
        return self._events().table(
            sort_by,
            row_limit,
            max_src_column_width,
            max_name_column_width,
            max_shapes_column_width,
            header,
            top_level_events_only,
        )

    def key_averages(
        self, group_by_input_shape: bool = False, group_by_stack_n: int = 0
    ) -> EventList:
        """See `EventList.key_averages`."""
        return self._events().key_averages(group_by_input_shape, group_by_stack_n)

    def total_average(self) -> FunctionEventAvg:
        """All events as one entry."""
        return self._events().total_average()

    @property
    def self_cpu_time_total(self) -> float:
        """Microseconds of all events."""
        return self._events().self_cpu_time_total

    def export_chrome_trace(self, path: str) -> None:
        """See `EventList.export_chrome_trace`."""
        write_trace(path, self._events(), {})

    def export_stacks(self, path: str, metric: str = "self_cpu_time_total") -> None:
        """See `EventList.export_stacks`."""
        self._events().export_stacks(path, metric)


class record_function(ContextDecorator):
    """Label a block, or each call of a decorated function, in the profile that runs, if one does.

    Args:
        name: the label.
        args: accepted as in PyTorch.
    """

    def __init__(self, name: str, args: str | None = None) -> None:
        self.name, self.args = name, args
        self._begun: list[tuple[Collector, FunctionEvent] | None] = []

    def _recreate_cm(self) -> record_function:
        return record_function(self.name, self.args)

    def __enter__(self) -> record_function:
        collector = watcher()
        begun = None
        if collector is not None:
            begun = collector, collector.begin(self.name)
            begun[1].is_user_annotation = True
        self._begun.append(begun)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        begun = self._begun.pop()
        if begun is not None:
            begun[0].end(begun[1])
