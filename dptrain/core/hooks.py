"""Lists of hooks whose entries can be taken off again."""

from __future__ import annotations

from typing import Any


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


def add_hook(hooks: dict[int, Any], hook: Any) -> RemovableHandle:
    """Store `hook` under the next free key and hand out the handle that removes it."""
    key = max(hooks, default=-1) + 1
    hooks[key] = hook
    return RemovableHandle(hooks, key)
