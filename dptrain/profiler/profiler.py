"""`torch.profiler`'s profile: the operations of some steps of a training loop.

Owns: `profile`, `schedule`, `tensorboard_trace_handler`. Must not know: how operations are watched
(`dptrain.autograd.profiler`).
"""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable
from enum import Enum
from types import TracebackType
from typing import Any

from dptrain.autograd.profiler import Collector, record_function, refuse_unmeasured
from dptrain.autograd.profiler_util import EventList, write_trace
from dptrain.cuda import is_available


class ProfilerActivity(Enum):
    """What a profile measures: the host's work; a GPU's is accepted and not measured."""

    CPU = 0
    XPU = 1
    MTIA = 2
    CUDA = 3
    HPU = 4
    PrivateUse1 = 5


class ProfilerAction(Enum):
    """What a profile does during a step."""

    NONE = 0
    WARMUP = 1
    RECORD = 2
    RECORD_AND_SAVE = 3


def supported_activities() -> set[ProfilerActivity]:
    """What can be measured."""
    return {ProfilerActivity.CPU}


def kineto_available() -> bool:
    """False: PyTorch's library for traces is not used."""
    return False


def schedule(
    *,
    wait: int,
    warmup: int,
    active: int,
    repeat: int = 0,
    skip_first: int = 0,
    skip_first_wait: int = 0,
) -> Callable[[int], ProfilerAction]:
    """Which steps a profile records: in cycles of `wait` idle ones, `warmup` and then `active` recorded ones.

    Args:
        wait, warmup, active: steps of each kind in a cycle.
        repeat: how many cycles; 0 for as long as the profile runs.
        skip_first: idle steps before the first cycle.
        skip_first_wait: if not 0, the first cycle has no idle steps.

    Raises:
        AssertionError: a negative number, or no active step.
    """
    if min(wait, warmup, repeat, skip_first, skip_first_wait) < 0 or active <= 0:
        raise AssertionError(
            "Invalid profiler schedule arguments: wait, warmup, repeat, skip_first and skip_first_wait must be at least "
            f"0 and active at least 1; got wait={wait}, warmup={warmup}, active={active}, repeat={repeat}, "
            f"skip_first={skip_first}, skip_first_wait={skip_first_wait}"
        )
    if warmup == 0:
        warnings.warn(
            "Profiler won't be using warmup, this can skew profiler results", stacklevel=2
        )

    def action_of(step: int) -> ProfilerAction:
        if step < 0:
            raise AssertionError(f"Step must be non-negative. Got {step}.")
        if step < skip_first:
            return ProfilerAction.NONE
        step -= skip_first
        if skip_first_wait:
            step += wait
        cycle, place = divmod(step, wait + warmup + active)
        if (repeat and cycle >= repeat) or place < wait:
            return ProfilerAction.NONE
        if place < wait + warmup:
            return ProfilerAction.WARMUP
        last = place == wait + warmup + active - 1
        return ProfilerAction.RECORD_AND_SAVE if last else ProfilerAction.RECORD

    return action_of


def tensorboard_trace_handler(
    dir_name: str, worker_name: str | None = None, use_gzip: bool = False
) -> Callable[[profile], None]:
    """For `on_trace_ready`: write each trace to a file of its own in the directory.

    Args:
        dir_name: the directory; made if it does not exist.
        worker_name: begins the names of the files; by default the host and the process.
        use_gzip: compress the files.

    Raises:
        RuntimeError: from the handler, the directory cannot be made.
    """

    def write(prof: profile) -> None:
        try:
            os.makedirs(dir_name, exist_ok=True)
        except OSError as error:
            raise RuntimeError(f"Can't create directory: {dir_name}") from error
        worker = worker_name or f"{socket.gethostname()}_{os.getpid()}"
        ending = ".gz" if use_gzip else ""
        name = f"{worker}.{time.time_ns()}.pt.trace.json{ending}"
        prof.export_chrome_trace(os.path.join(dir_name, name))

    return write


_RECORDING = (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)


