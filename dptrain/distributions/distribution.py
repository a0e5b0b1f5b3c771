"""What all distributions share: shapes, checks of parameters and values, and how they are drawn from.

Owns: `Distribution`. Must not know: any family.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from dptrain.core.grad_mode import no_grad
from dptrain.core.size import Size
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints


class _Undefined:
    """An attribute that a family has to define."""

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        raise NotImplementedError


class Distribution:
    """A probability distribution over elements of `event_shape`, or a batch of them.

    Args:
        batch_shape: of the parameters.
        event_shape: of one element.
        validate_args: check parameters now and values later; by default as `set_default_validate_args` says.

    Raises:
        ValueError: a parameter outside of its set, by name.
    """

    has_rsample: ClassVar[bool] = False
    has_enumerate_support: ClassVar[bool] = False
    _validate_args: bool = __debug__

    @staticmethod
    def set_default_validate_args(value: bool) -> None:
        """Whether distributions that are made from here on check their arguments.

        Raises:
            ValueError: neither True nor False.
        """
        if value not in [True, False]:
            raise ValueError(f"validate_args must be True or False, got {value!r}")
        Distribution._validate_args = value

    def __init__(
        self,
        batch_shape: Any = (),
        event_shape: Any = (),
        validate_args: bool | None = None,
    ) -> None:
        self._batch_shape, self._event_shape = Size(batch_shape), Size(event_shape)
        if validate_args is not None:
            self._validate_args = validate_args
        if self._validate_args:
            self._check_parameters()

    def _check_parameters(self) -> None:
        try:
            expected = self.arg_constraints
        except NotImplementedError:
            warnings.warn(
                f"{type(self)} does not define `arg_constraints`. Please set `arg_constraints = {{}}` or initialize the "
                "distribution with `validate_args=False` to turn off validation.",
                stacklevel=3,
            )
            return
        for name, constraint in expected.items():
            if constraints.is_dependent(constraint) or name not in self.__dict__:
                continue  # what is made of other parameters fits if these do
            value = getattr(self, name)
            if not constraint.holds(value):
                raise ValueError(
                    f"Expected parameter {name} ({type(value).__name__} of shape {tuple(value.shape)}) of distribution "
                    f"{self!r} to satisfy the constraint {constraint!r}, but found invalid values:\n{value}"
                )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution for every element of a larger batch shape; nothing is copied.

        Every tensor that a distribution keeps has its batch shape in front.
        """
        batch = Size(batch_shape)
        made = object.__new__(type(self)) if _instance is None else _instance
        for name, value in self.__dict__.items():
            made.__dict__[name] = self._expanded(value, batch)
        made._batch_shape = batch
        return made

    def _expanded(self, value: Any, batch: Size) -> Any:
        if isinstance(value, Tensor):
            return value.expand((*batch, *value.shape[len(self._batch_shape) :]))
        return value

    @property
    def batch_shape(self) -> Size:
        """The shape of the parameters."""
        return self._batch_shape

    @property
    def event_shape(self) -> Size:
        """The shape of one element."""
        return self._event_shape

    #: By name of a parameter, the set in which it has to be.
    arg_constraints: ClassVar[Any] = _Undefined()
    #: The set of its elements.
    support: ClassVar[Any] = _Undefined()

    @property
    def mean(self) -> Tensor:
        """The mean."""
        raise NotImplementedError

    @property
    def mode(self) -> Tensor:
        """The element of the greatest probability or density."""
        raise NotImplementedError(f"{type(self)} does not implement mode")

    @property
    def variance(self) -> Tensor:
        """The variance."""
        raise NotImplementedError

    @property
    def stddev(self) -> Tensor:
        """The standard deviation."""
        return self.variance.sqrt()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape (*sample_shape, *batch_shape, *event_shape), without derivatives."""
        with no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws that are differentiable by the parameters."""
        raise NotImplementedError

    def sample_n(self, n: int) -> Tensor:
        """`n` draws; deprecated.

        Warns:
            UserWarning: always.
        """
        warnings.warn(
            "sample_n will be deprecated. Use .sample((n,)) instead", UserWarning, stacklevel=2
        )
        return self.sample((n,))

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density or probability at `value`, one number for each element.

        Raises:
            ValueError: a value that is outside of the support, or of a shape that does not fit.
        """
        raise NotImplementedError

    def cdf(self, value: Tensor) -> Tensor:
        """The probability of an element up to `value`."""
        raise NotImplementedError

    def icdf(self, value: Tensor) -> Tensor:
        """The element up to which the probability is `value`."""
        raise NotImplementedError

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All elements, along a new first dimension; `expand`ed over the batch shape."""
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """The entropy in nats, one number for each distribution of the batch."""
        raise NotImplementedError

    def perplexity(self) -> Tensor:
        """The exponential of the entropy."""
        return self.entropy().exp()

    def _extended_shape(self, sample_shape: Any = ()) -> Size:
        return Size((*sample_shape, *self._batch_shape, *self._event_shape))

    def _enumerated(self, values: Tensor, expand: bool) -> Tensor:
        """`values` along a new first dimension before the batch's."""
        column = values.reshape((-1, *(1 for _ in self._batch_shape)))
        return column.expand((-1, *self._batch_shape)) if expand else column

    def _validate_sample(self, value: Any) -> None:
        """Refuse what is no element.

        Raises:
            ValueError: see there.
        """
        if not isinstance(value, Tensor):
            raise ValueError("The value argument to log_prob must be a Tensor")
        shape, event = value._array.shape, self._event_shape
        if event and shape[-len(event) :] != event:
            raise ValueError(
                "The right-most size of value must match event_shape: "
                f"{tuple(value.shape)} vs {tuple(self._event_shape)}."
            )
        mine = (*self._batch_shape, *event)
        for i, j in zip(shape[::-1], mine[::-1], strict=False):
            if i != j and i != 1 and j != 1:
                raise ValueError(
                    f"Value is not broadcastable with batch_shape+event_shape: {tuple(value.shape)} vs {mine}."
                )
        try:
            support = self.support
        except NotImplementedError:
            return
        if not support.holds(value):
            raise ValueError(
                f"Expected value argument ({type(value).__name__} of shape {tuple(value.shape)}) to be within the support "
                f"({support!r}) of the distribution {self!r}, but found invalid values:\n{value}"
            )

    def _get_checked_instance(self, cls: type, _instance: Any = None) -> Any:
        if _instance is None and type(self).__init__ != cls.__init__:  # type: ignore[misc]
            raise NotImplementedError(
                f"Subclass {type(self).__name__} of {cls.__name__} that defines a custom __init__ method must also define "
                "a custom .expand() method."
            )
        return object.__new__(type(self)) if _instance is None else _instance

    def __repr__(self) -> str:
        names = [name for name in self.arg_constraints if name in self.__dict__]
        shown = ", ".join(
            f"{name}: {value if value.numel() == 1 else value.size()}"
            for name in names
            for value in [self.__dict__[name]]
        )
        return f"{type(self).__name__}({shown})"


class ExponentialFamily(Distribution):
    """Marks the families whose density is an exponential of sufficient statistics."""
