"""A categorical distribution made continuous."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import broadcast_all, clamp_probs
from dptrain.distributions.over_categorical import OverCategorical
from dptrain.distributions.relaxed import Relaxed
from dptrain.distributions.transforms import ExpTransform


class ExpRelaxedCategorical(OverCategorical):
    """Logarithms of a relaxed categorical distribution.

    Source: Maddison, Mnih & Teh, "The concrete distribution", ICLR 2017.
    """

    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        temperature: Any,
        probs: Any = None,
        logits: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        self.temperature = temperature
        super().__init__(probs, logits, validate_args)

    def _expanded(self, value: Any, batch: Any) -> Any:
        return value if value is self.temperature else super()._expanded(value, batch)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = clamp_probs(self.logits.new_empty(shape).uniform_())
        scores = (self.logits - (-noise.log()).log()) / self.temperature
        return scores - scores.logsumexp(-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k = self._event_shape[0]
        logits, value = FUNCTIONS["broadcast_tensors"](self.logits, value)
        (temperature,) = broadcast_all(self.temperature)
        log_scale = math.lgamma(k) + (k - 1) * temperature.log()
        score = logits - value * self.temperature
        return (score - score.logsumexp(-1, keepdim=True)).sum(-1) + log_scale


class RelaxedOneHotCategorical(Relaxed):
    """Weights that a low temperature drives to unit vectors, differentiable by their parameters."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "probs": constraints.simplex,
        "logits": constraints.real_vector,
    }
    support = constraints.simplex

    def __init__(
        self,
        temperature: Any,
        probs: Any = None,
        logits: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        base = ExpRelaxedCategorical(temperature, probs, logits, validate_args=validate_args)
        super().__init__(base, ExpTransform(), validate_args=validate_args)
