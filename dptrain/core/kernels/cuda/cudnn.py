"""Convolution by cuDNN: graphs over raw pointers, built once for each shape and type.

Owns: `Cudnn` (handles, plans, workspaces) and the graphs of a convolution and its two gradients; those of
attention are in `cudnn_attention`, and normalisation has kernels of its own. Images
are channels-last in memory, the layout for which cuDNN has tensor-core kernels. Pooling is not here:
the frontend's Python interface has no pooling; `images` serves it.

The package `nvidia-cudnn-frontend` is optional. Without it, and for float64, convolutions are window
matrices times weights (cuBLAS), which one warning says.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, NamedTuple

from dptrain.core.arrays import address, device_of, namespace_of
from dptrain.core.kernels.cuda.columns import add_bias

Sizes = tuple[int, ...]

#: PyTorch's flags; `dptrain.backends.cudnn` puts itself here, so that it is read where users set them.
flags: Any = SimpleNamespace(enabled=True, allow_tf32=True, deterministic=False, benchmark=False)

#: NumPy's names of the element types that cuDNN gets, and the frontend's.
KINDS = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}


class Convolution(NamedTuple):
    """What a convolution's plan depends on.

    Attributes:
        image: (N, C, *sizes).
        weight: (O, C / groups, *kernel).
        result: (N, O, *outs).
        padding, stride, dilation: one number per dimension.
        kind: NumPy's name of the element type.
        tf32: float32 may be multiplied in tensor cores with 10 bits of mantissa.
        deterministic: only algorithms that give the same bits in every run.
    """

    image: Sizes
    weight: Sizes
    result: Sizes
    padding: Sizes
    stride: Sizes
    dilation: Sizes
    kind: str
    tf32: bool
    deterministic: bool


class Plan(NamedTuple):
    """A graph that was built.

    Attributes:
        graph: the frontend's.
        uids: of its tensors, in the order of the call.
        workspace: bytes.
        choice: which of the graph's plans was the fastest; None: the one that the graph takes by itself.
    """

    graph: Any
    uids: tuple[int, ...]
    workspace: int
    choice: int | None = None


def last_strides(shape: Sizes) -> Sizes:
    """Strides, in elements, of (N, C, *sizes) when the channels lie next to each other."""
    _, c, *sizes = shape
    steps, step = [], c
    for size in reversed(sizes):
        steps.append(step)
        step *= size
    return (step, 1, *reversed(steps))


def _tensor(graph: Any, cudnn: Any, name: str, shape: Sizes, kind: str) -> Any:
    return graph.tensor(
        name=name,
        dim=list(shape),
        stride=list(last_strides(shape)),
        data_type=getattr(cudnn.data_type, KINDS[kind]),
    )


def _output(tensor: Any, cudnn: Any, shape: Sizes, kind: str) -> Any:
    tensor.set_output(True).set_data_type(getattr(cudnn.data_type, KINDS[kind]))
    tensor.set_dim(list(shape)).set_stride(list(last_strides(shape)))
    return tensor


def empty_graph(cudnn: Any, handle: int | None, kind: str) -> Any:
    """A graph over tensors of a type, which computes in float32."""
    io = getattr(cudnn.data_type, KINDS[kind])
    single = cudnn.data_type.FLOAT
    return cudnn.pygraph(
        io_data_type=io, intermediate_data_type=single, compute_data_type=single, handle=handle
    )


def _options(c: Convolution) -> dict[str, Any]:
    return {
        "padding": list(c.padding),
        "stride": list(c.stride),
        "dilation": list(c.dilation),
    }


def forward_graph(cudnn: Any, handle: int | None, c: Convolution) -> tuple[Any, tuple[Any, ...]]:
    """Image and weight -> result."""
    graph = empty_graph(cudnn, handle, c.kind)
    x = _tensor(graph, cudnn, "image", c.image, c.kind)
    w = _tensor(graph, cudnn, "weight", c.weight, c.kind)
    y = _output(graph.conv_fprop(image=x, weight=w, **_options(c)), cudnn, c.result, c.kind)
    return graph, (x, w, y)


def input_graph(cudnn: Any, handle: int | None, c: Convolution) -> tuple[Any, tuple[Any, ...]]:
    """Gradient of the result and weight -> gradient of the image."""
    graph = empty_graph(cudnn, handle, c.kind)
    g = _tensor(graph, cudnn, "grad", c.result, c.kind)
    w = _tensor(graph, cudnn, "weight", c.weight, c.kind)
    x = _output(graph.conv_dgrad(loss=g, filter=w, **_options(c)), cudnn, c.image, c.kind)
    return graph, (g, w, x)


def weight_graph(cudnn: Any, handle: int | None, c: Convolution) -> tuple[Any, tuple[Any, ...]]:
    """Image and gradient of the result -> gradient of the weight."""
    graph = empty_graph(cudnn, handle, c.kind)
    x = _tensor(graph, cudnn, "image", c.image, c.kind)
    g = _tensor(graph, cudnn, "grad", c.result, c.kind)
    w = _output(graph.conv_wgrad(image=x, loss=g, **_options(c)), cudnn, c.weight, c.kind)
    return graph, (x, g, w)


#: Makes a graph of a description: a `Convolution`, or what else has its last three fields.
Builder = Callable[[Any, int | None, Any], tuple[Any, tuple[Any, ...]]]


class Cudnn:
    """cuDNN on this process's GPUs.

    Args:
        frontend: the module `cudnn`.
        cupy: the module.
    """

    def __init__(self, frontend: Any, cupy: Any) -> None:
        self._cudnn, self._cupy = frontend, cupy
        self._handles: dict[int, int] = {}
        self._streams: dict[int, int] = {}
        self._plans: dict[tuple[Any, ...], Plan | None] = {}
        self._lock = threading.Lock()

    def version(self) -> int:
        """91900 is 9.19.0."""
        return int(self._cudnn.backend_version())

    def run(self, build: Builder, c: Any, arrays: tuple[Any, ...]) -> bool:
        """Run a graph over arrays that lie in memory as it was told, in the order of its tensors.

        Returns:
            False if cuDNN has no algorithm for it; nothing was computed then.
        """
        places = [address(a) for a in arrays]
        with self._lock:  # a handle serves one thread at a time
            plan, handle = self._known(build, c, arrays[0], places)
            if plan is None:
                return False
            # Given back at the end of this call, for what comes later in this stream.
            workspace, at = self._workspace(plan.workspace)
            pointers = dict(zip(plan.uids, places, strict=True))
            if plan.choice is None:
                plan.graph.execute(pointers, at, handle=handle)
            else:
                plan.graph.execute_plan_at_index(pointers, at, plan.choice, handle=handle)
            del workspace
        return True

    def serves(self, build: Builder, c: Any, array: Any) -> bool:
        """Whether cuDNN has an algorithm for a graph, on the GPU of this array."""
        with self._lock:
            return self._known(build, c, array, None)[0] is not None

    def _known(
        self, build: Builder, c: Any, array: Any, places: list[int] | None
    ) -> tuple[Plan | None, int]:
        """The plan, made when it is asked for first, and the handle on the current stream."""
        index = device_of(array).index or 0
        handle = self._ready(index)
        # As in PyTorch, the flag is about convolutions.
        timed = places is not None and flags.benchmark and isinstance(c, Convolution)
        key = build, c, index, timed
        if key not in self._plans:
            self._plans[key] = self._plan(build, handle, c, places if timed else None)
        return self._plans[key], handle

    def _ready(self, index: int) -> int:
        """The handle of a GPU, on the current stream."""
        if index not in self._handles:
            self._handles[index] = self._cudnn.create_handle()
        handle = self._handles[index]
        stream = self._cupy.cuda.get_current_stream().ptr
        if self._streams.get(index) != stream:
            self._cudnn.set_stream(handle=handle, stream=stream)
            self._streams[index] = stream
        return handle

    def _workspace(self, size: int) -> tuple[Any, int]:
        """Memory of so many bytes, and where it lies."""
        if not size:
            return None, 0
        held = self._cupy.empty(size, "uint8")
        return held, address(held)

    def _plan(self, build: Builder, handle: int, c: Any, places: list[int] | None) -> Plan | None:
        """With `places`, those of the arrays: timed on them."""
        cudnn = self._cudnn
        graph, tensors = build(cudnn, handle, c)
        uids = tuple(range(1, len(tensors) + 1))
        for tensor, uid in zip(tensors, uids, strict=True):
            tensor.set_uid(uid)
        notes = cudnn.numerical_note
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            if c.kind == "float32" and not c.tf32:
                graph.deselect_numeric_notes([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS])
            if c.deterministic:
                graph.deselect_numeric_notes([notes.NONDETERMINISTIC])
            graph.check_support()
            if places is not None and not self._cupy.cuda.get_current_stream().is_capturing():
                best = self._fastest(graph, uids, handle, places)
                if best is not None:
                    return best
            graph.build_plans()
        except cudnn.cudnnGraphNotSupportedError:
            return None
        except RuntimeError as error:
            if not any(refusal in str(error) for refusal in _REFUSALS):
                # Something is amiss, which should be known.
                warnings.warn(f"cuDNN made no plan for {c}: {error}", stacklevel=2)
            return None
        return Plan(graph, uids, int(graph.get_workspace_size()))

    def _fastest(
        self, graph: Any, uids: tuple[int, ...], handle: int, places: list[int]
    ) -> Plan | None:
        """The fastest of the plans that cuDNN holds for the best, tried on the arrays of the call."""
        pointers, cuda = dict(zip(uids, places, strict=True)), self._cupy.cuda
        best: Plan | None = None
        least = math.inf
        for choice in range(min(graph.get_execution_plan_count(), _MOST_TRIED)):
            try:
                graph.build_plan_at_index(choice)
                plan = Plan(graph, uids, graph.get_workspace_size_plan_at_index(choice), choice)
                workspace, at = self._workspace(plan.workspace)
                graph.execute_plan_at_index(pointers, at, choice, handle=handle)  # loads kernels
                start, end = cuda.Event(), cuda.Event()
                start.record()
                for _ in range(_RUNS):
                    graph.execute_plan_at_index(pointers, at, choice, handle=handle)
                end.record()
                end.synchronize()
                del workspace
            except (self._cudnn.cudnnGraphNotSupportedError, RuntimeError, MemoryError):
                continue  # not for this GPU, or what was deselected
            taken = cuda.get_elapsed_time(start, end)
            if taken < least:
                best, least = plan, taken
        return best


#: Of errors without a type of their own: there is no algorithm, or none that was not deselected.
_REFUSALS = ("No valid engine configs", "No execution plans support", "No valid execution plans")

#: Plans of a graph that are timed, and how often each.
_MOST_TRIED, _RUNS = 8, 3

_library: list[Cudnn | None] = []


def library() -> Cudnn | None:
    """cuDNN, or None (with one warning) where it cannot be loaded."""
    if not _library:
        _library.append(_load())
    return _library[0]


def trouble() -> str | None:
    """Why cuDNN cannot be used, in one line that says what to do; None if it can."""
    if find_spec("cudnn") is None:
        return 'nvidia-cudnn-frontend is not installed; pip install "dptrain[cudnn]"'
    try:
        import_module("cudnn").backend_version()
    except Exception as error:  # what a missing or broken libcudnn raises depends on its version
        line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        return f"{line}; pip install nvidia-cudnn-cu13 (CUDA 12: nvidia-cudnn-cu12)"
    return None


def _load() -> Cudnn | None:
    reason = trouble()
    if reason is None:
        return Cudnn(import_module("cudnn"), import_module("cupy"))
    warnings.warn(
        f"convolutions on GPUs run without cuDNN, as matrix products, which is slower: {reason}",
        stacklevel=2,
    )
    return None


def available(array: Any) -> Cudnn | None:
    """cuDNN for convolving this array, if it is to be used for it."""
    if array.dtype.name not in KINDS or not flags.enabled or array.ndim not in (3, 4, 5):
        return None
    return library()


def describe(image: Sizes, weight: Sizes, result: Sizes, window: Any, kind: str) -> Convolution:
    """The convolution of these shapes; a line is an image of height one."""
    tf32, deterministic = bool(flags.allow_tf32), bool(flags.deterministic)
    return _described(tuple(image), tuple(weight), tuple(result), window, kind, tf32, deterministic)


@lru_cache(maxsize=4096)
def _described(
    image: Sizes,
    weight: Sizes,
    result: Sizes,
    window: Any,
    kind: str,
    tf32: bool,
    deterministic: bool,
) -> Convolution:
    padding, stride, dilation = window.padding, window.stride, window.dilation
    if len(image) == 3:
        image, weight, result = ((*s[:2], 1, *s[2:]) for s in (image, weight, result))
        padding, stride, dilation = (0, *padding), (1, *stride), (1, *dilation)
    x, w, y = (tuple(map(int, s)) for s in (image, weight, result))
    return Convolution(x, w, y, padding, stride, dilation, kind, tf32, deterministic)


def convolve(
    build: Builder, c: Convolution, first: Any, second: Any, shape: Sizes, bias: Any = None
) -> Any:
    """Run one of the graphs.

    Args:
        build: `forward_graph`, `input_graph` or `weight_graph`.
        c: the convolution.
        first, second: its inputs, channels last and contiguous.
        shape: of the result, channels last.
        bias: added to it, one number for each channel.

    Returns:
        The result; None if cuDNN cannot do it.
    """
    found = library()
    if found is None:
        return None
    out = namespace_of(first).empty(shape, first.dtype)
    # Kernels read 16 bytes at once: a part of an array may begin in between.
    inputs = (a.copy() if address(a) % 16 else a for a in (first, second))
    if not found.run(build, c, (*inputs, out)):
        return None
    if bias is not None:
        add_bias(out, bias)
    return out
