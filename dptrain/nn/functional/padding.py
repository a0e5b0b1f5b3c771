"""Padding: constants, reflections, repetitions and periods around a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.core.autocast_policy import casting
from dptrain.core.dtypes import held
from dptrain.core.ops.stencil import ConstantPadNd, Stencil, selection
from dptrain.core.tensor import Tensor


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Put values before and after the last dimensions.

    Args:
        input: any tensor; the modes beside "constant" take the last one to three of (N, C, ...) or (C, ...).
        pad: (before, after) of the last dimension, then of the one before it, ...; negative sizes cut.
        mode: "constant", "reflect" (without the edge), "replicate" (the edge) or "circular".
        value: the constant; 0 by default.

    Raises:
        RuntimeError: sizes that the input does not allow, or a value with a mode that has none.
        NotImplementedError: an unknown mode, or one that does not go with these dimensions.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"pad(): argument 'input' must be Tensor, not {type(input).__name__}")
    sizes = [int(p) for p in pad]
    if len(sizes) % 2:
        raise RuntimeError(f"Padding length must be divisible by 2, got {list(pad)}")
    if len(sizes) // 2 > input.ndim:
        raise RuntimeError(
            f"Padding length should be less than or equal to two times the input dimension but got padding "
            f"length {len(sizes)} and input of dimension {input.ndim}"
        )
    if mode == "constant":
        return _constant(input, sizes, 0.0 if value is None else value)
    if mode not in ("reflect", "replicate", "circular"):
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    if value is not None and value != 0:
        raise RuntimeError(f'Padding mode "{mode}" doesn\'t take in value argument')
    rank = len(sizes) // 2
    if not (1 <= rank <= 3 and input.ndim in (rank + 1, rank + 2)):
        raise NotImplementedError(
            "Only 2D, 3D, 4D, 5D padding with non-constant padding are supported for now; got padding "
            f"{sizes} for input of shape {list(input.shape)}"
        )
    return _INSIDE[mode, rank](input, sizes, mode)


def _all_from_inside(input: Tensor, sizes: list[int], mode: str) -> Tensor:
    out = input
    for i in range(len(sizes) // 2):
        before, after = sizes[2 * i : 2 * i + 2]
        if before or after:
            out = _from_inside(out, input.ndim - 1 - i, before, after, mode)
    return out


#: By mode and padded dimensions: for autocast they are operations of their own, as in PyTorch.
_INSIDE = {
    (mode, rank): casting(f"{name}_pad{rank}d", _all_from_inside)
    for mode, name in {"reflect": "reflection", "replicate": "replication", "circular": "_"}.items()
    for rank in (1, 2, 3)
}


def _constant(input: Tensor, sizes: list[int], value: float) -> Tensor:
    pads = [(0, 0)] * (input.ndim - len(sizes) // 2)
    pads += [(sizes[i], sizes[i + 1]) for i in range(len(sizes) - 2, -1, -2)]
    result = [s + a + b for s, (a, b) in zip(input.shape, pads, strict=True)]
    if any(r < 0 for r in result):
        raise RuntimeError(
            f"pad: the input size {list(input.shape)} plus padding {sizes} resulted in a negative output size {result}"
        )
    return ConstantPadNd.apply(input, tuple(pads), held("pad", value, input._array.dtype))


def _from_inside(input: Tensor, dim: int, before: int, after: int, mode: str) -> Tensor:
    size = int(input.shape[dim])
    where = np.arange(-before, size + after)
    if mode == "reflect":
        if max(before, after) >= size:
            raise RuntimeError(
                f"Padding size should be less than the corresponding input dimension, but got: padding "
                f"({before}, {after}) at dimension {dim} of input {list(input.shape)}"
            )
        where = np.abs(where)
        where = np.where(where >= size, 2 * (size - 1) - where, where)
    elif mode == "replicate":
        if size == 0:
            raise RuntimeError(
                f"pad: nothing to repeat at dimension {dim} of input {list(input.shape)}"
            )
        where = np.clip(where, 0, size - 1)
    else:
        if max(before, after) > size:
            raise RuntimeError(
                f"Padding value causes wrapping around more than once: padding ({before}, {after}) at "
                f"dimension {dim} of input {list(input.shape)}"
            )
        # The period is what negative sizes leave.
        first, kept = max(-before, 0), size - max(-before, 0) - max(-after, 0)
        around = np.arange(-max(before, 0), kept + max(after, 0))
        where = first + around % max(kept, 1)
    if len(where) < 1:
        raise RuntimeError(
            f"pad: input (size {size} at dimension {dim}) is too small for padding ({before}, {after})"
        )
    return Stencil.apply(input, dim, selection(where, size))


def channel_pads(padding: Any) -> list[int]:
    """One size for each spatial dimension, first to last, in the order that `pad` takes."""
    return [p for size in reversed(padding) for p in (size, size)]
