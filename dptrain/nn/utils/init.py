"""Making a module whose parameters will be overwritten anyway."""

from __future__ import annotations

import inspect
from typing import Any

from dptrain.core.failures import telling
from dptrain.core.random import get_rng_state, set_rng_state
from dptrain.nn.module import Module


@telling
def skip_init(module_cls: type[Module], *args: Any, **kwargs: Any) -> Module:
    """A module with arbitrary values, without a step of the random numbers.

    Args:
        module_cls: the class.
        args, kwargs: of its constructor, which must have a `device`.

    Raises:
        RuntimeError: no class of modules, or one without `device`.
    """
    if not issubclass(module_cls, Module):
        raise RuntimeError(f"Expected a Module; got {module_cls}")
    if "device" not in inspect.signature(module_cls).parameters:
        raise RuntimeError("Module must support a 'device' arg to skip initialization")
    before = get_rng_state()
    try:
        return module_cls(*args, **kwargs)
    finally:
        set_rng_state(before)
