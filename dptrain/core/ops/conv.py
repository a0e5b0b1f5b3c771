"""Convolution over one to three dimensions and its two gradients, each the derivative of the others.

Images are (N, C, *sizes) for the user and channels-last in memory: a result is channels-last behind a
transposed view, so that a chain of convolutions, activations and pools never reorders anything.
The products themselves are in `convolve.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import HOST_TYPES, on_gpu
from dptrain.core.export import export
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.convolve import convolve, input_gradient, weight_gradient
from dptrain.core.ops.shape import Narrow
from dptrain.core.ops.windows import (
    Sizes,
    Window,
    channels_first,
    channels_last,
    is_channels_last,
    sizes_of,
)
from dptrain.core.tensor import Tensor


class _Convolution(Op):
    """Shares the geometry of the three operations."""

    num_tensors = 2
    in_float32 = True
    halves_on_gpu = True

    @property
    def grad_name(self) -> str:
        """One name for all of them, as in PyTorch."""
        return "ConvolutionBackward0"

    def _setup(self, x_shape: Sizes, w_shape: Sizes, options: tuple[Any, ...]) -> Sizes:
        self.groups, self.options = options[3], options
        self.x_shape, self.w_shape = x_shape, w_shape
        self.window, outs = _fitting(tuple(x_shape[2:]), tuple(w_shape[2:]), options)
        return outs

    def _by_cudnn(
        self, graph: str, first: Any, second: Any, result: Sizes, shape: Sizes, bias: Any = None
    ) -> Any:
        """The result of that shape by cuDNN; None on the host, or where cuDNN is not to be used."""
        if type(first) is np.ndarray:
            return None
        if not on_gpu(first) or not math.prod(shape) or not first.size:
            return None
        from dptrain.core.kernels.cuda import cudnn

        if cudnn.available(first) is None:
            return None
        if self.window.outputs(tuple(self.x_shape[2:])) != tuple(result[2:]):
            return None  # a transposed convolution that leaves out windows that would fit
        c = cudnn.describe(self.x_shape, self.w_shape, result, self.window, first.dtype.name)
        n, channels, *sizes = shape
        inputs = channels_last(first), channels_last(second)
        out = cudnn.convolve(getattr(cudnn, graph), c, *inputs, (n, *sizes, channels), bias)
        return None if out is None else channels_first(out)


@lru_cache(maxsize=1024)
def _fitting(sizes: Sizes, kernel: Sizes, options: tuple[Any, ...]) -> tuple[Window, Sizes]:
    """The window of a convolution over images of these sizes, and how many of them fit."""
    window = Window(kernel, *options[:3])
    return window, window.outputs(sizes)


class Convolution(_Convolution):
    """(N, C, *sizes) with (O, C/groups, *kernel) -> (N, O, *outs)."""

    direct = 1
    saved_for: ClassVar[dict[str, int]] = {"input": 1, "weight": 0}
    #: Input and weight in the order of the kernels, if they came in another and backward reads them again.
    image: Any = None
    filters: Any = None

    def forward(self, input: Any, weight: Any, bias: Any, options: tuple[Any, ...]) -> Any:
        outs = self._setup(input.shape, weight.shape, options)
        self._check(input, weight, bias, outs)
        shape = (input.shape[0], weight.shape[0], *outs)
        recorded = getattr(self, "edges", None)  # none inside another backward
        there = on_gpu(input)
        if recorded:
            ordered = there or type(input) in HOST_TYPES
            if recorded[1] and ordered and not is_channels_last(input):
                input = self.image = channels_first(channels_last(input))
            if recorded[0] and there and not is_channels_last(weight):
                weight = self.filters = channels_first(channels_last(weight))
        fast = self._by_cudnn("forward_graph", input, weight, shape, shape, bias)
        if fast is not None:
            return fast
        return convolve(input, weight, bias, outs, self.window, self.groups)

    def _check(self, input: Any, weight: Any, bias: Any, outs: Sizes) -> None:
        groups, channels = self.groups, input.shape[1]
        fits = groups >= 1 and not weight.shape[0] % groups
        right = bias is None or bias.shape == (weight.shape[0],)
        if fits and right and channels == weight.shape[1] * groups and min(outs) >= 1:
            return
        op = f"conv{len(outs)}d"
        shapes = f"(input {list(input.shape)}, weight {list(weight.shape)}, groups={groups})"
        if not fits:
            raise RuntimeError(f"{op}: out_channels must be divisible by groups >= 1 {shapes}")
        if channels != weight.shape[1] * groups:
            raise RuntimeError(
                f"{op}: given groups={groups}, weight of size {list(weight.shape)}, expected input"
                f"{list(input.shape)} to have {weight.shape[1] * groups} channels, but got {channels} channels instead"
            )
        if not right:
            raise RuntimeError(
                f"{op}: bias must have shape [{weight.shape[0]}] {shapes}, got {list(bias.shape)}"
            )
        padded = [s + 2 * p for s, p in zip(input.shape[2:], self.window.padding, strict=True)]
        kernel, gaps = self.window.kernel, self.window.dilation
        spread = [d * (k - 1) + 1 for k, d in zip(kernel, gaps, strict=True)]
        raise RuntimeError(
            f"{op}: calculated padded input size per channel: ({_by(padded)}). "
            f"Kernel size: ({_by(spread)}). Kernel size can't be greater than actual input size"
        )

    def backward(self, grad: Any, input: Any, weight: Any) -> Any:
        d_input = d_weight = d_bias = None
        there = on_gpu(grad)
        image = input if self.image is None or isinstance(grad, Tensor) else self.image
        if there or type(grad) in HOST_TYPES:
            grad = channels_first(channels_last(grad))  # for all three
        if there:
            weight = weight if self.filters is None else self.filters
        if self.needs[0]:
            d_input = ConvolutionInputGrad.call(grad, weight, None, self.x_shape, self.options)
        if there or isinstance(grad, Tensor):
            if self.needs[1]:
                d_weight = ConvolutionWeightGrad.call(image, grad, self.w_shape, self.options)
            if self.needs[2]:
                d_bias = _sum_of_places(grad)
        elif self.needs[1]:
            # One pass gives both.
            given = image, grad, self.w_shape, self.window, self.groups
            d_weight, d_bias = weight_gradient(*given, self.target)
        elif self.needs[2]:
            d_bias = _sum_of_places(grad)
        return d_input, d_weight, d_bias


def _sum_of_places(grad: Any) -> Any:
    """The gradient of a bias: (N, O, *outs) -> (O,)."""
    if on_gpu(grad):
        return kernels_for(grad).column_sums(channels_last(grad).reshape(-1, grad.shape[1]))
    return grad.sum(axis=(0, *range(2, grad.ndim)))


def _leading(values: Any, sizes: Sizes) -> Any:
    """(N, O, *more) -> (N, O, *sizes)."""
    for dim, size in enumerate(sizes, 2):
        if values.shape[dim] != size:
            values = Narrow.call(values, dim, 0, size)
    return values


def _by(sizes: Any) -> str:
    return " x ".join(str(s) for s in sizes)


def _check_types(op: str, input: Any, weight: Any, bias: Any) -> None:
    kind = weight._array.dtype
    if input._array.dtype != kind or (bias is not None and bias._array.dtype != kind):
        raise RuntimeError(
            f"{op}: input type ({input.dtype}) and weight type ({weight.dtype}) should be the same"
        )


class ConvolutionInputGrad(_Convolution):
    """The gradient of the input: also what a transposed convolution computes."""

    saved_for: ClassVar[dict[str, int]] = {"grad": 1, "weight": 0}

    def forward(
        self, grad: Any, weight: Any, bias: Any, x_shape: Sizes, options: tuple[Any, ...]
    ) -> Any:
        # A transposed convolution may leave out windows that would fit (output_padding >= stride).
        self._setup(x_shape, weight.shape, options)
        self.outs_shape = grad.shape[2:]
        fast = self._by_cudnn("input_graph", grad, weight, grad.shape, x_shape, bias)
        if fast is not None:
            return fast
        return input_gradient(grad, weight, bias, tuple(x_shape), self.window, self.groups)

    def backward(self, grad_grad: Any, grad: Any, weight: Any) -> Any:
        d_grad = d_weight = d_bias = None
        if self.needs[0]:
            d_grad = _leading(
                Convolution.call(grad_grad, weight, None, self.options), self.outs_shape
            )
        if self.needs[1]:
            d_weight = ConvolutionWeightGrad.call(grad_grad, grad, self.w_shape, self.options)
        if self.needs[2]:
            d_bias = _sum_of_places(grad_grad)
        return d_grad, d_weight, d_bias


class ConvolutionWeightGrad(_Convolution):
    """The gradient of the weight: windows of the input times the gradient of the result."""

    def forward(self, input: Any, grad: Any, w_shape: Sizes, options: tuple[Any, ...]) -> Any:
        self._setup(input.shape, w_shape, options)
        self.outs_shape = grad.shape[2:]
        fast = self._by_cudnn("weight_graph", input, grad, grad.shape, w_shape)
        if fast is not None:
            return fast
        return weight_gradient(input, grad, tuple(w_shape), self.window, self.groups)[0]

    def backward(self, grad_weight: Any, input: Any, grad: Any) -> Any:
        d_input = (
            ConvolutionInputGrad.call(grad, grad_weight, None, self.x_shape, self.options)
            if self.needs[0]
            else None
        )
        d_grad = None
        if self.needs[1]:
            d_grad = _leading(
                Convolution.call(input, grad_weight, None, self.options), self.outs_shape
            )
        return d_input, d_grad


def _padding(
    op: str, padding: Any, kernel: Sizes, stride: Sizes, dilation: Sizes
) -> tuple[Sizes, Sizes]:
    """(before and after alike, extra at the end or ()): "same" may need one more at the end."""
    if not isinstance(padding, str):
        return sizes_of(padding, len(kernel), op, "padding"), ()
    if padding == "valid":
        return (0,) * len(kernel), ()
    if padding != "same":
        raise RuntimeError(
            f"{op}: padding must be an int, one int per dimension, 'same' or 'valid', got {padding!r}"
        )
    if any(s != 1 for s in stride):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    extra = tuple(t % 2 for t in total)
    return tuple(t // 2 for t in total), extra if any(extra) else ()


def batched(op: str, input: Any, rank: int) -> Any:
    """(C, *sizes) as (1, C, *sizes).

    Raises:
        TypeError: no tensor.
        RuntimeError: neither with nor without a batch dimension.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}(): argument 'input' must be Tensor, not {type(input).__name__}")
    if input._array.ndim not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"{op}: Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input, but got input of size: {list(input.shape)}"
        )
    return input if input._array.ndim == rank + 2 else input.unsqueeze(0)


