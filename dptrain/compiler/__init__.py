"""Steps that are recorded once and replayed without Python: `dptrain.compile`, with PyTorch's signature.

`compile` here is `dptrain.compile`; `explain` says what became of a compiled function, `reset` forgets all
recordings, `disable` keeps a function out, `is_compiling` says whether a call is being recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakSet

from dptrain.compiler.automatic import Automatic
from dptrain.compiler.function import Compiled, Report, Unsupported
from dptrain.core.capturing import recorder
from dptrain.nn.module import Module
from dptrain.nn.replays import AsItIs

__all__ = ["Report", "Unsupported", "compile", "disable", "explain", "is_compiling", "reset"]

_all: WeakSet[Compiled] = WeakSet()
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def compile(
    model: Callable[..., Any] | None = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    disable: bool = False,
) -> Any:
    """Record the calls of a function or module, and replay them without dispatch and graph building.

    The same kernels run over the same numbers, so that results are those of the plain call, bit for
    bit. What a recording depends on is checked at each call; where it does not hold, the call is recorded
    anew, or made as it is. A whole training step is what gains most.

    Args:
        model: a function or a module; left out, `compile` is a decorator.
        fullgraph: `Unsupported` where a call cannot be replayed, rather than one warning.
        dynamic: has no effect: each shape has a recording of its own.
        backend: "eager" calls the function as it is; any other name stands for the one way there is.
        mode: PyTorch's names; has no effect.
        options: has no effect.
        disable: return `model` as it is.

    Raises:
        RuntimeError: `mode` together with `options`, or an unknown mode.
        TypeError: `model` cannot be called.
    """
    if mode is not None and options is not None:
        raise RuntimeError(
            "Either mode or options can be specified, but both can't be specified at the same time."
        )
    if mode is not None and mode not in _MODES:
        raise RuntimeError(f"Unrecognized mode={mode}, should be one of: {', '.join(_MODES)}")
    if model is None:
        return lambda function: compile(
            function,
            fullgraph=fullgraph,
            dynamic=dynamic,
            backend=backend,
            mode=mode,
            options=options,
            disable=disable,
        )
    if not callable(model):
        raise TypeError(f"compile() expects a function or a Module, got {type(model).__name__}")
    if disable or backend == "eager":
        return model
    if isinstance(model, Module):
        return OptimizedModule(model, fullgraph)
    made = Compiled(model, fullgraph, [])
    _all.add(made)
    return made


class OptimizedModule(Module):
    """A module whose calls are replayed; everything else is that of the module.

    Args:
        mod: the module.
        fullgraph: see `compile`.
    """

    def __init__(self, mod: Module, fullgraph: bool) -> None:
        super().__init__()
        self._orig_mod = mod
        self.__dict__["_compiled"] = Compiled(mod, fullgraph, [])
        self.training = mod.training
        _all.add(self._compiled)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiled(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the call."""
        return self._compiled(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """Set the module's mode."""
        self._orig_mod.train(mode)
        self.training = mode
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_orig_mod":
                raise
            return getattr(self._orig_mod, name)


def explain(function: Any) -> Report:
    """What became of a function's or module's calls: how many were replayed, and why others were not.

    Raises:
        TypeError: neither what `compile` returned nor a module.
    """
    names = function.__dict__
    held = names.get("_compiled") or names.get("_compiled_call_impl", function)
    if isinstance(held, Module):
        return _of(held._replays) + _of(held._replays_without_graph)
    if not isinstance(held, Compiled):
        raise TypeError(f"explain() expects what compile() returned, got {type(function).__name__}")
    return held.report


def _of(by_itself: Any) -> Report:
    """What became of calls of a module that was not asked to be replayed."""
    if isinstance(by_itself, AsItIs):
        return Report(reasons={by_itself.reason: 1})
    return by_itself.report if isinstance(by_itself, Automatic) else Report()


def reset() -> None:
    """Forget all recordings of all compiled functions."""
    for held in list(_all):
        held.reset()


def disable(fn: Callable[..., Any] | None = None, recursive: bool = True) -> Any:
    """Keep a function out of recordings: a call that meets it is made as it is."""
    if fn is None:
        return lambda function: disable(function, recursive)

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        listener: Any = recorder()
        if listener is not None:
            listener.trace.refuse(
                f"it calls {getattr(fn, '__name__', 'a function')}, which is disabled"
            )
        return fn(*args, **kwargs)

    return run


def is_compiling() -> bool:
    """Whether a call is being recorded."""
    return recorder() is not None
