"""Figures of classifiers: accuracy, the confusion matrix.

Owns: what counts as right, and the checks of scores and classes. Must not know: how the ranks are connected.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from dptrain.comm.communicator import Communicator
from dptrain.core.arrays import to_host
from dptrain.core.creation import tensor
from dptrain.core.dtypes import float64
from dptrain.core.grad_mode import no_grad
from dptrain.core.lent_memory import from_numpy
from dptrain.core.spaced import arange
from dptrain.core.tensor import Tensor
from dptrain.metrics.metric import Counts, Metric


class Accuracy(Metric):
    """The share of samples whose class is among the `top_k` highest scores.

    Of equal scores the class of the lower index is the higher one, as for `argmax`; NaN is higher than
    every number, so that a sample whose scores are NaN is never right.

    Args:
        top_k: how many scores count.
        num_classes: the number of classes, where they are to be checked.
        ignore_index: samples of this class do not count.
        communicator: see `Metric`.

    Raises:
        ValueError: `top_k` or `num_classes` is not positive, or `top_k` the greater one.
    """

    def __init__(
        self,
        top_k: int = 1,
        *,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        if top_k < 1 or (num_classes is not None and num_classes < top_k):
            raise ValueError(
                f"Accuracy: top_k must be from 1 to the number of classes, got top_k={top_k}, num_classes={num_classes}"
            )
        self.top_k, self.num_classes, self.ignore_index = top_k, num_classes, ignore_index
        super().__init__(communicator)

    @no_grad()
    def update(self, output: Tensor, target: Tensor) -> Self:
        """Count this rank's samples.

        Args:
            output: scores (N, C, ...), such as logits; or predicted classes (N, ...), integers.
            target: classes (N, ...), integers from 0 to C - 1.

        Raises:
            TypeError: no tensors, or `target` of another type.
            ValueError: shapes that do not fit, fewer classes than `top_k`, a class out of range.
        """
        classes = _check("Accuracy", output, target, self.num_classes)
        if classes is None:
            if self.top_k > 1:
                raise ValueError(
                    f"Accuracy: top_k={self.top_k} needs scores (N, C, ...), got classes of shape {list(output.shape)}"
                )
            right = output.eq(target)
        else:
            if classes < self.top_k:
                raise ValueError(
                    f"Accuracy: top_k={self.top_k} is more than the {classes} classes of scores of shape {list(output.shape)}"
                )
            right = _is_right(output, target, self.top_k)
        hits, true = to_host(right._array), to_host(target._array)
        if self.ignore_index is not None:
            counted = true != self.ignore_index
            hits, true = hits[counted], true[counted]
        _check_range("Accuracy", true, self.num_classes if classes is None else classes)
        self._counts += np.array([np.count_nonzero(hits), hits.size])
        return self

    def _counted(self) -> Counts:
        return self._counts

    def _take(self, counts: Counts | None) -> None:
        self._counts = np.zeros(2, np.int64) if counts is None else counts

    def _figure(self, counts: Counts) -> Tensor:
        right, total = counts.tolist()
        if total == 0:
            raise self.nothing()
        return tensor(right / total, dtype=float64)


class ConfusionMatrix(Metric):
    """How many samples of each class (row) were taken for each class (column).

    Args:
        num_classes: the number of classes.
        normalize: None for counts (int64); "true" for shares of each row, "pred" of each column, "all"
            of all samples (float64). Shares of a class without samples are 0.
        ignore_index: samples of this class do not count.
        communicator: see `Metric`.

    Raises:
        ValueError: no class, or another `normalize`.
    """

    _SUMMED: ClassVar = {"true": (1,), "pred": (0,), "all": (0, 1)}

    def __init__(
        self,
        num_classes: int,
        *,
        normalize: str | None = None,
        ignore_index: int | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"ConfusionMatrix: num_classes must be positive, got {num_classes}")
        if normalize is not None and normalize not in self._SUMMED:
            raise ValueError(
                f"ConfusionMatrix: normalize must be None, 'true', 'pred' or 'all', got {normalize!r}"
            )
        self.num_classes, self.normalize, self.ignore_index = num_classes, normalize, ignore_index
        super().__init__(communicator)

    @no_grad()
    def update(self, output: Tensor, target: Tensor) -> Self:
        """Count this rank's samples.

        Args:
            output: scores (N, C, ...) of all classes, of which the highest is taken; or predicted
                classes (N, ...), integers.
            target: classes (N, ...), integers.

        Raises:
            TypeError: no tensors, or `target` of another type.
            ValueError: shapes that do not fit, or a class out of range.
        """
        if _check("ConfusionMatrix", output, target, self.num_classes) is not None:
            output = output.argmax(1) if output.numel() else target
        predicted, true = (to_host(t.long()._array).ravel() for t in (output, target))
        if self.ignore_index is not None:
            counted = true != self.ignore_index
            predicted, true = predicted[counted], true[counted]
        for classes in (predicted, true):
            _check_range("ConfusionMatrix", classes, self.num_classes)
        places = true * self.num_classes + predicted
        found = np.bincount(places, minlength=self.num_classes**2)
        self._counts += found.reshape(self._counts.shape)
        return self

    def _counted(self) -> Counts:
        return self._counts

    def _take(self, counts: Counts | None) -> None:
        size = (self.num_classes, self.num_classes)
        self._counts = np.zeros(size, np.int64) if counts is None else counts

    def _figure(self, counts: Counts) -> Tensor:
        if not counts.any():
            raise self.nothing()
        if self.normalize is None:
            return from_numpy(counts)
        of = counts.sum(self._SUMMED[self.normalize], keepdims=True)
        return from_numpy(counts / np.maximum(of, 1))


def _check(name: str, output: Any, target: Any, num_classes: int | None) -> int | None:
    """The number of classes of which `output` holds scores; None where it holds classes."""
    for argument, value in (("output", output), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(value).__name__}")
    if target.dtype.is_floating_point:
        raise TypeError(f"{name}: target must hold classes (integers), got dtype {target.dtype}")
    if output.shape == target.shape:
        if output.dtype.is_floating_point:
            raise TypeError(
                f"{name}: output of shape {list(output.shape)} and dtype {output.dtype} has the shape of target; for "
                "two classes give the predicted class, such as (output > 0.5).long()"
            )
        return None
    fits = output.ndim == target.ndim + 1 and output.ndim > 1
    if not fits or (output.shape[0], *output.shape[2:]) != tuple(target.shape):
        raise ValueError(
            f"{name}: output must have shape (N, C, ...) or (N, ...) for target (N, ...), got "
            f"{list(output.shape)} for {list(target.shape)}"
        )
    if num_classes is not None and output.shape[1] != num_classes:
        raise ValueError(
            f"{name}: expected scores of {num_classes} classes, got shape {list(output.shape)}"
        )
    return int(output.shape[1])


def _is_right(output: Tensor, target: Tensor, top_k: int) -> Tensor:
    """Whether less than `top_k` classes have a higher score than that of `target`."""
    if output.numel() == 0:
        return target.new_zeros(target.shape).bool()
    if top_k == 1:
        best, index = output.max(1)
        return index.eq(target) & best.eq(best)  # the maximum is NaN where any score is
    classes = output.shape[1]
    target = target.clamp(0, classes - 1).long().unsqueeze(1)
    own = output.gather(1, target)
    index = arange(classes, device=output.device).reshape(-1, *[1] * (output.ndim - 2))
    higher = output.le(own).logical_not() | (output.eq(own) & index.lt(target))
    return higher.sum(1).lt(top_k)


def _check_range(name: str, classes: np.ndarray[Any, Any], count: int | None) -> None:
    """Refuse classes that are not among `count`; None: negative ones."""
    if classes.size == 0:
        return
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or (count is not None and high >= count):
        wrong = low if low < 0 else high
        expected = "0 or more" if count is None else f"from 0 to {count - 1}"
        raise ValueError(f"{name}: class {wrong} is out of range; expected classes {expected}")
