"""What the core tells a recording while a call runs, and what is noted of it.

Owns: `Listener`. Must not know: which tensors are in reach, what the call returns.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any

import numpy as np

from dptrain.compiler.arrays import TracedArray
from dptrain.compiler.calls import Draw, Whole, check
from dptrain.compiler.draft import Draft
from dptrain.compiler.trace import Trace
from dptrain.core.capturing import recorders
from dptrain.core.random import default_generator
from dptrain.core.tensor import Tensor, wrap


class Listener:
    """Listens to the core while it is entered in `recorders`.

    Attributes:
        trace: what is recorded.
        draft: what becomes of it.
    """

    trace: Trace
    draft: Draft
    _known: dict[int, Tensor]
    _whole_seen: bool

    def _pause(self) -> None:
        """Take the traced arrays out of the tensors in reach."""
        raise NotImplementedError

    def _resume(self) -> None:
        """Put them back."""
        raise NotImplementedError

    def enter(self, args: tuple[Any, ...], raw: list[Any]) -> None:
        """Arrays of tensors that were made in the call from numbers become traced ones."""
        for i, value in enumerate(args):
            if not isinstance(value, Tensor) or type(raw[i]) is not np.ndarray:
                continue
            if not _is_new(value):
                self.trace.refuse(
                    f"it reads a tensor of shape {list(value.shape)} that was made before the call and that neither "
                    "arguments, modules, closures, globals nor attributes lead to"
                )
                continue
            traced: Any = self.trace.adopted(raw[i])
            raw[i] = value._array = traced

    def refuse(self, reason: str) -> None:
        """Something was done that a replay would not do."""
        self.trace.refuse(reason)

    def changed(self, tensor: Tensor) -> None:
        """A tensor was changed in place."""
        if type(tensor._array) is np.ndarray and not _is_new(tensor):
            self.trace.refuse("it changes a tensor in place that is out of its reach")

    def draws(self, generator: Any, purpose: int) -> Any:
        """A stream of random numbers whose draws are recorded."""
        if generator is default_generator():
            self.draft.generator = generator
        return _Draws(self, generator, purpose)

    def drawn(self, generator: Any, purpose: int, name: str, args: Any, kwargs: Any) -> Any:
        """Draw numbers, now and at each run."""
        with _Aside(self):
            values = getattr(generator.stream(purpose), name)(*args, **kwargs)
        if not isinstance(values, np.ndarray):
            self.trace.refuse(f"random numbers were drawn as Python numbers ({name})")
            return values
        made = self.trace.own(values)
        np.copyto(made.host, values)
        call = Draw(generator, purpose, name, args, kwargs)
        writes = (made.block.number,)
        self.trace.add("store", call, (), {}, (made.host,), (), writes, (), False, call.text())
        return made

    def refuse_if(self, bad: Any, error: Callable[..., Exception], arrays: Any) -> None:
        """Check values, now and at each run."""
        traced = [a for a in (bad, *arrays) if type(a) is TracedArray]
        hosts = tuple(a.host if type(a) is TracedArray else a for a in (bad, *arrays))
        check(error, *hosts)
        if traced:
            name = getattr(getattr(error, "func", error), "__qualname__", "")
            self.trace.add("call", check, (error, *hosts), {}, (), traced, (), (), False, name)

    def whole(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function as it is, now and at each run."""
        args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
        grads = [(t, t._grad) for t in self._known.values() if t._requires_grad]
        for _, grad in grads:
            if grad is not None and id(grad) not in self._known:
                self.trace.refuse("a gradient has no place in the optimizer's storage")
        seen: list[TracedArray] = []
        given = tuple(self._outside(a, seen) for a in args)
        named = {k: self._outside(v, seen) for k, v in kwargs.items()}
        self._pause()
        try:
            result = function(*given, **named)
        finally:
            self._resume()
        self._whole_seen = True
        for value in (*given, *named.values()):
            if callable(value) and not hasattr(value, "param_groups"):
                self.trace.refuse("a closure is handed to a function that is kept whole")
        out: tuple[Any, ...] = ()
        writes: tuple[int, ...] = ()
        if isinstance(result, Tensor):
            made = self.trace.own(result._array)
            np.copyto(made.host, result._array)
            out, writes, result = (made.host,), (made.block.number,), wrap(made)  # type: ignore[arg-type]
        elif result is not None:
            self.trace.refuse(f"{getattr(function, '__name__', 'a function')} returned a value")
        call = Whole(function, given, named, grads)
        self.trace.add("whole", call, (), {}, out, seen, writes, (), False, call.text())
        return result

    def _outside(self, value: Any, seen: list[TracedArray]) -> Any:
        """An argument as the function outside of the recording gets it."""
        if isinstance(value, Tensor) and id(value) not in self._known:
            array = value._array
            if type(array) is TracedArray:
                seen.append(array)
                self.trace.kept.append(array.host)
                return wrap(array.host)
        if type(value) in (list, tuple):
            return type(value)(self._outside(v, seen) for v in value)
        return value


class NewTensors:
    """Inside this block `_is_new` knows what was made in it.

    Objects are young until the garbage collector has passed them, which it does not do here.
    """

    def __enter__(self) -> None:
        self._collects = gc.isenabled()
        gc.disable()
        gc.collect(0)

    def __exit__(self, *exc: Any) -> None:
        if self._collects:
            gc.enable()


def _is_new(tensor: Tensor) -> bool:
    return any(o is tensor for o in gc.get_objects(generation=0))


class _Aside:
    """What runs inside this block is not recorded."""

    def __init__(self, recorder: Listener) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        recorders.pop(get_ident(), None)

    def __exit__(self, *exc: Any) -> None:
        recorders[get_ident()] = self._recorder


class _Draws:
    """A stream whose methods draw arrays that are recorded."""

    def __init__(self, recorder: Listener, generator: Any, purpose: int) -> None:
        self._recorder, self._generator, self._purpose = recorder, generator, purpose

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "bit_generator":
            raise AttributeError(name)
        return lambda *args, **kwargs: self._recorder.drawn(
            self._generator, self._purpose, name, args, kwargs
        )
