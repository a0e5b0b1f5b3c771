"""Rows of tables by index, one by one or summed up in bags."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.callers import level_outside
from dptrain.core.capturing import refuse_if
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.half import HALVES, lift
from dptrain.core.ops.pick import BagSum, Embedding, Pick, SegmentSum
from dptrain.core.tensor import Tensor, wrap


def _checked(op: str, indices: Tensor, weight: Tensor) -> np.ndarray:
    if not isinstance(indices, Tensor):
        raise TypeError(f"{op}(): argument 'indices' must be Tensor, not {type(indices).__name__}")
    if indices.dtype.name not in ("int64", "int32"):
        raise RuntimeError(
            f"Expected tensor for argument #1 'indices' to have one of the following scalar types: Long, Int; "
            f"but got {indices.dtype} instead (while checking arguments for {op})"
        )
    if weight.ndim != 2:
        raise RuntimeError(
            f"'weight' must be 2-D (while checking arguments for {op}), got {list(weight.shape)}"
        )
    found = indices._array
    if found.size:
        rows = weight._array.shape[0]
        unsigned = found.view(f"u{found.dtype.itemsize}")  # negative ones are large then
        refuse_if(unsigned.max() >= rows, partial(_wrong_row, op, rows), found)
    return found


def _wrong_row(op: str, rows: int, found: Any) -> IndexError:
    wrong = int(found.max() if found.max() >= rows else found.min())
    return IndexError(f"{op}: index out of range in self: index {wrong} for a table of {rows} rows")


def _renormalise(weight: Tensor, indices: np.ndarray, max_norm: float, norm_type: float) -> None:
    """Scale the rows that are used down to `max_norm`, in place."""
    rows = np.unique(indices)
    used = weight._array[rows]
    norms = np.linalg.norm(used, ord=norm_type, axis=1, keepdims=True)
    scale = np.where(norms > max_norm, max_norm / (norms + 1e-7), 1).astype(used.dtype)
    weight._array[rows] = used * scale
    weight._bump_version()


def _refuse_sparse(op: str, sparse: bool, weight: Tensor) -> None:
    if sparse and weight.requires_grad and is_grad_enabled():  # else it changes nothing
        raise ValueError(f"{op}: sparse gradients are not supported; use sparse=False")


def _padding_index(padding_idx: int | None, rows: int) -> int:
    if padding_idx is None:
        return -1
    if not -rows <= padding_idx < rows:
        raise AssertionError("Padding_idx must be within num_embeddings")
    return padding_idx % rows


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a table: (...) indices with (num, D) -> (..., D).

    Args:
        input: int64 or int32 indices.
        weight: the table.
        padding_idx: a row that gets no gradient.
        max_norm: scale the rows that are used to at most this norm first, in place.
        norm_type: order of that norm.
        scale_grad_by_freq: divide gradients by how often a row is used.
        sparse: must be False.

    Raises:
        IndexError: an index outside the table.
        RuntimeError: indices of another type.
        ValueError: `sparse`.
    """
    _refuse_sparse("embedding", sparse, weight)
    indices = _checked("embedding", input, weight)
    padding = _padding_index(padding_idx, len(weight))
    if max_norm is not None:
        _renormalise(weight, indices, max_norm, norm_type)
    out = Embedding.apply(weight, indices, padding)
    if scale_grad_by_freq and out.requires_grad:
        counts = np.bincount(indices.ravel(), minlength=len(weight))[indices][..., None]
        share = wrap((1 / counts).astype(out._array.dtype))
        # The same value; only the part that carries gradients is scaled.
        out = out.detach() + (out - out.detach()) * share
    return out


