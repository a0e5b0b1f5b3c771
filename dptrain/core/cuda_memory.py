"""What lies on the GPUs: bytes allocated now and at most, counted where CuPy's pool hands them out.

Owns: `Ledger` and the allocator that keeps it. Must not know: arrays, tensors. CuPy's pool knows how
much it holds but not how much of that was in use at most, which is what people tune batch sizes by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class OutOfMemoryError(RuntimeError):
    """A GPU's memory is exhausted."""


class Account:
    """One GPU's bytes."""

    __slots__ = ("allocated", "allocations", "peak_allocated", "peak_reserved")

    def __init__(self) -> None:
        self.allocated = self.allocations = self.peak_allocated = self.peak_reserved = 0


class Ledger:
    """The accounts of all GPUs; memory may be freed in any thread."""

    def __init__(self) -> None:
        self._accounts: dict[int, Account] = {}
        # Freeing may run in the middle of taking, on the same thread, when the garbage collector does.
        self._lock = threading.RLock()

    def of(self, index: int) -> Account:
        """One GPU's account."""
        with self._lock:
            return self._accounts.setdefault(index, Account())

    def take(self, index: int, nbytes: int, reserved: int) -> None:
        """Bytes were handed out by a pool that now holds `reserved`."""
        with self._lock:
            account = self.of(index)
            account.allocated += nbytes
            account.allocations += 1
            account.peak_allocated = max(account.peak_allocated, account.allocated)
            account.peak_reserved = max(account.peak_reserved, reserved)

    def give(self, index: int, nbytes: int) -> None:
        """Bytes went back."""
        with self._lock:
            self.of(index).allocated -= nbytes

    def reset_peak(self, index: int, reserved: int) -> None:
        """Start the peaks anew from what is held now."""
        with self._lock:
            account = self.of(index)
            account.peak_allocated, account.peak_reserved = account.allocated, reserved


class _Held:
    """Keeps a block of the pool and takes it off the account when the last array over it is gone."""

    __slots__ = ("_block", "_index", "_ledger", "_nbytes")

    def __init__(self, block: Any, ledger: Ledger, index: int, nbytes: int) -> None:
        self._block, self._ledger, self._index, self._nbytes = block, ledger, index, nbytes

    def __del__(self) -> None:
        self._ledger.give(self._index, self._nbytes)


def counting_allocator(cupy: Any, ledger: Ledger, pool: Any = None) -> Callable[[int], Any]:
    """An allocator over a pool (CuPy's default one) that keeps the ledger.

    Its error is an `OutOfMemoryError` that says how much was wanted, held and free.
    """
    pool = cupy.get_default_memory_pool() if pool is None else pool
    memory = cupy.cuda.memory

    def allocate(nbytes: int) -> Any:
        try:
            block = pool.malloc(nbytes)
        except memory.OutOfMemoryError:
            raise OutOfMemoryError(_exhausted(cupy, ledger, pool, nbytes)) from None
        if nbytes == 0:
            return block
        index, size = block.device_id, block.mem.size
        ledger.take(index, size, pool.total_bytes())
        held = _Held(block, ledger, index, size)
        return memory.MemoryPointer(memory.UnownedMemory(block.ptr, size, held, index), 0)

    return allocate


def _exhausted(cupy: Any, ledger: Ledger, pool: Any, nbytes: int) -> str:
    index = int(cupy.cuda.runtime.getDevice())
    free, total = cupy.cuda.runtime.memGetInfo()
    return (
        f"CUDA out of memory. Tried to allocate {_size(nbytes)}. GPU {index} has a total capacity of {_size(total)} of "
        f"which {_size(free)} is free. {_size(ledger.of(index).allocated)} is allocated by dptrain and "
        f"{_size(pool.total_bytes())} is reserved; dptrain.cuda.empty_cache() gives back what is reserved and unused"
    )


def _size(nbytes: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes} bytes"