class profile:
    """Measure the operations of a block, or of those steps of it that a schedule chooses.

    Example::

        with profile(schedule=schedule(wait=1, warmup=1, active=3),
                     on_trace_ready=tensorboard_trace_handler("traces")) as prof:
            for images, labels in loader:
                ...
                prof.step()

    What is measured and how it is named says `dptrain.autograd.profiler.profile`.

    Args:
        activities: what to measure; the host's work always is, a GPU's never.
        schedule: from the number of a step to a `ProfilerAction`; by default all is recorded.
        on_trace_ready: called with the profile when a cycle of the schedule has ended, or the block.
        record_shapes: note the shapes of arguments.
        profile_memory, with_flops, with_modules, use_cuda: not measured; a warning says so.
        with_stack: note from where the user's code called.
        experimental_config, execution_trace_observer, custom_trace_id_callback, post_processing_timeout_s:
            accepted.
        acc_events: keep the events of all cycles, rather than those of the last.

    Raises:
        AssertionError: no activities; asked for results of which there are none so far.
        RuntimeError: another profile runs.
    """

    def __init__(
        self,
        *,
        activities: Iterable[ProfilerActivity] | None = None,
        schedule: Callable[[int], ProfilerAction] | None = None,
        on_trace_ready: Callable[..., Any] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        with_modules: bool = False,
        experimental_config: Any = None,
        execution_trace_observer: Any = None,
        acc_events: bool = False,
        use_cuda: bool | None = None,
        custom_trace_id_callback: Callable[[], str] | None = None,
        post_processing_timeout_s: float | None = None,
    ) -> None:
        self.activities = supported_activities() if activities is None else set(activities)
        if not self.activities:
            raise AssertionError("No valid profiler activities found")
        if ProfilerActivity.CUDA in self.activities or use_cuda:
            warnings.warn(
                "the time of GPU kernels is not measured, only that of the calls"
                if is_available()
                else "CUDA is not available, disabling CUDA profiling",
                stacklevel=2,
            )
        refuse_unmeasured(
            profile_memory=profile_memory, with_flops=with_flops, with_modules=with_modules
        )
        self.record_steps = schedule is not None
        self.schedule = schedule or (lambda step: ProfilerAction.RECORD)
        self.on_trace_ready = on_trace_ready
        self.record_shapes, self.with_stack = record_shapes, with_stack
        self.acc_events = acc_events
        self.step_num = 0
        self.current_action = ProfilerAction.NONE
        self._collector: Collector | None = None
        self._step: record_function | None = None
        self._found: EventList | None = None
        self._metadata: dict[str, Any] = {}

    def __enter__(self) -> profile:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin with step 0."""
        self.step_num = 0
        self.current_action = self.schedule(0)
        self._begin_step()

    def step(self) -> None:
        """The next step of the training loop begins."""
        previous = self.current_action
        self._leave_step()
        self.step_num += 1
        self.current_action = following = self.schedule(self.step_num)
        ends = previous is ProfilerAction.RECORD_AND_SAVE
        if previous is ProfilerAction.RECORD and following not in _RECORDING:
            warnings.warn(f"Incorrect schedule: RECORD followed by {following.name}", stacklevel=2)
            self._end_trace()
        elif ends:
            self._end_trace()
            self._hand_out()
        elif previous is ProfilerAction.WARMUP and following is ProfilerAction.NONE:
            warnings.warn("Incorrect schedule: WARMUP followed by NONE", stacklevel=2)
        self._begin_step()

    def stop(self) -> None:
        """End; what was recorded in an unfinished cycle is handed out too."""
        self._leave_step()
        if self._collector is not None:
            self._end_trace()
            self._hand_out()
        self.current_action = ProfilerAction.NONE

    def _begin_step(self) -> None:
        if self.current_action in _RECORDING and self._collector is None:
            collector = Collector(self.record_shapes, self.with_stack)
            collector.start()
            self._collector = collector
        if self.record_steps:
            self._step = record_function(f"ProfilerStep#{self.step_num}")
            self._step.__enter__()

    def _leave_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _end_trace(self) -> None:
        if self._collector is None:
            return
        self._collector.stop()
        kept = self._found if self.acc_events and self._found is not None else []
        self._found = EventList([*kept, *self._collector.events])
        self._collector = None

    def _hand_out(self) -> None:
        if self.on_trace_ready is not None:
            self.on_trace_ready(self)

    def events(self) -> EventList:
        """All events of the last cycle, or of all cycles with `acc_events`.

        Raises:
            AssertionError: nothing was recorded so far.
        """
        if self._found is None:
            raise AssertionError(
                "Profiler must be initialized, and have recorded, before getting results: call this after the block, "
                "or in on_trace_ready"
            )
        return self._found

    def key_averages(
        self, group_by_input_shape: bool = False, group_by_stack_n: int = 0
    ) -> EventList:
        """The events by name; see `EventList.key_averages`."""
        return self.events().key_averages(group_by_input_shape, group_by_stack_n)

    def export_chrome_trace(self, path: str) -> None:
        """Write the events for chrome://tracing, Perfetto or TensorBoard; ".gz" compresses."""
        write_trace(path, self.events(), self._metadata)

    def export_stacks(self, path: str, metric: str = "self_cpu_time_total") -> None:
        """See `EventList.export_stacks`; needs `with_stack`."""
        self.events().export_stacks(path, metric)

    def add_metadata(self, key: str, value: str) -> None:
        """Put a text beside the events of the trace."""
        self._metadata[key] = value

    def add_metadata_json(self, key: str, value: str) -> None:
        """Put a value in JSON beside the events of the trace."""
        self._metadata[key] = json.loads(value)

    def preset_metadata_json(self, key: str, value: str) -> None:
        """As `add_metadata_json`, before the start."""
        self.add_metadata_json(key, value)
