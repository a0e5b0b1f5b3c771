"""`torch.futures`'s names: values that are not there yet.

Owns: `Future`, `collect_all`, `wait_all`. Must not know: what is being waited for.

A future that stands for a communication is driven by whoever waits: callbacks of `then` run on the
thread that calls `wait()`, in the order in which it waits. So calls that callbacks make to other
ranks have the same order on all of them, which callbacks on a communication thread would not have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S")

__all__ = ["Future", "collect_all", "wait_all"]


class Future(Generic[T]):
    """A value that is there after `wait()`.

    Args:
        devices: accepted as in PyTorch; without effect, as nothing here computes behind the host.
    """

    def __init__(self, *, devices: Any = None) -> None:
        self._changed = threading.Condition()
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], Any]] = []
        self._drive: Callable[[], Any] | None = None
        self._is_ready: Callable[[], bool] = lambda: False

    @classmethod
    def driven(
        cls, compute: Callable[[], T], is_ready: Callable[[], bool] | None = None
    ) -> Future[T]:
        """A future whose first `wait()` runs `compute` and takes what it returns or raises.

        Args:
            compute: blocks until the value is there.
            is_ready: whether `compute` would not block; it never is if None.
        """
        future = cls()
        if is_ready is not None:
            future._is_ready = is_ready

        def drive() -> None:
            try:
                result = compute()
            except BaseException as error:
                future._settle(None, error)
            else:
                future._settle(result, None)

        future._drive = drive
        return future

    def done(self) -> bool:
        """Whether `wait()` would not block: there is a result or an error. Never blocks."""
        return self._done or self._is_ready()

    def wait(self) -> T:
        """Return the value as soon as it is there.

        Raises:
            BaseException: what the computation raised.
        """
        with self._changed:
            drive, self._drive = self._drive, None
        if drive is not None and not self._done:
            drive()
        with self._changed:
            while not self._done:
                self._changed.wait()
        return self.value()

    def value(self) -> T:
        """The value of a future that is done.

        Raises:
            RuntimeError: it is not.
            BaseException: what the computation raised.
        """
        if not self._done and self._is_ready():
            return self.wait()
        if not self._done:
            raise RuntimeError(
                "Future.value() was called before there was a value; call wait() instead"
            )
        if self._error is not None:
            raise self._error
        result: T = self._result
        return result

    def then(self, callback: Callable[[Future[T]], S]) -> Future[S]:
        """A future of `callback(self)`, which runs as soon as this one is done."""
        following: Future[S] = Future()

        def run(done: Future[T]) -> None:
            try:
                result = callback(done)
            except BaseException as error:
                following._settle(None, error)
            else:
                following._settle(result, None)

        def drive() -> None:
            self._finish_quietly()

        following._drive, following._is_ready = drive, self.done
        self.add_done_callback(run)
        return following

    def add_done_callback(self, callback: Callable[[Future[T]], Any]) -> None:
        """Run `callback(self)` as soon as this future is done; now, if it is."""
        with self._changed:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback(self)

    def set_result(self, result: T) -> None:
        """Give the future its value, and run what waits for it.

        Raises:
            RuntimeError: it has one.
        """
        self._settle(result, None)

    def set_exception(self, result: BaseException) -> None:
        """Give the future an error, which `wait()` and `value()` raise.

        Raises:
            TypeError: no exception.
            RuntimeError: the future is done.
        """
        if not isinstance(result, BaseException):
            raise TypeError(f"{result} is of type {type(result)}, not an Exception.")
        self._settle(None, result)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        with self._changed:
            if self._done:
                raise RuntimeError("a Future can be given a value or an error only once")
            self._result, self._error, self._done = result, error, True
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        for callback in callbacks:
            callback(self)

    def _finish_quietly(self) -> None:
        """Wait, and leave an error to whoever asks for the value."""
        try:
            self.wait()
        except BaseException:
            if not self._done:  # not the future's error: Ctrl-C, for example
                raise


def collect_all(futures: list[Future[Any]]) -> Future[list[Future[Any]]]:
    """A future of the list of `futures`, done when all of them are, well or not."""

    def gather() -> list[Future[Any]]:
        for future in futures:
            future._finish_quietly()
        return futures

    return Future.driven(gather)


def wait_all(futures: list[Future[Any]]) -> list[Any]:
    """The values of all futures; raises the first error, by their order."""
    return [future.wait() for future in collect_all(futures).wait()]
