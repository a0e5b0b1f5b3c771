"""The normal distribution."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.random_tensors import randn
from dptrain.core.tensor import Tensor
from dptrain.distributions.distribution import ExponentialFamily
from dptrain.distributions.location_scale import LocationScale


class Normal(LocationScale, ExponentialFamily):
    """Normal distributions of mean `loc` and standard deviation `scale`."""

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        return self.scale**2

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        loc = self.loc
        noise = randn(self._extended_shape(sample_shape), dtype=loc.dtype, device=loc.device)
        return loc + noise * self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        distance = (value - self.loc) ** 2 / (2 * self.variance)
        return -distance - self.scale.log() - math.log(math.sqrt(2 * math.pi))

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return 0.5 * (1 + ((value - self.loc) * self.scale.reciprocal() / math.sqrt(2)).erf())

    def icdf(self, value: Tensor) -> Tensor:
        return self.loc + self.scale * (2 * value - 1).erfinv() * math.sqrt(2)

    def entropy(self) -> Tensor:
        return 0.5 + 0.5 * math.log(2 * math.pi) + self.scale.log()
