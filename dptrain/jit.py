"""`torch.jit`'s names, for scripts that guard code with them: nothing is ever compiled from source here.

`is_scripting` and `is_tracing` are False, decorators hand functions on, and what would make, read or write a
program says what to use in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

__all__ = [
    "Final",
    "ScriptFunction",
    "ScriptModule",
    "annotate",
    "export",
    "freeze",
    "ignore",
    "is_scripting",
    "is_tracing",
    "load",
    "optimize_for_inference",
    "save",
    "script",
    "script_if_tracing",
    "trace",
    "trace_module",
    "unused",
]

_COMPILE = "dptrain.compile(model_or_function), which records calls and replays them"
_FILES = "dptrain.save(model.state_dict(), path) and model.load_state_dict(dptrain.load(path))"


def _instead(name: str, use: str) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"jit.{name}: there are no TorchScript programs in dptrain; use {use}"
        )

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Refused: use {use}."
    return refuse


script = _instead("script", _COMPILE)
trace = _instead("trace", _COMPILE)
trace_module = _instead("trace_module", _COMPILE)
freeze = _instead("freeze", _COMPILE)
optimize_for_inference = _instead("optimize_for_inference", _COMPILE)
load = _instead("load", _FILES)
save = _instead("save", _FILES)


class ScriptModule:
    """No module is an instance of it."""

    __init__ = _instead("ScriptModule", _COMPILE)


class ScriptFunction:
    """No function is an instance of it."""

    __init__ = _instead("ScriptFunction", _COMPILE)


def is_scripting() -> bool:
    """False: code runs as it is written."""
    return False


def is_tracing() -> bool:
    """False, as `is_scripting`."""
    return False


def annotate(the_type: Any, the_value: Any) -> Any:
    """The value."""
    return the_value


def export(fn: Any) -> Any:
    """The function as it is."""
    return fn


def unused(fn: Any) -> Any:
    """The function as it is."""
    return fn


def script_if_tracing(fn: Any) -> Any:
    """The function as it is."""
    return fn


def ignore(drop: Any = False, **kwargs: Any) -> Any:
    """The function as it is: `@ignore` and `@ignore(drop=True)`."""
    return drop if callable(drop) else export
