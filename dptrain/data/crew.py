"""The workers of a pass, as the training process sees them.

Owns: `Crew`: starting workers, asking and hearing them, noticing their death, ending them. Must not know: in
which order tasks are given out, what the samples are.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from dptrain.data.channel import Channel, ChannelClosed
from dptrain.data.payload import Payload
from dptrain.data.server import WorkerServer, surroundings, worker_server
from dptrain.data.worker import Begin, Recipe

_END_S = 3.0


class Crew:
    """Running workers.

    Args:
        recipe: what they work on.
        begin: the pass that they begin with.
    """

    def __init__(self, recipe: Recipe, begin: Begin) -> None:
        self._server = worker_server()
        self.pids: list[int] = []
        self._channels: list[Channel] = []
        self._finalizer = weakref.finalize(self, _end, self._server, self._channels, self.pids)
        self._early: list[deque[Any]] = [deque() for _ in range(recipe.num_workers)]
        self._next_task = 0
        _alive.add(self)
        try:
            payload = Payload(recipe)
            around = surroundings()
            for number in range(recipe.num_workers):
                self._start(payload, number)
                self._channels[-1].send((around, begin))
            payload.close()
        except BaseException:
            self.close()
            raise

    def _start(self, payload: Payload, number: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channels.append(Channel(ours))
        with theirs:
            self.pids.append(self._server.start(theirs, payload.descriptors(), number))

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def alive(self) -> bool:
        """Whether it was not closed."""
        return self._finalizer.alive

    def begin(self, begin: Begin) -> None:
        """Let the workers begin another pass; answers to older tasks may still arrive."""
        for worker in range(len(self)):
            self._send(worker, begin)

    def ask(self, worker: int, taken: Any, keys: Any) -> int:
        """Give a worker a task.

        Returns:
            The number under which its answer will come.
        """
        self._next_task += 1
        self._send(worker, (self._next_task, taken, keys))
        return self._next_task

    def _send(self, worker: int, message: Any) -> None:
        channel, early = self._channels[worker], self._early[worker]

        def make_room() -> None:
            # A worker that cannot give its answers takes no tasks; take them, or both would wait.
            poll = select.poll()
            poll.register(channel, select.POLLIN | select.POLLOUT)
            if poll.poll()[0][1] & select.POLLIN:
                early.append(channel.recv())

        try:
            channel.send(message, make_room)
        except ChannelClosed:
            self._died(worker)

    def hear(self, workers: Sequence[int], timeout_s: float) -> tuple[int, int, str, Any] | None:
        """The next answer of one of `workers`; the others are only watched.

        Args:
            workers: whose answers are wanted.
            timeout_s: how long to wait; 0 waits for ever.

        Returns:
            Worker, number of the task, kind of answer, value; None when time is up.

        Raises:
            RuntimeError: a worker, wanted or not, has died.
        """
        for worker in workers:
            answer = self._hear_now(worker)
            if answer is not None:
                return answer
        deadline = time.monotonic() + timeout_s if timeout_s else None
        poll = select.poll()
        numbers = {}
        for worker, channel in enumerate(self._channels):
            numbers[channel.fileno()] = worker
            poll.register(channel, select.POLLIN if worker in workers else 0)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            events = poll.poll(None if left is None else left * 1000)
            if not events:
                return None
            for descriptor, _ in events:
                worker = numbers[descriptor]
                if worker not in workers:
                    self._died(worker)
                answer = self._hear_now(worker)
                if answer is not None:
                    return answer

    def _hear_now(self, worker: int) -> tuple[int, int, str, Any] | None:
        if self._early[worker]:
            return (worker, *self._early[worker].popleft())
        try:
            return (worker, *self._channels[worker].recv(wait=False))
        except BlockingIOError:
            return None
        except ChannelClosed:
            self._died(worker)
        return None

    def _died(self, worker: int) -> None:
        pid = self.pids[worker]
        try:
            status = self._server.exit_status(pid, _END_S)
        except (ChannelClosed, OSError):
            status = None
        self.close()
        if status is None:
            how = "has ended, as has the process that started it"
        elif status < 0:
            how = (
                f"is killed by signal: {signal.Signals(-status).name} ({signal.strsignal(-status)})"
            )
        else:
            how = f"exited unexpectedly with status {status}"
        raise RuntimeError(
            f"DataLoader worker {worker} (pid {pid}) {how}. Was memory short, or did a sample's code end "
            "the process? With num_workers=0 the samples are fetched in the training process."
        )

    def close(self) -> None:
        """End the workers; those in the middle of a sample are given a few seconds."""
        self._finalizer()

    def leave(self) -> None:
        """In a process that was forked from this one: the workers are the parent's."""
        self._finalizer.detach()
        for channel in self._channels:
            channel.close()


def _end(server: WorkerServer, channels: list[Channel], pids: list[int]) -> None:
    for channel in channels:
        channel.close()
    with contextlib.suppress(OSError):  # the server may have been closed first
        server.release(pids)


_alive: weakref.WeakSet[Crew] = weakref.WeakSet()


def _leave() -> None:
    for crew in list(_alive):
        crew.leave()


os.register_at_fork(after_in_child=_leave)
