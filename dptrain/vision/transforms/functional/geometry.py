"""Cutting, padding, mirroring and resizing, of PIL images and tensors (..., C, H, W)."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.core.creation import as_tensor
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn import functional as F
from dptrain.vision.pillow import pillow
from dptrain.vision.transforms.functional.image import (
    check_image,
    get_dimensions,
    image_of_pixels,
    max_value,
)
from dptrain.vision.transforms.modes import (
    InterpolationMode,
    interpolation_mode,
    pil_resampling,
    tensor_mode,
)

_NUMPY_PADDING = {"edge": "edge", "reflect": "reflect", "symmetric": "symmetric"}


def as_batch(img: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """(..., C, H, W) or (H, W) as (N, C, H, W), and the dimensions to go back with."""
    leading = tuple(img.shape[:-2])
    channels = leading[-1] if leading else 1
    return img.reshape(-1, channels, *img.shape[-2:]), leading


def rounded_like(out: Tensor, img: Tensor) -> Tensor:
    """`out`, computed in floating point, in the dtype of `img`: integers rounded and in range."""
    if img.is_floating_point():
        return out.to(img.dtype)
    return out.round().clamp(0, max_value(img.dtype)).to(img.dtype)


def in_floating_point(img: Tensor) -> Tensor:
    """`img` if it can be computed with, else as float32."""
    return img if img.dtype.name in ("float32", "float64") else img.float()


def resized_size(
    height: int, width: int, size: int | Sequence[int], max_size: int | None
) -> tuple[int, int]:
    """Height and width after `resize`."""
    sizes = [size] if isinstance(size, int) else [int(s) for s in size]
    if len(sizes) not in (1, 2):
        raise ValueError(
            f"Size must be an int or a 1 or 2 element tuple/list, not a {len(sizes)} element tuple/list"
        )
    if len(sizes) == 2:
        if max_size is not None:
            raise ValueError(
                "max_size should only be passed if size specifies the length of the smaller edge, "
                "i.e. size should be an int or a sequence of length 1 in torchscript mode."
            )
        return sizes[0], sizes[1]
    short, long = min(height, width), max(height, width)
    new_short, new_long = sizes[0], int(sizes[0] * long / short)
    if max_size is not None:
        if max_size <= sizes[0]:
            raise ValueError(
                f"max_size = {max_size} must be strictly greater than the requested size for the "
                f"smaller edge size = {size}"
            )
        if new_long > max_size:
            new_short, new_long = int(max_size * new_short / new_long), max_size
    return (new_long, new_short) if width <= height else (new_short, new_long)


def resize(
    img: Any,
    size: int | Sequence[int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    max_size: int | None = None,
    antialias: bool | None = True,
) -> Any:
    """The image in another size.

    Args:
        img: PIL image or tensor.
        size: (height, width), or the length of the shorter edge.
        interpolation: tensors take nearest, nearest-exact, bilinear and bicubic.
        max_size: the longest that the longer edge may become.
        antialias: of tensors, with bilinear and bicubic: filter before taking fewer pixels, as is
            always done for PIL images.

    Raises:
        ValueError: sizes or an interpolation that do not go.
    """
    check_image(img)
    mode = interpolation_mode(interpolation)
    _, height, width = get_dimensions(img)
    new = resized_size(height, width, size, max_size)
    if new == (height, width):
        return img
    if not isinstance(img, Tensor):
        return img.resize(new[::-1], pil_resampling(mode))
    name = tensor_mode(mode, ("nearest", "nearest-exact", "bilinear", "bicubic"))
    smooth = name in ("bilinear", "bicubic")
    batch, leading = as_batch(in_floating_point(img))
    out = F.interpolate(
        batch,
        new,
        mode=name,
        align_corners=False if smooth else None,
        antialias=bool(antialias) and smooth,
    )
    return rounded_like(out, img).reshape(*leading, *new)


def crop(img: Any, top: int, left: int, height: int, width: int) -> Any:
    """The box of `height` x `width` pixels at (top, left); what lies outside the image is 0."""
    check_image(img)
    if not isinstance(img, Tensor):
        return img.crop((left, top, left + width, top + height))
    rows, columns = img.shape[-2:]
    bottom, right = top + height, left + width
    inside = img[..., max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if left >= 0 and top >= 0 and right <= columns and bottom <= rows:
        return inside
    missing = [
        max(min(right, 0) - left, 0),
        max(right - max(columns, left), 0),
        max(min(bottom, 0) - top, 0),
        max(bottom - max(rows, top), 0),
    ]
    return F.pad(inside, missing)


def center_crop(img: Any, output_size: int | Sequence[int]) -> Any:
    """The middle of the image, padded with 0 where the image is smaller.

    Args:
        img: PIL image or tensor.
        output_size: (height, width), or one number for both.
    """
    new_height, new_width = height_and_width(output_size)
    _, height, width = get_dimensions(img)
    if new_width > width or new_height > height:
        missing = (max(new_width - width, 0), max(new_height - height, 0))
        before = [m // 2 for m in missing]
        after = [(m + 1) // 2 for m in missing]
        img = pad(img, [*before, *after], fill=0)
        _, height, width = get_dimensions(img)
        if (new_height, new_width) == (height, width):
            return img
    top, left = round((height - new_height) / 2.0), round((width - new_width) / 2.0)
    return crop(img, top, left, new_height, new_width)


def height_and_width(size: Any) -> tuple[int, int]:
    """`size` as two numbers.

    Raises:
        ValueError: it is neither a number nor one or two of them.
    """
    if isinstance(size, numbers.Number):
        return int(size), int(size)  # type: ignore[call-overload]
    if isinstance(size, Sequence) and len(size) in (1, 2):
        return int(size[0]), int(size[-1])
    raise ValueError("Please provide only two dimensions (h, w) for size.")


def resized_crop(
    img: Any,
    top: int,
    left: int,
    height: int,
    width: int,
    size: Sequence[int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    antialias: bool | None = True,
) -> Any:
    """`crop`, then `resize`."""
    return resize(crop(img, top, left, height, width), size, interpolation, antialias=antialias)


def sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom, from one number, (left and right, top and bottom), or all four.

    Raises:
        TypeError: something else.
        ValueError: another number of numbers.
    """
    if isinstance(padding, int):
        return (padding,) * 4
    if not isinstance(padding, Sequence):
        raise TypeError("Got inappropriate padding arg")
    if len(padding) not in (1, 2, 4):
        raise ValueError(
            f"Padding must be an int or a 1, 2, or 4 element tuple, not a {len(padding)} element tuple"
        )
    left, top, *rest = (*padding, padding[0]) if len(padding) == 1 else padding
    right, bottom = rest if rest and len(padding) == 4 else (left, top)
    return left, top, right, bottom


