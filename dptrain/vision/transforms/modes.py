"""How pixels between pixels are found: `InterpolationMode` and what pillow calls its members."""

from __future__ import annotations

from enum import Enum
from typing import Any

from dptrain.vision.pillow import pillow


class InterpolationMode(Enum):
    """Interpolations of resizing and warping; tensors take the first four."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


#: Pillow's numbers: part of its public interface, and of old scripts'.
_PIL_NUMBERS = {
    InterpolationMode.NEAREST: 0,
    InterpolationMode.LANCZOS: 1,
    InterpolationMode.BILINEAR: 2,
    InterpolationMode.BICUBIC: 3,
    InterpolationMode.BOX: 4,
    InterpolationMode.HAMMING: 5,
}


def pil_resampling(mode: InterpolationMode) -> Any:
    """Pillow's member for `mode`; its nearest is the exact one."""
    exact = mode is InterpolationMode.NEAREST_EXACT
    return pillow("Image").Resampling(_PIL_NUMBERS[InterpolationMode.NEAREST if exact else mode])


def interpolation_mode(value: Any) -> InterpolationMode:
    """`value` as a member; pillow's numbers are understood.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, InterpolationMode):
        return value
    if isinstance(value, int):
        for mode, number in _PIL_NUMBERS.items():
            if number == value:
                return mode
    raise TypeError(
        "Argument interpolation should be a InterpolationMode or a corresponding Pillow integer "
        f"constant, got {value!r}"
    )


def tensor_mode(mode: InterpolationMode, allowed: tuple[str, ...]) -> str:
    """The mode's name for tensors.

    Raises:
        ValueError: tensors do not have it here.
    """
    if mode.value not in allowed:
        raise ValueError(
            f"interpolation {mode.value!r} is not supported for tensors here; expected one of {list(allowed)}"
        )
    return mode.value
