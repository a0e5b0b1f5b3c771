"""CUDA graphs: work that is recorded once and started again as a whole.

What is captured runs later at the same addresses: inputs are written into the tensors that were there
at the capture, results read from those that came out of it. Memory that the capture takes belongs to
the graph as long as it lives. Work that looks at values from the host (`item`, `nonzero`) cannot be
captured; CUDA says so when it is tried. Class indices are not checked then: a loss of a class that does
not exist is NaN. Optimizers whose update depends on the number of the step want `capturable=True`; each replay
counts a step, and uses the rates that the parameter groups have by then.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack
from typing import Any

from dptrain.core import cuda as core_cuda
from dptrain.core.cuda_capture import Capture
from dptrain.core.cuda_memory import counting_allocator
from dptrain.cuda.devices import library, synchronize
from dptrain.cuda.memory import empty_cache
from dptrain.cuda.streams import Stream, StreamContext, current_stream


def graph_pool_handle() -> Any:
    """A memory pool that several graphs may share, for `pool=`."""
    return library("graph_pool_handle").cupy.cuda.MemoryPool()


def is_current_stream_capturing() -> bool:
    """Whether work is being recorded, not run; False without a GPU."""
    return core_cuda.is_capturing()


class CUDAGraph:
    """Recorded work.

    Args:
        keep_graph: accepted for PyTorch's sake; the recorded graph is always kept.

    Raises:
        RuntimeError: there is no GPU.
    """

    def __init__(self, keep_graph: bool = False) -> None:
        self._library = library("CUDAGraph")
        self._graph: Any = None
        self._pool: Any = None
        self._capture: ExitStack | None = None
        #: What the recorded work needs beside itself.
        self.needs = Capture()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Record the current stream's work from here on, which must not be the default stream.

        Args:
            pool: from `graph_pool_handle` or another graph's `pool()`; a new one by default.
            capture_error_mode: accepted for PyTorch's sake. Captures are "relaxed": the graph's pool
                grows while it is captured, which CUDA allows in no other mode.

        Raises:
            RuntimeError: a capture is running, or was made already (`reset` first).
        """
        if self._capture is not None or self._graph is not None:
            raise RuntimeError("capture_begin: this graph was captured already; call reset() first")
        cuda = self._library.cupy.cuda
        recorded = current_stream()._stream
        if recorded.ptr == 0:
            raise RuntimeError(
                "capture_begin: CUDA graphs must be captured on a non-default stream; use dptrain.cuda.graph(g), or "
                "`with dptrain.cuda.stream(s)`"
            )
        self._pool = cuda.MemoryPool() if pool is None else pool
        allocator = counting_allocator(self._library.cupy, self._library.ledger, self._pool)
        with ExitStack() as stack:
            # Blocks that the capture frees go to the graph's own pool: nobody else may get them.
            stack.enter_context(cuda.using_allocator(allocator))
            stack.enter_context(self.needs.current())
            recorded.begin_capture(cuda.runtime.streamCaptureModeRelaxed)
            self._capture, self._recorded = stack.pop_all(), recorded

    def capture_end(self) -> None:
        """End the recording.

        Raises:
            RuntimeError: none is running, or CUDA could not record it.
        """
        if self._capture is None:
            raise RuntimeError("capture_end: no capture is running; call capture_begin() first")
        stack, self._capture = self._capture, None
        with stack, core_cuda.memory_errors():
            self._graph = self._recorded.end_capture()

    def replay(self) -> None:
        """Start the recorded work on the current stream.

        Raises:
            RuntimeError: nothing was recorded.
        """
        if self._graph is None:
            raise RuntimeError("replay: called without a preceding successful capture")
        for prepare in self.needs.before:
            prepare()
        with core_cuda.memory_errors():
            self._graph.launch(current_stream()._stream)

    def reset(self) -> None:
        """Forget the recorded work and give its memory back."""
        self._graph = self._pool = None
        self.needs = Capture()

    def pool(self) -> Any:
        """The memory of the recorded work, for other graphs' `pool=`."""
        return self._pool

    def debug_dump(self, debug_path: str) -> None:
        """Write the recorded work as a Graphviz file.

        Raises:
            RuntimeError: nothing was recorded.
        """
        if self._graph is None:
            raise RuntimeError("debug_dump: called without a preceding successful capture")
        with open(debug_path, "w") as file:
            file.write(self._graph.debug_dot_str())


class graph:
    """Records the work of a `with` block into a graph, on a stream of its own.

    Args:
        cuda_graph: the graph.
        pool: see `CUDAGraph.capture_begin`.
        stream: the stream to record on.
        capture_error_mode: see `CUDAGraph.capture_begin`.
    """

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: Any = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> None:
        self.cuda_graph = cuda_graph
        self._pool, self._mode = pool, capture_error_mode
        self._context = StreamContext(Stream() if stream is None else stream)

    def __enter__(self) -> None:
        synchronize()
        gc.collect()
        empty_cache()
        self._context.__enter__()
        try:
            self.cuda_graph.capture_begin(self._pool, self._mode)
        except BaseException:
            self._context.__exit__()
            raise

    def __exit__(self, *error: Any) -> None:
        try:
            self.cuda_graph.capture_end()
        finally:
            self._context.__exit__(*error)
