"""The GPUs' memory: what tensors hold, what the pool holds, what is free."""

from __future__ import annotations

from typing import Any

from dptrain.core import cuda as core_cuda
from dptrain.core.cuda_memory import Account
from dptrain.cuda.devices import index_of, library


def _account(name: str, device: Any) -> Account | None:
    """A GPU's account; None where no GPU was used yet."""
    if not core_cuda.is_loaded():
        return None
    return library(name).ledger.of(index_of(name, device))


def memory_allocated(device: Any = None) -> int:
    """Bytes that tensors hold on a GPU."""
    found = _account("memory_allocated", device)
    return 0 if found is None else found.allocated


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that tensors held since the start (or `reset_peak_memory_stats`)."""
    found = _account("max_memory_allocated", device)
    return 0 if found is None else found.peak_allocated


def memory_reserved(device: Any = None) -> int:
    """Bytes that the pool holds on a GPU, used or not."""
    if not core_cuda.is_loaded():
        return 0
    index, found = index_of("memory_reserved", device), library("memory_reserved")
    with found.on(index):
        return int(found.cupy.get_default_memory_pool().total_bytes())


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes that the pool held since the start (or `reset_peak_memory_stats`)."""
    found = _account("max_memory_reserved", device)
    return 0 if found is None else found.peak_reserved


def reset_peak_memory_stats(device: Any = None) -> None:
    """Start the peaks anew from what is held now."""
    if core_cuda.is_loaded():
        index = index_of("reset_peak_memory_stats", device)
        library("reset_peak_memory_stats").ledger.reset_peak(index, memory_reserved(index))


def empty_cache() -> None:
    """Give what the pool holds and nobody uses back to the GPUs."""
    if core_cuda.is_loaded():
        found = library("empty_cache")
        for index in range(core_cuda.device_count()):
            with found.on(index):
                found.cupy.get_default_memory_pool().free_all_blocks()


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of a GPU, of all processes.

    Raises:
        RuntimeError: there is no GPU.
    """
    index, found = index_of("mem_get_info", device), library("mem_get_info")
    with found.on(index):
        free, total = found.cupy.cuda.runtime.memGetInfo()
    return int(free), int(total)


def memory_stats(device: Any = None) -> dict[str, int]:
    """The figures of this module under PyTorch's keys; empty where no GPU was used."""
    found = _account("memory_stats", device)
    if found is None:
        return {}
    return {
        "allocated_bytes.all.current": found.allocated,
        "allocated_bytes.all.peak": found.peak_allocated,
        "allocation.all.allocated": found.allocations,
        "reserved_bytes.all.current": memory_reserved(device),
        "reserved_bytes.all.peak": found.peak_reserved,
    }


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """The figures of `memory_stats`, to read."""
    lines = [
        f"{key:28} {value / 2**20:12.1f} MiB"
        for key, value in memory_stats(device).items()
        if "bytes" in key
    ]
    return "\n".join(lines) or "no GPU was used"


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Limit the pool to a fraction of a GPU's memory.

    Raises:
        ValueError: a fraction outside [0, 1].
        RuntimeError: there is no GPU.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
    name = "set_per_process_memory_fraction"
    index, found = index_of(name, device), library(name)
    with found.on(index):
        found.cupy.get_default_memory_pool().set_limit(fraction=fraction)
