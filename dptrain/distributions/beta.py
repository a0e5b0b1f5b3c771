"""The beta distribution."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import are_numbers, broadcast_all
from dptrain.distributions.dirichlet import Dirichlet
from dptrain.distributions.distribution import ExponentialFamily


class Beta(ExponentialFamily):
    """Numbers in [0, 1] of density x^(concentration1 - 1) (1 - x)^(concentration0 - 1), normalised."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    support = constraints.unit_interval
    has_rsample = True

    def __init__(
        self, concentration1: Any, concentration0: Any, validate_args: bool | None = None
    ) -> None:
        pair = FUNCTIONS["stack"](broadcast_all(concentration1, concentration0), -1)
        if are_numbers(concentration1, concentration0):
            pair = pair.reshape(2)
        self._dirichlet = Dirichlet(pair, validate_args=validate_args)
        super().__init__(self._dirichlet._batch_shape, validate_args=validate_args)

    def _expanded(self, value: Any, batch: Any) -> Any:
        return (
            value.expand(batch) if isinstance(value, Dirichlet) else super()._expanded(value, batch)
        )

    @property
    def concentration1(self) -> Tensor:
        """The first concentration."""
        return self._dirichlet.concentration[..., 0]

    @property
    def concentration0(self) -> Tensor:
        """The second concentration."""
        return self._dirichlet.concentration[..., 1]

    @property
    def mean(self) -> Tensor:
        return self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def mode(self) -> Tensor:
        return self._dirichlet.mode[..., 0]

    @property
    def variance(self) -> Tensor:
        total = self.concentration1 + self.concentration0
        return self.concentration1 * self.concentration0 / (total.pow(2) * (total + 1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._dirichlet.rsample(sample_shape)[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._dirichlet.log_prob(FUNCTIONS["stack"]([value, 1.0 - value], -1))

    def entropy(self) -> Tensor:
        return self._dirichlet.entropy()
