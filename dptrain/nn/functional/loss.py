"""Losses: argument checks, reductions and what is composed of other operations."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.cuda import cannot_look
from dptrain.core.dtypes import FROM_NUMPY
from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.activation import LogSoftmax
from dptrain.core.ops.loss import CrossEntropy, NllLoss, all_count, check_classes, counted
from dptrain.core.ops.windows import MOST_DIMENSIONS
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.linear import linear
from dptrain.nn.functional.loss_regression import check_tensors
from dptrain.nn.functional.reduction import reduction_of

Shape = tuple[int, ...]


def _reduce(loss: Tensor, reduction: str, divisor: Any = None) -> Tensor:
    """Apply `reduction`; `divisor` replaces the number of elements in the mean."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.mean() if divisor is None else loss.sum() / divisor


def _check_operands(op: str, input: Tensor, target: Tensor) -> bool:
    """Refuse what no loss over classes takes; whether `target` is of probabilities rather than indices."""
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        check_tensors(op, input=input, target=target)
    x, y = input._array, target._array
    return _has_probabilities(op, x.shape, x.dtype, y.shape, y.dtype)


@lru_cache(maxsize=256)  # a training step has the same ones each time
def _has_probabilities(
    op: str, shape: Shape, kind: np.dtype[Any], given: Shape, given_kind: np.dtype[Any]
) -> bool:
    if not FROM_NUMPY[kind].is_floating_point:
        raise RuntimeError(
            f"{op}: not implemented for input of {FROM_NUMPY[kind]}; convert it with .float()"
        )
    if op == "cross_entropy" and FROM_NUMPY[given_kind].is_floating_point:
        return True
    _check_class_indices(op, shape, given, given_kind)
    return False


def _check_batch(shape: Shape, given: Shape) -> None:
    if not given or shape[0] != given[0]:
        raise ValueError(
            f"Expected input batch_size ({shape[0]}) to match target batch_size "
            f"({given[0] if given else 'none: target is a scalar'})."
        )


def _check_class_indices(op: str, shape: Shape, given: Shape, given_kind: np.dtype[Any]) -> None:
    """(C,) with () or (1,), or (N, C, d1, ...) with (N, d1, ...) int64."""
    if not shape:
        raise RuntimeError(f"{op}: input should be 1D or more, got shape []")
    if given_kind != np.int64:
        raise RuntimeError(
            f"{op}: expected scalar type Long (int64) for class indices but found {FROM_NUMPY[given_kind]}; "
            "convert the target with .long()"
        )
    if len(shape) == 1:
        if len(given) > 1:
            raise RuntimeError(
                f"{op}: 0D or 1D target tensor expected for 1D input, got shape {list(given)}"
            )
        if given not in ((), (1,)):
            raise ValueError(
                f"{op}: For 1D input, 1D target must have size 1, but got target size: {given[0]}"
            )
        return
    expected = (shape[0], *shape[2:])
    if given != expected:
        _check_batch(shape, given)
        raise RuntimeError(
            f"{op}: Expected target size {list(expected)}, got {list(given)} "
            f"(input of shape {list(shape)})"
        )


def _class_weights(op: str, weight: Tensor | None, input: Tensor) -> Any:
    """The raw class weights, checked to be one per class."""
    if weight is None:
        return None
    num_classes = input.shape[0] if input.ndim == 1 else input.shape[1]
    if weight.shape != (num_classes,):
        raise RuntimeError(
            f"{op}: weight tensor should be defined either for all {num_classes} classes or no classes "
            f"but got weight tensor of shape: {list(weight.shape)}"
        )
    if weight.dtype != input.dtype:
        raise RuntimeError(
            f"{op}: expected scalar type {input.dtype} for weight but found {weight.dtype}"
        )
    return weight._array


def _counted(target: np.ndarray, weight: Any, ignore_index: int, kind: np.dtype[Any]) -> Any:
    """The weight of all positions that count: the divisor of the mean."""
    counts = target != ignore_index
    return counted(counts, np.where(counts, target, 0), weight, kind)


