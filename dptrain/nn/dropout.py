"""Dropout layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.module import Module


class _DropoutNd(Module):
    """The options of all dropout layers, and their call.

    Args:
        p: probability of an element, or of a channel, to be dropped.
        inplace: change the input itself.

    Raises:
        ValueError: `p` is outside [0, 1].
    """

    _function: ClassVar[Callable[..., Tensor]]

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """The result has the shape of the input."""
        return self._function(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_DropoutNd):
    """In training, zero each element with probability `p` and scale the rest by 1 / (1 - p).

    Any shape. Source: Hinton et al., "Improving neural networks by preventing co-adaptation of
    feature detectors", 2012.

    Args:
        p: probability of an element to be zeroed.
        inplace: change the input itself.
    """

    _function = staticmethod(F.dropout)


class Dropout1d(_DropoutNd):
    """`Dropout` of whole channels of lines: (N, C, L) or (C, L).

    Source: Tompson et al., "Efficient object localization using convolutional networks", 2015.

    Args:
        p: probability of a channel to be zeroed.
        inplace: change the input itself.
    """

    _function = staticmethod(F.dropout1d)


class Dropout2d(_DropoutNd):
    """`Dropout` of whole channels of images: (N, C, H, W) or (N, C, L).

    Args:
        p: probability of a channel to be zeroed.
        inplace: change the input itself.
    """

    _function = staticmethod(F.dropout2d)


class Dropout3d(_DropoutNd):
    """`Dropout` of whole channels of volumes: (N, C, D, H, W) or (C, D, H, W).

    Args:
        p: probability of a channel to be zeroed.
        inplace: change the input itself.
    """

    _function = staticmethod(F.dropout3d)


class AlphaDropout(_DropoutNd):
    """Set elements to SELU's negative limit with probability `p`, keeping mean and variance.

    Any shape. Source: Klambauer et al., "Self-normalizing neural networks", 2017.

    Args:
        p: probability of an element to be set.
        inplace: change the input itself.
    """

    _function = staticmethod(F.alpha_dropout)


class FeatureAlphaDropout(_DropoutNd):
    """`AlphaDropout` of whole channels: (N, C, ...).

    Args:
        p: probability of a channel to be set.
        inplace: change the input itself.
    """

    _function = staticmethod(F.feature_alpha_dropout)
