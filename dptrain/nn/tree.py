"""The tree of modules: which parameters, buffers and submodules a module has, under which names.

Owns: registration, attribute access to what is registered, iteration. Must not know: calls, hooks,
modes, files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from dptrain.core.failures import telling_method
from dptrain.core.tensor import Tensor
from dptrain.nn import global_hooks
from dptrain.nn.parameter import Buffer, Parameter

if TYPE_CHECKING:
    from dptrain.nn.module import Module

_TABLES = ("_parameters", "_buffers", "_modules")


class ModuleTree:
    """A node of the tree: the part of `Module` that holds things by name."""

    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _non_persistent_buffers_set: set[str]

    def __init__(self) -> None:
        # Straight into __dict__: __setattr__ needs the tables that this creates.
        self.__dict__.update(
            _parameters={}, _buffers={}, _modules={}, _non_persistent_buffers_set=set()
        )

    # ---- registration ----------------------------------------------------------------------------

    def _check_name(self, name: str, what: str, table: Mapping[str, Any]) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{what} name should be a string. Got {type(name).__name__}")
        if name == "":
            raise KeyError(f'{what} name can\'t be empty string ""')
        if "." in name:
            end = f", got: {name}" if what == "module" else ""
            raise KeyError(f'{what} name can\'t contain "."{end}')
        if hasattr(self, name) and name not in table:
            raise KeyError(f"attribute '{name}' already exists")

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter under `name`; None reserves the name for a parameter that is absent.

        Raises:
            AttributeError: `Module.__init__` has not run.
            KeyError: the name is empty, contains a dot or is taken.
            TypeError: `param` is no `Parameter`.
            ValueError: `param` is the result of an operation and not a leaf.
        """
        if "_parameters" not in self.__dict__:
            raise AttributeError("cannot assign parameter before Module.__init__() call")
        self._check_name(name, "parameter", self._parameters)
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"cannot assign '{type(param).__name__}' object to parameter '{name}' "
                "(dptrain.nn.Parameter or None required)"
            )
        if param is not None and param.grad_fn is not None:
            raise ValueError(
                f"Cannot assign non-leaf Tensor to parameter '{name}'. Model parameters must be created "
                f"explicitly. To express '{name}' as a function of another Tensor, compute the value in "
                "the forward() method."
            )
        if param is not None:
            param = global_hooks.on_registration("parameter", self, name, param)
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that is part of the module's state but no parameter.

        Args:
            name: attribute under which it is found.
            tensor: the values; None reserves the name.
            persistent: whether it is part of `state_dict()`.

        Raises:
            AttributeError: `Module.__init__` has not run.
            KeyError: the name is empty, contains a dot or is taken.
            TypeError: `tensor` is no tensor.
        """
        if "_buffers" not in self.__dict__:
            raise AttributeError("cannot assign buffer before Module.__init__() call")
        self._check_name(name, "buffer", self._buffers)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"cannot assign '{type(tensor).__name__}' object to buffer '{name}' "
                "(dptrain Tensor or None required)"
            )
        self._buffers[name] = global_hooks.on_registration("buffer", self, name, tensor)
        if persistent:
            self._non_persistent_buffers_set.discard(name)
        else:
            self._non_persistent_buffers_set.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a child module under `name`.

        Raises:
            AttributeError: `Module.__init__` has not run.
            KeyError: the name is empty, contains a dot or is taken.
            TypeError: `module` is no `Module`.
        """
        if module is not None and not isinstance(module, ModuleTree):
            raise TypeError(f"{type(module).__name__} is not a Module subclass")
        if "_modules" not in self.__dict__:
            raise AttributeError("cannot assign module before Module.__init__() call")
        self._check_name(name, "module", self._modules)
        self._modules[name] = global_hooks.on_registration("module", self, name, module)

    def register_module(self, name: str, module: Module | None) -> None:
        """The same as `add_module`."""
        self.add_module(name, module)

    def __setattr__(self, name: str, value: Any) -> None:
        tables = self.__dict__
        if isinstance(value, Parameter):
            if "_parameters" not in tables:
                raise AttributeError("cannot assign parameters before Module.__init__() call")
            self._drop(name, keep="_parameters")
            self.register_parameter(name, value)
        elif name in tables.get("_parameters", ()):
            if value is not None:
                raise TypeError(
                    f"cannot assign '{type(value).__name__}' as parameter '{name}' "
                    "(dptrain.nn.Parameter or None expected)"
                )
            self._parameters[name] = None
        elif isinstance(value, ModuleTree):
            if "_modules" not in tables:
                raise AttributeError("cannot assign module before Module.__init__() call")
            self._drop(name, keep="_modules")
            self._modules[name] = global_hooks.on_registration("module", self, name, value)
        elif name in tables.get("_modules", ()):
            if value is not None:
                raise TypeError(
                    f"cannot assign '{type(value).__name__}' as child module '{name}' "
                    "(dptrain.nn.Module or None expected)"
                )
            self._modules[name] = None
        elif name in tables.get("_buffers", ()):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(
                    f"cannot assign '{type(value).__name__}' as buffer '{name}' "
                    "(dptrain.nn.Buffer, dptrain.Tensor or None expected)"
                )
            self._buffers[name] = global_hooks.on_registration("buffer", self, name, value)
        elif isinstance(value, Buffer):
            if "_buffers" not in tables:
                raise AttributeError("cannot assign buffer before Module.__init__() call")
            self._drop(name, keep="_buffers")
            self.register_buffer(name, value, value.persistent)
        else:
            super().__setattr__(name, value)

    def _drop(self, name: str, keep: str) -> None:
        """Forget what was held under `name` in the other tables."""
        self.__dict__.pop(name, None)
        for table in _TABLES:
            if table != keep:
                self.__dict__[table].pop(name, None)
        self._non_persistent_buffers_set.discard(name)

    def __getattr__(self, name: str) -> Any:
        tables = self.__dict__
        held = tables.get("_parameters")
        if held and name in held:  # what layers ask for at each call
            return held[name]
        for table in _TABLES:
            if table in tables and name in (held := tables[table]):
                return held[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __delattr__(self, name: str) -> None:
        for table in _TABLES:
            if name in self.__dict__[table]:
                del self.__dict__[table][name]
                self._non_persistent_buffers_set.discard(name)
                return
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        names = {*super().__dir__(), *self._parameters, *self._buffers, *self._modules}
        return sorted(name for name in names if not name[0].isdigit())

    # ---- the tree --------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules and their names, each once."""
        seen: set[Module] = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct submodules, each once."""
        return (module for _, module in self.named_children())

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module and all below it with their dotted names, parents first."""
        memo = set() if memo is None else memo
        this = cast("Module", self)
        if this in memo:
            return
        if remove_duplicate:
            memo.add(this)
        yield prefix, this
        for name, module in self._modules.items():
            if module is not None:
                path = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(memo, path, remove_duplicate)

    def modules(self, remove_duplicate: bool = True) -> Iterator[Module]:
        """This module and all below it, each once, unless asked."""
        return (module for _, module in self.named_modules(remove_duplicate=remove_duplicate))

    def _named_members(
        self, table: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        modules = (
            self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
            if recurse
            else [(prefix, cast("Module", self))]
        )
        seen: set[int] = set()
        for path, module in modules:
            for name, member in module.__dict__[table].items():
                if member is None or id(member) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(member))
                yield (f"{path}.{name}" if path else name), member

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters and their dotted names; a tied parameter comes once, unless asked."""
        return self._named_members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters, each once."""
        return (param for _, param in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """All buffers and their dotted names."""
        return self._named_members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers, each once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    @telling_method
    def get_submodule(self, target: str) -> Module:
        """The module at the dotted path `target`; the module itself for "".

        Raises:
            AttributeError: there is no such module.
        """
        module = cast("Module", self)
        for name in target.split(".") if target else ():
            found = _attribute(module, name)
            if not isinstance(found, ModuleTree):
                raise AttributeError(f"`{name}` is not an nn.Module")
            module = cast("Module", found)
        return module

    @telling_method
    def set_submodule(self, target: str, module: Module, strict: bool = False) -> None:
        """Put a module at the dotted path `target`, in the place of the one there.

        Args:
            target: the path; all but its last name must exist.
            module: the new one.
            strict: whether the last name must exist too.

        Raises:
            ValueError: an empty path, or no module.
            AttributeError: there is no such place, or something else is there.
        """
        if target == "":
            raise ValueError("Cannot set the submodule without a target name!")
        if not isinstance(module, ModuleTree):
            raise ValueError(f"`module` is not an nn.Module, found {type(module)}")
        path, _, name = target.rpartition(".")
        parent = self.get_submodule(path)
        if strict or hasattr(parent, name):
            found = _attribute(parent, name)
            if not isinstance(found, ModuleTree):
                raise AttributeError(f"`{name}` is not an nn.Module")
        setattr(parent, name, module)

    @telling_method
    def get_parameter(self, target: str) -> Parameter:
        """The parameter at the dotted path `target`.

        Raises:
            AttributeError: there is no such parameter.
        """
        path, _, name = target.rpartition(".")
        found = _attribute(self.get_submodule(path), name)
        if not isinstance(found, Parameter):
            raise AttributeError(f"`{name}` is not an nn.Parameter")
        return found

    @telling_method
    def get_buffer(self, target: str) -> Tensor:
        """The buffer at the dotted path `target`.

        Raises:
            AttributeError: there is no such buffer.
        """
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        found: Tensor = _attribute(module, name)
        if name not in module._buffers:
            raise AttributeError(f"`{name}` is not a buffer")
        return found


def _attribute(module: Module, name: str) -> Any:
    if not hasattr(module, name):
        raise AttributeError(f"{module._get_name()} has no attribute `{name}`")
    return getattr(module, name)
