"""Parametrizations of weights: PyTorch's `nn.utils.parametrizations`."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from dptrain.core.failures import telling
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.nn.utils import norms
from dptrain.nn.utils.orthogonal import orthogonal
from dptrain.nn.utils.parametrize import register_parametrization

__all__ = ["orthogonal", "spectral_norm", "weight_norm"]

_M = TypeVar("_M", bound=Module)


class _WeightNorm(Module):
    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = -1 if dim is None else dim

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """The direction with the norms."""
        return norms.weight_norm(weight_v, weight_g, self.dim)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Norms and direction."""
        return norms.norm_except_dim(weight, self.dim), weight


@telling
def weight_norm(module: _M, name: str = "weight", dim: int | None = 0) -> _M:
    """Split a tensor into norms (`original0`) and direction (`original1`).

    Args:
        module: that has the parameter or buffer.
        name: of the tensor.
        dim: dimension of which each index has a norm of its own; None for one norm in all.

    Raises:
        ValueError: there is no such tensor.
    """
    register_parametrization(module, name, _WeightNorm(dim), unsafe=True)
    module._register_load_state_dict_pre_hook(partial(_rename_old, name))
    return module


def _rename_old(name: str, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Take state that was saved under the names of `nn.utils.weight_norm`."""
    old = [f"{prefix}{name}_g", f"{prefix}{name}_v"]
    if all(key in state_dict for key in old):
        for i, key in enumerate(old):
            state_dict[f"{prefix}parametrizations.{name}.original{i}"] = state_dict.pop(key)


class _SpectralNorm(Module):
    _u: Tensor
    _v: Tensor

    def __init__(
        self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12
    ) -> None:
        super().__init__()
        ndim = weight.ndim
        if dim >= ndim or dim < -ndim:
            raise IndexError(
                f"Dimension out of range (expected to be in range of [-{ndim}, {ndim - 1}] but got {dim})"
            )
        if n_power_iterations <= 0:
            raise ValueError(
                "Expected n_power_iterations to be positive, but "
                f"got n_power_iterations={n_power_iterations}"
            )
        self.dim = dim if dim >= 0 else dim + ndim
        self.eps = eps
        if ndim > 1:
            self.n_power_iterations = n_power_iterations
            matrix = norms.as_matrix(weight.detach(), self.dim)
            height, width = matrix.shape
            self.register_buffer("_u", norms.random_direction(weight, height, eps))
            self.register_buffer("_v", norms.random_direction(weight, width, eps))
            self._iterate(matrix, 15)

    def _iterate(self, matrix: Tensor, iterations: int) -> None:
        norms.power_iteration(matrix, self._u, self._v, iterations, self.eps, u_first=True)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight divided by its largest singular value; a vector by its length."""
        if weight.ndim == 1:
            return weight / (weight * weight).sum().sqrt().clamp(min=self.eps)
        matrix = norms.as_matrix(weight, self.dim)
        if self.training:
            self._iterate(matrix, self.n_power_iterations)
        return weight / norms.spectral_norm(matrix, self._u, self._v)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The value itself: it is taken for normalised."""
        return value


@telling
def spectral_norm(
    module: _M,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> _M:
    """Let the module work with a tensor divided by its largest singular value.

    Args:
        module: that has the parameter or buffer.
        name: of the tensor.
        n_power_iterations: iterations of each access in training.
        eps: shortest length that vectors are divided by.
        dim: dimension that counts outputs; 1 for transposed convolutions, otherwise 0, if None.

    Raises:
        ValueError: there is no such tensor, or no iterations.
        IndexError: there is no such dimension.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    dim = norms.output_dim(module) if dim is None else dim
    normed = _SpectralNorm(weight, n_power_iterations, dim, eps)
    register_parametrization(module, name, normed)
    return module
