"""Weight normalisation by a hook (PyTorch's old interface; `parametrizations` has the new one)."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from dptrain.core.callers import level_outside
from dptrain.core.failures import telling
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter, is_lazy
from dptrain.nn.utils import norms

_M = TypeVar("_M", bound=Module)


class WeightNorm:
    """The hook: computes the weight from its direction and its norms before each forward.

    Args:
        name: of the weight; its parts are parameters `name_g` (norms) and `name_v` (direction).
        dim: dimension of which each index has a norm of its own; -1 for one norm in all.
    """

    def __init__(self, name: str, dim: int) -> None:
        self.name = name
        self.dim = dim

    def compute_weight(self, module: Module) -> Tensor:
        """The weight, with gradients for both parts."""
        g, v = getattr(module, self.name + "_g"), getattr(module, self.name + "_v")
        return norms.weight_norm(v, g, self.dim)

    @staticmethod
    def apply(module: Module, name: str, dim: int | None) -> WeightNorm:
        """Put the hook on a module; see `weight_norm`."""
        if _hook_of(module, name) is not None:
            raise RuntimeError(
                f"Cannot register two weight_norm hooks on the same parameter {name}"
            )
        hook = WeightNorm(name, -1 if dim is None else dim)
        weight = getattr(module, name)
        if is_lazy(weight):
            raise ValueError(
                "The module passed to `WeightNorm` can't have uninitialized parameters. Make sure to run the dummy "
                "forward before applying weight normalization"
            )
        sizes = norms.norm_except_dim(weight.detach(), hook.dim)
        delattr(module, name)
        module.register_parameter(name + "_g", Parameter(sizes))
        module.register_parameter(name + "_v", Parameter(weight.detach()))
        hook(module, ())
        module.register_forward_pre_hook(hook)
        return hook

    def remove(self, module: Module) -> None:
        """Make the weight a parameter again."""
        weight = self.compute_weight(module).detach()
        for name in (self.name, self.name + "_g", self.name + "_v"):
            delattr(module, name)
        setattr(module, self.name, Parameter(weight))

    def __call__(self, module: Module, inputs: Any) -> None:
        setattr(module, self.name, self.compute_weight(module))


@telling
def weight_norm(module: _M, name: str = "weight", dim: int | None = 0) -> _M:
    """Split a parameter into norms and direction, which are trained instead of it.

    Args:
        module: that has the parameter.
        name: of the parameter.
        dim: dimension of which each index has a norm of its own; None for one norm in all.

    Raises:
        RuntimeError: it is split already.
        ValueError: it has no shape yet.
        AttributeError: there is no such parameter.
    """
    warnings.warn(
        "`nn.utils.weight_norm` is deprecated in favor of `nn.utils.parametrizations.weight_norm`.",
        FutureWarning,
        stacklevel=level_outside(),
    )
    WeightNorm.apply(module, name, dim)
    return module


@telling
def remove_weight_norm(module: _M, name: str = "weight") -> _M:
    """Take `weight_norm` back.

    Raises:
        ValueError: the parameter is not split.
    """
    key = _hook_of(module, name)
    if key is None:
        raise ValueError(f"weight_norm of '{name}' not found in {module}")
    hook = module._forward_pre_hooks.pop(key).run
    hook.remove(module)  # type: ignore[attr-defined]
    return module


def _hook_of(module: Module, name: str) -> int | None:
    for key, entry in module._forward_pre_hooks.items():
        if isinstance(entry.run, WeightNorm) and entry.run.name == name:
            return key
    return None
