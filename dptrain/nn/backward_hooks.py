"""Hooks on the backward pass of a module: between the gradients of its outputs and of its inputs.

Owns: `BackwardHooks`, which puts an identity with a derivative of its own around one call of a module.
Must not know: what the module computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dptrain.core.function import Function
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.tensor import Tensor


class _Gate(Function):
    """The identity; its backward hands all gradients at once to a function, which may replace them."""

    @staticmethod
    def forward(ctx: Any, pass_on: Callable[[Any], Any], *tensors: Tensor) -> Any:
        ctx.pass_on = pass_on
        outs = tuple(t.detach() for t in tensors)
        ctx.mark_non_differentiable(
            *[o for o, t in zip(outs, tensors, strict=True) if not t.requires_grad]
        )
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, *ctx.pass_on(grads))


class BackwardHooks:
    """The hooks of one call of a module.

    Args:
        module: handed to the hooks.
        hooks: called with (module, grad_input, grad_output) when the gradients of the inputs are there.
        pre_hooks: called with (module, grad_output) when those of the outputs are there.
    """

    def __init__(
        self, module: Any, hooks: list[Callable[..., Any]], pre_hooks: list[Callable[..., Any]]
    ) -> None:
        self._module, self._hooks, self._pre_hooks = module, hooks, pre_hooks
        self._grad_output: tuple[Any, ...] | None = None
        self._inputs_differ = False
        self._n_inputs = 0

    def on_inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The positional arguments of the call, behind the gate whose backward comes last."""
        self._n_inputs = len(args)
        found = _through_gate(args, self._after)
        self._inputs_differ = found is not None
        return args if found is None else found

    def on_output(self, result: Any) -> Any:
        """The result of the call, behind the gate whose backward comes first."""
        values = result if isinstance(result, tuple) else (result,)
        found = _through_gate(values, self._before)
        if found is None:
            return result
        if type(result) is tuple:
            return found
        return type(result)(*found) if isinstance(result, tuple) else found[0]

    def _before(self, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        for hook in self._pre_hooks:
            changed = hook(self._module, grads)
            if changed is not None:
                grads = _same_number(changed, grads, "Backward pre hook", "grad_output")
        if self._inputs_differ:
            self._grad_output = grads
            return grads
        nothing = (None,) * self._n_inputs
        for hook in self._hooks:
            changed = hook(self._module, nothing, grads)
            if changed is not None and any(c is not None for c in changed):
                raise RuntimeError(
                    "Backward hook for Modules where no input requires gradient should always return None or None for "
                    "all gradients."
                )
        return grads

    def _after(self, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._grad_output is None:  # a gradient that did not come through the outputs
            return grads
        for hook in self._hooks:
            changed = hook(self._module, grads, self._grad_output)
            if changed is not None:
                grads = _same_number(changed, grads, "Backward hook", "grad_input")
        self._grad_output = None
        return grads


def _same_number(changed: Any, grads: tuple[Any, ...], what: str, of_what: str) -> tuple[Any, ...]:
    changed = changed if isinstance(changed, (tuple, list)) else (changed,)
    if len(changed) != len(grads):
        raise RuntimeError(
            f"{what} returned an invalid number of {of_what}, got {len(changed)}, but expected {len(grads)}"
        )
    return tuple(changed)


def _through_gate(
    values: tuple[Any, ...], receive: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> tuple[Any, ...] | None:
    """The values with their tensors behind a gate; None where there is nothing to differentiate."""
    places = [i for i, v in enumerate(values) if isinstance(v, Tensor)]
    if not is_grad_enabled() or not any(values[i].requires_grad for i in places):
        return None

    def pass_on(grads: tuple[Any, ...]) -> tuple[Any, ...]:
        full: list[Any] = [None] * len(values)
        for i, grad in zip(places, grads, strict=True):
            full[i] = grad
        changed = receive(tuple(full))
        return tuple(changed[i] for i in places)

    result = list(values)
    for i, tensor in zip(places, _Gate.apply(pass_on, *[values[i] for i in places]), strict=True):
        result[i] = tensor
    return tuple(result)
