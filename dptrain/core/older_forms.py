"""Calls in the order of arguments that PyTorch deprecated: factors by position, before the tensors.

Owns: the table of such functions, and the same call in today's order. Must not know: what they compute.
"""

from __future__ import annotations

import warnings
from typing import Any

from dptrain.core.callers import level_outside
from dptrain.core.tensor import Tensor

#: Functions -> (their factors in the older order, how many tensors they take).
_FORMS: dict[str, tuple[tuple[str, ...], int]] = {
    **dict.fromkeys(("add", "sub", "subtract"), (("alpha",), 2)),
    **dict.fromkeys(("addcmul", "addcdiv"), (("value",), 3)),
    **dict.fromkeys(("addmm", "addmv", "addr", "addbmm", "baddbmm"), (("beta", "alpha"), 3)),
}


def in_order(name: str, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of `add(x, alpha, y)` or `addmm(beta, x, alpha, a, b)` as they are given today.

    Args:
        name: of the function or method; that of an in-place method ends in `_`.
        args: what was given by position, which the function refused.

    Returns:
        (args, kwargs), or None where this is no older form.
    """
    factors, count = _FORMS.get(name.removesuffix("_"), ((), 0))
    tensors = tuple(a for a in args if isinstance(a, Tensor))
    numbers = [a for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    if not numbers or len(tensors) != count or len(tensors) + len(numbers) != len(args):
        return None
    # The factors stand around the tensor that is added to; only those of two may begin.
    behind = args[1 - count :] if len(factors) == 2 or isinstance(args[0], Tensor) else args
    if len(numbers) > len(factors) or not all(isinstance(a, Tensor) for a in behind):
        return None
    warnings.warn(
        f"{name}(): factors before the tensors are deprecated; give {' and '.join(factors)} by keyword",
        stacklevel=level_outside(),
    )
    return tensors, dict(zip(factors, numbers, strict=False))
