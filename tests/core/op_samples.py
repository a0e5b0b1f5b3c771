"""One line of samples per operation: what the registry-walking tests run.

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


_BINARY = [
    call(x(3, 4), x(3, 4)),
    call(x(3, 4), x(4)),
    call(x(2, 1, 4), x(3, 1)),
    call(x(3, 4, transform="transposed"), x(3, 4)),
    call(x(3, 4, transform="expanded"), x(3, 4)),
    call(x(), x(2)),
    call(x(0, 3), x(3)),
    call(x(2, 3), 1.5),
]
_DIVISION = [
    call(x(3, 4), pos(3, 4)),
    call(x(3, 4), pos(4)),
    call(x(2, 1), pos(1, 3)),
    call(x(0, 2), pos(2)),
    call(x(3), 2.0),
    call(x(2), pos()),
]
_UNARY = [
    call(x(3, 4)),
    call(x()),
    call(x(0, 2)),
    call(x(3, 4, transform="transposed")),
    call(x(5, transform="expanded")),
]
_POSITIVE = [call(pos(3, 4)), call(pos()), call(pos(0, 2))]
_PREDICATE = [call(x(3, 4)), call(x()), call(x(0, 2))]
_LOGIC = [call(b(3, 4), b(3, 4)), call(i(3), i(2, 3)), call(i(4), 3)]
_REDUCE = [
    call(x(3, 4)),
    call(x()),
    call(x(3, 4), 0),
    call(x(3, 4), -1, True),
    call(x(2, 3, 4), (0, 2)),
    call(x(2, 3, 4), dim=(0, -1), keepdim=True),
    call(x(3, 4, transform="transposed"), 1),
    call(x(3, 4, transform="expanded"), 0),
]
_ARG = [call(x(3, 4)), call(x(3, 4), 0), call(x(3, 4), -1, True), call(x()), call(x(4), dim=0)]
_IMAGE = x(2, 4, 7, 6)

SAMPLES: dict[str, list[Call]] = {
    "abs": [*_POSITIVE, call(x(3, low=-3.0, high=-0.5))],
    "absolute": _POSITIVE,
    "add": [*_BINARY, call(x(3), x(3), alpha=2.5)],
    "all": [call(b(3, 4)), call(b(3, 4), 0), call(b(3, 4), 1, True), call(b(0))],
    "allclose": [call(x(3), x(3)), call(x(3), x(1), atol=9.0)],
    "amax": _REDUCE[:-1],  # an expanded dimension is all ties
    "amin": _REDUCE[:-1],
    "any": [call(b(3, 4)), call(b(3, 4), 0), call(b(3, 4), 1, True), call(b(0))],
    "argmax": _ARG,
    "argmin": _ARG,
    "avg_pool2d": [
        call(_IMAGE, 2),
        call(_IMAGE, 3, 2, 1),
        call(
            _IMAGE, (3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True, count_include_pad=False
        ),
        call(x(4, 7, 6), 2, divisor_override=3),
    ],
    "bitwise_and": _LOGIC,
    "bitwise_not": [call(b(3, 4)), call(i(3))],
    "bitwise_or": _LOGIC,
    "bitwise_xor": _LOGIC,
    "bmm": [call(x(2, 3, 4), x(2, 4, 5)), call(x(0, 3, 4), x(0, 4, 5))],
    "cat": [
        call([x(2, 3), x(1, 3)]),
        call([x(2, 3), x(2, 2)], 1),
        call([x(2, 3), x(2, 3)], dim=-2),
        call([x(2), x(0)]),
    ],
    "chunk": [call(x(5, 2), 2), call(x(5, 2), 3, 0), call(x(2, 6), 4, dim=1)],
    "clamp": [call(x(3, 4), -1.0, 1.0), call(x(3, 4), min=0.1), call(x(3), max=0.3)],
    "clip": [call(x(3, 4), -1.0, 1.0)],
    "clone": _UNARY,
    "concat": [call([x(2, 3), x(1, 3)])],
    "concatenate": [call([x(2, 3), x(1, 3)])],
    "conv2d": [
        call(_IMAGE, x(6, 4, 3, 3), x(6)),
        call(_IMAGE, x(6, 4, 3, 2), None, stride=(2, 1), padding=(1, 0)),
        call(_IMAGE, x(6, 2, 3, 3), x(6), padding=1, groups=2),
        call(_IMAGE, x(4, 1, 2, 2), None, dilation=2, groups=4),
        call(_IMAGE, x(3, 4, 2, 3), x(3), padding="same"),
        call(x(4, 7, 6), x(3, 4, 1, 1), x(3)),
        call(x(0, 4, 7, 6), x(3, 4, 3, 3), x(3)),
    ],
    "cos": _UNARY,
    "div": [
        *_DIVISION,
        call(x(4), pos(4), rounding_mode="floor"),
        call(x(4), pos(4), rounding_mode="trunc"),
    ],
    "divide": _DIVISION,
    "dot": [call(x(4), x(4)), call(x(0), x(0))],
    "eq": [call(i(3, 4), i(4)), call(x(3), 0.0)],
    "equal": [call(x(3), x(3)), call(x(3), x(2))],
    "exp": _UNARY,
    "flatten": [call(x(2, 3, 4)), call(x(2, 3, 4), 1), call(x(2, 3, 4), 0, 1), call(x())],
    "floor_divide": [call(c(3, 4), c(4, low=0.5)), call(i(5), i(5, low=1))],
    "gather": [
        call(x(3, 4), 0, i(2, 4, high=3)),
        call(x(3, 4), 1, i(3, 2, high=4)),
        call(x(3, 4), -1, i(2, 2, high=4)),
    ],
    "ge": [call(i(3, 4), i(4)), call(x(3), 0.0)],
    "greater": [call(x(3), 0.0)],
    "greater_equal": [call(x(3), 0.0)],
    "gt": [call(i(3, 4), i(4)), call(x(3), 0.0)],
    "isfinite": _PREDICATE,
    "isinf": _PREDICATE,
    "isnan": _PREDICATE,
    "le": [call(i(3, 4), i(4)), call(x(3), 0.0)],
    "less": [call(x(3), 0.0)],
    "less_equal": [call(x(3), 0.0)],
    "log": _POSITIVE,
    "log_softmax": [call(x(3, 4), 1), call(x(3, 4), dim=0), call(x(2, 3, 4), -2), call(x(0, 3), 1)],
    "logical_and": [call(b(3), b(3)), call(i(3), i(2, 3)), call(x(3), x(3))],
    "logical_not": [call(b(3)), call(i(3)), call(x(3))],
    "logical_or": [call(b(3), b(3)), call(i(3), i(2, 3))],
    "lt": [call(i(3, 4), i(4)), call(x(3), 0.0)],
    "matmul": [
        call(x(3, 4), x(4, 5)),
        call(x(4), x(4)),
        call(x(3, 4), x(4)),
        call(x(4), x(4, 3)),
        call(x(2, 3, 4), x(4, 5)),
        call(x(3, 4), x(2, 4, 5)),
        call(x(2, 1, 3, 4), x(5, 4, 2)),
        call(x(2, 3, 4), x(4)),
        call(x(4), x(2, 4, 3)),
        call(x(0, 4), x(4, 3)),
        call(x(3, 0), x(0, 2)),
        call(x(3, 4, transform="transposed"), x(4, 5)),
    ],
    "max": [
        call(x(3, 4)),
        call(x(3, 4), 0),
        call(x(3, 4), 1, True),
        call(x(3), x(3)),
        call(x(), 0),
    ],
    "max_pool2d": [
        call(_IMAGE, 2),
        call(_IMAGE, 3, 2, 1),
        call(_IMAGE, (3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True),
        call(_IMAGE, 2, 2, 0, 2),
        call(x(4, 7, 6), 2),
    ],
    "maximum": [call(x(3, 4), x(4)), call(x(3), x(3))],
    "mean": [*_REDUCE, call(c(0))],
    "min": [call(x(3, 4)), call(x(3, 4), 0), call(x(3, 4), 1, True), call(x(3), x(3))],
    "minimum": [call(x(3, 4), x(4)), call(x(3), x(3))],
    "mm": [call(x(3, 4), x(4, 5)), call(x(0, 4), x(4, 5))],
    "mul": _BINARY,
    "multiply": _BINARY[:2],
    "narrow": [call(x(5, 3), 0, 1, 2), call(x(5, 3), -1, 0, 3)],
    "ne": [call(i(3, 4), i(4)), call(x(3), 0.0)],
    "neg": _UNARY,
    "negative": _UNARY[:1],
    "norm": [
        call(pos(3, 4)),
        call(pos(3, 4), 1),
        call(pos(3, 4), 2, 1),
        call(pos(3, 4), 3, 0, True),
        call(pos(4), float("inf")),
    ],
    "not_equal": [call(x(3), 0.0)],
    "permute": [call(x(2, 3, 4), (2, 0, 1)), call(x(2, 3, 4), (-1, 0, 1)), call(x(), ())],
    "pow": [
        call(pos(3, 4), 3.0),
        call(x(3), 2),
        call(pos(3, 4), x(4)),
        call(pos(3), 0),
        call(pos(2), -1.5),
    ],
    "relu": [call(pos(3, 4)), call(x(3, low=-3, high=-0.5))],
    "remainder": [
        call(pos(3, 4), 0.3),
        call(i(5), i(5, low=1)),
        call(x(4, low=-3.0, high=-2.1), 2.0),
    ],
    "reshape": [
        call(x(2, 6), (3, 4)),
        call(x(2, 6), (-1,)),
        call(x(3, 4, transform="transposed"), (2, -1)),
        call(x(), (1, 1)),
        call(x(0, 2), (4, 0)),
    ],
    "select": [call(x(3, 4), 0, 1), call(x(3, 4), -1, -1)],
    "sigmoid": _UNARY,
    "sign": [call(pos(3, 4)), call(x(3, low=-3, high=-0.5))],
    "sin": _UNARY,
    "softmax": [call(x(3, 4), 1), call(x(3, 4), dim=0), call(x(2, 3, 4), -2), call(x(0, 3), 1)],
    "split": [call(x(5, 2), 2), call(x(5, 2), [1, 4]), call(x(2, 6), 4, dim=1)],
    "sqrt": _POSITIVE,
    "square": _UNARY,
    "squeeze": [
        call(x(1, 3, 1)),
        call(x(1, 3, 1), 0),
        call(x(1, 3, 1), 1),
        call(x(1, 3, 1), (0, 2)),
        call(x()),
    ],
    "stack": [call([x(2, 3), x(2, 3)]), call([x(2, 3), x(2, 3)], 1), call([x(2), x(2)], dim=-1)],
    "std": [
        call(x(3, 4)),
        call(x(3, 4), 1),
        call(x(3, 4), 0, unbiased=False),
        call(x(2, 3, 4), dim=(0, 1), keepdim=True),
    ],
    "sub": [*_BINARY, call(x(3), x(3), alpha=2.5)],
    "subtract": _BINARY[:2],
    "sum": [*_REDUCE, call(i(3, 4)), call(b(3, 4), 0), call(x(0, 3), 0)],
    "swapaxes": [call(x(2, 3, 4), 0, 2)],
    "swapdims": [call(x(2, 3, 4), 0, 2)],
    "t": [call(x(2, 3)), call(x(3)), call(x())],
    "tanh": _UNARY,
    "transpose": [call(x(2, 3, 4), 0, 2), call(x(2, 3), -1, -2), call(x(0, 3), 0, 1)],
    "true_divide": _DIVISION[:2],
    "unbind": [call(x(3, 4)), call(x(3, 4), 1)],
    "unsqueeze": [call(x(2, 3), 0), call(x(2, 3), -1), call(x(), 0)],
    "var": [
        call(x(3, 4)),
        call(x(3, 4), 1),
        call(x(3, 4), 0, unbiased=False),
        call(x(2, 3, 4), dim=(0, 1), keepdim=True, correction=2),
    ],
    "where": [call(b(3, 4), x(3, 4), x(4)), call(b(3, 1), x(4), 1.0)],
    "Tensor.contiguous": [call(x(3, 4, transform="transposed")), call(x(3))],
    "Tensor.expand": [call(x(1, 3), 2, 3), call(x(3, 1), 3, 4), call(x(3), 2, -1), call(x(), 2)],
    "Tensor.expand_as": [call(x(1, 3), c(2, 3))],
    "Tensor.view": [call(x(2, 6), 3, 4), call(x(2, 6), (4, -1))],
    "Tensor.where": [call(x(3, 4), b(3, 4), x(4))],
    "Tensor.type_as": [call(i(3), c(2))],
    **{
        f"Tensor.{name}": [call(i(3)), call(c(3))]
        for name in ("double", "float", "half", "bfloat16", "long", "int", "short", "char", "bool")
    },
    "Tensor.byte": [call(i(3))],
    "Tensor.to": [call(x(3))],
}
