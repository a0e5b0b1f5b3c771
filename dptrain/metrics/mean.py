"""The mean over the samples of all ranks, exact.

Owns: `Mean`. Must not know: how the ranks are connected.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from dptrain.core.arrays import to_host
from dptrain.core.creation import tensor
from dptrain.core.dtypes import float64
from dptrain.core.tensor import Tensor
from dptrain.metrics.metric import Counts, Metric

#: Every float64 is a whole multiple of 2**-1074. A sum of them is kept as such a whole number, in pieces
#: of 32 bits, so that the ranks' pieces can be added up as int64: exact, in whatever order.
_SCALE_BITS = 1074
_PIECES = 72


class Mean(Metric):
    """The mean of values such as the loss, each of which stands for a number of samples."""

    def update(self, value: Any, weight: Any = 1) -> Self:
        """Count values of this rank.

        Args:
            value: a number, or a tensor or array of numbers.
            weight: how many samples each of them stands for: for a batch's mean loss, the size of the
                batch. A whole number, or a tensor that broadcasts with `value`. With 0, the value does
                not matter.

        Raises:
            ValueError: a weight is negative or no whole number, or shapes do not fit.
        """
        values, weights = _numbers(value), _numbers(weight)
        if values.size != 1 or weights.size != 1:
            try:
                values, weights = np.broadcast_arrays(values, weights)
            except ValueError:
                raise ValueError(
                    f"Mean: weight of shape {list(weights.shape)} does not fit value of shape {list(values.shape)}"
                ) from None
        wrong = weights[~(np.isfinite(weights) & (weights >= 0) & (weights == np.floor(weights)))]
        if wrong.size:
            raise ValueError(f"Mean: weight must be a whole number of samples, got {wrong[0]}")
        for number, count in zip(values.ravel().tolist(), weights.ravel().tolist(), strict=True):
            self._add(number, int(count))
        return self

    def _add(self, number: float, count: int) -> None:
        self._samples += count
        if math.isfinite(number):
            top, bottom = number.as_integer_ratio()  # bottom is a power of two
            self._sum += (top * count) << (_SCALE_BITS + 1 - bottom.bit_length())
        elif count:
            self._not_finite[0 if math.isnan(number) else 1 if number > 0 else 2] += 1

    def _counted(self) -> Counts:
        pieces = np.frombuffer(abs(self._sum).to_bytes(4 * _PIECES, "little"), "<u4")
        signed = pieces.astype(np.int64) * (-1 if self._sum < 0 else 1)
        return np.concatenate([signed, [self._samples], self._not_finite])

    def _take(self, counts: Counts | None) -> None:
        found = np.zeros(_PIECES + 4, np.int64) if counts is None else counts
        self._sum, self._samples, self._not_finite = self._read(found)

    @staticmethod
    def _read(counts: Counts) -> tuple[int, int, list[int]]:
        """The sum as a multiple of 2**-1074, the samples, how many values were NaN, inf and -inf."""
        pieces, (samples, *not_finite) = counts[:_PIECES].tolist(), counts[_PIECES:].tolist()
        return sum(p << (32 * i) for i, p in enumerate(pieces)), samples, not_finite

    def _figure(self, counts: Counts) -> Tensor:
        total, samples, (nan, positive, negative) = self._read(counts)
        if samples == 0:
            raise self.nothing()
        if nan or (positive and negative):
            mean = math.nan
        elif positive or negative:
            mean = math.inf if positive else -math.inf
        else:
            mean = total / (samples << _SCALE_BITS)  # of whole numbers: rounded once
        return tensor(mean, dtype=float64)


def _numbers(value: Any) -> np.ndarray[Any, Any]:
    """As float64 (whole numbers: int64)."""
    array = to_host(value.detach()._array) if isinstance(value, Tensor) else np.asarray(value)
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float64)
