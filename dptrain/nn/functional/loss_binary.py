"""Losses for probabilities and yes-or-no targets."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np

from dptrain.core.callers import level_outside
from dptrain.core.capturing import refuse_if
from dptrain.core.ops.activation_smooth import LogSigmoid, Softplus
from dptrain.core.ops.compare import Where
from dptrain.core.ops.loss_pointwise import BinaryCrossEntropy, BinaryCrossEntropyWithLogits
from dptrain.core.tensor import Tensor
from dptrain.nn.functional.loss_regression import check_tensors
from dptrain.nn.functional.reduction import reduce_loss, reduction_of


def _times(loss: Tensor, weight: Tensor) -> Tensor:
    """`loss * weight`, where a weight may have no more elements than there are losses."""
    weighted = loss * weight
    if weighted.shape != loss.shape:
        raise RuntimeError(
            f"output with shape {list(loss.shape)} doesn't match the broadcast shape {list(weighted.shape)}"
        )
    return weighted


def _outside(name: str, x: Any) -> RuntimeError:
    return RuntimeError(
        f"binary_cross_entropy: all elements of {name} should be between 0 and 1, found "
        f"[{float(x.min()):g}, {float(x.max()):g}]"
    )


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy between probabilities: -(t log(p) + (1 - t) log(1 - p)), logarithms >= -100.

    Args:
        input: probabilities in [0, 1].
        target: probabilities of the same shape.
        weight: factor of each element, which broadcasts.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an unknown reduction, or shapes that differ.
        RuntimeError: a value outside [0, 1].
    """
    check_tensors("binary_cross_entropy", input=input, target=target)
    reduction = reduction_of(size_average, reduce, reduction)
    if input.shape != target.shape:
        raise ValueError(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}) is "
            "deprecated. Please ensure they have the same size."
        )
    for name, x in (("input", input._array), ("target", target._array)):
        if x.size:
            inside = np.logical_and(x.min() >= 0, x.max() <= 1)
            refuse_if(np.logical_not(inside), partial(_outside, name), x)
    if weight is None:
        return BinaryCrossEntropy.apply(input, target, reduction)
    loss = _times(BinaryCrossEntropy.apply(input, target, "none"), weight)
    return reduce_loss(loss.to(input.dtype), reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """`binary_cross_entropy` of sigmoid(input), without overflow.

    Args:
        input: logits.
        target: probabilities of the same shape.
        weight: factor of each element, which broadcasts.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".
        pos_weight: factor of the positive part, which broadcasts.

    Raises:
        ValueError: an unknown reduction, or shapes that differ.
    """
    op = "binary_cross_entropy_with_logits"
    check_tensors(op, input=input, target=target)
    reduction = reduction_of(size_average, reduce, reduction)
    if input.shape != target.shape:
        raise ValueError(
            f"Target size ({target.shape}) must be the same as input size ({input.shape})"
        )
    if weight is None and pos_weight is None:
        return BinaryCrossEntropyWithLogits.apply(input, target, reduction).to(target.dtype)
    if pos_weight is None:
        loss = BinaryCrossEntropyWithLogits.apply(input, target, "none")
    else:
        positive = _times(target, pos_weight - 1) + 1
        loss = (1 - target) * input - positive * LogSigmoid.apply(input)
    loss = loss if weight is None else _times(loss, weight)
    return reduce_loss(loss.to(target.dtype), reduction)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """The Kullback-Leibler divergence target (log(target) - input), element by element.

    Args:
        input: log-probabilities.
        target: probabilities, or their logarithms with `log_target`.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" (over all elements), "batchmean" (over the first dimension: the
            definition of the divergence) or "sum".
        log_target: see `target`.

    Raises:
        ValueError: an unknown reduction.
    """
    check_tensors("kl_div", input=input, target=target)
    if reduction == "mean" and size_average is None and reduce is None:
        warnings.warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support size."
            "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
            "'mean' will be changed to behave the same as 'batchmean' in the next major release.",
            stacklevel=level_outside(),
        )
    over_batch = reduction == "batchmean"
    reduction = reduction_of(size_average, reduce, "sum" if over_batch else reduction)
    if log_target:
        loss = target.exp() * (target - input)
    else:  # 0 log(0) is 0
        safe = Where.apply(target.detach() == 0, 1.0, target)
        loss = target * safe.log() - target * input
    reduced = reduce_loss(loss, reduction)
    return reduced / input.shape[0] if over_batch and input.ndim else reduced


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """log(1 + exp(-target * input)) for targets -1 and 1.

    Args:
        input: scores.
        target: -1 or 1, of the same shape.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an unknown reduction.
    """
    check_tensors("soft_margin_loss", input=input, target=target)
    reduction = reduction_of(size_average, reduce, reduction)
    margin = -target * input
    if margin.shape != input.shape:  # the target may be broadcast, not the input
        raise RuntimeError(
            f"soft_margin_loss: target of shape {list(target.shape)} doesn't match input of shape "
            f"{list(input.shape)}"
        )
    # An infinite threshold: log(1 + exp(x)) itself, whatever x.
    loss = Softplus.apply(margin, 1.0, float("inf")).to(input.dtype)
    return reduce_loss(loss, reduction)


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross entropy with logits, averaged over the classes: (N, C) with (N, C) -> (N,).

    Args:
        input: logits.
        target: 0 or 1 for each class.
        weight: (C,) factor of each class.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum", over the samples.

    Raises:
        ValueError: an unknown reduction.
    """
    check_tensors("multilabel_soft_margin_loss", input=input, target=target)
    reduction = reduction_of(size_average, reduce, reduction)
    loss = -(target * LogSigmoid.apply(input) + (1 - target) * LogSigmoid.apply(-input))
    if weight is not None:
        loss = loss * weight
    # Counted in the input, as in PyTorch: a target may have more dimensions.
    return reduce_loss(loss.sum(input.ndim - 1) / input.shape[-1], reduction)
