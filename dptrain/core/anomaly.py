"""Finding the operation whose derivative is not a number: `detect_anomaly`, `set_detect_anomaly`.

Owns: the mode, and the traceback that each node recorded under it carries.
"""

from __future__ import annotations

import traceback
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import numpy as np

from dptrain.core.grad_mode import _observer, record_observer
from dptrain.core.tensor import Tensor

#: None: off; else whether gradients are searched for nan.
_mode: ContextVar[bool | None] = ContextVar("detect_anomaly", default=None)
anomaly_mode = _mode.get


def _remember(node: Any) -> None:
    node.recorded_at = "".join(traceback.format_stack()[:-3])


class set_detect_anomaly:
    """Switch the search for bad gradients on or off: at once, and back again as a context manager.

    Under it, a backward function that gives nan raises, and every error of the backward pass carries
    the traceback of the operation that was recorded in the forward pass.

    Args:
        mode: on or off.
        check_nan: whether nan is an error.
    """

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        self._previous = _mode.get(), record_observer()
        _mode.set(bool(check_nan) if mode else None)
        outer = self._previous[1]
        if mode and outer is None:
            _observer.set(_remember)
        elif outer is _remember and not mode:
            _observer.set(None)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _mode.set(self._previous[0])
        _observer.set(self._previous[1])


class detect_anomaly(set_detect_anomaly):
    """`set_detect_anomaly(True)` for a `with` block.

    Args:
        check_nan: whether nan in a gradient is an error.
    """

    def __init__(self, check_nan: bool = True) -> None:
        self._check_nan = check_nan

    def __enter__(self) -> None:
        super().__init__(True, self._check_nan)


def is_anomaly_enabled() -> bool:
    """Whether backward looks for anomalies."""
    return _mode.get() is not None


def refuse_nan(node: Any, grads: tuple[Any, ...]) -> None:
    """Check what a node's backward gave.

    Raises:
        RuntimeError: there is a nan in one of the gradients.
    """
    for i, grad in enumerate(grads):
        values = grad._array if isinstance(grad, Tensor) else grad
        if values is not None and np.isnan(values).any():
            raise RuntimeError(
                f"Function '{node.grad_name}' returned nan values in its {i}th output."
            )


def add_origin(error: BaseException, node: Any) -> None:
    """Tell with an error of the backward pass where the node was recorded."""
    place = getattr(node, "recorded_at", None)
    error.add_note(
        f"Error detected in {node.grad_name}. "
        + (
            f"Traceback of forward call that caused the error:\n{place}"
            if place
            else "No forward pass information available: enable detect_anomaly during the forward pass."
        )
    )
