"""Brightness, contrast, saturation, hue, gamma and grey, of PIL images and tensors (..., C, H, W).

Tensors of floating point are taken to be in 0..1, those of integers in the whole range of their dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import dptrain
from dptrain.core.dtypes import float32
from dptrain.core.tensor import Tensor
from dptrain.vision.pillow import pillow
from dptrain.vision.transforms.functional.image import (
    check_image,
    convert_image_dtype,
    get_image_num_channels,
    max_value,
)

#: Luma of ITU-R BT.601, as torchvision rounds it for tensors.
_LUMA = (0.2989, 0.587, 0.114)


def _check_channels(img: Tensor, allowed: tuple[int, ...]) -> None:
    channels = get_image_num_channels(img)
    if channels not in allowed:
        raise TypeError(
            f"Input image tensor permitted channel values are {list(allowed)}, but found {channels}"
        )


def _check_factor(name: str, factor: float) -> None:
    if factor < 0:
        raise ValueError(f"{name} ({factor}) is not non-negative.")


def blend(img: Tensor, other: Tensor, ratio: float) -> Tensor:
    """ratio * img + (1 - ratio) * other, cut to the range of the image and, for integers, downwards."""
    mixed = img * float(ratio) + other * (1.0 - float(ratio))
    return mixed.clamp(0, max_value(img.dtype)).to(img.dtype)


def _enhanced(img: Any, enhancer: str, factor: float) -> Any:
    return getattr(pillow("ImageEnhance"), enhancer)(img).enhance(factor)


def rgb_to_grayscale(img: Any, num_output_channels: int = 1) -> Any:
    """The luma of an RGB image, in one channel or in three equal ones.

    Raises:
        ValueError: another number of channels is asked for.
        TypeError: a tensor of other than one or three channels.
    """
    check_image(img)
    if num_output_channels not in (1, 3):
        raise ValueError("num_output_channels should be either 1 or 3")
    if not isinstance(img, Tensor):
        grey = img.convert("L")
        return grey if num_output_channels == 1 else pillow("Image").merge("RGB", [grey] * 3)
    if img.ndim < 3:
        raise TypeError(
            f"Input image tensor should have at least 3 dimensions, but found {img.ndim}"
        )
    _check_channels(img, (1, 3))
    out = _luma(img) if img.shape[-3] == 3 else img.clone()
    if num_output_channels == 1:
        return out
    return out.expand(*img.shape[:-3], 3, *img.shape[-2:])


def _luma(img: Tensor) -> Tensor:
    red, green, blue = (img[..., i : i + 1, :, :] for i in range(3))
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]).to(img.dtype)


def to_grayscale(img: Any, num_output_channels: int = 1) -> Any:
    """A PIL image of any mode in grey, in one channel or in three equal ones.

    Raises:
        TypeError: no PIL image; `rgb_to_grayscale` takes tensors.
    """
    if isinstance(img, Tensor):
        raise TypeError("Input should be PIL Image")
    return rgb_to_grayscale(img, num_output_channels)


def adjust_brightness(img: Any, brightness_factor: float) -> Any:
    """0 gives black, 1 the image, 2 twice its brightness."""
    check_image(img)
    _check_factor("brightness_factor", brightness_factor)
    if not isinstance(img, Tensor):
        return _enhanced(img, "Brightness", brightness_factor)
    _check_channels(img, (1, 3))
    return blend(img, dptrain.zeros_like(img), brightness_factor)


def adjust_contrast(img: Any, contrast_factor: float) -> Any:
    """0 gives the mean grey, 1 the image, 2 twice its contrast."""
    check_image(img)
    _check_factor("contrast_factor", contrast_factor)
    if not isinstance(img, Tensor):
        return _enhanced(img, "Contrast", contrast_factor)
    _check_channels(img, (1, 3))
    grey = _luma(img) if get_image_num_channels(img) == 3 else img
    if not grey.is_floating_point():
        grey = grey.float()
    dims = (-3, -2, -1) if img.ndim > 2 else (-2, -1)
    return blend(img, grey.mean(dims, keepdim=True), contrast_factor)


def adjust_saturation(img: Any, saturation_factor: float) -> Any:
    """0 gives grey, 1 the image, 2 twice its saturation."""
    check_image(img)
    _check_factor("saturation_factor", saturation_factor)
    if not isinstance(img, Tensor):
        return _enhanced(img, "Color", saturation_factor)
    _check_channels(img, (1, 3))
    return img if get_image_num_channels(img) == 1 else blend(img, _luma(img), saturation_factor)


def adjust_hue(img: Any, hue_factor: float) -> Any:
    """The hue turned by `hue_factor` circles, of -0.5..0.5; grey stays.

    Raises:
        ValueError: a factor outside.
    """
    check_image(img)
    if not -0.5 <= hue_factor <= 0.5:
        raise ValueError(f"hue_factor ({hue_factor}) is not in [-0.5, 0.5].")
    if not isinstance(img, Tensor):
        return _hue_of_pil(img, hue_factor)
    _check_channels(img, (1, 3))
    if get_image_num_channels(img) == 1:
        return img
    hue, saturation, value = _rgb_to_hsv(convert_image_dtype(img, float32)).unbind(-3)
    turned = (hue + hue_factor) % 1.0
    return convert_image_dtype(_hsv_to_rgb(turned, saturation, value), img.dtype)


def _hue_of_pil(img: Any, hue_factor: float) -> Any:
    if img.mode in ("L", "1", "I", "F"):
        return img
    hue, saturation, value = img.convert("HSV").split()
    # Bytes go round the circle by themselves.
    turned = np.asarray(hue) + np.array(int(hue_factor * 255)).astype(np.uint8)
    image = pillow("Image")
    return image.merge("HSV", (image.fromarray(turned), saturation, value)).convert(img.mode)


def _rgb_to_hsv(img: Tensor) -> Tensor:
    """A. R. Smith, "Color gamut transform pairs", 1978; all of 0..1."""
    red, green, blue = img.unbind(-3)
    value, smallest = img.amax(-3), img.amin(-3)
    spread = value - smallest
    grey = spread == 0
    divisor = dptrain.where(grey, dptrain.ones_like(spread), spread)
    saturation = spread / dptrain.where(grey, dptrain.ones_like(value), value)
    to_red, to_green, to_blue = ((value - c) / divisor for c in (red, green, blue))
    sixth = dptrain.where(
        value == red,
        to_blue - to_green,
        dptrain.where(value == green, 2.0 + to_red - to_blue, 4.0 + to_green - to_red),
    )
    return dptrain.stack([(sixth / 6.0 + 1.0) % 1.0, saturation, value], -3)


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    channels = []
    for offset in (5.0, 3.0, 1.0):  # red, green, blue
        k = (hue * 6.0 + offset) % 6.0
        weight = dptrain.minimum(k, 4.0 - k).clamp(0, 1)
        channels.append(value - value * saturation * weight)
    return dptrain.stack(channels, -3).clamp(0, 1)


def adjust_gamma(img: Any, gamma: float, gain: float = 1) -> Any:
    """gain * x ** gamma, of x in 0..1.

    Raises:
        ValueError: a negative gamma.
    """
    check_image(img)
    if gamma < 0:
        raise ValueError("Gamma should be a non-negative real number")
    if not isinstance(img, Tensor):
        mode = img.mode
        table = [int((255 + 1 - 1e-3) * gain * pow(x / 255.0, gamma)) for x in range(256)]
        colours = img if mode == "RGB" else img.convert("RGB")
        return colours.point([min(x, 255) for x in table] * 3).convert(mode)
    _check_channels(img, (1, 3))
    out = img if img.is_floating_point() else convert_image_dtype(img, float32)
    return convert_image_dtype((gain * out**gamma).clamp(0, 1), img.dtype)
