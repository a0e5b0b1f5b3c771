"""Loss layers for class indices."""

from __future__ import annotations

import warnings

from dptrain.core.callers import level_outside
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.loss_binary import WeightedLoss


class CrossEntropyLoss(WeightedLoss):
    """Cross entropy between logits and targets; see `functional.cross_entropy`.

    Args:
        weight: (C,) factor of each class.
        size_average: older form of `reduction`.
        ignore_index: positions with this class index do not count.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
        label_smoothing: part of the target that is spread evenly over all classes.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, C, ...) logits with (N, ...) class indices or (N, C, ...) class probabilities."""
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(WeightedLoss):
    """Negative log likelihood of log-probabilities; see `functional.nll_loss`.

    Args:
        weight: (C,) factor of each class.
        size_average: older form of `reduction`.
        ignore_index: positions with this class index do not count.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, C, ...) log-probabilities with (N, ...) class indices."""
        return F.nll_loss(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )


class NLLLoss2d(NLLLoss):
    """The old name of `NLLLoss` over images."""

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        warnings.warn(
            "`NLLLoss2d` has been deprecated. Please use `NLLLoss` instead as a drop-in replacement.",
            FutureWarning,
            stacklevel=level_outside(),
        )
        super().__init__(weight, size_average, ignore_index, reduce, reduction)
