"""Normalisation layers without running averages: layer, group, RMS and local response norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dptrain.core.arrays import namespace_of
from dptrain.core.creation import empty
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter


def _shape(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(normalized_shape, int):
        return (normalized_shape,)
    return tuple(normalized_shape)


class LayerNorm(Module):
    """Normalise each sample over its last dimensions.

    Source: Ba et al., "Layer normalization", 2016.

    Args:
        normalized_shape: the sizes of the last dimensions.
        eps: added to the variance.
        elementwise_affine: whether there is a factor for each element.
        bias: whether there is a summand, too.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        for name, wanted in (("weight", True), ("bias", bias)):
            made = elementwise_affine and wanted
            value = empty(self.normalized_shape, device=device, dtype=dtype) if made else None
            self.register_parameter(name, None if value is None else Parameter(value))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Factor 1, summand 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(..., *normalized_shape) -> the same."""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """Divide each sample by the root of its mean square over the last dimensions.

    Source: Zhang & Sennrich, "Root mean square layer normalization", 2019.

    Args:
        normalized_shape: the sizes of the last dimensions.
        eps: added to the mean square; the dtype's resolution if None.
        elementwise_affine: whether there is a factor for each element.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        value = (
            empty(self.normalized_shape, device=device, dtype=dtype) if elementwise_affine else None
        )
        self.register_parameter("weight", None if value is None else Parameter(value))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Factor 1."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., *normalized_shape) -> the same."""
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class GroupNorm(Module):
    """Normalise each sample over groups of channels: (N, C, ...) -> the same.

    Source: Wu & He, "Group normalization", 2018.

    Args:
        num_groups: groups, which divide the channels.
        num_channels: C.
        eps: added to the variance.
        affine: whether there are a factor and a summand for each channel.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
        bias: whether there is a summand, if `affine`.

    Raises:
        ValueError: the groups do not divide the channels.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(
                f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})"
            )
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = eps, affine
        for name, wanted in (("weight", True), ("bias", bias)):
            made = affine and wanted
            value = empty(num_channels, device=device, dtype=dtype) if made else None
            self.register_parameter(name, None if value is None else Parameter(value))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Factor 1, summand 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same."""
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class LocalResponseNorm(Module):
    """Divide by (k + alpha * mean square of `size` neighbouring channels) ** beta.

    Args:
        size: how many channels count.
        alpha, beta, k: the constants of the formula.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same."""
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class CrossMapLRN2d(LocalResponseNorm):
    """x / (k + alpha / size * sum of the squares of the neighbouring channels) ** beta over images.

    As in PyTorch, whose running sum this is, the first channel stays in the sums of all later ones. The
    gradient is that of this result, which PyTorch's is not. `LocalResponseNorm` has the plain window.

    Args:
        size: channels of a window.
        alpha: factor of the sum.
        beta: exponent.
        k: summand.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1) -> None:
        super().__init__(size, alpha, beta, k)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> the same.

        Raises:
            ValueError: no images.
        """
        if input.ndim != 4:
            raise ValueError(f"CrossMapLRN2d: Expected input to be 4D, got {input.ndim}D instead.")
        channels = namespace_of(input._array).arange(input.shape[1])
        reach = int((self.size - 1) / 2 + 1)
        ahead = channels[None, :] - channels[:, None]
        window = (ahead < reach) & ((ahead > -reach) | (channels[None, :] == 0))
        matrix = wrap(window.astype(input._array.dtype))
        squares = (input * input).flatten(2)
        sums = (matrix @ squares).reshape(input.shape)
        return input * (sums * (self.alpha / self.size) + self.k) ** -self.beta
