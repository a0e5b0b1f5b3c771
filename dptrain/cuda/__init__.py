"""`torch.cuda`'s questions, answered for a version that computes on the CPU only.

Scripts that ask before they use a GPU run unchanged; what would need one raises.
"""

from __future__ import annotations

from typing import Any, NoReturn

from dptrain.cuda import amp

__all__ = [
    "amp",
    "current_device",
    "device_count",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "init",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "synchronize",
]


def is_available() -> bool:
    """False: this version has no CUDA device."""
    return False


def device_count() -> int:
    """0: this version has no CUDA device."""
    return 0


def is_initialized() -> bool:
    """False: there is no CUDA state."""
    return False


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """False: there is no device to support it."""
    return False


def manual_seed(seed: int) -> None:
    """Seed the generator of the current GPU; there is none."""


def manual_seed_all(seed: int) -> None:
    """Seed the generators of all GPUs; there are none."""


def seed() -> None:
    """Seed the generator of the current GPU anew; there is none."""


def seed_all() -> None:
    """Seed the generators of all GPUs anew; there are none."""


def empty_cache() -> None:
    """Give cached GPU memory back; there is none."""


def reset_peak_memory_stats(device: Any = None) -> None:
    """Start the peak statistics anew; there are none."""


def memory_allocated(device: Any = None) -> int:
    """0: no bytes lie on a GPU."""
    return 0


def max_memory_allocated(device: Any = None) -> int:
    """0: no bytes lay on a GPU."""
    return 0


def memory_reserved(device: Any = None) -> int:
    """0: no bytes of a GPU are reserved."""
    return 0


def max_memory_reserved(device: Any = None) -> int:
    """0: no bytes of a GPU were reserved."""
    return 0


def _refuse(name: str) -> NoReturn:
    raise RuntimeError(
        f"dptrain.cuda.{name}: no CUDA device is available: this version of dptrain computes on 'cpu' only; ask "
        "dptrain.cuda.is_available() first"
    )


def init() -> None:
    """Set CUDA up.

    Raises:
        RuntimeError: always.
    """
    _refuse("init")


def current_device() -> int:
    """Index of the current GPU.

    Raises:
        RuntimeError: always.
    """
    _refuse("current_device")


def set_device(device: Any) -> None:
    """Choose the current GPU.

    Raises:
        RuntimeError: always.
    """
    _refuse("set_device")


def synchronize(device: Any = None) -> None:
    """Wait for the GPU.

    Raises:
        RuntimeError: always.
    """
    _refuse("synchronize")


def get_device_name(device: Any = None) -> str:
    """Name of a GPU.

    Raises:
        RuntimeError: always.
    """
    _refuse("get_device_name")


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """Compute capability of a GPU.

    Raises:
        RuntimeError: always.
    """
    _refuse("get_device_capability")


def get_device_properties(device: Any = None) -> Any:
    """Properties of a GPU.

    Raises:
        RuntimeError: always.
    """
    _refuse("get_device_properties")