def pad(
    img: Any,
    padding: int | Sequence[int],
    fill: float | Sequence[float] = 0,
    padding_mode: str = "constant",
) -> Any:
    """More pixels around the image; negative numbers cut.

    Args:
        img: PIL image or tensor.
        padding: of all sides; (left and right, top and bottom); or (left, top, right, bottom).
        fill: the value of "constant", or one for each channel.
        padding_mode: "constant", "edge", "reflect" (without the edge) or "symmetric" (with it).

    Raises:
        TypeError, ValueError: arguments of another kind.
    """
    check_image(img)
    left, top, right, bottom = sides(padding)
    if padding_mode not in ("constant", *_NUMPY_PADDING):
        raise ValueError("Padding mode should be either constant, edge, reflect or symmetric")
    if not isinstance(img, Tensor):
        return _pad_pil(img, (left, top, right, bottom), fill, padding_mode)
    if padding_mode == "constant":
        around = [left, right, top, bottom]
        if isinstance(fill, numbers.Number) or len(fill) == 1:  # type: ignore[arg-type]
            value = fill if isinstance(fill, numbers.Number) else fill[0]  # type: ignore[index]
            return F.pad(img, around, value=value)  # type: ignore[arg-type]
        offset = as_tensor(fill, dtype=img.dtype).reshape(-1, 1, 1)
        inside = F.pad(img.new_ones(img.shape[-2:]), around)
        return F.pad(img, around) + offset * (1 - inside)
    # Whole rows and columns are taken by number: exact for every dtype, and differentiable.
    rows, columns = (
        _taken(size, before, after, padding_mode)
        for size, before, after in (
            (img.shape[-2], top, bottom),
            (img.shape[-1], left, right),
        )
    )
    return img.index_select(-2, rows).index_select(-1, columns)