def _steps(op: str, rank: int, stride: Any, dilation: Any) -> tuple[Sizes, Sizes]:
    steps, gaps = sizes_of(stride, rank, op, "stride"), sizes_of(dilation, rank, op, "dilation")
    if min(steps) < 1 or min(gaps) < 1:
        raise RuntimeError(
            f"{op}: stride and dilation must be positive, got stride={stride}, dilation={dilation}"
        )
    return steps, gaps


@lru_cache(maxsize=1024)  # asked by every convolution
def _options(
    op: str, kernel: Sizes, stride: Any, padding: Any, dilation: Any
) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """Stride, padding and dilation per dimension, and what "same" needs at the end or ()."""
    steps, gaps = _steps(op, len(kernel), stride, dilation)
    border, extra = _padding(op, padding, kernel, steps, gaps)
    if min(border) < 0:
        raise RuntimeError(f"{op}: negative padding is not supported, got {padding}")
    return steps, border, gaps, extra


def _check_weight(op: str, weight: Any, rank: int, layout: str) -> None:
    if weight._array.ndim != rank + 2:
        raise RuntimeError(
            f"{op}: weight must be {rank + 2}D ({layout}, {_KERNELS[rank - 1]}), got shape {list(weight.shape)}"
        )
    if 0 in weight.shape[2:]:
        raise RuntimeError(
            f"{op}: kernel size should be greater than zero, but got weight of shape {list(weight.shape)}"
        )


