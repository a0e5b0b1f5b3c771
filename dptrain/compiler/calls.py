"""Calls of a recording that are more than a function of arrays.

Owns: `Whole` (a function that is called as it is), `Draw` (random numbers), `check` (of values). Must not
know: how they were recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dptrain.core.arrays import as_array
from dptrain.core.tensor import Tensor


@dataclass
class Draw:
    """One draw from a stream, which a seed may have replaced since."""

    generator: Any
    purpose: int
    name: str
    args: Any
    kwargs: Any

    def __call__(self) -> Any:
        return getattr(self.generator.stream(self.purpose), self.name)(*self.args, **self.kwargs)

    def text(self) -> Any:
        """To compare it with that of another recording."""
        kwargs = sorted((k, str(v)) for k, v in self.kwargs.items())
        return id(self.generator), self.purpose, self.name, repr(self.args), repr(kwargs)


@dataclass
class Whole:
    """A call that a run makes as it is, with the gradients that the tensors in reach have by then."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    grads: list[tuple[Tensor, Tensor | None]]

    def __call__(self) -> Any:
        for tensor, grad in self.grads:
            tensor._grad = grad
        result = self.function(*self.args, **self.kwargs)
        return as_array(result._array) if isinstance(result, Tensor) else result

    def text(self) -> Any:
        """To compare it with that of another recording."""
        args = [_identity(a) for a in (*self.args, *self.kwargs.values())]
        return getattr(self.function, "__qualname__", ""), args, [id(g) for _, g in self.grads]


def _identity(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_identity(v) for v in value]
    if isinstance(value, Tensor):
        return value._array.shape
    return repr(value) if isinstance(value, (int, float, str, bool, type(None))) else id(value)


def check(error: Callable[..., Exception], bad: Any, *arrays: Any) -> None:
    """Raise an error where values are not what they have to be."""
    if bad:
        raise error(*arrays)
