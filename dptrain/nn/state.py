"""Taking a module's state out and putting it back: `state_dict` and `load_state_dict`.

Owns: `ModuleState`, the order and names of the entries, the checks, hooks and report text. Must not
know: files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.failures import telling_method
from dptrain.core.grad_mode import no_grad
from dptrain.core.hooks import RemovableHandle, add_hook
from dptrain.core.lent_memory import from_numpy
from dptrain.core.size import Size
from dptrain.core.tensor import Tensor
from dptrain.nn.parameter import Parameter, is_lazy
from dptrain.nn.tree import ModuleTree

_EXTRA = "_extra_state"


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found: names that the module misses, names that it does not know."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"_IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


class _Loading(OrderedDict[str, Any]):
    """A state dictionary while it is loaded: what is copied waits until all has been checked."""

    def __init__(self, entries: Any, waiting: list[Callable[[], None]]) -> None:
        super().__init__(entries)
        self.waiting = waiting


class ModuleState(ModuleTree):
    """The part of `Module` that its values enter and leave by name."""

    #: Written into the metadata of `state_dict()`; a class whose entries change raises it.
    _version: int = 1

    _state_dict_hooks: dict[int, Callable[..., Any]]
    _state_dict_pre_hooks: dict[int, Callable[..., Any]]
    _load_state_dict_pre_hooks: dict[int, tuple[Callable[..., Any], bool]]
    _load_state_dict_post_hooks: dict[int, Callable[..., Any]]

    def __init__(self) -> None:
        super().__init__()
        self.__dict__.update(
            _state_dict_hooks={},
            _state_dict_pre_hooks={},
            _load_state_dict_pre_hooks={},
            _load_state_dict_post_hooks={},
        )

    # ---- out -------------------------------------------------------------------------------------

    @telling_method
    def state_dict(
        self,
        *args: Any,
        destination: Any = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> Any:
        """Parameters and persistent buffers by dotted name, sharing memory with the module.

        Args:
            args: the options by position, as old programs give them.
            destination: fill this mapping instead of a new one.
            prefix: put before every name.
            keep_vars: give the parameters themselves instead of detached tensors.
        """
        given = dict(zip(("destination", "prefix", "keep_vars"), args, strict=False))
        destination = given.get("destination", destination)
        prefix, keep_vars = given.get("prefix", prefix), given.get("keep_vars", keep_vars)
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        local = {"version": self._version}
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = local
        for hook in self._state_dict_pre_hooks.values():
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, child in self._modules.items():
            if child is not None:
                child.state_dict(
                    destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars
                )
        for hook in self._state_dict_hooks.values():
            changed = hook(self, destination, prefix, local)
            if changed is not None:
                destination = changed
        return destination

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Put the entries of this module alone into `destination`; classes may override it."""
        for name, tensor in self._own_entries().items():
            as_is = keep_vars or is_lazy(tensor)
            destination[prefix + name] = tensor if as_is else tensor.detach()
        if type(self).get_extra_state is not ModuleState.get_extra_state:
            destination[prefix + _EXTRA] = self.get_extra_state()

    def _own_entries(self) -> dict[str, Tensor]:
        """Parameters, then persistent buffers, of this module alone."""
        hidden = self._non_persistent_buffers_set
        kept = {name: b for name, b in self._buffers.items() if name not in hidden}
        return {n: t for n, t in [*self._parameters.items(), *kept.items()] if t is not None}

    def get_extra_state(self) -> Any:
        """What else is part of `state_dict()`; a class that has some overrides this."""
        raise RuntimeError(
            "Reached a code path in Module.get_extra_state() that should never be called: a class that has extra "
            "state overrides it"
        )

    def set_extra_state(self, state: Any) -> None:
        """Take back what `get_extra_state` gave; a class that overrides one overrides both."""
        raise RuntimeError(
            "Reached a code path in Module.set_extra_state() that should never be called: a class that has extra "
            "state overrides it"
        )

    # ---- in --------------------------------------------------------------------------------------

    @telling_method
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Copy values into the parameters and buffers, in place.

        Everything is checked before anything is copied: a load that fails changes nothing (PyTorch
        copies what fits and then raises). Where hooks that run after loading are registered, values
        are copied before them, and missing names are reported after them.

        Args:
            state_dict: tensors or arrays by dotted name.
            strict: whether missing and unexpected names are errors.
            assign: put the given tensors in the places of the module's, rather than copy them.

        Returns:
            The missing and the unexpected names.

        Raises:
            TypeError: `state_dict` is no mapping.
            RuntimeError: names (when strict) or shapes do not fit; lists all of them.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
        found = IncompatibleKeys([], [])
        problems: list[str] = []
        metadata = getattr(state_dict, "_metadata", {})
        visited: list[ModuleState] = []
        loading = _Loading(state_dict, [])
        self._load_tree(loading, "", metadata, assign, found, problems, visited)
        hooks = [(m, h) for m in visited for h in m._load_state_dict_post_hooks.values()]
        if hooks and not problems:
            _copy(loading)
            for module, hook in hooks:
                if hook(module, found) is not None:
                    raise AssertionError(
                        "Hooks registered with `register_load_state_dict_post_hook` must return None; "
                        "incompatible_keys may be changed in place"
                    )
        names = [
            f"{what} key(s) in state_dict: {', '.join(map(_quoted, keys))}. "
            for what, keys in zip(("Missing", "Unexpected"), found, strict=True)
            if strict and keys
        ]
        if names or problems:
            raise RuntimeError(
                f"Error(s) in loading state_dict for {type(self).__name__}:\n\t"
                + "\n\t".join(names + problems)
            )
        _copy(loading)
        return found

    def _load_tree(
        self,
        state: _Loading,
        prefix: str,
        metadata: Mapping[str, Any],
        assign: bool,
        found: IncompatibleKeys,
        problems: list[str],
        visited: list[ModuleState],
    ) -> None:
        local = dict(metadata.get(prefix[:-1], {}))
        if assign:
            local["assign_to_params_buffers"] = True
        self._load_from_state_dict(state, prefix, local, True, *found, problems)
        for name, child in self._modules.items():
            if child is not None:
                path = f"{prefix}{name}."
                part = {k: v for k, v in state.items() if k.startswith(path)}
                below = _Loading(part, state.waiting)
                child._load_tree(below, path, metadata, assign, found, problems, visited)
        visited.append(self)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load the entries of this module alone; classes may override it."""
        report = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        for hook, with_module in tuple(self._load_state_dict_pre_hooks.values()):
            hook(*([self] if with_module else []), state_dict, prefix, *report)
        own = self._own_entries()
        for name, target in own.items():
            key = prefix + name
            if key not in state_dict:
                missing_keys.extend([key] if strict else [])
                continue
            problem = self._load_entry(name, key, target, state_dict, local_metadata)
            error_msgs.extend([problem] if problem else [])
        extra = prefix + _EXTRA
        has_extra = type(self).set_extra_state is not ModuleState.set_extra_state
        if has_extra and extra in state_dict:
            self.set_extra_state(state_dict[extra])
        elif strict and has_extra:
            missing_keys.append(extra)
        known = [extra] if has_extra else []
        for key in [k for k in state_dict if strict and k.startswith(prefix) and k not in known]:
            first, dot, _ = key[len(prefix) :].partition(".")
            if first not in (self._modules if dot else own):
                unexpected_keys.append(key)

    def _load_entry(
        self,
        name: str,
        key: str,
        target: Tensor,
        state_dict: Any,
        local_metadata: dict[str, Any],
    ) -> str | None:
        """Have one value copied or assigned; what is wrong with it, if anything."""
        source = _as_source(state_dict[key])
        if source is None:
            return (
                f'While copying the parameter named "{key}", expected dptrain.Tensor or '
                f"numpy.ndarray from checkpoint but received {type(state_dict[key])}"
            )
        if is_lazy(target) and is_lazy(source):
            return None
        if not is_lazy(target) and (problem := _misfit(key, source, target)):
            return problem
        waiting = state_dict.waiting if isinstance(state_dict, _Loading) else None
        run = self._assign if local_metadata.get("assign_to_params_buffers") else _fill

        def put() -> None:
            run(self, name, target, source)

        if waiting is None:  # called by itself, not by `load_state_dict`
            put()
        else:
            waiting.append(put)
        return None

    @staticmethod
    def _assign(module: ModuleState, name: str, target: Tensor, source: Tensor) -> None:
        if source.shape != target.shape:
            source = source.reshape(target.shape)
        if isinstance(target, Parameter):
            if isinstance(source, Parameter):
                source.requires_grad_(target.requires_grad)
            else:
                source = Parameter(source, requires_grad=target.requires_grad)
        setattr(module, name, source)

    # ---- hooks -----------------------------------------------------------------------------------

    def register_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(module, prefix, keep_vars)` before `state_dict()` reads the module."""
        return add_hook(self._state_dict_pre_hooks, hook)

    def register_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(module, state_dict, prefix, local_metadata)`, which may change `state_dict`.

        Raises:
            RuntimeError: the hook returns something.
        """

        def checked(*args: Any) -> None:
            if hook(*args) is not None:
                raise RuntimeError("state_dict post-hook must return None")

        return add_hook(self._state_dict_hooks, checked)

    def _register_state_dict_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """The same, with a hook that may return another `state_dict`."""
        return add_hook(self._state_dict_hooks, hook)

    def register_load_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(module, state_dict, prefix, local_metadata, strict, missing_keys, ...)` first.

        It may change `state_dict`, and the lists `missing_keys`, `unexpected_keys` and `error_msgs`.
        """
        return add_hook(self._load_state_dict_pre_hooks, (hook, True))

    def _register_load_state_dict_pre_hook(
        self, hook: Callable[..., Any], with_module: bool = False
    ) -> RemovableHandle:
        """The same; the hook gets the module only if asked."""
        return add_hook(self._load_state_dict_pre_hooks, (hook, with_module))

    def register_load_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(module, incompatible_keys)` when values are loaded; it may change both lists."""
        return add_hook(self._load_state_dict_post_hooks, hook)


