"""What distributions over the outcomes of a categorical one share."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.categorical import Categorical
from dptrain.distributions.distribution import Distribution


class OverCategorical(Distribution):
    """A distribution of vectors with one number for each outcome; for the parameters see `Categorical`."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "probs": constraints.simplex,
        "logits": constraints.real_vector,
    }

    def __init__(self, probs: Any, logits: Any, validate_args: bool | None) -> None:
        self._categorical = Categorical(probs, logits)
        super().__init__(
            self._categorical.batch_shape,
            self._categorical.param_shape[-1:],
            validate_args=validate_args,
        )

    def _expanded(self, value: Any, batch: Any) -> Any:
        return (
            value.expand(batch)
            if isinstance(value, Categorical)
            else super()._expanded(value, batch)
        )

    @property
    def probs(self) -> Tensor:
        """Probabilities."""
        return self._categorical.probs

    @property
    def logits(self) -> Tensor:
        """Log-probabilities."""
        return self._categorical.logits

    @property
    def param_shape(self) -> Any:
        """The shape of the parameter that was given."""
        return self._categorical.param_shape
