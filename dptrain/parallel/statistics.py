"""Where a rank's time goes: computing, communicating, and how much of that was hidden.

Owns: `StepTimes`, the record of one step. Must not know: how gradients travel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class BucketTimes:
    """One bucket of one backward pass; all times are `time.perf_counter_ns`.

    Attributes:
        index: its number.
        nbytes: its size.
        ready_ns: when the last of its gradients was final.
        launched_ns: when its communication was asked for (buckets wait for those before them).
        started_ns: when this rank came to the meeting of the ranks.
        met_ns: when every rank had come, so that data could move.
        finished_ns: when the result was there.
    """

    index: int
    nbytes: int
    ready_ns: int
    launched_ns: int
    started_ns: int
    met_ns: int
    finished_ns: int


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One synchronised backward pass.

    Attributes:
        forward_ns: begin and end of the last forward before it.
        backward_from_ns: when the first gradient was final.
        waited_from_ns: when backward had nothing left to compute.
        waited_until_ns: when all buckets had arrived.
        buckets: their times, in launch order.
    """

    forward_ns: tuple[int, int]
    backward_from_ns: int
    waited_from_ns: int
    waited_until_ns: int
    buckets: Sequence[BucketTimes]

    @property
    def communication_ns(self) -> int:
        """Time during which at least one bucket was under way."""
        covered_until = total = 0
        for bucket in self.buckets:  # in launch order, which is also the order in which they run
            start = max(bucket.started_ns, covered_until)
            if bucket.finished_ns > start:
                total += bucket.finished_ns - start
                covered_until = bucket.finished_ns
        return total

    @property
    def exposed_ns(self) -> int:
        """Time that backward had to wait for the last bucket."""
        return self.waited_until_ns - self.waited_from_ns

    def hidden(self, bucket: BucketTimes) -> float:
        """Share of a bucket's communication that ran while backward still computed, 0 to 1."""
        length = bucket.finished_ns - bucket.started_ns
        behind = min(bucket.finished_ns, self.waited_from_ns) - bucket.started_ns
        return max(0.0, min(1.0, behind / length)) if length else 0.0


@dataclass
class StepTimes:
    """Sums over the synchronised backward passes of one rank; `print(model.times)` shows them.

    Attributes:
        steps: how many there were.
        communication_s: time during which at least one bucket was under way.
        exposed_s: time that backward had to wait for the last of them.
        last: the last of them, bucket by bucket.
    """

    steps: int = 0
    communication_s: float = 0.0
    exposed_s: float = 0.0
    last: StepRecord | None = None
    _listeners: list[Callable[[StepRecord], None]] = field(default_factory=list, repr=False)

    def add(self, record: StepRecord) -> None:
        """Add one pass."""
        self.steps += 1
        self.exposed_s += record.exposed_ns / 1e9
        self.communication_s += record.communication_ns / 1e9
        self.last = record
        for listener in tuple(self._listeners):
            listener(record)

    def add_listener(self, listener: Callable[[StepRecord], None]) -> Callable[[], None]:
        """Call `listener(record)` after every pass.

        Returns:
            A function that removes the listener.
        """
        self._listeners.append(listener)

        def remove() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return remove

    @property
    def overlapped(self) -> float:
        """Share of the communication that was hidden behind backward, 0 to 1."""
        if self.communication_s == 0:
            return 0.0
        return max(0.0, 1.0 - self.exposed_s / self.communication_s)

    def figures(self) -> dict[str, Any]:
        """The sums, and the last pass bucket by bucket in milliseconds, for a log."""
        found: dict[str, Any] = {
            "steps": self.steps,
            "communication_s": self.communication_s,
            "exposed_s": self.exposed_s,
            "overlapped": self.overlapped,
        }
        if self.last is not None:
            start, last = self.last.backward_from_ns, self.last
            found["buckets"] = [
                {
                    "index": b.index,
                    "bytes": b.nbytes,
                    "ready_ms": (b.ready_ns - start) / 1e6,
                    "launched_ms": (b.launched_ns - start) / 1e6,
                    "finished_ms": (b.finished_ns - start) / 1e6,
                    "hidden": last.hidden(b),
                }
                for b in last.buckets
            ]
        return found

    def __str__(self) -> str:
        lines = [
            f"{self.steps} steps: communication {self.communication_s:.3f} s, of which backward waited for "
            f"{self.exposed_s:.3f} s ({self.overlapped:.0%} hidden)"
        ]
        buckets = self.figures().get("buckets", [])
        if buckets:
            lines.append("last step, ms after the first gradient:")
            lines.append("bucket       bytes     ready  launched  finished  hidden")
            lines += [
                f"{b['index']:6d}  {b['bytes']:10d}  {b['ready_ms']:8.3f}  {b['launched_ms']:8.3f}  "
                f"{b['finished_ms']:8.3f}  {b['hidden']:6.0%}"
                for b in buckets
            ]
        return "\n".join(lines)
