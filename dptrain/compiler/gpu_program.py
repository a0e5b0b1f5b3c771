"""Calls over a GPU's arrays: rehearsed, recorded into a CUDA graph, and replayed as one launch.

Owns: `rehearse`, `capture`, `GpuProgram`. Must not know: when they are called, how graphs are recorded.

A rehearsal is the call as it is, watched: it shows what speaks against a recording while nothing has gone
wrong yet. The recording is a second run of Python, during which the GPU does nothing; its replay is the
call. Tensors from before the call are read and written where they lie. Arguments are copied to where the
recording found them, results out of the memory in which the next replay writes again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dptrain.backends import cuda as cuda_flags
from dptrain.backends import cudnn as cudnn_flags
from dptrain.compiler.draft import Result, result_of
from dptrain.compiler.gpu_listening import GpuListener, Step
from dptrain.compiler.graphs import is_pending
from dptrain.compiler.program import guard
from dptrain.compiler.ranks import is_of_ranks
from dptrain.compiler.state import Survey
from dptrain.core.arrays import beside, device_of, on_gpu, span
from dptrain.core.autocast import as_now
from dptrain.core.cuda import library
from dptrain.core.cuda_capture import Capture
from dptrain.core.flat import FlatStorage
from dptrain.core.memory_order import keep_unseen
from dptrain.core.modes import are_deterministic_algorithms_enabled
from dptrain.core.random import current_shard, default_generator
from dptrain.core.tensor import Tensor, wrap, wrap_computed
from dptrain.core.tree import leaves, rebuild
from dptrain.cuda.graphs import CUDAGraph, graph, graph_pool_handle
from dptrain.cuda.streams import Stream


@dataclass
class Rehearsal:
    """What a call did when it ran as it is.

    Attributes:
        reason: why it cannot be recorded, if so.
        text: to compare it with the recording.
    """

    reason: str | None
    text: Any

    def difference(self, text: Any) -> str | None:
        """Why a run with another text is not the same call, if it has one."""
        if text == self.text:
            return None
        return (
            "two calls in a row differ without a change of arguments or of what is in reach: numbers, shapes or values "
            "that come from the host"
        )


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


class Place:
    """Where recordings are made: memory that they share, since one is replayed at a time, and a stream.

    Args:
        index: the GPU.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        with library().on(index):
            self.pool = graph_pool_handle()
            # Blocks belong to the stream that they were taken on: with one for all, one can take another's.
            self.stream = Stream()


def index_of(tensors: list[Tensor], found: Survey) -> int | None:
    """The GPU on which a call computes; None if it computes on the CPU.

    Raises:
        RuntimeError: there are several.
    """
    held = [*tensors, *(t for t in found.tensors.values() if t._has_values)]
    places = {device_of(t._array).index or 0 for t in held if on_gpu(t._array)}
    if len(places) > 1:
        names = ", ".join(f"cuda:{i}" for i in sorted(places))
        raise RuntimeError(f"tensors on {names} are in its reach; a recording is of one GPU")
    return places.pop() if places else None


def flags() -> tuple[Any, ...]:
    """What decides which kernels a GPU runs."""
    ours = [v for k, v in vars(cudnn_flags).items() if type(v) is bool and not k.startswith("_")]
    theirs = (cuda_flags.cudnn_sdp_enabled(), are_deterministic_algorithms_enabled())
    products = cuda_flags.matmul
    sums = (
        products.allow_tf32,
        products.allow_fp16_reduced_precision_reduction,
        products.allow_bf16_reduced_precision_reduction,
    )
    return (*ours, *sums, *theirs)


