"""Generator of the Winograd transforms: blocks of vectors times a small matrix from both sides.

A block is a tile of an image (or of results, or of their gradients), a vector holds channels. The
matrices are those of `cook_toom`; their zeros, ones and shared halves become fewer instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import call, kernel
from dptrain.core.kernels.cook_toom import Matrix, transforms
from dptrain.core.kernels.deferred import intrinsic, ir, types
from dptrain.core.kernels.memory import address
from dptrain.core.kernels.micro import Emitter
from dptrain.core.kernels.target import target

#: Results of a tile along each side.
TILE = 4

_TRANSFORM = "void(int64, int64, int64, int64, int64, int64, int64, int64, int64)"


def _combination(emitter: Emitter, row: Sequence[Fraction], vectors: Sequence[Any]) -> Any:
    """The sum of row[k] * vectors[k]; None if all factors are 0."""
    builder, total = emitter.builder, None
    terms = [(c, v) for c, v in zip(row, vectors, strict=True) if c]
    for factor, vector in sorted(terms, key=lambda t: abs(t[0]) != 1):
        if total is None:
            total = vector if factor == 1 else builder.fmul(vector, emitter.constant(float(factor)))
        elif factor == 1:
            total = builder.fadd(total, vector)
        elif factor == -1:
            total = builder.fsub(total, vector)
        else:
            total = emitter.multiply_add(vector, emitter.constant(float(factor)), total)
    return total


def _product(emitter: Emitter, matrix: Matrix, vectors: Sequence[Any]) -> list[Any]:
    """matrix @ vectors. Rows of opposite points differ in some signs and share their two halves."""
    out: list[Any] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if out[i] is not None:
            continue
        for j in range(i + 1, len(matrix)):
            same = [(p + q) / 2 for p, q in zip(row, matrix[j], strict=True)]
            opposite = [(p - q) / 2 for p, q in zip(row, matrix[j], strict=True)]
            apart = not any(s and o for s, o in zip(same, opposite, strict=True))
            if apart and any(same) and any(opposite):
                plus = _combination(emitter, same, vectors)
                minus = _combination(emitter, opposite, vectors)
                out[i] = emitter.builder.fadd(plus, minus)
                out[j] = emitter.builder.fsub(plus, minus)
                break
        if out[i] is None:
            out[i] = _combination(emitter, row, vectors)
    return out


def _transform_intrinsic(matrix: Matrix) -> Any:
    """out = matrix @ in @ matrix^T + bias for square blocks of vectors, for a run of vectors."""
    size, results = len(matrix[0]), len(matrix)

    @intrinsic
    def emit(typing_context: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emitter = Emitter(builder, np.float32, target().width)
            named = [builder.extract_value(values[0], k) for k in range(9)]
            source, row, column, to, to_row, to_column, bias, bias_step, count = named

            def each(carried: list[Any]) -> list[Any]:
                source, to, bias = carried
                block = [
                    [
                        emitter.load(
                            builder.add(
                                source,
                                builder.add(
                                    builder.mul(row, ir.IntType(64)(i)),
                                    builder.mul(column, ir.IntType(64)(j)),
                                ),
                            )
                        )
                        for j in range(size)
                    ]
                    for i in range(size)
                ]
                sides = [_product(emitter, matrix, line) for line in block]
                columns = [
                    _product(emitter, matrix, [sides[i][j] for i in range(size)])
                    for j in range(results)
                ]
                start = emitter.load(bias)
                for i in range(results):
                    for j in range(results):
                        place = builder.add(
                            builder.mul(to_row, ir.IntType(64)(i)),
                            builder.mul(to_column, ir.IntType(64)(j)),
                        )
                        value = builder.fadd(columns[j][i], start)
                        emitter.store(value, builder.add(to, place))
                step = ir.IntType(64)(emitter.width)
                return [
                    builder.add(source, step),
                    builder.add(to, step),
                    builder.add(bias, bias_step),
                ]

            emitter.loop(count, [source, to, bias], each)
            return context.get_dummy_value()

        return types.void(arguments), generate

    return emit


emit: Any = None  # each compiled copy has its own


@kernel(signature=_TRANSFORM)
def _transform(source, row, column, to, to_row, to_column, bias, bias_step, count):
    emit((source, row, column, to, to_row, to_column, bias, bias_step, count))


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


@cache
def code(kind: str, taps: int) -> int:
    """The compiled transform for filters of `taps` by `taps`.

    Args:
        kind: "image": of tiles of the image; "output": back to results; "output_grad": of results'
            gradients; "filter": of filters; "filter_grad": back to filters' gradients.
        taps: size of the filters.
    """
    found = transforms(TILE, taps)
    matrix = {
        "image": found.image,
        "output": found.output,
        "output_grad": _transposed(found.output),
        "filter": found.taps,
        "filter_grad": _transposed(found.taps),
    }[kind]
    return _transform.address(None, f"{kind}{taps}", emit=_transform_intrinsic(matrix))


@kernel
def _everywhere(args, share, shares, worker):
    """One block per vector of columns; the places of a block lie a whole line apart."""
    transform, source, size, to, results = args[0], args[1], args[2], args[3], args[4]
    vectors, width, zeros = args[5], args[6], args[7]
    first = share * vectors // shares
    line = vectors * width
    call(
        transform,
        (
            source + first * width, size * line, line, to + first * width, results * line, line,
            zeros, 0, (share + 1) * vectors // shares - first,
        ),
    )  # fmt: skip


def everywhere(kind: str, taps: int, values: np.ndarray) -> np.ndarray:
    """(size * size, columns) -> (results * results, columns), columns whole vectors."""
    sizes = {"filter": (taps, TILE + taps - 1), "filter_grad": (TILE + taps - 1, taps)}
    size, results = sizes[kind]
    columns = values.shape[1]
    out = np.empty((results * results, columns), values.dtype)
    vectors = columns * 4 // target().width
    args = (
        *(code(kind, taps), address(values), size, address(out), results),
        *(vectors, target().width, address(_ZEROS)),
    )
    pool.run(_everywhere.address(), args, pool.shares(vectors, out.nbytes))
    return out


#: What is added where nothing is.
_ZEROS = np.zeros(64, np.float32)
