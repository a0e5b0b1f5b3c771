"""Whether operations record the graph: `no_grad`, `enable_grad`, `set_grad_enabled`.

Owns: the grad mode, a context variable, so that thread ranks do not share it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
_enabled: ContextVar[bool] = ContextVar("grad_enabled", default=True)

#: Bound once because every operation asks it.
is_grad_enabled = _enabled.get


class set_grad_enabled:
    """Switch recording on or off: at once when called, back again when used as a context manager.

    Args:
        mode: True to record operations for `backward()`.
    """

    def __init__(self, mode: bool) -> None:
        self._previous = [is_grad_enabled()]
        self.mode = bool(mode)
        _enabled.set(self.mode)

    def __enter__(self) -> None:
        _enabled.set(self.mode)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _enabled.set(self._previous[0])

    def __call__(self, function: _F) -> _F:
        """Decorate a function so that it runs in this mode; the present mode stays as it was."""
        _enabled.set(self._previous[0])
        return _decorate(function, self.mode)


class _Mode:
    """Re-entrant context manager and decorator that sets one fixed mode."""

    mode: bool

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        return super().__new__(cls) if function is None else _decorate(function, cls.mode)

    def __init__(self) -> None:
        self._previous: list[bool] = []

    def __enter__(self) -> None:
        self._previous.append(is_grad_enabled())
        _enabled.set(self.mode)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _enabled.set(self._previous.pop())

    def __call__(self, function: _F) -> _F:
        return _decorate(function, self.mode)


class no_grad(_Mode):
    """Do not record operations: as a context manager, `@no_grad()` or `@no_grad`."""

    mode = False


class enable_grad(_Mode):
    """Record operations inside a `no_grad` block: as a context manager or a decorator."""

    mode = True


def _decorate(function: Any, mode: bool) -> Any:
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        token = _enabled.set(mode)
        try:
            return function(*args, **kwargs)
        finally:
            _enabled.reset(token)

    return wrapped
