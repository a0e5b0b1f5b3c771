"""Linear maps along one dimension: every result is a weighted sum of a few entries.

Padding by values of the image, average pools and interpolation are all of this kind, one dimension
after the other. A map is kept as layers in which no result occurs twice, so that a layer is one
vectorised addition; the transpose exchanges the roles of entries and results, which is the derivative.
Only entries of a result's own window are touched: an infinity elsewhere does not reach it.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from dptrain.core.arrays import HOST_TYPES, is_array, namespace_of
from dptrain.core.kernels import kernels_for
from dptrain.core.layout import order_of
from dptrain.core.op import Op


class Taps:
    """A sparse matrix (results, entries) as layers.

    Args:
        rows, cols: result and entry of each coefficient.
        weights: the coefficients; all 1 if None.
        shape: number of results and of entries.
    """

    def __init__(
        self, rows: np.ndarray, cols: np.ndarray, weights: np.ndarray | None, shape: tuple[int, int]
    ) -> None:
        self.rows, self.cols, self.weights, self.shape = rows, cols, weights, shape
        self._held: dict[Any, list[tuple[Any, Any, Any]]] = {}

    @cached_property
    def transposed(self) -> Taps:
        """The derivative."""
        other = Taps(self.cols, self.rows, self.weights, self.shape[::-1])
        other.__dict__["transposed"] = self
        return other

    @cached_property
    def _by_result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Where the entries of each result begin, the entries, and their weights."""
        order = np.argsort(self.rows, kind="stable")
        starts = np.searchsorted(self.rows[order], np.arange(self.shape[0] + 1))
        cols = np.ascontiguousarray(self.cols[order], np.int64)
        weights = None if self.weights is None else np.asarray(self.weights[order], np.float64)
        return starts.astype(np.int64), cols, weights

    @cached_property
    def layers(self) -> list[tuple[Any, Any, Any]]:
        """(results, entries, weights) with each result at most once."""
        starts, cols, weights = self._by_result
        counts, found = np.diff(starts), []
        for depth in range(max(counts.tolist(), default=0)):
            rows = np.flatnonzero(counts > depth)
            taps = starts[rows] + depth
            every = slice(None) if len(rows) == self.shape[0] else rows
            found.append((every, cols[taps], None if weights is None else weights[taps]))
        return found

    def _layers_in(self, xp: Any) -> list[tuple[Any, Any, Any]]:
        """The layers where the arrays of that namespace live; moved there once."""
        held = self._held.get(xp)
        if held is None:
            held = self._held[xp] = [
                tuple(xp.asarray(v) if is_array(v) else v for v in layer) for layer in self.layers
            ]
        return held

    def run(self, x: np.ndarray, dim: int) -> np.ndarray:
        """The results along `dim`; on the host they lie in memory as `x` does."""
        if type(x) in HOST_TYPES:
            return self._run_on_host(x, dim)
        xp = namespace_of(x)
        out = xp.zeros((*x.shape[:dim], self.shape[0], *x.shape[dim + 1 :]), x.dtype)
        lead = (slice(None),) * dim
        tail = (1,) * (x.ndim - dim - 1)
        for rows, cols, weights in self._layers_in(xp):
            part = x[(*lead, cols)]
            if weights is not None:
                part = part * weights.astype(x.dtype).reshape(-1, *tail)
            out[(*lead, rows)] += part
        return out

    def _run_on_host(self, x: np.ndarray, dim: int) -> np.ndarray:
        order = order_of(x)
        at = order.index(dim)
        lying = x.transpose(order)
        outer, inner = math.prod(lying.shape[:at]), math.prod(lying.shape[at + 1 :])
        matrices = lying.reshape(outer, x.shape[dim], inner)
        out = kernels_for(x).weighted_sums(matrices, *self._by_result)
        shape = (*lying.shape[:at], self.shape[0], *lying.shape[at + 1 :])
        back = tuple(order.index(d) for d in range(x.ndim))
        return out.reshape(shape).transpose(back)


def windows(starts: Any, ends: Any, weights: Any, entries: int) -> Taps:
    """Each result is the sum of entries start..end (exclusive) times its weight (all 1 if None)."""
    starts, counts = np.asarray(starts), np.asarray(ends) - np.asarray(starts)
    rows = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    factors = None if weights is None else np.repeat(np.asarray(weights, np.float64), counts)
    return Taps(rows, starts[rows] + within, factors, (len(starts), entries))


def selection(cols: Any, entries: int) -> Taps:
    """Each result is one entry."""
    cols = np.asarray(cols)
    return Taps(np.arange(len(cols)), cols, None, (len(cols), entries))


def check_floating(op: str, input: Any) -> None:
    """Weighted sums of integers would be cut to integers.

    Raises:
        NotImplementedError: the input is not of a floating point type.
    """
    if not input.is_floating_point():
        raise NotImplementedError(
            f"{op}: not implemented for input of {input.dtype}; convert it with .float()"
        )


class Stencil(Op):
    """A linear map along one dimension."""

    in_float32 = True

    def forward(self, input: Any, dim: int, taps: Taps) -> Any:
        self.dim, self.taps = dim, taps
        return taps.run(input, dim)

    def backward(self, grad: Any) -> Any:
        return Stencil.call(grad, self.dim, self.taps.transposed)


class ConstantPadNd(Op):
    """A constant around the input; negative sizes cut. `pads` is (before, after) of each dimension."""

    def forward(self, input: Any, pads: tuple[tuple[int, int], ...], value: float) -> Any:
        self.pads = pads
        inner = tuple(
            slice(max(0, -a), s - max(0, -b)) for s, (a, b) in zip(input.shape, pads, strict=True)
        )
        kept = input[inner]
        if not any(p > 0 for ab in pads for p in ab):
            return kept.copy()
        shape = [s + max(0, a) + max(0, b) for s, (a, b) in zip(kept.shape, pads, strict=True)]
        out = self.xp.full(shape, value, input.dtype)
        out[
            tuple(
                slice(max(0, a), max(0, a) + s) for s, (a, _) in zip(kept.shape, pads, strict=True)
            )
        ] = kept
        return out

    def backward(self, grad: Any) -> Any:
        return ConstantPadNd.call(grad, tuple((-a, -b) for a, b in self.pads), 0.0)
