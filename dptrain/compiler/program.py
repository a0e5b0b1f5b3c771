"""A recording as something that can be run.

Owns: `Program`, the order of its calls, `agreed`. Must not know: how the calls were recorded.

Views, allocations, the graph and the modules leave nothing behind; neighbouring launches of kernels in one
thread become a single call. What decides the course of the step (whether class indices lie in range, say)
runs first: where it has come out differently, nothing has happened yet, and the call is made without the
recording.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dptrain.compiler.draft import Draft, Outline, difference
from dptrain.compiler.guards import guard
from dptrain.compiler.pending_pass import PendingPass
from dptrain.compiler.replayed import Again
from dptrain.compiler.state import Survey
from dptrain.compiler.trace import OWN, Node, Trace
from dptrain.compiler.writing import MISS, Writer
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.core.parts import root_of
from dptrain.core.tensor import Tensor
from dptrain.core.tree import rebuild


class NotAhead(RuntimeError):
    """A decision depends on what the step computes, so that it cannot be taken ahead."""


#: Where the backward pass of the call before is still to come, over the memory that a run would use.
BUSY = object()


def split(draft: Draft) -> tuple[list[Node], list[Node], list[list[Node]]]:
    """The calls that lead to decisions, with these; the others; those of each way to walk back.

    Raises:
        NotAhead: a decision that cannot be taken before the step.
    """
    trace = draft.trace
    nodes, written = trace.nodes, {id(root) for root in draft.written}
    ahead: set[int] = set()
    for i, node in enumerate(nodes):
        if node.form == "check":
            ahead |= _slice(trace, i, written)
    first = [nodes[i] for i in sorted(ahead)]
    read_later = set(trace.outputs)
    for i, node in enumerate(nodes):
        if i not in ahead:
            read_later.update(node.reads)
    again = any(
        nodes[i].form != "check" and read_later.intersection(nodes[i].writes) for i in ahead
    )
    # Results that are read later: all that leads to them runs again in its place.
    left = [i for i, node in enumerate(nodes) if i not in ahead or (again and node.form != "check")]
    backs = [[nodes[i] for i in left if b.start <= i < b.stop] for b in draft.backwards]
    return first, [nodes[i] for i in left if i < draft.forward_calls], backs


def _slice(trace: Trace, place: int, written: set[int]) -> set[int]:
    """The numbers of the calls that a decision depends on, and its own."""
    nodes = trace.nodes
    wanted, found = set(nodes[place].reads), {place}
    for i in range(place - 1, -1, -1):
        node = nodes[i]
        if not wanted.intersection(node.writes):
            continue
        own = all(trace.kinds[number] == OWN for number in node.writes)
        if not (node.hoistable and own):
            raise NotAhead("it decides by a value that the call computes (an `if`, .any(), bool())")
        found.add(i)
        wanted.update(node.reads)
    if any(id(trace.roots.get(number)) in written for number in wanted):
        raise NotAhead(
            "it decides by a value that the call may have changed (an `if`, .any(), bool())"
        )
    return found


class Program:
    """A draft that can be run.

    Args:
        draft: the recording.
        found: what was in reach, for the guards.

    Raises:
        NotAhead: see `split`.
    """

    def __init__(self, draft: Draft, found: Survey) -> None:
        first, rest, backs = split(draft)
        self.calls = len(rest) + (len(backs[0]) if backs else 0)
        self._draft = draft
        self._written = {id(root) for root in draft.written}
        writer = Writer()
        self._run = writer.replay(draft, first, rest)
        self.lines = writer.lines
        self._pass = PendingPass(draft, backs) if backs else None
        #: Whether a backward pass may follow a run.
        self.walks_back = bool(backs)
        self.holds: Callable[[], bool] = guard(
            draft.tensors,
            [(t, name) for t, _ in draft.gradients for name in ("_hooks", "_post_hooks")],
            draft.starts,
            draft.generator,
            found,
        )

    def is_busy(self) -> bool:
        """Whether a backward pass needs what the last run has left in memory; a run is refused then."""
        return self._draft.is_busy()

    def takes(self, tensors: list[Tensor]) -> bool:
        """Whether it can be run with these arguments."""
        for position, same in self._draft.fixed:
            expected = tensors[same] if isinstance(same, int) else same
            if tensors[position] is not expected:
                return False
        for tensor, own in zip(tensors, self._draft.inputs, strict=True):
            if own is not None and id(root_of(tensor._array)) in self._written:
                return False  # it looks into what the step may change
        return True

    @property
    def generator(self) -> Any:
        """The default generator, if numbers are drawn."""
        return self._draft.generator

    def run(self, tensors: list[Tensor], again: Again | None = None) -> Any:
        """Replay.

        Args:
            tensors: the tensor arguments.
            again: the call, for second derivatives.

        Returns:
            What the call returns, or `MISS` or `BUSY`, and nothing has happened then.
        """
        if self.is_busy():
            return BUSY
        token = ignore_float_errors()
        try:
            values = self._run(tensors)
        finally:
            restore_float_errors(token)
        if self._pass is None or values is MISS:
            return values
        self._pass.attach(self._draft, values, tensors).again = again
        return rebuild(values, self._draft.structure)


def agreed(
    before: Outline | None, draft: Draft, found: Survey
) -> tuple[Program | None, Outline | None, str | None]:
    """What a recording makes of the one before.

    Args:
        before: that of the recording of the call before, if it can be used.
        draft: that of this call.
        found: what is in its reach.

    Returns:
        A program, if both agree; the outline that the next one is to agree with; why not, if not.
    """
    reason = draft.trace.reason
    if reason is not None or before is None:
        return None, draft.outline() if reason is None else None, reason
    outline = draft.outline()
    unequal = difference(before, outline)
    if unequal is not None:
        return None, outline, unequal
    try:
        return Program(draft, found), outline, None
    except NotAhead as error:
        return None, outline, str(error)
