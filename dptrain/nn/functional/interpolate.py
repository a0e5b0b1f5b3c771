"""Resizing and resampling of images: interpolate, affine_grid, grid_sample."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.index import Index
from dptrain.core.ops.stencil import Stencil, Taps, check_floating, selection
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
)

_RANKS = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}
_MODES = ("nearest", "nearest-exact", "area", *_RANKS)
#: Coefficient of the cubic convolution kernel; Keys, "Cubic convolution interpolation", 1981, with
#: PyTorch's and OpenCV's choice.
_CUBIC = -0.75


def _sizes(input: Tensor, size: Any, scale_factor: Any, recompute: bool | None) -> tuple[Any, Any]:
    """Sizes of the result, and the factors that the positions are computed with."""
    rank = input.ndim - 2
    spatial = [int(s) for s in input.shape[2:]]
    if (size is None) == (scale_factor is None):
        what = "either" if size is None else "only one of"
        raise ValueError(f"{what} size or scale_factor should be defined")
    given = size if scale_factor is None else scale_factor
    parts = list(given) if isinstance(given, (tuple, list)) else [given] * rank
    if len(parts) != rank:
        raise ValueError(
            f"Input and {'output size' if scale_factor is None else 'scale_factor'} must have the same number of "
            f"spatial dimensions, but got input with spatial dimensions of {spatial} and {given}."
        )
    if scale_factor is None:
        if recompute:
            raise ValueError("recompute_scale_factor is not meaningful with an explicit size.")
        return [int(p) for p in parts], [None] * rank
    outs = [math.floor(s * float(f)) for s, f in zip(spatial, parts, strict=True)]
    return outs, [None] * rank if recompute else [float(p) for p in parts]


def _nearest(entries: int, out: int, factor: float | None, centre: float) -> Taps:
    # In float32, so that ties fall as they do in PyTorch.
    scale = np.float32(entries / out if factor is None else 1 / factor)
    where = np.floor((np.arange(out, dtype=np.float32) + np.float32(centre)) * scale)
    return selection(np.minimum(where.astype(np.int64), entries - 1), entries)


def _positions(entries: int, out: int, factor: float | None, align: bool) -> np.ndarray:
    i = np.arange(out)
    if align:
        return i * ((entries - 1) / (out - 1) if out > 1 else 0.0)
    return (i + 0.5) * (entries / out if factor is None else 1 / factor) - 0.5


def _linear(entries: int, out: int, factor: float | None, align: bool) -> Taps:
    where = np.maximum(_positions(entries, out, factor, align), 0)
    low = np.minimum(where.astype(np.int64), entries - 1)
    part = np.minimum(where - low, 1.0)
    rows = np.arange(out)
    return Taps(
        np.concatenate([rows, rows]),
        np.concatenate([low, np.minimum(low + 1, entries - 1)]),
        np.concatenate([1 - part, part]),
        (out, entries),
    )


def _cubic(entries: int, out: int, factor: float | None, align: bool) -> Taps:
    where = _positions(entries, out, factor, align)
    low = np.floor(where).astype(np.int64)
    rows, cols, weights = [], [], []
    for k in range(-1, 3):
        d = np.abs(where - low - k)
        near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1
        far = ((d - 5) * d + 8) * d * _CUBIC - 4 * _CUBIC
        rows.append(np.arange(out))
        cols.append(np.clip(low + k, 0, entries - 1))
        weights.append(np.where(d <= 1, near, far))
    return Taps(np.concatenate(rows), np.concatenate(cols), np.concatenate(weights), (out, entries))


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resize the spatial dimensions: (N, C, ...) with one to three of them.

    Args:
        input: (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        size: the sizes of the result, or
        scale_factor: factors of the sizes.
        mode: "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear" or "area".
        align_corners: corner elements lie on each other (the (bi/tri)linear and cubic modes).
        recompute_scale_factor: compute positions from the sizes instead of the factors.
        antialias: must be False.

    Raises:
        ValueError: options that do not go together.
        NotImplementedError: a mode that does not go with these dimensions.
    """
    if antialias:
        raise ValueError("interpolate: antialias=True is not supported; use False")
    if mode not in _MODES:
        raise NotImplementedError(
            f"Input Error: unknown interpolation mode {mode!r}; expected one of {', '.join(_MODES)}"
        )
    if align_corners is not None and mode not in _RANKS:
        raise ValueError(
            "align_corners option can only be set with the interpolating modes: linear | bilinear | bicubic | trilinear"
        )
    rank = input.ndim - 2
    if rank not in (1, 2, 3) or _RANKS.get(mode, rank) != rank:
        raise NotImplementedError(
            f"Input Error: Only 3D, 4D and 5D input Tensors supported (got {input.ndim}D) for the modes: nearest | "
            f"linear | bilinear | bicubic | trilinear | area | nearest-exact (got {mode})"
        )
    outs, factors = _sizes(input, size, scale_factor, recompute_scale_factor)
    if min(outs) < 1 or 0 in input.shape[2:]:
        raise RuntimeError(
            f"Input and output sizes should be greater than 0, but got input {list(input.shape[2:])} and output {outs}"
        )
    if mode == "area":
        pools = (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)
        return pools[rank - 1](input, outs)
    result = input
    for i, (out, factor) in enumerate(zip(outs, factors, strict=True)):
        entries, align = int(input.shape[i + 2]), bool(align_corners)
        if mode.startswith("nearest"):
            taps = _nearest(entries, out, factor, 0.5 if mode == "nearest-exact" else 0.0)
        else:
            check_floating("interpolate", input)
            taps = (_cubic if mode == "bicubic" else _linear)(entries, out, factor, align)
        result = Stencil.apply(result, i + 2, taps)
    return result


