"""Key-value stores: what ranks, or any processes, tell each other without a collective.

Owns: `Store`, `HashStore`, `PrefixStore`, the checks of arguments. Must not know: sockets, files.

The ranks do not need one to find each other: MPI connects them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from dptrain.distributed.groups import seconds
from dptrain.distributed.table import DistStoreError, QueueEmptyError, Table

DEFAULT_TIMEOUT = timedelta(minutes=5)


class Store:
    """The interface of all stores; a class of the user's may give its own methods.

    Keys are texts, values bytes (or texts, which are stored in UTF-8). Reading a key waits until some
    process has set it, or until the store's timeout.
    """

    def __init__(self) -> None:
        self._timeout = DEFAULT_TIMEOUT

    @property
    def timeout(self) -> timedelta:
        """How long to wait for keys."""
        return self._timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Change how long to wait for keys."""
        self._timeout = timedelta(seconds=limit_s(timeout))

    def set(self, key: str, value: str | bytes) -> None:
        """Give a key its value, in the place of an older one."""
        self.multi_set([key], [value])

    def get(self, key: str) -> bytes:
        """The value of a key, as soon as it has one.

        Raises:
            DistStoreError: it has none within the timeout.
        """
        return self.multi_get([key])[0]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Give several keys their values, all at once.

        Raises:
            ValueError: another number of values than of keys.
        """
        raise self._missing("multi_set")

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """The values of several keys, as soon as all have one."""
        raise self._missing("multi_get")

    def append(self, key: str, value: str | bytes) -> None:
        """Lengthen the value of a key."""
        raise self._missing("append")

    def add(self, key: str, amount: int) -> int:
        """Add to the number that a key counts, which begins at 0, and return the sum.

        Raises:
            ValueError: its value is no number.
        """
        raise self._missing("add")

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Set `desired` if the value is `expected`, or if both are nothing.

        Returns:
            The value afterwards; `expected` if there is none.
        """
        raise self._missing("compare_set")

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys have values. Does not wait."""
        raise self._missing("check")

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return as soon as all keys have values.

        Raises:
            DistStoreError: some have none within the timeout, by default the store's.
        """
        raise self._missing("wait")

    def delete_key(self, key: str) -> bool:
        """Forget a key; return whether it had a value."""
        raise self._missing("delete_key")

    def num_keys(self) -> int:
        """Number of keys, with those that the store itself uses."""
        raise self._missing("num_keys")

    def list_keys(self) -> list[str]:
        """The keys, without those that the store itself uses."""
        raise self._missing("list_keys")

    def queue_push(self, key: str, value: str | bytes) -> None:
        """Put a value at the end of a queue."""
        raise self._missing("queue_push")

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Take the first value of a queue.

        Raises:
            QueueEmptyError: there is none, and `block` is False.
            DistStoreError: none came within the timeout.
        """
        raise self._missing("queue_pop")

    def queue_len(self, key: str) -> int:
        """Number of values in a queue."""
        raise self._missing("queue_len")

    def barrier(self, key: str, world_size: int, timeout: timedelta | None = None) -> None:
        """Wait until `world_size` callers have come to the barrier of this name.

        Raises:
            DistStoreError: they have not within the timeout.
        """
        last = f"{key}/last_member"
        if self.add(f"{key}/num_members", 1) == world_size:
            self.set(last, "1")
        self.wait([last], self.timeout if timeout is None else timeout)

    def clone(self) -> Store:
        """Another store over the same values."""
        raise self._missing("clone")

    def has_extended_api(self) -> bool:
        """Whether `append`, `multi_get` and `multi_set` are there."""
        return True

    def _missing(self, name: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__}.{name} is not implemented")


class TableStore(Store):
    """A store whose values are in a `Table` somewhere; the subclass says how to reach it."""

    @abstractmethod
    def _ask(self, operation: str, *args: Any) -> Any:
        """What a method of the table returns."""

    def _own_keys(self) -> int:
        """How many keys the store itself uses."""
        return 0

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        keys = _keys("set", keys)
        if len(keys) != len(values):
            raise ValueError(f"multi_set: {len(keys)} keys and {len(values)} values")
        self._ask("set", keys, [_value("set", value) for value in values])

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        keys = _keys("get", keys)
        found: list[bytes] | None = self._ask("get", keys, self._timeout.total_seconds())
        if found is None:
            raise self._late(keys, self._timeout)
        return found

    def append(self, key: str, value: str | bytes) -> None:
        self._ask("append", _key("append", key), _value("append", value))

    def add(self, key: str, amount: int) -> int:
        if not isinstance(amount, int):
            raise TypeError(f"add: expected an int to add, got {type(amount).__name__}")
        return int(self._ask("add", _key("add", key), amount))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        op = "compare_set"
        return bytes(self._ask(op, _key(op, key), _value(op, expected), _value(op, desired)))

    def check(self, keys: Sequence[str]) -> bool:
        return bool(self._ask("has", _keys("check", keys)))

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        keys, limit = _keys("wait", keys), self._timeout if timeout is None else timeout
        if not self._ask("wait", keys, limit_s(limit)):
            raise self._late(keys, limit)

    def delete_key(self, key: str) -> bool:
        return bool(self._ask("delete", _key("delete_key", key)))

    def num_keys(self) -> int:
        return len(self.list_keys()) + self._own_keys()

    def list_keys(self) -> list[str]:
        return list(self._ask("keys"))

    def queue_push(self, key: str, value: str | bytes) -> None:
        self._ask("push", _key("queue_push", key), _value("queue_push", value))

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        limit = self._timeout if block else timedelta(0)
        found: bytes | None = self._ask("pop", _key("queue_pop", key), limit.total_seconds())
        if found is None and not block:
            raise QueueEmptyError(f"{self!r}: queue {key!r} is empty")
        if found is None:
            raise self._late([key], limit)
        return found

    def queue_len(self, key: str) -> int:
        return int(self._ask("length", _key("queue_len", key)))

    def _late(self, keys: Sequence[str], limit: timedelta) -> DistStoreError:
        missing = [key for key in keys if not self.check([key])]
        return DistStoreError(
            f"{self!r}: wait timeout after {limit_s(limit) * 1000:.0f}ms, keys: {', '.join(keys)}"
            f"; missing: {', '.join(missing) or 'none any more'}"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class HashStore(TableStore):
    """A store in this process's memory, for its threads."""

    def __init__(self) -> None:
        super().__init__()
        self._table = Table()

    def _ask(self, operation: str, *args: Any) -> Any:
        return getattr(self._table, operation)(*args)

    def clone(self) -> HashStore:
        twin = HashStore()
        twin._table = self._table
        return twin


