"""Lists of hooks whose entries can be taken off again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

_next_key = count().__next__


class RemovableHandle:
    """Takes a hook off again: `handle.remove()`, or as a context manager."""

    def __init__(self, hooks: dict[int, Any], key: int) -> None:
        self._hooks, self._key = hooks, key

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        self._hooks.pop(self._key, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class RemovableHandles(RemovableHandle):
    """Takes several hooks off again."""

    def __init__(self, handles: Sequence[RemovableHandle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Remove the hooks; a second call does nothing."""
        for handle in self._handles:
            handle.remove()


def add_hook(hooks: dict[int, Any], hook: Any) -> RemovableHandle:
    """Store `hook` under a key that was never used and hand out the handle that removes it."""
    key = _next_key()
    hooks[key] = hook
    return RemovableHandle(hooks, key)
