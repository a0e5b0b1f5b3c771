"""Rotation, affine and perspective maps, of PIL images and tensors (..., C, H, W).

Coordinates are of pixels, (0, 0) being the image's upper left corner for PIL images and its middle for
tensors. A map says for every pixel of the result where in the image its value is found.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

import dptrain
from dptrain.core.creation import as_tensor
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.vision.pillow import pillow
from dptrain.vision.transforms.functional.geometry import (
    as_batch,
    in_floating_point,
    pil_fill,
    rounded_like,
)
from dptrain.vision.transforms.functional.image import check_image, get_dimensions
from dptrain.vision.transforms.modes import (
    InterpolationMode,
    interpolation_mode,
    pil_resampling,
    tensor_mode,
)

_NEAREST = InterpolationMode.NEAREST
_Fill = float | Sequence[float] | None


def inverse_affine(
    center: Sequence[float],
    angle: float,
    translate: Sequence[float],
    scale: float,
    shear: Sequence[float],
) -> np.ndarray:
    """The map back of: shear, rotate and scale about `center`, then translate.

    Args:
        center: x and y.
        angle: degrees, clockwise.
        translate: x and y.
        scale: factor.
        shear: degrees, along x and along y.

    Returns:
        (2, 3): the matrix that gives the place in the image from (x, y, 1) in the result.
    """
    turn, shear_x, shear_y = (math.radians(a) for a in (angle, *shear))
    # rotation(turn) @ shear along y @ shear along x, of determinant 1
    a = math.cos(turn - shear_y) / math.cos(shear_y)
    b = -a * math.tan(shear_x) - math.sin(turn)
    c = math.sin(turn - shear_y) / math.cos(shear_y)
    d = -c * math.tan(shear_x) + math.cos(turn)
    back = np.array([[d, -b], [-c, a]]) / scale
    middle = np.asarray(center, dtype=np.float64)
    offset = middle - back @ (middle + np.asarray(translate, dtype=np.float64))
    return np.concatenate([back, offset[:, None]], 1)


def affine(
    img: Any,
    angle: float,
    translate: Sequence[int],
    scale: float,
    shear: float | Sequence[float],
    interpolation: InterpolationMode = _NEAREST,
    fill: _Fill = None,
    center: Sequence[int] | None = None,
) -> Any:
    """Rotate, shear, scale and translate, keeping the size.

    Args:
        img: PIL image or tensor.
        angle: degrees, clockwise.
        translate: pixels to the right and down.
        scale: factor, over 0.
        shear: degrees along x, or along x and y.
        interpolation: nearest or bilinear; also bicubic for PIL images.
        fill: the value outside the image, or one for each channel.
        center: x and y of the point that stays, from the upper left corner; the middle if None.

    Raises:
        TypeError, ValueError: arguments of another kind.
    """
    check_image(img)
    for name, value in (("Translate", translate), ("Shear", shear)):
        if not isinstance(value, (numbers.Number, Sequence)):
            raise TypeError(f"{name} should be a sequence of two numbers, got {value!r}")
    if not isinstance(angle, numbers.Number):
        raise TypeError("Argument angle should be int or float")
    if len(translate) != 2:
        raise ValueError("Argument translate should be a sequence of length 2")
    if scale <= 0.0:
        raise ValueError("Argument scale should be positive")
    shears = [float(shear), 0.0] if isinstance(shear, (int, float)) else [float(s) for s in shear]
    if len(shears) == 1:
        shears *= 2
    if len(shears) != 2:
        raise ValueError(f"Shear should be a sequence containing two values. Got {shear}")
    _check_center(center)
    matrix = inverse_affine(_center(img, center), angle, translate, scale, shears)
    mode = interpolation_mode(interpolation)
    if isinstance(img, Tensor):
        return _sample(img, _affine_places(img, matrix, img.shape[-2:]), mode, fill)
    return img.transform(
        img.size,
        pillow("Image").Transform.AFFINE,
        matrix.reshape(-1).tolist(),
        pil_resampling(mode),
        fillcolor=pil_fill(fill, img),
    )


def rotate(
    img: Any,
    angle: float,
    interpolation: InterpolationMode = _NEAREST,
    expand: bool = False,
    center: Sequence[int] | None = None,
    fill: _Fill = None,
) -> Any:
    """Rotate about a point.

    Args:
        img: PIL image or tensor.
        angle: degrees, counter-clockwise.
        interpolation: nearest or bilinear; also bicubic for PIL images.
        expand: make the result large enough for the whole rotated image (about its middle).
        center: x and y of the point, from the upper left corner; the middle if None.
        fill: the value outside the image, or one for each channel.

    Raises:
        TypeError, ValueError: arguments of another kind.
    """
    check_image(img)
    if not isinstance(angle, numbers.Number):
        raise TypeError("Argument angle should be int or float")
    _check_center(center)
    mode = interpolation_mode(interpolation)
    if not isinstance(img, Tensor):
        colour = pil_fill(fill, img)
        return img.rotate(angle, pil_resampling(mode), expand, center, fillcolor=colour)
    quarters, rest = divmod(angle, 90)
    square = img.shape[-1] == img.shape[-2]
    if rest == 0 and center is None and (expand or square or quarters % 2 == 0):
        return img.rot90(int(quarters), (-2, -1))  # whole pixels, as pillow does it
    matrix = inverse_affine(_center(img, center), -angle, (0, 0), 1.0, (0, 0))
    size = _expanded(img, matrix) if expand else tuple(img.shape[-2:])
    return _sample(img, _affine_places(img, matrix, size), mode, fill)


def perspective(
    img: Any,
    startpoints: Sequence[Sequence[int]],
    endpoints: Sequence[Sequence[int]],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    fill: _Fill = None,
) -> Any:
    """The perspective map that takes four points to four others, keeping the size.

    Args:
        img: PIL image or tensor.
        startpoints: (x, y) of the corners of the image: top left, top right, bottom right, bottom left.
        endpoints: where they go.
        interpolation: nearest or bilinear; also bicubic for PIL images.
        fill: the value outside the image, or one for each channel.
    """
    check_image(img)
    coefficients = perspective_coefficients(startpoints, endpoints)
    mode = interpolation_mode(interpolation)
    if isinstance(img, Tensor):
        return _sample(img, _perspective_places(img, coefficients), mode, fill)
    return img.transform(
        img.size,
        pillow("Image").Transform.PERSPECTIVE,
        coefficients.tolist(),
        pil_resampling(mode),
        fillcolor=pil_fill(fill, img),
    )


def perspective_coefficients(
    startpoints: Sequence[Sequence[int]], endpoints: Sequence[Sequence[int]]
) -> np.ndarray:
    """a..h with x = (a X + b Y + c) / (g X + h Y + 1), y = (d X + e Y + f) / (g X + h Y + 1).

    (X, Y) are in the result, (x, y) in the image: four pairs of points are eight linear equations.

    Raises:
        ValueError: not four pairs.
    """
    if len(startpoints) != 4 or len(endpoints) != 4:
        raise ValueError(
            f"Please provide exactly four corners, got {len(startpoints)} startpoints and "
            f"{len(endpoints)} endpoints."
        )
    rows: list[list[float]] = []
    for (x, y), (new_x, new_y) in zip(startpoints, endpoints, strict=True):
        rows.append([new_x, new_y, 1, 0, 0, 0, -x * new_x, -x * new_y])
        rows.append([0, 0, 0, new_x, new_y, 1, -y * new_x, -y * new_y])
    wanted = np.asarray(startpoints, dtype=np.float64).reshape(8)
    return np.linalg.lstsq(np.asarray(rows, dtype=np.float64), wanted, rcond=None)[0]


def _check_center(center: Any) -> None:
    if center is not None and not (isinstance(center, Sequence) and len(center) == 2):
        raise TypeError(f"Argument center should be a sequence of two numbers, got {center!r}")


def _center(img: Any, center: Sequence[int] | None) -> list[float]:
    """The fixed point in the coordinates of the image's kind."""
    _, height, width = get_dimensions(img)
    middle = [width * 0.5, height * 0.5]
    if not isinstance(img, Tensor):
        return middle if center is None else list(center)
    return [0.0, 0.0] if center is None else [c - m for c, m in zip(center, middle, strict=True)]


