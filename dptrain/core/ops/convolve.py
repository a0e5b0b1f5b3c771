"""The three products behind convolution over raw arrays, in one to three dimensions.

Images are (N, C, *sizes) for the caller and channels-last in memory, as the kernels of
`dptrain.core.kernels` take them: a line is an image of height one, a volume has kernels of its own.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.kernels import kernels_for
from dptrain.core.ops.windows import Sizes, Window, channels_first, channels_last


def _flat(image: Any) -> Any:
    """(N, C, *sizes) -> (N, H, W, C) of what has one or two dimensions."""
    last = channels_last(image)
    return last if image.ndim == 4 else last[:, None]


def _deep(image: Any, rank: int) -> Any:
    """The reverse of `_flat`."""
    return channels_first(image if rank == 2 else image[:, 0])


def _taps(weight: Any) -> Any:
    """(O, C/g, *kernel) -> (O, C/g, kh, kw)."""
    return weight if weight.ndim == 4 else weight[:, :, None]


def convolve(x: Any, weight: Any, bias: Any, outs: Sizes, window: Window, groups: int) -> Any:
    """(N, C, *sizes) with (O, C/groups, *kernel) -> (N, O, *outs)."""
    rank = len(outs)
    if rank == 3:
        image = channels_last(x)
        out = kernels_for(x).conv_volume(image, weight, bias, outs, tuple(window), groups)
        return channels_first(out)
    oh, ow = outs if rank == 2 else (1, *outs)
    taps = _taps(weight)
    out = kernels_for(x).conv(_flat(x), taps, bias, oh, ow, window.geometry(), groups)
    return _deep(out, rank)


def input_gradient(
    grad: Any, weight: Any, bias: Any, x_shape: Sizes, window: Window, groups: int
) -> Any:
    """The gradient of `convolve`'s input, which a transposed convolution (with its bias) computes too."""
    n, c, *sizes = x_shape
    rank = len(sizes)
    if rank == 3:
        shape, last = (n, *sizes, c), channels_last(grad)
        out = kernels_for(grad).conv_volume_input_grad(
            last, weight, bias, shape, tuple(window), groups
        )
        return channels_first(out)
    h, w = sizes if rank == 2 else (1, *sizes)
    out = kernels_for(grad).conv_input_grad(
        _flat(grad), _taps(weight), bias, (n, h, w, c), window.geometry(), groups
    )
    return _deep(out, rank)


def weight_gradient(
    x: Any, grad: Any, w_shape: Sizes, window: Window, groups: int, target: Any = None
) -> tuple[Any, Any]:
    """The gradients of `convolve`'s weight and bias; `target` may take the former, and is returned then."""
    if len(w_shape) == 5:
        volume, last = channels_last(x), channels_last(grad)
        found: tuple[Any, Any] = kernels_for(x).conv_volume_weight_grad(
            volume, last, tuple(w_shape), tuple(window), groups
        )
        return found
    shape = tuple(w_shape) if len(w_shape) == 4 else (*w_shape[:2], 1, w_shape[2])
    given = _flat(x), _flat(grad), shape, window.geometry(), groups
    if target is not None and target.dtype == x.dtype and target.flags.c_contiguous:
        kernels = kernels_for(x)
        return target, kernels.conv_weight_grad(*given, target.reshape(shape))[1]
    out, sums = kernels_for(x).conv_weight_grad(*given)
    return out.reshape(tuple(w_shape)), sums