def rehearse(
    function: Callable[..., Any], args: Any, kwargs: Any, tensors: list[Tensor], found: Survey
) -> tuple[Any, Rehearsal]:
    """Make a call as it is, and see whether it could be recorded."""
    if any(not on_gpu(t._array) for t in tensors):
        return function(*args, **kwargs), Rehearsal(
            "an argument is a tensor on the CPU; move it to the GPU before the call", None
        )
    known = _known(found)
    pinned = _pin(known)  # else gradients would leave slots into which somebody looks
    listener = GpuListener([*known, *_foreign_grads(known), *tensors], Capture(recording=False))
    arrays = [t._array for t in known]
    own = [t for t in tensors if id(t) not in found.tensors]
    before = [(t._version, t._grad) for t in own]
    try:
        with listener.listening(), as_now():
            result = function(*args, **kwargs)
    finally:
        _unpin(pinned)
    for t, (version, grad) in zip(own, before, strict=True):
        if t._version != version:
            listener.refuse("it changes an argument in place")
        if t._grad is not grad:
            listener.refuse("it computes the gradient of an argument")
    if any(t._array is not a for t, a in zip(known, arrays, strict=True)):
        listener.refuse("a tensor in reach was bound to other memory in the call")
    if any(t._node is not None for t in known):
        listener.refuse("a tensor in reach was given a history")
    if any(t._requires_grad and _has_hooks(t) for t in known):
        listener.refuse("a tensor in reach has hooks, which run in its backward pass")
    _check_results(listener, result, [*known, *tensors])
    return result, Rehearsal(listener.reason, _text(listener, result))


def _known(found: Survey) -> list[Tensor]:
    """The tensors in reach that the call may read or write, and where their gradients go.

    Gradients that lie elsewhere than in their slots are no part of it: each call may find others.
    """
    held = [t for t in found.tensors.values() if t._has_values and t._node is None]
    elsewhere = {id(g) for g in _foreign_grads(held)}
    slots = [t._slot for t in held if t._slot is not None]
    return list({id(t): t for t in (*held, *slots) if id(t) not in elsewhere}.values())


def _foreign_grads(tensors: list[Tensor]) -> list[Tensor]:
    return [
        t._grad
        for t in tensors
        if t._requires_grad and t._grad is not None and t._grad is not t._slot
    ]


def _has_hooks(tensor: Tensor) -> bool:
    """Whether anything but the averaging of gradients waits for a tensor's gradient."""
    hooks = [*(tensor._hooks or {}).values(), *(tensor._post_hooks or {}).values()]
    return not all(is_of_ranks(hook) for hook in hooks)


def _pin(tensors: list[Tensor]) -> list[FlatStorage]:
    """Let gradients stay where they lie; the storages in which they did not have to so far."""
    storages = {id(t._place.storage): t._place.storage for t in tensors if t._place is not None}
    found = [s for s in storages.values() if not s.pinned]
    for storage in found:
        storage.pinned = True
    return found


def _unpin(storages: list[FlatStorage]) -> None:
    for storage in storages:
        storage.pinned = False


def _check_results(listener: GpuListener, result: Any, before: list[Tensor]) -> None:
    known, memory = {id(t): t for t in before}, _Memory(before)
    for value in leaves(result)[0]:
        if is_pending(value, known):
            listener.refuse(
                "it returns a tensor whose backward pass is still to come; compile the whole step, or use "
                "dptrain.cuda.make_graphed_callables"
            )
        if isinstance(value, Tensor) and id(value) not in known and memory.has(value._array):
            listener.refuse("it returns a view of what existed before the call")


def _text(listener: GpuListener, result: Any) -> Any:
    values, structure = leaves(result)
    shown = [
        (tuple(v._array.shape), str(v._array.dtype)) if isinstance(v, Tensor) else repr(v)
        for v in values
    ]
    return listener.text, listener.needs.arrived, shown, repr(structure), len(listener.steps)


class _Memory:
    """Stretches of a GPU's memory in which tensors lie."""

    def __init__(self, tensors: list[Tensor]) -> None:
        spans = sorted(span(t._array) for t in tensors if on_gpu(t._array) and t._array.size)
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in spans:
            if self._stops and start <= self._stops[-1]:
                self._stops[-1] = max(self._stops[-1], stop)
            else:
                self._starts.append(start)
                self._stops.append(stop)

    def has(self, array: Any) -> bool:
        """Whether an array lies there, in part at least."""
        if not on_gpu(array) or not array.size:
            return False
        start, stop = span(array)
        place = bisect_right(self._starts, start) - 1
        if place >= 0 and start < self._stops[place]:
            return True
        return place + 1 < len(self._starts) and self._starts[place + 1] < stop


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
    known = _known(found)
    pinned = _pin(known)
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
    _unpin(pinned)
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
                return _text(rec.listener, result)
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
    _check_results(listener, result, [*rec.known, *given])
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
        self._memory = _Memory(rec.known)
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
