"""Losses that ask for a distance: between scores, between classes, between vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.ops.compare import Where
from dptrain.core.ops.elementwise import Minimum
from dptrain.core.ops.index import Gather
from dptrain.core.ops.linalg_norm import clamp_below
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.distance import pairwise_distance
from dptrain.nn.functional.loss_regression import check_tensors
from dptrain.nn.functional.reduction import check_reduction, reduce_loss, reduction_of


def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """max(0, -target (input1 - input2) + margin).

    Args:
        input1: scores.
        input2: scores of the same number of dimensions.
        target: 1 where input1 should rank higher, -1 where input2 should.
        margin: how much higher.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an unknown reduction.
        RuntimeError: numbers of dimensions that differ.
    """
    check_tensors("margin_ranking_loss", input1=input1, input2=input2, target=target)
    reduction = reduction_of(size_average, reduce, reduction)
    if input1.ndim != input2.ndim or input1.ndim != target.ndim:
        raise RuntimeError(
            f"margin_ranking_loss : All input tensors should have same dimension but got sizes: input1: "
            f"{input1.shape}, input2: {input2.shape}, target: {target.shape} "
        )
    return reduce_loss(clamp_below(-target * (input1 - input2) + float(margin), 0), reduction)


def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """input where the target is 1, max(0, margin - input) where it is -1.

    Args:
        input: distances.
        target: 1 or -1.
        margin: distance beyond which dissimilar pairs cost nothing.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an unknown reduction.
    """
    check_tensors("hinge_embedding_loss", input=input, target=target)
    reduction = reduction_of(size_average, reduce, reduction)
    far = Where.apply(target != 1, clamp_below(margin - input, 0), 0.0)
    return reduce_loss(far + Where.apply(target != -1, input, 0.0), reduction)


def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 - cos for similar pairs (target 1), max(0, cos - margin) for others (-1): (N, D), (N,) -> (N,).

    Args:
        input1: vectors, (N, D) or (D,).
        input2: vectors of the same shape.
        target: (N,) or () of 1 and -1.
        margin: cosine below which dissimilar pairs cost nothing.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an unknown reduction.
        RuntimeError: shapes that do not fit.
    """
    check_tensors("cosine_embedding_loss", input1=input1, input2=input2, target=target)
    reduction = reduction_of(size_average, reduce, reduction)
    if target.ndim not in (0, 1):
        raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
    dims = target.ndim + 1
    if input1.ndim != dims or input2.ndim != dims:
        raise RuntimeError(
            f"{target.ndim}D target tensor expects {dims}D input tensors, but found inputs with sizes "
            f"{list(input1.shape)} and {list(input2.shape)}."
        )
    product = (input1 * input2).sum(-1)
    # The constant of PyTorch's, so that its derivative at 0 is PyTorch's too.
    squares = [(x * x).sum(-1) + 1e-12 for x in (input1, input2)]
    cosine = product / (squares[0] * squares[1]).sqrt()
    near = Where.apply(target == 1, 1 - cosine, 0.0)
    far = Where.apply(target == -1, clamp_below(cosine - margin, 0), 0.0)
    return reduce_loss(near + far, reduction)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin): (N, D) or (D,) each.

    Source: Balntas et al., "Learning local feature descriptors with triplets", 2016.

    Args:
        anchor: vectors.
        positive: vectors that should be near.
        negative: vectors that should be far.
        margin: by how much, > 0.
        p: order of the norm.
        eps: added to differences; see `pairwise_distance`.
        swap: take d(positive, negative) where that is smaller.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an unknown reduction, or margin <= 0.
        RuntimeError: numbers of dimensions that differ.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return pairwise_distance(a, b, p, eps)

    return _triplet(anchor, positive, negative, distance, margin, swap, reduction)


def _triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    margin: float,
    swap: bool,
    reduction: str,
) -> Tensor:
    if margin <= 0:
        raise ValueError(f"margin must be greater than 0, got {margin}")
    check_tensors("triplet_margin_loss", anchor=anchor, positive=positive, negative=negative)
    dims = (anchor.ndim, positive.ndim, negative.ndim)
    if len(set(dims)) != 1:
        raise RuntimeError(
            "The anchor, positive, and negative tensors are expected to have the same number of dimensions, but "
            f"got: anchor {dims[0]}D, positive {dims[1]}D, and negative {dims[2]}D inputs"
        )
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = Minimum.apply(far, distance(positive, negative))
    return reduce_loss(clamp_below(margin + near - far, 0), reduction)


def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """`triplet_margin_loss` with any distance; `pairwise_distance` by default.

    Raises:
        ValueError: an unknown reduction, or margin <= 0.
        RuntimeError: numbers of dimensions that differ.
    """
    check_reduction(reduction)
    distance = pairwise_distance if distance_function is None else distance_function
    return _triplet(anchor, positive, negative, distance, margin, swap, reduction)


