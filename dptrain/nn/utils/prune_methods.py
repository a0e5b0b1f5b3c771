"""The methods of `nn.utils.prune`: which elements of a parameter are held at 0.

Owns: `BasePruningMethod`, the hook that puts the masked parameter in its place, and the methods of PyTorch.
Must not know: several parameters at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar

from dptrain.core.creation import ones_like, zeros_like
from dptrain.core.export import FUNCTIONS
from dptrain.core.random_tensors import rand, rand_like
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module


def hook_of(module: Module, name: str) -> int | None:
    """The key of the hook that prunes a parameter, if one does."""
    for key, entry in module._forward_pre_hooks.items():
        if isinstance(entry.run, BasePruningMethod) and entry.run._tensor_name == name:
            return key
    return None


class BasePruningMethod(ABC):
    """A method of pruning; a subclass defines `PRUNING_TYPE` and `compute_mask`.

    Attributes:
        PRUNING_TYPE: "unstructured" (single elements), "structured" (slices along `dim`) or "global" (the whole
            tensor is handed over, with what is pruned already).
    """

    PRUNING_TYPE: ClassVar[str]
    _tensor_name: str | None = None

    def __call__(self, module: Module, inputs: Any) -> None:
        """The hook: put the masked parameter in its place."""
        setattr(module, str(self._tensor_name), self.apply_mask(module))

    @abstractmethod
    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask over `t`: that of before, `default_mask`, with further zeros."""

    def apply_mask(self, module: Module) -> Tensor:
        """The parameter times its mask, with gradients for the parameter.

        Raises:
            AssertionError: the method is not applied to a parameter.
        """
        if self._tensor_name is None:
            raise AssertionError(f"Module {module} has to be pruned")
        original = getattr(module, f"{self._tensor_name}_orig")
        pruned: Tensor = getattr(module, f"{self._tensor_name}_mask").to(original.dtype) * original
        return pruned

    @classmethod
    def apply(
        cls,
        module: Module,
        name: str,
        *args: Any,
        importance_scores: Tensor | None = None,
        **kwargs: Any,
    ) -> BasePruningMethod:
        """Prune a parameter, further if it is pruned already.

        Args:
            module: that has the parameter.
            name: of the parameter.
            args, kwargs: of the method.
            importance_scores: compared in the place of the values; of the same shape.

        Returns:
            The hook: the method, or a `PruningContainer` of all that were applied.

        Raises:
            AssertionError: scores of another shape.
        """
        key = hook_of(module, name)
        before: Any = None if key is None else module._forward_pre_hooks[key].run
        method: BasePruningMethod = cls(*args, **kwargs)
        method._tensor_name = name
        value = getattr(module, name)
        scores = value if importance_scores is None else importance_scores
        if scores.shape != value.shape:
            raise AssertionError(
                f"importance_scores should have the same shape as parameter {name} of {module}, "
                f"got {list(scores.shape)} and {list(value.shape)}"
            )
        if before is None:
            mask = method.compute_mask(scores.detach(), ones_like(value.detach()))
            delattr(module, name)
            module.register_parameter(f"{name}_orig", value)
        else:
            container = before if isinstance(before, PruningContainer) else PruningContainer(before)
            if before is container:  # a mask that fails leaves it as it was
                container = PruningContainer(*before)
            container.add_pruning_method(method)
            method = container
            held = getattr(module, f"{name}_mask").detach().clone()
            mask = method.compute_mask(scores.detach(), held)
            assert key is not None
            del module._forward_pre_hooks[key]
        module.register_buffer(f"{name}_mask", mask)
        method(module, ())
        module.register_forward_pre_hook(method)
        return method

    def prune(
        self,
        t: Tensor,
        default_mask: Tensor | None = None,
        importance_scores: Tensor | None = None,
    ) -> Tensor:
        """A pruned form of a tensor that belongs to no module.

        Args:
            t: the tensor.
            default_mask: what is pruned already; nothing if None.
            importance_scores: compared in the place of the values; of the same shape.

        Raises:
            AssertionError: scores of another shape.
        """
        scores = t if importance_scores is None else importance_scores
        if scores.shape != t.shape:
            raise AssertionError("importance_scores should have the same shape as tensor t")
        mask = ones_like(t.detach()) if default_mask is None else default_mask
        return t * self.compute_mask(scores.detach(), default_mask=mask)

    def remove(self, module: Module) -> None:
        """Make the parameter an ordinary one again; the hook is taken off by `prune.remove`.

        Raises:
            AssertionError: the method is not applied to a parameter.
        """
        pruned, name = self.apply_mask(module), str(self._tensor_name)
        delattr(module, name)
        original = module._parameters[f"{name}_orig"]
        assert original is not None
        original.data = pruned.detach()
        delattr(module, f"{name}_orig")
        delattr(module, f"{name}_mask")
        setattr(module, name, original)