def _nll(logp: Tensor, target: Tensor, weight: Any, ignore_index: int, reduction: str) -> Tensor:
    if logp.ndim == 1:
        single = _nll(logp.unsqueeze(0), target.unsqueeze(0), weight, ignore_index, reduction)
        return single.squeeze(0) if reduction == "none" else single
    loss: Tensor = NllLoss.apply(logp, target, weight, ignore_index, reduction)
    return loss


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood: (N, C, d1, ...) log-probabilities with (N, d1, ...) int64 classes.

    Args:
        input: log-probabilities; (C,) is one sample.
        target: class indices.
        weight: (C,) factor of each class.
        size_average: older form of `reduction`.
        ignore_index: positions with this target do not count.
        reduce: older form of `reduction`.
        reduction: "none", "sum", or "mean" (over the weights of the positions that count).

    Raises:
        ValueError: batch sizes differ, or an unknown reduction.
        RuntimeError: shapes or dtypes do not fit.
        IndexError: a target outside [0, C).
    """
    reduction = reduction_of(size_average, reduce, reduction)
    check_tensors("nll_loss", input=input, target=target)
    if not input.ndim:
        raise ValueError("nll_loss: input should be 1D or more, got shape []")
    if input.ndim > 1:
        _check_batch(tuple(input.shape), tuple(target.shape))
    _check_operands("nll_loss", input, target)
    raw_weight = _class_weights("nll_loss", weight, input)
    if input.ndim == 1:
        target = target.reshape(())
    return _nll(input, target, raw_weight, ignore_index, reduction)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: None = None,
) -> Tensor:
    """`cross_entropy` of linear logits: (N, D) with (C, d1, ..., D) and (N, d1, ...) -> scalar.

    Args:
        input: samples, (N, D) or (D,).
        linear_weight: (C, d1, ..., D).
        target: as for `cross_entropy`.
        linear_bias: (C, d1, ...).
        weight: (C,) factor of each class.
        reduction: "none", "sum" or "mean".
        ignore_index: positions with this class index do not count.
        label_smoothing: part of the target, in [0, 1], that is spread evenly over all classes.
        options: None (the logits are not computed in chunks).

    Raises:
        NotImplementedError: options.
        RuntimeError: shapes do not fit, or `ignore_index` with class probabilities.
    """
    if options is not None:
        raise NotImplementedError(
            "linear_cross_entropy: chunks are not supported; use options=None"
        )
    *classes, depth = linear_weight.shape
    _check_linear(input, linear_weight, linear_bias)
    if ignore_index is not None and target.shape == (*input.shape[:-1], *classes):
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    logits = linear(input, linear_weight.reshape(-1, depth), bias)
    logits = logits.reshape(*input.shape[:-1], *classes)
    ignored = -100 if ignore_index is None else ignore_index
    return cross_entropy(
        logits,
        target,
        weight,
        ignore_index=ignored,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _check_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if input.ndim not in (1, 2):
        raise RuntimeError(
            f"linear_cross_entropy: expected input with dimensionality 1 or 2, got {input.ndim}"
        )
    if weight.ndim < 2:
        raise RuntimeError(
            f"linear_cross_entropy: expected linear_weight with dimensionality at least 2, got {weight.ndim}"
        )
    if input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            "linear_cross_entropy: expected equal input and linear_weight last dimensions (in_features), got "
            f"{input.shape[-1]} and {weight.shape[-1]}"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise RuntimeError(
            f"linear_cross_entropy: expected linear_bias shape {tuple(weight.shape[:-1])}, got {tuple(bias.shape)}"
        )
    if weight.ndim > 2 and input.ndim == 1:
        raise RuntimeError(
            f"linear_cross_entropy: linear_weight of shape {tuple(weight.shape)} requires batched input (N, "
            f"{input.shape[-1]}), got {tuple(input.shape)}"
        )


def _all_count(target: Any, input: Tensor, ignore_index: int) -> bool:
    """Whether every target is a class, and none of them the one to ignore."""
    classes = input._array.shape[1]
    if all_count(target, classes, ignore_index):
        return True
    check_classes("cross_entropy", target, classes, ignore_index)
    return False


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy between logits and targets: (N, C, d1, ...) with (N, d1, ...) -> scalar.

    Args:
        input: unnormalised logits; (C,) is one sample.
        target: int64 class indices (N, d1, ...), or class probabilities of the shape of `input`.
        weight: (C,) factor of each class.
        size_average: older form of `reduction`.
        ignore_index: positions with this class index do not count.
        reduce: older form of `reduction`.
        reduction: "none", "sum" or "mean".
        label_smoothing: part of the target, in [0, 1], that is spread evenly over all classes.

    Raises:
        ValueError: batch sizes differ, an unknown reduction, or a smoothing outside [0, 1].
        RuntimeError: shapes or dtypes do not fit.
        IndexError: a target outside [0, C).
    """
    reduction = reduction_of(size_average, reduce, reduction)
    soft = _check_operands("cross_entropy", input, target)
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if soft:
        return _soft_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
    raw_weight = None if weight is None else _class_weights("cross_entropy", weight, input)
    ndim = input._array.ndim
    dim = 0 if ndim == 1 else 1
    if not dim:
        target = target.reshape(())
    plain = raw_weight is None and not label_smoothing and 2 <= ndim <= MOST_DIMENSIONS
    if plain and reduction != "none" and cannot_look():
        check_classes("cross_entropy", target._array, input.shape[1], ignore_index)
        return CrossEntropy.apply(input, target, reduction == "mean", ignore_index)
    if plain and reduction != "none" and _all_count(target._array, input, ignore_index):
        return CrossEntropy.apply(input, target, reduction == "mean")  # one fused pass
    logp = LogSoftmax.apply(input, dim)
    nll = _nll(logp, target, raw_weight, ignore_index, reduction)
    if not label_smoothing:
        return nll
    smooth = _smooth_part(logp, target._array, raw_weight, ignore_index, reduction, dim)
    return nll * (1 - label_smoothing) + smooth * (label_smoothing / input.shape[dim])


