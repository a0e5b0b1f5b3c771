"""What NCCL reduces by itself, and as what.

Owns: the table from our operators and element types to NCCL's. Must not know: the binding; constants
are given by their names in it.

NCCL has no 16-bit integers and no bitwise operators, and its maximum and minimum of floating point
values pass over NaN. Those the ranks gather and reduce for themselves, as over a network.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.comm.reduction import ReduceOp, dtype_name

#: How bytes travel where nothing is computed.
BYTES = "NCCL_UINT8"
#: NumPy's names of the element types that NCCL computes with.
TYPES = {
    "uint8": "NCCL_UINT8",
    "uint32": "NCCL_UINT32",
    "uint64": "NCCL_UINT64",
    "int8": "NCCL_INT8",
    "int32": "NCCL_INT32",
    "int64": "NCCL_INT64",
    "float16": "NCCL_FLOAT16",
    "bfloat16": "NCCL_BFLOAT16",
    "float32": "NCCL_FLOAT32",
    "float64": "NCCL_FLOAT64",
}
OPS = {
    ReduceOp.SUM: "NCCL_SUM",
    ReduceOp.AVG: "NCCL_AVG",
    ReduceOp.MAX: "NCCL_MAX",
    ReduceOp.MIN: "NCCL_MIN",
    ReduceOp.PRODUCT: "NCCL_PROD",
}
#: A bool is a byte of 0 or 1.
_OF_BOOLS = {
    ReduceOp.SUM: "NCCL_MAX",
    ReduceOp.MAX: "NCCL_MAX",
    ReduceOp.BOR: "NCCL_MAX",
    ReduceOp.PRODUCT: "NCCL_MIN",
    ReduceOp.MIN: "NCCL_MIN",
    ReduceOp.BAND: "NCCL_MIN",
}
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_EXTREMES = (ReduceOp.MAX, ReduceOp.MIN)


def native(op: ReduceOp, dtype: np.dtype[Any]) -> tuple[str, str] | None:
    """The names of NCCL's element type and operator; None where NCCL has none that does the same."""
    kind = dtype_name(dtype)
    if kind == "bool":
        return (BYTES, _OF_BOOLS[op]) if op in _OF_BOOLS else None
    if kind not in TYPES or op not in OPS or (op in _EXTREMES and kind in _FLOATS):
        return None
    return TYPES[kind], OPS[op]


def divides(dtype: np.dtype[Any], ranks: int) -> bool:
    """Whether NCCL's own average is used, which scales what each rank gives and then adds up.

    By a power of two that is exact. Sums of 16-bit types would overflow where their average does not.
    In the other cases the sum is divided, as on the host.
    """
    return dtype.itemsize == 2 or ranks & (ranks - 1) == 0


def neutral(op: ReduceOp, dtype: np.dtype[Any]) -> Any:
    """What a rank in `join()` gives to a reduction that NCCL makes: it changes nothing."""
    if op is ReduceOp.PRODUCT:
        return 1
    if op not in (ReduceOp.MAX, ReduceOp.MIN, ReduceOp.BAND):
        return 0
    if dtype_name(dtype) == "bool":
        return op is not ReduceOp.MAX
    limits = np.iinfo(dtype)
    return limits.min if op is ReduceOp.MAX else limits.max
