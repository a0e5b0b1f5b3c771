"""Convolution layers."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.creation import empty
from dptrain.core.ops.conv import pair
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter


class Conv2d(Module):
    """2-d convolution: (N, in_channels, H, W) -> (N, out_channels, oh, ow); also unbatched.

    `weight` (out_channels, in_channels / groups, kh, kw) and `bias` (out_channels,) start from
    U(-k, k) with k = 1 / sqrt(in_channels / groups * kh * kw).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: one size or (height, width).
        stride: step of the window.
        padding: zeros around the image; a size, two sizes, "same" or "valid".
        dilation: distance between the taps of the kernel.
        groups: independent groups of channels.
        bias: whether to add one.
        padding_mode: "zeros", the only one supported.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.

    Raises:
        ValueError: channels that `groups` does not divide, "same" with a stride, an unknown or
            unsupported padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair(kernel_size, "Conv2d", "kernel_size")
        self.stride = pair(stride, "Conv2d", "stride")
        self.padding: Any = (
            padding if isinstance(padding, str) else pair(padding, "Conv2d", "padding")
        )
        self.dilation = pair(dilation, "Conv2d", "dilation")
        self.padding_mode = padding_mode
        self._check()
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(empty(shape, device=device, dtype=dtype))
        self.bias: Parameter | None
        if bias:
            self.bias = Parameter(empty(out_channels, device=device, dtype=dtype))
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
            if self.padding == "same" and self.stride != (1, 1):
                raise ValueError("padding='same' is not supported for strided convolutions")
        if self.padding_mode != "zeros":
            raise ValueError(
                f"padding_mode={self.padding_mode!r} is not supported; the only mode is 'zeros'"
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

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, oh, ow)."""
        return F.conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as PyTorch prints them."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}, stride={self.stride}",
        ]
        if self.padding != (0, 0):
            parts.append(f"padding={self.padding}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)
