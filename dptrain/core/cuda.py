"""CUDA devices: what this machine has, why there is none, and arrays of CuPy on them.

Owns: the probe of driver, CuPy and GPUs with its one-line explanations; `CudaLibrary`, which answers
for CuPy arrays what `core.arrays` asks; the guard that makes an array's GPU the current one. The
only module of the core, beside the CUDA kernels, that imports CuPy, and it does so when a CUDA
device is asked for, never before. Must not know: tensors, ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from dptrain.core import arrays, cupy_functions
from dptrain.core.arrays import REMOTE, Library, to_host
from dptrain.core.cuda_capture import current_capture, noting_capture
from dptrain.core.cuda_memory import (
    Ledger,
    counting_allocator,
    exhausted,
    release_unused,
    tells_of_no_memory,
)
from dptrain.core.cuda_pinned import Courier, PinnedMemory, in_memory_order
from dptrain.core.device import device
from dptrain.core.layout import is_dense
from dptrain.core.settings import settings

#: CUDA's error numbers for "the driver is older than the runtime" and "there is no device".
_INSUFFICIENT_DRIVER, _NO_DEVICE = 35, 100


@dataclass(frozen=True)
class Probe:
    """What a look at the machine found.

    Attributes:
        cupy: CuPy's version, or None if it is not installed.
        toolkit: CUDA version that CuPy was built for, as CUDA writes it (13020 is 13.2); 0: unknown.
        driver: newest CUDA version that the driver can run; 0: there is no driver.
        count: GPUs that this process sees.
        status: CUDA's error number of the count; 0: none.
        error: why CuPy could not be imported or asked; empty if it could.
        visible: CUDA_VISIBLE_DEVICES, if set.
    """

    cupy: str | None
    toolkit: int = 0
    driver: int = 0
    count: int = 0
    status: int = 0
    error: str = ""
    visible: str | None = None


def release(version: int) -> str:
    """A version as CUDA writes it (13020) as people do ("13.2")."""
    return f"{version // 1000}.{version % 1000 // 10}"


def trouble(found: Probe) -> str | None:
    """Why no GPU can be used, in one line that says what to do; None if there is one."""
    if found.cupy is None:
        return 'CuPy is not installed; pip install "dptrain[cuda13]" (for a CUDA 12 driver: "dptrain[cuda12]")'
    if found.driver == 0 and not (found.error and not found.toolkit):
        return "no NVIDIA driver was found; install one (nvidia-smi then lists the GPUs)"
    if found.error:
        return f"CuPy {found.cupy or 'cannot be imported'}: {found.error}"
    if found.driver < 12000:
        return (
            f"the NVIDIA driver is too old: it runs CUDA {release(found.driver)}, CuPy {found.cupy} needs CUDA 12 "
            "or newer; update the driver"
        )
    if found.driver // 1000 < found.toolkit // 1000:
        return (
            f"CuPy {found.cupy} is built for CUDA {found.toolkit // 1000}, but the driver runs CUDA "
            f'{release(found.driver)} at most; pip install "dptrain[cuda{found.driver // 1000}]" instead, or '
            "update the driver"
        )
    if found.status == _INSUFFICIENT_DRIVER:
        return (
            f"the NVIDIA driver is too old: it runs CUDA {release(found.driver)}, CuPy {found.cupy} uses CUDA "
            f"{release(found.toolkit)}; update the driver"
        )
    if found.count == 0:
        if found.visible is not None:
            return f"no GPU is visible: CUDA_VISIBLE_DEVICES={found.visible!r} hides them all"
        return "no GPU is visible to the driver (nvidia-smi -L lists those that it sees)"
    return None


def _ask_machine() -> Probe:
    visible = settings().cuda_visible_devices
    if find_spec("cupy") is None:
        return Probe(None, visible=visible)
    version, toolkit, driver = "", 0, 0
    try:
        cupy = import_module("cupy")
        version, runtime = cupy.__version__, cupy.cuda.runtime
        toolkit, driver = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    except Exception as error:  # a broken installation shows in many ways
        return Probe(version, toolkit, driver, error=_first_line(error), visible=visible)
    try:
        return Probe(version, toolkit, driver, runtime.getDeviceCount(), visible=visible)
    except runtime.CUDARuntimeError as error:
        known = error.status in (_INSUFFICIENT_DRIVER, _NO_DEVICE)
        text = "" if known else _first_line(error)
        return Probe(version, toolkit, driver, 0, error.status, text, visible)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


@cache
def probe() -> Probe:
    """Look at the machine, once per process."""
    return _ask_machine()


def device_count() -> int:
    """GPUs that can be used; 0 where `trouble` says why."""
    found = probe()
    return 0 if trouble(found) else found.count


@cache
def cuda_device(index: int) -> device:
    """The device `cuda:index`."""
    return device("cuda", index)


def usable(index: int | None) -> device:
    """`cuda:index` (None: the current GPU), checked to be there.

    Raises:
        RuntimeError: there is none, with the reason.
    """
    found = probe()
    reason = trouble(found)
    name = "cuda" if index is None else f"cuda:{index}"
    if reason is not None:
        raise RuntimeError(f"device '{name}' was asked for, but {reason}; or use device='cpu'")
    if index is None:
        return cuda_device(library().current())
    if index >= found.count:
        there = "one GPU, cuda:0" if found.count == 1 else f"GPUs cuda:0 to cuda:{found.count - 1}"
        raise RuntimeError(
            f"device 'cuda:{index}' was asked for, but this process sees {there}; with more ranks than GPUs on a host, "
            f"start at most {found.count} there (dprun -n {found.count}) or let ranks share: "
            f"local_rank % {found.count}"
        )
    return cuda_device(index)


class CudaLibrary(Library):
    """CuPy's arrays: where they live, what computes with them, how they move.

    Args:
        cupy: the module.
    """

    gpu = True

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.ledger = Ledger()
        self.pinned = PinnedMemory(cupy)
        self._namespaces: dict[tuple[int, Any], CudaNamespace] = {}
        self._sides: dict[int, Any] = {}

    # ---- the current GPU -------------------------------------------------------------------------

    def current(self) -> int:
        """Index of this thread's current GPU."""
        return int(self.cupy.cuda.runtime.getDevice())

    def on(self, index: int) -> AbstractContextManager[Any]:
        """Make a GPU the current one inside a `with` block."""
        guard: AbstractContextManager[Any] = self.cupy.cuda.Device(index)
        return guard

    @contextmanager
    def on_stream(self, index: int, stream: Any) -> Iterator[None]:
        """Make a GPU and a stream of CuPy's the current ones inside a `with` block.

        After `with stream:` of CuPy's, that stream is the current one which the last such block around it has,
        and not the one that was chosen by `use`.
        """
        with self.on(index):
            before = self.cupy.cuda.get_current_stream()
            stream.use()
            try:
                yield
            finally:
                before.use()

    def elsewhere(self, array: Any) -> AbstractContextManager[Any] | None:
        """The guard that work on an array needs: None where its GPU is the current one."""
        index = array.device.id
        return None if index == self.current() else self.on(index)

    # ---- what core.arrays asks -------------------------------------------------------------------

    def device_of(self, array: Any) -> device:
        """Where an array lives."""
        return cuda_device(array.device.id)

    def namespace_of(self, array: Any) -> Any:
        """What makes arrays on its GPU."""
        return self.namespace(array.device.id)

    def namespace(self, index: int, module: Any = None) -> Any:
        """CuPy's functions (or those of a module over arrays), run with a GPU as the current one."""
        key = index, module
        found = self._namespaces.get(key)
        if found is None:
            found = CudaNamespace(self, index, self._of_cupy(module))
            self._namespaces[key] = found
        return found

    def _of_cupy(self, module: Any) -> Any:
        """CuPy's counterpart of a module of NumPy; other modules compute with any arrays."""
        if module is None or module is np:
            return self.cupy
        package, _, rest = module.__name__.partition(".")
        return import_module(f"cupy.{rest}") if package == "numpy" else module

    def functions_beside(self, array: Any, module: Any) -> Any:
        """A module's functions, run with the array's GPU as the current one."""
        return self.namespace(array.device.id, module)

    def run_beside(self, array: Any, function: Callable[..., Any], *args: Any) -> Any:
        """A function of arrays: NumPy's protocols lead it to CuPy."""
        guard = arrays.elsewhere((array,))
        if guard is None:
            return function(*args)
        with guard:
            return function(*args)

    def address(self, array: Any) -> int:
        """Where the first element lies in the GPU's memory."""
        return int(array.data.ptr)

    def block(self, array: Any) -> int:
        """Where the block of memory begins that the array looks into; 0 if its memory is still being asked for."""
        memory = getattr(array.data, "mem", None)
        return 0 if memory is None else int(memory.ptr)

    def to_host(self, array: Any, non_blocking: bool = False) -> np.ndarray:
        """A copy in host memory; in page-locked memory, and not waited for, if `non_blocking`.

        Raises:
            RuntimeError: a CUDA graph is recorded, whose values are not there yet.
        """
        if current_capture() is not None and not non_blocking:
            raise RuntimeError(
                f"values of a tensor of shape {list(array.shape)} on a GPU are read while a CUDA graph is recorded"
            )
        source, back = in_memory_order(array)
        with self.on(array.device.id):
            if not non_blocking:
                out: np.ndarray = self.cupy.asnumpy(source)
                return out.transpose(back)
            return self.pinned.fetch(source).transpose(back)

    def receive(self, array: Any, place: device, non_blocking: bool = False) -> Any:
        """A copy on a GPU, from another one (directly where the GPUs are peers) or from the host.

        It runs in the order of the current stream; with `non_blocking` the host does not wait for its end. The GPU
        reads page-locked memory itself; other memory CuPy stages through its pool of such memory.
        """
        index = place.index or 0
        if type(array) is self.cupy.ndarray:
            return self._receive_from_peer(array, index)
        host = to_host(array)
        with self.on(index):
            if noting_capture() is None and is_dense(host) and self.pinned.contains(host):
                return self.pinned.send(host, non_blocking)
            dense, back = in_memory_order(host)
            return self.arriving(self.cupy.array, dense, blocking=not non_blocking).transpose(back)

    def courier(self, index: int) -> Courier:
        """What copies to a GPU beside the computation."""
        return Courier(self, index)

    def arriving(self, function: Callable[..., Any], values: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what copies values from the host; while a CUDA graph is recorded at once, not as part of it.

        Such values are the same in each replay. A recorded copy would read the page-locked memory that it
        passes through, and others use that by then; and its events could not be asked.
        """
        capture = noting_capture()
        if capture is None or type(values) is self.cupy.ndarray:
            return function(values, *args, **kwargs)
        capture.note_arrival(values)
        if not capture.recording:
            return function(values, *args, **kwargs)
        index = self.current()
        side = self._sides.get(index)
        if side is None:
            side = self._sides[index] = self.cupy.cuda.Stream(non_blocking=True)
        with self.on_stream(index, side), capture.beside():
            made = function(values, *args, **kwargs)
        side.synchronize()
        capture.kept.append(made)
        return made

    def _receive_from_peer(self, array: Any, index: int) -> Any:
        source = array.device.id
        if source == index:
            return array
        cuda = self.cupy.cuda
        with self.on(source):
            sender = cuda.get_current_stream()
            written = sender.record()
        with self.on(index):
            receiver = cuda.get_current_stream()
            receiver.wait_event(written)  # what computes the values may still be running
            out = array.copy(order="K")
            arrived = receiver.record()
        with self.on(source):
            # Else the source, freed right after this call, could be overwritten before it is read.
            sender.wait_event(arrived)
        return out


#: CuPy's functions that take values of the host.
_ARRIVALS = frozenset(["array", "asarray", "ascontiguousarray"])


class CudaNamespace:
    """What `numpy` is for the host, for one GPU: its functions run with that GPU as the current one.

    Args:
        library: the library.
        index: the GPU.
        module: where the functions come from.
    """

    def __init__(self, library: CudaLibrary, index: int, module: Any) -> None:
        self._library = library
        self._index = index
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = cupy_functions.function(self._library.cupy, self._module, name)
        if value is None:
            value = getattr(self._module, name)
        if type(value) is type(np):
            value = self._library.namespace(self._index, value)
        elif callable(value) and not isinstance(value, type):
            if name in _ARRIVALS and self._module is self._library.cupy:
                value = partial(self._library.arriving, value)
            if arrays.several_gpus:
                value = _Guarded(value, self._library, self._index)
        setattr(self, name, value)  # found directly from now on
        return value


class _Guarded:
    """A function (or ufunc, with its methods) that runs with one GPU as the current one."""

    __slots__ = ("_function", "_index", "_library")

    def __init__(self, function: Any, library: CudaLibrary, index: int) -> None:
        self._function = function
        self._library = library
        self._index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._library.current() == self._index:
            return self._function(*args, **kwargs)
        with self._library.on(self._index):
            return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return _Guarded(getattr(self._function, name), self._library, self._index)


class HostCopyError(Exception):
    """A copy from the host that a CUDA graph would make again from memory that others use by then.

    No `RuntimeError`, after which CuPy would copy by another way.
    """


def _page_locked(allocate: Callable[[int], Any], nbytes: int) -> Any:
    """Page-locked memory, through which what the host gives to a GPU passes.

    Raises:
        HostCopyError: a CUDA graph is recorded, and this copy would be part of it.
    """
    capture = current_capture()
    if capture is not None and not capture.apart:
        raise HostCopyError(f"{nbytes} bytes of the host are copied while a CUDA graph is recorded")
    return allocate(nbytes)


_loaded: CudaLibrary | None = None
_loading = threading.Lock()


def load(cupy: Any) -> CudaLibrary:
    """Make CuPy's arrays known to the core."""
    global _loaded
    library = CudaLibrary(cupy)
    cupy.cuda.set_allocator(counting_allocator(cupy, library.ledger))
    pool = cupy.get_default_pinned_memory_pool()
    cupy.cuda.set_pinned_memory_allocator(partial(_page_locked, pool.malloc))
    REMOTE[cupy.ndarray] = library
    arrays.register_cuda(probe().count > 1)
    _loaded = library
    return library


def is_loaded() -> bool:
    """Whether a CUDA device was used in this process."""
    return _loaded is not None


def refuse_exhaustion(error: Exception) -> None:
    """Raise an `OutOfMemoryError` in the place of an error by which a CUDA library tells that it found no memory.

    The workspace of a library, a kernel that is loaded, a graph: what CUDA takes past the pool. What the pool does
    not use is given back, so that who asks for less next time has it.
    """
    if _loaded is not None and tells_of_no_memory(_loaded.cupy, error):
        release_unused(_loaded.cupy)
        raise exhausted(_loaded.cupy, _loaded.ledger, _first_line(error)) from error


@contextmanager
def memory_errors() -> Iterator[None]:
    """Work that may find no memory past the pool; its error is an `OutOfMemoryError` then."""
    try:
        yield
    except Exception as error:
        refuse_exhaustion(error)
        raise


def is_capturing() -> bool:
    """Whether this thread's work on the current GPU is recorded into a CUDA graph, not run."""
    return _loaded is not None and bool(_loaded.cupy.cuda.get_current_stream().is_capturing())


def cannot_look() -> bool:
    """Whether work has to do without looking at values: it is recorded, or shows what a recording will be."""
    return noting_capture() is not None or (_loaded is not None and is_capturing())


def library() -> CudaLibrary:
    """CuPy, loaded on first use.

    Raises:
        RuntimeError: no GPU can be used, with the reason.
    """
    if _loaded is not None:
        return _loaded
    with _loading:
        if _loaded is not None:
            return _loaded
        reason = trouble(probe())
        if reason is not None:
            raise RuntimeError(f"a CUDA device was asked for, but {reason}")
        return load(import_module("cupy"))


arrays.cuda_library = library