def _check_scores(op: str, input: Tensor, target: Tensor, target_ndim: int) -> tuple[int, int]:
    """Samples and classes of (N, C) or (C,) scores; one class is an error of PyTorch's kind."""
    check_tensors(op, input=input, target=target)
    if input.ndim > 2 or (input.ndim and input.shape[-1] == 0):
        raise RuntimeError(
            f"{op}: Expected non-empty vector or matrix with optional 0-dim batch size, but got: {list(input.shape)}"
        )
    # A 0-d tensor counts as one of one element.
    shape = tuple(input.shape) or (1,)
    n, c = (1, shape[0]) if len(shape) == 1 else shape
    expected = [n] if target_ndim == 1 else list(shape)
    found = list(target.shape) if target.ndim or len(shape) == 2 else [1]
    if found != expected:
        raise RuntimeError(
            f"{op}: inconsistent target size: expected {expected}, got {list(target.shape)} for an input of "
            f"{list(input.shape)}"
        )
    if target.dtype.name != "int64":
        raise RuntimeError(f"{op}: expected scalar type Long (int64) but found {target.dtype}")
    return n, c


def _excess(value: Tensor) -> Tensor:
    """What is above 0; a NaN is not, as in PyTorch's losses over classes."""
    return Where.apply(value.detach() > 0, value, 0.0)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sum over the other classes of max(0, margin - x[target] + x[i])^p / C: (N, C), (N,) -> (N,).

    Args:
        input: scores, (N, C) or (C,).
        target: class indices, (N,) or ().
        p: 1 or 2.
        margin: by how much the target's score should exceed the others.
        weight: (C,) factor of each target class.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an unknown reduction, p, or a weight that is no vector.
        RuntimeError: shapes or dtypes do not fit, or a target outside [0, C).
    """
    op = "multi_margin_loss"
    reduction = reduction_of(size_average, reduce, reduction)
    if p not in (1, 2):
        raise ValueError("only p == 1 and p == 2 supported")
    if weight is not None and weight.ndim != 1:
        raise ValueError("weight must be one-dimensional")
    n, c = _check_scores(op, input, target, 1)
    classes = target._array.reshape(n, 1)
    if classes.size and not (classes.min() >= 0 and classes.max() < c):
        raise RuntimeError(f"{op}: target out of range: classes must be in [0, {c})")
    if weight is not None and weight.shape[0] != c:
        raise RuntimeError(
            f"{op}: inconsistent weight size, expected {c} but got {weight.shape[0]}"
        )
    scores = input.reshape(n, c)
    kind = input._array.dtype
    others = namespace_of(classes).ones((n, c), kind)
    np.put_along_axis(others, classes, kind.type(0), axis=1)
    loss = _excess(margin - Gather.apply(scores, 1, wrap(classes)) + scores)
    loss = (loss if p == 1 else loss.square()) * wrap(others)
    if weight is not None:
        loss = loss * weight[wrap(classes)]
    loss = loss.sum(1) / c
    if target.ndim == 0:
        loss = loss.squeeze(0)
    return reduce_loss(loss, reduction)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sum over targets j and other classes i of max(0, 1 - (x[j] - x[i])) / C: (N, C) each -> (N,).

    Args:
        input: scores, (N, C) or (C,).
        target: class indices up to the first -1, of the same shape.
        size_average: older form of `reduction`.
        reduce: older form of `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an unknown reduction.
        RuntimeError: shapes or dtypes do not fit, or a target outside [-1, C).
    """
    op = "multilabel_margin_loss"
    reduction = reduction_of(size_average, reduce, reduction)
    n, c = _check_scores(op, input, target, 2)
    labels = target._array.reshape(n, c)
    if labels.size and not (labels.min() >= -1 and labels.max() < c):
        raise RuntimeError(f"{op}: target out of range: labels must be in [-1, {c})")
    kind = input._array.dtype
    counts = (labels >= 0) & (np.cumsum(labels < 0, axis=1) == 0)
    is_target = namespace_of(labels).zeros((n, c + 1), bool)
    np.put_along_axis(is_target, np.where(counts, labels, c), True, axis=1)
    pairs = counts[:, :, None] & ~is_target[:, None, :c]
    scores = input.reshape(n, c)
    chosen = Gather.apply(scores, 1, wrap(np.where(counts, labels, 0)))
    loss = _excess(1 - chosen.unsqueeze(2) + scores.unsqueeze(1)) * wrap(pairs.astype(kind))
    loss = loss.sum((1, 2)) / c
    return reduce_loss(loss.squeeze(0) if input.ndim < 2 else loss, reduction)
