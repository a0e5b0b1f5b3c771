"""The Bernoulli distribution: 1 with a probability, else 0."""

from __future__ import annotations

from typing import Any

from dptrain.core.export import FUNCTIONS
from dptrain.core.grad_mode import no_grad
from dptrain.core.spaced import arange
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import broadcast_all, shape_of
from dptrain.distributions.distribution import ExponentialFamily
from dptrain.distributions.odds import Odds
from dptrain.nn.functional import binary_cross_entropy_with_logits


class Bernoulli(Odds, ExponentialFamily):
    """Bernoulli distributions of the probability `probs` or the log-odds `logits` of a 1."""

    support = constraints.boolean
    has_enumerate_support = True

    def __init__(
        self, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        self._take(probs, logits)
        given = logits if probs is None else probs
        super().__init__(shape_of(self._param, given), validate_args=validate_args)

    @property
    def param_shape(self) -> Any:
        """The shape of the parameter that was given."""
        return self._param.size()

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        mode = (self.probs >= 0.5).to(self.probs)
        return mode.masked_fill(self.probs == 0.5, float("nan"))

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with no_grad():
            return FUNCTIONS["bernoulli"](self.probs.expand(self._extended_shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none")

    def entropy(self) -> Tensor:
        return binary_cross_entropy_with_logits(self.logits, self.probs, reduction="none")

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self._enumerated(
            arange(2, dtype=self._param.dtype, device=self._param.device), expand
        )
