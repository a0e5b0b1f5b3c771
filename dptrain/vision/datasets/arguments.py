"""Checks of the datasets' arguments."""

from __future__ import annotations

from collections.abc import Sequence


def verify_str_arg(value: str, arg: str, valid_values: Sequence[str]) -> str:
    """`value`, one of `valid_values`.

    Raises:
        ValueError: it is another, or no text; the message lists them.
    """
    if not isinstance(value, str):
        raise ValueError(f"Expected type str for argument {arg}, but got type {type(value)}.")
    if value not in valid_values:
        known = ", ".join(repr(v) for v in valid_values)
        raise ValueError(
            f"Unknown value '{value}' for argument {arg}. Valid values are {{{known}}}."
        )
    return value
