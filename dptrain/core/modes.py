"""Process-wide modes of PyTorch that scripts set: determinism, precision of products, warnings.

Owns: their values and checks. dptrain's operations are deterministic, sums into indexed places on a GPU only
when that is asked for; what is set of products' precision is read where a GPU multiplies float32. On the host
nothing here changes a result.
"""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.core.threads import usable_cores

_LEVELS = ("default", "warn", "error")
_PRECISIONS = ("highest", "high", "medium")


@dataclass
class _Modes:
    deterministic: int = 0
    matmul_precision: str = "highest"
    warn_always: bool = False
    interop_threads: int | None = None


_modes = _Modes()


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Ask for deterministic operations: all of dptrain's are, sums into indexed places on GPUs after this."""
    _modes.deterministic = (1 if warn_only else 2) if mode else 0


def are_deterministic_algorithms_enabled() -> bool:
    """Whether deterministic operations were asked for."""
    return _modes.deterministic > 0


def is_deterministic_algorithms_warn_only_enabled() -> bool:
    """Whether they were asked for with `warn_only`."""
    return _modes.deterministic == 1


def set_deterministic_debug_mode(debug_mode: int | str) -> None:
    """As `use_deterministic_algorithms`: "default" or 0, "warn" or 1, "error" or 2.

    Raises:
        TypeError: neither an int nor a string.
        RuntimeError: no such mode.
    """
    if not isinstance(debug_mode, (int, str)):
        raise TypeError(f"debug_mode must be str or int, but got {type(debug_mode)}")
    if debug_mode not in (*_LEVELS, 0, 1, 2):
        raise RuntimeError(
            f"invalid value of debug_mode, expected one of {', '.join(_LEVELS)} (0, 1, 2), but got {debug_mode!r}"
        )
    _modes.deterministic = (
        _LEVELS.index(debug_mode) if isinstance(debug_mode, str) else int(debug_mode)
    )


def get_deterministic_debug_mode() -> int:
    """0 (default), 1 (warn) or 2 (error)."""
    return _modes.deterministic


def set_float32_matmul_precision(precision: str) -> None:
    """Allow less precise float32 products: "highest", "high" or "medium". The CPU always computes them in full.

    Raises:
        RuntimeError: no such precision.
    """
    if precision not in _PRECISIONS:
        raise RuntimeError(
            f"set_float32_matmul_precision: expected one of {', '.join(_PRECISIONS)}, got {precision!r}"
        )
    _modes.matmul_precision = precision


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` was given last; "highest" at first."""
    return _modes.matmul_precision


def set_flush_denormal(mode: bool) -> bool:
    """False: the processor's treatment of denormal numbers stays as it is."""
    return False


def set_warn_always(b: bool, /) -> None:
    """Note whether warnings should be repeated; dptrain leaves that to Python's warning filters."""
    _modes.warn_always = bool(b)


def is_warn_always_enabled() -> bool:
    """What `set_warn_always` was given last."""
    return _modes.warn_always


def set_num_interop_threads(num_threads: int) -> None:
    """Note a number of threads for independent operations; dptrain runs one operation at a time.

    Raises:
        RuntimeError: not positive.
    """
    if num_threads < 1:
        raise RuntimeError(f"set_num_interop_threads expects a positive integer, got {num_threads}")
    _modes.interop_threads = num_threads


def get_num_interop_threads() -> int:
    """What `set_num_interop_threads` was given last, by default the usable cores."""
    return usable_cores() if _modes.interop_threads is None else _modes.interop_threads
