"""The Weibull distribution."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import broadcast_all
from dptrain.distributions.exponential import Exponential
from dptrain.distributions.transformed_distribution import TransformedDistribution
from dptrain.distributions.transforms import AffineTransform, PowerTransform


class Weibull(TransformedDistribution):
    """Weibull distributions of the given `scale` and shape `concentration`."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "scale": constraints.positive,
        "concentration": constraints.positive,
    }
    support = constraints.positive
    has_rsample = True

    def __init__(self, scale: Any, concentration: Any, validate_args: bool | None = None) -> None:
        self.scale, self.concentration = broadcast_all(scale, concentration)
        base = Exponential(self.scale.new_ones(self.scale.shape), validate_args=validate_args)
        super().__init__(base, _maps(self.scale, self.concentration), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        made = super().expand(batch_shape, _instance)
        made.scale = self.scale.expand(batch_shape)
        made.concentration = self.concentration.expand(batch_shape)
        made.transforms = _maps(made.scale, made.concentration)
        return made

    @property
    def mean(self) -> Tensor:
        return self.scale * (1 + self.concentration.reciprocal()).lgamma().exp()

    @property
    def mode(self) -> Tensor:
        k = self.concentration
        return self.scale * ((k - 1) / k).pow(k.reciprocal())

    @property
    def variance(self) -> Tensor:
        share = self.concentration.reciprocal()
        return self.scale.pow(2) * (
            (1 + 2 * share).lgamma().exp() - (2 * (1 + share).lgamma()).exp()
        )

    def entropy(self) -> Tensor:
        share = self.concentration.reciprocal()
        return np.euler_gamma * (1 - share) + (self.scale * share).log() + 1


def _maps(scale: Tensor, concentration: Tensor) -> list[Any]:
    return [PowerTransform(concentration.reciprocal()), AffineTransform(0, scale)]
