"""One call of a module with hooks around it.

Owns: the order in which hooks on all modules, hooks of the module and `forward` run. Must not know:
how hooks are registered.
"""

from __future__ import annotations

import warnings
from typing import Any

from dptrain.core.callers import level_outside
from dptrain.nn.backward_hooks import BackwardHooks
from dptrain.nn.global_hooks import CALLS, ForwardHook


class HookedCall:
    """The call of `module` with these arguments.

    Args:
        module: that is called.
        args, kwargs: of its `forward`; hooks may change them.
    """

    def __init__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._module, self._args, self._kwargs = module, args, kwargs
        self._result: Any = None
        self._done: set[int] = set()

    def run(self) -> Any:
        """The result of `forward` after all hooks."""
        module = self._module
        for hook in _both("forward_pre", module._forward_pre_hooks).values():
            self._change_arguments(hook)
        around = None
        hooks = _both("backward", module._backward_hooks)
        pre_hooks = _both("backward_pre", module._backward_pre_hooks)
        if hooks or pre_hooks:
            around = BackwardHooks(module, list(hooks.values()), list(pre_hooks.values()))
            self._args = around.on_inputs(self._args)
        self._result = module.forward(*self._args, **self._kwargs)
        for key, hook in _both("forward", module._forward_hooks).items():
            self._done.add(key)
            self._change_result(hook)
        return self._result if around is None else around.on_output(self._result)

    def run_always(self) -> None:
        """After an error: the hooks that run in any case and did not yet."""
        for key, hook in _both("forward", self._module._forward_hooks).items():
            if not hook.always_call or key in self._done:
                continue
            try:
                self._change_result(hook)
            except Exception as error:  # the first error is the one to be seen
                warnings.warn(
                    "module forward hook with `always_call=True` raised an exception that was silenced as another "
                    f"error was raised in forward: {error}",
                    stacklevel=level_outside(),
                )

    def _change_arguments(self, hook: ForwardHook) -> None:
        if not hook.with_kwargs:
            changed = hook.run(self._module, self._args)
            if changed is not None:
                self._args = changed if isinstance(changed, tuple) else (changed,)
            return
        changed = hook.run(self._module, self._args, self._kwargs)
        if changed is not None:
            if not (isinstance(changed, tuple) and len(changed) == 2):
                raise RuntimeError(
                    "forward pre-hook must return None or a tuple of (new_args, new_kwargs), "
                    f"but got {changed}."
                )
            self._args, self._kwargs = changed

    def _change_result(self, hook: ForwardHook) -> None:
        given = (self._args, self._kwargs) if hook.with_kwargs else (self._args,)
        changed = hook.run(self._module, *given, self._result)
        if changed is not None:
            self._result = changed


def _both(kind: str, own: dict[int, Any]) -> dict[int, Any]:
    """The hooks on all modules and then those of one, as they are now."""
    return {**CALLS[kind], **own}
