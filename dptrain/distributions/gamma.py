"""The gamma distribution."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.creation import as_tensor
from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.gamma_draws import standard_gamma
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import broadcast_all, shape_of, tiny_of
from dptrain.distributions.distribution import ExponentialFamily


class Gamma(ExponentialFamily):
    """Gamma distributions of shape `concentration` and inverse scale `rate`."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    support = constraints.nonnegative
    has_rsample = True

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None) -> None:
        self.concentration, self.rate = broadcast_all(concentration, rate)
        super().__init__(
            shape_of(self.concentration, concentration, rate), validate_args=validate_args
        )

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.rate

    @property
    def mode(self) -> Tensor:
        return ((self.concentration - 1) / self.rate).clamp(min=0)

    @property
    def variance(self) -> Tensor:
        return self.concentration / self.rate.pow(2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        value = standard_gamma(self.concentration.expand(shape)) / self.rate.expand(shape)
        # A draw that is 0 only by rounding has no finite density.
        value.data.clamp_(min=tiny_of(value))
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        value = as_tensor(value, dtype=self.rate.dtype, device=self.rate.device)
        if self._validate_args:
            self._validate_sample(value)
        return (
            FUNCTIONS["xlogy"](self.concentration, self.rate)
            + FUNCTIONS["xlogy"](self.concentration - 1, value)
            - self.rate * value
            - self.concentration.lgamma()
        )

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return FUNCTIONS["special.gammainc"](self.concentration, self.rate * value)

    def entropy(self) -> Tensor:
        a = self.concentration
        return a - self.rate.log() + a.lgamma() + (1.0 - a) * a.digamma()
