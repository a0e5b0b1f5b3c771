"""The check that every rank's backward took part before an optimizer's step.

Owns: `StepCheck`. Must not know: buckets, how gradients are averaged.

A rank whose loss depends on no parameter of the module, or that skips `backward()`, launches nothing.
The others wait for it inside theirs, and would take its *next* gradients for those of this step: wrong
numbers without an error. Its optimizer's step is the first moment at which the omission is certain, so
there it calls a collective of its own. The others are in another one; the communicators' comparison of
calls then ends the step on every rank at once, naming both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from dptrain.comm.communicator import Communicator
from dptrain.optim import Optimizer
from dptrain.optim.optimizer import register_optimizer_step_pre_hook
from dptrain.parallel.bucket_state import Section


class StepCheck:
    """Compares steps of optimizers with backward passes.

    Args:
        communicator: connects the ranks.
        name: of the module, for messages.
        sections: the parameters whose optimizers are looked at; may grow.
    """

    def __init__(self, communicator: Communicator, name: str, sections: Sequence[Section]) -> None:
        self._communicator, self._sections = communicator, sections
        self._name = f"{name} step of an optimizer, but no backward of this rank since the last"
        self._passes = 0
        # How many passes there had been at the last step of each optimizer.
        self._used: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self.remove = register_optimizer_step_pre_hook(self._before_step).remove

    def backward_done(self) -> None:
        """A backward pass of this rank reached the module, or this rank did its part of one."""
        self._passes += 1

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._used.get(optimizer, 0) != self._passes:
            self._used[optimizer] = self._passes
            return
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is not None or not any(
            owner is optimizer for s in self._sections for owner in s.storage.owners()
        ):
            return
        # Where no rank had a backward (a step to set up state), all meet here and go on.
        self._communicator.all_reduce(
            np.zeros(1, np.float32), name=self._name, joinable=True, async_op=False
        )
