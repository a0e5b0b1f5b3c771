"""Transforms of colour, tone and sharpness, most of them by amounts that are drawn."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

from dptrain import nn
from dptrain.core.creation import as_tensor
from dptrain.core.tensor import Tensor
from dptrain.vision.transforms import draws
from dptrain.vision.transforms import functional as F

_Range = float | Sequence[float]


class ColorJitter(nn.Module):
    """Brightness, contrast, saturation and hue changed by factors that are drawn, in a random order.

    Args:
        brightness: how far the factor may be from 1, or its least and greatest value.
        contrast: likewise.
        saturation: likewise.
        hue: how far the hue may turn (0..0.5), or least and greatest turn (-0.5..0.5).

    Raises:
        TypeError, ValueError: values outside, or of another kind.
    """

    def __init__(
        self, brightness: _Range = 0, contrast: _Range = 0, saturation: _Range = 0, hue: _Range = 0
    ) -> None:
        super().__init__()
        self.brightness = self._range(brightness, "brightness")
        self.contrast = self._range(contrast, "contrast")
        self.saturation = self._range(saturation, "saturation")
        self.hue = self._range(hue, "hue", center=0.0, lowest=-0.5, highest=0.5)

    @staticmethod
    def _range(
        value: Any,
        name: str,
        center: float = 1.0,
        lowest: float = 0.0,
        highest: float = float("inf"),
    ) -> tuple[float, float] | None:
        """Least and greatest value; None where nothing would change."""
        if isinstance(value, numbers.Number):
            if value < 0:  # type: ignore[operator]
                raise ValueError(f"If {name} is a single number, it must be non negative.")
            low, high = center - float(value), center + float(value)  # type: ignore[arg-type]
            if lowest == 0.0:
                low = max(low, 0.0)
        elif isinstance(value, Sequence) and len(value) == 2:
            low, high = float(value[0]), float(value[1])
        else:
            raise TypeError(f"{name} should be a single number or a list/tuple with length 2.")
        if not lowest <= low <= high <= highest:
            raise ValueError(
                f"{name} values should be between {(lowest, highest)}, but got {[low, high]}."
            )
        return None if low == high == center else (low, high)

    @staticmethod
    def get_params(
        brightness: Sequence[float] | None,
        contrast: Sequence[float] | None,
        saturation: Sequence[float] | None,
        hue: Sequence[float] | None,
    ) -> tuple[list[int], float | None, float | None, float | None, float | None]:
        """The order of the four changes, and the factor of each."""
        order = draws.permutation(4)
        b, c, s, h = (
            None if limits is None else draws.uniform(limits[0], limits[1])
            for limits in (brightness, contrast, saturation, hue)
        )
        return order, b, c, s, h

    def forward(self, img: Any) -> Any:
        """The changed image."""
        order, *factors = self.get_params(self.brightness, self.contrast, self.saturation, self.hue)
        changes: list[Callable[[Any, float], Any]] = [
            F.adjust_brightness,
            F.adjust_contrast,
            F.adjust_saturation,
            F.adjust_hue,
        ]
        for which in order:
            factor = factors[which]
            if factor is not None:
                img = changes[which](img, factor)
        return img

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue})"
        )


class Grayscale(nn.Module):
    """The image in grey.

    Args:
        num_output_channels: 1, or 3 equal ones.
    """

    def __init__(self, num_output_channels: int = 1) -> None:
        super().__init__()
        self.num_output_channels = num_output_channels

    def forward(self, img: Any) -> Any:
        """See `functional.rgb_to_grayscale`."""
        return F.rgb_to_grayscale(img, self.num_output_channels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_output_channels={self.num_output_channels})"


class _WithProbability(nn.Module):
    """Base of the transforms that happen with a probability `p`, printed with their arguments."""

    _shown: tuple[str, ...] = ("p",)

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def _change(self, img: Any) -> Any:
        raise NotImplementedError

    def forward(self, img: Any) -> Any:
        """The changed image, or the image."""
        return self._change(img) if draws.chance(self.p) else img

    def __repr__(self) -> str:
        arguments = ",".join(f"{name}={getattr(self, name)}" for name in self._shown)
        return f"{type(self).__name__}({arguments})"


class RandomGrayscale(_WithProbability):
    """The image in grey with as many channels as before, or the image.

    Args:
        p: probability of grey.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__(p)

    def _change(self, img: Any) -> Any:
        channels = F.get_image_num_channels(img)
        return F.rgb_to_grayscale(img, num_output_channels=channels)


class RandomInvert(_WithProbability):
    """White and black exchanged, or the image.

    Args:
        p: probability of the exchange.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def _change(self, img: Any) -> Any:
        return F.invert(img)


class RandomPosterize(_WithProbability):
    """Only the highest bits of every byte, or the image.

    Args:
        bits: how many are kept.
        p: probability of the change.
    """

    _shown = ("bits", "p")

    def __init__(self, bits: int, p: float = 0.5) -> None:
        super().__init__(p)
        self.bits = bits

    def _change(self, img: Any) -> Any:
        return F.posterize(img, self.bits)


class RandomSolarize(_WithProbability):
    """What is bright inverted, or the image.

    Args:
        threshold: from here on.
        p: probability of the change.
    """

    _shown = ("threshold", "p")

    def __init__(self, threshold: float, p: float = 0.5) -> None:
        super().__init__(p)
        self.threshold = threshold

    def _change(self, img: Any) -> Any:
        return F.solarize(img, self.threshold)


class RandomAdjustSharpness(_WithProbability):
    """The sharpness changed, or the image.

    Args:
        sharpness_factor: 0 smooths, 1 changes nothing, 2 doubles it.
        p: probability of the change.
    """

    _shown = ("sharpness_factor", "p")

    def __init__(self, sharpness_factor: float, p: float = 0.5) -> None:
        super().__init__(p)
        self.sharpness_factor = sharpness_factor

    def _change(self, img: Any) -> Any:
        return F.adjust_sharpness(img, self.sharpness_factor)


class RandomAutocontrast(_WithProbability):
    """Each channel stretched to the whole range, or the image.

    Args:
        p: probability of the change.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def _change(self, img: Any) -> Any:
        return F.autocontrast(img)