class PruningContainer(BasePruningMethod):
    """The methods that were applied to one parameter, one after another; only the last computes.

    Args:
        args: the methods, for one parameter.
    """

    def __init__(self, *args: BasePruningMethod) -> None:
        self._pruning_methods: tuple[BasePruningMethod, ...] = ()
        if args and args[0] is not None:
            self._tensor_name = getattr(args[0], "_tensor_name", None)
        for method in args:
            self.add_pruning_method(method)

    def add_pruning_method(self, method: BasePruningMethod | None) -> None:
        """Add a method that acts on the same parameter.

        Raises:
            TypeError: it is no method.
            ValueError: it acts on another parameter.
        """
        if method is None:
            return
        if not isinstance(method, BasePruningMethod):
            raise TypeError(f"{type(method)} is not a BasePruningMethod subclass")
        if self._tensor_name != method._tensor_name:
            raise ValueError(
                f"Can only add pruning methods acting on the parameter named '{self._tensor_name}' to "
                f"PruningContainer {self}. Found '{method._tensor_name}'"
            )
        self._pruning_methods += (method,)

    def __len__(self) -> int:
        return len(self._pruning_methods)

    def __iter__(self) -> Iterator[BasePruningMethod]:
        return iter(self._pruning_methods)

    def __getitem__(self, idx: Any) -> Any:
        return self._pruning_methods[idx]

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The last method's mask over what is left, within `default_mask`.

        Raises:
            AttributeError: a structured method without `dim`.
            ValueError: an unknown `PRUNING_TYPE`.
        """
        method: Any = self._pruning_methods[-1]
        mask = default_mask.to(t.dtype).clone()
        if method.PRUNING_TYPE == "unstructured":
            left: Any = default_mask == 1
        elif method.PRUNING_TYPE == "structured":
            if not hasattr(method, "dim"):
                raise AttributeError(
                    'Pruning methods of PRUNING_TYPE "structured" need to have the attribute `dim` defined.'
                )
            left = _slices(default_mask, _left_along(default_mask, method.dim), method.dim)
        elif method.PRUNING_TYPE == "global":
            left = ...
        else:
            raise ValueError(f"Unrecognized PRUNING_TYPE {method.PRUNING_TYPE}")
        mask[left] = method.compute_mask(t[left], default_mask=default_mask[left]).to(t.dtype)
        return mask


class Identity(BasePruningMethod):
    """Prunes nothing."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask of before."""
        return default_mask


class _Unstructured(BasePruningMethod):
    """Prunes the elements of the smallest scores.

    Args:
        amount: how many (int), or what part of them (float in [0, 1]).
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: float) -> None:
        _check_amount(amount)
        self.amount = amount

    def _scores(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask of before, with zeros where the scores are smallest."""
        count = _count(self.amount, t.numel())
        mask = default_mask.clone()
        if count:
            lowest = self._scores(t).reshape(-1).topk(count, largest=False)[1]
            mask.view(-1)[lowest] = 0
        return mask


class RandomUnstructured(_Unstructured):
    """Prunes elements at random.

    Args:
        amount: how many (int), or what part of them (float in [0, 1]).
    """

    def _scores(self, t: Tensor) -> Tensor:
        return rand_like(t)


class L1Unstructured(_Unstructured):
    """Prunes the elements of the smallest absolute value.

    Args:
        amount: how many (int), or what part of them (float in [0, 1]).
    """

    def _scores(self, t: Tensor) -> Tensor:
        return t.abs()


