"""Summaries of pictures: images in any order of dimensions, figures, boxes, films.

Owns: layout, scaling and encoding. Must not know: files, ranks.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.tensorboard import protos
from dptrain.tensorboard.values import make_np
from dptrain.vision.pillow import pillow

Array = np.ndarray[Any, Any]


def image(tag: str, tensor: Any, rescale: float = 1, dataformats: str = "NCHW") -> Any:
    """An image, or several in rows of eight.

    Args:
        tag: its tag.
        tensor: uint8 as it is, other types as values in [0, 1]; 1, 3 or (one image) 4 channels.
        rescale: factor of its size.
        dataformats: what its dimensions are: the letters of NCHW, CHW or HW in the tensor's order.

    Raises:
        AssertionError: letters and dimensions do not fit.
    """
    pixels = _pixels(convert_to_HWC(make_np(tensor), dataformats))
    return protos.Summary(value=[protos.Summary.Value(tag=tag, image=make_image(pixels, rescale))])


def image_boxes(
    tag: str,
    tensor_image: Any,
    tensor_boxes: Any,
    rescale: float = 1,
    dataformats: str = "CHW",
    labels: Sequence[str] | None = None,
) -> Any:
    """An image with boxes drawn into it.

    Args:
        tensor_boxes: (N, 4): left, top, right, bottom in pixels.
        labels: one per box.

    Raises:
        AssertionError: letters and dimensions do not fit.
        ValueError: boxes of another shape.
    """
    pixels = _pixels(convert_to_HWC(make_np(tensor_image), dataformats))
    boxes = make_np(tensor_boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), got {list(boxes.shape)}")
    made = make_image(pixels, rescale, boxes, labels)
    return protos.Summary(value=[protos.Summary.Value(tag=tag, image=made)])


def _pixels(values: Array) -> Array:
    """As uint8: values of other types are in [0, 1]."""
    scale = 1 if values.dtype == np.uint8 else 255
    pixels: Array = (values.astype(np.float32) * scale).clip(0, 255).astype(np.uint8)
    return pixels


def convert_to_HWC(tensor: Array, input_format: str) -> Array:
    """(H, W, C) with at least 3 channels; of several images the grid.

    Raises:
        AssertionError: letters and dimensions do not fit.
    """
    letters = input_format.upper()
    if len(set(letters)) != len(letters):
        raise AssertionError(
            f"You can not use the same dimension shorthand twice. input_format: {input_format}"
        )
    if tensor.ndim != len(letters):
        raise AssertionError(
            f"size of input tensor and input format are different. tensor shape: {tensor.shape}, "
            f"input_format: {input_format}"
        )
    order = next((o for o in ("NCHW", "HWC", "HW") if set(o) == set(letters)), None)
    if order is None:
        raise AssertionError(
            f"input_format must be the letters of NCHW, CHW or HW, got {input_format}"
        )
    tensor = tensor.transpose([letters.index(letter) for letter in order])
    if order == "NCHW":
        return make_grid(tensor).transpose(1, 2, 0)
    if order == "HW":
        tensor = tensor[:, :, None]
    return tensor.repeat(3, 2) if tensor.shape[2] == 1 else tensor


def make_grid(images: Array, ncols: int = 8) -> Array:
    """Images (N, C, H, W), C of 1 or 3, in rows of `ncols` without gaps: (3, rows * H, columns * W).

    Raises:
        AssertionError: another shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise AssertionError(
            f"Input should be a 4D array with 1 or 3 channels, got shape {list(images.shape)} as NCHW"
        )
    if len(images) == 0:
        raise AssertionError(f"there is no image in a tensor of shape {list(images.shape)}")
    images = np.broadcast_to(images, (len(images), 3, *images.shape[2:]))
    columns = min(len(images), ncols)
    missing = -len(images) % columns
    full = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
    grid = full.reshape(-1, columns, *images.shape[1:]).transpose(2, 0, 3, 1, 4)
    return grid.reshape(3, grid.shape[1] * grid.shape[2], -1)


