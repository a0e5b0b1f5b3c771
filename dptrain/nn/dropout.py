"""Dropout layers."""

from __future__ import annotations

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.module import Module


class _DropoutNd(Module):
    """The options of all dropout layers."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_DropoutNd):
    """In training, zero each element with probability `p` and scale the rest by 1 / (1 - p).

    Source: Hinton et al., "Improving neural networks by preventing co-adaptation of feature
    detectors", 2012.

    Args:
        p: probability of an element to be zeroed.
        inplace: change the input itself.

    Raises:
        ValueError: `p` is outside [0, 1].
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.dropout(input, self.p, self.training, self.inplace)


class Dropout1d(_DropoutNd):
    """`Dropout` of whole channels of lines.

    Source: Tompson et al., "Efficient object localization using convolutional networks", 2015.

    Args:
        p: probability of a channel to be zeroed.
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L)."""
        return F.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(_DropoutNd):
    """`Dropout` of whole channels of images.

    Args:
        p: probability of a channel to be zeroed.
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (N, C, L)."""
        return F.dropout2d(input, self.p, self.training, self.inplace)


class Dropout3d(_DropoutNd):
    """`Dropout` of whole channels of volumes.

    Args:
        p: probability of a channel to be zeroed.
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, D, H, W) or (C, D, H, W)."""
        return F.dropout3d(input, self.p, self.training, self.inplace)


class AlphaDropout(_DropoutNd):
    """Set elements to SELU's negative limit with probability `p`, keeping mean and variance.

    Source: Klambauer et al., "Self-normalizing neural networks", 2017.

    Args:
        p: probability of an element to be set.
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.alpha_dropout(input, self.p, self.training, self.inplace)


class FeatureAlphaDropout(_DropoutNd):
    """`AlphaDropout` of whole channels.

    Args:
        p: probability of a channel to be set.
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...)."""
        return F.feature_alpha_dropout(input, self.p, self.training, self.inplace)
