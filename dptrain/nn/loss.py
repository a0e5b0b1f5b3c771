"""Loss layers."""

from __future__ import annotations

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.module import Module


class _WeightedLoss(Module):
    """Holds the class weights as a buffer, so that they move with the module."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None, ignore_index: int, reduction: str) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction


class CrossEntropyLoss(_WeightedLoss):
    """Cross entropy between logits and targets; see `functional.cross_entropy`.

    Args:
        weight: (C,) factor of each class.
        ignore_index: positions with this class index do not count.
        reduction: "none", "mean" or "sum".
        label_smoothing: part of the target that is spread evenly over all classes.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction)
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, C, ...) logits with (N, ...) class indices or (N, C, ...) class probabilities."""
        return F.cross_entropy(
            input,
            target,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
        )


class NLLLoss(_WeightedLoss):
    """Negative log likelihood of log-probabilities; see `functional.nll_loss`.

    Args:
        weight: (C,) factor of each class.
        ignore_index: positions with this class index do not count.
        reduction: "none", "mean" or "sum".
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, ignore_index, reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, C, ...) log-probabilities with (N, ...) class indices."""
        return F.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)


class MSELoss(Module):
    """Squared difference; see `functional.mse_loss`.

    Args:
        reduction: "none", "mean" or "sum".
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape."""
        return F.mse_loss(input, target, self.reduction)