def make_image(
    tensor: Array,
    rescale: float = 1,
    rois: Array | None = None,
    labels: Sequence[str] | None = None,
) -> Any:
    """A `Summary.Image`: pixels (H, W, C) as PNG.

    Args:
        rois: boxes (N, 4) to draw.
    """
    pil = pillow("Image", "an image for TensorBoard")
    height, width, channels = tensor.shape
    picture = pil.fromarray(tensor)
    if rois is not None:
        for i, box in enumerate(rois):
            _draw_box(picture, box.tolist(), None if labels is None else labels[i])
    size = (int(width * rescale), int(height * rescale))
    if size != picture.size:
        picture = picture.resize(size, pil.Resampling.LANCZOS)
    return _encoded(picture, (height, width, channels), format="PNG")


def _encoded(picture: Any, shape: tuple[int, int, int], **options: Any) -> Any:
    file = io.BytesIO()
    picture.save(file, **options)
    height, width, channels = shape
    return protos.Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue()
    )


def _draw_box(picture: Any, box: Sequence[float], label: str | None) -> None:
    """A red frame of two pixels; its label in black on red inside the lower left corner."""
    left, top, right, bottom = box
    draw = pillow("ImageDraw").Draw(picture)
    corners = [(left, top), (left, bottom), (right, bottom), (right, top), (left, top)]
    draw.line(corners, width=2, fill="Red")
    if not label:
        return
    font = pillow("ImageFont").load_default()
    x0, y0, x1, y1 = font.getbbox(label)
    width, height = x1 - x0, y1 - y0
    margin = np.ceil(0.05 * height)
    draw.rectangle([(left, bottom - height - 2 * margin), (left + width, bottom)], fill="Red")
    draw.text((left + margin, bottom - height - margin), label, fill="black", font=font)


def figure_to_image(figures: Any, close: bool = True) -> Array:
    """Matplotlib figures as pixels.

    Args:
        figures: one, or a list of figures of one size.
        close: close them afterwards.

    Returns:
        uint8, (3, H, W); for a list (N, 3, H, W).
    """
    if isinstance(figures, list):
        return np.stack([figure_to_image(figure, close) for figure in figures])
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figures)
    canvas.draw()
    pixels = np.array(canvas.buffer_rgba())[:, :, :3]
    if close:
        import matplotlib.pyplot as plt

        plt.close(figures)
    return pixels.transpose(2, 0, 1)


def video(tag: str, tensor: Any, fps: float = 4) -> Any:
    """Films side by side, as an animated GIF.

    Args:
        tensor: (N, T, C, H, W), C of 1 or 3; uint8 as it is, other types as values in [0, 1].
        fps: frames per second.

    Raises:
        ValueError: another shape.
    """
    values = make_np(tensor)
    if values.ndim != 5 or values.shape[2] not in (1, 3) or 0 in values.shape:
        raise ValueError(
            f"add_video {tag!r}: expected (N, T, C, H, W) with 1 or 3 channels, got {list(values.shape)}"
        )
    made = make_video(_pixels(_side_by_side(values)), fps)
    return protos.Summary(value=[protos.Summary.Value(tag=tag, image=made)])


def _side_by_side(films: Array) -> Array:
    """(N, T, C, H, W) as frames (T, rows * H, columns * W, 3).

    The number of places is the power of two from N on, half of its factors in the rows.
    """
    count = len(films)
    places = 1 << (count - 1).bit_length()
    rows = 1 << (count.bit_length() - 1) // 2
    frames = films.transpose(1, 0, 2, 3, 4)
    empty = np.zeros((len(frames), places - count, *frames.shape[2:]), films.dtype)
    full = np.concatenate([frames, empty], axis=1)
    columns = places // rows
    return np.stack([make_grid(frame, columns).transpose(1, 2, 0) for frame in full])


def make_video(tensor: Array, fps: float) -> Any:
    """A `Summary.Image`: frames (T, H, W, C) as GIF."""
    pil = pillow("Image", "a film for TensorBoard")
    first, *others = [pil.fromarray(frame) for frame in tensor]
    return _encoded(
        first, tensor.shape[1:], format="GIF", save_all=True, append_images=others,
        duration=round(1000 / fps), loop=0,
    )  # fmt: skip
