"""How strided arrays are products of matrices as cuBLAS is asked for them.

cuBLAS knows matrices by columns: a row-major array is its matrix transposed. A matrix needs unit stride along one
of its dimensions and room for it along the other; a batch needs one step from matrix to matrix. Only operands
that have neither are copied.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

Sizes = tuple[int, ...]


class Plan(NamedTuple):
    """A product as cuBLAS is asked for it, first and second operand as in C = A B.

    Attributes:
        shape: of the result, without the dimensions that vectors lack.
        copies: which operands have to be contiguous first (the rest is of no meaning then).
        sizes: rows, columns and terms of one product.
        transposed: which operands lie by columns.
        leads: elements from row to row, or from column to column.
        steps: elements from matrix to matrix.
        matrices: how many products.
    """

    shape: Sizes
    copies: tuple[bool, bool] = (False, False)
    sizes: tuple[int, int, int] = (0, 0, 0)
    transposed: tuple[bool, bool] = (False, False)
    leads: tuple[int, int] = (1, 1)
    steps: tuple[int, int] = (0, 0)
    matrices: int = 1


def lead_of(rows: int, columns: int, down: int, right: int) -> tuple[int, bool] | None:
    """Of a matrix with these steps, in elements: the leading dimension, whether it lies by columns.

    None where cuBLAS cannot take it.
    """
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return max(down if rows > 1 else 1, columns, 1), False
    if (down == 1 or rows == 1) and (right >= rows or columns == 1):
        return max(right if columns > 1 else 1, rows, 1), True
    return None


def _one_step(sizes: Sizes, steps: Sizes) -> int | None:
    """The step of one dimension that stands for all of these; None if none can."""
    step = span = None
    for size, there in zip(reversed(sizes), reversed(steps), strict=True):
        if size == 1:
            continue
        if there < 0 or (step is not None and there != span):
            return None
        step, span = there if step is None else step, size * there
    return step or 0


@lru_cache(maxsize=8192)
def plan(a_shape: Sizes, a_strides: Sizes, b_shape: Sizes, b_strides: Sizes, itemsize: int) -> Plan:
    """How two arrays of these shapes and strides (in bytes), none of them empty, are multiplied.

    Raises:
        ValueError: batches that cannot be broadcast against each other.
    """
    (m, k), n = a_shape[-2:], b_shape[-1]
    batch = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    shape = (*batch, m, n)
    a_steps, b_steps = (
        _steps(batch, s, t, itemsize) for s, t in ((a_shape, a_strides), (b_shape, b_strides))
    )
    a_lead, b_lead = lead_of(m, k, *a_steps[-2:]), lead_of(k, n, *b_steps[-2:])
    if b_lead is not None and not any(b_steps[:-2]):
        # One matrix on the right: the batch is so many more rows of the left one.
        rows, row = math.prod(batch) * m, _one_step((*batch, m), a_steps[:-1])
        folded = None if row is None else lead_of(rows, k, row, a_steps[-1])
        if folded is not None:
            (la, ta), (lb, tb) = folded, b_lead
            return Plan(shape, sizes=(rows, n, k), transposed=(ta, tb), leads=(la, lb))
    a_step, b_step = _one_step(batch, a_steps[:-2]), _one_step(batch, b_steps[:-2])
    copies = (a_lead is None or a_step is None, b_lead is None or b_step is None)
    if a_lead is None or b_lead is None or a_step is None or b_step is None:
        return Plan(shape, copies)
    return Plan(
        shape,
        copies,
        (m, n, k),
        (a_lead[1], b_lead[1]),
        (a_lead[0], b_lead[0]),
        (a_step, b_step),
        math.prod(batch),
    )


def _steps(batch: Sizes, shape: Sizes, strides: Sizes, itemsize: int) -> Sizes:
    """Steps in elements over the whole batch; those that are no whole number of elements, as -1."""
    own = [t // itemsize if t % itemsize == 0 else -1 for t in strides]
    lead = [0 if size == 1 else t for size, t in zip(shape[:-2], own[:-2], strict=True)]
    return (0,) * (len(batch) - len(lead)) + (*lead, *own[-2:])
