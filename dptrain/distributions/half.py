"""Absolute values of numbers that are distributed evenly around 0."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.location_scale import LocationScale
from dptrain.distributions.transformed_distribution import TransformedDistribution
from dptrain.distributions.transforms import AbsTransform


class Half(TransformedDistribution):
    """The upper half of a distribution, doubled.

    Args:
        base: of location 0, unchecked.
        validate_args: as of `Distribution`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"scale": constraints.positive}
    support = constraints.nonnegative
    has_rsample = True

    def __init__(self, base: LocationScale, validate_args: bool | None = None) -> None:
        super().__init__(base, AbsTransform(), validate_args=validate_args)

    @property
    def scale(self) -> Tensor:
        """The width of the base."""
        return self.base_dist.scale

    @property
    def mode(self) -> Tensor:
        return self.scale * 0

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        found = self.base_dist.log_prob(value) + math.log(2)
        return FUNCTIONS["where"](value >= 0, found, -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return 2 * self.base_dist.cdf(value) - 1

    def icdf(self, value: Tensor) -> Tensor:
        return self.base_dist.icdf((value + 1) / 2)

    def entropy(self) -> Tensor:
        return self.base_dist.entropy() - math.log(2)
