"""Kinds of images, colours and tones: against pillow, closed forms and properties."""

import colorsys

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.vision import transforms as T
from dptrain.vision.transforms import functional as F
from dptrain.vision.transforms import v2

Image = pytest.importorskip("PIL.Image", reason="vision extra not installed")
ImageOps = pytest.importorskip("PIL.ImageOps", reason="vision extra not installed")


def pixels(height=12, width=15, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pair(*args, **kwargs):
    image = Image.fromarray(pixels(*args, **kwargs))
    return image, F.pil_to_tensor(image)


def distance(image, tensor):
    return np.abs(F.pil_to_tensor(image).numpy().astype(int) - tensor.numpy()).max()


# ---- kinds of images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "1", "I", "F"])
def test_pil_images_become_tensors(mode):
    image = Image.fromarray(pixels()).convert(
        "RGB" if mode == "HSV" else mode if mode != "LA" else "L"
    )
    image = image.convert(mode)
    raw = np.asarray(image)
    if mode == "1":
        raw = raw.astype(np.uint8) * 255
    planes = raw[None] if raw.ndim == 2 else raw.transpose(2, 0, 1)
    assert np.array_equal(F.pil_to_tensor(image).numpy(), planes)
    out = F.to_tensor(image)
    if raw.dtype == np.uint8:
        assert out.dtype == dptrain.float32
        np.testing.assert_array_equal(out.numpy(), planes.astype(np.float32) / np.float32(255))
    else:
        assert np.array_equal(out.numpy(), planes)


def test_arrays_become_tensors():
    x = pixels()
    np.testing.assert_allclose(T.ToTensor()(x).numpy(), x.transpose(2, 0, 1) / 255.0, rtol=1e-6)
    assert T.ToTensor()(x[:, :, 0]).shape == (1, 12, 15)
    assert T.ToTensor()(x.astype(np.float64)).dtype == dptrain.float64
    with pytest.raises(TypeError, match="pic should be PIL Image or ndarray"):
        T.ToTensor()([1])
    with pytest.raises(ValueError, match=r"2/3 dimensional\. Got 4 dimensions"):
        T.ToTensor()(x[None])
    with pytest.raises(TypeError, match="pic should be PIL Image"):
        T.PILToTensor()(x)


@pytest.mark.parametrize(
    ("channels", "mode", "expected"),
    [
        (1, None, "L"),
        (2, None, "LA"),
        (3, None, "RGB"),
        (4, None, "RGBA"),
        (3, "HSV", "HSV"),
        (4, "CMYK", "CMYK"),
    ],
)
def test_tensors_become_pil_images_and_come_back(channels, mode, expected):
    x = dptrain.tensor(np.random.default_rng(0).integers(0, 256, (channels, 5, 6), dtype=np.uint8))
    image = T.ToPILImage(mode)(x)
    assert image.mode == expected
    assert image.size == (6, 5)
    assert dptrain.equal(F.pil_to_tensor(image), x)
    assert dptrain.equal(F.pil_to_tensor(F.to_pil_image(F.convert_image_dtype(x), mode)), x)
    assert dptrain.equal(F.pil_to_tensor(F.to_pil_image(x.permute(1, 2, 0).numpy(), mode)), x)


def test_other_numbers_as_pil_images():
    assert F.to_pil_image(dptrain.ones(2, 3, dtype=dptrain.int32)).mode == "I"
    assert F.to_pil_image(dptrain.ones(1, 2, 3), mode="F").mode == "F"
    short = F.to_pil_image(np.full((2, 3), 300, np.int16))
    assert short.mode == "I;16"
    assert short.getpixel((2, 1)) == 300
    with pytest.raises(ValueError, match=r"Incorrect mode \(RGB\)"):
        F.to_pil_image(dptrain.ones(1, 2, 3), mode="RGB")
    with pytest.raises(ValueError, match=r"should not have > 4 channels\. Got 5"):
        F.to_pil_image(dptrain.ones(5, 2, 3))
    with pytest.raises(TypeError, match="pic should be Tensor or ndarray"):
        F.to_pil_image("x")
    with pytest.raises(TypeError, match="int64 is not supported"):
        F.to_pil_image(np.zeros((2, 2), np.int64))


def test_dtypes_keep_white_white():
    white = {dptrain.uint8: 255, dptrain.int16: 32767, dptrain.float32: 1.0, dptrain.float64: 1.0}
    for source, bright in white.items():
        for target, expected in white.items():
            x = dptrain.tensor([[0, bright]], dtype=source)
            out = T.ConvertImageDtype(target)(x)
            assert out.dtype == target
            found = out.tolist()[0]
            assert found[0] == 0
            # 16 bits from 8 are shifted: 255 * 128.
            assert found[1] == (
                255 * 128 if (source, target) == (dptrain.uint8, dptrain.int16) else expected
            )
    levels = dptrain.arange(256, dtype=dptrain.uint8)[None]
    assert dptrain.equal(
        F.convert_image_dtype(F.convert_image_dtype(levels), dptrain.uint8), levels
    )
    with pytest.raises(RuntimeError, match="cannot be performed safely"):
        F.convert_image_dtype(dptrain.ones(2, 2), dptrain.int32)


def test_normalize():
    x = dptrain.rand(2, 3, 4, 5)
    mean, std = [0.1, 0.2, 0.3], [0.5, 2.0, 4.0]
    expected = (x.numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    out = T.Normalize(mean, std)(x)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)
    y = x.clone()
    assert T.Normalize(mean, std, inplace=True)(y) is y
    assert dptrain.equal(y, out)
    with pytest.raises(TypeError, match="should be a float tensor"):
        F.normalize(dptrain.ones(3, 2, 2, dtype=dptrain.uint8), mean, std)
    with pytest.raises(ValueError, match="std evaluated to zero"):
        F.normalize(x, mean, [1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match=r"size \(\.\.\., C, H, W\)"):
        F.normalize(x[0, 0], mean, std)
    with pytest.raises(TypeError, match="should be Tensor Image"):
        F.normalize(x.numpy(), mean, std)


def test_dimensions():
    image, tensor = pair()
    for img in (image, tensor, tensor[None]):
        assert F.get_dimensions(img) == [3, 12, 15]
        assert F.get_image_size(img) == [15, 12]
        assert F.get_image_num_channels(img) == 3
    assert F.get_dimensions(tensor[0]) == [1, 12, 15]


# ---- colours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    "function",
    [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_sharpness],
    ids=lambda f: f.__name__,
)
def test_enhancements_are_pillows_but_for_rounding(function, factor):
    image, tensor = pair()
    assert distance(function(image, factor), function(tensor, factor)) <= 2
    floating = function(F.convert_image_dtype(tensor), factor)
    assert distance(function(image, factor), floating * 255) <= 2.5
    batch = function(dptrain.stack([tensor, tensor]), factor)
    assert dptrain.equal(batch[1], function(tensor, factor))
    if factor == 1.0:
        assert dptrain.equal(function(tensor, 1.0), tensor)
    with pytest.raises(ValueError, match="is not non-negative"):
        function(tensor, -1)


@pytest.mark.parametrize("factor", [-0.5, -0.2, 0.0, 0.3, 0.5])
def test_hue_turns_by_the_definition(factor):
    image, tensor = pair(4, 5)
    x = F.convert_image_dtype(tensor)
    out = F.adjust_hue(x, factor).numpy()
    for i in range(4):
        for j in range(5):
            hue, saturation, value = colorsys.rgb_to_hsv(*x.numpy()[:, i, j].tolist())
            expected = colorsys.hsv_to_rgb((hue + factor) % 1, saturation, value)
            np.testing.assert_allclose(out[:, i, j], expected, atol=2e-5)
    assert distance(F.adjust_hue(image, factor), F.adjust_hue(tensor, factor)) <= 10  # hue in bytes
    grey = dptrain.rand(1, 3, 3)
    assert F.adjust_hue(grey, factor) is grey
    same = dptrain.full((3, 2, 2), 0.25)
    assert dptrain.equal(F.adjust_hue(same, factor), same)
    with pytest.raises(ValueError, match=r"hue_factor \(0.6\) is not in \[-0.5, 0.5\]"):
        F.adjust_hue(tensor, 0.6)


def test_gamma():
    image, tensor = pair()
    x = F.convert_image_dtype(tensor)
    np.testing.assert_allclose(F.adjust_gamma(x, 2.0, 0.5).numpy(), 0.5 * x.numpy() ** 2, rtol=1e-5)
    assert distance(F.adjust_gamma(image, 0.7, 1.2), F.adjust_gamma(tensor, 0.7, 1.2)) <= 1
    with pytest.raises(ValueError, match="non-negative"):
        F.adjust_gamma(tensor, -1)


def test_grey():
    image, tensor = pair()
    grey = F.rgb_to_grayscale(tensor)
    assert grey.shape == (1, 12, 15)
    expected = np.tensordot([0.2989, 0.587, 0.114], tensor.numpy().astype(float), 1)
    assert np.abs(grey.numpy()[0] - expected).max() < 1.001
    assert distance(F.to_grayscale(image), grey) <= 1
    three = T.Grayscale(3)(tensor)
    assert three.shape == tensor.shape
    assert dptrain.equal(three[2:], grey)
    assert T.Grayscale(3)(image).mode == "RGB"
    assert T.RandomGrayscale(1.0)(image).mode == "RGB"
    assert T.RandomGrayscale(0.0)(tensor) is tensor
    with pytest.raises(ValueError, match="either 1 or 3"):
        F.rgb_to_grayscale(image, 2)


# ---- tones --------------------------------------------------------------------------------------------


def test_tones_are_pillows():
    for seed in range(4):
        image, tensor = pair(30, 40, seed=seed)
        if seed == 1:  # few tones
            image = image.point(lambda v: v // 60 * 50 + 20)
            tensor = F.pil_to_tensor(image)
        assert distance(F.invert(image), F.invert(tensor)) == 0
        assert distance(F.posterize(image, 3), F.posterize(tensor, 3)) == 0
        assert distance(F.solarize(image, 100), F.solarize(tensor, 100)) == 0
        assert distance(F.equalize(image), F.equalize(tensor)) == 0
        assert distance(F.autocontrast(image), F.autocontrast(tensor)) <= 1
        assert distance(ImageOps.equalize(image), F.equalize(tensor)) == 0


def test_tones_of_floating_point():
    x = dptrain.tensor([[[0.2, 0.6], [0.4, 0.6]]])
    np.testing.assert_allclose(F.invert(x).numpy(), 1 - x.numpy())
    np.testing.assert_allclose(F.autocontrast(x).numpy(), [[[0, 1], [0.5, 1]]], atol=1e-6)
    flat = dptrain.full((1, 2, 2), 0.3)
    assert dptrain.equal(F.autocontrast(flat), flat)
    np.testing.assert_allclose(F.solarize(x, 0.5).numpy(), [[[0.2, 0.4], [0.4, 0.4]]], atol=1e-6)
    for function in (F.equalize, lambda img: F.posterize(img, 2)):
        with pytest.raises(TypeError, match="uint8"):
            function(x)
    with pytest.raises(TypeError, match="Threshold should be less"):
        F.solarize(x, 2.0)


def test_gaussian_blur_by_definition():
    x = dptrain.rand(2, 9, 11).double()
    out = F.gaussian_blur(x, (3, 5), (0.8, 1.7)).numpy()
    along_x = np.exp(-0.5 * (np.arange(-1, 2) / 0.8) ** 2)
    along_y = np.exp(-0.5 * (np.arange(-2, 3) / 1.7) ** 2)
    window = np.outer(along_y / along_y.sum(), along_x / along_x.sum())
    padded = np.pad(x.numpy(), ((0, 0), (2, 2), (1, 1)), mode="reflect")
    expected = np.empty_like(out)
    for i in range(9):
        for j in range(11):
            expected[:, i, j] = (padded[:, i : i + 5, j : j + 3] * window).sum((1, 2))
    np.testing.assert_allclose(out, expected, rtol=1e-10)
    image, tensor = pair()
    assert distance(F.gaussian_blur(image, 3), F.gaussian_blur(tensor, 3)) == 0
    flat = dptrain.full((3, 6, 6), 100, dtype=dptrain.uint8)
    assert dptrain.equal(T.GaussianBlur(5)(flat), flat)
    for size in (2, (3, 4), -1):
        with pytest.raises(ValueError, match="odd and positive"):
            F.gaussian_blur(tensor, size)
    with pytest.raises(ValueError, match="positive"):
        T.GaussianBlur(3, -1.0)


def test_erasing():
    x = dptrain.rand(2, 3, 8, 8)
    out = F.erase(x, 1, 2, 3, 4, 0.5)
    inside = np.zeros(x.shape, bool)
    inside[..., 1:4, 2:6] = True
    assert (out.numpy()[inside] == 0.5).all()
    assert np.array_equal(out.numpy()[~inside], x.numpy()[~inside])
    for _ in range(20):
        erased = T.RandomErasing(1.0, (0.1, 0.2), value=[7, 8, 9])(x[0]).numpy()
        changed = erased != x.numpy()[0]
        assert 0.05 < changed.mean() < 0.3
        for channel, value in enumerate((7, 8, 9)):
            assert (erased[channel][changed[channel]] == value).all()
    noise = T.RandomErasing(1.0, value="random")(x[0]).numpy()
    assert len(np.unique(noise[noise != x.numpy()[0]])) > 3
    y = x[0].clone()
    assert T.RandomErasing(1.0, inplace=True)(y) is y
    assert T.RandomErasing(0.0)(y) is y
    with pytest.raises(ValueError, match="'random'"):
        T.RandomErasing(value="zero")
    with pytest.raises(ValueError, match="single value or 3"):
        T.RandomErasing(1.0, value=[1, 2])(y)
    with pytest.raises(TypeError, match="should be Tensor Image"):
        F.erase(x.numpy(), 0, 0, 1, 1, 0)


def test_color_jitter_draws_and_seeds():
    jitter = T.ColorJitter(0.5, (0.8, 0.9), 0.2, 0.1)
    assert jitter.brightness == (0.5, 1.5)
    for _ in range(30):
        order, b, c, s, h = T.ColorJitter.get_params(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        assert sorted(order) == [0, 1, 2, 3]
        assert 0.5 <= b <= 1.5
        assert 0.8 <= c <= 0.9
        assert 0.8 <= s <= 1.2
        assert -0.1 <= h <= 0.1
    image, tensor = pair()
    results = []
    for seed in (3, 3, 4):
        dptrain.manual_seed(seed)
        results.append(jitter(tensor).numpy())
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    dptrain.manual_seed(3)
    assert np.median(np.abs(F.pil_to_tensor(jitter(image)).numpy().astype(int) - results[0])) <= 3
    assert T.ColorJitter()(tensor) is tensor
    with pytest.raises(ValueError, match="hue values should be between"):
        T.ColorJitter(hue=0.7)
    with pytest.raises(ValueError, match="must be non negative"):
        T.ColorJitter(brightness=-1)


def test_transforms_of_transforms():
    plus, times = T.Lambda(lambda x: x + 1), T.Lambda(lambda x: x * 10)
    assert T.Compose([plus, times])(1) == 20
    assert {T.RandomOrder([plus, times])(1) for _ in range(40)} == {11, 20}
    assert {T.RandomChoice([plus, times])(1) for _ in range(40)} == {2, 10}
    assert {T.RandomChoice([plus, times], p=[0, 1])(1) for _ in range(20)} == {10}
    assert {T.RandomApply([plus, times], p=0.5)(1) for _ in range(40)} == {1, 20}
    assert T.RandomApply(nn.ModuleList([T.Resize(2)]), p=1)(dptrain.rand(3, 4, 4)).shape == (
        3,
        2,
        2,
    )
    with pytest.raises(TypeError, match="should be callable"):
        T.Lambda(3)
    with pytest.raises(TypeError, match="should be a sequence"):
        T.RandomChoice(3)


def test_printing_is_torchvisions():
    both = [T.ToTensor(), T.RandomHorizontalFlip()]
    inside = "    ToTensor()\n    RandomHorizontalFlip(p=0.5)\n)"
    expected = {
        T.Compose(both): f"Compose(\n{inside}",
        T.RandomApply(both): f"RandomApply(\n    p=0.5\n{inside}",
        T.RandomOrder(both): f"RandomOrder(\n{inside}",
        T.RandomChoice(both): f"RandomChoice(\n{inside}(p=None)",
        T.Normalize([0.5], [0.2]): "Normalize(mean=[0.5], std=[0.2])",
        T.Resize(3): "Resize(size=3, interpolation=bilinear, max_size=None, antialias=True)",
        T.CenterCrop(3): "CenterCrop(size=(3, 3))",
        T.RandomCrop(3, 1): "RandomCrop(size=(3, 3), padding=1)",
        T.Pad(2): "Pad(padding=2, fill=0, padding_mode=constant)",
        T.RandomResizedCrop(
            8
        ): "RandomResizedCrop(size=(8, 8), scale=(0.08, 1.0), ratio=(0.75, 1.3333), interpolation=bilinear, antialias=True)",
        T.ColorJitter(
            0.4
        ): "ColorJitter(brightness=(0.6, 1.4), contrast=None, saturation=None, hue=None)",
        T.RandomRotation(
            10
        ): "RandomRotation(degrees=[-10.0, 10.0], interpolation=nearest, expand=False, fill=0)",
        T.RandomAffine(5, (0.1, 0.2)): "RandomAffine(degrees=[-5.0, 5.0], translate=(0.1, 0.2))",
        T.RandomErasing(): "RandomErasing(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0, inplace=False)",
        T.GaussianBlur(3): "GaussianBlur(kernel_size=(3, 3), sigma=(0.1, 2.0))",
        T.RandomPosterize(4): "RandomPosterize(bits=4,p=0.5)",
        T.RandomSolarize(9): "RandomSolarize(threshold=9,p=0.5)",
        T.TenCrop(2): "TenCrop(size=(2, 2), vertical_flip=False)",
        T.ToPILImage(): "ToPILImage()",
        T.ToPILImage("RGB"): "ToPILImage(mode=RGB)",
        T.Grayscale(): "Grayscale(num_output_channels=1)",
        T.RandomEqualize(): "RandomEqualize(p=0.5)",
    }
    for transform, text in expected.items():
        assert repr(transform) == text


def test_linear_transformation():
    matrix, mean = dptrain.rand(12, 12), dptrain.rand(12)
    x = dptrain.rand(5, 3, 2, 2)
    expected = (x.numpy().reshape(5, 12) - mean.numpy()) @ matrix.numpy()
    out = T.LinearTransformation(matrix, mean)(x)
    np.testing.assert_allclose(out.numpy().reshape(5, 12), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="should be square"):
        T.LinearTransformation(matrix[:3], mean)
    with pytest.raises(ValueError, match="incompatible shape"):
        T.LinearTransformation(matrix, mean)(x[:, :2])


def test_names_of_v2():
    image, tensor = pair()
    assert dptrain.equal(v2.ToImage()(image), tensor)
    assert dptrain.equal(v2.ToImage()(np.asarray(image)), tensor)
    assert dptrain.equal(v2.ToDtype(dptrain.float32, scale=True)(tensor), F.to_tensor(image))
    assert v2.ToDtype(dptrain.float32)(tensor).max() > 1
    pipeline = v2.Compose([v2.ToImage(), v2.RandomCrop(4), v2.ToDtype(dptrain.float32, scale=True)])
    assert pipeline(image).shape == (3, 4, 4)


def test_the_classification_preset():
    from dptrain.vision import models

    image, tensor = pair(40, 60)
    preset = models.ResNet18_Weights.DEFAULT.transforms()
    for img in (image, tensor, tensor[None]):
        out = preset(img)
        assert out.shape[-3:] == (3, 224, 224)
        assert out.dtype == dptrain.float32
    flat = preset(dptrain.full((3, 300, 300), 255, dtype=dptrain.uint8))
    np.testing.assert_allclose(
        flat[:, 5, 5].numpy(),
        (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225],
        rtol=1e-5,
    )
