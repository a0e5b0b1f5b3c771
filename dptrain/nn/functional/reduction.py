"""How the losses of the elements become one: `reduction`, and the two arguments it replaced."""

from __future__ import annotations

import warnings

from dptrain.core.callers import level_outside
from dptrain.core.tensor import Tensor

_KNOWN = ("none", "mean", "sum")


def check_reduction(reduction: str) -> None:
    """Refuse unknown reductions.

    Raises:
        ValueError: it is none of "none", "mean" and "sum".
    """
    if not isinstance(reduction, str) or reduction not in _KNOWN:
        raise ValueError(f"{reduction} is not a valid value for reduction")


def reduction_of(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction that the arguments ask for; the two old ones win, with a warning.

    Raises:
        ValueError: an unknown reduction.
    """
    if size_average is not None or reduce is not None:
        averaged = size_average is None or size_average
        found = "none" if reduce is not None and not reduce else "mean" if averaged else "sum"
        warnings.warn(
            "size_average and reduce args will be deprecated, please use "
            f"reduction='{found}' instead.",
            stacklevel=level_outside(),
        )
        return found
    if reduction not in _KNOWN:
        check_reduction(reduction)
    return reduction


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """All elements, their mean or their sum."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
