"""What an image is: PIL images, arrays and tensors, their sizes, and the ways between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dptrain.core.creation import as_tensor
from dptrain.core.dtypes import dtype as DType
from dptrain.core.dtypes import float32, float64, get_default_dtype, int32, int64
from dptrain.core.tensor import Tensor, wrap
from dptrain.vision.pillow import is_pil_image, pillow

#: Pillow's mode for one channel of each dtype, and for several of bytes.
_MODE_OF_DTYPE = {"uint8": "L", "int16": "I;16", "int32": "I", "float32": "F"}
_MODES_OF_CHANNELS = {
    2: ("LA",),
    3: ("RGB", "YCbCr", "HSV"),
    4: ("RGBA", "CMYK", "RGBX"),
}
_NOT_THE_FIRST = frozenset(mode for modes in _MODES_OF_CHANNELS.values() for mode in modes[1:])


def check_image(img: Any) -> None:
    """Raise TypeError unless `img` is a PIL image or a tensor (..., H, W)."""
    if is_pil_image(img):
        return
    if not isinstance(img, Tensor):
        raise TypeError(f"img should be PIL Image or Tensor. Got {type(img)}")
    check_tensor_image(img)


def check_tensor_image(img: Any) -> None:
    """Raise TypeError unless `img` is a tensor (..., H, W)."""
    if not isinstance(img, Tensor):
        raise TypeError(f"img should be Tensor Image. Got {type(img)}")
    if img.ndim < 2:
        raise TypeError(f"Tensor is not a torch image: got shape {list(img.shape)}")


def get_dimensions(img: Any) -> list[int]:
    """Channels, height and width."""
    check_image(img)
    if isinstance(img, Tensor):
        channels = 1 if img.ndim == 2 else img.shape[-3]
        return [channels, *img.shape[-2:]]
    return [len(img.getbands()), img.height, img.width]


def get_image_size(img: Any) -> list[int]:
    """Width and height, in this order."""
    _, height, width = get_dimensions(img)
    return [width, height]


def get_image_num_channels(img: Any) -> int:
    """The number of channels."""
    return get_dimensions(img)[0]


def _pil_array(img: Any) -> np.ndarray:
    """The pixels of a PIL image: (H, W, C)."""
    pixels = np.array(img, copy=True)
    if img.mode == "1":
        pixels = pixels.astype(np.uint8) * 255
    return pixels.reshape(img.height, img.width, -1)


def _to_channels_first(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def pil_to_tensor(pic: Any) -> Tensor:
    """The pixels of a PIL image as they are: (C, H, W), uint8 for most modes.

    Raises:
        TypeError: `pic` is no PIL image.
    """
    if not is_pil_image(pic):
        raise TypeError(f"pic should be PIL Image. Got {type(pic)}")
    return wrap(_to_channels_first(_pil_array(pic)))


def to_tensor(pic: Any) -> Tensor:
    """A PIL image or an array (H, W) or (H, W, C) as (C, H, W).

    Bytes become numbers of the default dtype in 0..1; other dtypes are kept.

    Raises:
        TypeError: something else.
        ValueError: an array of other dimensions.
    """
    if is_pil_image(pic):
        pixels = _pil_array(pic)
    elif isinstance(pic, np.ndarray):
        if pic.ndim not in (2, 3):
            raise ValueError(f"pic should be 2/3 dimensional. Got {pic.ndim} dimensions.")
        pixels = pic[:, :, None] if pic.ndim == 2 else pic
    else:
        raise TypeError(f"pic should be PIL Image or ndarray. Got {type(pic)}")
    planes = _to_channels_first(pixels)
    if planes.dtype != np.uint8:
        return wrap(planes)
    out = wrap(np.divide(planes, np.float32(255), dtype=np.float32))
    return out if get_default_dtype() == float32 else out.to(get_default_dtype())


def to_pil_image(pic: Any, mode: str | None = None) -> Any:
    """A tensor (C, H, W) or (H, W), or an array (H, W, C) or (H, W), as a PIL image.

    Floating point tensors are taken to be in 0..1, unless `mode` is "F".

    Args:
        pic: up to four channels.
        mode: pillow's mode; if None, what dtype and channels suggest.

    Raises:
        TypeError: something else, or a dtype that no image has.
        ValueError: other dimensions, more channels, or a mode that does not fit.
    """
    pixels = _pixels(pic, mode)
    channels = pixels.shape[-1]
    if channels == 1:
        pixels = pixels[:, :, 0]
        expected = _MODE_OF_DTYPE.get(pixels.dtype.name)
        fits: tuple[str, ...] = () if expected is None else (expected,)
    else:
        fits = _MODES_OF_CHANNELS[channels] if pixels.dtype == np.uint8 else ()
    if not fits:
        raise TypeError(f"Input type {pixels.dtype} is not supported with {channels} channels")
    if mode is not None and mode not in fits:
        raise ValueError(
            f"Incorrect mode ({mode}) supplied for input type {pixels.dtype} with {channels} "
            f"channels. Should be one of {list(fits)}"
        )
    return image_of_pixels(pixels, mode or fits[0])


def image_of_pixels(pixels: np.ndarray, mode: str) -> Any:
    """(H, W) or (H, W, C) as a PIL image of `mode`, which fits the dtype and the channels."""
    image = pillow("Image", "making images")
    pixels = np.ascontiguousarray(pixels)
    if mode == "I;16":
        pixels = pixels.astype("<i2")
    elif mode not in _NOT_THE_FIRST:
        return image.fromarray(pixels)
    # What fromarray would take for another mode of the same channels.
    return image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())


def _pixels(pic: Any, mode: str | None) -> np.ndarray:
    """`pic` as (H, W, C)."""
    if not isinstance(pic, (Tensor, np.ndarray)):
        raise TypeError(f"pic should be Tensor or ndarray. Got {type(pic)}.")
    if pic.ndim not in (2, 3):
        raise ValueError(f"pic should be 2/3 dimensional. Got {pic.ndim} dimensions.")
    if isinstance(pic, Tensor):
        pic = pic.detach()
        if pic.is_floating_point() and mode != "F":
            pic = pic.mul(255).to(as_tensor(np.empty(0, np.uint8)).dtype)
        planes = pic.numpy()
        pixels = planes[:, :, None] if planes.ndim == 2 else planes.transpose(1, 2, 0)
    else:
        pixels = pic[:, :, None] if pic.ndim == 2 else pic
    if pixels.shape[-1] not in (1, *_MODES_OF_CHANNELS):
        raise ValueError(f"pic should not have > 4 channels. Got {pixels.shape[-1]} channels.")
    return pixels


def max_value(dtype: DType) -> int:
    """What white is: 1 in floating point, the greatest value of an integer."""
    return 1 if dtype.is_floating_point else int(np.iinfo(dtype.name).max)


def convert_image_dtype(image: Tensor, dtype: DType = float32) -> Tensor:
    """The image in another dtype, white staying white.

    Raises:
        RuntimeError: floating point numbers too coarse for the integers asked for.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"Input img should be Tensor Image. Got {type(image)}")
    source = image.dtype
    if source == dtype:
        return image
    bound = max_value(dtype)
    if source.is_floating_point:
        if dtype.is_floating_point:
            return image.to(dtype)
        if (source == float32 and dtype in (int32, int64)) or (
            source == float64 and dtype == int64
        ):
            raise RuntimeError(f"The cast from {source} to {dtype} cannot be performed safely")
        # Just under one step more, so that truncation gives every integer an equal share of 0..1.
        return image.mul(bound + 1.0 - 1e-3).to(dtype)
    if dtype.is_floating_point:
        return image.to(dtype) / max_value(source)
    if max_value(source) > bound:
        factor = (max_value(source) + 1) // (bound + 1)
        return image.div(factor, rounding_mode="floor").to(dtype)
    return image.to(dtype) * ((bound + 1) // (max_value(source) + 1))


def normalize(
    tensor: Tensor, mean: Sequence[float], std: Sequence[float], inplace: bool = False
) -> Tensor:
    """(x - mean) / std for each channel of (..., C, H, W).

    Args:
        tensor: of floating point.
        mean: of each channel, or one for all.
        std: likewise.
        inplace: change `tensor` itself.

    Raises:
        TypeError: no tensor, or not of floating point.
        ValueError: fewer than three dimensions, or a deviation of 0.
    """
    check_tensor_image(tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"Input tensor should be a float tensor. Got {tensor.dtype}.")
    if tensor.ndim < 3:
        raise ValueError(
            "Expected tensor to be a tensor image of size (..., C, H, W). Got tensor.size() = "
            f"{tensor.size()}"
        )
    means, stds = (_channel_numbers(_values(x), tensor.dtype) for x in (mean, std))
    if not stds.all():
        raise ValueError(
            f"std evaluated to zero after conversion to {tensor.dtype}, leading to division by zero."
        )
    if not inplace and type(tensor._array) is np.ndarray and not tensor.requires_grad:
        # A sample on its way into a batch: as many as there are, each too small for tensor operations.
        out = np.subtract(tensor.numpy(), means)
        return wrap(np.divide(out, stds, out=out))
    shift, scale = (wrap(x).to(tensor.device) for x in (means, stds))
    if inplace:
        return tensor.sub_(shift).div_(scale)
    return (tensor - shift) / scale


def _values(numbers: Any) -> tuple[float, ...]:
    """One number or several, of any kind."""
    try:
        return tuple(map(float, numbers))
    except TypeError:
        return (float(numbers),)


@lru_cache(maxsize=64)
def _channel_numbers(values: tuple[float, ...], dtype: DType) -> np.ndarray:
    """One number for each channel, to be broadcast over (..., C, H, W)."""
    return as_tensor(values, dtype=dtype).numpy().reshape(-1, 1, 1)