class _Structured(BasePruningMethod):
    """Prunes the slices of the smallest scores along one dimension."""

    PRUNING_TYPE = "structured"
    amount: float
    dim: int

    def _scores(self, t: Tensor) -> Tensor:
        """One score for each slice."""
        raise NotImplementedError

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask of before, with zeros in the slices of the smallest scores.

        Raises:
            ValueError: less than two dimensions, or more slices than there are.
            IndexError: there is no such dimension.
        """
        if t.ndim < 2:
            raise ValueError(
                "Structured pruning can only be applied to multidimensional tensors. Found tensor of shape "
                f"{list(t.shape)} with {t.ndim} dims"
            )
        if self.dim >= t.ndim:
            raise IndexError(f"Invalid index {self.dim} for tensor of size {t.shape}")
        count = _count(self.amount, t.shape[self.dim])
        if not count:
            return default_mask
        highest = self._scores(t).topk(t.shape[self.dim] - count)[1]
        mask = zeros_like(t)
        mask[_slices(t, highest, self.dim)] = 1
        return mask * default_mask.to(mask.dtype)


class RandomStructured(_Structured):
    """Prunes slices at random.

    Args:
        amount: how many (int), or what part of them (float in [0, 1]).
        dim: the dimension that counts slices.
    """

    def __init__(self, amount: float, dim: int = -1) -> None:
        _check_amount(amount)
        self.amount, self.dim = amount, dim

    def _scores(self, t: Tensor) -> Tensor:
        return rand(t.shape[self.dim])


class LnStructured(_Structured):
    """Prunes the slices of the smallest norm.

    Args:
        amount: how many (int), or what part of them (float in [0, 1]).
        n: order of the norm, as for `dptrain.norm`.
        dim: the dimension that counts slices.
    """

    def __init__(self, amount: float, n: Any, dim: int = -1) -> None:
        _check_amount(amount)
        self.amount, self.n, self.dim = amount, n, dim

    def _scores(self, t: Tensor) -> Tensor:
        norms: Tensor = FUNCTIONS["norm"](t, p=self.n, dim=_others(t, self.dim))
        return norms


class CustomFromMask(BasePruningMethod):
    """Prunes where a mask is 0.

    Args:
        mask: of the parameter's shape.
    """

    PRUNING_TYPE = "global"

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The mask of before times that of the user.

        Raises:
            AssertionError: they differ in shape.
        """
        if default_mask.shape != self.mask.shape:
            raise AssertionError(
                f"the mask has shape {list(self.mask.shape)}, the parameter {list(default_mask.shape)}"
            )
        return default_mask * self.mask.to(default_mask.dtype)


def _check_amount(amount: Any) -> None:
    if not isinstance(amount, Real) or isinstance(amount, bool):
        raise TypeError(f"Invalid type for amount: {amount}. Must be int or float.")
    highest = math.inf if isinstance(amount, Integral) else 1.0
    if not 0 <= float(amount) <= highest:
        raise ValueError(
            f"amount={amount} should either be a float in the range [0, 1] or a non-negative integer"
        )


def _count(amount: float, size: int) -> int:
    """How many of `size` things an amount is."""
    if not isinstance(amount, Integral):
        return round(amount * size)
    if int(amount) > size:
        raise ValueError(
            f"amount={amount} should be smaller than the number of parameters to prune={size}"
        )
    return int(amount)


def _others(t: Tensor, dim: int) -> list[int]:
    return [d for d in range(t.ndim) if d != dim % t.ndim]


def _left_along(mask: Tensor, dim: int) -> Tensor:
    """Which slices along `dim` are not pruned as a whole."""
    if not -mask.ndim <= dim < mask.ndim:
        raise IndexError(
            f"Index is out of bounds for tensor with dimensions {mask.ndim}: dim={dim}"
        )
    left: Tensor = mask.sum(_others(mask, dim)) != 0
    return left


def _slices(t: Tensor, chosen: Tensor, dim: int) -> tuple[Any, ...]:
    """The index of the slices `chosen` along `dim`."""
    before: list[Any] = [slice(None)] * (dim % t.ndim)
    return (*before, chosen)
