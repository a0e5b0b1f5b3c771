"""Sends and receives that have been started.

Owns: the `Work` of a `send` or `recv`. Must not know: how messages travel (see `Pending`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.comm.call import call_site
from dptrain.comm.errors import CollectiveTimeoutError, RankLeftError, rank_prefix
from dptrain.comm.transport import Pending, Transport, Watch
from dptrain.comm.work import Work

# A message of a peer that is about to come is worth some polling; one that is not, is not.
_FIRST_PAUSE_S = 20e-6
_LONGEST_PAUSE_S = 1e-3
# What a peer sent before it left may still be on its way: MPI brings it on a bit with each test.
_DELIVERY_S = 0.25


class PointToPointWork(Work):
    """A send or receive under way; whoever waits for it or asks for it drives it on."""

    __slots__ = (
        "_bring",
        "_left_s",
        "_pending",
        "_site",
        "_transport",
        "_warn_after_s",
        "timeout_s",
    )

    def __init__(
        self,
        kind: str,
        pending: Pending,
        transport: Transport,
        *,
        nbytes: int,
        result: np.ndarray[Any, Any] | None,
        kept: tuple[Any, ...],
        timeout_s: float,
        warn_after_s: float | None,
        bring: Callable[[], None] | None = None,
        observe: Callable[[Work], None],
    ) -> None:
        super().__init__(kind, nbytes=nbytes, result=result, kept=kept, observe=observe)
        self.started_ns = self.queued_ns
        self._pending = pending
        self._bring = bring  # Takes a message over into the memory of its device.
        self._transport = transport
        self._warn_after_s = warn_after_s
        self._site = call_site()
        self.timeout_s = timeout_s
        self._left_s: float | None = None  # Since when the peer is known to have left.

    @property
    def peer(self) -> int | None:
        """The other rank; of a receive from any rank None until the message has come."""
        return self._pending.peer

    def is_completed(self) -> bool:
        self._drive()
        return super().is_completed()

    def _block(self, timeout: float | None) -> None:
        begin_s = time.monotonic()
        watch = Watch(self._transport, self, self._warn_after_s)
        pause_s = _FIRST_PAUSE_S
        while not self._drive():
            waited_s = time.monotonic() - begin_s
            if timeout is not None and waited_s >= timeout:
                raise TimeoutError(f"{self.kind} was not over after waiting for {timeout} s")
            try:
                watch.check(self._missing())
            except CollectiveTimeoutError as error:
                self._finish(error)
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _was_given_time(self) -> bool:
        now_s = time.monotonic()
        if self._left_s is None:
            self._left_s = now_s
        return now_s - self._left_s > _DELIVERY_S

    def describe(self) -> str:
        """What is sent or received, whom with, and where it was asked for."""
        whom = "any rank" if self.peer is None else f"rank {self.peer}"
        return f"{self.kind} of {self.nbytes} bytes with {whom} at {self._site[0]}:{self._site[1]}"

    def _missing(self) -> list[int]:
        if self.peer is not None:
            return [self.peer]
        return [rank for rank in range(self._transport.world_size) if rank != self._transport.rank]

    def _drive(self) -> bool:
        """Whether the work is over, having tried to bring it on."""
        if self.finished_ns:
            return True
        # Asked before the test: what a peer sent before it left is still delivered.
        peer = self.peer
        reason = None if peer is None else self._transport.has_left(peer)
        try:
            if self._pending.test():
                if self._bring is not None:
                    self._bring()
                self._finish(None)
            elif reason is not None and self._was_given_time():
                self._finish(
                    RankLeftError(
                        f"{rank_prefix(self._transport.rank, self._transport.world_size)} rank {peer} "
                        f"{reason} before this rank's {self.describe()} was over"
                    )
                )
        except Exception as error:
            self._finish(error)
        return self.finished_ns != 0
