"""How tensors print: PyTorch's layout, `dtype=`, `requires_grad=` and `grad_fn=` suffixes.

Owns: `set_printoptions` and the text of `repr(tensor)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dptrain.core.dtypes import FROM_NUMPY, bool_, get_default_dtype, int64


@dataclass(frozen=True)
class _Options:
    precision: int = 4
    threshold: int = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_options = _Options()


def set_printoptions(
    precision: int | None = None,
    threshold: int | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors print: digits, when to summarise, items at the edges, columns, notation."""
    global _options
    given = {
        "precision": precision,
        "threshold": threshold,
        "edgeitems": edgeitems,
        "linewidth": linewidth,
        "sci_mode": sci_mode,
    }
    _options = replace(_options, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


class _Formatter:
    """One width and notation for all the values that are shown."""

    def __init__(self, shown: np.ndarray) -> None:
        self.floating = shown.dtype.kind == "f"
        self.int_mode = self.sci = False
        if self.floating:
            finite = np.abs(shown[np.isfinite(shown) & (shown != 0)]).astype(np.float64)
            self.int_mode = bool((finite == np.ceil(finite)).all())
            if finite.size:
                high, low = finite.max(), finite.min()
                self.sci = bool(
                    high / low > 1000.0 or high > 1e8 or (not self.int_mode and low < 1e-4)
                )
            if _options.sci_mode is not None:
                self.sci = _options.sci_mode
        self.width = 0
        self.width = max((len(self(v)) for v in shown.ravel()), default=0)

    def __call__(self, value: Any) -> str:
        if not self.floating:
            text = str(value)
        elif not np.isfinite(value):
            text = "nan" if np.isnan(value) else "inf" if value > 0 else "-inf"
        elif self.sci:
            text = f"{float(value):.{_options.precision}e}"
        elif self.int_mode:
            text = f"{float(value):.0f}."
        else:
            text = f"{float(value):.{_options.precision}f}"
        return text.rjust(self.width)


def _edges(array: np.ndarray) -> np.ndarray:
    """The values that are shown of a summarised array."""
    n = _options.edgeitems
    for axis in range(array.ndim):
        if array.shape[axis] > 2 * n:
            keep = np.r_[0:n, array.shape[axis] - n : array.shape[axis]]
            array = array.take(keep, axis=axis)
    return array


def _text(array: np.ndarray, indent: int, summarise: bool, fmt: _Formatter) -> str:
    if array.ndim == 0:
        return fmt(array[()])
    n = _options.edgeitems
    cut = summarise and len(array) > 2 * n
    if array.ndim == 1:
        per_line = max(1, (_options.linewidth - indent) // (fmt.width + 2))
        items = (
            [fmt(v) for v in array[:n]] + [" ..."] + [fmt(v) for v in array[-n:]]
            if cut
            else [fmt(v) for v in array]
        )
        lines = [", ".join(items[i : i + per_line]) for i in range(0, len(items), per_line)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
    rows = (
        [array[i] for i in (*range(n), *range(len(array) - n, len(array)))] if cut else list(array)
    )
    parts = [_text(r, indent + 1, summarise, fmt) for r in rows]
    if cut:
        parts.insert(n, "...")
    return "[" + ("," + "\n" * (array.ndim - 1) + " " * (indent + 1)).join(parts) + "]"


def format_tensor(tensor: Any, prefix: str = "tensor(") -> str:
    """The text of `repr(tensor)`."""
    array: np.ndarray = tensor._array
    dtype = FROM_NUMPY[array.dtype]
    if dtype.is_floating_point and array.dtype.kind != "f":  # bfloat16
        array = array.astype(np.float32)
    suffixes = []
    if array.size == 0:
        body = "[]"
        if array.shape != (0,):
            suffixes.append(f"size={tuple(array.shape)}")
        plain = dtype is get_default_dtype()
    else:
        summarise = array.size > _options.threshold
        fmt = _Formatter(_edges(array) if summarise else array)
        body = _text(array, len(prefix), summarise, fmt)
        plain = dtype in (get_default_dtype(), int64, bool_)
    if not plain:
        suffixes.append(f"dtype={dtype}")
    if tensor.grad_fn is not None:
        suffixes.append(f"grad_fn=<{tensor.grad_fn.grad_name}>")
    elif tensor.requires_grad:
        suffixes.append("requires_grad=True")
    return prefix + ", ".join([body, *suffixes]) + ")"
