"""The multivariate normal distribution."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from dptrain.core.creation import eye
from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import lazy_property
from dptrain.distributions.distribution import Distribution


class MultivariateNormal(Distribution):
    """Normal vectors of mean `loc` and a covariance that is given in one of three ways.

    Args:
        loc: of shape (..., n).
        covariance_matrix: positive definite, (..., n, n).
        precision_matrix: its inverse.
        scale_tril: its lower Cholesky factor, the cheapest of the three.

    Raises:
        ValueError: none of the three, more than one, or matrices with too few dimensions.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "covariance_matrix": constraints.positive_definite,
        "precision_matrix": constraints.positive_definite,
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if loc.dim() < 1:
            raise ValueError("loc must be at least one-dimensional.")
        given = {
            "covariance_matrix": covariance_matrix,
            "scale_tril": scale_tril,
            "precision_matrix": precision_matrix,
        }
        given = {name: matrix for name, matrix in given.items() if matrix is not None}
        if len(given) != 1:
            raise ValueError(
                "Exactly one of covariance_matrix or precision_matrix or scale_tril may be specified."
            )
        ((name, matrix),) = given.items()
        assert matrix is not None
        if matrix.dim() < 2:
            raise ValueError(
                f"{name} must be at least two-dimensional, with optional leading batch dimensions"
            )
        batch = FUNCTIONS["broadcast_shapes"](matrix.shape[:-2], loc.shape[:-1])
        setattr(self, name, matrix.expand((*batch, -1, -1)))
        self.loc = loc.expand((*batch, -1))
        super().__init__(batch, self.loc.shape[-1:], validate_args=validate_args)
        if scale_tril is not None:
            self._unbroadcasted_scale_tril = scale_tril
        elif covariance_matrix is not None:
            self._unbroadcasted_scale_tril = FUNCTIONS["linalg.cholesky"](covariance_matrix)
        else:
            self._unbroadcasted_scale_tril = _factor_of_inverse(precision_matrix)

    def _expanded(self, value: Any, batch: Any) -> Any:
        factor = self.__dict__.get("_unbroadcasted_scale_tril")
        return value if value is factor else super()._expanded(value, batch)

    @lazy_property
    def scale_tril(self) -> Tensor:
        """The lower Cholesky factor of the covariance."""
        n = self._event_shape[0]
        return self._unbroadcasted_scale_tril.expand((*self._batch_shape, n, n))

    @lazy_property
    def covariance_matrix(self) -> Tensor:
        """The covariance."""
        n, factor = self._event_shape[0], self._unbroadcasted_scale_tril
        return (factor @ factor.mT).expand((*self._batch_shape, n, n))

    @lazy_property
    def precision_matrix(self) -> Tensor:
        """The inverse of the covariance."""
        n = self._event_shape[0]
        inverse = FUNCTIONS["cholesky_inverse"](self._unbroadcasted_scale_tril)
        return inverse.expand((*self._batch_shape, n, n))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        squares = self._unbroadcasted_scale_tril.pow(2).sum(-1)
        return squares.expand((*self._batch_shape, *self._event_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noise = self.loc.new_empty(self._extended_shape(sample_shape)).normal_()
        return self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        distance = mahalanobis(self._unbroadcasted_scale_tril, value - self.loc)
        half_log_det = half_log_determinant(self._unbroadcasted_scale_tril)
        return -0.5 * (self._event_shape[0] * math.log(2 * math.pi) + distance) - half_log_det

    def entropy(self) -> Tensor:
        half_log_det = half_log_determinant(self._unbroadcasted_scale_tril)
        found = 0.5 * self._event_shape[0] * (1.0 + math.log(2 * math.pi)) + half_log_det
        return found.expand(self._batch_shape)


def half_log_determinant(factor: Tensor) -> Tensor:
    """Half the logarithm of the determinant of L L', of L."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def mahalanobis(factor: Tensor, offset: Tensor) -> Tensor:
    """The squared length of L^-1 x, of shape (..., n) for x."""
    solved = FUNCTIONS["linalg.solve_triangular"](factor, offset.unsqueeze(-1), upper=False)
    return solved.squeeze(-1).pow(2).sum(-1)


def _factor_of_inverse(precision: Any) -> Tensor:
    """The lower Cholesky factor of the inverse of a matrix, without inverting it.

    With the matrix turned by half a turn, J P J = M M', the inverse of P is L L' for L = (J M J)^-T.
    """
    turned = FUNCTIONS["linalg.cholesky"](precision.flip(-2, -1)).flip(-2, -1).mT
    unit = eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    found: Tensor = FUNCTIONS["linalg.solve_triangular"](turned, unit, upper=False)
    return found
