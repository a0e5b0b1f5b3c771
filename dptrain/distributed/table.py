"""What a key-value store holds, and the form in which requests to it travel.

Owns: `Table`, `encode` and `decode`, the errors of stores. Must not know: sockets, files.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from dptrain.comm.errors import CommunicatorError


class DistStoreError(CommunicatorError):
    """A key did not come in time, or a store cannot be used."""


class QueueEmptyError(DistStoreError):
    """A queue from which something was to be taken at once holds nothing."""


class Table:
    """Values and queues by key. Any number of threads may use and wait for them at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._values: dict[str, bytes] = {}
        self._queues: dict[str, deque[bytes]] = {}

    def set(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        """Give keys their values, all at once."""
        with self._changed:
            self._values.update(zip(keys, values, strict=True))
            self._changed.notify_all()

    def append(self, key: str, value: bytes) -> None:
        """Lengthen a value, which begins empty."""
        with self._changed:
            self._values[key] = self._values.get(key, b"") + value
            self._changed.notify_all()

    def add(self, key: str, amount: int) -> int:
        """Add to a number, written in decimal, which begins at 0; return the sum.

        Raises:
            ValueError: the value is no number.
        """
        with self._changed:
            held = self._values.get(key, b"0")
            try:
                total = int(held) + amount
            except ValueError:
                raise ValueError(f"add: the value of {key!r} is no number: {held!r}") from None
            self._values[key] = str(total).encode()
            self._changed.notify_all()
            return total

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """Put `desired` where `expected` is (b"" also means nothing); return what is there then.

        Of a key without a value, `expected` is returned where it is not empty.
        """
        with self._changed:
            held = self._values.get(key)
            if held == expected or (held is None and not expected):
                self._values[key] = held = desired
                self._changed.notify_all()
            return expected if held is None else held

    def delete(self, key: str) -> bool:
        """Forget a value; return whether there was one."""
        with self._changed:
            return self._values.pop(key, None) is not None

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all keys have values or non-empty queues."""
        with self._changed:
            return all(key in self._values or self._queues.get(key) for key in keys)

    def keys(self) -> list[str]:
        """The keys that have values."""
        with self._changed:
            return list(self._values)

    def get(self, keys: Sequence[str], timeout_s: float) -> list[bytes] | None:
        """The values as soon as all are there; None after the timeout."""
        return self._wait(
            lambda: all(key in self._values for key in keys),
            lambda: [self._values[key] for key in keys],
            timeout_s,
        )

    def wait(self, keys: Sequence[str], timeout_s: float) -> bool:
        """Wait until `has(keys)`; whether that came about in time."""
        return self._wait(lambda: self.has(keys), lambda: True, timeout_s) is not None

    def push(self, key: str, value: bytes) -> None:
        """Put a value at the end of a queue."""
        with self._changed:
            self._queues.setdefault(key, deque()).append(value)
            self._changed.notify_all()

    def pop(self, key: str, timeout_s: float) -> bytes | None:
        """Take the first value of a queue as soon as there is one; None after the timeout."""
        return self._wait(
            lambda: bool(self._queues.get(key)), lambda: self._queues[key].popleft(), timeout_s
        )

    def length(self, key: str) -> int:
        """Number of values in a queue."""
        with self._changed:
            return len(self._queues.get(key, ()))

    def _wait(self, ready: Callable[[], bool], take: Callable[[], Any], timeout_s: float) -> Any:
        with self._changed:
            return take() if self._changed.wait_for(ready, timeout_s) else None


#: The methods of `Table` that a request may name.
OPERATIONS = frozenset(name for name in vars(Table) if not name.startswith("_"))


def encode(message: Any) -> bytes:
    """Lists, texts, numbers and bytes as one line of ASCII. Reading it runs no code."""
    return json.dumps(message, default=lambda value: {"bytes": value.decode("latin-1")}).encode()


def decode(text: bytes) -> Any:
    """What `encode` was given."""
    return json.loads(text, object_hook=lambda found: found["bytes"].encode("latin-1"))
