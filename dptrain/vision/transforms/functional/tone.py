"""Inversion, fewer tones, histograms, sharpness, blur and erasing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import dptrain
from dptrain.core.creation import as_tensor
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn import functional as F
from dptrain.vision.pillow import pillow
from dptrain.vision.transforms.functional.color import _check_channels, blend
from dptrain.vision.transforms.functional.geometry import (
    as_batch,
    in_floating_point,
    pad,
    rounded_like,
)
from dptrain.vision.transforms.functional.image import (
    check_image,
    max_value,
    pil_to_tensor,
    to_pil_image,
)


def _check_bytes(img: Tensor) -> None:
    if img.dtype.name != "uint8":
        raise TypeError(f"Only torch.uint8 image tensors are supported, but found {img.dtype}")


def invert(img: Any) -> Any:
    """White becomes black and black white."""
    check_image(img)
    if not isinstance(img, Tensor):
        return pillow("ImageOps").invert(img)
    _check_channels(img, (1, 3))
    return max_value(img.dtype) - img


def posterize(img: Any, bits: int) -> Any:
    """Keep the `bits` highest bits of every byte.

    Raises:
        TypeError: a tensor of another dtype than uint8.
        ValueError: not 0..8 bits.
    """
    check_image(img)
    if not 0 <= bits <= 8:
        raise ValueError(f"The number if bits should be between 0 and 8. Got {bits}")
    if not isinstance(img, Tensor):
        return pillow("ImageOps").posterize(img, bits)
    _check_bytes(img)
    return img & (256 - 2 ** (8 - bits))


def solarize(img: Any, threshold: float) -> Any:
    """Invert what is `threshold` or brighter.

    Raises:
        TypeError: a threshold beyond white.
    """
    check_image(img)
    if not isinstance(img, Tensor):
        return pillow("ImageOps").solarize(img, threshold)
    _check_channels(img, (1, 3))
    if threshold > max_value(img.dtype):
        raise TypeError("Threshold should be less than bound of img.")
    return dptrain.where(img >= threshold, invert(img), img)


def autocontrast(img: Any) -> Any:
    """Each channel stretched to the whole range; one of a single tone stays."""
    check_image(img)
    if not isinstance(img, Tensor):
        return pillow("ImageOps").autocontrast(img)
    _check_channels(img, (1, 3))
    values = in_floating_point(img)
    darkest, brightest = values.amin((-2, -1), True), values.amax((-2, -1), True)
    flat = darkest == brightest
    bound = max_value(img.dtype)
    scale = bound / dptrain.where(flat, dptrain.ones_like(darkest), brightest - darkest)
    stretched = ((values - darkest) * scale).clamp(0, bound)
    return dptrain.where(flat, values, stretched).to(img.dtype)


def equalize(img: Any) -> Any:
    """Tones moved so that all are about equally frequent, channel by channel.

    Raises:
        TypeError: a tensor of another dtype than uint8.
    """
    check_image(img)
    if not isinstance(img, Tensor):
        return pillow("ImageOps").equalize(img)
    _check_bytes(img)
    _check_channels(img, (1, 3))
    planes = img.numpy().reshape(-1, img.shape[-2] * img.shape[-1])
    return wrap(np.stack([_equalized(plane) for plane in planes]).reshape(img.shape))


def _equalized(plane: np.ndarray) -> np.ndarray:
    """As pillow's: a tone becomes the share of pixels darker than it, in steps of a 255th of the others
    than the brightest."""
    counts = np.bincount(plane, minlength=256)
    step = int(counts[: plane.max()].sum()) // 255
    if step == 0:
        return plane
    darker = np.cumsum(counts) - counts
    return ((darker + step // 2) // step).clip(0, 255).astype(np.uint8)[plane]


def adjust_sharpness(img: Any, sharpness_factor: float) -> Any:
    """0 gives a smoothed image, 1 the image, 2 twice its sharpness.

    Raises:
        ValueError: a negative factor.
    """
    check_image(img)
    if sharpness_factor < 0:
        raise ValueError(f"sharpness_factor ({sharpness_factor}) is not non-negative.")
    if not isinstance(img, Tensor):
        return pillow("ImageEnhance").Sharpness(img).enhance(sharpness_factor)
    _check_channels(img, (1, 3))
    if min(img.shape[-2:]) <= 2:
        return img
    smooth = dptrain.ones(3, 3)
    smooth[1, 1] = 5.0
    batch, _ = as_batch(in_floating_point(img))
    inside = rounded_like(_filter(batch, smooth / smooth.sum()), img)
    degenerate = as_batch(img)[0].clone()
    degenerate[..., 1:-1, 1:-1] = inside
    return blend(img, degenerate.reshape(img.shape), sharpness_factor)


def _filter(batch: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of (N, C, H, W) convolved with `kernel`, where it fits."""
    channels = batch.shape[1]
    weight = kernel.to(batch.dtype).expand(channels, 1, *kernel.shape)
    return F.conv2d(batch, weight, groups=channels)


