"""Reductions over the arrays of several ranks, always in rank order.

Owns: the reduction operators, which element types they take, and the block-wise arithmetic.
Must not know: where the arrays came from (threads, shared memory, a network).

Summing in rank order makes a result independent of timing and equal, bit for bit, on every rank and
with every backend that reduces here.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from dptrain.core.kernels import add_into_both


class ReduceOp(enum.Enum):
    """How the values of the ranks are combined.

    `AVG` is the sum divided by the number of ranks that took part, for floating point types only.
    `BAND`, `BOR` and `BXOR` combine the bits of integers and bools. On `bool`, `SUM` and `MAX` are
    the logical or, `PRODUCT` and `MIN` the logical and.
    """

    SUM = "sum"
    AVG = "avg"
    MAX = "max"
    MIN = "min"
    PRODUCT = "product"
    BAND = "band"
    BOR = "bor"
    BXOR = "bxor"

    @classmethod
    def of(cls, value: ReduceOp | str) -> ReduceOp:
        """The member that `value` names: a member, or a string such as "sum" in any case.

        Raises:
            ValueError: there is no such operator.
        """
        if isinstance(value, cls):
            return value
        # A table: making a member of its value takes longer.
        found = _BY_NAME.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            known = ", ".join(map(repr, _BY_NAME))
            raise ValueError(f"{value!r} is no reduction; expected one of {known}")
        return found


_BY_NAME: dict[str, ReduceOp] = {member.value: member for member in ReduceOp}

# The position in this table travels in headers, so that a rank can act for one that has run out.
DTYPE_NAMES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
)
_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
# Sums of 16-bit floats accumulate in float32: in their own type they would stop growing at 2048.
_ACCUMULATE_FLOAT32 = frozenset({"float16", "bfloat16"})
_BINARY: dict[ReduceOp, np.ufunc] = {
    ReduceOp.SUM: np.add,
    ReduceOp.AVG: np.add,
    ReduceOp.MAX: np.maximum,
    ReduceOp.MIN: np.minimum,
    ReduceOp.PRODUCT: np.multiply,
    ReduceOp.BAND: np.bitwise_and,
    ReduceOp.BOR: np.bitwise_or,
    ReduceOp.BXOR: np.bitwise_xor,
}
_BITWISE = (ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR)  # to hash a member takes longer
# Elements per pass: a block of every operand stays in the core's own cache between the passes.
BLOCK_ELEMENTS = 64 * 1024
#: Elements below which NumPy has done its part before a kernel is called.
_WORTH_A_KERNEL = 4096


def dtype_from_name(name: str) -> np.dtype[Any]:
    """The element type called `name`, "bfloat16" included."""
    if name == "bfloat16":
        import ml_dtypes  # Not a cost of import: few programs communicate bfloat16.

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which NumPy makes up anew, in some microseconds, every time it is asked."""
    return dtype.name


def check_reducible(op: ReduceOp, dtype: np.dtype[Any]) -> None:
    """Refuse an operator that has no meaning for `dtype`.

    Raises:
        TypeError: `AVG` of integers or bools, or the bits of floating point values.
    """
    if op in _BITWISE and dtype_name(dtype) in _FLOATS:
        raise TypeError(
            f"ReduceOp.{op.name} was asked for {dtype_name(dtype)} values; it combines the bits of "
            "integers and bools only"
        )
    if op is ReduceOp.AVG and dtype_name(dtype) not in _FLOATS:
        raise TypeError(
            f"ReduceOp.AVG was asked for {dtype_name(dtype)} values, which cannot hold an average; "
            "reduce with ReduceOp.SUM and divide, or convert to a floating point type"
        )


