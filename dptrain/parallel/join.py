"""Training where ranks have different numbers of batches: PyTorch's `Join`.

Owns: `Join`, `Joinable`, `JoinHook`. Must not know: what the joinables communicate.

A rank that leaves the context before the others answers their collectives until all have left.
Collectives that were made joinable (those of DistributedDataParallel are) the communicator answers by
itself. Hooks that make collectives of their own override `main_hook`; then the ranks count, before
each step, how many still have data, and those that have none call the hooks for each such step. A
`CountedHook` can do either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import numpy as np

from dptrain.comm.communicator import Communicator
from dptrain.core.device import device
from dptrain.parallel.process_group import communicator_of


class JoinHook:
    """What a joinable does on a rank that has run out of data."""

    def main_hook(self) -> None:
        """Answer the collectives of one step of the others. Called once for each of their steps."""

    def post_hook(self, is_last_joiner: bool) -> None:
        """Make the ranks equal, when all have run out of data.

        Args:
            is_last_joiner: whether this rank made all steps.
        """


class CountedHook(JoinHook):
    """A hook whose collectives the communicator answers, or which makes them where ranks count steps."""

    def begin_counting(self) -> None:
        """Steps will be counted. Raises ValueError if the joinable cannot be used so."""

    def with_data(self, ranks: int) -> None:
        """How many ranks have data in the step that begins; called on every rank."""

    def counted_step(self) -> None:
        """As `main_hook`, where steps are counted."""


class Joinable(ABC):
    """Something that communicates in every step, and can go on when ranks run out of data."""

    @abstractmethod
    def join_hook(self, **kwargs: Any) -> JoinHook:
        """What to do on a rank that has run out of data; `kwargs` are those of `Join`."""

    @property
    @abstractmethod
    def join_device(self) -> device:
        """Where it computes."""

    @property
    @abstractmethod
    def join_process_group(self) -> Any:
        """Whose ranks it communicates with."""


class Join:
    """Lets ranks leave a training loop at different times; nothing hangs.

    Example::

        with Join([model]):
            for x, y in batches_of_this_rank:
                ...

    Args:
        joinables: what communicates in the loop; all over one process group. The first one tells the
            context about each step (`Join.notify_join_context(self)`).
        enable: False does nothing, for inputs that are known to be even.
        throw_on_early_termination: raise on all ranks as soon as one has run out of data.
        kwargs: for each `join_hook`.

    Raises:
        ValueError: no joinables; several process groups; a hook that overrides `main_hook` together
            with a joinable whose collectives only the communicator can answer.
    """

    def __init__(
        self,
        joinables: Sequence[Joinable],
        enable: bool = True,
        throw_on_early_termination: bool = False,
        **kwargs: Any,
    ) -> None:
        if not joinables:
            raise ValueError("The join context manager requires at least one joinable")
        self._joinables, self._enable = list(joinables), enable
        self._throw = throw_on_early_termination
        self._communicators = [
            communicator_of(j.join_process_group, type(j).__name__) for j in joinables
        ]
        if len(set(map(id, self._communicators))) != 1:
            raise ValueError("Using join context manager with multiple process groups")
        self._hooks = [j.join_hook(**kwargs) for j in joinables]
        own = [type(h).main_hook is not JoinHook.main_hook for h in self._hooks]
        self._calls_hooks = any(own)
        self._counts = throw_on_early_termination or self._calls_hooks
        if not self._calls_hooks:
            return
        for joinable, hook, makes in zip(joinables, self._hooks, own, strict=True):
            if isinstance(hook, CountedHook):
                hook.begin_counting()
            elif not makes:
                raise ValueError(
                    f"Join: the collectives of {type(joinable).__name__} are answered by the communicator, which cannot "
                    "be mixed with joinables that override main_hook; use a context for each"
                )

    def __enter__(self) -> None:
        if self._enable:
            _contexts.set({**_contexts.get(), id(self._joinables[0]): self})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._enable:
            return
        held = dict(_contexts.get())
        held.pop(id(self._joinables[0]), None)
        _contexts.set(held)
        if kind is not None:
            return
        communicator = self._communicators[0]
        steps = 0
        while self._counts and self._with_data(communicator, 0):
            if self._throw:
                raise self._early(communicator)
            for hook in self._hooks:
                if isinstance(hook, CountedHook):
                    hook.counted_step()
                else:
                    hook.main_hook()
            steps += 1
        if not self._calls_hooks:
            steps = communicator.join().shadowed
        for hook in self._hooks:
            hook.post_hook(steps == 0)

    def _step(self) -> None:
        """A rank that still has data begins a step."""
        if not self._counts:
            return
        communicator = self._communicators[0]
        if self._with_data(communicator, 1) < communicator.world_size and self._throw:
            raise self._early(communicator)

    def _with_data(self, communicator: Communicator, mine: int) -> int:
        """How many ranks still have data. Collective."""
        count = np.array([mine], np.int64)
        communicator.all_reduce(count, name="Join ranks with data", async_op=False)
        for hook in self._hooks:
            if isinstance(hook, CountedHook) and self._calls_hooks and count[0]:
                hook.with_data(int(count[0]))
        return int(count[0])

    @staticmethod
    def _early(communicator: Communicator) -> RuntimeError:
        return RuntimeError(
            f"[rank {communicator.rank}/{communicator.world_size}] Detected at least one rank that exhausted inputs. "
            "Throwing across all ranks."
        )

    @staticmethod
    def counts_steps_of(joinable: Joinable) -> bool:
        """Whether this rank is in a context of `joinable` in which ranks count their steps."""
        inside = _contexts.get().values()
        return any(context._counts and joinable in context._joinables for context in inside)

    @staticmethod
    def notify_join_context(joinable: Joinable) -> None:
        """Tell the context of `joinable`, if it is the first of one, that a step begins."""
        context = _contexts.get().get(id(joinable))
        if context is not None:
            context._step()


#: By the first joinable of each: the contexts that this rank is in.
_contexts: ContextVar[dict[int, Join]] = ContextVar("join_contexts", default={})  # noqa: B039
