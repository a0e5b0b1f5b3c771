"""The Kumaraswamy distribution."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import broadcast_all, eps_of
from dptrain.distributions.transformed_distribution import TransformedDistribution
from dptrain.distributions.transforms import AffineTransform, PowerTransform
from dptrain.distributions.uniform import Uniform


class Kumaraswamy(TransformedDistribution):
    """Kumaraswamy distributions over [0, 1]."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    support = constraints.unit_interval
    has_rsample = True

    def __init__(
        self, concentration1: Any, concentration0: Any, validate_args: bool | None = None
    ) -> None:
        self.concentration1, self.concentration0 = broadcast_all(concentration1, concentration0)
        zeros = self.concentration0.new_zeros(self.concentration0.shape)
        eps = eps_of(zeros)
        base = Uniform(zeros + eps, 1 - zeros - eps, validate_args=validate_args)
        super().__init__(
            base, _maps(self.concentration1, self.concentration0), validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        made = super().expand(batch_shape, _instance)
        made.concentration1 = self.concentration1.expand(batch_shape)
        made.concentration0 = self.concentration0.expand(batch_shape)
        made.transforms = _maps(made.concentration1, made.concentration0)
        return made

    def _moment(self, n: int) -> Tensor:
        a, b = 1 + n / self.concentration1, self.concentration0
        return (b.log() + a.lgamma() + b.lgamma() - (a + b).lgamma()).exp()

    @property
    def mean(self) -> Tensor:
        return self._moment(1)

    @property
    def mode(self) -> Tensor:
        a, b = self.concentration1, self.concentration0
        found = (
            a.reciprocal() * ((-a.reciprocal()).log1p() - (-(a * b).reciprocal()).log1p() - b.log())
        ).exp()
        return found.masked_fill((a < 1) | (b < 1), float("nan"))

    @property
    def variance(self) -> Tensor:
        return self._moment(2) - self._moment(1).pow(2)

    def entropy(self) -> Tensor:
        t1, t0 = 1 - self.concentration1.reciprocal(), 1 - self.concentration0.reciprocal()
        harmonic = (self.concentration0 + 1).digamma() + np.euler_gamma
        return t0 + t1 * harmonic - self.concentration1.log() - self.concentration0.log()


def _maps(concentration1: Tensor, concentration0: Tensor) -> list[Any]:
    return [
        PowerTransform(concentration0.reciprocal()),
        AffineTransform(1.0, -1.0),
        PowerTransform(concentration1.reciprocal()),
    ]