def _taken(size: int, before: int, after: int, mode: str) -> Tensor:
    if mode == "reflect" and max(before, after) >= size:
        raise ValueError(
            f"reflect padding ({before}, {after}) should be less than the image's size {size}"
        )
    kept = np.arange(size)[max(-before, 0) : size - max(-after, 0)]
    return wrap(np.pad(kept, (max(before, 0), max(after, 0)), mode=mode))  # type: ignore[call-overload]


def _pad_pil(img: Any, around: tuple[int, int, int, int], fill: Any, mode: str) -> Any:
    left, top, right, bottom = around
    if mode == "constant":
        colour = pil_fill(fill, img)
        size = (img.width + left + right, img.height + top + bottom)
        out = pillow("Image").new(img.mode, size, colour)
        if img.mode == "P":
            out.putpalette(img.getpalette())
        out.paste(img, (left, top))
        return out
    rows, columns = (
        _taken(size, before, after, mode).numpy()
        for size, before, after in ((img.height, top, bottom), (img.width, left, right))
    )
    out = image_of_pixels(np.asarray(img)[rows][:, columns], img.mode)
    if img.mode == "P":
        out.putpalette(img.getpalette())
    return out


def pil_fill(fill: Any, img: Any) -> Any:
    """The colour of new pixels as pillow wants it.

    Raises:
        ValueError: another number of values than the image has channels.
    """
    bands = len(img.getbands())
    if fill is None:
        fill = 0
    if isinstance(fill, numbers.Number):
        values: tuple[Any, ...] = (fill,) * bands
    else:
        values = tuple(fill) * bands if len(fill) == 1 else tuple(fill)
    if len(values) != bands:
        raise ValueError(
            "The number of elements in 'fill' does not match the number of channels of the image "
            f"({len(values)} != {bands})"
        )
    if img.mode != "F":
        values = tuple(int(value) for value in values)
    return values[0] if bands == 1 else values


def hflip(img: Any) -> Any:
    """Left and right exchanged."""
    check_image(img)
    if isinstance(img, Tensor):
        return img.flip(-1)
    return img.transpose(pillow("Image").Transpose.FLIP_LEFT_RIGHT)


def vflip(img: Any) -> Any:
    """Top and bottom exchanged."""
    check_image(img)
    if isinstance(img, Tensor):
        return img.flip(-2)
    return img.transpose(pillow("Image").Transpose.FLIP_TOP_BOTTOM)


def five_crop(img: Any, size: int | Sequence[int]) -> tuple[Any, Any, Any, Any, Any]:
    """The corners (top left, top right, bottom left, bottom right) and the middle.

    Raises:
        ValueError: a size that the image does not have.
    """
    height, width = height_and_width(size)
    _, rows, columns = get_dimensions(img)
    if width > columns or height > rows:
        raise ValueError(
            f"Requested crop size {(height, width)} is bigger than input size {(rows, columns)}"
        )
    down, right = rows - height, columns - width
    corners = [(0, 0), (0, right), (down, 0), (down, right)]
    first, second, third, fourth = (crop(img, top, left, height, width) for top, left in corners)
    return first, second, third, fourth, center_crop(img, (height, width))


def ten_crop(img: Any, size: int | Sequence[int], vertical_flip: bool = False) -> tuple[Any, ...]:
    """`five_crop` of the image and of its mirror image."""
    mirrored = vflip(img) if vertical_flip else hflip(img)
    return five_crop(img, size) + five_crop(mirrored, size)
