"""Images sampled at given positions: affine_grid, grid_sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import product
from operator import and_
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.export import FUNCTIONS
from dptrain.core.half import lift
from dptrain.core.ops.index import Index
from dptrain.core.tensor import Tensor, wrap


def _axis(size: int, align_corners: bool, kind: Any, xp: Any) -> Any:
    if size <= 1:
        return xp.zeros(size, kind)
    line = xp.linspace(-1, 1, size, dtype=kind)
    return line if align_corners else line * kind.type((size - 1) / size)


def affine_grid(theta: Tensor, size: Any, align_corners: bool | None = None) -> Tensor:
    """Sampling positions of affine maps: (N, 2, 3) -> (N, H, W, 2), (N, 3, 4) -> (N, D, H, W, 3).

    Args:
        theta: the maps.
        size: (N, C, H, W) or (N, C, D, H, W) of the result of `grid_sample`.
        align_corners: -1 and 1 are the centres of the corner elements, not their outer edges.

    Raises:
        ValueError: shapes that do not go together.
    """
    sizes = [int(s) for s in size]
    rank = len(sizes) - 2
    if rank not in (2, 3) or tuple(theta.shape[1:]) != (rank, rank + 1) or theta.ndim != 3:
        raise ValueError(
            f"Expected a batch of 2D affine matrices of shape Nx2x3 for size (N, C, H, W), or of 3D ones of shape "
            f"Nx3x4 for (N, C, D, H, W). Got {theta.shape} and {sizes}."
        )
    if min(sizes) <= 0:
        raise ValueError(f"Expected non-zero, positive output size. Got {sizes}")
    kind = theta._array.dtype
    xp = namespace_of(theta._array)
    lines = [_axis(s, bool(align_corners), kind, xp) for s in sizes[2:]]
    grids = np.meshgrid(*lines, indexing="ij")
    points = np.stack([*grids[::-1], xp.ones(sizes[2:], kind)], axis=-1)
    flat = wrap(points.reshape(1, -1, rank + 1).astype(kind))
    return (flat @ theta.transpose(1, 2)).reshape(sizes[0], *sizes[2:], rank)


def _unnormalised(grid: Tensor, size: int, align: bool) -> Tensor:
    return (grid + 1) * ((size - 1) / 2) if align else ((grid + 1) * size - 1) / 2


def _reflected(where: Tensor, size: int, align: bool) -> Tensor:
    low, span = (0.0, float(size - 1)) if align else (-0.5, float(size))
    if span <= 0:
        return where * 0
    raw = where._array - low
    turns = np.floor(np.abs(raw) / span)
    odd = turns % 2 == 1
    sign = np.where(odd, -1, 1) * np.where(raw < 0, -1, 1)
    shift = np.where(odd, span * (turns + 1), -span * turns)
    kind = raw.dtype
    return (where - low) * wrap(sign.astype(kind)) + wrap((shift + low).astype(kind))


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """Values at given positions: (N, C, H, W) with (N, oh, ow, 2) -> (N, C, oh, ow); also 3-d.

    Args:
        input: images.
        grid: positions (x, y[, z]) in [-1, 1].
        mode: "bilinear" (trilinear for volumes), "nearest" or "bicubic" (images only).
        padding_mode: what lies outside: "zeros", "border" or "reflection".
        align_corners: -1 and 1 are the centres of the corner elements, not their outer edges.

    Raises:
        ValueError: an unknown or unsupported mode.
        RuntimeError: shapes or dtypes that do not fit.
    """
    if mode not in ("bilinear", "nearest", "bicubic"):
        raise ValueError(
            f"nn.functional.grid_sample(): expected mode to be 'bilinear', 'nearest' or 'bicubic', but got: '{mode}'"
        )
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(
            "nn.functional.grid_sample(): expected padding_mode to be 'zeros', 'border', or 'reflection', "
            f"but got: '{padding_mode}'"
        )
    rank = input.ndim - 2
    if rank not in (2, 3) or grid.ndim != input.ndim or grid.shape[-1] != rank:
        raise RuntimeError(
            f"grid_sampler(): expected 4D or 5D input and grid with same number of dimensions and size {rank} in "
            f"last dimension, but got input with sizes {list(input.shape)} and grid with sizes {list(grid.shape)}"
        )
    if 0 in input.shape[2:]:
        raise RuntimeError(
            f"grid_sampler(): expected input to have non-empty spatial dimensions, got {list(input.shape)}"
        )
    if grid.shape[0] != input.shape[0]:
        raise RuntimeError(
            f"grid_sampler(): expected grid and input to have same batch size, but got input with sizes "
            f"{list(input.shape)} and grid with sizes {list(grid.shape)}"
        )
    if grid.dtype is not input.dtype:
        raise RuntimeError(
            f"grid_sampler(): expected input and grid to have same dtype, but input has {input.dtype} and grid has {grid.dtype}"
        )
    if mode == "bicubic" and rank != 2:
        raise RuntimeError("grid_sampler(): bicubic interpolation only supports 4D input")
    image, grid = lift(input), lift(grid)
    sizes, align = [int(s) for s in input.shape[2:]], bool(align_corners)
    places = [
        _unnormalised(grid.select(-1, rank - 1 - i), size, align) for i, size in enumerate(sizes)
    ]
    if mode == "bicubic":
        out = _weighted(image, places, sizes, align, padding_mode, range(-1, 3), _cubic)
    else:
        places = [_kept(p, s, align, padding_mode) for p, s in zip(places, sizes, strict=True)]
        if mode == "nearest":
            out = _corner(image, [np.rint(p._array) for p in places], sizes)
        else:
            out = _weighted(image, places, sizes, align, "zeros", range(2), _linear)
    return out.permute(0, rank + 1, *range(1, rank + 1)).to(input.dtype)


def _kept(where: Any, size: int, align: bool, padding_mode: str) -> Any:
    """Positions brought into the image, where the mode asks for it."""
    if padding_mode == "reflection":
        where = _reflected(where, size, align)
    return where if padding_mode == "zeros" else FUNCTIONS["clamp"](where, 0, size - 1)


def _linear(part: Tensor, step: int) -> Tensor:
    return part if step else 1 - part


def _cubic(part: Tensor, step: int) -> Tensor:
    """The weight of the entry `step` from the one before, `part` behind that one; a = -0.75."""
    d = part - step if step < 1 else step - part
    if step in (0, 1):
        return (1.25 * d - 2.25) * d * d + 1
    return (((d - 5) * d + 8) * d - 4) * -0.75


def _weighted(
    image: Tensor,
    places: list[Tensor],
    sizes: list[int],
    align: bool,
    padding_mode: str,
    steps: range,
    weigh: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """The entries around each position times their weights along every dimension."""
    lows = [np.floor(p._array) for p in places]
    parts = [p - wrap(low) for p, low in zip(places, lows, strict=True)]
    out = wrap(namespace_of(image._array).zeros((), image._array.dtype))
    for taps in product(steps, repeat=len(sizes)):
        weight: Any = 1
        for part, step in zip(parts, taps, strict=True):
            weight = weigh(part, step) * weight
        corner = [
            _kept(wrap(low + step), size, align, padding_mode)._array
            for low, step, size in zip(lows, taps, sizes, strict=True)
        ]
        out = out + _corner(image, corner, sizes) * weight.unsqueeze(-1)
    return out


def _corner(input: Tensor, where: list[np.ndarray], sizes: list[int]) -> Tensor:
    """The values at whole positions, 0 outside: (N, *outs, C)."""
    inside = reduce(and_, ((w >= 0) & (w < s) for w, s in zip(where, sizes, strict=True)))
    index = [np.where(inside, w, 0).astype(np.int64) for w in where]
    batch = namespace_of(inside).arange(len(inside)).reshape(-1, *(1,) * (inside.ndim - 1))
    found = Index.apply(input, (batch, slice(None), *index))
    # Chosen rather than multiplied: what lies there instead may be no number.
    return found.masked_fill(wrap(~inside[..., None]), 0)
