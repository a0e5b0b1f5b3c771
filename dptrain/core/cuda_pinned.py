"""Page-locked memory of the host: what a GPU copies from and to by itself, while the host goes on.

Owns: `PinnedMemory`, which hands it out and keeps it while a copy is under way; `Courier`, which copies to a GPU
beside the computation. Must not know: tensors, batches.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dptrain.core.cuda_capture import current_capture, noting_capture
from dptrain.core.layout import is_dense, order_of, row_major

if TYPE_CHECKING:
    from dptrain.core.cuda import CudaLibrary


class PinnedMemory:
    """Page-locked memory, out of CuPy's pool of it.

    The pool hands a block out again as soon as nobody has it. A copy that is not waited for may still read or write
    it then, so that what such a copy uses is held here until an event behind the copy has happened.

    Args:
        cupy: the module.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy, self._cuda = cupy, cupy.cuda
        self._busy: list[tuple[Any, Sequence[np.ndarray]]] = []
        # The garbage collector may run inside of it, on the same thread, and end a pass over a loader.
        self._lock = threading.RLock()

    def empty(
        self, shape: tuple[int, ...], kind: np.dtype[Any], steps: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """An uninitialised array; `steps` (in elements, none negative) may leave gaps."""
        self._release()
        steps = row_major(shape) if steps is None else steps
        reach = sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
        # At least one byte, so that also the memory of no element has an address.
        nbytes = (reach + 1) * kind.itemsize if 0 not in shape else 1
        memory = self._cuda.alloc_pinned_memory(nbytes)
        strides = [step * kind.itemsize for step in steps]
        return np.ndarray(shape, kind, buffer=memory, strides=strides)

    def contains(self, array: np.ndarray) -> bool:
        """Whether CUDA knows the memory of an array as page-locked, whoever asked for it."""
        if not array.size:
            return False
        runtime = self._cuda.runtime
        found = runtime.pointerGetAttributes(_address(array))
        return bool(found.type == runtime.memoryTypeHost)

    def copy(self, array: np.ndarray) -> np.ndarray:
        """The values in page-locked memory, dense, in the order in which they lie."""
        dense, back = in_memory_order(array)
        made = self.empty(dense.shape, dense.dtype)
        np.copyto(made, dense)
        return made.transpose(back)

    # ---- copies of the current stream ------------------------------------------------------------

    def send(self, host: np.ndarray, non_blocking: bool) -> Any:
        """A copy, on the current GPU, of dense page-locked memory."""
        stream = self._cuda.get_current_stream()
        made = empty_on_gpu(self._cupy, host)
        start_copy(self._cupy, host, made, stream)
        if non_blocking:
            self.hold([host], stream)
        else:
            stream.synchronize()
        return made

    def write(self, target: Any, host: np.ndarray) -> bool:
        """Copy page-locked memory into an array on the current GPU; nobody waits for the end.

        Returns:
            False, and nothing is done, where the two do not lie alike, or a CUDA graph is recorded.
        """
        alike = (host.shape, host.strides, host.dtype) == (
            target.shape,
            target.strides,
            target.dtype,
        )
        if noting_capture() is not None or not alike or not is_dense(host):
            return False
        stream = self._cuda.get_current_stream()
        start_copy(self._cupy, host, target, stream)
        self.hold([host], stream)
        return True

    def fetch(self, array: Any) -> np.ndarray:
        """A copy, in row-major order, of an array on the current GPU; nobody waits for its end."""
        target = self.empty(array.shape, array.dtype)
        self._start_fetch(array, target)
        return target

    def fill(self, target: np.ndarray, array: Any) -> bool:
        """Copy an array on the current GPU into page-locked memory of its shape and type; nobody waits for the end.

        Returns:
            False, and nothing is done, where the memory has gaps, or a CUDA graph is recorded.
        """
        if noting_capture() is not None or not is_dense(target):
            return False
        dense, _ = in_memory_order(target)
        self._start_fetch(array.transpose(order_of(target)), dense)
        return True

    def _start_fetch(self, array: Any, target: np.ndarray) -> None:
        stream = self._cuda.get_current_stream()
        start_copy(self._cupy, self._cupy.ascontiguousarray(array), target, stream)
        self.hold([target], stream)

    def hold(self, arrays: Sequence[np.ndarray], stream: Any) -> Any:
        """Keep arrays until the work of a stream so far is over.

        Returns:
            The event of that; None while a CUDA graph is recorded, which keeps the arrays then.
        """
        capture = current_capture()
        if capture is not None:
            capture.kept.extend(arrays)
            return None
        self._release()
        event = stream.record(self._cuda.Event(disable_timing=True))
        with self._lock:
            self._busy.append((event, arrays))
        return event

    def _release(self) -> None:
        """Let go of what no copy uses any more."""
        with self._lock:
            self._busy = [held for held in self._busy if not held[0].done]


def in_memory_order(array: Any) -> tuple[Any, tuple[int, ...]]:
    """A view of an array with its dimensions from the slowest to the fastest, and the axes that turn them back."""
    order = order_of(array)
    return array.transpose(order), tuple(int(d) for d in np.argsort(order))


def empty_on_gpu(cupy: Any, host: np.ndarray) -> Any:
    """An array on the current GPU, memory of its current stream, in the order of a dense one of the host."""
    dense, back = in_memory_order(host)
    return cupy.empty(dense.shape, dense.dtype).transpose(back)


def start_copy(cupy: Any, source: Any, target: Any, stream: Any) -> None:
    """Have a stream copy between page-locked memory and a GPU's; both are dense, in the same order.

    Nobody waits, and nobody keeps the memory of the host: see `PinnedMemory.hold`.
    """
    runtime = cupy.cuda.runtime
    to_gpu = isinstance(source, np.ndarray)
    kind = runtime.memcpyHostToDevice if to_gpu else runtime.memcpyDeviceToHost
    if source.nbytes:
        runtime.memcpyAsync(_address(target), _address(source), source.nbytes, kind, stream.ptr)


def _address(array: Any) -> int:
    if isinstance(array, np.ndarray):
        return int(array.__array_interface__["data"][0])
    return int(array.data.ptr)


class Courier:
    """Copies arrays of the host to one GPU on a stream of its own, beside the computation.

    Args:
        library: the library.
        index: the GPU.
    """

    def __init__(self, library: CudaLibrary, index: int) -> None:
        self._library, self._index = library, index
        with library.on(index):
            self._stream = library.cupy.cuda.Stream(non_blocking=True)

    def parcel(self) -> Parcel:
        """What the arrays of one batch are sent with."""
        return Parcel(self._library, self._index, self._stream)


class Parcel:
    """Arrays on their way to a GPU: `add` each, `seal`, and `claim` before they are used.

    The new arrays are memory of the stream that is the current one now, where they will be used: freed, they are used
    anew in the order of that stream. What it has in work may still use them as what they were before, so that the
    copies wait for that; and it waits for the copies in any case, also if nobody claims the arrays.

    Args:
        library: the library.
        index: the GPU.
        stream: whose work the copies become.
    """

    def __init__(self, library: CudaLibrary, index: int, stream: Any) -> None:
        self._library, self._index, self._stream = library, index, stream
        self._hosts: list[np.ndarray] = []
        self._arrays: list[Any] = []
        self._event: Any = None
        with library.on(index):
            self._home = library.cupy.cuda.get_current_stream()

    def add(self, host: np.ndarray) -> Any:
        """The array, on the GPU, that gets the values; page-locked memory is read where it lies."""
        cupy, pinned = self._library.cupy, self._library.pinned
        if not (is_dense(host) and pinned.contains(host)):
            host = pinned.copy(host)
        with self._library.on_stream(self._index, self._home):
            made = empty_on_gpu(cupy, host)
            self._stream.wait_event(self._home.record())
            start_copy(cupy, host, made, self._stream)
        self._hosts.append(host)
        self._arrays.append(made)
        return made

    def seal(self) -> None:
        """Say that it is complete."""
        with self._library.on(self._index):
            self._event = self._library.pinned.hold(self._hosts, self._stream)

    def claim(self) -> None:
        """Let the work of the current stream from here on wait until the arrays have arrived."""
        with self._library.on(self._index):
            current = self._library.cupy.cuda.get_current_stream()
            current.wait_event(self._event)
        if current.ptr == self._home.ptr:
            self._arrays = []

    def __del__(self) -> None:
        if self._arrays and not sys.is_finalizing():
            if self._event is None:  # something went wrong
                self.seal()
            with self._library.on(self._index):
                self._home.wait_event(self._event)
