"""Hooks of optimizers: what runs before and after steps, saving and loading.

Owns: `Hooks`, the base of `Optimizer`, and the hooks of all optimizers. Must not know: parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import chain
from typing import Any

from dptrain.core.capturing import watcher, whole
from dptrain.core.failures import telling_constructor, telling_method
from dptrain.core.hooks import RemovableHandle, add_hook

_Table = dict[int, Callable[..., Any]]

_all_step_pre_hooks: _Table = {}
_all_step_post_hooks: _Table = {}


def register_optimizer_step_pre_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(optimizer, args, kwargs)` before each step of every optimizer.

    Args:
        hook: returns None, or the arguments for `step` as (args, kwargs), the optimizer first in args.
    """
    return add_hook(_all_step_pre_hooks, hook)


def register_optimizer_step_post_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(optimizer, args, kwargs)` after each step of every optimizer."""
    return add_hook(_all_step_post_hooks, hook)


class Hooks:
    """The hooks of one optimizer; `step` of every subclass runs them, its own as well as ours."""

    #: Whether `step` was called; learning rate schedulers warn of the wrong order.
    _opt_called: bool = False
    #: Inside `step`: one that calls its base class's runs the hooks once.
    _stepping: bool = False

    def __init__(self) -> None:
        self._step_pre_hooks: _Table = {}
        self._step_post_hooks: _Table = {}
        self._state_dict_pre_hooks: _Table = {}
        self._state_dict_post_hooks: _Table = {}
        self._load_pre_hooks: _Table = {}
        self._load_post_hooks: _Table = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        telling_constructor(cls)
        if "step" in cls.__dict__:
            cls.step = _hooked(cls.__dict__["step"])  # type: ignore[attr-defined]

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` before each step.

        Args:
            hook: returns None, or the arguments for `step` as (args, kwargs), the optimizer first in args.
        """
        return add_hook(self._step_pre_hooks, hook)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` after each step."""
        return add_hook(self._step_post_hooks, hook)

    def register_state_dict_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call `hook(optimizer)` before `state_dict`."""
        return _placed(self._state_dict_pre_hooks, hook, prepend)

    def register_state_dict_post_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call `hook(optimizer, state_dict)` on what `state_dict` made; it may return another."""
        return _placed(self._state_dict_post_hooks, hook, prepend)

    def register_load_state_dict_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call `hook(optimizer, state_dict)` before loading; it may return another state.

        The hook gets a shallow copy.
        """
        return _placed(self._load_pre_hooks, hook, prepend)

    def register_load_state_dict_post_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call `hook(optimizer)` after loading."""
        return _placed(self._load_post_hooks, hook, prepend)

    def _before_state_dict(self) -> None:
        for hook in tuple(self._state_dict_pre_hooks.values()):
            hook(self)

    def _after_state_dict(self, state: dict[str, Any]) -> dict[str, Any]:
        for hook in tuple(self._state_dict_post_hooks.values()):
            changed = hook(self, state)
            state = state if changed is None else changed
        return state

    def _before_load(self, state: Any) -> Any:
        if self._load_pre_hooks:
            state = dict(state)
        for hook in tuple(self._load_pre_hooks.values()):
            changed = hook(self, state)
            state = state if changed is None else changed
        return state

    def _after_load(self) -> None:
        for hook in tuple(self._load_post_hooks.values()):
            hook(self)


def step_hooks(optimizer: Any) -> list[Callable[..., Any]]:
    """What is called before or after its steps."""
    own = [getattr(optimizer, f"_step_{when}_hooks", {}) for when in ("pre", "post")]
    return [h for t in (_all_step_pre_hooks, _all_step_post_hooks, *own) for h in t.values()]


def _placed(table: _Table, hook: Callable[..., Any], prepend: bool) -> RemovableHandle:
    handle = add_hook(table, hook)
    if prepend:
        for key in list(table)[:-1]:
            table[key] = table.pop(key)
    return handle


def _hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` with the hooks around it; a subclass that wraps another optimizer may have no tables of its own."""
    step = telling_method(step)

    @whole  # the options (lr, ...) are those at each call
    @wraps(step)
    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._stepping:
            return step(self, *args, **kwargs)
        given: tuple[Any, ...] = (self, *args)
        for hook in chain(
            tuple(_all_step_pre_hooks.values()),
            tuple(getattr(self, "_step_pre_hooks", {}).values()),
        ):
            changed = hook(self, given, kwargs)
            if changed is not None:
                if not (isinstance(changed, tuple) and len(changed) == 2):
                    raise RuntimeError(
                        f"{type(self).__name__}.step: a pre-hook must return None or a tuple of (new_args, "
                        f"new_kwargs), but got {changed}."
                    )
                given, kwargs = changed
        self._opt_called = self._stepping = True
        try:
            watch = watcher()
            if watch is None:
                result = step(*given, **kwargs)
            else:
                kind = type(self).__name__
                label = f"Optimizer.step#{kind}.step"
                result = watch.block(label, lambda: step(*given, **kwargs))
        finally:
            self._stepping = False
        for hook in chain(
            tuple(getattr(self, "_step_post_hooks", {}).values()),
            tuple(_all_step_post_hooks.values()),
        ):
            hook(self, given, kwargs)
        return result

    return hooked
