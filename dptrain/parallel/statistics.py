"""Where a rank's time goes: computing, communicating, and how much of that was hidden.

Owns: `StepTimes`. Must not know: how gradients travel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass
class StepTimes:
    """Sums over the synchronised backward passes of one rank.

    Attributes:
        steps: how many there were.
        communication_s: time during which at least one bucket was under way.
        exposed_s: time that backward had to wait for the last of them.
    """

    steps: int = 0
    communication_s: float = 0.0
    exposed_s: float = 0.0

    def add(self, works: Iterable[Any], waited_from_ns: int, waited_until_ns: int) -> None:
        """Add one pass: its finished `Work`s and the interval in which backward waited for them."""
        self.steps += 1
        self.exposed_s += (waited_until_ns - waited_from_ns) / 1e9
        covered_until = 0
        for work in works:  # in launch order, which is also the order in which they run
            start = max(work.started_ns, covered_until)
            if work.finished_ns > start:
                self.communication_s += (work.finished_ns - start) / 1e9
                covered_until = work.finished_ns

    @property
    def overlapped(self) -> float:
        """Share of the communication that was hidden behind backward, 0 to 1."""
        if self.communication_s == 0:
            return 0.0
        return max(0.0, 1.0 - self.exposed_s / self.communication_s)
