"""The catalogue of operations. Importing it binds them to `Tensor` and fills the registry."""

from dptrain.core.ops import (
    activation,
    compare,
    conv,
    convert,
    elementwise,
    index,
    inplace,
    join,
    loss,
    matmul,
    pool,
    reduce,
    shape,
)

__all__ = [
    "activation",
    "compare",
    "conv",
    "convert",
    "elementwise",
    "index",
    "inplace",
    "join",
    "loss",
    "matmul",
    "pool",
    "reduce",
    "shape",
]
