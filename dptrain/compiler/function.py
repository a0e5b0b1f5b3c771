"""A function that is recorded once per kind of call and replayed from then on.

Owns: `Compiled`: which recording stands for a call, when to record, when to give up and why.

The first call of a kind runs as it is: what is made lazily (an optimizer's state, compiled kernels) gets
made. The next two are recorded; the recordings have to agree, so that whatever differs from call to call
without being seen by a guard (files, clocks, iterators) shows here. From then on calls are replayed.

Where tensors live on a GPU, the second and third are watched only, and the fourth is recorded into a CUDA
graph, whose replay it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import update_wrapper
from threading import Lock
from typing import Any

from dptrain.compiler.draft import Draft, Outline
from dptrain.compiler.gpu_program import GpuProgram, capture
from dptrain.compiler.gpu_rehearsal import Place, Rehearsal, index_of, rehearse
from dptrain.compiler.guards import Unchanged
from dptrain.compiler.kinds import kind_of, reason_now
from dptrain.compiler.pending_pass import PendingPass
from dptrain.compiler.program import BUSY, Program, agreed
from dptrain.compiler.ranks import Ranks, Wish, why_not_recorded
from dptrain.compiler.recorder import record
from dptrain.compiler.state import Survey, overlaps, survey
from dptrain.compiler.writing import MISS
from dptrain.core.callers import level_outside
from dptrain.core.capturing import recorder
from dptrain.core.cuda import is_loaded
from dptrain.core.engine import current_pass
from dptrain.core.tensor import Tensor


class Unsupported(RuntimeError):
    """A call that cannot be replayed, where `fullgraph=True` asks for one that can."""


@dataclass
class Report:
    """What became of a compiled function.

    Attributes:
        calls: how often it was called.
        replays: how many of the calls were replayed.
        recordings: how many recordings there are.
        kernels: calls that a replay makes, of the newest recording.
        reasons: why calls were not replayed, and how often.
    """

    calls: int = 0
    replays: int = 0
    recordings: int = 0
    kernels: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, program: Program | GpuProgram) -> None:
        """Count a recording."""
        self.recordings += 1
        self.kernels = program.calls

    def __add__(self, other: Report) -> Report:
        """Of both."""
        reasons = {r: self.reasons.get(r, 0) + n for r, n in other.reasons.items()}
        return Report(
            self.calls + other.calls,
            self.replays + other.replays,
            self.recordings + other.recordings,
            other.kernels or self.kernels,
            {**self.reasons, **reasons},
        )

    def __str__(self) -> str:
        lines = [
            f"calls: {self.calls}, replayed: {self.replays}, recordings: {self.recordings}, "
            f"calls per replay: {self.kernels}"
        ]
        lines += [f"not replayed ({count}x): {reason}" for reason, count in self.reasons.items()]
        return "\n".join(lines)


@dataclass
class _Kind:
    """Calls with arguments of one kind."""

    calls: int = 0
    programs: list[Program | GpuProgram] = field(default_factory=list)
    outline: Outline | None = None
    rehearsal: Rehearsal | None = None
    #: Whether the rehearsal agreed with the one before.
    agreed: bool = False
    failures: int = 0
    #: Why calls of this kind are not recorded any more.
    reason: str | None = None


#: Recordings of one kind of call (that differ in what was in reach), and kinds; more run as they are.
LIMIT = 8
#: Recordings of a kind that could not be used, one after the other.
_PATIENCE = 2


class Compiled:
    """A function whose calls are replayed.

    Args:
        function: what to call.
        fullgraph: an error where a call cannot be replayed, rather than the call as it is.
        roots: objects that the calls reach.
    """

    def __init__(self, function: Callable[..., Any], fullgraph: bool, roots: list[Any]) -> None:
        update_wrapper(self, function)
        self._function = function
        self._fullgraph = fullgraph
        self._roots = roots
        self._kinds: dict[Any, _Kind] = {}
        self._lock = Lock()
        #: By GPU: where recordings are made.
        self._places: dict[int, Place] = {}
        self.report = Report()
        self._warned = False
        self._ranks = Ranks(Survey())

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """As a method: the object is an argument."""
        if instance is None:
            return self
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def reset(self) -> None:
        """Forget all recordings."""
        self._kinds.clear()
        self._places.clear()
        self.report = Report()
        self._warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if recorder() is not None or current_pass() is not None:
            return self._function(*args, **kwargs)
        self.report.calls += 1
        if not self._lock.acquire(blocking=False):  # recursion, or another thread's call
            self._note("it is running already")
            return self._function(*args, **kwargs)
        try:
            key, tensors, others = kind_of(args, kwargs)
            kind = self._kinds.get(key)
            ready = _ready([] if kind is None else kind.programs, tensors)
            program = next(ready, None)
            if self.report.calls == 1 and is_loaded():
                self._ranks = Ranks(survey([self._function, *self._roots, *others]))
            wish = Wish.REPLAY if program is not None else _wish_of(kind)
            if not self._ranks.agree(wish) and wish is not Wish.AS_IT_IS:
                self._note("other ranks are not ready for a replay")
                return self._function(*args, **kwargs)
            while program is not None:
                result = program.run(tensors)
                if result is BUSY:
                    self._note("the backward pass of an earlier call is still to come")
                    return self._function(*args, **kwargs)
                if result is not MISS:
                    self.report.replays += 1
                    return result
                program = next(ready, None)
            return self._call(key, kind, tensors, others, args, kwargs)
        finally:
            self._lock.release()

    # ---- calls that are not replayed ---------------------------------------------------------------

    def _call(
        self,
        key: Any,
        kind: _Kind | None,
        tensors: list[Tensor],
        others: list[Any],
        args: Any,
        kwargs: Any,
    ) -> Any:
        if kind is None:
            if len(self._kinds) >= LIMIT * LIMIT:
                return self._as_it_is(
                    f"there are {len(self._kinds)} kinds of calls already (shapes, types)",
                    args,
                    kwargs,
                )
            kind = self._kinds[key] = _Kind()
        kind.calls += 1
        if kind.reason is None:
            kind.reason = reason_now()
            if kind.reason is not None:
                reason, kind.reason = kind.reason, None
                return self._as_it_is(reason, args, kwargs)
        if kind.reason is not None:
            return self._as_it_is(kind.reason, args, kwargs)
        if kind.calls == 1:
            return self._function(*args, **kwargs)
        if len(kind.programs) >= LIMIT:
            kind.reason = f"what is in its reach has changed more than {LIMIT} times"
            return self._as_it_is(kind.reason, args, kwargs)
        return self._record(kind, tensors, others, args, kwargs)

    def _record(
        self, kind: _Kind, tensors: list[Tensor], others: list[Any], args: Any, kwargs: Any
    ) -> Any:
        found = survey([self._function, *self._roots, *others])
        if found.reason is not None:
            kind.reason = found.reason
            return self._as_it_is(found.reason, args, kwargs)
        try:
            index = index_of(tensors, found)
        except RuntimeError as error:
            kind.reason = str(error)
            return self._as_it_is(kind.reason, args, kwargs)
        reason = why_not_recorded(found, index is not None)
        if reason is not None:
            kind.reason = reason
            return self._as_it_is(reason, args, kwargs)
        if index is not None:
            return self._record_on_gpu(kind, index, tensors, found, args, kwargs)
        if overlaps(tensors, found):
            self._note(_OVERLAP)
            return self._function(*args, **kwargs)
        result, draft = record(self._function, args, kwargs, tensors, found, _attach)
        program, kind.outline, reason = agreed(kind.outline, draft, found)
        if program is not None:
            kind.outline = None
            self._add(kind, program)
        if reason is not None:
            self._fail(kind, reason)
        return result

    def _record_on_gpu(
        self,
        kind: _Kind,
        index: int,
        tensors: list[Tensor],
        found: Survey,
        args: Any,
        kwargs: Any,
    ) -> Any:
        """Rehearse a call, or record one that was rehearsed twice."""
        before = kind.rehearsal
        if before is not None and kind.agreed:
            kind.rehearsal, kind.agreed = None, False
            return self._capture(kind, index, tensors, found, before, args, kwargs)
        unchanged = Unchanged(found)
        result, rehearsal = rehearse(self._function, args, kwargs, tensors, found)
        reason = rehearsal.reason or unchanged.reason()
        kind.rehearsal = rehearsal if reason is None else None
        if reason is None and before is not None:
            reason = before.difference(rehearsal.text)
            kind.agreed = reason is None
        if reason is not None:
            self._fail(kind, reason)
        return result

    def _capture(
        self,
        kind: _Kind,
        index: int,
        tensors: list[Tensor],
        found: Survey,
        rehearsal: Rehearsal,
        args: Any,
        kwargs: Any,
    ) -> Any:
        place = self._places.get(index)
        if place is None:
            place = self._places[index] = Place(index)
        made = capture(self._function, args, kwargs, tensors, found, rehearsal, place)
        reason = made if isinstance(made, str) else None
        if not self._ranks.agree(Wish.AS_IT_IS if reason else Wish.REPLAY) and reason is None:
            reason = "another rank could not record it"
        if isinstance(made, str) or reason is not None:
            kind.failures = _PATIENCE  # what CUDA has refused once it refuses again
            self._fail(kind, str(reason))
            return self._function(*args, **kwargs)
        self._add(kind, made)
        self.report.replays += 1
        return made.run(tensors)

    def _fail(self, kind: _Kind, reason: str) -> None:
        self._note(reason)
        kind.failures += 1
        if kind.failures >= _PATIENCE:
            kind.reason = reason
            self._tell(reason)

    def _add(self, kind: _Kind, program: Program | GpuProgram) -> None:
        kind.programs.append(program)
        kind.failures = 0
        self.report.add(program)

    def _as_it_is(self, reason: str, args: Any, kwargs: Any) -> Any:
        self._note(reason)
        self._tell(reason)
        return self._function(*args, **kwargs)

    def _note(self, reason: str) -> None:
        self.report.reasons[reason] = self.report.reasons.get(reason, 0) + 1

    def _tell(self, reason: str) -> None:
        name = getattr(self._function, "__qualname__", type(self._function).__name__)
        if self._fullgraph:
            raise Unsupported(f"compile: {name} cannot be replayed: {reason}")
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"compile: {name} runs without a recording, as if it were not compiled: {reason}",
                UserWarning,
                stacklevel=level_outside(),
            )


def _ready(programs: Sequence[Any], tensors: list[Tensor]) -> Iterator[Any]:
    """The recordings that stand for a call, unless values that it decides by have changed."""
    return (program for program in programs if program.holds() and program.takes(tensors))


def _wish_of(kind: _Kind | None) -> Wish:
    """What a call for which no recording stands is ready for."""
    recorded = kind is not None and kind.agreed and kind.reason is None
    return Wish.RECORD if recorded else Wish.AS_IT_IS


_OVERLAP = "an argument shares memory with a tensor in reach"


def _attach(draft: Draft, values: list[Any], tensors: list[Tensor]) -> None:
    """The backward pass of the recorded call itself."""
    PendingPass(draft).attach(draft, values, tensors)
