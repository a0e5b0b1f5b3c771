"""The Laplace distribution."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.tensor import Tensor
from dptrain.distributions.arguments import eps_of, tiny_of
from dptrain.distributions.location_scale import LocationScale


class Laplace(LocationScale):
    """Laplace distributions of location `loc` and width `scale`."""

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return 2 * self.scale.pow(2)

    @property
    def stddev(self) -> Tensor:
        return math.sqrt(2) * self.scale

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        share = self.loc.new_empty(self._extended_shape(sample_shape))
        share.uniform_(eps_of(share) - 1, 1)
        return (
            self.loc - self.scale * share.sign() * (-share.abs().clamp(min=tiny_of(share))).log1p()
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return -(2 * self.scale).log() - (value - self.loc).abs() / self.scale

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        distance = value - self.loc
        return 0.5 - 0.5 * distance.sign() * (-distance.abs() / self.scale).expm1()

    def icdf(self, value: Tensor) -> Tensor:
        term = value - 0.5
        return self.loc - self.scale * term.sign() * (-2 * term.abs()).log1p()

    def entropy(self) -> Tensor:
        return 1 + (2 * self.scale).log()
