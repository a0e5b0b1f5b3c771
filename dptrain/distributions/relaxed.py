"""What the relaxed distributions share: the images of a base whose parameters they show."""

from __future__ import annotations

from typing import Any

from dptrain.core.tensor import Tensor
from dptrain.distributions.transformed_distribution import TransformedDistribution


class Relaxed(TransformedDistribution):
    """Numbers that a low temperature drives to those of a discrete distribution."""

    has_rsample = True

    @property
    def temperature(self) -> Any:
        """The temperature."""
        return self.base_dist.temperature

    @property
    def logits(self) -> Tensor:
        """The log-odds, or log-probabilities."""
        return self.base_dist.logits

    @property
    def probs(self) -> Tensor:
        """The probabilities."""
        return self.base_dist.probs
