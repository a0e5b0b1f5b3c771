"""How tensors print: PyTorch's layout, `size=`, `dtype=`, `requires_grad=` and `grad_fn=` suffixes.

Owns: `set_printoptions` and the text of `repr(tensor)`. Source of the rules: what PyTorch prints.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from typing import Any

import numpy as np

from dptrain.core.arrays import to_host
from dptrain.core.dtypes import FROM_NUMPY, bool_, get_default_dtype, int64


@dataclass(frozen=True)
class _Options:
    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_PROFILES = {
    "default": _Options(),
    "short": _Options(precision=2, edgeitems=2),
    "full": _Options(threshold=inf),
}
_options = _Options()


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors print.

    Args:
        precision: digits after the point (default 4).
        threshold: number of elements above which a tensor is summarised (default 1000).
        edgeitems: entries shown at the beginning and end of a summarised dimension (default 3).
        linewidth: characters per line (default 80).
        profile: "default", "short" or "full": values for all of the above, which the others override.
        sci_mode: scientific notation always (True), never (False), or as the values ask for (None);
            each call sets it anew.

    Raises:
        ValueError: there is no such profile.
    """
    global _options
    if profile is not None and profile not in _PROFILES:
        raise ValueError(
            f"set_printoptions: profile must be one of {', '.join(map(repr, _PROFILES))}, got {profile!r}"
        )
    base = _options if profile is None else _PROFILES[profile]
    _options = replace(
        base,
        precision=base.precision if precision is None else precision,
        threshold=base.threshold if threshold is None else threshold,
        edgeitems=base.edgeitems if edgeitems is None else edgeitems,
        linewidth=base.linewidth if linewidth is None else linewidth,
        sci_mode=sci_mode,
    )


def get_printoptions() -> dict[str, Any]:
    """The present options by name."""
    return asdict(_options)


class _Formatter:
    """One width and notation for all the values that are shown."""

    def __init__(self, shown: np.ndarray) -> None:
        self.floating = shown.dtype.kind == "f"
        self.int_mode, self.sci, self.width = True, False, 1
        if not self.floating:
            self.width = max([1, *(len(str(v)) for v in shown.ravel().tolist())])
            return
        # Zeros and what is not finite have no say in the layout.
        values = shown[np.isfinite(shown) & (shown != 0)]
        if not values.size:
            return
        self.int_mode = bool((values == np.ceil(values)).all())
        sizes = np.abs(values.astype(np.float64))
        high, low = sizes.max(), sizes.min()
        with np.errstate(over="ignore"):
            self.sci = bool(high / low > 1000.0 or high > 1e8 or low < 1e-4)
        if _options.sci_mode is not None:
            self.sci = _options.sci_mode
        self.width = max([1, *(len(self._text(v)) for v in values.tolist())])

    def _text(self, value: Any) -> str:
        if not self.floating:
            return str(value)
        if self.sci:
            return f"{value:.{_options.precision}e}"
        if self.int_mode:
            return f"{value:.0f}." if isfinite(value) else f"{value:.0f}"
        return f"{value:.{_options.precision}f}"

    def __call__(self, value: Any) -> str:
        return self._text(value).rjust(self.width)


def _edges(array: np.ndarray) -> np.ndarray:
    """The values that are shown of a summarised array."""
    n = _options.edgeitems
    for axis in range(array.ndim):
        size = array.shape[axis]
        if size > 2 * n:
            array = array.take([*range(n), *range(size - n, size)], axis=axis)
    return array


def _text(array: np.ndarray, indent: int, summarise: bool, fmt: _Formatter) -> str:
    if array.ndim == 0:
        return fmt(array.item())
    n = _options.edgeitems
    cut = summarise and len(array) > 2 * n
    if array.ndim == 1:
        if summarise and not n:
            items = ["..."]
        elif cut:
            items = [*map(fmt, array[:n].tolist()), " ...", *map(fmt, array[-n:].tolist())]
        else:
            items = [fmt(v) for v in array.tolist()]
        per_line = max(1, (_options.linewidth - indent) // (fmt.width + 2))
        lines = [", ".join(items[i : i + per_line]) for i in range(0, len(items), per_line)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
    rows = [*array[:n], *array[len(array) - n :]] if cut else list(array)
    parts = [_text(r, indent + 1, summarise, fmt) for r in rows]
    if cut:
        parts.insert(n, "...")
    return "[" + ("," + "\n" * (array.ndim - 1) + " " * (indent + 1)).join(parts) + "]"


def _with_suffixes(text: str, suffixes: list[str], indent: int) -> str:
    """The suffixes behind the values, on lines of their own where the last one is full.

    Widths are those of PyTorch's shorter module name, so that lines break where PyTorch's do.
    """
    column = len(text) - text.rfind("\n") + 1
    for suffix in suffixes:
        width = len(suffix.replace("dptrain.", "torch."))
        if column + width + 2 > _options.linewidth:
            text += ",\n" + " " * indent + suffix
            column = indent + width
        else:
            text += ", " + suffix
            column += width + 2
    return text + ")"


def format_tensor(tensor: Any, prefix: str = "tensor(", contents: str | None = None) -> str:
    """The text of `repr(tensor)`, with `contents` in the place of the values if given."""
    array: np.ndarray = to_host(tensor._array)
    dtype = FROM_NUMPY[array.dtype]
    if dtype.is_floating_point and array.dtype.kind != "f":  # bfloat16
        array = array.astype(np.float32)
    suffixes = []
    if array.size == 0:
        body = "[]"
        if array.ndim != 1:
            suffixes.append(f"size={tuple(array.shape)}")
        plain = dtype is get_default_dtype()
    else:
        summarise = array.size > _options.threshold
        body = _text(
            array, len(prefix), summarise, _Formatter(_edges(array) if summarise else array)
        )
        if not _options.edgeitems:
            suffixes.append(f"size={tuple(array.shape)}")
        plain = dtype in (get_default_dtype(), int64, bool_)
    if tensor.device.type != "cpu" or tensor.device.index:
        suffixes.append(f"device='{tensor.device}'")
    if not plain:
        suffixes.append(f"dtype={dtype}")
    if tensor.grad_fn is not None:
        suffixes.append(f"grad_fn=<{tensor.grad_fn.grad_name}>")
    elif tensor.requires_grad:
        suffixes.append("requires_grad=True")
    return _with_suffixes(prefix + (contents or body), suffixes, len(prefix))
