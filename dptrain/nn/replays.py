"""Calls of modules that hold others, some of which are replayed by themselves.

Owns: `call`: which calls are offered to `dptrain.compiler.automatic`, `never`. Must not know: how a call is
recorded, and what may be.

What is offered: calls of the outermost module, in the main thread, once it has been called a few times,
while nobody watches (a debugger, a profile, a recording of the user's). Calls that record no graph are
counted and recorded for themselves: a model that is evaluated now and then is trained as before.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from threading import get_ident, main_thread
from typing import TYPE_CHECKING, Any

from dptrain.core.capturing import recorders
from dptrain.core.engine import current_pass
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.settings import settings

if TYPE_CHECKING:
    from dptrain.nn.module import Module


@dataclass(frozen=True)
class AsItIs:
    """In the place of a module's recordings: it runs as it is from here on.

    Attributes:
        reason: why.
    """

    reason: str


#: Whether a graph is recorded -> the attribute of a module that holds what became of such calls.
PLACES = {True: "_replays", False: "_replays_without_graph"}
#: Calls before a module is looked at: what is made lazily is there by then, and one-off models are done.
_PATIENCE = 4


class _State:
    """Whether calls are replayed, and whether one is running that was offered."""

    def __init__(self) -> None:
        self.enabled = settings().replays
        self.inside = False


state = _State()


def call(module: Module, args: Any, kwargs: Any) -> Any:
    """Call a module without hooks: what `module.forward(*args, **kwargs)` returns."""
    with_graph = is_grad_enabled()
    held = module._replays if with_graph else module._replays_without_graph
    if type(held) is AsItIs or state.inside or not state.enabled or _is_watched():
        return module.forward(*args, **kwargs)
    state.inside = True
    try:
        if type(held) is int:
            if held < _PATIENCE:
                module.__dict__[PLACES[with_graph]] = held + 1
                return module.forward(*args, **kwargs)
            held = import_module("dptrain.compiler.automatic").Automatic(module, with_graph)
            module.__dict__[PLACES[with_graph]] = held
        return held.call(module, args, kwargs)
    finally:
        state.inside = False


def _is_watched() -> bool:
    """Whether somebody would see that code did not run, or something else is in the way."""
    return bool(
        recorders
        or get_ident() != main_thread().ident
        or current_pass() is not None
        or sys.gettrace() is not None
        or sys.getprofile() is not None
    )


def never(module: Module, reason: str) -> None:
    """Have a module and those below it run as they are."""
    for each in module.modules():
        each.__dict__.update(dict.fromkeys(PLACES.values(), AsItIs(reason)))
