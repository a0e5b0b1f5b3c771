"""What distributions of successes share: one parameter, given as a probability or as log-odds."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import (
    broadcast_all,
    lazy_property,
    logits_to_probs,
    one_of,
    probs_to_logits,
)
from dptrain.distributions.distribution import Distribution


class Odds(Distribution):
    """A distribution of the probability `probs` or the log-odds `logits` of a success."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "probs": constraints.unit_interval,
        "logits": constraints.real,
    }
    _param: Tensor

    def _take(self, probs: Any, logits: Any, *beside: Any) -> tuple[Tensor, ...]:
        """Keep the one that is given, broadcast with parameters beside it; these are returned.

        Raises:
            ValueError: both are given, or neither.
        """
        one_of(probs, logits)
        *others, self._param = broadcast_all(*beside, logits if probs is None else probs)
        setattr(self, "logits" if probs is None else "probs", self._param)
        return tuple(others)

    @lazy_property
    def logits(self) -> Tensor:
        """The log-odds of a success."""
        return probs_to_logits(self.probs, is_binary=True)

    @lazy_property
    def probs(self) -> Tensor:
        """The probability of a success."""
        return logits_to_probs(self.logits, is_binary=True)
