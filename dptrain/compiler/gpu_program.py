"""Calls over a GPU's arrays: recorded into a CUDA graph, and replayed as one launch.

Owns: `capture`, `GpuProgram`. Must not know: when they are called, how graphs are recorded.

The recording is a second run of Python, during which the GPU does nothing; its replay is the call. Tensors from before the call are read and written where they lie. Arguments are copied to where the
recording found them, results out of the memory in which the next replay writes again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dptrain.compiler.draft import Result, result_of
from dptrain.compiler.gpu_listening import GpuListener, Step
from dptrain.compiler.gpu_rehearsal import (
    Memory,
    Place,
    Rehearsal,
    check_results,
    flags,
    known_tensors,
    pin,
    text_of,
    unpin,
)
from dptrain.compiler.guards import guard
from dptrain.compiler.state import Survey
from dptrain.core.arrays import beside
from dptrain.core.autocast import as_now
from dptrain.core.cuda import library
from dptrain.core.memory_order import keep_unseen
from dptrain.core.random import current_shard, default_generator
from dptrain.core.tensor import Tensor, wrap, wrap_computed
from dptrain.core.tree import leaves, rebuild
from dptrain.cuda.graphs import CUDAGraph, graph


@dataclass
class _Grad:
    """What becomes of a tensor's gradient in a call.

    Attributes:
        tensor: whose it is.
        start: before the call, if it has to be that very one.
        static: where a gradient that lies anywhere is read, copied there before each replay.
        end: what it is afterwards: a tensor from before the call, or None.
        made: the array that the call has made for it, copied after each replay.
    """

    tensor: Tensor
    start: Tensor | None
    static: Tensor | None = None
    end: Tensor | None = None
    made: Any = None

    def fits(self) -> bool:
        """Whether the gradient before a call is one that the recording can read."""
        now = self.tensor._grad
        if self.static is None:
            return now is self.start
        if now is None or now is self.tensor._slot or now._node is not None:
            return False
        array, like = now._array, self.static._array
        facts = (type(array), array.shape, array.strides, array.dtype)
        return facts == (type(like), like.shape, like.strides, like.dtype)


@dataclass
class _Recording:
    """What one recording knows; see `GpuProgram`."""

    index: int
    known: list[Tensor]
    inputs: list[Tensor | None]
    graph: CUDAGraph
    grads: list[_Grad]
    listener: GpuListener = field(init=False)
    results: list[Result] = field(default_factory=list)
    structure: Any = None
    bumps: list[tuple[list[int], int]] = field(default_factory=list)


def capture(
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    tensors: list[Tensor],
    found: Survey,
    rehearsal: Rehearsal,
    place: Place,
) -> GpuProgram | str:
    """Record a call that was rehearsed; nothing has happened yet then, but memory was taken.

    Returns:
        A program whose first run is the call, or why there is none.
    """
    known = known_tensors(found)
    pinned = pin(known)
    rec = _Recording(
        place.index,
        known,
        [None if id(t) in found.tensors else _static(t) for t in tensors],
        CUDAGraph(),
        [_grad_of(t) for t in known],
    )
    given = [t if own is None else own for t, own in zip(tensors, rec.inputs, strict=True)]
    statics = [g.static for g in rec.grads if g.static is not None]
    rec.listener = listener = GpuListener([*known, *given, *statics], rec.graph.needs)
    counters = [t._version_counter() for t in known]
    counts = [c[0] for c in counters]
    text = None
    try:
        text = _record(rec, partial(_call, function, args, kwargs, tensors, given), given, place)
    except Exception as error:
        listener.refuse(_why(error))
    finally:  # nothing was computed: what the host did has not happened yet
        for g in rec.grads:
            g.tensor._grad = g.start
        for counter, count in zip(counters, counts, strict=True):
            rec.bumps.append((counter, counter[0] - count))
            counter[0] = count
    difference = rehearsal.difference(text)
    if difference is not None:
        listener.refuse(difference)
    if listener.reason is None:
        return GpuProgram(rec, tensors, found)
    unpin(pinned)
    return listener.reason


def _record(rec: _Recording, call: Callable[[], Any], given: list[Tensor], place: Place) -> Any:
    """Record a call; what it did goes into `rec`, and its text is returned."""
    first: BaseException | None = None
    try:
        with library().on(rec.index), as_now(), graph(rec.graph, place.pool, place.stream):
            try:
                for g in rec.grads:
                    g.tensor._grad = g.start if g.static is None else g.static
                with rec.listener.listening():
                    result = call()
                _note_outcome(rec, result, given)
                return text_of(rec.listener, result)
            except BaseException as error:
                first = error
                raise
    except BaseException as error:
        # Where CUDA has given up the recording, its end is an error too, which says less.
        if first is None or first is error:
            raise
        raise first from None


def _call(
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    tensors: list[Tensor],
    given: list[Tensor],
) -> Any:
    """Call it with other tensors in the place of those that it was given."""
    values, structure = leaves((args, kwargs))
    instead = {id(t): g for t, g in zip(tensors, given, strict=True)}
    args, kwargs = rebuild([instead.get(id(v), v) for v in values], structure)
    return function(*args, **kwargs)


def _static(tensor: Tensor) -> Tensor:
    """A leaf with a copy of a tensor's array."""
    with beside(tensor._array):
        made = wrap(tensor._array.copy(order="K"))
    made._requires_grad = tensor._requires_grad
    if tensor._unseen is not None:
        keep_unseen(made)
    return made


