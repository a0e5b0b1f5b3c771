"""The arguments that samples of operations are written with.

`x(shape)` stands for a floating point tensor that requires gradients where dtypes allow,
`c(shape)` for one that does not, `i(shape, high)` for integers, `b(shape)` for booleans. The values
are drawn anew for each dtype from a stream that is keyed by the position, and kept away from kinks
and poles by `low`/`high`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arg:
    kind: str
    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    transform: str = ""  # "transposed", "expanded": non-contiguous forms


def x(*shape, low=-2.0, high=2.0, transform=""):
    return Arg("x", shape, low, high, transform)


def pos(*shape):
    return Arg("x", shape, 0.5, 3.0)


def c(*shape, low=-2.0, high=2.0):
    return Arg("c", shape, low, high)


def i(*shape, low=0, high=5):
    return Arg("i", shape, low, high)


def b(*shape):
    return Arg("b", shape)


@dataclass(frozen=True)
class Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


def call(*args, **kwargs):
    return Call(args, kwargs)
