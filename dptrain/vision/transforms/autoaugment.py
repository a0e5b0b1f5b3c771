"""Augmentation by operations that are drawn: AutoAugment, RandAugment, TrivialAugment.

Owns: the operations, their strengths, the draw. Must not know: how images are changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dptrain import nn
from dptrain.vision.transforms import draws
from dptrain.vision.transforms import functional as F
from dptrain.vision.transforms.autoaugment_policies import POLICIES, AutoAugmentPolicy
from dptrain.vision.transforms.modes import InterpolationMode, interpolation_mode

#: Strengths of an operation, weak to strong, and whether its sign is drawn.
_Space = dict[str, tuple[np.ndarray, bool]]
_NONE = np.zeros(1)


def _shear(angles: Callable[[float], list[float]]) -> Callable[..., Any]:
    def apply(img: Any, strength: float, **how: Any) -> Any:
        # The strength is the tangent of the angle; the upper left corner stays.
        degrees = angles(math.degrees(math.atan(strength)))
        return F.affine(img, 0.0, [0, 0], 1.0, degrees, center=[0, 0], **how)

    return apply


def _translate(shift: Callable[[int], list[int]]) -> Callable[..., Any]:
    def apply(img: Any, strength: float, **how: Any) -> Any:
        return F.affine(img, 0.0, shift(int(strength)), 1.0, [0.0, 0.0], **how)

    return apply


#: Those that move pixels; they take `interpolation` and `fill`.
_MOVES: dict[str, Callable[..., Any]] = {
    "ShearX": _shear(lambda degrees: [degrees, 0.0]),
    "ShearY": _shear(lambda degrees: [0.0, degrees]),
    "TranslateX": _translate(lambda pixels: [pixels, 0]),
    "TranslateY": _translate(lambda pixels: [0, pixels]),
    "Rotate": F.rotate,
}
_CHANGES: dict[str, Callable[[Any, float], Any]] = {
    "Identity": lambda img, strength: img,
    "Brightness": lambda img, strength: F.adjust_brightness(img, 1.0 + strength),
    "Color": lambda img, strength: F.adjust_saturation(img, 1.0 + strength),
    "Contrast": lambda img, strength: F.adjust_contrast(img, 1.0 + strength),
    "Sharpness": lambda img, strength: F.adjust_sharpness(img, 1.0 + strength),
    "Posterize": lambda img, strength: F.posterize(img, int(strength)),
    "Solarize": F.solarize,
    "AutoContrast": lambda img, strength: F.autocontrast(img),
    "Equalize": lambda img, strength: F.equalize(img),
    "Invert": lambda img, strength: F.invert(img),
}
_AUTO_STEPS = 10


def _space(
    bins: int,
    shear: float,
    shift: tuple[float, float],
    angle: float,
    factor: float,
    lost_bits: int,
) -> _Space:
    """Strengths from none to those given, in `bins` steps."""

    def up_to(strongest: float) -> tuple[np.ndarray, bool]:
        return np.linspace(0.0, strongest, bins), True

    steps = np.arange(bins) / ((bins - 1) / lost_bits)
    return {
        "Identity": (_NONE, False),
        "ShearX": up_to(shear),
        "ShearY": up_to(shear),
        "TranslateX": up_to(shift[0]),
        "TranslateY": up_to(shift[1]),
        "Rotate": up_to(angle),
        "Brightness": up_to(factor),
        "Color": up_to(factor),
        "Contrast": up_to(factor),
        "Sharpness": up_to(factor),
        "Posterize": (8 - np.round(steps), False),
        "Solarize": (np.linspace(255.0, 0.0, bins), False),
        "AutoContrast": (_NONE, False),
        "Equalize": (_NONE, False),
    }


def _relative_space(img: Any, bins: int) -> _Space:
    """Strengths of AutoAugment and RandAugment: translations are relative to the image."""
    width, height = F.get_image_size(img)
    shift = (150.0 / 331.0 * width, 150.0 / 331.0 * height)
    return _space(bins, 0.3, shift, 30.0, 0.9, 4)


class _Augment(nn.Module):
    """Base: draws operations of a space of strengths, and applies them.

    Raises:
        ValueError: fewer than two steps of strength.
    """

    def __init__(
        self,
        num_magnitude_bins: int,
        interpolation: InterpolationMode,
        fill: Sequence[float] | float | None,
    ) -> None:
        super().__init__()
        if num_magnitude_bins < 2:
            raise ValueError(f"num_magnitude_bins should be at least 2, got {num_magnitude_bins}")
        self.num_magnitude_bins = num_magnitude_bins
        self.interpolation = interpolation_mode(interpolation)
        self.fill = fill

    def _changed(self, img: Any, name: str, strength: float, signed: bool) -> Any:
        """One operation; the sign of its strength is drawn if it has one."""
        if signed and draws.chance(0.5):
            strength = -strength
        if name in _MOVES:
            return _MOVES[name](img, strength, interpolation=self.interpolation, fill=self.fill)
        return _CHANGES[name](img, strength)

    def _apply_one(self, img: Any, space: _Space, step: int) -> Any:
        """A drawn operation at one of its strengths."""
        name = list(space)[draws.integer(0, len(space) - 1)]
        strengths, signed = space[name]
        return self._changed(img, name, float(strengths[step if len(strengths) > 1 else 0]), signed)


class AutoAugment(_Augment):
    """Two operations that were found to go well together: PIL images and uint8 tensors.

    Source: E. Cubuk et al., "AutoAugment: learning augmentation strategies from data", 2018.

    Args:
        policy: what the pairs were found on; a sub-policy is drawn of its 25.
        interpolation: how pixels between pixels are found.
        fill: the value outside the image, or one for each channel.
    """

    def __init__(
        self,
        policy: AutoAugmentPolicy = AutoAugmentPolicy.IMAGENET,
        interpolation: InterpolationMode = InterpolationMode.NEAREST,
        fill: Sequence[float] | float | None = None,
    ) -> None:
        super().__init__(_AUTO_STEPS, interpolation, fill)
        self.policy = AutoAugmentPolicy(policy)
        self.policies = POLICIES[self.policy]

    def forward(self, img: Any) -> Any:
        """The changed image."""
        space = _relative_space(img, self.num_magnitude_bins)
        for name, probability, step in self.policies[draws.integer(0, len(self.policies) - 1)]:
            strengths, signed = space.get(name, (_NONE, False))
            if draws.chance(probability):
                img = self._changed(img, name, float(strengths[step or 0]), signed)
        return img

    def __repr__(self) -> str:
        return f"{type(self).__name__}(policy={self.policy}, fill={self.fill})"


class RandAugment(_Augment):
    """Some operations of one strength: PIL images and uint8 tensors.

    Source: E. Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search
    space", 2019.

    Args:
        num_ops: operations, one after the other.
        magnitude: their strength: 0 .. num_magnitude_bins - 1.
        num_magnitude_bins: steps of strength.
        interpolation: how pixels between pixels are found.
        fill: the value outside the image, or one for each channel.

    Raises:
        ValueError: a magnitude that is none of the steps.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: InterpolationMode = InterpolationMode.NEAREST,
        fill: Sequence[float] | float | None = None,
    ) -> None:
        super().__init__(num_magnitude_bins, interpolation, fill)
        if not 0 <= magnitude < num_magnitude_bins:
            raise ValueError(
                f"magnitude should be in [0, num_magnitude_bins={num_magnitude_bins}), got {magnitude}"
            )
        self.num_ops = num_ops
        self.magnitude = magnitude

    def forward(self, img: Any) -> Any:
        """The changed image."""
        space = _relative_space(img, self.num_magnitude_bins)
        for _ in range(self.num_ops):
            img = self._apply_one(img, space, self.magnitude)
        return img

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_ops={self.num_ops}, magnitude={self.magnitude}, "
            f"num_magnitude_bins={self.num_magnitude_bins}, interpolation={self.interpolation}, "
            f"fill={self.fill})"
        )


class TrivialAugmentWide(_Augment):
    """One operation of a strength that is drawn: PIL images and uint8 tensors.

    Source: S. Müller, F. Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation",
    2021.

    Args:
        num_magnitude_bins: steps of strength.
        interpolation: how pixels between pixels are found.
        fill: the value outside the image, or one for each channel.
    """

    def __init__(
        self,
        num_magnitude_bins: int = 31,
        interpolation: InterpolationMode = InterpolationMode.NEAREST,
        fill: Sequence[float] | float | None = None,
    ) -> None:
        super().__init__(num_magnitude_bins, interpolation, fill)

    def forward(self, img: Any) -> Any:
        """The changed image."""
        space = _space(self.num_magnitude_bins, 0.99, (32.0, 32.0), 135.0, 0.99, 6)
        return self._apply_one(img, space, draws.integer(0, self.num_magnitude_bins - 1))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_magnitude_bins={self.num_magnitude_bins}, "
            f"interpolation={self.interpolation}, fill={self.fill})"
        )