def upsample(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """The older name of `interpolate`."""
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_nearest(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """The older name of `interpolate(mode="nearest")`."""
    return interpolate(input, size, scale_factor, "nearest")


def upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """The older name of `interpolate(mode="bilinear", align_corners=True)`."""
    return interpolate(input, size, scale_factor, "bilinear", align_corners=True)


def _axis(size: int, align_corners: bool, kind: Any) -> np.ndarray:
    if size <= 1:
        return np.zeros(size, kind)
    line = np.linspace(-1, 1, size, dtype=kind)
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
    lines = [_axis(s, bool(align_corners), kind) for s in sizes[2:]]
    grids = np.meshgrid(*lines, indexing="ij")
    points = np.stack([*grids[::-1], np.ones(sizes[2:], kind)], axis=-1)
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
        mode: "bilinear" (trilinear for volumes) or "nearest".
        padding_mode: what lies outside: "zeros", "border" or "reflection".
        align_corners: -1 and 1 are the centres of the corner elements, not their outer edges.

    Raises:
        ValueError: an unknown or unsupported mode.
        RuntimeError: shapes or dtypes that do not fit.
    """
    if mode not in ("bilinear", "nearest"):
        raise ValueError(
            f"nn.functional.grid_sample(): expected mode to be 'bilinear' or 'nearest', but got: '{mode}'"
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
    if grid.shape[0] != input.shape[0]:
        raise RuntimeError(
            f"grid_sampler(): expected grid and input to have same batch size, but got input with sizes "
            f"{list(input.shape)} and grid with sizes {list(grid.shape)}"
        )
    if grid.dtype is not input.dtype:
        raise RuntimeError(
            f"grid_sampler(): expected input and grid to have same dtype, but input has {input.dtype} and grid has {grid.dtype}"
        )
    sizes, align = [int(s) for s in input.shape[2:]], bool(align_corners)
    places = []
    for i, size in enumerate(sizes):
        where = _unnormalised(grid.select(-1, rank - 1 - i), size, align)
        if padding_mode == "reflection":
            where = _reflected(where, size, align)
        if padding_mode != "zeros":
            where = FUNCTIONS["clamp"](where, 0, size - 1)
        places.append(where)
    if mode == "nearest":
        out = _corner(input, [np.rint(p._array) for p in places], sizes)
    else:
        lows = [np.floor(p._array) for p in places]
        out = wrap(np.zeros((), input._array.dtype))
        for steps in product((0, 1), repeat=rank):
            weight: Any = 1
            for where, low, step in zip(places, lows, steps, strict=True):
                part = where - wrap(low)
                weight = (part if step else 1 - part) * weight
            corner = [low + step for low, step in zip(lows, steps, strict=True)]
            out = out + _corner(input, corner, sizes) * weight.unsqueeze(-1)
    return out.permute(0, rank + 1, *range(1, rank + 1))


def _corner(input: Tensor, where: list[np.ndarray], sizes: list[int]) -> Tensor:
    """The values at whole positions, 0 outside: (N, *outs, C)."""
    inside = np.logical_and.reduce([(w >= 0) & (w < s) for w, s in zip(where, sizes, strict=True)])
    index = [np.where(inside, w, 0).astype(np.int64) for w in where]
    batch = np.arange(len(inside)).reshape(-1, *(1,) * (inside.ndim - 1))
    found = Index.apply(input, (batch, slice(None), *index))
    return found * wrap(inside[..., None])
