"""PyTorch's `nn.utils.prune`: parameters of which some elements are held at 0 by a mask.

A pruned parameter `name` becomes `name_orig`, which is trained, and a buffer `name_mask`; before each forward
the module gets their product as `name`. Owns: applying, combining and removing masks, and the functions of
the user. How each method chooses its elements is in `prune_methods.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from dptrain.core.creation import ones_like
from dptrain.core.export import FUNCTIONS
from dptrain.core.failures import telling
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.nn.utils.prune_methods import (
    BasePruningMethod,
    CustomFromMask,
    Identity,
    L1Unstructured,
    LnStructured,
    PruningContainer,
    RandomStructured,
    RandomUnstructured,
    hook_of,
)

__all__ = [
    "BasePruningMethod",
    "CustomFromMask",
    "Identity",
    "L1Unstructured",
    "LnStructured",
    "PruningContainer",
    "RandomStructured",
    "RandomUnstructured",
    "custom_from_mask",
    "global_unstructured",
    "identity",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "random_structured",
    "random_unstructured",
    "remove",
]

_M = TypeVar("_M", bound=Module)


@telling
def identity(module: _M, name: str) -> _M:
    """Give a parameter the form of a pruned one, with a mask of ones.

    Args:
        module: that has the parameter.
        name: of the parameter.
    """
    Identity.apply(module, name)
    return module


@telling
def random_unstructured(module: _M, name: str, amount: float) -> _M:
    """Prune elements at random.

    Args:
        module: that has the parameter.
        name: of the parameter.
        amount: how many elements (int), or what part of those that are left (float in [0, 1]).

    Raises:
        ValueError: an amount out of range.
        TypeError: an amount that is no number.
    """
    RandomUnstructured.apply(module, name, amount)
    return module


@telling
def l1_unstructured(
    module: _M, name: str, amount: float, importance_scores: Tensor | None = None
) -> _M:
    """Prune the elements of the smallest absolute value.

    Args:
        module: that has the parameter.
        name: of the parameter.
        amount: how many elements (int), or what part of those that are left (float in [0, 1]).
        importance_scores: compared in the place of the values.

    Raises:
        ValueError: an amount out of range.
        TypeError: an amount that is no number.
    """
    L1Unstructured.apply(module, name, amount=amount, importance_scores=importance_scores)
    return module


@telling
def random_structured(module: _M, name: str, amount: float, dim: int) -> _M:
    """Prune whole slices along one dimension, at random.

    Args:
        module: that has the parameter.
        name: of the parameter.
        amount: how many slices (int), or what part of those that are left (float in [0, 1]).
        dim: the dimension that counts slices.

    Raises:
        ValueError: an amount out of range, or a parameter of less than two dimensions.
        IndexError: there is no such dimension.
    """
    RandomStructured.apply(module, name, amount, dim)
    return module


@telling
def ln_structured(
    module: _M,
    name: str,
    amount: float,
    n: Any,
    dim: int,
    importance_scores: Tensor | None = None,
) -> _M:
    """Prune the slices of the smallest norm along one dimension.

    Args:
        module: that has the parameter.
        name: of the parameter.
        amount: how many slices (int), or what part of those that are left (float in [0, 1]).
        n: order of the norm, as for `dptrain.norm`.
        dim: the dimension that counts slices.
        importance_scores: compared in the place of the values.

    Raises:
        ValueError: an amount out of range, or a parameter of less than two dimensions.
        IndexError: there is no such dimension.
    """
    LnStructured.apply(module, name, amount, n, dim, importance_scores=importance_scores)
    return module


@telling
def custom_from_mask(module: _M, name: str, mask: Tensor) -> _M:
    """Prune the elements where a mask is 0.

    Args:
        module: that has the parameter.
        name: of the parameter.
        mask: of the parameter's shape.
    """
    CustomFromMask.apply(module, name, mask)
    return module


@telling
def global_unstructured(
    parameters: Iterable[tuple[Module, str]],
    pruning_method: type[BasePruningMethod],
    importance_scores: dict[tuple[Module, str], Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Prune several parameters together: the elements of all of them are compared.

    Args:
        parameters: pairs of a module and the name of one of its parameters.
        pruning_method: the class of an unstructured method.
        importance_scores: by such a pair, compared in the place of the values.
        kwargs: for the method, such as `amount`.

    Raises:
        TypeError: no collection, or a method that is not unstructured.
    """
    if not isinstance(parameters, Iterable):
        raise TypeError("global_unstructured(): parameters is not an Iterable")
    scores = {} if importance_scores is None else importance_scores
    if not isinstance(scores, dict):
        raise TypeError("global_unstructured(): importance_scores must be of type dict")
    pairs = list(parameters)
    held = [getattr(module, name) for module, name in pairs]
    masks = [
        getattr(module, f"{name}_mask", ones_like(p.detach()))
        for (module, name), p in zip(pairs, held, strict=True)
    ]
    method = pruning_method(**kwargs)
    if method.PRUNING_TYPE != "unstructured":
        raise TypeError(
            'Only "unstructured" PRUNING_TYPE supported for the `pruning_method`. '
            f"Found method {pruning_method} of type {method.PRUNING_TYPE}"
        )
    method._tensor_name = "temp"
    compared = [scores.get(pair, p) for pair, p in zip(pairs, held, strict=True)]
    flat = FUNCTIONS["cat"]([s.detach().reshape(-1) for s in compared])
    mask = PruningContainer(method).compute_mask(
        flat, FUNCTIONS["cat"]([m.reshape(-1) for m in masks])
    )
    start = 0
    for (module, name), p in zip(pairs, held, strict=True):
        part = mask[start : start + p.numel()].reshape(p.shape)
        custom_from_mask(module, name, part)
        start += p.numel()


@telling
def remove(module: _M, name: str) -> _M:
    """Make a pruned parameter an ordinary one again, which keeps its zeros.

    Args:
        module: that has the parameter.
        name: of the parameter.

    Raises:
        ValueError: it is not pruned.
    """
    key = hook_of(module, name)
    if key is None:
        raise ValueError(
            f"Parameter '{name}' of module {module} has to be pruned before pruning.remove can be called"
        )
    method: Any = module._forward_pre_hooks.pop(key).run
    method.remove(module)
    return module


@telling
def is_pruned(module: Module) -> bool:
    """Whether any parameter of the module or of those below it is pruned."""
    return any(
        isinstance(entry.run, BasePruningMethod)
        for _, part in module.named_modules()
        for entry in part._forward_pre_hooks.values()
    )
