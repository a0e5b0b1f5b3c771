"""Module: the base class of everything that holds parameters.

Owns: calls, the registration of hooks, modes, text. The tree of parameters, buffers and submodules is
in `tree.py`, what goes to and comes from files in `state.py`, conversions in `conversion.py`. Must not
know: optimizers, processes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from dptrain.core.failures import telling_constructor, telling_method, told
from dptrain.core.grad_mode import no_grad
from dptrain.core.holders import PARAMETERS, Holders, surveys
from dptrain.core.hooks import RemovableHandle, add_hook
from dptrain.nn import global_hooks, replays
from dptrain.nn.conversion import ModuleConversions
from dptrain.nn.forward_hooks import HookedCall
from dptrain.nn.global_hooks import ForwardHook
from dptrain.nn.tree import ModuleTree

#: The four tables of hooks on the calls of all modules.
_HOOKS = tuple(global_hooks.CALLS.values())


class Module(ModuleConversions):
    """Base class of all neural network modules.

    Subclasses call `super().__init__()`, assign parameters, buffers and submodules as attributes and
    define `forward`. Tensors that are assigned are plain attributes; `Parameter`s and modules are
    registered, so that `parameters()`, `state_dict()`, `to()` and the like find them.

    Attributes:
        training: whether the module is in training mode (see `train`).
        call_super_init: whether `__init__` goes on to the next base class of a subclass with several.
    """

    training: bool
    call_super_init: bool = False
    dump_patches: bool = False
    _forward_hooks: dict[int, ForwardHook]
    _forward_pre_hooks: dict[int, ForwardHook]
    _backward_hooks: dict[int, Callable[..., Any]]
    _backward_pre_hooks: dict[int, Callable[..., Any]]
    _is_full_backward_hook: bool | None
    _compiled_call_impl: Callable[..., Any] | None = None
    #: Of `dptrain.nn.replays`: calls so far, recordings, or that there are to be none; of those that record no graph.
    _replays: Any = 0
    _replays_without_graph: Any = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not self.call_super_init and (args or kwargs):
            what = (
                f"got an unexpected keyword argument '{next(iter(kwargs))}'"
                if kwargs
                else f"takes 1 positional argument but {len(args) + 1} were given"
            )
            raise TypeError(f"{type(self).__name__}.__init__() {what}")
        super().__init__()
        self.__dict__.update(
            training=True,
            _forward_hooks={},
            _forward_pre_hooks={},
            _backward_hooks={},
            _backward_pre_hooks={},
            _is_full_backward_hook=None,
        )
        if self.call_super_init:
            super(ModuleTree, self).__init__(*args, **kwargs)

    def forward(self, *input: Any) -> Any:
        """Compute the module's result; every subclass defines it."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    if TYPE_CHECKING:  # subclasses choose their arguments
        forward: Callable[..., Any]  # type: ignore[no-redef]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        telling_constructor(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            if not (
                self._forward_hooks
                or self._forward_pre_hooks
                or self._backward_hooks
                or self._backward_pre_hooks
                or self._compiled_call_impl
                or _HOOKS[0]
                or _HOOKS[1]
                or _HOOKS[2]
                or _HOOKS[3]
            ):
                return (
                    replays.call(self, args, kwargs)
                    if self._modules
                    else self.forward(*args, **kwargs)
                )
            return (self._compiled_call_impl or self._call_impl)(*args, **kwargs)
        except Exception as error:
            label, forward = type(self).__name__, type(self).forward
            found = told(error, label, forward, args, kwargs, skip=1, name_all=True, owner=self)
            if found is error:
                raise
            raise found from None

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        """The call with its hooks, not replayed."""
        call = HookedCall(self, args, kwargs)
        try:
            return call.run()
        except Exception:
            call.run_always()
            raise

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Have the calls of this module recorded and replayed, in place; see `dptrain.compile`.

        Names and values stay where they are. Copies and files hold the module without recordings.

        Args:
            args, kwargs: the options of `dptrain.compile`.
        """
        compiler = import_module("dptrain.compiler")  # which knows modules
        self.__dict__["_compiled_call_impl"] = compiler.compile(self._call_impl, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_compiled_call_impl"}

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
        return _register(self._forward_pre_hooks, ForwardHook(hook, with_kwargs), prepend)

    def register_forward_hook(
        self,
        hook: Callable[..., Any],
        *,
        prepend: bool = False,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> RemovableHandle:
        """Call `hook(module, args, output)` after each `forward`; what it returns replaces the output.

        Args:
            hook: returns None or the new output.
            prepend: run it before the hooks that are there already.
            with_kwargs: call `hook(module, args, kwargs, output)`.
            always_call: call it also where `forward` raises, with what there is.
        """
        entry = ForwardHook(hook, with_kwargs, always_call)
        return _register(self._forward_hooks, entry, prepend)

    def register_full_backward_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, grad_input, grad_output)` when backward has passed the module.

        `grad_input` has one entry per positional argument of the call, `grad_output` one per output;
        None stands for what is no tensor.

        Args:
            hook: returns None or the new `grad_input`.
            prepend: run it before the hooks that are there already.

        Raises:
            RuntimeError: there is a hook of `register_backward_hook`.
        """
        self._use_backward_hooks(full=True)
        return _register(self._backward_hooks, hook, prepend)

    def register_backward_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """The older name of `register_full_backward_hook`.

        PyTorch hands the hook the gradients around the last operation of the module; here they are
        those of the module, which is what was meant.

        Raises:
            RuntimeError: there is a hook of `register_full_backward_hook`.
        """
        self._use_backward_hooks(full=False)
        return _register(self._backward_hooks, hook, False)

    def _use_backward_hooks(self, full: bool) -> None:
        # Decided once, as in PyTorch, even if all hooks have been removed since.
        if self._is_full_backward_hook is (not full):
            raise RuntimeError(global_hooks.ONE_KIND)
        self._is_full_backward_hook = full

    def register_full_backward_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, grad_output)` before backward enters the module.

        Args:
            hook: returns None or the new `grad_output`.
            prepend: run it before the hooks that are there already.
        """
        return _register(self._backward_pre_hooks, hook, prepend)

    # ---- modes -----------------------------------------------------------------------------------

    @telling_method
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

    # ---- text ------------------------------------------------------------------------------------

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


@surveys(PARAMETERS)
def _held(holders: Holders) -> None:
    """What modules hold of an exhausted GPU's memory, under the names that `named_parameters` gives."""
    modules = list(holders.every(Module))
    children = {id(child) for m in modules for child in m._modules.values()}
    for root in modules:
        if id(root) in children:
            continue
        for path, module in root.named_modules():
            owner = type(root).__name__
            inside = f"{owner} ({type(module).__name__})" if path else owner
            for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
                for name, value in tensors.items():
                    if value is not None:
                        what = f"{kind} {path}{'.' if path else ''}{name} of {inside}"
                        holders.names.setdefault(id(value), what)
                        holders.claim(value, what)