def _grad_of(tensor: Tensor) -> _Grad:
    start = tensor._grad
    foreign = tensor._requires_grad and start is not None and start is not tensor._slot
    return _Grad(tensor, start, _static(start) if foreign and start is not None else None)


def _note_outcome(rec: _Recording, result: Any, given: list[Tensor]) -> None:
    """What was returned, and what became of gradients."""
    listener, known = rec.listener, {id(t): t for t in rec.known}
    check_results(listener, result, [*rec.known, *given])
    values, rec.structure = leaves(result)
    for value in values:
        position = next((i for i, t in enumerate(given) if t is value), None)
        if position is not None:
            rec.results.append(Result(position=position))
        elif isinstance(value, Tensor) and id(value) not in known:
            name = None if value._node is None else value._node.grad_name
            rec.results.append(Result(value._array, name, value._unseen is not None))
        else:
            rec.results.append(Result(value=value))
    for g in rec.grads:
        g.end = g.tensor._grad
        if g.end is None or g.end is g.start or g.end is g.static or id(g.end) in known:
            continue
        if g.end._node is not None:
            listener.refuse("a gradient has a history (create_graph)")
        g.made = g.end._array


def _why(error: Exception) -> str:
    text = (str(error).strip() or "no message").splitlines()[0]
    return (
        f"a CUDA graph cannot hold it ({type(error).__name__}: {text}); often a value is read on the host (.item(), "
        "printing, a condition, a shape that depends on values)"
    )


class GpuProgram:
    """A recorded call that can be run.

    Args:
        rec: the recording.
        tensors: the tensor arguments that it was made with.
        found: what was in reach, for the guards.
    """

    def __init__(self, rec: _Recording, tensors: list[Tensor], found: Survey) -> None:
        self._rec = rec
        self._fixed = [
            (i, t)
            for i, (t, own) in enumerate(zip(tensors, rec.inputs, strict=True))
            if own is None
        ]
        self._memory = Memory(rec.known)
        self._flags = flags()
        self._drawn = list(rec.listener.drawn.values())
        self._bumps = [(counter, changes) for counter, changes in rec.bumps if changes]
        self._moving = [g for g in rec.grads if g.static is not None]
        self._grads = [g for g in rec.grads if g.static is not None or g.end is not g.start]
        # Those of averaging are in the graph; more must not come.
        hooks = [(t, n) for t in rec.known if t._requires_grad for n in ("_hooks", "_post_hooks")]
        unwatched = [(t, n) for t, n in hooks if not getattr(t, n)]
        found.sizes += [(held, len(held)) for t, n in hooks if (held := getattr(t, n))]
        self._after = [model.sent_buffers() for model in found.parallel]
        self._holds = guard(
            [(t, t._array, t._requires_grad) for t in rec.known],
            unwatched,
            [(g.tensor, g.start) for g in rec.grads if g.static is None],
            default_generator() if self._drawn else None,
            found,
        )
        self.calls = 1
        rec.known = []
        rec.listener.forget()

    def holds(self) -> bool:
        """Whether everything is as it was when the call was recorded."""
        return (
            self._holds()
            and all(g.fits() for g in self._moving)
            and self._flags == flags()
            and all(d.shard == current_shard() for d in self._drawn)
            and all(_has_its_plan(step) for step in self._rec.listener.steps)
        )

    def takes(self, tensors: list[Tensor]) -> bool:
        """Whether it can be run with these arguments."""
        if any(tensors[i] is not t for i, t in self._fixed):
            return False
        pairs = zip(tensors, self._rec.inputs, strict=True)
        # An argument may look into what the call changes; its copy would not.
        return not any(own is not None and self._memory.has(t._array) for t, own in pairs)

    def run(self, tensors: list[Tensor]) -> Any:
        """Replay.

        Args:
            tensors: the tensor arguments.

        Returns:
            What the call returns.
        """
        rec = self._rec
        with library().on(rec.index):
            self._bring(tensors)
            rec.graph.replay()
            self._leave_grads()
            for counter, changes in self._bumps:
                counter[0] += changes
            for remember in self._after:
                remember()
            values = [result_of(r, tensors) for r in rec.results]
        return rebuild(values, rec.structure)

    def _bring(self, tensors: list[Tensor]) -> None:
        """Everything to where the recording finds it."""
        for t, own in zip(tensors, self._rec.inputs, strict=True):
            if own is not None:
                own._array[...] = t._array
        for g in self._moving:
            assert g.static is not None
            assert g.tensor._grad is not None
            g.static._array[...] = g.tensor._grad._array
        for d in self._drawn:
            default_generator().on(d.gpu).go_on_in(d.stream, d.purpose)

    def _leave_grads(self) -> None:
        """What the call does to gradients; those that it makes are the caller's own."""
        for g in self._grads:
            if g.made is not None:
                g.tensor._grad = wrap_computed(g.made.copy(order="K"))
            elif g.static is not None and g.end is g.static:
                assert g.tensor._grad is not None
                g.tensor._grad._array[...] = g.static._array
                g.tensor._grad._bump_version()
            else:
                g.tensor._grad = g.end


def _has_its_plan(step: Step) -> bool:
    """Whether an optimizer would still do what was recorded, with the gradients that it will find."""
    optimizer, plan, grads = step
    if optimizer._plan is None or optimizer._plan is not plan:
        return False
    now = [p._grad for p, _ in grads]
    for p, grad in grads:
        p._grad = grad
    names = [optimizer._state_names(group) for group in optimizer.param_groups]
    try:
        return bool(plan.holds(optimizer.param_groups, names, optimizer.state))
    finally:
        for (p, _), grad in zip(grads, now, strict=True):
            p._grad = grad
