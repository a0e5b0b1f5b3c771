"""Which algorithm convolves: a pure function of operation, shapes, element type and processor.

Owns: the choice. The functions are those of `reference`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.conv_algo import get_conv_algo
from dptrain.core.kernels import (
    depthwise,
    direct,
    lowered,
    narrow,
    reference,
    volume_weight,
    winograd,
)
from dptrain.core.kernels.reference import Geometry
from dptrain.core.kernels.transform import TILE

#: Fewer tiles than this do not pay for the transform of the filters; fewer channels, not for their own.
_LEAST_TILES, _LEAST_CHANNELS = 32, 16


class Problem(NamedTuple):
    """A convolution as the choice sees it; sizes are those of the forward pass."""

    images: int
    channels: int
    results: int
    out_h: int
    out_w: int
    geometry: Geometry
    groups: int
    float32: bool


def algorithm(problem: Problem) -> str:
    """The algorithm for a convolution and its gradients.

    "reference", "depthwise", "lowered", "winograd" or "direct"; "lowered" convolutions have weights whose gradient
    `direct` may compute (`lowered.serves`).
    """
    return _algorithm(get_conv_algo(), *problem)


@lru_cache(maxsize=1024)
def _algorithm(allowed: str, *problem: Any) -> str:
    n, c, o, out_h, out_w, geometry, groups, float32 = Problem(*problem)
    kh, kw, *steps, ph, pw, dh, dw = geometry
    if 0 in (n, c, o, out_h, out_w, kh, kw):
        return "reference"
    if groups == c == o and groups > 1:
        return "depthwise"
    if groups == 1 and lowered.serves(n * out_h * out_w, c, o, geometry):
        return "lowered"
    square = kh == kw and kh in winograd.SIZES and max(ph, pw) < kh
    dense = groups == 1 and (*steps, dh, dw) == (1, 1, 1, 1)
    tiles = n * -(-out_h // TILE) * -(-out_w // TILE)
    pays = tiles >= _LEAST_TILES and min(c, o) >= _LEAST_CHANNELS
    fits = min(out_h, out_w) >= TILE
    if allowed == "auto" and float32 and square and dense and pays and fits:
        return "winograd"
    return "direct"


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """See `reference.conv`."""
    x = np.ascontiguousarray(x)
    sizes = (len(x), x.shape[3], len(weight), out_h, out_w)
    match _algorithm(get_conv_algo(), *sizes, geometry, groups, x.itemsize == 4):
        case "depthwise":
            return depthwise.conv(x, weight, bias, out_h, out_w, geometry)
        case "lowered":
            return lowered.conv(x, weight, bias, out_h, out_w, geometry)
        case "winograd":
            return winograd.conv(x, weight, bias, out_h, out_w, geometry[4:6])
        case "direct" if groups == 1 and narrow.few_results(x.shape[3], len(weight), geometry):
            return narrow.conv(x, weight, bias, out_h, out_w, geometry)
        case "direct":
            return direct.conv(x, weight, bias, out_h, out_w, geometry, groups)
    return reference.conv(x, weight, bias, out_h, out_w, geometry, groups)


def conv_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """See `reference.conv_input_grad`."""
    grad = np.ascontiguousarray(grad)
    n, out_h, out_w, o = grad.shape
    if 0 in shape:
        return reference.conv_input_grad(grad, weight, bias, shape, geometry, groups)
    sizes = (n, shape[3], o, out_h, out_w)
    match _algorithm(get_conv_algo(), *sizes, geometry, groups, grad.itemsize == 4):
        case "depthwise":
            return depthwise.conv_input_grad(grad, weight, bias, shape, geometry)
        case "lowered":
            return lowered.conv_input_grad(grad, weight, bias, shape, geometry)
        case "winograd":
            return winograd.conv_input_grad(grad, weight, bias, shape, geometry[4:6])
        case "direct" if groups == 1 and narrow.few_channels(shape[3], o, geometry):
            return narrow.conv_input_grad(grad, weight, bias, shape, geometry)
        case "direct":
            return direct.conv_input_grad(grad, weight, bias, shape, geometry, groups)
    return reference.conv_input_grad(grad, weight, bias, shape, geometry, groups)


def conv_weight_grad(
    x: np.ndarray,
    grad: np.ndarray,
    w_shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """See `reference.conv_weight_grad`."""
    if out is None:
        out = np.empty(w_shape, x.dtype)
    x, grad = np.ascontiguousarray(x), np.ascontiguousarray(grad)
    n, out_h, out_w, o = grad.shape
    sizes = (n, x.shape[3], o, out_h, out_w)
    match _algorithm(get_conv_algo(), *sizes, geometry, groups, x.itemsize == 4):
        case "depthwise":
            found = depthwise.conv_weight_grad(x, grad, w_shape, geometry)
        case "lowered":
            if lowered.serves(n * out_h * out_w, x.shape[3], o, geometry, weight_grad=True):
                return lowered.conv_weight_grad(x, grad, w_shape, geometry, out)
            return direct.conv_weight_grad(x, grad, w_shape, geometry, groups, out)
        case "winograd":
            return winograd.conv_weight_grad(x, grad, w_shape, geometry[4:6], out)
        case "direct" if groups == 1 and narrow.few_results(x.shape[3], o, geometry):
            found = narrow.conv_weight_grad(x, grad, w_shape, geometry)
        case "direct" if volume_weight.pays(x, grad):
            found = volume_weight.conv_weight_grad(x, grad, w_shape, geometry, groups)
        case "direct":
            return direct.conv_weight_grad(x, grad, w_shape, geometry, groups, out)
        case _:
            return reference.conv_weight_grad(x, grad, w_shape, geometry, groups, out)
    out[...] = found[0]  # little beside the products
    return out, found[1]
