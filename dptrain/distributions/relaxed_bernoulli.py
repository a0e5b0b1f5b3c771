"""A Bernoulli distribution made continuous."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import broadcast_all, clamp_probs, shape_of
from dptrain.distributions.odds import Odds
from dptrain.distributions.relaxed import Relaxed
from dptrain.distributions.transforms import SigmoidTransform
from dptrain.nn.functional import softplus


class LogitRelaxedBernoulli(Odds):
    """Log-odds of a relaxed Bernoulli distribution.

    Source: Maddison, Mnih & Teh, "The concrete distribution", ICLR 2017.
    """

    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        temperature: Any,
        probs: Any = None,
        logits: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        self._take(probs, logits)
        self.temperature = temperature
        given = logits if probs is None else probs
        super().__init__(shape_of(self._param, given), validate_args=validate_args)

    def _expanded(self, value: Any, batch: Any) -> Any:
        return value if value is self.temperature else super()._expanded(value, batch)

    @property
    def param_shape(self) -> Any:
        """The shape of the parameter that was given."""
        return self._param.size()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        probs = clamp_probs(self.probs.expand(shape))
        noise = clamp_probs(probs.new_empty(shape).uniform_())
        return (noise.log() - (-noise).log1p() + probs.log() - (-probs).log1p()) / self.temperature

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        distance = logits - value * self.temperature
        (temperature,) = broadcast_all(self.temperature)
        return temperature.log() + distance - 2 * softplus(distance)


class RelaxedBernoulli(Relaxed):
    """Numbers in (0, 1) that a low temperature drives to 0 and 1, differentiable by their parameters."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "probs": constraints.unit_interval,
        "logits": constraints.real,
    }
    support = constraints.unit_interval

    def __init__(
        self,
        temperature: Any,
        probs: Any = None,
        logits: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        base = LogitRelaxedBernoulli(temperature, probs, logits)
        super().__init__(base, SigmoidTransform(), validate_args=validate_args)
