"""Numerical derivatives along dimensions (`gradient`) and histograms with their edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.export import export
from dptrain.core.ops.elementwise import Sub
from dptrain.core.ops.join import _cat
from dptrain.core.ops.order import _Counting
from dptrain.core.ops.shape import Narrow, wrap_dim
from dptrain.core.results import results
from dptrain.core.tensor import Tensor, wrap


def _gradient(input: Any, *, spacing: Any = None, dim: Any = None, edge_order: int = 1) -> Any:
    """Estimates of the partial derivatives: second order inside, `edge_order` at both ends.

    Args:
        input: the values.
        spacing: a number, one a dimension, or the coordinates as one vector a dimension.
        dim: the dimensions; all by default.
        edge_order: 1 or 2.

    Returns:
        One tensor of the shape of `input` for each dimension.

    Raises:
        RuntimeError: fewer than edge_order + 1 values, or a spacing that fits not the dimensions.
    """
    if edge_order not in (1, 2):
        raise RuntimeError(
            f"gradient only supports edge_order=1 and edge_order=2, got {edge_order}"
        )
    if dim is None:
        dims = list(range(input.ndim))
    else:
        dims = [
            wrap_dim(d, input.ndim, "gradient")
            for d in (dim if isinstance(dim, Sequence) else [dim])
        ]
    if len(set(dims)) != len(dims):
        raise RuntimeError(f"gradient: dim {dims} appears multiple times in the list of dims")
    step = 1 if spacing is None else spacing
    steps = list(step) if isinstance(step, Sequence) else [step] * len(dims)
    if len(steps) != len(dims):
        raise RuntimeError(
            f"gradient: expected spacing to be unspecified, a scalar, or a list of length {len(dims)}, got a list of "
            f"length {len(steps)}"
        )
    return tuple(_slope(input, d, h, edge_order) for d, h in zip(dims, steps, strict=True))


@np.errstate(divide="ignore", invalid="ignore")  # where points coincide
def _slope(input: Any, dim: int, spacing: Any, edge_order: int) -> Any:
    size = input.shape[dim]
    if size <= edge_order:
        raise RuntimeError(
            f"gradient: each dimension size of the input must be at least edge_order + 1 = {edge_order + 1}, got {size}"
        )
    value = input if input.dtype.category == 2 else input.float()

    def part(start: int, length: int) -> Any:
        return Narrow.apply(value, dim, start, length)

    shape = [1] * input.ndim
    shape[dim] = -1
    xp = namespace_of(value._array)
    if isinstance(spacing, Tensor):
        if spacing.ndim != 1 or spacing.shape[0] != size:
            raise RuntimeError(
                f"gradient: expected each spacing tensor to be 1-D with one coordinate a value, got {list(spacing.shape)}"
            )
        points = spacing._array.astype(np.float64)
    else:
        points = xp.arange(size) * float(spacing)

    def weight(numbers: Any) -> Any:
        return wrap(xp.asarray(numbers, value._array.dtype).reshape(shape))

    h = np.diff(points)
    a, b = h[:-1], h[1:]
    if isinstance(spacing, Tensor):
        inner = (
            part(0, size - 2) * weight(-b / (a * (a + b)))
            + part(1, size - 2) * weight((b - a) / (a * b))
            + part(2, size - 2) * weight(a / (b * (a + b)))
        )
    else:
        inner = (part(2, size - 2) - part(0, size - 2)) * weight(1 / (a + b))
    if edge_order == 1:
        first = (part(1, 1) - part(0, 1)) * weight(1 / h[:1])
        last = (part(size - 1, 1) - part(size - 2, 1)) * weight(1 / h[-1:])
    else:
        first = _edge(part, range(3), h[:1], h[1:2], weight)
        last = _edge(part, range(size - 1, size - 4, -1), -h[-1:], -h[-2:-1], weight)
    return _cat([first, inner, last], dim)


def _edge(part: Any, places: Any, a: Any, b: Any, weight: Any) -> Any:
    """The slope of the parabola through three points at the first of them."""
    factors = (-(2 * a + b) / (a * (a + b)), (a + b) / (a * b), -a / (b * (a + b)))
    terms = [part(p, 1) * weight(f) for p, f in zip(places, factors, strict=True)]
    return terms[0] + terms[1] + terms[2]


export("gradient", function=_gradient)(Sub)

histogram_result = results("histogram", "hist", "bin_edges")


def _histogram(
    input: Any, bins: Any, *, range: Any = None, weight: Any = None, density: bool = False
) -> Any:
    """How many elements (or how much weight) lie in each interval, and the edges of the intervals.

    Args:
        input: floating point values of any shape.
        bins: how many equal intervals, or their edges as a rising vector.
        range: (lowest, highest) edge for a number of bins; by default those of the input.
        weight: a weight for each element.
        density: divide by the total and the widths, so that the integral is 1.

    Raises:
        RuntimeError: no bins, a bad range, or types or shapes that fit not.
    """
    array = input._array
    if input.dtype.category < 2:
        raise RuntimeError(f"histogram: not implemented for {input.dtype}; convert with .float()")
    if weight is not None and (weight.shape != input.shape or weight.dtype is not input.dtype):
        raise RuntimeError(
            "histogram: if weight tensor is provided it should have the same shape and dtype as the input tensor"
        )
    if isinstance(bins, Tensor):
        if bins.ndim != 1 or bins.dtype is not input.dtype or range is not None:
            raise RuntimeError(
                "histogram: edges must be a vector of the dtype of the input, given without range"
            )
        if not bins.shape[0]:
            raise RuntimeError("histogram: bins tensor should have at least 1 element, but got 0")
        edges = bins._array
    else:
        if bins <= 0:
            raise RuntimeError(f"histogram: bins must be > 0, but got {bins}")
        if range is None:
            range = (array.min(), array.max()) if array.size else (0.0, 1.0)
        if len(range) != 2:
            raise RuntimeError(f"histogram: range should have 2 elements, but got {len(range)}")
        low, high = range
        if not (np.isfinite(low) and np.isfinite(high)) or low > high:
            raise RuntimeError(f"histogram: range of [{low}, {high}] is not finite and rising")
        if low == high:
            low, high = low - 0.5, high + 0.5
        edges = namespace_of(array).linspace(low, high, bins + 1).astype(array.dtype)
    weights = None if weight is None else weight._array.reshape(-1)
    counts, _ = np.histogram(array.reshape(-1), edges, weights=weights, density=density)
    return histogram_result((wrap(counts.astype(array.dtype)), wrap(edges.copy())))


export(
    "histogram",
    methods=("histogram",),
    function=_histogram,
    kinds={"bins": "int | Tensor | tuple of Tensors", "range": "tuple of Numbers"},
)(_Counting)