def gaussian_blur(
    img: Any, kernel_size: int | Sequence[int], sigma: float | Sequence[float] | None = None
) -> Any:
    """Every pixel the Gaussian mean of those around it, mirrored at the edges.

    Args:
        img: PIL image or tensor.
        kernel_size: odd; width and height of the window, or one number for both.
        sigma: deviation in pixels along x and y, or one number; if None, 0.15 * kernel_size + 0.35.

    Raises:
        ValueError: an even or negative size, or a deviation that is not positive.
    """
    check_image(img)
    sizes = [kernel_size] * 2 if isinstance(kernel_size, int) else list(kernel_size)
    if len(sizes) != 2:
        raise ValueError(f"If kernel_size is a sequence its length should be 2. Got {len(sizes)}")
    for size in sizes:
        if size % 2 == 0 or size < 0:
            raise ValueError(
                f"kernel_size should have odd and positive integers. Got {kernel_size}"
            )
    if sigma is None:
        sigmas = [size * 0.15 + 0.35 for size in sizes]
    else:
        sigmas = [float(sigma)] if isinstance(sigma, (int, float)) else [float(s) for s in sigma]
    if len(sigmas) not in (1, 2):
        raise ValueError(f"If sigma is a sequence, its length should be 2. Got {len(sigmas)}")
    for value in sigmas:
        if value <= 0.0:
            raise ValueError(f"sigma should have positive values. Got {sigma}")
    if not isinstance(img, Tensor):
        return to_pil_image(gaussian_blur(pil_to_tensor(img), sizes, sigmas), mode=img.mode)
    along_x, along_y = (
        _gauss(size, value) for size, value in zip(sizes, (sigmas[0], sigmas[-1]), strict=True)
    )
    batch, _ = as_batch(in_floating_point(img))
    batch = pad(batch, [sizes[0] // 2, sizes[1] // 2], padding_mode="reflect")
    # The window is a product: two passes along one axis each instead of one of all its pixels.
    out = _filter(_filter(batch, along_x[None, :]), along_y[:, None])
    return rounded_like(out, img).reshape(img.shape)


def _gauss(size: int, sigma: float) -> Tensor:
    x = np.arange(size) - (size - 1) * 0.5
    weights = np.exp(-0.5 * (x / sigma) ** 2)
    return wrap(weights / weights.sum())


def erase(img: Tensor, i: int, j: int, h: int, w: int, v: Any, inplace: bool = False) -> Tensor:
    """The box of `h` x `w` pixels at row `i`, column `j` overwritten.

    Args:
        img: tensor (..., C, H, W).
        i, j, h, w: the box.
        v: the values: a number or a tensor that broadcasts to (..., C, h, w).
        inplace: change `img` itself.

    Raises:
        TypeError: no tensor.
    """
    if not isinstance(img, Tensor):
        raise TypeError("img should be Tensor Image. Got " + str(type(img)))
    out = img if inplace else img.clone()
    out[..., i : i + h, j : j + w] = v if isinstance(v, Tensor) else as_tensor(v, dtype=img.dtype)
    return out
