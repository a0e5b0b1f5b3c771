"""Transforms that rotate and warp by amounts that are drawn."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from dptrain import nn
from dptrain.vision.transforms import draws
from dptrain.vision.transforms import functional as F
from dptrain.vision.transforms.modes import InterpolationMode, interpolation_mode

_NEAREST = InterpolationMode.NEAREST


def _around_zero(value: Any, name: str, sizes: tuple[int, ...] = (2,)) -> list[float]:
    """A number as (-number, number), a sequence as it is.

    Raises:
        TypeError, ValueError: neither, or of another length.
    """
    if isinstance(value, numbers.Number):
        if value < 0:  # type: ignore[operator]
            raise ValueError(f"If {name} is a single number, it must be positive.")
        return [-float(value), float(value)]  # type: ignore[arg-type]
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} should be a sequence of length {' or '.join(map(str, sizes))}.")
    if len(value) not in sizes:
        raise ValueError(f"{name} should be sequence of length {' or '.join(map(str, sizes))}.")
    return [float(x) for x in value]


def _check_pair(value: Any, name: str) -> None:
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} should be a sequence of length 2.")
    if len(value) != 2:
        raise ValueError(f"{name} should be sequence of length 2.")


def _fill(fill: Any, img: Any) -> Any:
    """The fill for each channel, as the functions take it for tensors."""
    channels = F.get_image_num_channels(img)
    return [float(fill)] * channels if isinstance(fill, numbers.Number) else fill  # type: ignore[arg-type]


class RandomRotation(nn.Module):
    """A rotation by an angle that is drawn.

    Args:
        degrees: least and greatest angle, or the greatest of both directions.
        interpolation: how pixels between pixels are found.
        expand: make the result large enough for the whole image.
        center: x and y of the point that stays; the middle if None.
        fill: the value outside the image, or one for each channel.
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        interpolation: InterpolationMode = _NEAREST,
        expand: bool = False,
        center: Sequence[float] | None = None,
        fill: float | Sequence[float] | None = 0,
    ) -> None:
        super().__init__()
        self.degrees = _around_zero(degrees, "degrees")
        self.interpolation = interpolation_mode(interpolation)
        self.expand = expand
        if center is not None:
            _check_pair(center, "center")
        self.center = center
        self.fill = 0 if fill is None else fill

    @staticmethod
    def get_params(degrees: Sequence[float]) -> float:
        """An angle."""
        return draws.uniform(degrees[0], degrees[1])

    def forward(self, img: Any) -> Any:
        """The rotated image."""
        angle = self.get_params(self.degrees)
        fill = _fill(self.fill, img)
        return F.rotate(img, angle, self.interpolation, self.expand, self.center, fill)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        center = "" if self.center is None else f", center={self.center}"
        return (
            f"{type(self).__name__}(degrees={self.degrees}, interpolation={self.interpolation.value}, "
            f"expand={self.expand}{center}, fill={self.fill})"
        )


class RandomAffine(nn.Module):
    """Rotation, translation, scale and shear by amounts that are drawn.

    Args:
        degrees: least and greatest angle, or the greatest of both directions.
        translate: greatest share of the width and of the height; None for no translation.
        scale: least and greatest factor; None for 1.
        shear: degrees along x: the greatest of both directions, or least and greatest; with four
            numbers also along y; None for none.
        interpolation: how pixels between pixels are found.
        fill: the value outside the image, or one for each channel.
        center: x and y of the point that stays; the middle if None.
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: float | Sequence[float] | None = None,
        interpolation: InterpolationMode = _NEAREST,
        fill: float | Sequence[float] | None = 0,
        center: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.degrees = _around_zero(degrees, "degrees")
        if translate is not None:
            _check_pair(translate, "translate")
            if not all(0.0 <= t <= 1.0 for t in translate):
                raise ValueError("translation values should be between 0 and 1")
        if scale is not None:
            _check_pair(scale, "scale")
            if not all(s > 0 for s in scale):
                raise ValueError("scale values should be positive")
        if center is not None:
            _check_pair(center, "center")
        self.translate = translate
        self.scale = scale
        self.shear = None if shear is None else _around_zero(shear, "shear", (2, 4))
        self.interpolation = interpolation_mode(interpolation)
        self.fill = 0 if fill is None else fill
        self.center = center

    @staticmethod
    def get_params(
        degrees: Sequence[float],
        translate: Sequence[float] | None,
        scale_ranges: Sequence[float] | None,
        shears: Sequence[float] | None,
        img_size: Sequence[int],
    ) -> tuple[float, tuple[int, int], float, tuple[float, float]]:
        """Angle, translation in pixels, factor and shear; `img_size` is width and height."""
        angle = draws.uniform(degrees[0], degrees[1])
        shift = (0, 0)
        if translate is not None:
            limits = [share * size for share, size in zip(translate, img_size, strict=True)]
            shift = (
                round(draws.uniform(-limits[0], limits[0])),
                round(draws.uniform(-limits[1], limits[1])),
            )
        scale = 1.0 if scale_ranges is None else draws.uniform(*scale_ranges)
        shear_x = shear_y = 0.0
        if shears is not None:
            shear_x = draws.uniform(shears[0], shears[1])
            if len(shears) == 4:
                shear_y = draws.uniform(shears[2], shears[3])
        return angle, shift, scale, (shear_x, shear_y)

    def forward(self, img: Any) -> Any:
        """The warped image."""
        size = F.get_image_size(img)
        params = self.get_params(self.degrees, self.translate, self.scale, self.shear, size)
        fill = _fill(self.fill, img)
        return F.affine(img, *params, self.interpolation, fill, self.center)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        parts = [f"degrees={self.degrees}"]
        for name in ("translate", "scale", "shear"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)}")
        if self.interpolation is not _NEAREST:
            parts.append(f"interpolation={self.interpolation.value}")
        if self.fill != 0:
            parts.append(f"fill={self.fill}")
        if self.center is not None:
            parts.append(f"center={self.center}")
        return f"{type(self).__name__}({', '.join(parts)})"


class RandomPerspective(nn.Module):
    """A perspective map to corners that are drawn, or none.

    Args:
        distortion_scale: how far the corners may move, as a share of half the image.
        p: probability of the map.
        interpolation: how pixels between pixels are found.
        fill: the value outside the image, or one for each channel.
    """

    def __init__(
        self,
        distortion_scale: float = 0.5,
        p: float = 0.5,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        fill: float | Sequence[float] | None = 0,
    ) -> None:
        super().__init__()
        self.p = p
        self.interpolation = interpolation_mode(interpolation)
        self.distortion_scale = distortion_scale
        self.fill = 0 if fill is None else fill

    @staticmethod
    def get_params(
        width: int, height: int, distortion_scale: float
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The corners, and where they go: top left, top right, bottom right, bottom left."""
        far_x = int(distortion_scale * (width // 2))
        far_y = int(distortion_scale * (height // 2))
        right, bottom = width - 1, height - 1
        start = [[0, 0], [right, 0], [right, bottom], [0, bottom]]
        end = [
            [
                draws.integer(right - far_x, right) if x else draws.integer(0, far_x),
                draws.integer(bottom - far_y, bottom) if y else draws.integer(0, far_y),
            ]
            for x, y in start
        ]
        return start, end

    def forward(self, img: Any) -> Any:
        """The warped image, or the image."""
        if not draws.chance(self.p):
            return img
        width, height = F.get_image_size(img)
        start, end = self.get_params(width, height, self.distortion_scale)
        return F.perspective(img, start, end, self.interpolation, _fill(self.fill, img))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p})"
