"""Convolution layers over one to three dimensions, and their transposes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from dptrain.core.creation import empty
from dptrain.core.ops.windows import sizes_of
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.nn.functional.padding import channel_pads
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _ConvNd(Module):
    """Parameters, checks and text of all convolution layers."""

    rank: ClassVar[int]
    transposed: ClassVar[bool] = False
    in_channels: int
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        output_padding: Any,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        name, rank = type(self).__name__, self.rank
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = sizes_of(kernel_size, rank, name, "kernel_size")
        self.stride = sizes_of(stride, rank, name, "stride")
        self.padding: Any = (
            padding if isinstance(padding, str) else sizes_of(padding, rank, name, "padding")
        )
        self.dilation = sizes_of(dilation, rank, name, "dilation")
        self.output_padding = sizes_of(output_padding, rank, name, "output_padding")
        self.padding_mode = padding_mode
        self._check()
        self._make_parameters(bias, device, dtype)

    def _weight_shape(self) -> tuple[int, ...]:
        channels = (
            (self.in_channels, self.out_channels // self.groups)
            if self.transposed
            else (self.out_channels, self.in_channels // self.groups)
        )
        return (*channels, *self.kernel_size)

    def _make_parameters(self, bias: bool, device: Any, dtype: Any) -> None:
        self.weight = Parameter(empty(self._weight_shape(), device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(empty(self.out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _check(self) -> None:
        if self.groups <= 0:
            raise ValueError(f"groups must be a positive integer, got {self.groups}")
        if self.in_channels % self.groups:
            raise ValueError(
                f"in_channels must be divisible by groups, got {self.in_channels} and {self.groups}"
            )
        if self.out_channels % self.groups:
            raise ValueError(
                f"out_channels must be divisible by groups, got {self.out_channels} and {self.groups}"
            )
        if isinstance(self.padding, str):
            if self.padding not in ("same", "valid"):
                raise ValueError(
                    f"Invalid padding string {self.padding!r}, should be one of 'same', 'valid'"
                )
            if self.padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError("padding='same' is not supported for strided convolutions")
        if self.padding_mode not in _PADDING_MODES:
            raise ValueError(
                f"padding_mode must be one of {set(_PADDING_MODES)}, but got padding_mode='{self.padding_mode}'"
            )

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in, _ = init._calculate_fan_in_and_fan_out(self.weight)
            if fan_in:
                bound = 1 / math.sqrt(fan_in)
                init.uniform_(self.bias, -bound, bound)
            else:
                init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as PyTorch prints them."""
        none = (0,) * self.rank
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}, stride={self.stride}",
        ]
        if self.padding != none:
            parts.append(f"padding={self.padding}")
        if self.dilation != (1,) * self.rank:
            parts.append(f"dilation={self.dilation}")
        if self.output_padding != none:
            parts.append(f"output_padding={self.output_padding}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join(parts)


class _Convolution(_ConvNd):
    """N-d convolution: (N, in_channels, *sizes) -> (N, out_channels, *outs); also unbatched.

    `weight` (out_channels, in_channels / groups, *kernel) and `bias` (out_channels,) start from
    U(-k, k) with k = 1 / sqrt(in_channels / groups * taps).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: one size or one per dimension.
        stride: step of the window.
        padding: border around the image; a size, one per dimension, "same" or "valid".
        dilation: distance between the taps of the kernel.
        groups: independent groups of channels.
        bias: whether to add one.
        padding_mode: what the border holds: "zeros", "reflect", "replicate" or "circular".
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.

    Raises:
        ValueError: channels that `groups` does not divide, "same" with a stride, an unknown padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            0,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )

    def _border(self) -> list[int]:
        """The border in the order that `pad` takes."""
        if self.padding == "valid":
            return [0] * (2 * self.rank)
        if self.padding != "same":
            return channel_pads(self.padding)
        totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return [p for total in reversed(totals) for p in (total // 2, total - total // 2)]

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, *sizes) -> (N, out_channels, *outs)."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._border(), self.padding_mode), 0
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.rank - 1]
        return convolve(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class Conv1d(_Convolution):
    __doc__ = _Convolution.__doc__
    rank = 1


class Conv2d(_Convolution):
    __doc__ = _Convolution.__doc__
    rank = 2


class Conv3d(_Convolution):
    __doc__ = _Convolution.__doc__
    rank = 3


class _ConvTransposeNd(_ConvNd):
    """N-d transposed convolution: (N, in_channels, *sizes) -> (N, out_channels, *outs).

    It computes the gradient of a convolution with these options by its input. `weight` (in_channels,
    out_channels / groups, *kernel) and `bias` (out_channels,) start as those of a convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: one size or one per dimension.
        stride, padding, dilation: those of the convolution.
        output_padding: added to one side of the result's sizes.
        groups: independent groups of channels.
        bias: whether to add one.
        padding_mode: "zeros".
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.

    Raises:
        ValueError: channels that `groups` does not divide, or another padding mode.
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f'Only "zeros" padding mode is supported for {type(self).__name__}')
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            output_padding,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """(N, in_channels, *sizes) -> (N, out_channels, *outs), or of the given sizes.

        Raises:
            ValueError: sizes that no output padding gives.
        """
        extra = self.output_padding if output_size is None else self._extra(input, output_size)
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.rank - 1]
        return convolve(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            extra,
            self.groups,
            self.dilation,
        )

    def _extra(self, input: Tensor, output_size: Any) -> tuple[int, ...]:
        wanted = [int(s) for s in output_size]
        if len(wanted) not in (self.rank, input.ndim):
            raise ValueError(
                f"{type(self).__name__}: for {input.ndim}D input, output_size must have {self.rank} or {input.ndim} "
                f"elements (got {len(wanted)})"
            )
        wanted = wanted[-self.rank :]
        options = zip(self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        least = [
            (int(s) - 1) * t - 2 * p + d * (k - 1) + 1
            for s, (k, t, p, d) in zip(input.shape[-self.rank :], options, strict=True)
        ]
        most = [low + t - 1 for low, t in zip(least, self.stride, strict=True)]
        if any(not a <= w <= b for a, w, b in zip(least, wanted, most, strict=True)):
            raise ValueError(
                f"requested an output size of {wanted}, but valid sizes range from {least} to {most} (for an input "
                f"of {list(input.shape[-self.rank :])})"
            )
        return tuple(w - low for w, low in zip(wanted, least, strict=True))


class ConvTranspose1d(_ConvTransposeNd):
    __doc__ = _ConvTransposeNd.__doc__
    rank = 1


class ConvTranspose2d(_ConvTransposeNd):
    __doc__ = _ConvTransposeNd.__doc__
    rank = 2


class ConvTranspose3d(_ConvTransposeNd):
    __doc__ = _ConvTransposeNd.__doc__
    rank = 3