_KERNELS = ("kw", "kh, kw", "kd, kh, kw")


def _convolve(rank: int) -> Callable[..., Any]:
    op = f"conv{rank}d"

    def conv(
        input: Any,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        _check_weight(op, weight, rank, "O, C/groups")
        x = batched(op, input, rank)
        _check_types(op, x, weight, bias)
        sizes: Any = stride, padding, dilation
        if list in map(type, sizes):
            sizes = (tuple(s) if isinstance(s, list) else s for s in sizes)
        steps, border, gaps, extra = _options(op, weight._array.shape[2:], *sizes)
        if extra:
            x = PadEnd.apply(x, extra)
        out = Convolution.apply(x, weight, bias, (steps, border, gaps, int(groups)))
        return out if input._array.ndim == rank + 2 else out.squeeze(0)

    conv.__doc__ = f"""{rank}-d convolution (cross-correlation).

    Args:
        input: (N, C, *sizes) or (C, *sizes), {rank} sizes.
        weight: (O, C / groups, {_KERNELS[rank - 1]}).
        bias: (O,) or None.
        stride, padding, dilation: one number or one per dimension; padding may be "same"/"valid".
        groups: independent groups of channels.

    Returns:
        (N, O, *outs), or (O, *outs).

    Raises:
        RuntimeError: shapes, types or sizes that do not fit, named with what would.
    """
    return conv


def _convolve_transposed(rank: int) -> Callable[..., Any]:
    op = f"conv_transpose{rank}d"

    def conv_transpose(
        input: Any,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Any:
        _check_weight(op, weight, rank, "C, O/groups")
        x = batched(op, input, rank)
        steps, gaps = _steps(op, rank, stride, dilation)
        border = sizes_of(padding, rank, op, "padding")
        extra = sizes_of(output_padding, rank, op, "output_padding")
        for e, s, d in zip(extra, steps, gaps, strict=True):
            if not 0 <= e < max(s, d):
                raise RuntimeError(
                    f"{op}: output padding must be smaller than either stride or dilation, but got "
                    f"output_padding={extra}, stride={steps}, dilation={gaps}"
                )
        if min(border) < 0:
            raise RuntimeError(f"{op}: negative padding is not supported, got {padding}")
        _check_types(op, x, weight, bias)
        if groups < 1 or weight.shape[0] % groups or x.shape[1] != weight.shape[0]:
            raise RuntimeError(
                f"{op}: given transposed=1, groups={groups}, weight of size {list(weight.shape)}, expected input"
                f"{list(input.shape)} to have {weight.shape[0]} channels that groups divides, but got {x.shape[1]} channels instead"
            )
        channels = weight.shape[1] * groups
        if bias is not None and tuple(bias.shape) != (channels,):
            raise RuntimeError(f"{op}: bias must have shape [{channels}], got {list(bias.shape)}")
        sizes = [
            (s - 1) * t - 2 * p + d * (k - 1) + e + 1
            for s, k, t, p, d, e in zip(
                x.shape[2:], weight.shape[2:], steps, border, gaps, extra, strict=True
            )
        ]
        if min(sizes) < 1:
            raise RuntimeError(
                f"{op}: given input size per channel: ({_by(x.shape[2:])}). Calculated output size per channel: "
                f"({_by(sizes)}). Output size is too small"
            )
        shape = (int(x.shape[0]), int(channels), *(int(s) for s in sizes))
        out = ConvolutionInputGrad.apply(x, weight, bias, shape, (steps, border, gaps, int(groups)))
        return out if input.ndim == rank + 2 else out.squeeze(0)

    conv_transpose.__doc__ = f"""{rank}-d transposed convolution: the gradient of `conv{rank}d` by its input.

    Args:
        input: (N, C, *sizes) or (C, *sizes), {rank} sizes.
        weight: (C, O / groups, {_KERNELS[rank - 1]}).
        bias: (O,) or None.
        stride, padding, dilation: those of the convolution that this is the gradient of.
        output_padding: added to one side of the result's sizes.
        groups: independent groups of channels.

    Returns:
        (N, O, *outs), or (O, *outs).

    Raises:
        RuntimeError: shapes, types or sizes that do not fit, named with what would.
    """
    return conv_transpose


class PadEnd(Op):
    """Zeros after the last entries: what an even kernel needs for padding="same"."""

    def forward(self, input: Any, extra: Sizes) -> Any:
        sizes = input.shape[-len(extra) :]
        self.inside = (Ellipsis, *(slice(0, s) for s in sizes))
        lead = [(0, 0)] * (input.ndim - len(extra))
        return np.pad(input, [*lead, *((0, e) for e in extra)])

    def backward(self, grad: Any) -> Any:
        return grad[self.inside]


for _rank in (1, 2, 3):
    export(f"conv{_rank}d", function=_convolve(_rank))(Convolution)
    export(f"conv_transpose{_rank}d", function=_convolve_transposed(_rank))(ConvolutionInputGrad)
