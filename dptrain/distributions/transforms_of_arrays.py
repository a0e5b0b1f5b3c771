"""Maps of vectors and matrices."""

from __future__ import annotations

from typing import Any

from dptrain.core.export import FUNCTIONS
from dptrain.core.size import Size
from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.arguments import Shape, tiny_of
from dptrain.distributions.transform import Transform
from dptrain.nn.functional import pad, softplus


class SoftmaxTransform(Transform):
    """Logarithms of weights to weights that add up to 1; not invertible, as a shift is lost."""

    domain: Any = constraints.real_vector
    codomain: Any = constraints.simplex

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SoftmaxTransform)

    __hash__ = object.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return x.softmax(-1)

    def _inverse_of(self, y: Tensor) -> Tensor:
        return y.log()

    def forward_shape(self, shape: Shape) -> Shape:
        if len(shape) < 1:
            raise ValueError("Too few dimensions on input")
        return shape

    inverse_shape = forward_shape


class StickBreakingTransform(Transform):
    """Vectors of K numbers to K + 1 weights that add up to 1: each breaks its part off what is left."""

    domain: Any = constraints.real_vector
    codomain: Any = constraints.simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StickBreakingTransform)

    __hash__ = object.__hash__

    def _offset(self, x: Tensor) -> Tensor:
        # With it 0 leads to equal weights.
        return x.new_ones(x.shape[-1]).cumsum(-1).neg() + x.shape[-1] + 1

    def _call(self, x: Tensor) -> Tensor:
        share = (x - self._offset(x).log()).sigmoid()
        left = (1 - share).cumprod(-1)
        return pad(share, (0, 1), value=1) * pad(left, (1, 0), value=1)

    def _inverse_of(self, y: Tensor) -> Tensor:
        head = y[..., :-1]
        left = (1 - head.cumsum(-1)).clamp(min=tiny_of(y))
        return head.log() - left.log() + self._offset(head).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        moved = x - self._offset(x).log()
        return (y[..., :-1].log() - softplus(moved)).sum(-1)

    def forward_shape(self, shape: Shape) -> Shape:
        if len(shape) < 1:
            raise ValueError("Too few dimensions on input")
        return Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Shape) -> Shape:
        if len(shape) < 1:
            raise ValueError("Too few dimensions on input")
        return Size((*shape[:-1], shape[-1] - 1))


class LowerCholeskyTransform(Transform):
    """Square matrices to lower triangular ones with a positive diagonal."""

    domain: Any = constraints.independent(constraints.real, 2)
    codomain: Any = constraints.lower_cholesky

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LowerCholeskyTransform)

    __hash__ = object.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return x.tril(-1) + x.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _inverse_of(self, y: Tensor) -> Tensor:
        return y.tril(-1) + y.diagonal(dim1=-2, dim2=-1).log().diag_embed()


class PositiveDefiniteTransform(Transform):
    """Square matrices to positive definite ones: those whose Cholesky factor `LowerCholeskyTransform` gives."""

    domain: Any = constraints.independent(constraints.real, 2)
    codomain: Any = constraints.positive_definite

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefiniteTransform)

    __hash__ = object.__hash__

    def _call(self, x: Tensor) -> Tensor:
        factor = LowerCholeskyTransform()(x)
        return factor @ factor.mT

    def _inverse_of(self, y: Tensor) -> Tensor:
        factor = FUNCTIONS["linalg.cholesky"](y)
        return LowerCholeskyTransform().inv(factor)
