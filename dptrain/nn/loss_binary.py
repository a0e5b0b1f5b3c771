"""Loss layers for probabilities, yes-or-no targets and label sequences."""

from __future__ import annotations

from collections.abc import Sequence

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.loss_regression import Loss


class WeightedLoss(Loss):
    """Holds weights as a buffer, so that they move with the module."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)


class BCELoss(WeightedLoss):
    """Binary cross entropy between probabilities; see `functional.binary_cross_entropy`.

    Args:
        weight: factor of each element, which broadcasts.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape with values in [0, 1]."""
        return F.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(Loss):
    """Binary cross entropy of logits; see `functional.binary_cross_entropy_with_logits`.

    Args:
        weight: factor of each element, which broadcasts.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
        pos_weight: factor of the positive part, which broadcasts.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits, and probabilities of the same shape."""
        return F.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class KLDivLoss(Loss):
    """Kullback-Leibler divergence; see `functional.kl_div`.

    Args:
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean", "batchmean" or "sum".
        log_target: the target is given as logarithms.
    """

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        log_target: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Log-probabilities, and probabilities of the same shape."""
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class SoftMarginLoss(Loss):
    """log(1 + exp(-target * input)); see `functional.soft_margin_loss`.

    Args:
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Scores, and -1 or 1 in the same shape."""
        return F.soft_margin_loss(input, target, reduction=self.reduction)


class MultiLabelSoftMarginLoss(WeightedLoss):
    """Binary cross entropy over classes; see `functional.multilabel_soft_margin_loss`.

    Args:
        weight: (C,) factor of each class.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits, and (N, C) of 0 and 1."""
        return F.multilabel_soft_margin_loss(input, target, self.weight, reduction=self.reduction)


class CTCLoss(Loss):
    """Connectionist temporal classification; see `functional.ctc_loss`.

    Args:
        blank: the class that stands for no label.
        reduction: "none", "mean" or "sum".
        zero_infinity: losses of targets that are too long count as 0.
    """

    def __init__(
        self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False
    ) -> None:
        super().__init__(reduction=reduction)
        self.blank = blank
        self.zero_infinity = zero_infinity

    def forward(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor | Sequence[int],
        target_lengths: Tensor | Sequence[int],
    ) -> Tensor:
        """(T, N, C) log-probabilities, (N, S) labels, (N,) lengths of both."""
        return F.ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            self.reduction,
            self.zero_infinity,
        )
