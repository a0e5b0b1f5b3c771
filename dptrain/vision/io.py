"""Image files and tensors (C, H, W) of bytes, under the names of `torchvision.io`.

Owns: decoding, encoding, `ImageReadMode`. Must not know: what images are for.
"""

from __future__ import annotations

import io
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.core.tensor import Tensor, wrap
from dptrain.vision.pillow import pillow
from dptrain.vision.transforms.functional import pil_to_tensor, to_pil_image

__all__ = [
    "ImageReadMode",
    "decode_image",
    "decode_jpeg",
    "decode_png",
    "encode_jpeg",
    "encode_png",
    "read_file",
    "read_image",
    "write_file",
    "write_jpeg",
    "write_png",
]


class ImageReadMode(Enum):
    """Which channels an image is read with."""

    UNCHANGED = 0
    GRAY = 1
    GRAY_ALPHA = 2
    RGB = 3
    RGB_ALPHA = 4


_PIL_MODES = {
    ImageReadMode.GRAY: "L",
    ImageReadMode.GRAY_ALPHA: "LA",
    ImageReadMode.RGB: "RGB",
    ImageReadMode.RGB_ALPHA: "RGBA",
}


def read_file(path: str | Path) -> Tensor:
    """The bytes of a file: uint8 (bytes,)."""
    return wrap(np.fromfile(path, dtype=np.uint8))


def write_file(filename: str | Path, data: Tensor) -> None:
    """Write a one-dimensional uint8 tensor as the bytes of a file.

    Raises:
        RuntimeError: another dtype or other dimensions.
    """
    Path(filename).write_bytes(_raw_bytes(data))


def _raw_bytes(data: Any) -> bytes:
    if not isinstance(data, Tensor) or data.dtype.name != "uint8" or data.ndim != 1:
        found = (
            f"{data.dtype} of shape {list(data.shape)}" if isinstance(data, Tensor) else type(data)
        )
        raise RuntimeError(f"Expected a non empty 1-dimensional uint8 tensor, got {found}")
    return data.numpy().tobytes()


def _read_mode(mode: ImageReadMode | str) -> ImageReadMode:
    if isinstance(mode, ImageReadMode):
        return mode
    try:
        return ImageReadMode[mode.upper()]
    except (KeyError, AttributeError):
        raise ValueError(f"mode {mode!r} is none of {[m.name for m in ImageReadMode]}") from None


def decode_image(
    input: Tensor | str | Path,
    mode: ImageReadMode | str = ImageReadMode.UNCHANGED,
    apply_exif_orientation: bool = False,
) -> Tensor:
    """The image in the bytes of a file: uint8 (C, H, W).

    Args:
        input: uint8 (bytes,), or the path of a file.
        mode: which channels; a member or its name. "UNCHANGED" gives the file's, a palette being
            looked up.
        apply_exif_orientation: turn the image as its EXIF data say.

    Raises:
        RuntimeError: no image that can be read, or one of more than eight bits per channel.
        ValueError: an unknown mode.
    """
    return _decode(input, _read_mode(mode), apply_exif_orientation, None)


def _decode(input: Any, mode: ImageReadMode, turn: bool, format: str | None) -> Tensor:
    module = pillow("Image", "reading image files")
    if isinstance(input, Tensor):
        name, source = "the tensor", _raw_bytes(input)
    else:
        name, source = str(input), Path(input).read_bytes()
    try:
        with module.open(io.BytesIO(source), formats=format and [format]) as image:
            image.load()
            if turn:
                image = pillow("ImageOps").exif_transpose(image)
            return pil_to_tensor(_with_channels(image, mode))
    except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as error:
        kind = format or "image"
        raise RuntimeError(f"{name} is no {kind} that can be decoded: {error}") from None


def _with_channels(image: Any, mode: ImageReadMode) -> Any:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its channels have more than eight bits (mode {image.mode})")
    if mode is not ImageReadMode.UNCHANGED:
        return image.convert(_PIL_MODES[mode])
    if image.mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.convert("L") if image.mode == "1" else image


def read_image(
    path: str | Path,
    mode: ImageReadMode | str = ImageReadMode.UNCHANGED,
    apply_exif_orientation: bool = False,
) -> Tensor:
    """The image in a file: uint8 (C, H, W); see `decode_image`."""
    return decode_image(path, mode, apply_exif_orientation)


def decode_png(
    input: Tensor,
    mode: ImageReadMode | str = ImageReadMode.UNCHANGED,
    apply_exif_orientation: bool = False,
) -> Tensor:
    """`decode_image` of PNG only."""
    return _decode(input, _read_mode(mode), apply_exif_orientation, "PNG")


def decode_jpeg(
    input: Tensor,
    mode: ImageReadMode | str = ImageReadMode.UNCHANGED,
    device: Any = "cpu",
    apply_exif_orientation: bool = False,
) -> Tensor:
    """`decode_image` of JPEG only.

    Raises:
        RuntimeError: another device than the CPU.
    """
    if str(device) != "cpu":
        raise RuntimeError(f"decode_jpeg decodes on 'cpu' only, got device={str(device)!r}")
    return _decode(input, _read_mode(mode), apply_exif_orientation, "JPEG")


def _encode(input: Tensor, format: str, **options: Any) -> Tensor:
    if not isinstance(input, Tensor) or input.dtype.name != "uint8":
        found = input.dtype if isinstance(input, Tensor) else type(input)
        raise RuntimeError(f"Input tensor dtype should be uint8, got {found}")
    if input.ndim != 3:
        raise RuntimeError(f"Input data should be a 3-dimensional tensor, got {input.ndim}")
    if input.shape[0] not in (1, 3):
        raise RuntimeError(f"The number of channels should be 1 or 3, got: {input.shape[0]}")
    buffer = io.BytesIO()
    to_pil_image(input).save(buffer, format, **options)
    return wrap(np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy())


def encode_png(input: Tensor, compression_level: int = 6) -> Tensor:
    """The bytes of a PNG file: uint8 (bytes,).

    Args:
        input: uint8 (1 or 3, H, W).
        compression_level: 0 (none) to 9 (smallest).

    Raises:
        RuntimeError: another dtype, other dimensions, or another level.
    """
    if not 0 <= compression_level <= 9:
        raise RuntimeError(f"Compression level should be between 0 and 9, got {compression_level}")
    return _encode(input, "PNG", compress_level=compression_level)


def write_png(input: Tensor, filename: str | Path, compression_level: int = 6) -> None:
    """`encode_png` into a file."""
    write_file(filename, encode_png(input, compression_level))


def encode_jpeg(input: Any, quality: int = 75) -> Any:
    """The bytes of a JPEG file: uint8 (bytes,); a list of images gives a list.

    Args:
        input: uint8 (1 or 3, H, W), or a list of such.
        quality: 1 (smallest) to 100 (best).

    Raises:
        RuntimeError: another dtype or other dimensions.
        ValueError: another quality.
    """
    if quality < 1 or quality > 100:
        raise ValueError(
            f"Image quality should be a positive number between 1 and 100, got {quality}"
        )
    if isinstance(input, list):
        return [encode_jpeg(image, quality) for image in input]
    return _encode(input, "JPEG", quality=quality)


def write_jpeg(input: Tensor, filename: str | Path, quality: int = 75) -> None:
    """`encode_jpeg` into a file."""
    write_file(filename, encode_jpeg(input, quality))