def _bags(
    input: Tensor, indices: np.ndarray, offsets: Tensor | None, last: bool
) -> tuple[Any, int]:
    """The bag of each index, and the number of bags."""
    if indices.ndim == 2:
        if offsets is not None:
            raise ValueError(
                "if input is 2D, then offsets has to be None, as input is treated is a mini-batch of fixed length "
                f"sequences. However, found offsets of type {type(offsets)}"
            )
        return np.repeat(namespace_of(indices).arange(len(indices)), indices.shape[1]), len(indices)
    if indices.ndim != 1:
        raise ValueError(
            f"input has to be 1D or 2D Tensor, but got Tensor of dimension {indices.ndim}"
        )
    if offsets is None:
        raise ValueError("offsets has to be a 1D Tensor but got None")
    if offsets.ndim != 1:
        raise ValueError("offsets has to be a 1D Tensor")
    if offsets.dtype.category != 1:
        raise RuntimeError(
            f"embedding_bag: Expected offsets to be a tensor of integers, but got {offsets.dtype}"
        )
    starts = offsets._array
    if last and not len(starts):
        raise RuntimeError(
            "embedding_bag: include_last_offset: number of offset should be at least 1"
        )
    if len(starts) and starts[0] != 0:
        raise RuntimeError(
            f"offsets[0] has to be 0, i.e., the first sequence in the mini-batch has to start from position 0. "
            f"However, got {int(starts[0])}"
        )
    if len(starts) and (starts[-1] > len(indices) or (np.diff(starts) < 0).any()):
        raise RuntimeError(
            f"offsets[-1] can not be greater than input's length {len(indices)}, and offsets must not decrease; "
            f"got {starts.tolist()}"
        )
    places = namespace_of(indices).arange(len(indices))
    # With an end given, what lies behind it falls in a bag of its own, which is none of the result.
    return np.searchsorted(starts, places, side="right") - 1, len(starts) - last


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima of rows of a table over bags: (B, L), or (L,) with offsets -> (B, D).

    Args:
        input: int64 or int32 indices.
        weight: (num, D).
        offsets: where each bag begins, for (L,) indices.
        max_norm, norm_type, scale_grad_by_freq, sparse: as for `embedding`.
        mode: "sum", "mean" or "max".
        per_sample_weights: a factor for each index, "sum" only.
        include_last_offset: the last offset is the end of the last bag.
        padding_idx: indices of this value do not count.

    Raises:
        ValueError: shapes or options that do not go together.
        NotImplementedError: factors with another mode.
        IndexError: an index outside the table.
    """
    if weight.dtype.name == "int64" and input.is_floating_point():
        warnings.warn(
            "Argument order of nn.functional.embedding_bag was changed. Usage `embedding_bag(weight, input, ...)` "
            "is deprecated, and should now be `embedding_bag(input, weight, ...)`.",
            stacklevel=level_outside(),
        )
        input, weight = weight, input
    _refuse_sparse("embedding_bag", sparse, weight)
    if mode not in ("sum", "mean", "max"):
        raise ValueError("mode has to be one of sum, mean or max")
    if per_sample_weights is not None:
        if input.shape != per_sample_weights.shape:
            raise ValueError(
                f"embedding_bag: If per_sample_weights ({list(per_sample_weights.shape)}) is not None, then it must "
                f"have the same shape as the input ({list(input.shape)})"
            )
        if mode != "sum":
            raise NotImplementedError(
                "embedding_bag: per_sample_weights was not None. per_sample_weights is only supported for mode='sum' "
                f"(got mode='{mode}')."
            )
        if per_sample_weights.dtype is not weight.dtype:
            raise RuntimeError(
                f"embedding_bag: expected per_sample_weights of the type of weight ({weight.dtype}), but got "
                f"{per_sample_weights.dtype}"
            )
    indices = _checked("embedding_bag", input, weight)
    given = (padding_idx, max_norm, per_sample_weights, offsets)
    plain = mode != "max" and not scale_grad_by_freq and all(v is None for v in given)
    if plain and indices.ndim == 2 and weight._array.dtype not in HALVES:
        sums: Tensor = BagSum.apply(weight, indices)
        return sums if mode == "sum" else sums / max(indices.shape[1], 1)
    bag_of, bags = _bags(input, indices, offsets, include_last_offset)
    flat = indices.ravel()
    kept = bag_of < bags
    if padding_idx is not None:
        kept &= flat != _padding_index(padding_idx, len(weight))
    flat, bag_of = flat[kept], bag_of[kept]
    rows = lift(
        embedding(
            wrap(flat), weight, None, max_norm, norm_type, scale_grad_by_freq and mode != "max"
        )
    )
    if mode == "max":
        return _bag_max(rows, bag_of, bags).to(weight.dtype)
    if per_sample_weights is not None:
        factors = lift(per_sample_weights.reshape(-1))
        rows = rows * (factors if kept.all() else factors[wrap(kept)]).unsqueeze(1)
    out = SegmentSum.apply(rows, bag_of, bags)
    if mode == "mean":
        counts = np.maximum(np.bincount(bag_of, minlength=bags), 1)[:, None]
        out = out / wrap(counts.astype(out._array.dtype))
    return out.to(weight.dtype)


def _bag_max(rows: Tensor, bag_of: np.ndarray, bags: int) -> Tensor:
    """The largest of each column over each bag; 0 for empty bags."""
    values, xp = rows._array, namespace_of(rows._array)
    longest = max(int(np.bincount(bag_of, minlength=1).max()), 1) if len(bag_of) else 1
    place = xp.arange(len(bag_of)) - np.searchsorted(bag_of, bag_of)
    table = xp.full((bags, longest, values.shape[1]), -np.inf, values.dtype)
    table[bag_of, place] = values
    starts = np.searchsorted(bag_of, xp.arange(bags))
    where = (table.argmax(axis=1) + starts[:, None]).T  # (D, bags): row of each maximum
    empty = np.bincount(bag_of, minlength=bags) == 0
    where[:, empty] = 0
    if not len(bag_of):
        return wrap(xp.zeros((bags, values.shape[1]), values.dtype))
    picked = Pick.apply(rows.transpose(0, 1), where).transpose(0, 1)
    return picked * wrap(~empty[:, None])
