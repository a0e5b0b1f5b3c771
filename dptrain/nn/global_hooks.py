"""Hooks on every module: on the calls of all of them, and on what is registered in any.

Owns: the tables of hooks and the functions that fill them, which `dptrain.nn.modules.module` shows
where PyTorch has them. Must not know: modules; they ask here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dptrain.core.hooks import RemovableHandle, add_hook


class ForwardHook(NamedTuple):
    """A hook around `forward`, and how it is called."""

    run: Callable[..., Any]
    with_kwargs: bool = False
    always_call: bool = False


#: By kind: forward_pre, forward, backward_pre, backward.
CALLS: dict[str, dict[int, Any]] = {
    kind: {} for kind in ("forward_pre", "forward", "backward_pre", "backward")
}
_REGISTRATIONS: dict[str, dict[int, Callable[..., Any]]] = {
    kind: {} for kind in ("parameter", "buffer", "module")
}
_backward_kind: bool | None = None

ONE_KIND = (
    "Cannot use both regular backward hooks and full backward hooks on a single Module. Please use only "
    "one of them."
)


def on_registration(kind: str, module: Any, name: str, value: Any) -> Any:
    """What is registered instead of `value`, after the hooks of that kind."""
    for hook in tuple(_REGISTRATIONS[kind].values()):
        changed = hook(module, name, value)
        if changed is not None:
            value = changed
    return value


def register_module_parameter_registration_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, name, parameter)` before any is registered; its result takes the place."""
    return add_hook(_REGISTRATIONS["parameter"], hook)


def register_module_buffer_registration_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, name, buffer)` before any is registered; its result takes the place."""
    return add_hook(_REGISTRATIONS["buffer"], hook)


def register_module_module_registration_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, name, submodule)` before any is registered; its result takes the place."""
    return add_hook(_REGISTRATIONS["module"], hook)


def register_module_forward_pre_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, args)` before each `forward`, before the module's own hooks."""
    return add_hook(CALLS["forward_pre"], ForwardHook(hook))


def register_module_forward_hook(
    hook: Callable[..., Any], *, with_kwargs: bool = False, always_call: bool = False
) -> RemovableHandle:
    """Call `hook(module, args, output)` after each `forward`, before the module's own hooks.

    Args:
        hook: returns None or the new output.
        with_kwargs: call `hook(module, args, kwargs, output)`.
        always_call: call it also where `forward` raises.
    """
    return add_hook(CALLS["forward"], ForwardHook(hook, with_kwargs, always_call))


def register_module_backward_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """The old name of `register_module_full_backward_hook`.

    Raises:
        RuntimeError: there is a full hook.
    """
    return _register_backward(hook, full=False)


def register_module_full_backward_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, grad_input, grad_output)` when backward has passed any module.

    Raises:
        RuntimeError: there is a hook of the old kind.
    """
    return _register_backward(hook, full=True)


def _register_backward(hook: Callable[..., Any], full: bool) -> RemovableHandle:
    global _backward_kind
    if CALLS["backward"] and _backward_kind is not full:
        raise RuntimeError(ONE_KIND)
    _backward_kind = full
    return add_hook(CALLS["backward"], hook)


def register_module_full_backward_pre_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, grad_output)` before backward enters any module."""
    return add_hook(CALLS["backward_pre"], hook)
