"""Spectral normalisation by a hook (PyTorch's old interface; `parametrizations` has the new one)."""

from __future__ import annotations

from typing import Any, TypeVar

from dptrain.core.failures import telling
from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter
from dptrain.nn.utils import norms

_M = TypeVar("_M", bound=Module)


class SpectralNorm:
    """The hook: divides the weight by its largest singular value before each forward.

    Args:
        name: of the weight; the parameter is `name_orig`, the singular vectors are buffers `name_u`
            and `name_v`.
        n_power_iterations: iterations of each forward in training.
        dim: dimension of the weight that counts outputs.
        eps: shortest length that vectors are divided by.
    """

    def __init__(
        self, name: str = "weight", n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12
    ) -> None:
        if n_power_iterations <= 0:
            raise ValueError(
                "Expected n_power_iterations to be positive, but "
                f"got n_power_iterations={n_power_iterations}"
            )
        self.name = name
        self.dim = dim
        self.n_power_iterations = n_power_iterations
        self.eps = eps

    def reshape_weight_to_matrix(self, weight: Tensor) -> Tensor:
        """The weight as (outputs, all else)."""
        return norms.as_matrix(weight, self.dim)

    def compute_weight(self, module: Module, do_power_iteration: bool) -> Tensor:
        """The weight, with gradients for the original."""
        weight = getattr(module, self.name + "_orig")
        u, v = getattr(module, self.name + "_u"), getattr(module, self.name + "_v")
        matrix = self.reshape_weight_to_matrix(weight)
        if do_power_iteration:
            norms.power_iteration(matrix, u, v, self.n_power_iterations, self.eps, u_first=False)
        normed: Tensor = weight / norms.spectral_norm(matrix, u, v)
        return normed

    @staticmethod
    def apply(
        module: Module, name: str, n_power_iterations: int, dim: int, eps: float
    ) -> SpectralNorm:
        """Put the hook on a module; see `spectral_norm`."""
        if _hook_of(module, name) is not None:
            raise RuntimeError(
                f"Cannot register two spectral_norm hooks on the same parameter {name}"
            )
        hook = SpectralNorm(name, n_power_iterations, dim, eps)
        weight = module._parameters[name]
        if weight is None:
            raise ValueError(f"`SpectralNorm` cannot be applied as parameter `{name}` is None")
        with no_grad():
            height, width = norms.as_matrix(weight, dim).shape
            u, v = (norms.random_direction(weight, size, eps) for size in (height, width))
        delattr(module, name)
        module.register_parameter(name + "_orig", weight)
        setattr(module, name, weight.data)
        module.register_buffer(name + "_u", u)
        module.register_buffer(name + "_v", v)
        module.register_forward_pre_hook(hook)
        return hook

    def remove(self, module: Module) -> None:
        """Make the weight a parameter again."""
        with no_grad():
            weight = self.compute_weight(module, do_power_iteration=False)
        for suffix in ("", "_u", "_v", "_orig"):
            delattr(module, self.name + suffix)
        module.register_parameter(self.name, Parameter(weight.detach()))

    def __call__(self, module: Module, inputs: Any) -> None:
        setattr(module, self.name, self.compute_weight(module, module.training))


@telling
def spectral_norm(
    module: _M,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> _M:
    """Let the module work with a parameter divided by its largest singular value.

    Args:
        module: that has the parameter.
        name: of the parameter.
        n_power_iterations: iterations of each forward in training.
        eps: shortest length that vectors are divided by.
        dim: dimension that counts outputs; 1 for transposed convolutions, otherwise 0, if None.

    Raises:
        RuntimeError: it is done already.
        ValueError: no iterations.
        KeyError: there is no such parameter.
    """
    dim = norms.output_dim(module) if dim is None else dim
    SpectralNorm.apply(module, name, n_power_iterations, dim, eps)
    return module


@telling
def remove_spectral_norm(module: _M, name: str = "weight") -> _M:
    """Take `spectral_norm` back.

    Raises:
        ValueError: it is not there.
    """
    key = _hook_of(module, name)
    if key is None:
        raise ValueError(f"spectral_norm of '{name}' not found in {module}")
    hook = module._forward_pre_hooks.pop(key).run
    hook.remove(module)  # type: ignore[attr-defined]
    return module


def _hook_of(module: Module, name: str) -> int | None:
    for key, entry in module._forward_pre_hooks.items():
        if isinstance(entry.run, SpectralNorm) and entry.run.name == name:
            return key
    return None
