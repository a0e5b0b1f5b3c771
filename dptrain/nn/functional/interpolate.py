"""Resizing of images: interpolate and its older names."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.half import lift
from dptrain.core.ops.resample import antialiased, cubic, linear, nearest, resample_bytes
from dptrain.core.ops.stencil import Stencil, Taps, check_floating
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
)

_RANKS = {"linear": 1, "bilinear": 2, "bicubic": 2, "lanczos": 2, "trilinear": 3}
_MODES = ("nearest", "nearest-exact", "area", *_RANKS)


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
        mode: "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area" or
            "lanczos" (with `antialias`). uint8 images are resized by the nearest, bilinear, cubic and
            Lanczos modes, others of integers by none.
        align_corners: corner elements lie on each other (the (bi/tri)linear and cubic modes).
        recompute_scale_factor: compute positions from the sizes instead of the factors.
        antialias: average all entries that a result covers where an image is reduced ("bilinear",
            "bicubic", "lanczos").

    Raises:
        ValueError: options that do not go together.
        NotImplementedError: a mode that does not go with these dimensions.
    """
    if antialias and not (mode in ("bilinear", "bicubic", "lanczos") and input.ndim == 4):
        raise ValueError(
            "Anti-alias option is restricted to bilinear, bicubic, and lanczos modes and requires a 4-D tensor as input"
        )
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
    if mode == "lanczos" and (align_corners or not antialias):
        raise ValueError("Lanczos mode requires antialias=True and does not support align_corners")
    if input.dtype.name != "uint8" or mode in ("linear", "trilinear"):
        check_floating("interpolate", input)
    plan = [
        _taps(mode, antialias, int(input.shape[i + 2]), out, factor, bool(align_corners))
        for i, (out, factor) in enumerate(zip(outs, factors, strict=True))
    ]
    if input.dtype.name == "uint8" and rank == 2 and mode in _RANKS:
        rows = resample_bytes(input._array, 3, plan[1])
        return wrap(resample_bytes(rows, 2, plan[0]))
    result = lift(input)
    for i, taps in enumerate(plan):
        result = Stencil.apply(result, i + 2, taps)
    return result.to(input.dtype)


def _taps(
    mode: str, antialias: bool, entries: int, out: int, factor: float | None, align: bool
) -> Taps:
    if antialias:
        return antialiased(mode, entries, out, factor, align)
    if mode.startswith("nearest"):
        return nearest(entries, out, factor, 0.5 if mode == "nearest-exact" else 0.0)
    return (cubic if mode == "bicubic" else linear)(entries, out, factor, align)


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
