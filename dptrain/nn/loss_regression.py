"""Loss layers for real-valued targets."""

from __future__ import annotations

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.functional.reduction import reduction_of
from dptrain.nn.module import Module


class Loss(Module):
    """A loss with a reduction: "none", "mean" or "sum" (size_average and reduce are its older forms)."""

    reduction: str

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if size_average is not None or reduce is not None:
            reduction = reduction_of(size_average, reduce, reduction)
        self.reduction = reduction


class L1Loss(Loss):
    """|input - target|; see `functional.l1_loss`.

    Args:
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape."""
        return F.l1_loss(input, target, reduction=self.reduction)


class MSELoss(Loss):
    """Squared difference; see `functional.mse_loss`.

    Args:
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape."""
        return F.mse_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(Loss):
    """Squared near 0, absolute beyond; see `functional.smooth_l1_loss`.

    Args:
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
        beta: where the pieces meet.
    """

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        beta: float = 1.0,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape."""
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(Loss):
    """Squared near 0, delta times the absolute value beyond; see `functional.huber_loss`.

    Args:
        reduction: "none", "mean" or "sum".
        delta: where the pieces meet.

    Raises:
        TypeError: `delta` is no number.
    """

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction=reduction)
        if not isinstance(delta, (float, int)):
            raise TypeError(f"delta must be a float or int, got: {type(delta)}")
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape."""
        return F.huber_loss(input, target, self.reduction, self.delta)


class PoissonNLLLoss(Loss):
    """Negative log likelihood of Poisson-distributed counts; see `functional.poisson_nll_loss`.

    Args:
        log_input: the input is the logarithm of the expected count.
        full: add Stirling's approximation of log(target!).
        size_average: older form of `reduction`.
        eps: keeps log(0) away where not `log_input`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
    """

    def __init__(
        self,
        log_input: bool = True,
        full: bool = False,
        size_average: bool | None = None,
        eps: float = 1e-8,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.log_input = log_input
        self.full = full
        self.eps = eps

    def forward(self, log_input: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape."""
        return F.poisson_nll_loss(
            log_input, target, self.log_input, self.full, eps=self.eps, reduction=self.reduction
        )


class GaussianNLLLoss(Loss):
    """Negative log likelihood of normally distributed targets; see `functional.gaussian_nll_loss`.

    Args:
        full: add the constant log(2 pi) / 2.
        eps: variances are at least that.
        reduction: "none", "mean" or "sum".
    """

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.full = full
        self.eps = eps

    def forward(self, input: Tensor, target: Tensor, var: Tensor | float) -> Tensor:
        """Expected values, targets, variances."""
        return F.gaussian_nll_loss(input, target, var, self.full, self.eps, self.reduction)