class RandomEqualize(_WithProbability):
    """All tones about equally frequent, or the image.

    Args:
        p: probability of the change.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def _change(self, img: Any) -> Any:
        return F.equalize(img)


class GaussianBlur(nn.Module):
    """Every pixel the Gaussian mean of those around it, the deviation being drawn.

    Args:
        kernel_size: odd; width and height of the window, or one number for both.
        sigma: the deviation, or its least and greatest value.

    Raises:
        ValueError, TypeError: sizes or deviations that do not go.
    """

    def __init__(
        self, kernel_size: int | Sequence[int], sigma: float | Sequence[float] = (0.1, 2.0)
    ) -> None:
        super().__init__()
        sizes = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(sizes) != 2 or any(size <= 0 or size % 2 == 0 for size in sizes):
            raise ValueError("Kernel size value should be an odd and positive number.")
        self.kernel_size = sizes
        if isinstance(sigma, numbers.Number):
            if sigma <= 0:  # type: ignore[operator]
                raise ValueError("If sigma is a single number, it must be positive.")
            self.sigma: tuple[float, ...] = (sigma, sigma)  # type: ignore[assignment]
        elif isinstance(sigma, Sequence) and len(sigma) == 2:
            if not 0.0 < sigma[0] <= sigma[1]:
                raise ValueError("sigma values should be positive and of the form (min, max).")
            self.sigma = tuple(sigma)
        else:
            raise TypeError("sigma should be a single number or a list/tuple with length 2.")

    @staticmethod
    def get_params(sigma_min: float, sigma_max: float) -> float:
        """A deviation."""
        return draws.uniform(sigma_min, sigma_max)

    def forward(self, img: Any) -> Any:
        """The blurred image."""
        sigma = self.get_params(self.sigma[0], self.sigma[1])
        return F.gaussian_blur(img, self.kernel_size, [sigma, sigma])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kernel_size={self.kernel_size}, sigma={self.sigma})"


class RandomErasing(nn.Module):
    """A box whose area, shape and place are drawn overwritten, or the image; tensors only.

    Source: Z. Zhong et al., "Random erasing data augmentation", 2017.

    Args:
        p: probability of erasing.
        scale: least and greatest share of the image's area.
        ratio: least and greatest height / width of the box.
        value: what is written: a number, one for each channel, or "random" for normal noise.
        inplace: change the tensor itself.

    Raises:
        TypeError, ValueError: arguments of another kind.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float | str | Sequence[float] = 0,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(value, (numbers.Number, str, tuple, list)):
            raise TypeError("Argument value should be either a number or str or a sequence")
        if isinstance(value, str) and value != "random":
            raise ValueError("If value is str, it should be 'random'")
        for name, limits in (("Scale", scale), ("Ratio", ratio)):
            if not isinstance(limits, (tuple, list)):
                raise TypeError(f"{name} should be a sequence")
        if scale[0] < 0 or scale[1] > 1:
            raise ValueError("Scale should be between 0 and 1")
        if p < 0 or p > 1:
            raise ValueError("Random erasing probability should be between 0 and 1")
        self.p = p
        self.scale = scale
        self.ratio = ratio
        self.value = value
        self.inplace = inplace

    @staticmethod
    def get_params(
        img: Tensor,
        scale: Sequence[float],
        ratio: Sequence[float],
        value: list[float] | None = None,
    ) -> tuple[int, int, int, int, Tensor]:
        """Row, column, height and width of a box and its values: of ten draws the first that fits.

        Where none does, the box is the image with its own values. No `value` gives normal noise.
        """
        channels, rows, columns = img.shape[-3:]
        for _ in range(10):
            area = rows * columns * draws.uniform(*scale)
            shape = draws.log_uniform(*ratio)
            height, width = round((area * shape) ** 0.5), round((area / shape) ** 0.5)
            if not (height < rows and width < columns):
                continue
            if value is None:
                filling = img.new_empty((channels, height, width)).float().normal_()
            else:
                filling = as_tensor(value, dtype=img.dtype).reshape(-1, 1, 1)
            top, left = draws.integer(0, rows - height), draws.integer(0, columns - width)
            return top, left, height, width, filling
        return 0, 0, rows, columns, img

    def forward(self, img: Tensor) -> Tensor:
        """The tensor with a box overwritten, or the tensor."""
        if not draws.chance(self.p):
            return img
        if isinstance(self.value, numbers.Number):
            values: list[float] | None = [float(self.value)]  # type: ignore[arg-type]
        elif isinstance(self.value, str):
            values = None
        else:
            values = [float(v) for v in self.value]
        channels = img.shape[-3]
        if values is not None and len(values) not in (1, channels):
            raise ValueError(
                "If value is a sequence, it should have either a single value or "
                f"{channels} (number of input channels)"
            )
        top, left, height, width, filling = self.get_params(img, self.scale, self.ratio, values)
        return F.erase(img, top, left, height, width, filling, self.inplace)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(p={self.p}, scale={self.scale}, ratio={self.ratio}, "
            f"value={self.value}, inplace={self.inplace})"
        )
