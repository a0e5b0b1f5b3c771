"""The loss of label sequences without alignment: arguments, padding and reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.core.arrays import greatest, move, namespace_of
from dptrain.core.device import device
from dptrain.core.ops.ctc import CtcLoss
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.loss_regression import check_tensors
from dptrain.nn.functional.reduction import check_reduction, reduce_loss


def _lengths(name: str, given: Tensor | Sequence[int] | int, n: int, place: device) -> Any:
    raw = given._array if isinstance(given, Tensor) else np.asarray(given)
    if raw.dtype.kind not in "iu":
        raise RuntimeError(f"ctc_loss: {name} must be integral, got {raw.dtype}")
    if raw.size != n:
        raise RuntimeError(f"ctc_loss: Expected {name} to have size {n}, got {list(raw.shape)}")
    if raw.size and raw.min() < 0:
        raise RuntimeError(f"ctc_loss: Expected {name} to have value at least 0, got {raw.min()}")
    return move(raw.astype(np.int64).reshape(n), place)


def _padded(targets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N, S) labels from (N, S), or from all sequences one after the other."""
    longest = int(greatest(lengths))
    if targets.ndim == 2:
        if targets.shape[0] != len(lengths) or targets.shape[1] < longest:
            raise RuntimeError(
                f"ctc_loss: Expected tensor to have size at least {longest} at dimension 1, but got size "
                f"{list(targets.shape)} for {len(lengths)} target_lengths"
            )
        return targets[:, :longest]
    if targets.ndim != 1 or targets.size < lengths.sum():
        raise RuntimeError(
            f"ctc_loss: targets must be (N, S) or 1D with as many labels as target_lengths sums to "
            f"({int(lengths.sum())}), got shape {list(targets.shape)}"
        )
    starts = np.cumsum(lengths) - lengths
    places = np.minimum(
        starts[:, None] + namespace_of(lengths).arange(longest), max(targets.size - 1, 0)
    )
    return targets[places]


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Connectionist temporal classification: (T, N, C) log-probabilities with N label sequences.

    Args:
        log_probs: results of log_softmax, (T, N, C) or (T, C) for one sample.
        targets: labels, (N, S) padded or (sum of target_lengths,); (S,) for one sample.
        input_lengths: (N,) of lengths up to T.
        target_lengths: (N,) of lengths.
        blank: the class that stands for no label.
        reduction: "none", "sum", or "mean" (each loss divided by its target's length, then over N).
        zero_infinity: losses of targets that are too long count as 0, with gradient 0.

    Raises:
        ValueError: an unknown reduction.
        RuntimeError: shapes, types, lengths or labels that do not fit.
    """
    check_tensors("ctc_loss", log_probs=log_probs, targets=targets)
    check_reduction(reduction)
    if log_probs.dtype.name not in ("float32", "float64"):
        raise NotImplementedError(
            f"ctc_loss: log_probs must be float32 or float64, got {log_probs.dtype}"
        )
    if targets.dtype.name not in ("int64", "int32"):
        raise RuntimeError(f"ctc_loss: targets must be int64 or int32, got {targets.dtype}")
    if log_probs.ndim not in (2, 3):
        raise RuntimeError(
            f"ctc_loss: log_probs must be (T, N, C) or (T, C), got shape {list(log_probs.shape)}"
        )
    batched = log_probs.ndim == 3
    values = log_probs if batched else log_probs.unsqueeze(1)
    t, n, c = values.shape
    if not 0 <= blank < c:
        raise RuntimeError(f"ctc_loss: blank must be in label range [0, {c}), got {blank}")
    frames = _lengths("input_lengths", input_lengths, n, log_probs.device)
    sizes = _lengths("target_lengths", target_lengths, n, log_probs.device)
    if frames.size and frames.max() > t:
        raise RuntimeError(
            f"ctc_loss: Expected input_lengths to have value at most {t}, but got value {int(frames.max())}"
        )
    labels = _padded(targets._array.astype(np.int64), sizes)
    used = labels[namespace_of(labels).arange(labels.shape[1]) < sizes[:, None]]
    if used.size and not (used.min() >= 0 and used.max() < c):
        raise RuntimeError(
            f"ctc_loss: targets must be in [0, {c}), found [{int(used.min())}, {int(used.max())}]"
        )
    loss = CtcLoss.apply(values, labels, frames, sizes, blank, zero_infinity)
    if reduction == "mean":
        loss = loss / wrap(np.maximum(sizes, 1).astype(loss._array.dtype))
    if reduction == "none" and not batched:
        return loss.squeeze(0)
    return reduce_loss(loss, reduction)
