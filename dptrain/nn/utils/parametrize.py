"""Parametrizations: parameters that are functions of others (PyTorch's `nn.utils.parametrize`).

Owns: the registration, and the classes that are made for parametrized modules. Must not know: any
particular parametrization.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np

from dptrain.core.failures import telling
from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.nn.container import ModuleList
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter

_cache_depth = 0
_cache: dict[tuple[int, str], Tensor] = {}


@contextmanager
@telling
def cached() -> Iterator[None]:
    """Compute every parametrized tensor once inside the `with` block."""
    global _cache_depth
    _cache_depth += 1
    try:
        yield
    finally:
        _cache_depth -= 1
        if not _cache_depth:
            _cache.clear()


def _register(module: Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def _set(target: Tensor, source: Tensor) -> None:
    """Give `target` the values of `source`, in place where the shapes allow it."""
    if target._array.shape == source._array.shape:
        np.copyto(target._array, source._array)
        target._bump_version()
    else:
        target.data = source.detach().clone()


def _check_same(what: str, got: Any, like: Tensor, hint: str = "") -> None:
    """Raise ValueError unless `got` is a tensor of the type and shape of `like`."""
    if not isinstance(got, Tensor):
        raise ValueError(f"{what} must return a tensor. Got {type(got).__name__}.")
    for fact in ("dtype", "shape"):
        if getattr(got, fact) != getattr(like, fact):
            raise ValueError(
                f"{what} may not change the {fact} of the tensor{hint}: "
                f"it was {getattr(like, fact)}, it became {getattr(got, fact)}"
            )


_UNSAFE = ", unless the `unsafe` flag is enabled"


class ParametrizationList(ModuleList):
    """The parametrizations of one tensor, and what they are computed from.

    Args:
        modules: applied one after the other; `right_inverse` of each, where there is one, gives the
            first originals.
        original: the tensor, which becomes `original`, or `original0`, `original1`, ... where the first
            parametrization takes several.
        unsafe: do not check that type and shape stay.

    Raises:
        ValueError: no modules, or one that does not keep to the rules.
    """

    def __init__(self, modules: Sequence[Module], original: Tensor, unsafe: bool = False) -> None:
        if len(modules) == 0:
            raise ValueError("ParametrizationList requires one or more modules.")
        super().__init__(modules)
        self.unsafe = unsafe
        before = original.detach().clone()
        new: Any = original
        with no_grad():
            for module in reversed(list(self)):
                if hasattr(module, "right_inverse"):
                    try:
                        new = module.right_inverse(new)
                    except NotImplementedError:
                        continue
        if not isinstance(new, (Tensor, Sequence)):
            raise ValueError(
                "'right_inverse' must return a Tensor or a Sequence of tensors (list, tuple...). "
                f"Got {type(new).__name__}"
            )
        self.is_tensor = isinstance(new, Tensor)
        self.ntensors = 1 if isinstance(new, Tensor) else len(new)
        if isinstance(new, Tensor):
            if new.dtype != original.dtype:
                raise ValueError(
                    "When `right_inverse` outputs one tensor, it may not change the dtype.\n"
                    f"original.dtype: {original.dtype}\nright_inverse(original).dtype: {new.dtype}"
                )
            _set(original, new)
            _register(self, "original", original)
        else:
            self._register_parts(new, original)
        if not unsafe:
            _check_same("Registering a parametrization: it", self(), before, _UNSAFE)

    def _register_parts(self, parts: Sequence[Any], original: Tensor) -> None:
        for i, part in enumerate(parts):
            if not isinstance(part, Tensor):
                raise ValueError(
                    "'right_inverse' must return a Tensor or a Sequence of tensors (list, tuple...). "
                    f"Got element {i} of the sequence with type {type(part).__name__}."
                )
            held = part.detach().clone()
            if isinstance(original, Parameter):
                held = Parameter(held, original.requires_grad)
            _register(self, f"original{i}", held.requires_grad_(original.requires_grad))

    def originals(self) -> list[Tensor]:
        """What the tensor is computed from."""
        names = ["original"] if self.is_tensor else [f"original{i}" for i in range(self.ntensors)]
        return [getattr(self, name) for name in names]

    @no_grad()
    def right_inverse(self, value: Tensor) -> None:
        """Choose the originals so that the tensor becomes `value`, as far as it can.

        Raises:
            RuntimeError: a parametrization has no `right_inverse`.
            ValueError: one returned something else than the originals are.
        """
        new: Any = value
        for module in reversed(list(self)):
            if not hasattr(module, "right_inverse"):
                raise RuntimeError(
                    f"parametrization {type(module).__name__} does not implement right_inverse."
                )
            new = module.right_inverse(new)
        if self.is_tensor != isinstance(new, Tensor):
            kind = "a tensor" if self.is_tensor else "a sequence of tensors"
            raise ValueError(f"`right_inverse` should return {kind}. Got {type(new).__name__}")
        parts, held = [new] if self.is_tensor else list(new), self.originals()
        if len(parts) != len(held):
            raise ValueError(
                f"'right_inverse' must return a sequence of tensors of length {len(held)}. "
                f"Got a sequence of length {len(parts)}."
            )
        for part, original in zip(parts, held, strict=True):
            if part.dtype != original.dtype:
                raise ValueError(
                    f"The tensor returned by `right_inverse` has dtype {part.dtype} "
                    f"while `original` has dtype {original.dtype}"
                )
            _set(original, part)

    def forward(self) -> Any:
        """The tensor, computed from its originals."""
        first, *others = self
        result = first(*self.originals())
        for module in others:
            result = module(result)
        return result


class _ByName(Module):
    """The `ParametrizationList`s of a module by the name of the tensor."""

    def _get_name(self) -> str:
        return "ModuleDict"

    def __getitem__(self, name: str) -> Any:
        return self._modules[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __delitem__(self, name: str) -> None:
        del self._modules[name]

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def keys(self) -> Any:
        """The names."""
        return self._modules.keys()


class _Parametrized:
    """What the class of a parametrized module has in addition."""

    def __getstate__(self) -> Any:
        raise RuntimeError(
            "Serialization of parametrized modules is only supported through state_dict()."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # The class is of this module alone: parametrizing the copy must not change the original.
        cls = type(self)
        own = {k: v for k, v in vars(cls).items() if isinstance(v, property)}
        copy: Any = cls.__new__(type(cls.__name__, cls.__bases__, own))
        memo[id(self)] = copy
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy


def _inject_property(module: Module, name: str) -> None:
    def get(self: Any) -> Any:
        if not _cache_depth:
            return self.parametrizations[name]()
        key = (id(self), name)
        if key not in _cache:
            _cache[key] = self.parametrizations[name]()
        return _cache[key]

    def put(self: Any, value: Tensor) -> None:
        self.parametrizations[name].right_inverse(value)

    setattr(type(module), name, property(get, put))


@telling
def register_parametrization(
    module: Module, tensor_name: str, parametrization: Module, *, unsafe: bool = False
) -> Module:
    """Make a parameter or buffer a function of what takes its place.

    `module.<tensor_name>` is computed at each access from then on; assigning to it calls
    `right_inverse` of the parametrization. A second parametrization is applied to the result of the
    first.

    Args:
        module: that has the tensor.
        tensor_name: of the parameter or buffer.
        parametrization: a module; may have `right_inverse(value)`, which gives the argument (or a
            sequence of arguments) that it makes `value` from.
        unsafe: do not check that type and shape stay.

    Returns:
        The module, whose class is one of its own now.

    Raises:
        ValueError: there is no such tensor, or type or shape change.
    """
    parametrization.train(module.training)
    if is_parametrized(module, tensor_name):
        if not unsafe:
            now = getattr(module, tensor_name)
            new = parametrization(now)
            _check_same("A parametrization", new, now, _UNSAFE)
            if hasattr(parametrization, "right_inverse"):
                try:
                    back = parametrization.right_inverse(new)
                except NotImplementedError:
                    back = now
                _check_same("parametrization.right_inverse", back, now, _UNSAFE)
        held = module.parametrizations[tensor_name]
        held.append(parametrization)
        held.unsafe |= unsafe
    elif tensor_name in module._buffers or tensor_name in module._parameters:
        held = ParametrizationList([parametrization], getattr(module, tensor_name), unsafe=unsafe)
        delattr(module, tensor_name)
        if not is_parametrized(module):
            cls = type(module)
            module.__class__ = type(f"Parametrized{cls.__name__}", (_Parametrized, cls), {})
            module.parametrizations = _ByName()
        _inject_property(module, tensor_name)
        module.parametrizations[tensor_name] = held
    else:
        raise ValueError(
            f"Module '{module}' does not have a parameter, a buffer, or a parametrized element with name "
            f"'{tensor_name}'"
        )
    return module


@telling
def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Whether the module has parametrizations (of that tensor)."""
    held = module._modules.get("parametrizations")
    if not isinstance(held, _ByName):
        return False
    return len(held) > 0 if tensor_name is None else tensor_name in held


