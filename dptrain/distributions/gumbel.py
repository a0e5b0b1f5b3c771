"""The Gumbel distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.tensor import Tensor
from dptrain.distributions.arguments import eps_of, tiny_of
from dptrain.distributions.location_scale import LocationScale


class Gumbel(LocationScale):
    """Gumbel distributions of location `loc` and width `scale`."""

    @property
    def mean(self) -> Tensor:
        return self.loc + self.scale * np.euler_gamma

    @property
    def stddev(self) -> Tensor:
        return (math.pi / math.sqrt(6)) * self.scale

    @property
    def variance(self) -> Tensor:
        return self.stddev.pow(2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        share = self.loc.new_empty(self._extended_shape(sample_shape)).uniform_()
        return self.icdf(share.clamp(tiny_of(share), 1 - eps_of(share)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        y = (self.loc - value) / self.scale
        return (y - y.exp()) - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (-((self.loc - value) / self.scale).exp()).exp()

    def icdf(self, value: Tensor) -> Tensor:
        return self.loc - self.scale * (-value.log()).log()

    def entropy(self) -> Tensor:
        return self.scale.log() + (1 + np.euler_gamma)
