"""Calls over a GPU's arrays that are watched before one is recorded.

Owns: `rehearse`, what is compared of two calls, and what has to stay where it lies meanwhile. Must not know:
recordings.

A rehearsal is the call as it is, watched: it shows what speaks against a recording while nothing has gone
wrong yet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dptrain.backends import cuda as cuda_flags
from dptrain.backends import cudnn as cudnn_flags
from dptrain.compiler.gpu_listening import GpuListener
from dptrain.compiler.graphs import is_pending
from dptrain.compiler.ranks import is_of_ranks
from dptrain.compiler.state import Survey
from dptrain.core.arrays import device_of, on_gpu, span
from dptrain.core.autocast import as_now
from dptrain.core.cuda import library
from dptrain.core.cuda_capture import Capture
from dptrain.core.flat import FlatStorage
from dptrain.core.modes import are_deterministic_algorithms_enabled
from dptrain.core.tensor import Tensor
from dptrain.core.tree import leaves
from dptrain.cuda.graphs import graph_pool_handle
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
    known = known_tensors(found)
    pinned = pin(known)  # else gradients would leave slots into which somebody looks
    listener = GpuListener([*known, *foreign_grads(known), *tensors], Capture(recording=False))
    arrays = [t._array for t in known]
    own = [t for t in tensors if id(t) not in found.tensors]
    before = [(t._version, t._grad) for t in own]
    try:
        with listener.listening(), as_now():
            result = function(*args, **kwargs)
    finally:
        unpin(pinned)
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
    check_results(listener, result, [*known, *tensors])
    return result, Rehearsal(listener.reason, text_of(listener, result))


def known_tensors(found: Survey) -> list[Tensor]:
    """The tensors in reach that the call may read or write, and where their gradients go.

    Gradients that lie elsewhere than in their slots are no part of it: each call may find others.
    """
    held = [t for t in found.tensors.values() if t._has_values and t._node is None]
    elsewhere = {id(g) for g in foreign_grads(held)}
    slots = [t._slot for t in held if t._slot is not None]
    return list({id(t): t for t in (*held, *slots) if id(t) not in elsewhere}.values())


def foreign_grads(tensors: list[Tensor]) -> list[Tensor]:
    return [
        t._grad
        for t in tensors
        if t._requires_grad and t._grad is not None and t._grad is not t._slot
    ]


def _has_hooks(tensor: Tensor) -> bool:
    """Whether anything but the averaging of gradients waits for a tensor's gradient."""
    hooks = [*(tensor._hooks or {}).values(), *(tensor._post_hooks or {}).values()]
    return not all(is_of_ranks(hook) for hook in hooks)


def pin(tensors: list[Tensor]) -> list[FlatStorage]:
    """Let gradients stay where they lie; the storages in which they did not have to so far."""
    storages = {id(t._place.storage): t._place.storage for t in tensors if t._place is not None}
    found = [s for s in storages.values() if not s.pinned]
    for storage in found:
        storage.pinned = True
    return found


def unpin(storages: list[FlatStorage]) -> None:
    for storage in storages:
        storage.pinned = False


def check_results(listener: GpuListener, result: Any, before: list[Tensor]) -> None:
    known, memory = {id(t): t for t in before}, Memory(before)
    for value in leaves(result)[0]:
        if is_pending(value, known):
            listener.refuse(
                "it returns a tensor whose backward pass is still to come; compile the whole step, or use "
                "dptrain.cuda.make_graphed_callables"
            )
        if isinstance(value, Tensor) and id(value) not in known and memory.has(value._array):
            listener.refuse("it returns a view of what existed before the call")


def text_of(listener: GpuListener, result: Any) -> Any:
    values, structure = leaves(result)
    shown = [
        (tuple(v._array.shape), str(v._array.dtype)) if isinstance(v, Tensor) else repr(v)
        for v in values
    ]
    return listener.text, listener.needs.arrived, shown, repr(structure), len(listener.steps)


class Memory:
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