@telling
def remove_parametrizations(
    module: Module, tensor_name: str, leave_parametrized: bool = True
) -> Module:
    """Make a parametrized tensor a plain one again.

    Args:
        module: that has it.
        tensor_name: its name.
        leave_parametrized: keep the present value, rather than the original.

    Raises:
        ValueError: it is not parametrized, or there are several originals and none is to be kept.
    """
    if not is_parametrized(module, tensor_name):
        raise ValueError(f"Module {module} does not have a parametrization on {tensor_name}")
    held = module.parametrizations[tensor_name]
    if held.is_tensor:
        original = held.original
        if leave_parametrized:
            with no_grad():
                _set(original, getattr(module, tensor_name))
    elif leave_parametrized:
        value = getattr(module, tensor_name)
        original = Parameter(value.detach()) if value.requires_grad else value
    else:
        raise ValueError(
            "Cannot leave unparametrized (`leave_parametrized=False`) a tensor that is parametrized in terms "
            "of a sequence of tensors."
        )
    delattr(type(module), tensor_name)
    del module.parametrizations[tensor_name]
    if not is_parametrized(module):
        del module._modules["parametrizations"]
        module.__class__ = type_before(type(module))
    _register(module, tensor_name, original)
    return module


@telling
def type_before(cls: type) -> type:
    """The class that a parametrized module's class was made from."""
    before: type = cls.__bases__[1]
    return before


@telling
def type_before_parametrizations(module: Module) -> type:
    """The class of the module, or the one it had before it was parametrized."""
    return type_before(type(module)) if is_parametrized(module) else type(module)


@telling
def transfer_parametrizations_and_params(
    from_module: Module, to_module: Module, tensor_name: str | None = None
) -> Module:
    """Parametrize another module as this one is, with the same parametrizations and originals.

    Args:
        from_module: that has parametrizations.
        to_module: that gets them; tensors that it does not have are made.
        tensor_name: of the tensor; None for all that are parametrized.

    Returns:
        `to_module`.
    """
    if is_parametrized(from_module):
        given = from_module.parametrizations
        for name in list(given.keys()) if tensor_name is None else [tensor_name]:
            if not hasattr(to_module, name):
                setattr(to_module, name, Parameter(getattr(from_module, name).detach()))
            for parametrization in given[name]:
                register_parametrization(to_module, name, parametrization)
            for part, tensor in given[name].named_parameters(recurse=False):
                setattr(to_module.parametrizations[name], part, tensor)
            for part, tensor in given[name].named_buffers(recurse=False):
                setattr(to_module.parametrizations[name], part, tensor)
    return to_module