def _expanded(img: Tensor, matrix: np.ndarray) -> tuple[int, int]:
    """Height and width of the box around the rotated image."""
    height, width = img.shape[-2:]
    half = np.array([width, height]) * 0.5
    corners = np.array([[x, y, 1] for x in (-half[0], half[0]) for y in (-half[1], half[1])])
    places = corners @ matrix.T + half
    # 1e-4 of a pixel is rounding, and no reason for one more.
    first = np.floor(np.trunc(places.min(0) / 1e-4) * 1e-4)
    last = np.ceil(np.trunc(places.max(0) / 1e-4) * 1e-4)
    new_width, new_height = (last - first).astype(int).tolist()
    return new_height, new_width


def _pixel_centers(size: Sequence[int]) -> np.ndarray:
    """(height, width, 3): x, y and 1 of every pixel, from the middle."""
    height, width = size
    out = np.ones((height, width, 3))
    out[..., 0] = np.arange(width) + 0.5 - width * 0.5
    out[..., 1] = (np.arange(height) + 0.5 - height * 0.5)[:, None]
    return out


def _affine_places(img: Tensor, matrix: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(height, width, 2): where each pixel's value is found, the image being -1..1."""
    half = np.array([img.shape[-1], img.shape[-2]]) * 0.5
    return _pixel_centers(size) @ matrix.T / half


def _perspective_places(img: Tensor, coefficients: np.ndarray) -> np.ndarray:
    half = np.array([img.shape[-1], img.shape[-2]]) * 0.5
    points = _pixel_centers(img.shape[-2:])
    points[..., :2] += half  # the coefficients count from the corner
    *numerators, denominator = np.append(coefficients, 1).reshape(3, 3)
    return points @ np.stack(numerators).T / half / (points @ denominator)[..., None] - 1


def _sample(img: Tensor, places: np.ndarray, mode: InterpolationMode, fill: _Fill) -> Tensor:
    """The values of `img` at `places`, and `fill` outside."""
    name = tensor_mode(mode, ("nearest", "bilinear"))
    batch, leading = as_batch(in_floating_point(img))
    grid = as_tensor(places, dtype=batch.dtype)[None].expand(len(batch), -1, -1, -1)
    if fill is not None:
        # One channel more says how much of each pixel lies inside.
        batch = dptrain.cat([batch, batch.new_ones(len(batch), 1, *batch.shape[-2:])], 1)
    out = F.grid_sample(batch, grid, mode=name, padding_mode="zeros", align_corners=False)
    if fill is not None:
        inside, out = out[:, -1:], out[:, :-1]
        values = _fill_values(fill, out)
        if name == "nearest":
            out = dptrain.where(inside < 0.5, values, out)
        else:
            out = out * inside + (1.0 - inside) * values
    return rounded_like(out, img).reshape(*leading, *places.shape[:2])


def _fill_values(fill: Any, out: Tensor) -> Tensor:
    values = [fill] if isinstance(fill, numbers.Number) else list(fill)
    if len(values) not in (1, out.shape[1]):
        raise ValueError(
            "The number of elements in 'fill' does not match the number of channels of the image "
            f"({len(values)} != {out.shape[1]})"
        )
    return as_tensor(values, dtype=out.dtype).reshape(1, -1, 1, 1)
