"""Where a recorder of steps listens: what the core tells it, and which functions it keeps whole.

Owns: who records in which thread, who measures, `whole`, `one_call`. Must not know: how a recording is made and replayed
(`dptrain.compiler`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import Any, Protocol, TypeVar

from dptrain.core.arrays import on_gpu
from dptrain.core.cuda_capture import current_capture

_F = TypeVar("_F", bound=Callable[..., Any])


class Recorder(Protocol):
    """What listens to one thread."""

    def enter(self, args: tuple[Any, ...], raw: list[Any]) -> None:
        """Operations call this with their arguments and the arrays behind them, which it may replace."""

    def refuse(self, reason: str) -> None:
        """Say that the call cannot be replayed."""

    def changed(self, tensor: Any) -> None:
        """In-place changes say so, after they were made."""

    def draws(self, generator: Any, purpose: int) -> Any:
        """What stands for a stream of random numbers."""

    def refuse_if(self, bad: Any, error: Callable[..., Exception], arrays: Any) -> None:
        """See the function of that name."""

    def whole(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function that replays call as it is, rather than what it consists of."""


#: By thread, and what watches all threads. Empty nearly always, which is what the hot paths ask.
recorders: dict[int, Any] = {}
#: Key of what measures operations (`dptrain.autograd.profiler`); no thread has it.
WATCHER = -1


def watcher() -> Any:
    """What measures operations, if anything does."""
    return recorders.get(WATCHER) if recorders else None


def recorder() -> Recorder | None:
    """Who records this thread, if anyone does."""
    return recorders.get(get_ident()) if recorders else None


def not_in_replays(what: str) -> None:
    """Tell who records that this was done, which a replay would not repeat."""
    listener = recorder()
    if listener is not None:
        listener.refuse(f"it {what}")


def refuse_if(bad: Any, error: Callable[..., Exception], *arrays: Any) -> None:
    """Raise `error(*arrays)` if values are not what they have to be; a replay looks again.

    Values that a CUDA graph is going to compute cannot be looked at, and are not.

    Args:
        bad: a truth, or an array of one element.
        error: makes the exception.
        arrays: raw arrays that it looks at.
    """
    if current_capture() is not None and on_gpu(bad):
        return
    listener = recorder()
    if listener is not None:
        listener.refuse_if(bad, error, arrays)
    elif bad:
        raise error(*arrays)


def one_call(function: _F) -> _F:
    """Decorate a function over raw arrays that looks at values on the way to its result.

    A replay calls it, rather than what it consists of. The shape of the result must not depend on values.
    """
    function.one_call = True  # type: ignore[attr-defined]
    return function


def whole(function: _F) -> _F:
    """Decorate what looks at values or options at each call: a replay calls it, as eager code does.

    Its tensor arguments must exist before the step (parameters and their gradients).
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        listener = recorder()
        if listener is None:
            return function(*args, **kwargs)
        return listener.whole(function, args, kwargs)

    return run  # type: ignore[return-value]
