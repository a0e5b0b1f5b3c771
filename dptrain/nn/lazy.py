"""Modules whose parameters get their shapes from the first input.

Owns: `LazyModuleMixin`. The layers are in `lazy_layers.py`. Must not know: any particular layer.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.grad_mode import no_grad
from dptrain.nn.module import Module
from dptrain.nn.parameter import is_lazy


class LazyModuleMixin(Module):
    """A base class before a module's own: its first call makes the parameters and changes the class.

    A subclass makes `UninitializedParameter`s in `__init__` and says in
    `initialize_parameters(*args, **kwargs)`, which gets the arguments of the first call, what their
    shapes are.

    Attributes:
        cls_to_become: the class after the first call; None for no change.
    """

    cls_to_become: type[Module] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._load_hook = self._register_load_state_dict_pre_hook(self._lazy_load_hook)
        self._initialize_hook = self.register_forward_pre_hook(
            self._infer_parameters, with_kwargs=True
        )

    def initialize_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Give the parameters their shapes and initial values."""
        raise NotImplementedError(
            f"initialize_parameters is not implemented for {type(self).__name__}"
        )

    def has_uninitialized_params(self) -> bool:
        """Whether a parameter or buffer of this module has no shape yet."""
        return any(map(is_lazy, (*self._parameters.values(), *self._buffers.values())))

    def _lazy_load_hook(self, state_dict: Any, prefix: str, *report: Any) -> None:
        """Take the shapes from what is loaded."""
        with no_grad():
            for name, held in (*self._parameters.items(), *self._buffers.items()):
                given = state_dict.get(prefix + name)
                if is_lazy(held) and given is not None and not is_lazy(given):
                    held.materialize(given.shape)  # type: ignore[union-attr]

    def _infer_parameters(self, module: Any, args: Any, kwargs: Any = None) -> None:
        module.initialize_parameters(*args, **(kwargs or {}))
        if module.has_uninitialized_params():
            raise RuntimeError(f"module {self._get_name()} has not been fully initialized")
        for hook in ("_initialize_hook", "_load_hook"):
            getattr(module, hook).remove()
            delattr(module, hook)
        if module.cls_to_become is not None:
            module.__class__ = module.cls_to_become