def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The element type in which sums of `dtype` are accumulated."""
    return np.dtype(np.float32) if dtype_name(dtype) in _ACCUMULATE_FLOAT32 else dtype


def reduce_arrays(
    sources: Sequence[np.ndarray[Any, Any]],
    targets: Sequence[np.ndarray[Any, Any]],
    op: ReduceOp,
) -> None:
    """Combine `sources` in their order and write the result into every target.

    Args:
        sources: one flat array of each rank that takes part, all of one length and type.
        targets: flat arrays of that length and type; each is a source itself or overlaps none.
        op: the operator; `AVG` divides by `len(sources)`.
    """
    if type(sources[0]) is not np.ndarray:
        _reduce_whole(sources, targets, op)
        return
    if len(sources) == 2 and targets is sources and op in (ReduceOp.SUM, ReduceOp.AVG):
        # The buckets of two ranks of a host, each of which reduces a half for both.
        compiled = add_into_both(sources[0].dtype)
        if compiled is not None and sources[0].size >= _WORTH_A_KERNEL:
            compiled(*sources, op is ReduceOp.AVG)
            return
    # What the values are is the caller's business: an inf or an overflow travels, it does not warn.
    with np.errstate(all="ignore"):
        if dtype_name(sources[0].dtype) in _ACCUMULATE_FLOAT32:
            _reduce_16_bit(sources, targets, op)
        else:
            _reduce_blocks(sources, targets, op)


def _reduce_whole(sources: Sequence[Any], targets: Sequence[Any], op: ReduceOp) -> None:
    """The same over arrays of a GPU, which has no use for blocks that fit a cache."""
    kind, combine = sources[0].dtype, _BINARY[op]
    total = sources[0].astype(accumulator(kind))
    for source in sources[1:]:
        combine(total, source.astype(total.dtype), out=total)
    if op is ReduceOp.AVG:
        divide(total, len(sources))
    for target in targets:
        target[...] = total.astype(kind)


def _reduce_blocks(
    sources: Sequence[np.ndarray[Any, Any]], targets: Sequence[np.ndarray[Any, Any]], op: ReduceOp
) -> None:
    combine, size = _BINARY[op], sources[0].size
    # The first target doubles as the accumulator, unless that would overwrite an operand that is
    # still to be read (the first two are read before the first write to their elements).
    first = targets[0]
    own = any(np.may_share_memory(first, source) for source in sources[2:])
    scratch = np.empty(min(size, BLOCK_ELEMENTS), first.dtype) if own else None
    for begin in range(0, size, BLOCK_ELEMENTS):
        block = slice(begin, min(begin + BLOCK_ELEMENTS, size))
        total = first[block] if scratch is None else scratch[: block.stop - begin]
        if len(sources) == 1:
            if first is not sources[0]:
                np.copyto(total, sources[0][block])
        else:
            combine(sources[0][block], sources[1][block], out=total)
        for source in sources[2:]:
            combine(total, source[block], out=total)
        if op is ReduceOp.AVG and len(sources) > 1:
            divide(total, len(sources))
        for target in targets if scratch is not None else targets[1:]:
            np.copyto(target[block], total)


def _reduce_16_bit(
    sources: Sequence[np.ndarray[Any, Any]], targets: Sequence[np.ndarray[Any, Any]], op: ReduceOp
) -> None:
    combine, size = _BINARY[op], sources[0].size
    total_block = np.empty(min(size, BLOCK_ELEMENTS), np.float32)
    operand_block = np.empty_like(total_block)
    for begin in range(0, size, BLOCK_ELEMENTS):
        block = slice(begin, min(begin + BLOCK_ELEMENTS, size))
        total = total_block[: block.stop - begin]
        operand = operand_block[: block.stop - begin]
        np.copyto(total, sources[0][block], casting="unsafe")
        for source in sources[1:]:
            np.copyto(operand, source[block], casting="unsafe")
            combine(total, operand, out=total)
        if op is ReduceOp.AVG:
            divide(total, len(sources))
        for target in targets:
            np.copyto(target[block], total, casting="unsafe")


def divide(total: np.ndarray[Any, Any], count: int) -> None:
    """Divide in place by the number of ranks."""
    if count & (count - 1) == 0:
        # The inverse of a power of two is exact, and so is the product: same bits, half the time.
        np.multiply(total, total.dtype.type(1.0 / count), out=total)
    else:
        np.divide(total, total.dtype.type(count), out=total)
