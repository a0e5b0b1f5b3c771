"""Moving elements between channels, positions and columns: unfold, fold, shuffles."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.ops.conv import batched
from dptrain.core.ops.unfold import Col2Im, Im2Col
from dptrain.core.ops.windows import Window, sizes_of
from dptrain.core.tensor import Tensor


def _window(op: str, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Window:
    window = Window(
        sizes_of(kernel, 2, op, "kernel_size"),
        sizes_of(stride, 2, op, "stride"),
        sizes_of(padding, 2, op, "padding"),
        sizes_of(dilation, 2, op, "dilation"),
    )
    if min(*window.kernel, *window.stride, *window.dilation) < 1 or min(window.padding) < 0:
        raise RuntimeError(
            f"{op}: kernel_size, stride and dilation should be greater than zero and padding non-negative, but got "
            f"{window.kernel}, {window.stride}, {window.dilation} and {window.padding}"
        )
    return window


def unfold(
    input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """Sliding windows as columns: (N, C, H, W) -> (N, C * kh * kw, windows); also unbatched.

    Raises:
        RuntimeError: sizes that do not fit.
    """
    window = _window("unfold", kernel_size, dilation, padding, stride)
    x = batched("unfold", input, 2)
    if 0 in x.shape[1:]:
        raise RuntimeError(
            f"unfold: Expected 3D or 4D (batch mode) tensor with non-zero dimensions, but got: {list(input.shape)}"
        )
    outs = window.outputs(tuple(int(s) for s in x.shape[2:]))
    if min(outs) < 1:
        raise RuntimeError(
            f"unfold: given input with spatial size {list(x.shape[2:])} and kernel_size={window.kernel}, "
            f"the shape of the array of sliding blocks is {outs}, but its components must be at least one"
        )
    out = Im2Col.apply(x, window)
    return out if input.ndim == 4 else out.squeeze(0)


def fold(
    input: Tensor,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Tensor:
    """Columns added back to images: (N, C * kh * kw, windows) -> (N, C, *output_size).

    Raises:
        RuntimeError: sizes that do not fit.
    """
    window = _window("fold", kernel_size, dilation, padding, stride)
    sizes = sizes_of(output_size, 2, "fold", "output_size")
    if input.ndim not in (2, 3):
        raise RuntimeError(
            f"fold: Expected 2D or 3D (batch mode) tensor for input, but got: {list(input.shape)}"
        )
    x = input if input.ndim == 3 else input.unsqueeze(0)
    taps, outs = math.prod(window.kernel), window.outputs(sizes)
    if x.shape[1] % taps:
        raise RuntimeError(
            f"fold: Expected size of input's dimension 1 to be divisible by the product of kernel_size, but got "
            f"input.size(1)={x.shape[1]} and kernel_size={window.kernel}"
        )
    if min(outs) < 1 or x.shape[2] != math.prod(outs):
        raise RuntimeError(
            f"fold: Given output_size={sizes}, kernel_size={window.kernel}, dilation={window.dilation}, "
            f"padding={window.padding}, stride={window.stride}, expected size of input's dimension 2 to match the "
            f"calculated number of sliding blocks {' * '.join(str(o) for o in outs)} = {math.prod(outs)}, but got "
            f"input.size(2)={x.shape[2]}"
        )
    out = Col2Im.apply(x, sizes, window)
    return out if input.ndim == 3 else out.squeeze(0)


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """(*, C * r * r, H, W) -> (*, C, H * r, W * r).

    Raises:
        RuntimeError: channels that r * r does not divide.
    """
    r = _factor("pixel_shuffle", input, upscale_factor, "upscale_factor")
    *lead, c, h, w = (int(s) for s in input.shape)
    if c % (r * r):
        raise RuntimeError(
            f"pixel_shuffle expects its input's 'channel' dimension to be divisible by the square of "
            f"upscale_factor, but input.size(-3)={c} is not divisible by {r * r}"
        )
    n = len(lead)
    x = input.reshape(*lead, c // (r * r), r, r, h, w)
    x = x.permute(*range(n + 1), n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*lead, c // (r * r), h * r, w * r)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """(*, C, H * r, W * r) -> (*, C * r * r, H, W).

    Raises:
        RuntimeError: sizes that r does not divide.
    """
    r = _factor("pixel_unshuffle", input, downscale_factor, "downscale_factor")
    *lead, c, h, w = (int(s) for s in input.shape)
    if h % r or w % r:
        raise RuntimeError(
            f"pixel_unshuffle expects height and width to be divisible by downscale_factor, but input sizes "
            f"{h} and {w} are not divisible by {r}"
        )
    n = len(lead)
    x = input.reshape(*lead, c, h // r, r, w // r, r)
    x = x.permute(*range(n + 1), n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*lead, c * r * r, h // r, w // r)


def _factor(op: str, input: Tensor, factor: int, name: str) -> int:
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}(): argument 'input' must be Tensor, not {type(input).__name__}")
    if input.ndim < 3:
        raise RuntimeError(
            f"{op} expects input to have at least 3 dimensions, but got input with {input.ndim} dimension(s)"
        )
    if factor <= 0:
        raise RuntimeError(f"{op} expects a positive {name}, but got {factor}")
    return int(factor)


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """Channels of all groups in turn: (N, C, ...) -> the same.

    Raises:
        RuntimeError: channels that `groups` does not divide.
    """
    if input.ndim < 3:
        raise RuntimeError(
            f"channel_shuffle expects input with > 2 dims, but got input with sizes {list(input.shape)}"
        )
    n, c = input.shape[:2]
    if groups <= 0:
        raise RuntimeError(
            f"Number of groups to divide channels in must be positive. Value of groups:{groups}"
        )
    if c % groups:
        raise RuntimeError(
            f"Number of channels must be divisible by groups. Got {c} channels and {groups} groups."
        )
    x = input.reshape(n, groups, c // groups, *input.shape[2:]).transpose(1, 2)
    return x.reshape(*input.shape)
