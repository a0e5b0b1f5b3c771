"""Whether operations record the graph: `no_grad`, `enable_grad`, `set_grad_enabled`, `inference_mode`.

Owns: the grad mode and who watches the recording, context variables, so that thread ranks do not
share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
_enabled: ContextVar[bool] = ContextVar("grad_enabled", default=True)

_inference: ContextVar[bool] = ContextVar("inference_mode", default=False)
_observer: ContextVar[Callable[[Any], None] | None] = ContextVar("record_observer", default=None)

#: Bound once because every operation asks them.
is_grad_enabled = _enabled.get
record_observer = _observer.get


@contextmanager
def observe_recording(observer: Callable[[Any], None]) -> Iterator[None]:
    """Call `observer(node)` for each node that is recorded inside the block, outer observers after it."""
    outer = record_observer()

    def both(node: Any) -> None:
        observer(node)
        if outer is not None:
            outer(node)

    token = _observer.set(both)
    try:
        yield
    finally:
        _observer.reset(token)


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


class inference_mode:
    """Compute without recording, as `no_grad`, and say so in `is_inference_mode_enabled()`.

    Args:
        mode: False records again inside an `inference_mode` block. A function is decorated.

    Tensors made inside may be used in recorded operations later: unlike PyTorch's, they are ordinary
    tensors.
    """

    def __new__(cls, mode: Any = True) -> Any:
        return super().__new__(cls) if isinstance(mode, bool) else cls(True)(mode)

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode
        self._previous: list[tuple[bool, bool]] = []

    def __enter__(self) -> None:
        self._previous.append((is_grad_enabled(), _inference.get()))
        _enabled.set(not self.mode)
        _inference.set(self.mode)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        enabled, inference = self._previous.pop()
        _enabled.set(enabled)
        _inference.set(inference)

    def __call__(self, function: _F) -> _F:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with inference_mode(self.mode):
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


def is_inference_mode_enabled() -> bool:
    """Whether an `inference_mode` block is running."""
    return _inference.get()


def _decorate(function: Any, mode: bool) -> Any:
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        token = _enabled.set(mode)
        try:
            return function(*args, **kwargs)
        finally:
            _enabled.reset(token)

    return wrapped
