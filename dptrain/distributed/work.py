"""A collective over tensors that may not be over yet.

Owns: `Work`. Must not know: which collective it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from dptrain.comm import Work as ArrayWork
from dptrain.comm.point_to_point import PointToPointWork
from dptrain.distributed.groups import ProcessGroup, seconds
from dptrain.futures import Future

if TYPE_CHECKING:
    from dptrain.core.tensor import Tensor


class Work:
    """What `async_op=True` returns: the result is in the tensors after `wait()`.

    Args:
        works: the calls on arrays that it consists of.
        finish: run once, when all of them are over: brings results into their tensors.
        tensors: those that hold the result.
        group: whose ranks `source_rank` counts.
    """

    def __init__(
        self,
        works: Sequence[ArrayWork],
        finish: Callable[[], None] | None = None,
        tensors: Sequence[Tensor] = (),
        group: ProcessGroup | None = None,
    ) -> None:
        self._works = list(works)
        self._finish = finish
        self._tensors = list(tensors)
        self._group = group
        self._lock = threading.Lock()

    def wait(self, timeout: timedelta | float | None = None) -> bool:
        """Return True when the result is there; raise what went wrong.

        Args:
            timeout: how long to wait here, a timedelta or seconds; the call itself goes on.
        """
        limit_s = seconds(timeout)
        for work in self._works:
            work.wait(limit_s or None)
        self._bring_home()
        return True

    synchronize = wait

    def is_completed(self) -> bool:
        """Whether the call is over, well or not. Never blocks."""
        over = all(work.is_completed() for work in self._works)
        if over and self.exception() is None:
            self.wait()  # On a GPU: what this stream does from now on comes after the result.
        return over

    def is_success(self) -> bool:
        """Whether the call is over and went well. Never blocks."""
        return self.is_completed() and self.exception() is None

    def exception(self) -> BaseException | None:
        """What the call failed with, if it has."""
        return next((e for work in self._works if (e := work.exception()) is not None), None)

    def result(self) -> list[Tensor]:
        """The tensors that hold the result."""
        return list(self._tensors)

    def get_future(self) -> Future[list[Tensor]]:
        """The result as a `Future`, for `then`."""

        def tensors() -> list[Tensor]:
            self.wait()
            return self.result()

        return Future.driven(tensors, self.is_completed)

    def source_rank(self) -> int:
        """The rank, in the whole job, from which a receive took its message.

        Raises:
            RuntimeError: not over, or no receive.
        """
        work = self._works[0] if self._works else None
        found = work.peer if isinstance(work, PointToPointWork) else None
        if found is None or self._group is None:
            raise RuntimeError("sourceRank() may only be called on work that is a finished recv")
        return self._group.ranks[found]

    _source_rank = source_rank

    def _bring_home(self) -> None:
        with self._lock:
            finish, self._finish = self._finish, None
        if finish is not None:
            finish()
