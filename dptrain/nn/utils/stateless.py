"""PyTorch's `nn.utils.stateless`: the older place of `func.functional_call`."""

from __future__ import annotations

import warnings
from typing import Any

from dptrain.core.tensor import Tensor
from dptrain.nn import functional_call as _calls
from dptrain.nn.module import Module


def functional_call(
    module: Module,
    parameters_and_buffers: dict[str, Tensor],
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """See `dptrain.func.functional_call`."""
    warnings.warn(
        "`nn.utils.stateless.functional_call` is deprecated in favor of `dptrain.func.functional_call`.",
        FutureWarning,
        stacklevel=2,
    )
    return _calls.functional_call(
        module,
        parameters_and_buffers,
        args,
        kwargs,
        tie_weights=tie_weights,
        strict=strict,
    )
