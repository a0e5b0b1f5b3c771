"""The communicator: the contract that every backend keeps.

Owns: `Communicator` and its documentation.
Must not know: tensors, models, gradients, or how any backend moves bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from dptrain.comm import objects
from dptrain.comm.point_to_point import PointToPointWork
from dptrain.comm.reduction import ReduceOp
from dptrain.comm.work import Work

__all__ = ["DEFAULT_TIMEOUT_S", "Communicator", "JoinResult", "ReduceOp", "Work"]

DEFAULT_TIMEOUT_S = 1800.0
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class JoinResult:
    """What `Communicator.join` returns.

    Attributes:
        shadowed: how many collectives of the others this rank answered while it was in `join()`.
        shadowed_by_rank: the same of every rank, by rank; 0 means that the rank came last.
    """

    shadowed: int
    shadowed_by_rank: tuple[int, ...]


class Communicator(ABC):
    """Moves arrays between the ranks of a group: NumPy's, and those of devices.

    The contract, which the tests hold every backend to:

    - Arrays are C-contiguous NumPy arrays of bool, uint8 to uint64, int8 to int64, float16,
      bfloat16 (`ml_dtypes`), float32 or float64, of any shape and length: 0-d and empty ones too.
      Anything else is an error before any rank is asked.
    - Arrays may live on a device (CuPy's, a virtual host device's), all of a call on one. With backend
      "nccl" those of this rank's GPU go from GPU to GPU: `wait()` then does not block, but what the
      calling thread's current stream is given afterwards comes after the result. With every other
      backend, and in messages between two ranks, they are brought to the host and back.
    - Every rank makes the same collective calls in the same order, with equal op, dtype, shape,
      root and name. The ranks compare this before any data moves; a difference raises
      `CollectiveMismatchError` on every rank and names both sides.
    - An array call returns a `Work`. The result is valid after `Work.wait()`; until then the arrays
      of the call are neither read nor written by the caller. The `Work` keeps them alive.
    - With `async_op=True`, the default, the call may run while the caller goes on. With
      `async_op=False` it runs before the call returns (errors are then raised by the call itself),
      which saves the change of threads. Calls run in the order they were made, either way.
    - Reductions are computed in rank order, so that a result does not depend on timing and is the
      same, bit for bit, on every rank. Sums of 16-bit floats accumulate in float32. Integers wrap
      around. NaN of any operand is the maximum and the minimum. Exception: NCCL adds in an order of
      its own, 16-bit floats in 16 bits; the result is still the same on every rank.
    - Every call takes `name` (it appears in messages, and names have to agree) and `timeout` in
      seconds (default: that of the communicator, 1800). A rank that waits longer than
      `warn_after_s` warns on stderr, naming the missing ranks, and shows the Python stack of those
      on its host; after the timeout it raises `CollectiveTimeoutError`. If a missing rank closes
      its communicator, `RankLeftError` is raised at once.
    - After such an error the communicator is broken: what was queued and every further call raise
      `CommunicatorError`. Nothing hangs.
    - Calls may come from several threads of a rank as long as their order is the same on all ranks.

    Attributes:
        rank: this rank, 0 to `world_size - 1`.
        world_size: number of ranks in the group.
        local_rank: position among the ranks of this host.
        local_world_size: number of ranks of the group on this host.
        backend: "serial", "thread", "mpi" or "nccl".
        name: for messages; "world", and a name derived from it for the result of `split`.
        timeout_s: of calls that give none, in seconds.
        owner: free for whoever uses it, to find its own object for a communicator.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    backend: str
    name: str
    timeout_s: float
    owner: Any = None

    # -- collectives over arrays -------------------------------------------------------------------

    @abstractmethod
    def all_reduce(
        self,
        array: Array,
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        name: str | None = None,
        timeout: float | None = None,
        joinable: bool = False,
        async_op: bool = True,
    ) -> Work:
        """Replace `array` on every rank by the reduction over the ranks.

        Args:
            array: any shape; equal shape and dtype on all ranks.
            op: how to combine; `AVG` divides by the number of ranks that took part.
            joinable: whether ranks in `join()` may be missing: they then contribute nothing.

        Raises:
            TypeError: a dtype that is not supported, or `AVG` of integers.
            ValueError: the array is not C-contiguous or not writeable.
        """

    @abstractmethod
    def reduce(
        self,
        array: Array,
        root: int = 0,
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        """Replace `array` on rank `root` by the reduction; the others' arrays keep their values."""

    @abstractmethod
    def broadcast(
        self,
        array: Array,
        root: int | None = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
        joinable: bool = False,
        async_op: bool = True,
    ) -> Work:
        """Replace `array` on every rank by that of rank `root`.

        Args:
            root: the source; None, with `joinable`, is the lowest rank that takes part.
            joinable: whether ranks in `join()` may be missing.

        Raises:
            ValueError: `root` is no rank, or None without `joinable`.
        """

    @abstractmethod
    def all_gather(
        self,
        out: Array,
        array: Array,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        """Write the array of rank r into `out[r]`, for every r, on every rank.

        Args:
            out: (world_size, *array.shape), of the dtype of `array`. `array` may be `out[rank]`.
            array: this rank's contribution; equal shape and dtype on all ranks.
        """

    @abstractmethod
    def reduce_scatter(
        self,
        out: Array,
        array: Array,
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        """Write part `rank` of the reduction of `array` into `out`.

        Args:
            out: (array.shape[0] / world_size, *array.shape[1:]); may be that part of `array`.
            array: its first dimension is split evenly among the ranks.

        Raises:
            ValueError: the first dimension of `array` is no multiple of `world_size`, or `out` has
                another shape or dtype than a part.
        """

    @abstractmethod
    def all_to_all(
        self,
        out: Array,
        array: Array,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        """Send part i of `array` to rank i; part j of `out` is what rank j sent.

        Args:
            out: the shape and dtype of `array`; must not overlap it.
            array: its first dimension is split evenly among the ranks.
        """

    @abstractmethod
    def all_gather_uneven(
        self,
        outs: Sequence[Array],
        array: Array,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        """Write the array of rank r into `outs[r]`, for every r; the sizes may differ by rank.

        Args:
            outs: one array for each rank, of the size of that rank's `array`.
            array: this rank's contribution; equal dtype on all ranks.

        Raises:
            CollectiveMismatchError: a rank expects another size than is sent. Raised on every rank.
        """

    @abstractmethod
    def reduce_scatter_uneven(
        self,
        out: Array,
        arrays: Sequence[Array],
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        """Write the reduction of all ranks' `arrays[rank]` into `out`; sizes may differ by place.

        Args:
            out: of the size of `arrays[rank]`.
            arrays: one array for each rank; equal sizes and dtype on all ranks.

        Raises:
            CollectiveMismatchError: a rank expects another size than is sent. Raised on every rank.
        """

    @abstractmethod
    def all_to_all_uneven(
        self,
        outs: Sequence[Array],
        arrays: Sequence[Array],
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        """Send `arrays[i]` to rank i; `outs[j]` is what rank j sent. All sizes may differ.

        Raises:
            CollectiveMismatchError: a rank expects another size than is sent. Raised on every rank.
        """

    @abstractmethod
    def gather(
        self,
        out: Array | None,
        array: Array,
        root: int = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        """Write the array of rank r into `out[r]`, for every r, on rank `root`.

        Args:
            out: on the root (world_size, *array.shape), of the dtype of `array`; else ignored.
            array: this rank's contribution; equal shape and dtype on all ranks.
        """

    @abstractmethod
    def scatter(
        self,
        out: Array,
        array: Array | None,
        root: int = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        """Write `array[rank]` of rank `root` into `out`.

        Args:
            out: equal shape and dtype on all ranks.
            array: on the root (world_size, *out.shape), of the dtype of `out`; else ignored.
        """

    @abstractmethod
    def barrier(self, *, name: str | None = None, timeout: float | None = None) -> None:
        """Return when every rank has come here. Earlier calls of this rank are over then."""

    # -- point to point ----------------------------------------------------------------------------

    @abstractmethod
    def send(
        self, array: Array, dst: int, tag: int = 0, *, timeout: float | None = None
    ) -> PointToPointWork:
        """Send `array` to rank `dst`; starts at once, in no order with the collectives.

        Args:
            tag: 0 to 32767; a `recv` takes the first message with its tag from its source.

        Returns:
            A `Work`; after its `wait()` the array may be changed.
        """

    @abstractmethod
    def recv(
        self, array: Array, src: int | None = None, tag: int = 0, *, timeout: float | None = None
    ) -> PointToPointWork:
        """Receive from rank `src` into `array`, which has to have the size of the message.

        Args:
            src: the source; None takes the first message with the tag, whoever sent it, and the
                work's `peer` says who.

        Raises:
            ValueError: from `wait()`: the message has another size than the array.
        """

    # -- groups, memory, the end -------------------------------------------------------------------

    @abstractmethod
    def join(self, *, timeout: float | None = None) -> JoinResult:
        """Answer the joinable collectives of the others until every rank is in `join()`.

        For a rank that has run out of data: its part of an `all_reduce` is left out (an average
        divides by the ranks that took part), its part of a `broadcast` is ignored, its memory is
        not touched. Runs after all calls made before it.

        Raises:
            CollectiveMismatchError: another rank made a call that is not joinable.
        """

    @abstractmethod
    def split(
        self, color: int | None, key: int = 0, *, timeout: float | None = None
    ) -> Communicator | None:
        """A communicator among the ranks that give the same color, ordered by (key, rank).

        Returns:
            The new communicator, or None where `color` is None.
        """

    @abstractmethod
    def allocate(self, nbytes: int, *, timeout: float | None = None) -> Array:
        """Memory from which the collectives are fast: (nbytes,) uint8, zeroed, 64-byte aligned.

        Collective. Views of it stay usable for as long as they exist, whatever is closed.
        """

    @abstractmethod
    def release(self, buffer: Array, *, timeout: float | None = None) -> None:
        """Give a buffer of `allocate` back: it is ordinary memory from now on. Collective.

        Raises:
            ValueError: `buffer` did not come from `allocate`, or was released before.
        """

    @abstractmethod
    def abort(self, code: int = 1) -> None:
        """End all ranks of the job at once, also those that wait for something.

        Where ranks are processes they end with exit status `code`. Where they are threads the
        others' calls raise `RankLeftError`. A world of one raises `SystemExit(code)`.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish what is queued and leave the group. May be called again. Never hangs.

        Ranks that wait for this one in a collective get `RankLeftError`.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- statistics --------------------------------------------------------------------------------

    @abstractmethod
    def add_listener(self, listener: Callable[[Work], None]) -> Callable[[], None]:
        """Call `listener(work)` with every finished `Work`, on the thread that ran it.

        Returns:
            A function that removes the listener.
        """

    # -- objects, derived from the array calls: see `objects` -----------------------------------------

    broadcast_object = objects.broadcast_object
    all_gather_object = objects.all_gather_object
    gather_object = objects.gather_object
    scatter_object = objects.scatter_object
    all_to_all_object = objects.all_to_all_object
    send_object = objects.send_object
    recv_object = objects.recv_object

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name={self.name!r}, backend={self.backend!r}, "
            f"rank={self.rank}, world_size={self.world_size})"
        )
