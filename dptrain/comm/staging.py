"""Calls over arrays that live on devices, brought to the host: copied there, moved, copied back.

Owns: the host twins of a call's arrays, and when they are filled and emptied. Must not know: how the
host's transport moves them. What serves GPUs where NCCL does not, the virtual host devices, and the
messages between two ranks (NCCL has no tags and no "whoever sends first").

Twins of a GPU's arrays are page-locked, so that copies run at the bus's speed and in the order of a
stream of their own; twins of arrays that share memory share theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dptrain.comm.call import Call, Parts
from dptrain.core.arrays import move, span, to_host
from dptrain.core.device import device

Array = np.ndarray[Any, Any]


class _HostWay:
    """Copies between a virtual host device and the host's own memory."""

    def __init__(self, place: device) -> None:
        pass

    def twin(self, array: Any) -> Array:
        return np.empty(array.size, array.dtype)

    def fetch(self, pairs: Sequence[tuple[Any, Array]]) -> None:
        for array, twin in pairs:
            np.copyto(twin, to_host(array).reshape(-1))

    def bring(self, pairs: Sequence[tuple[Any, Array]], place: device) -> None:
        for array, twin in pairs:
            array[...] = move(twin, place).reshape(array.shape)

    def run(self, action: Callable[[], None]) -> None:
        action()


class _GpuWay:
    """Copies between a GPU and page-locked memory, on a stream beside the computation."""

    def __init__(self, place: device) -> None:
        from dptrain.core.cuda import library  # loads CuPy, which is loaded: there are its arrays

        self._library, self._index = library(), place.index or 0
        cuda = self._library.cupy.cuda
        with self._library.on(self._index):
            self._written = cuda.get_current_stream().record()
            self._stream = cuda.Stream(non_blocking=True)

    def twin(self, array: Any) -> Array:
        cuda = self._library.cupy.cuda
        memory = cuda.alloc_pinned_memory(max(array.nbytes, 1))
        found: Array = np.frombuffer(memory, array.dtype, array.size)
        return found

    def fetch(self, pairs: Sequence[tuple[Any, Array]]) -> None:
        runtime = self._library.cupy.cuda.runtime
        with self._library.on(self._index):
            self._stream.wait_event(self._written)
            for array, twin in pairs:
                runtime.memcpyAsync(
                    twin.ctypes.data,
                    array.data.ptr,
                    array.nbytes,
                    runtime.memcpyDeviceToHost,
                    self._stream.ptr,
                )
            self._stream.synchronize()

    def bring(self, pairs: Sequence[tuple[Any, Array]], place: device) -> None:
        runtime = self._library.cupy.cuda.runtime
        with self._library.on(self._index):
            for array, twin in pairs:
                runtime.memcpyAsync(
                    array.data.ptr,
                    twin.ctypes.data,
                    array.nbytes,
                    runtime.memcpyHostToDevice,
                    self._stream.ptr,
                )
            self._stream.synchronize()

    def run(self, action: Callable[[], None]) -> None:
        with self._library.on_stream(self._index, self._stream):
            action()
            self._stream.synchronize()


class Staging:
    """The host twins of the arrays of one call.

    Args:
        sources: arrays to be read.
        targets: arrays to be written; may overlap sources.
        place: where all of them live.
    """

    def __init__(self, sources: Sequence[Any], targets: Sequence[Any], place: device) -> None:
        self._place = place
        self._way: Any = (_GpuWay if place.type == "cuda" else _HostWay)(place)
        self._twins = self._share([*sources, *targets])
        self._sources = [a for a in sources if a.size]
        self._targets = [a for a in targets if a.size]

    def _share(self, arrays: Sequence[Any]) -> dict[int, Array]:
        """By `id`: a twin for each array; of those inside another's memory, a view of its twin."""
        twins: dict[int, Array] = {}
        whole: list[tuple[int, int, Array]] = []
        for array in sorted(arrays, key=lambda a: -a.nbytes):
            if id(array) in twins:
                continue
            start, end = span(array) if array.size else (0, 0)
            for first, last, twin in whole:
                if array.size and first <= start and end <= last:
                    inside = twin.view(np.uint8)[start - first : end - first].view(array.dtype)
                    break
            else:
                inside = self._way.twin(array)
                whole.append((start, end, inside))
            twins[id(array)] = inside
        self._kept = list(arrays)  # their ids stay theirs
        return twins

    def twin(self, array: Any) -> Array:
        """The twin of one of the arrays, of its shape."""
        return self._twins[id(array)].reshape(array.shape)

    def fetch(self) -> None:
        """Fill the twins of the sources."""
        self._way.fetch([(a, self._twins[id(a)]) for a in self._sources])

    def bring(self, then: Callable[[], None] | None = None) -> None:
        """Take the results over from the twins of the targets.

        Args:
            then: what is still to be computed from them on the device.
        """
        self._way.bring([(a, self._twins[id(a)]) for a in self._targets], self._place)
        if then is not None:
            self._way.run(then)


def stage(call: Call) -> tuple[Staging, Callable[[], None] | None]:
    """Put host twins into the place of a call's arrays, which live on `call.device`.

    Returns:
        The twins, to be fetched before the call runs and brought home after it, and what is to be
        done with the arrays then.
    """
    assert call.device is not None
    if call.parts is None:
        sources = [] if call.source is None else [call.source]
        targets = [] if call.target is None else [call.target]
        made = Staging(sources, targets, call.device)
        call.source = None if call.source is None else made.twin(call.source)
        call.target = None if call.target is None else made.twin(call.target)
        return made, None
    parts = call.parts
    # Empty parts need no twins: they may even be the host's, where a rank sends or gets nothing.
    outgoing, incoming = _filled(parts.outgoing), _filled(parts.incoming)
    made = Staging(outgoing, incoming, call.device)
    call.parts = Parts(
        [made.twin(a) if a.size else np.empty(0, np.uint8) for a in parts.outgoing],
        [made.twin(a) if a.size else np.empty(0, np.uint8) for a in parts.incoming],
        parts.lengths,
        parts.same_to_all,
    )
    return made, parts.finish


def _filled(arrays: Sequence[Any]) -> list[Any]:
    return [array for array in arrays if array.size]
