"""2-d convolution and its two gradients, each the derivative of the others.

Images are NCHW for the user and channels-last in memory: a result is an NHWC array behind a
transposed view, so that a chain of convolutions, activations and pools never reorders anything.
Method: windows as rows (im2col) times the weights as a matrix, one BLAS call per group.
Source: Chellapilla et al., "High performance convolutional neural networks for document
processing", 2006.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dptrain.core.export import export
from dptrain.core.kernels import kernels_for
from dptrain.core.kernels.reference import Geometry
from dptrain.core.op import Op

_Pair = tuple[int, int]


def pair(value: Any, op: str, what: str) -> _Pair:
    """Two sizes from one number or a sequence of two."""
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(sizes) == 1:
        sizes *= 2
    if len(sizes) != 2 or not all(isinstance(s, (int, np.integer)) for s in sizes):
        raise TypeError(f"{op}: {what} must be an int or two ints, got {value!r}")
    return int(sizes[0]), int(sizes[1])


def channels_last(image: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> (N, H, W, C), contiguous."""
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1))


def channels_first(image: np.ndarray) -> np.ndarray:
    """(N, H, W, C) -> (N, C, H, W), as a view."""
    return image.transpose(0, 3, 1, 2)


def _windows(size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    return (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1


def _columns(x: np.ndarray, oh: int, ow: int, geometry: Geometry, groups: int) -> np.ndarray:
    """Windows of each group: (groups, N * oh * ow, kernel_h * kernel_w * C / groups)."""
    cols = kernels_for(x.dtype).im2col(channels_last(x), oh, ow, geometry)
    if groups == 1:
        return cols[None]
    taps, depth = geometry[0] * geometry[1], x.shape[1] // groups
    grouped = cols.reshape(len(cols), taps, groups, depth).transpose(2, 0, 1, 3)
    return grouped.reshape(groups, len(cols), taps * depth)


def _weight_matrix(weight: np.ndarray, groups: int) -> np.ndarray:
    """(O, C/g, kh, kw) -> (g, kh * kw * C/g, O/g), rows in the order of `_columns`."""
    o, c, kh, kw = weight.shape
    return (
        weight.reshape(groups, o // groups, c, kh, kw)
        .transpose(0, 3, 4, 2, 1)
        .reshape(groups, kh * kw * c, o // groups)
    )


def _rows(grad: np.ndarray, groups: int) -> np.ndarray:
    """(N, O, oh, ow) -> (g, N * oh * ow, O/g)."""
    n, o, oh, ow = grad.shape
    flat = channels_last(grad).reshape(n * oh * ow, o)
    if groups == 1:
        return flat[None]
    return np.ascontiguousarray(flat.reshape(len(flat), groups, o // groups).transpose(1, 0, 2))


class _Convolution(Op):
    """Shares the checks and the geometry of the three operations."""

    def _setup(
        self, x_shape: tuple[int, ...], w_shape: tuple[int, ...], options: tuple[Any, ...]
    ) -> _Pair:
        (sh, sw), (ph, pw), (dh, dw), self.groups = options
        self.options = options
        kh, kw = w_shape[2:]
        self.geometry: Geometry = (kh, kw, sh, sw, ph, pw, dh, dw)
        self.x_shape, self.w_shape = x_shape, w_shape
        return _windows(x_shape[2], kh, sh, ph, dh), _windows(x_shape[3], kw, sw, pw, dw)


class Conv2d(_Convolution):
    """(N, C, H, W) with (O, C/groups, kh, kw) -> (N, O, oh, ow)."""

    saved_for: ClassVar[dict[str, int]] = {"input": 1, "weight": 0}
    name = "conv2d"
    num_tensors = 2

    def forward(self, input: Any, weight: Any, bias: Any, options: tuple[Any, ...]) -> Any:
        oh, ow = self._setup(input.shape, weight.shape, options)
        self._check(input, weight, bias, oh, ow)
        cols = _columns(input, oh, ow, self.geometry, self.groups)
        out = np.matmul(cols, _weight_matrix(weight, self.groups))  # (g, N*oh*ow, O/g)
        n, o = input.shape[0], weight.shape[0]
        out = out.transpose(1, 0, 2).reshape(n, oh, ow, o)
        if bias is not None:
            out = out + bias
        return channels_first(out)

    def _check(self, input: Any, weight: Any, bias: Any, oh: int, ow: int) -> None:
        shapes = f"(input {list(input.shape)}, weight {list(weight.shape)}, groups={self.groups})"
        if self.groups < 1 or weight.shape[0] % self.groups:
            raise RuntimeError(f"conv2d: out_channels must be divisible by groups >= 1 {shapes}")
        if input.shape[1] != weight.shape[1] * self.groups:
            raise RuntimeError(
                f"conv2d: given groups={self.groups}, weight of size {list(weight.shape)}, expected input"
                f"{list(input.shape)} to have {weight.shape[1] * self.groups} channels, but got {input.shape[1]} channels instead"
            )
        if input.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
            raise RuntimeError(
                f"conv2d: input type ({input.dtype}) and weight type ({weight.dtype}) should be the same"
            )
        if bias is not None and bias.shape != (weight.shape[0],):
            raise RuntimeError(
                f"conv2d: bias must have shape [{weight.shape[0]}] {shapes}, got {list(bias.shape)}"
            )
        if oh < 1 or ow < 1:
            kh, kw, _, _, ph, pw, dh, dw = self.geometry
            raise RuntimeError(
                f"conv2d: calculated padded input size per channel: ({input.shape[2] + 2 * ph} x {input.shape[3] + 2 * pw}). "
                f"Kernel size: ({dh * (kh - 1) + 1} x {dw * (kw - 1) + 1}). Kernel size can't be greater than actual input size"
            )

    def backward(self, grad: Any, input: Any, weight: Any) -> Any:
        d_input = d_weight = d_bias = None
        if self.needs[0]:
            d_input = Conv2dInputGrad.call(grad, weight, self.x_shape, self.options)
        if self.needs[1]:
            d_weight = Conv2dWeightGrad.call(input, grad, self.w_shape, self.options)
        if self.needs[2]:
            d_bias = grad.sum(axis=(0, 2, 3))
        return d_input, d_weight, d_bias


class Conv2dInputGrad(_Convolution):
    """The gradient of the input: also what a transposed convolution computes."""

    num_tensors = 2

    def forward(
        self, grad: Any, weight: Any, x_shape: tuple[int, ...], options: tuple[Any, ...]
    ) -> Any:
        oh, ow = self._setup(x_shape, weight.shape, options)
        n, c, h, w = x_shape
        cols = np.matmul(
            _rows(grad, self.groups), _weight_matrix(weight, self.groups).transpose(0, 2, 1)
        )
        if self.groups > 1:
            taps = self.geometry[0] * self.geometry[1]
            grouped = (self.groups, n * oh * ow, taps, c // self.groups)
            cols = cols.reshape(grouped).transpose(1, 2, 0, 3)
        cols = cols.reshape(n * oh * ow, c * self.geometry[0] * self.geometry[1])
        return channels_first(
            kernels_for(grad.dtype).col2im(cols, (n, h, w, c), oh, ow, self.geometry)
        )

    def backward(self, grad_grad: Any, grad: Any, weight: Any) -> Any:
        d_grad = Conv2d.call(grad_grad, weight, None, self.options) if self.needs[0] else None
        d_weight = (
            Conv2dWeightGrad.call(grad_grad, grad, self.w_shape, self.options)
            if self.needs[1]
            else None
        )
        return d_grad, d_weight


class Conv2dWeightGrad(_Convolution):
    """The gradient of the weight: windows of the input times the gradient of the result."""

    num_tensors = 2

    def forward(
        self, input: Any, grad: Any, w_shape: tuple[int, ...], options: tuple[Any, ...]
    ) -> Any:
        oh, ow = self._setup(input.shape, w_shape, options)
        o, c, kh, kw = w_shape
        cols = _columns(input, oh, ow, self.geometry, self.groups)
        out = np.matmul(cols.transpose(0, 2, 1), _rows(grad, self.groups))  # (g, kh*kw*C/g, O/g)
        return (
            out.reshape(self.groups, kh, kw, c, o // self.groups)
            .transpose(0, 4, 3, 1, 2)
            .reshape(w_shape)
        )

    def backward(self, grad_weight: Any, input: Any, grad: Any) -> Any:
        d_input = (
            Conv2dInputGrad.call(grad, grad_weight, self.x_shape, self.options)
            if self.needs[0]
            else None
        )
        d_grad = Conv2d.call(input, grad_weight, None, self.options) if self.needs[1] else None
        return d_input, d_grad


def _padding(padding: Any, weight: Any, stride: _Pair, dilation: _Pair) -> tuple[_Pair, _Pair]:
    """(before and after alike, extra at the end): "same" may need one more at the end."""
    if not isinstance(padding, str):
        return pair(padding, "conv2d", "padding"), (0, 0)
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise RuntimeError(
            f"conv2d: padding must be an int, two ints, 'same' or 'valid', got {padding!r}"
        )
    if stride != (1, 1):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    total = tuple(d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    return (total[0] // 2, total[1] // 2), (total[0] % 2, total[1] % 2)


def _conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """2-d convolution (cross-correlation) of images.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (O, C / groups, kh, kw).
        bias: (O,) or None.
        stride, padding, dilation: one number or (vertical, horizontal); padding may be "same"/"valid".
        groups: independent groups of channels.

    Returns:
        (N, O, oh, ow), or (O, oh, ow).

    Raises:
        RuntimeError: shapes, types or sizes that do not fit, named with what would.
    """
    if weight.ndim != 4:
        raise RuntimeError(
            f"conv2d: weight must be 4D (O, C/groups, kh, kw), got shape {list(weight.shape)}"
        )
    if input.ndim == 3:
        return _conv2d(input.unsqueeze(0), weight, bias, stride, padding, dilation, groups).squeeze(
            0
        )
    if input.ndim != 4:
        raise RuntimeError(
            f"conv2d: Expected 3D (unbatched) or 4D (batched) input, but got input of size: {list(input.shape)}"
        )
    steps, gaps = pair(stride, "conv2d", "stride"), pair(dilation, "conv2d", "dilation")
    if min(steps) < 1 or min(gaps) < 1:
        raise RuntimeError(
            f"conv2d: stride and dilation must be positive, got stride={stride}, dilation={dilation}"
        )
    border, extra = _padding(padding, weight, steps, gaps)
    if min(border) < 0:
        raise RuntimeError(f"conv2d: negative padding is not supported, got {padding}")
    if extra != (0, 0):
        input = PadEnd.apply(input, extra)
    return Conv2d.apply(input, weight, bias, (steps, border, gaps, int(groups)))


class PadEnd(Op):
    """Zeros after the last rows and columns: what an even kernel needs for padding="same"."""

    def forward(self, input: Any, extra: _Pair) -> Any:
        self.inside = (Ellipsis, slice(0, input.shape[-2]), slice(0, input.shape[-1]))
        return np.pad(input, [(0, 0)] * (input.ndim - 2) + [(0, extra[0]), (0, extra[1])])

    def backward(self, grad: Any) -> Any:
        return grad[self.inside]


export("conv2d", function=_conv2d)(Conv2d)