def _along_classes(weight: np.ndarray, ndim: int, dim: int) -> Tensor:
    """(C,) -> (C, 1, ...), which multiplies dimension `dim` of `ndim`."""
    return wrap(weight.reshape(-1, *[1] * (ndim - dim - 1)))


def _smooth_part(
    logp: Tensor, target: np.ndarray, weight: Any, ignore_index: int, reduction: str, dim: int
) -> Tensor:
    """-sum over the classes of weight * logp, for the positions that count."""
    weighted = logp if weight is None else logp * _along_classes(weight, logp.ndim, dim)
    zero = wrap(namespace_of(logp._array).zeros((), logp._array.dtype))
    loss = FUNCTIONS["where"](wrap(target != ignore_index), -weighted.sum(dim), zero)
    if reduction != "mean":
        return _reduce(loss, reduction)
    divisor = _counted(target, weight, ignore_index, logp._array.dtype)
    return _reduce(loss, reduction, wrap(divisor))


def _soft_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """Cross entropy with class probabilities of the shape of the logits."""
    if ignore_index >= 0:
        raise RuntimeError("cross_entropy: ignore_index is not supported for floating point target")
    if input.ndim > 1 and target.ndim and input.shape[0] != target.shape[0]:
        raise ValueError(
            f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({target.shape[0]})."
        )
    if input.shape != target.shape:
        raise RuntimeError(
            f"cross_entropy: Expected floating point type for target with class probabilities to have the "
            f"input's shape {list(input.shape)}, got {list(target.shape)}; class indices must be int64"
        )
    dim = 0 if input.ndim == 1 else 1
    num_classes = input.shape[dim]
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / num_classes
    product = LogSoftmax.apply(input, dim) * target
    raw_weight = _class_weights("cross_entropy", weight, input)
    if raw_weight is not None:
        product = product * _along_classes(raw_weight, input.ndim, dim)
    # The mean counts every position, whatever its weight, as in PyTorch.
    return _reduce(-product.sum(dim), reduction)