def consume_prefix_in_state_dict_if_present(state_dict: dict[str, Any], prefix: str) -> None:
    """Take a prefix such as "module." off the names that have it, in place and in their order."""
    for name in list(state_dict):
        state_dict[name.removeprefix(prefix)] = state_dict.pop(name)
    metadata: dict[str, Any] = getattr(state_dict, "_metadata", {})
    for path in list(metadata):
        if path and f"{path}.".startswith(prefix):  # "module" is the path of the module itself
            metadata[path[len(prefix) :]] = metadata.pop(path)


def _copy(loading: _Loading) -> None:
    with no_grad():
        for put in loading.waiting:
            put()
    loading.waiting.clear()


def _fill(module: ModuleState, name: str, target: Tensor, source: Tensor) -> None:
    # In place, so that flat storages and other holders of the memory see the new values.
    with no_grad():
        target.copy_(source.reshape(target.shape))


def _quoted(name: str) -> str:
    return f'"{name}"'


def _as_source(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return from_numpy(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else None


def _misfit(name: str, source: Tensor, target: Tensor) -> str | None:
    """What keeps `source` from being copied into `target`, if anything does."""
    # Scalars were saved with one dimension by old versions of PyTorch.
    if source.shape != target.shape and not (target.ndim == 0 and source.shape == (1,)):
        return (
            f"size mismatch for {name}: copying a param with shape {Size(source.shape)} from checkpoint, "
            f"the shape in current model is {target.shape}."
        )
    if source.is_floating_point() and not target.is_floating_point():
        return (
            f"dtype mismatch for {name}: copying a param of {source.dtype} from checkpoint, the dtype in "
            f"current model is {target.dtype}, which cannot hold it."
        )
    return None
