"""Blocks that several architectures share, under the names of `torchvision.ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dptrain import nn

__all__ = ["MLP", "Conv2dNormActivation"]


class Conv2dNormActivation(nn.Sequential):
    """A convolution, a normalisation and an activation: (N, C, H, W) -> (N, out_channels, H', W').

    Args:
        in_channels: C.
        out_channels: channels of the output.
        kernel_size: of the convolution.
        stride: likewise.
        padding: likewise; if None, what keeps the size at stride 1.
        groups: of the convolution.
        norm_layer: makes the normalisation from the number of channels; None for none.
        activation_layer: makes the activation; None for none.
        dilation: of the convolution.
        inplace: given to the activation unless None.
        bias: of the convolution; if None, there is one where there is no normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        groups: int = 1,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        dilation: int | tuple[int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
    ) -> None:
        if padding is None:
            kernels, dilations = _pair(kernel_size), _pair(dilation)
            height, width = (
                (kernel - 1) // 2 * step for kernel, step in zip(kernels, dilations, strict=True)
            )
            padding = (height, width)
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation=dilation,
                groups=groups,
                bias=norm_layer is None if bias is None else bias,
            )
        ]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            layers.append(activation_layer(**_inplace(inplace)))
        super().__init__(*layers)
        self.out_channels = out_channels


class MLP(nn.Sequential):
    """Linear layers with activations and dropout: (..., in_channels) -> (..., hidden_channels[-1]).

    Args:
        in_channels: size of the input's last dimension.
        hidden_channels: size after each layer; the last is the output's.
        norm_layer: makes the normalisation after each layer but the last; None for none.
        activation_layer: makes the activation after each layer but the last.
        inplace: given to activations and dropout unless None.
        bias: whether the layers have one.
        dropout: probability with which elements become 0.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: Sequence[int],
        norm_layer: Callable[..., nn.Module] | None = None,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        inplace: bool | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        for position, channels in enumerate(hidden_channels):
            layers.append(nn.Linear(in_channels, channels, bias=bias))
            if position < len(hidden_channels) - 1:
                if norm_layer is not None:
                    layers.append(norm_layer(channels))
                if activation_layer is not None:
                    layers.append(activation_layer(**_inplace(inplace)))
            layers.append(nn.Dropout(dropout, **_inplace(inplace)))
            in_channels = channels
        super().__init__(*layers)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _inplace(inplace: bool | None) -> dict[str, Any]:
    return {} if inplace is None else {"inplace": inplace}
