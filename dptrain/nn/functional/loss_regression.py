"""Losses for real-valued targets."""

from __future__ import annotations

import math
import warnings

from dptrain.core.arrays import namespace_of
from dptrain.core.callers import level_outside
from dptrain.core.ops.compare import Where
from dptrain.core.ops.linalg_norm import clamp_below
from dptrain.core.ops.loss_pointwise import HuberLoss, MseLoss, SmoothL1Loss
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.reduction import check_reduction, reduce_loss, reduction_of


def check_tensors(op: str, **values: object) -> None:
    """Refuse what is no Tensor.

    Raises:
        TypeError: one of the named values is none.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}(): argument {name!r} must be Tensor, not {type(value).__name__}")


def _check_sizes(op: str, input: Tensor, target: Tensor) -> None:
    check_tensors(op, input=input, target=target)
    if input.shape != target.shape:
        warnings.warn(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}). "
            "This will likely lead to incorrect results due to broadcasting. Please ensure they have the "
            "same size.",
            stacklevel=level_outside(),
        )


def _check_weight(weight: Tensor, input: Tensor) -> None:
    if weight.shape != input.shape:
        raise ValueError(
            f"Weights and input must have the same size, got {list(weight.shape)} and {list(input.shape)}"
        )


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """|input - target|, element by element.

    Args:
        input: predictions of any shape.
        target: values of the same shape.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" (over the sum of the weights, if given) or "sum".
        weight: factor of each element, of the shape of `input`.

    Raises:
        ValueError: an unknown reduction, or a weight of another shape.
    """
    _check_sizes("l1_loss", input, target)
    reduction = reduction_of(size_average, reduce, reduction)
    loss = (input - target).abs()
    if weight is None:
        return reduce_loss(loss, reduction)
    _check_weight(weight, input)
    if reduction == "mean":
        return (loss * weight).sum() / weight.sum()
    return reduce_loss(loss * weight, reduction)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """(input - target)^2, element by element.

    Args:
        input: predictions of any shape.
        target: values of the same shape.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" (over the sum of the weights, if given) or "sum".
        weight: factor of each element, of the shape of `input`.

    Raises:
        ValueError: an unknown reduction, or a weight of another shape.
    """
    _check_sizes("mse_loss", input, target)
    reduction = reduction_of(size_average, reduce, reduction)
    if weight is None:
        return MseLoss.apply(input, target, reduction)
    _check_weight(weight, input)
    loss = MseLoss.apply(input, target, "none") * weight
    return loss.sum() / weight.sum() if reduction == "mean" else reduce_loss(loss, reduction)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Squared where |input - target| < beta, absolute beyond. Source: Girshick, "Fast R-CNN", 2015.

    Args:
        input: predictions of any shape.
        target: values of the same shape.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
        beta: where the pieces meet, >= 0; 0 gives `l1_loss`.

    Raises:
        ValueError: an unknown reduction.
        RuntimeError: beta < 0.
    """
    _check_sizes("smooth_l1_loss", input, target)
    reduction = reduction_of(size_average, reduce, reduction)
    if not beta >= 0:
        raise RuntimeError(f"smooth_l1_loss does not support negative values for beta, got {beta}")
    if beta == 0:
        return reduce_loss((input - target).abs(), reduction)
    return SmoothL1Loss.apply(input, target, reduction, beta)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Squared where |input - target| <= delta, delta times the absolute value beyond.

    Args:
        input: predictions of any shape.
        target: values of the same shape.
        reduction: "none", "mean" or "sum".
        delta: where the pieces meet, > 0.
        weight: factor of each element, of the shape of `input`.

    Raises:
        ValueError: an unknown reduction, or a weight of another shape.
        RuntimeError: delta <= 0.
    """
    _check_sizes("huber_loss", input, target)
    check_reduction(reduction)
    if not delta > 0:
        raise RuntimeError(
            f"huber_loss does not support non-positive values for delta, got {delta}"
        )
    if weight is None:
        return HuberLoss.apply(input, target, reduction, delta).to(input.dtype)
    _check_weight(weight, input)
    return reduce_loss(HuberLoss.apply(input, target, "none", delta) * weight, reduction)


def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood of Poisson-distributed counts.

    Args:
        input: the expected count, or its logarithm with `log_input`.
        target: counts.
        log_input: see `input`.
        full: add Stirling's approximation of log(target!).
        size_average: older form of `reduction`.
        eps: keeps log(0) away where not `log_input`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an unknown reduction.
    """
    check_tensors("poisson_nll_loss", input=input, target=target)
    reduction = reduction_of(size_average, reduce, reduction)
    loss = input.exp() - target * input if log_input else input - target * (input + eps).log()
    if full:
        large = target.detach() > 1
        count = Where.apply(large, target, 1.0)
        stirling = count * count.log() - count + 0.5 * (2 * math.pi * count).log()
        loss = loss + Where.apply(large, stirling, 0.0)
    return reduce_loss(loss, reduction)


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood of normally distributed targets. Source: Nix and Weigend, 1994.

    Args:
        input: expected values.
        target: values.
        var: variances: of the shape of `input`, or with its last dimension missing or any one
            dimension 1, or a number.
        full: add the constant log(2 pi) / 2.
        eps: variances are at least that; the clamping is not seen by the gradient.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: a negative variance, a shape that does not fit, or an unknown reduction.
    """
    check_tensors("gaussian_nll_loss", input=input, target=target)
    xp = namespace_of(input._array)
    variance = (
        var if isinstance(var, Tensor) else wrap(xp.full(input.shape, var, input._array.dtype))
    )
    if (variance._array < 0).any():
        raise ValueError("var has negative entry/entries")
    if variance.shape != input.shape:
        if tuple(input.shape[:-1]) == tuple(variance.shape):
            variance = variance.unsqueeze(-1)
        elif (
            input.ndim != variance.ndim
            or sum(y for x, y in zip(input.shape, variance.shape, strict=True) if x != y) != 1
        ):
            raise ValueError(
                f"var is of incorrect size: {list(variance.shape)} for an input of {list(input.shape)}"
            )
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not valid")
    held = variance.detach()
    variance = variance + (clamp_below(held, eps) - held)
    loss = (variance.log() + (input - target).square() / variance) * 0.5
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduce_loss(loss, reduction)
