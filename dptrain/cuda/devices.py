"""GPUs: which there are, which is current, what they are."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from dptrain.core import cuda as core_cuda
from dptrain.core import device as core_device
from dptrain.core.cuda import CudaLibrary


def library(name: str) -> CudaLibrary:
    """CuPy, for the function `name` of this package.

    Raises:
        RuntimeError: no GPU can be used, with the reason.
    """
    reason = core_cuda.trouble(core_cuda.probe())
    if reason is not None:
        raise RuntimeError(
            f"dptrain.cuda.{name}: no CUDA device is available: {reason}; ask dptrain.cuda.is_available() first"
        )
    return core_cuda.library()


def index_of(name: str, device: Any) -> int:
    """The index that `device` (an int, a name, a device; None: the current one) means.

    Raises:
        ValueError: it is no CUDA device.
        RuntimeError: there is no such GPU.
    """
    found = library(name)
    if device is None:
        return found.current()
    if isinstance(device, int) and not isinstance(device, bool):
        place = core_device.device("cuda", device) if device >= 0 else None
    else:
        place = core_device.device(device)
    if place is None:
        return found.current()  # a negative index changes nothing, as in PyTorch
    if place.type != "cuda":
        raise ValueError(f"{name}: Expected a cuda device, but got: {place}")
    return core_cuda.usable(place.index).index or 0


def is_available() -> bool:
    """Whether a GPU can be used."""
    return core_cuda.device_count() > 0


def device_count() -> int:
    """How many GPUs can be used."""
    return core_cuda.device_count()


def is_initialized() -> bool:
    """Whether a GPU was used in this process."""
    return core_cuda.is_loaded()


def init() -> None:
    """Set CUDA up, which the first use of a GPU does by itself.

    Raises:
        RuntimeError: there is no GPU, with the reason.
    """
    library("init")


def current_device() -> int:
    """Index of this thread's current GPU.

    Raises:
        RuntimeError: there is no GPU.
    """
    return library("current_device").current()


def set_device(device: Any) -> None:
    """Choose this thread's current GPU; a negative index changes nothing.

    Raises:
        RuntimeError: there is no such GPU.
        ValueError: no CUDA device.
    """
    index = index_of("set_device", device)
    library("set_device").cupy.cuda.runtime.setDevice(index)


class device:
    """Makes a GPU the current one inside a `with` block; a negative index changes nothing."""

    def __init__(self, device: Any) -> None:
        self.idx = index_of("device", device)
        self._guard: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        self._guard = library("device").on(self.idx)
        self._guard.__enter__()

    def __exit__(self, *error: Any) -> None:
        assert self._guard is not None
        self._guard.__exit__(*error)


class device_of(device):
    """Makes a tensor's GPU the current one inside a `with` block; nothing for other tensors."""

    def __init__(self, obj: Any) -> None:
        super().__init__(obj.get_device() if obj.is_cuda else -1)


def synchronize(device: Any = None) -> None:
    """Wait for all work on a GPU.

    Raises:
        RuntimeError: there is no GPU.
    """
    index = index_of("synchronize", device)
    found = library("synchronize")
    with found.on(index):
        found.cupy.cuda.runtime.deviceSynchronize()


@dataclass(frozen=True)
class DeviceProperties:
    """What a GPU is, under PyTorch's names."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    warp_size: int
    max_threads_per_multi_processor: int
    shared_memory_per_block: int
    L2_cache_size: int


def get_device_properties(device: Any = None) -> DeviceProperties:
    """What a GPU is.

    Raises:
        RuntimeError: there is no GPU.
    """
    index = index_of("get_device_properties", device)
    found: dict[str, Any] = library("get_device_properties").cupy.cuda.runtime.getDeviceProperties(
        index
    )
    name = found["name"]
    return DeviceProperties(
        name.decode() if isinstance(name, bytes) else name,
        found["major"],
        found["minor"],
        found["totalGlobalMem"],
        found["multiProcessorCount"],
        found["warpSize"],
        found["maxThreadsPerMultiProcessor"],
        found["sharedMemPerBlock"],
        found["l2CacheSize"],
    )


def get_device_name(device: Any = None) -> str:
    """Name of a GPU.

    Raises:
        RuntimeError: there is no GPU.
    """
    index_of("get_device_name", device)
    return get_device_properties(device).name


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """Compute capability of a GPU: (9, 0) for sm_90.

    Raises:
        RuntimeError: there is no GPU.
    """
    index_of("get_device_capability", device)
    found = get_device_properties(device)
    return found.major, found.minor


def can_device_access_peer(device: Any, peer_device: Any) -> bool:
    """Whether a GPU can read another's memory directly."""
    name = "can_device_access_peer"
    pair = index_of(name, device), index_of(name, peer_device)
    return bool(library(name).cupy.cuda.runtime.deviceCanAccessPeer(*pair))


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Whether the current GPU computes in bfloat16 (from sm_80 on; older ones convert)."""
    if not is_available():
        return False
    return including_emulation or get_device_capability() >= (8, 0)
