"""The categorical distribution: one of K numbers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from dptrain.core.export import FUNCTIONS
from dptrain.core.grad_mode import no_grad
from dptrain.core.spaced import arange
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import (
    lazy_property,
    logits_to_probs,
    lowest_of,
    one_of,
    probs_to_logits,
)
from dptrain.distributions.distribution import Distribution


class Categorical(Distribution):
    """One of 0, ..., K - 1, of probabilities `probs` or unnormalised log-probabilities `logits`.

    Args:
        probs: of shape (*batch_shape, K); nonnegative, normalised here.
        logits: likewise, of any sign.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "probs": constraints.simplex,
        "logits": constraints.real_vector,
    }
    has_enumerate_support = True

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        one_of(probs, logits)
        if probs is not None:
            if probs.dim() < 1:
                raise ValueError("`probs` parameter must be at least one-dimensional.")
            self.probs = self._param = probs / probs.sum(-1, True)
        elif logits is not None:
            if logits.dim() < 1:
                raise ValueError("`logits` parameter must be at least one-dimensional.")
            self.logits = self._param = logits - logits.logsumexp(-1, True)
        self._num_events = self._param.size(-1)
        super().__init__(self._param.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self._num_events - 1)

    @lazy_property
    def logits(self) -> Tensor:
        """Log-probabilities."""
        return probs_to_logits(self.probs)

    @lazy_property
    def probs(self) -> Tensor:
        """Probabilities."""
        return logits_to_probs(self.logits)

    @property
    def param_shape(self) -> Any:
        """The shape of the parameter that was given."""
        return self._param.size()

    @property
    def mean(self) -> Tensor:
        return self.probs.new_full(self._extended_shape(), float("nan"))

    @property
    def mode(self) -> Tensor:
        return self.probs.argmax(-1)

    @property
    def variance(self) -> Tensor:
        return self.mean

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        count = math.prod(sample_shape)
        with no_grad():
            rows = self.probs
            if not count or not rows.numel():
                return arange(0).reshape(shape)
            if rows.dim() == 1:
                return rows.multinomial(count, True).reshape(shape)
            if rows.dim() > 2:
                rows = rows.reshape(-1, self._num_events)
            return rows.multinomial(count, True).T.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value, logits = value.long().unsqueeze(-1), self.logits
        if value._array.shape[:-1] != logits._array.shape[:-1]:
            value, logits = FUNCTIONS["broadcast_tensors"](value, logits)
            value = value[..., :1]
        return logits.gather(-1, value).squeeze(-1)

    def entropy(self) -> Tensor:
        # The lowest finite number for log 0, whose probability is 0.
        logits = self.logits.clamp(min=lowest_of(self.logits))
        return -(logits * self.probs).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self._enumerated(arange(self._num_events, device=self._param.device), expand)
