"""Looking at images, under the names of `torchvision.utils`: grids, boxes, masks.

The module's name is torchvision's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import dptrain
from dptrain.core.creation import as_tensor
from dptrain.core.dtypes import uint8
from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.vision.pillow import pillow
from dptrain.vision.transforms import functional as F

__all__ = ["draw_bounding_boxes", "draw_segmentation_masks", "make_grid", "save_image"]

_Color = str | tuple[int, int, int]
#: How strongly a filled box covers what lies below, of 255.
_FILL_OPACITY = 100


@no_grad()
def make_grid(
    tensor: Tensor | Sequence[Tensor],
    nrow: int = 8,
    padding: int = 2,
    normalize: bool = False,
    value_range: tuple[float, float] | None = None,
    scale_each: bool = False,
    pad_value: float = 0.0,
) -> Tensor:
    """Many images in one.

    Args:
        tensor: (N, C, H, W), (C, H, W), (H, W), or a list of images of one size; one channel becomes
            three.
        nrow: images in each row.
        padding: pixels around each.
        normalize: bring the values to 0..1.
        value_range: what becomes 0 and 1; least and greatest value if None.
        scale_each: take those of each image, not of all.
        pad_value: of the pixels around.

    Returns:
        (C, H', W'); a single image has nothing around it.

    Raises:
        TypeError: no tensors, or a range that is no pair.
    """
    if isinstance(tensor, Sequence) and all(isinstance(image, Tensor) for image in tensor):
        tensor = dptrain.stack(list(tensor), 0)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor or list of tensors expected, got {type(tensor)}")
    batch = _as_colour_batch(tensor)
    if normalize:
        if value_range is not None and not isinstance(value_range, tuple):
            raise TypeError(
                "value_range has to be a tuple (min, max) if specified. min and max are numbers"
            )
        groups = list(batch) if scale_each else [batch]
        scaled = [_to_unit_range(group, value_range) for group in groups]
        batch = dptrain.stack(scaled) if scale_each else scaled[0]
    count, channels, height, width = batch.shape
    if count == 1:
        return batch.squeeze(0)
    columns = min(nrow, count)
    rows = math.ceil(count / columns)
    step_y, step_x = height + padding, width + padding
    grid = batch.new_full(
        (channels, step_y * rows + padding, step_x * columns + padding), pad_value
    )
    for number in range(count):
        top = number // columns * step_y + padding
        left = number % columns * step_x + padding
        grid[:, top : top + height, left : left + width] = batch[number]
    return grid


def _as_colour_batch(tensor: Tensor) -> Tensor:
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(0)
    return dptrain.cat([tensor] * 3, 1) if tensor.shape[1] == 1 else tensor


def _to_unit_range(images: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    low, high = value_range or (float(images.min()), float(images.max()))
    return (images.clamp(low, high) - low) / max(high - low, 1e-5)


@no_grad()
def save_image(
    tensor: Tensor | Sequence[Tensor],
    fp: str | Path | BinaryIO,
    format: str | None = None,
    **kwargs: Any,
) -> None:
    """Write images, with values in 0..1, as one file.

    Args:
        tensor: see `make_grid`.
        fp: the file.
        format: pillow's name of the format; what the file's name says if None.
        **kwargs: arguments of `make_grid`.
    """
    grid = make_grid(tensor, **kwargs)
    pixels = (grid * 255 + 0.5).clamp(0, 255).to(uint8)
    F.to_pil_image(pixels).save(fp, format=format)


def _check_image(image: Any) -> Tensor:
    if not isinstance(image, Tensor):
        raise TypeError(f"Tensor expected, got {type(image)}")
    if not (image.dtype == uint8 or image.is_floating_point()):
        raise ValueError(f"The image dtype must be uint8 or float, got {image.dtype}")
    if image.dim() != 3:
        raise ValueError("Pass individual images, not batches")
    if image.size(0) not in (1, 3):
        raise ValueError("Only grayscale and RGB images are supported")
    return image


def _colors(colors: Any, count: int) -> list[tuple[int, int, int]]:
    """A colour for each of `count` objects: one for all, a list, or a fixed series.

    Raises:
        ValueError: fewer colours than objects, or no colour.
    """
    if colors is None:
        steps = (2**25 - 1, 2**15 - 1, 2**21 - 1)  # far apart around 255
        found: list[Any] = [tuple(i * step % 255 for step in steps) for i in range(count)]
    elif isinstance(colors, list):
        if len(colors) < count:
            raise ValueError(
                f"Number of colors must be equal or larger than the number of objects, but got "
                f"{len(colors)} < {count}."
            )
        found = colors
    elif isinstance(colors, (str, tuple)):
        found = [colors] * count
    else:
        raise ValueError(
            f"colors must be a tuple or a string, or a list thereof, but got {colors}."
        )
    convert = pillow("ImageColor", "naming colors").getrgb
    return [convert(color) if isinstance(color, str) else tuple(color) for color in found]


@no_grad()
def draw_bounding_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Sequence[str | None] | None = None,
    colors: list[_Color] | _Color | None = None,
    fill: bool | None = False,
    width: int = 1,
    font: str | None = None,
    font_size: int | None = None,
) -> Tensor:
    """Boxes drawn into a copy of the image.

    Args:
        image: (1 or 3, H, W), uint8 or floating point in 0..1.
        boxes: (N, 4): xmin, ymin, xmax, ymax in pixels, which belong to the box.
        labels: a text for each box, written into its upper left corner.
        colors: a name or (red, green, blue) for all, or a list with one for each.
        fill: cover the inside too, so that the image shines through.
        width: of the line in pixels, inwards.
        font: file of a TrueType font; pillow's own if None.
        font_size: with `font`; 10 if None.

    Returns:
        (3, H, W) of the image's dtype.

    Raises:
        TypeError, ValueError: an image, boxes, labels or colours that do not go.
    """
    _check_image(image)
    if len(boxes) == 0:
        warnings.warn("boxes doesn't contain any box. No box was drawn", stacklevel=2)
        return image
    if bool((boxes[:, 0] > boxes[:, 2]).any()) or bool((boxes[:, 1] > boxes[:, 3]).any()):
        raise ValueError(
            "Boxes need to be in (xmin, ymin, xmax, ymax) format, got xmin > xmax or ymin > ymax"
        )
    texts = [None] * len(boxes) if labels is None else list(labels)
    if len(texts) != len(boxes):
        raise ValueError(
            f"The number of boxes ({len(boxes)}) and labels ({len(texts)}) mismatch. Please specify "
            "labels for each box."
        )
    chosen = _colors(colors, len(boxes))
    picture = F.to_pil_image(F.convert_image_dtype(image, uint8)).convert("RGB")
    draw = pillow("ImageDraw").Draw(picture, "RGBA" if fill else None)
    letters = None if font is None else pillow("ImageFont").truetype(font, font_size or 10)
    for box, color, text in zip(boxes.long().tolist(), chosen, texts, strict=False):
        inside = (*color, _FILL_OPACITY) if fill else None
        draw.rectangle(box, fill=inside, outline=color, width=width)
        if text is not None:
            margin = width + 1
            draw.text((box[0] + margin, box[1] + margin), text, fill=color, font=letters)
    return F.convert_image_dtype(F.pil_to_tensor(picture), image.dtype)


@no_grad()
def draw_segmentation_masks(
    image: Tensor,
    masks: Tensor,
    alpha: float = 0.8,
    colors: list[_Color] | _Color | None = None,
) -> Tensor:
    """Masks drawn over a copy of the image; where several overlap, the last one counts.

    Args:
        image: (3, H, W), uint8 or floating point in 0..1.
        masks: bool (N, H, W) or (H, W).
        alpha: how strongly they cover the image; 0 not at all, 1 wholly.
        colors: a name or (red, green, blue) for all, or a list with one for each.

    Returns:
        (3, H, W) of the image's dtype.

    Raises:
        TypeError, ValueError: an image, masks or colours that do not go.
    """
    _check_image(image)
    if masks.ndim == 2:
        masks = masks[None]
    if masks.ndim != 3:
        raise ValueError("masks must be of shape (H, W) or (batch_size, H, W)")
    if masks.dtype.name != "bool":
        raise ValueError(f"The masks must be of dtype bool. Got {masks.dtype}")
    if masks.shape[-2:] != image.shape[-2:]:
        raise ValueError("The image and the masks must have the same height and width")
    if not bool(masks.any()):
        warnings.warn("masks doesn't contain any mask. No mask was drawn", stacklevel=2)
        return image
    covered = image
    for mask, color in zip(masks, _colors(colors, len(masks)), strict=False):
        paint = F.convert_image_dtype(as_tensor(color, dtype=uint8), image.dtype)
        covered = dptrain.where(mask, paint.reshape(3, 1, 1), covered)
    return (image * (1 - alpha) + covered * alpha).to(image.dtype)
