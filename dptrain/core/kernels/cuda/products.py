"""Convolution and window sums on the GPU where cuDNN does not serve: windows as rows, products by cuBLAS.

Twins of `reference`'s, whose arrangement of groups they share.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels import reference_volumes as volumes
from dptrain.core.kernels.cuda.columns import add_bias, column_sums
from dptrain.core.kernels.cuda.gemm import matmul
from dptrain.core.kernels.cuda.images import col2im, im2col
from dptrain.core.kernels.grouping import by_group, channel_rows, weight_matrix


def conv(x: Any, weight: Any, bias: Any, out_h: int, out_w: int, geometry: Any, groups: int) -> Any:
    """(N, H, W, C) with (O, C/groups, kh, kw) -> (N, oh, ow, O)."""
    n, o = x.shape[0], weight.shape[0]
    columns = by_group(im2col(x, out_h, out_w, geometry), groups, geometry[0] * geometry[1])
    out = matmul(columns, weight_matrix(weight, groups))
    out = out.transpose(1, 0, 2).reshape(n, out_h, out_w, o)
    if bias is not None:
        add_bias(out, bias)
    return out


def conv_input_grad(
    grad: Any, weight: Any, bias: Any, shape: Any, geometry: Any, groups: int
) -> Any:
    """The gradient of `conv`'s input, of that shape."""
    _, out_h, out_w, _ = grad.shape
    products = matmul(channel_rows(grad, groups), weight_matrix(weight, groups).transpose(0, 2, 1))
    taps, c = geometry[0] * geometry[1], shape[3]
    count = grad.shape[0] * out_h * out_w
    split = products.reshape(groups, count, taps, c // groups).transpose(1, 2, 0, 3)
    columns = namespace_of(split).ascontiguousarray(split).reshape(count, taps * c)
    out = col2im(columns, shape, out_h, out_w, geometry)
    if bias is not None:
        add_bias(out, bias)
    return out


def conv_weight_grad(
    x: Any, grad: Any, w_shape: Any, geometry: Any, groups: int, out: Any = None
) -> tuple[Any, Any]:
    """The gradients of `conv`'s weight and bias, the former in `out` if it is given."""
    o, c, kh, kw = w_shape
    _, out_h, out_w, _ = grad.shape
    columns = by_group(im2col(x, out_h, out_w, geometry), groups, kh * kw)
    found = matmul(columns.transpose(0, 2, 1), channel_rows(grad, groups))
    taps = found.reshape(groups, kh * kw, c, o // groups).transpose(0, 3, 2, 1).reshape(w_shape)
    if out is not None:
        out[...] = taps
    return taps if out is None else out, column_sums(grad.reshape(-1, o))


conv_volume = partial(volumes.conv_volume, matmul=matmul)
conv_volume_input_grad = partial(volumes.conv_volume_input_grad, matmul=matmul)
conv_volume_weight_grad = partial(volumes.conv_volume_weight_grad, matmul=matmul)
