"""Mixtures of distributions of one family."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.categorical import Categorical
from dptrain.distributions.distribution import Distribution


class MixtureSameFamily(Distribution):
    """A distribution that is chosen from a batch, then drawn from.

    Args:
        mixture_distribution: a Categorical over K.
        component_distribution: whose last batch dimension has the size K.

    Raises:
        ValueError: another kind, or shapes that do not fit.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        mixture_distribution: Any,
        component_distribution: Any,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(mixture_distribution, Categorical):
            raise ValueError(
                "The Mixture distribution needs to be an instance of torch.distributions.Categorical"
            )
        if not isinstance(component_distribution, Distribution):
            raise ValueError(
                "The Component distribution need to be an instance of torch.distributions.Distribution"
            )
        batch = component_distribution.batch_shape[:-1]
        for a, b in zip(reversed(mixture_distribution.batch_shape), reversed(batch), strict=False):
            if a != 1 and b != 1 and a != b:
                raise ValueError(
                    f"`mixture_distribution.batch_shape` ({tuple(mixture_distribution.batch_shape)}) is not compatible "
                    f"with `component_distribution.batch_shape`({tuple(batch)})"
                )
        k = mixture_distribution._num_events
        if k != component_distribution.batch_shape[-1]:
            raise ValueError(
                f"`mixture_distribution component` ({k}) does not equal `component_distribution.batch_shape[-1]` "
                f"({component_distribution.batch_shape[-1]})"
            )
        self._mixture_distribution = mixture_distribution
        self._component_distribution = component_distribution
        self._num_component = k
        self._event_ndims = len(component_distribution.event_shape)
        super().__init__(batch, component_distribution.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        made = super().expand(batch_shape, _instance)
        made._component_distribution = self._component_distribution.expand(
            (*batch_shape, self._num_component)
        )
        made._mixture_distribution = self._mixture_distribution.expand(batch_shape)
        return made

    @constraints.dependent_property
    def support(self) -> Any:
        return self._component_distribution.support

    @property
    def mixture_distribution(self) -> Any:
        """What chooses."""
        return self._mixture_distribution

    @property
    def component_distribution(self) -> Any:
        """What is chosen from."""
        return self._component_distribution

    def _weights(self) -> Tensor:
        probs = self._mixture_distribution.probs
        return probs.reshape((*probs.shape, *(1 for _ in range(self._event_ndims))))

    def _average(self, values: Tensor) -> Tensor:
        return (self._weights() * values).sum(-1 - self._event_ndims)

    @property
    def mean(self) -> Tensor:
        return self._average(self._component_distribution.mean)

    @property
    def variance(self) -> Tensor:
        # The law of total variance.
        means = self._component_distribution.mean
        centre = self.mean.unsqueeze(-1 - self._event_ndims)
        return self._average(self._component_distribution.variance) + self._average(
            (means - centre).pow(2.0)
        )

    def cdf(self, x: Tensor) -> Tensor:
        each = self._component_distribution.cdf(self._padded(x))
        return (each * self._mixture_distribution.probs).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(x)
        each = self._component_distribution.log_prob(self._padded(x))
        weights = self._mixture_distribution.logits.log_softmax(-1)
        return (each + weights).logsumexp(-1)

    def _padded(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1 - self._event_ndims)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with no_grad():
            dim = len(sample_shape) + len(self._batch_shape)
            chosen = self._mixture_distribution.expand(self._batch_shape).sample(sample_shape)
            drawn = self._component_distribution.sample(sample_shape)
            index = chosen.reshape((*chosen.shape, *(1 for _ in range(self._event_ndims + 1))))
            index = index.expand((*chosen.shape, 1, *self._event_shape))
            return drawn.gather(dim, index).squeeze(dim)

    def __repr__(self) -> str:
        return f"MixtureSameFamily(\n  {self._mixture_distribution!r},\n  {self._component_distribution!r})"
