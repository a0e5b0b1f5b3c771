"""The geometric distribution: failures before the first success."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import (
    broadcast_all,
    lazy_property,
    logits_to_probs,
    one_of,
    probs_to_logits,
    shape_of,
    tiny_of,
)
from dptrain.distributions.distribution import Distribution
from dptrain.nn.functional import binary_cross_entropy_with_logits


class Geometric(Distribution):
    """Numbers of failures before the first success, whose probability is `probs` (log-odds `logits`)."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "probs": constraints.unit_interval,
        "logits": constraints.real,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        one_of(probs, logits)
        given = logits if probs is None else probs
        (param,) = broadcast_all(given)
        setattr(self, "logits" if probs is None else "probs", param)
        super().__init__(shape_of(param, given), validate_args=validate_args)
        if self._validate_args and probs is not None and not (param > 0).all():
            raise ValueError(
                f"Expected parameter probs ({type(param).__name__} of shape {tuple(param.shape)}) of distribution "
                f"{self!r} to be positive but found invalid values:\n{param}"
            )

    @lazy_property
    def logits(self) -> Tensor:
        """The log-odds of a success."""
        return probs_to_logits(self.probs, is_binary=True)

    @lazy_property
    def probs(self) -> Tensor:
        """The probability of a success."""
        return logits_to_probs(self.logits, is_binary=True)

    @property
    def mean(self) -> Tensor:
        return 1.0 / self.probs - 1.0

    @property
    def mode(self) -> Tensor:
        return self.probs * 0

    @property
    def variance(self) -> Tensor:
        return (1.0 / self.probs - 1.0) / self.probs

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with no_grad():
            share = self.probs.new_empty(self._extended_shape(sample_shape)).uniform_()
            return (share.clamp(min=tiny_of(share)).log() / (-self.probs).log1p()).floor()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value, probs = broadcast_all(value, self.probs)
        # 0 failures of certain success: 0 * log 0 is 0.
        certain = (probs == 1) & (value == 0)
        return value * (-probs.masked_fill(certain, 0)).log1p() + self.probs.log()

    def entropy(self) -> Tensor:
        return (
            binary_cross_entropy_with_logits(self.logits, self.probs, reduction="none") / self.probs
        )
