"""The geometric distribution: failures before the first success."""

from __future__ import annotations

from typing import Any

from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import broadcast_all, shape_of, tiny_of
from dptrain.distributions.odds import Odds
from dptrain.nn.functional import binary_cross_entropy_with_logits


class Geometric(Odds):
    """Numbers of failures before the first success, whose probability is `probs` (log-odds `logits`)."""

    support = constraints.nonnegative_integer

    def __init__(
        self, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        self._take(probs, logits)
        param, given = self._param, logits if probs is None else probs
        super().__init__(shape_of(param, given), validate_args=validate_args)
        if self._validate_args and probs is not None and not (param > 0).all():
            raise ValueError(
                f"Expected parameter probs ({type(param).__name__} of shape {tuple(param.shape)}) of distribution "
                f"{self!r} to be positive but found invalid values:\n{param}"
            )

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
