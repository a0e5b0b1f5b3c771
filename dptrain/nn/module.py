"""Module: the base class of everything that holds parameters.

Owns: calls and hooks, modes, conversions, text. The tree of parameters, buffers and submodules is in
`tree.py`, what goes to and comes from files in `state.py`. Must not know: optimizers, processes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Self

from dptrain.core.device import device as device_type
from dptrain.core.dtypes import as_dtype
from dptrain.core.dtypes import dtype as dtype_type
from dptrain.core.grad_mode import no_grad
from dptrain.core.hooks import RemovableHandle, add_hook
from dptrain.core.tensor import Tensor
from dptrain.nn import state
from dptrain.nn.backward_hooks import BackwardHooks
from dptrain.nn.tree import ModuleTree


class Module(ModuleTree):
    """Base class of all neural network modules.

    Subclasses call `super().__init__()`, assign parameters, buffers and submodules as attributes and
    define `forward`. Tensors that are assigned are plain attributes; `Parameter`s and modules are
    registered, so that `parameters()`, `state_dict()`, `to()` and the like find them.

    Attributes:
        training: whether the module is in training mode (see `train`).
    """

    training: bool
    _forward_hooks: dict[int, tuple[Callable[..., Any], bool]]
    _forward_pre_hooks: dict[int, tuple[Callable[..., Any], bool]]
    _backward_hooks: dict[int, Callable[..., Any]]
    _backward_pre_hooks: dict[int, Callable[..., Any]]

    def __init__(self) -> None:
        super().__init__()
        self.__dict__.update(
            training=True,
            _forward_hooks={},
            _forward_pre_hooks={},
            _backward_hooks={},
            _backward_pre_hooks={},
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's result; every subclass defines it."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
        ):
            return self.forward(*args, **kwargs)
        return self._call_with_hooks(args, kwargs)

    def _call_with_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for hook, with_kwargs in tuple(self._forward_pre_hooks.values()):
            if with_kwargs:
                changed = hook(self, args, kwargs)
                if changed is not None:
                    if not (isinstance(changed, tuple) and len(changed) == 2):
                        raise RuntimeError(
                            "forward pre-hook must return None or a tuple of (new_args, new_kwargs), "
                            f"but got {changed}."
                        )
                    args, kwargs = changed
            else:
                changed = hook(self, args)
                if changed is not None:
                    args = changed if isinstance(changed, tuple) else (changed,)
        around = None
        if self._backward_hooks or self._backward_pre_hooks:
            around = BackwardHooks(
                self, list(self._backward_hooks.values()), list(self._backward_pre_hooks.values())
            )
            args = around.on_inputs(args)
        result = self.forward(*args, **kwargs)
        for hook, with_kwargs in tuple(self._forward_hooks.values()):
            replaced = hook(self, args, kwargs, result) if with_kwargs else hook(self, args, result)
            if replaced is not None:
                result = replaced
        return result if around is None else around.on_output(result)

    # ---- hooks -----------------------------------------------------------------------------------

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args)` before each `forward`; what it returns replaces the arguments.

        Args:
            hook: returns None, the new argument or a tuple of the new arguments.
            prepend: run it before the hooks that are there already.
            with_kwargs: call `hook(module, args, kwargs)`, which returns None or (args, kwargs).
        """
        return _register(self._forward_pre_hooks, (hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args, output)` after each `forward`; what it returns replaces the output.

        Args:
            hook: returns None or the new output.
            prepend: run it before the hooks that are there already.
            with_kwargs: call `hook(module, args, kwargs, output)`.
        """
        return _register(self._forward_hooks, (hook, with_kwargs), prepend)

    def register_full_backward_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, grad_input, grad_output)` when backward has passed the module.

        `grad_input` has one entry per positional argument of the call, `grad_output` one per output;
        None stands for what is no tensor.

        Args:
            hook: returns None or the new `grad_input`.
            prepend: run it before the hooks that are there already.
        """
        return _register(self._backward_hooks, hook, prepend)

    def register_full_backward_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, grad_output)` before backward enters the module.

        Args:
            hook: returns None or the new `grad_output`.
            prepend: run it before the hooks that are there already.
        """
        return _register(self._backward_pre_hooks, hook, prepend)

    # ---- modes and conversions -------------------------------------------------------------------

    def apply(self, fn: Callable[[Module], None]) -> Self:
        """Call `fn` on every submodule, children first, and on the module itself."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training mode (dropout drops, ...) here and below.

        Raises:
            ValueError: `mode` is no bool.
        """
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self) -> Self:
        """Set evaluation mode here and below."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set `requires_grad` of all parameters."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or set them to 0 in place."""
        for param in self.parameters():
            if set_to_none or param._grad is None:
                param._grad = None
            else:
                with no_grad():
                    param._grad = param._grad.detach().zero_()

    def _apply(self, convert: Callable[[Tensor], Tensor]) -> Self:
        """Rebind all parameters, their gradients and all buffers to `convert(...)` of themselves."""
        with no_grad():
            for param in self.parameters():
                held = param.grad
                param.data = convert(param.data)
                if held is not None:
                    param.grad = convert(held)
            for module in self.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = convert(buffer)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert parameters and buffers in place: `to(dtype)`, `to(device)`, `to(tensor)`, combined.

        The dtype concerns floating point values only; integer buffers keep theirs.

        Raises:
            TypeError: the dtype is no floating point type.
            RuntimeError: there is no such device.
        """
        for wanted in (*args, kwargs.get("dtype")):
            if (isinstance(wanted, dtype_type) or wanted in (float, int)) and not as_dtype(
                wanted
            ).is_floating_point:
                raise TypeError(
                    f"nn.Module.to only accepts floating point dtypes, but got desired dtype={wanted}"
                )
        places = [a.device if isinstance(a, Tensor) else a for a in (*args, kwargs.get("device"))]
        places = [a for a in places if isinstance(a, (str, device_type))]
        return self._apply(
            lambda t: t.to(*args, **kwargs) if t.is_floating_point() else t.to(*places)
        )

    def float(self) -> Self:
        """Convert floating point parameters and buffers to float32."""
        return self._apply(lambda t: t.float() if t.is_floating_point() else t)

    def double(self) -> Self:
        """Convert floating point parameters and buffers to float64."""
        return self._apply(lambda t: t.double() if t.is_floating_point() else t)

    def half(self) -> Self:
        """Convert floating point parameters and buffers to float16."""
        return self._apply(lambda t: t.half() if t.is_floating_point() else t)

    def bfloat16(self) -> Self:
        """Convert floating point parameters and buffers to bfloat16."""
        return self._apply(lambda t: t.bfloat16() if t.is_floating_point() else t)

    def cpu(self) -> Self:
        """Move parameters and buffers to the CPU."""
        return self._apply(lambda t: t.cpu())

    def cuda(self, device: Any = None) -> Self:
        """Move parameters and buffers to a GPU."""
        return self._apply(lambda t: t.cuda(device))

    # ---- state and text --------------------------------------------------------------------------

    def state_dict(
        self,
        *,
        destination: OrderedDict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> OrderedDict[str, Any]:
        """Parameters and persistent buffers by dotted name, sharing memory with the module.

        Args:
            destination: fill this mapping instead of a new one.
            prefix: put before every name.
            keep_vars: give the parameters themselves instead of detached tensors.
        """
        return state.state_dict(
            self, OrderedDict() if destination is None else destination, prefix, keep_vars
        )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> state.IncompatibleKeys:
        """Copy values into the parameters and buffers, in place.

        Everything is checked before anything is copied: a load that fails changes nothing (PyTorch
        copies what fits and then raises).

        Args:
            state_dict: tensors or arrays by dotted name.
            strict: whether missing and unexpected names are errors.

        Returns:
            The missing and the unexpected names.

        Raises:
            TypeError: `state_dict` is no mapping.
            RuntimeError: names (when strict) or shapes do not fit; lists all of them.
        """
        return state.load_state_dict(self, state_dict, strict)

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """What stands in the parentheses of `repr`; layers override it."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        children = [f"({name}): {indent(repr(m))}" for name, m in self._modules.items()]
        if len(lines) == 1 and not children:
            return f"{self._get_name()}({extra})"
        lines += children
        body = "\n  " + "\n  ".join(lines) + "\n" if lines else ""
        return f"{self._get_name()}({body})"


def indent(text: str) -> str:
    """Two spaces before every line but the first."""
    return text.replace("\n", "\n  ")


def _register(hooks: dict[int, Any], hook: Any, prepend: bool) -> RemovableHandle:
    handle = add_hook(hooks, hook)
    if prepend:
        last = hooks.popitem()
        rest = list(hooks.items())
        hooks.clear()  # the handle holds this very dict
        hooks.update([last, *rest])
    return handle
