"""The Dirichlet distribution."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.gamma_draws import standard_gamma
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import tiny_of
from dptrain.distributions.distribution import ExponentialFamily
from dptrain.nn.functional import one_hot


class Dirichlet(ExponentialFamily):
    """Vectors of probabilities, of shape (*batch_shape, K) as `concentration`."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "concentration": constraints.independent(constraints.positive, 1)
    }
    support = constraints.simplex
    has_rsample = True

    def __init__(self, concentration: Tensor, validate_args: bool | None = None) -> None:
        if concentration.dim() < 1:
            raise ValueError("`concentration` parameter must be at least one-dimensional.")
        self.concentration = concentration
        super().__init__(
            concentration.shape[:-1], concentration.shape[-1:], validate_args=validate_args
        )

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.concentration.sum(-1, True)

    @property
    def mode(self) -> Tensor:
        above = (self.concentration - 1).clamp(min=0.0)
        mode = above / above.sum(-1, True)
        # No entry above 1: the density is greatest in the corners.
        corner = one_hot(mode.argmax(-1), above.shape[-1]).to(mode)
        return FUNCTIONS["where"]((self.concentration < 1).all(-1, keepdim=True), corner, mode)

    @property
    def variance(self) -> Tensor:
        total = self.concentration.sum(-1, True)
        return self.concentration * (total - self.concentration) / (total.pow(2) * (total + 1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        parts = standard_gamma(self.concentration.expand(self._extended_shape(sample_shape)))
        parts.data.clamp_(min=tiny_of(parts))
        return parts / parts.sum(-1, True)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (
            FUNCTIONS["xlogy"](self.concentration - 1.0, value).sum(-1)
            + self.concentration.sum(-1).lgamma()
            - self.concentration.lgamma().sum(-1)
        )

    def entropy(self) -> Tensor:
        k, a = self.concentration.size(-1), self.concentration
        total = a.sum(-1)
        return (
            a.lgamma().sum(-1)
            - total.lgamma()
            - (k - total) * total.digamma()
            - ((a - 1.0) * a.digamma()).sum(-1)
        )