class PrefixStore(Store):
    """The part of another store whose keys begin with `prefix` and a slash.

    Args:
        prefix: goes before every key.
        store: any store, also one of the user's.

    Raises:
        ValueError: no store.
    """

    def __init__(self, prefix: str, store: Store) -> None:
        super().__init__()
        if store is None:
            raise ValueError("store argument cannot be None")
        if not isinstance(store, Store):
            raise TypeError(f"PrefixStore: expected a Store, got {type(store).__name__}")
        self._prefix, self._store = _key("PrefixStore", prefix) + "/", store

    @property
    def underlying_store(self) -> Store:
        """The store that holds the values."""
        return self._store

    @property
    def timeout(self) -> timedelta:
        return self._store.timeout

    def set_timeout(self, timeout: timedelta) -> None:
        self._store.set_timeout(timeout)

    def _full(self, key: str) -> str:
        return self._prefix + _key(type(self).__name__, key)

    def _all(self, keys: Sequence[str]) -> list[str]:
        return [self._full(key) for key in keys]

    def set(self, key: str, value: str | bytes) -> None:
        self._store.set(self._full(key), _value("set", value))

    def get(self, key: str) -> bytes:
        return self._store.get(self._full(key))

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        self._store.multi_set(self._all(keys), values)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        return self._store.multi_get(self._all(keys))

    def append(self, key: str, value: str | bytes) -> None:
        self._store.append(self._full(key), value)

    def add(self, key: str, amount: int) -> int:
        return self._store.add(self._full(key), amount)

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        return self._store.compare_set(self._full(key), expected, desired)

    def check(self, keys: Sequence[str]) -> bool:
        return self._store.check(self._all(keys))

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        self._store.wait(self._all(keys), self.timeout if timeout is None else timeout)

    def delete_key(self, key: str) -> bool:
        return self._store.delete_key(self._full(key))

    def num_keys(self) -> int:
        """Number of keys in the whole store."""
        return self._store.num_keys()

    def list_keys(self) -> list[str]:
        """The keys with this prefix, without it."""
        begin = len(self._prefix)
        return [key[begin:] for key in self._store.list_keys() if key.startswith(self._prefix)]

    def queue_push(self, key: str, value: str | bytes) -> None:
        self._store.queue_push(self._full(key), value)

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        return self._store.queue_pop(self._full(key), block)

    def queue_len(self, key: str) -> int:
        return self._store.queue_len(self._full(key))

    def clone(self) -> PrefixStore:
        return PrefixStore(self._prefix.removesuffix("/"), self._store.clone())

    def has_extended_api(self) -> bool:
        return self._store.has_extended_api()


def _key(op: str, key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{op}: a key must be a str, got {type(key).__name__}")
    return key


def _keys(op: str, keys: Any) -> list[str]:
    if isinstance(keys, (str, bytes)):
        raise TypeError(f"{op}: expected a list of keys, got {type(keys).__name__}")
    return [_key(op, key) for key in keys]


def _value(op: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    raise TypeError(f"{op}: a value must be str or bytes, got {type(value).__name__}")


def limit_s(timeout: Any) -> float:
    if not isinstance(timeout, (timedelta, int, float)) or isinstance(timeout, bool):
        raise TypeError(f"expected a timedelta as timeout, got {type(timeout).__name__}")
    found = seconds(timeout)
    assert found is not None
    return found
