"""What lies on the GPUs: bytes allocated now and at most, counted where CuPy's pool hands them out.

Owns: `Ledger`, the allocator that keeps it, the error for exhausted memory. Must not know: arrays, tensors; who
does (`core/holders.py`) explains what they hold. CuPy's pool knows how much it holds but not how much of that was
in use at most, which is what people tune batch sizes by.
"""

from __future__ import annotations

import gc
import re
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


class Held:
    """Keeps a block of the pool and takes it off the account when the last array over it is gone."""

    __slots__ = ("_block", "_ledger", "address", "index", "nbytes")

    def __init__(self, block: Any, ledger: Ledger, index: int, nbytes: int) -> None:
        self._block, self._ledger, self.index, self.nbytes = block, ledger, index, nbytes
        self.address = block.ptr

    def __del__(self) -> None:
        self._ledger.give(self.index, self.nbytes)


def counting_allocator(cupy: Any, ledger: Ledger, pool: Any = None) -> Callable[[int], Any]:
    """An allocator over a pool (CuPy's default one) that keeps the ledger.

    Its error is an `OutOfMemoryError` that says how much was wanted, who holds what, and what is free.
    """
    pool = cupy.get_default_memory_pool() if pool is None else pool
    memory = cupy.cuda.memory

    def allocate(nbytes: int) -> Any:
        try:
            block = pool.malloc(nbytes)
        except memory.OutOfMemoryError:
            # The pool itself does this where cudaMalloc fails, but not where its limit is reached, and other pools
            # keep what they do not use.
            release_unused(cupy, pool)
            try:
                block = pool.malloc(nbytes)
            except memory.OutOfMemoryError:
                wanted = f"Tried to allocate {size_text(nbytes)}"
                raise exhausted(cupy, ledger, wanted, pool) from None
        if nbytes == 0:
            return block
        index, size = block.device_id, block.mem.size
        ledger.take(index, size, pool.total_bytes())
        held = Held(block, ledger, index, size)
        return memory.MemoryPointer(memory.UnownedMemory(block.ptr, size, held, index), 0)

    return allocate


def release_unused(cupy: Any, pool: Any = None) -> None:
    """Give back to the current GPU what pools (the default one and `pool`) hold and nobody uses."""
    gc.collect()
    for each in _pools(cupy, pool):
        each.free_all_blocks()


def _pools(cupy: Any, pool: Any) -> list[Any]:
    default = cupy.get_default_memory_pool()
    return [default] if pool is None or pool is default else [default, pool]


_explain: Callable[[int], list[str]] = lambda index: []  # noqa: E731 - Replaced by who knows tensors.


def explain_with(function: Callable[[int], list[str]]) -> None:
    """Have a function write the lines that say who holds the memory of a GPU, given its index."""
    global _explain
    _explain = function


def exhausted(cupy: Any, ledger: Ledger, wanted: str, pool: Any = None) -> OutOfMemoryError:
    """The error for exhausted memory of the current GPU.

    Args:
        cupy, ledger, pool: see `counting_allocator`.
        wanted: what there was no memory for, a sentence without its point.
    """
    index = int(cupy.cuda.runtime.getDevice())
    free, total = cupy.cuda.runtime.memGetInfo()
    reserved = sum(each.total_bytes() for each in _pools(cupy, pool))
    allocated = ledger.of(index).allocated
    try:
        lines = _explain(index)
    except (
        Exception
    ) as error:  # of what was found half-made in another thread; the figures are worth more
        lines = [f"(Who holds it could not be found out: {type(error).__name__}: {error})"]
    return OutOfMemoryError(
        "\n".join(
            [
                f"CUDA out of memory. {wanted}. GPU {index} has a total capacity of {size_text(total)} of which "
                f"{size_text(free)} is free; {size_text(max(total - free - reserved, 0))} is used by other processes, "
                "CUDA and its libraries. This process has "
                f"{size_text(reserved)} reserved, of which {size_text(allocated)} is allocated.",
                *lines,
            ]
        )
    )


#: Words of CUDA and its libraries: runtime and driver; cuBLAS, cuSOLVER, cuFFT, cuSPARSE, cuDNN; cuRAND. NVRTC's
#: are of the host's memory.
_NO_MEMORY = re.compile(
    r"cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|_ALLOC_FAILED|_ALLOCATION_FAILED"
)
#: With less than this a library that cannot be initialised lacks the memory for its handle.
_HANDLE_NBYTES = 64 << 20


def tells_of_no_memory(cupy: Any, error: BaseException) -> bool:
    """Whether an error says, in CUDA's words, that there was no memory on the GPU."""
    if isinstance(error, OutOfMemoryError):
        return False  # that is told already
    if isinstance(error, cupy.cuda.memory.OutOfMemoryError) or _NO_MEMORY.search(str(error)):
        return True
    return "_NOT_INITIALIZED" in str(error) and cupy.cuda.runtime.memGetInfo()[0] < _HANDLE_NBYTES


def size_text(nbytes: int) -> str:
    """A number of bytes, to read."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes} bytes"
