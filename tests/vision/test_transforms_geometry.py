"""Cutting, padding, resizing and warping: against pillow, NumPy, F.interpolate and closed forms."""

import numpy as np
import pytest

import dptrain
import dptrain.nn.functional as nnf
from dptrain.vision import transforms as T
from dptrain.vision.transforms import functional as F
from dptrain.vision.transforms.modes import pil_resampling

Image = pytest.importorskip("PIL.Image", reason="vision extra not installed")
ImageOps = pytest.importorskip("PIL.ImageOps", reason="vision extra not installed")
Mode = T.InterpolationMode


def pixels(height=11, width=14, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pair(*args, **kwargs):
    """The same image as pillow's and as a tensor."""
    image = Image.fromarray(pixels(*args, **kwargs))
    return image, F.pil_to_tensor(image)


def same(image, tensor):
    return np.array_equal(F.pil_to_tensor(image).numpy(), tensor.numpy())


@pytest.mark.parametrize(
    "box",
    [(2, 3, 5, 6), (-2, -3, 6, 9), (8, 10, 7, 7), (-9, 2, 4, 4), (20, 20, 3, 3), (0, 0, 11, 14)],
)
def test_crop_is_pillows(box):
    image, tensor = pair()
    top, left, height, width = box
    cut = F.crop(tensor, *box)
    assert cut.shape == (3, height, width)
    assert same(image.crop((left, top, left + width, top + height)), cut)
    assert same(F.crop(image, *box), cut)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((5, 4), slice(3, 8), slice(5, 9)),
        (4, slice(4, 8), slice(5, 9)),
        ([3], slice(4, 7), slice(6, 9)),
    ],
)
def test_center_crop_inside(size, rows, columns):
    image, tensor = pair()
    # (11 - 4) / 2 = 3.5 is rounded to even, as Python does.
    assert np.array_equal(F.center_crop(tensor, size).numpy(), tensor.numpy()[:, rows, columns])
    assert same(F.center_crop(image, size), F.center_crop(tensor, size))


def test_center_crop_pads_what_is_missing():
    image, tensor = pair()
    out = F.center_crop(tensor, (16, 10))
    expected = np.pad(tensor.numpy()[:, :, 2:12], ((0, 0), (2, 3), (0, 0)))
    assert np.array_equal(out.numpy(), expected)
    assert same(F.center_crop(image, (16, 10)), out)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize("padding", [2, (1, 3), (1, 2, 3, 4)])
def test_pad_is_numpys(mode, padding):
    left, top, right, bottom = {2: (2,) * 4, (1, 3): (1, 3, 1, 3)}.get(padding, padding)
    around = ((0, 0), (top, bottom), (left, right))
    extra = {"constant_values": 7} if mode == "constant" else {}
    image, tensor = pair()
    for source in (tensor, tensor.float(), tensor.float()[None]):
        out = F.pad(source, padding, fill=7, padding_mode=mode)
        widths = ((0, 0),) * (source.ndim - 3) + around
        assert np.array_equal(out.numpy(), np.pad(source.numpy(), widths, mode=mode, **extra))
        assert out.dtype == source.dtype
    assert same(F.pad(image, padding, fill=7, padding_mode=mode), F.pad(tensor, padding, 7, mode))


def test_pad_in_colour_by_cutting_and_backwards():
    image, tensor = pair()
    out = F.pad(tensor, 1, fill=(1, 2, 3))
    assert out[:, 0, 0].tolist() == [1, 2, 3]
    assert np.array_equal(out.numpy()[:, 1:-1, 1:-1], tensor.numpy())
    assert same(F.pad(image, 1, fill=(1, 2, 3)), out)
    assert np.array_equal(F.pad(tensor, -2).numpy(), tensor.numpy()[:, 2:-2, 2:-2])
    assert np.array_equal(
        F.pad(tensor, (-2, 1), padding_mode="edge").numpy(),
        np.pad(tensor.numpy()[:, :, 2:-2], ((0, 0), (1, 1), (0, 0)), mode="edge"),
    )
    x = dptrain.ones(1, 2, 2, requires_grad=True)
    F.pad(x, 1, padding_mode="symmetric").sum().backward()
    assert (x.grad == 4).all()
    palette = image.convert("P")
    assert np.array_equal(
        np.asarray(F.pad(palette, 2).convert("RGB"))[2:-2, 2:-2], np.asarray(palette.convert("RGB"))
    )


@pytest.mark.parametrize("mode", ["L", "P", "1", "I", "F", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("padding_mode", ["constant", "edge", "reflect", "symmetric"])
def test_padding_keeps_pillows_modes(mode, padding_mode):
    source = Image.fromarray(pixels()).convert("L" if mode in ("LA", "I", "F") else "RGB")
    image = source.convert(mode)
    out = F.pad(image, 2, padding_mode=padding_mode)
    assert (out.mode, out.size) == (mode, (18, 15))
    assert np.array_equal(np.asarray(F.pad(out, -2)), np.asarray(image))


def test_flips_and_crops_of_ten():
    image, tensor = pair()
    array = tensor.numpy()
    assert np.array_equal(F.hflip(tensor).numpy(), array[:, :, ::-1])
    assert np.array_equal(F.vflip(tensor).numpy(), array[:, ::-1])
    assert same(F.hflip(image), F.hflip(tensor))
    assert same(F.vflip(image), F.vflip(tensor))
    ten = T.TenCrop((4, 6))(tensor)
    corners = [array[:, :4, :6], array[:, :4, -6:], array[:, -4:, :6], array[:, -4:, -6:]]
    for found, expected in zip(ten, corners, strict=False):
        assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(ten[4].numpy(), array[:, 4:8, 4:10])
    mirrored = T.FiveCrop((4, 6))(F.hflip(tensor))
    for found, expected in zip(ten[5:], mirrored, strict=True):
        assert dptrain.equal(found, expected)
    both = (T.TenCrop(5, vertical_flip=True)(img) for img in (image, tensor))
    assert all(same(a, b) for a, b in zip(*both, strict=True))
    with pytest.raises(ValueError, match="bigger than input size"):
        F.five_crop(tensor, 12)


@pytest.mark.parametrize("mode", [Mode.NEAREST, Mode.NEAREST_EXACT, Mode.BILINEAR, Mode.BICUBIC])
@pytest.mark.parametrize("size", [(5, 7), (20, 31), 6])
def test_resized_tensors_are_interpolated(mode, size):
    _, tensor = pair()
    x = tensor.float() / 255
    new = size if size != 6 else (6, 7)
    smooth = mode in (Mode.BILINEAR, Mode.BICUBIC)
    for antialias in (True, False):
        expected = nnf.interpolate(
            x[None],
            new,
            mode=mode.value,
            antialias=antialias and smooth,
            align_corners=False if smooth else None,
        )[0]
        assert dptrain.equal(F.resize(x, size, mode, antialias=antialias), expected)
        assert dptrain.equal(T.Resize(size, mode, antialias=antialias)(x[None])[0], expected)
        # Bytes are computed in floating point and rounded.
        found = F.resize(tensor, size, mode, antialias=antialias)
        assert found.dtype == dptrain.uint8
        assert np.abs(found.numpy() - (expected * 255).clamp(0, 255).numpy()).max() <= 0.502


@pytest.mark.parametrize(
    "mode", [Mode.BILINEAR, Mode.BICUBIC, Mode.LANCZOS, Mode.BOX, Mode.NEAREST]
)
def test_resized_pil_images_are_pillows(mode):
    image, tensor = pair(40, 52)
    out = F.resize(image, (13, 21), mode)
    assert out.size == (21, 13)
    assert np.array_equal(out, image.resize((21, 13), pil_resampling(mode)))
    if mode in (Mode.BILINEAR, Mode.BICUBIC):  # antialiasing is the same filter
        ours = F.resize(tensor, (13, 21), mode).numpy().astype(int)
        assert np.abs(ours - F.pil_to_tensor(out).numpy()).max() <= 1


def test_sizes_of_resizing():
    _, tensor = pair(10, 20)
    assert F.resize(tensor, 5).shape == (3, 5, 10)
    assert F.resize(tensor, [5]).shape == (3, 5, 10)
    assert F.resize(tensor, 7).shape == (3, 7, 14)
    assert F.resize(tensor, 8, max_size=12).shape == (3, 6, 12)
    assert F.resize(tensor.transpose(1, 2), 8, max_size=12).shape == (3, 12, 6)
    assert F.resize(tensor, 10) is tensor
    with pytest.raises(ValueError, match="strictly greater"):
        F.resize(tensor, 8, max_size=8)
    with pytest.raises(ValueError, match="max_size should only be passed"):
        F.resize(tensor, (8, 8), max_size=9)
    with pytest.raises(ValueError, match="not supported for tensors"):
        F.resize(tensor, 8, Mode.LANCZOS)
    with pytest.raises(TypeError, match="img should be PIL Image or Tensor"):
        F.resize(np.zeros((3, 3)), 2)
    with pytest.raises(ValueError, match="1 or 2 values"):
        T.Resize((1, 2, 3))


@pytest.mark.parametrize("quarter", [1, 2, 3])
@pytest.mark.parametrize("mode", [Mode.NEAREST, Mode.BILINEAR])
def test_quarter_turns_are_exact(quarter, mode):
    image, tensor = pair(9, 14)
    expected = np.rot90(tensor.numpy(), quarter, (1, 2))
    out = F.rotate(tensor, 90 * quarter, mode, expand=True)
    assert np.array_equal(out.numpy(), expected)
    square = F.rotate(tensor[:, :, :9].float(), 90 * quarter, mode)
    np.testing.assert_allclose(
        square.numpy(), np.rot90(tensor.numpy()[:, :, :9], quarter, (1, 2)), atol=1e-3
    )
    assert same(F.rotate(image, 90 * quarter, mode, expand=True), out)
    # The general way gives the same as whole pixels do: the middle as an explicit center.
    general = F.rotate(tensor[:, :, :9].float(), 90 * quarter, mode, center=(4.5, 4.5))
    np.testing.assert_allclose(general.numpy(), square.numpy(), atol=1e-3)


@pytest.mark.parametrize("center", [None, (4, 6)])
@pytest.mark.parametrize("fill", [None, 9, (1, 2, 3)])
def test_rotation_agrees_with_pillow(center, fill):
    image, tensor = pair(21, 21)
    ours = F.rotate(tensor, 25, center=center, fill=fill).numpy()
    colour = (9, 9, 9) if fill == 9 else fill
    theirs = F.pil_to_tensor(image.rotate(25, center=center, fillcolor=colour)).numpy()
    assert np.array_equal(F.pil_to_tensor(F.rotate(image, 25, center=center, fill=fill)), theirs)
    # The nearest pixel may be another where two are equally near.
    assert (ours != theirs).any(0).mean() < 0.02
    expanded = F.rotate(tensor, 25, expand=True)
    assert (
        np.abs(np.array(expanded.shape[1:]) - image.rotate(25, expand=True).size[::-1]).max() <= 1
    )


def smooth_pair():
    y, x = np.mgrid[:24, :24]
    waves = [128 + 100 * np.sin(x / 5 + k) * np.cos(y / 6) for k in range(3)]
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    return image, F.pil_to_tensor(image)


@pytest.mark.parametrize(
    ("angle", "translate", "scale", "shear"),
    [
        (0, (3, -2), 1.0, 0),
        (30, (0, 0), 1.3, (0, 0)),
        (-20, (2, 1), 0.8, (10, 5)),
        (10, (1, 2), 1.1, 8),
    ],
)
def test_affine_agrees_with_pillow(angle, translate, scale, shear):
    image, tensor = smooth_pair()
    ours = F.affine(tensor, angle, translate, scale, shear, Mode.BILINEAR)
    theirs = F.pil_to_tensor(F.affine(image, angle, translate, scale, shear, Mode.BILINEAR))
    difference = np.abs(ours.numpy().astype(int) - theirs.numpy())
    assert np.median(difference) <= 1
    assert (difference > 4).mean() < 0.12  # edges: pillow does not blend with the outside
    back = F.affine(ours.float(), 0, (0, 0), 1.0, (0, 0), Mode.BILINEAR)
    np.testing.assert_allclose(back.numpy(), ours.numpy(), atol=0.01)


def test_translation_moves_whole_pixels():
    image, tensor = pair()
    out = F.affine(tensor, 0, (3, -2), 1.0, 0)
    expected = np.zeros_like(tensor.numpy())
    expected[:, :-2, 3:] = tensor.numpy()[:, 2:, :-3]
    assert np.array_equal(out.numpy(), expected)
    assert same(F.affine(image, 0, (3, -2), 1.0, 0), out)
    grey = dptrain.rand(6, 6)
    assert F.affine(grey, 0, (1, 0), 1.0, 0).shape == (6, 6)


def test_refused_affine_arguments():
    _, tensor = pair()
    with pytest.raises(ValueError, match="scale should be positive"):
        F.affine(tensor, 0, (0, 0), 0, 0)
    with pytest.raises(ValueError, match="translate should be a sequence of length 2"):
        F.affine(tensor, 0, (0, 0, 0), 1.0, 0)
    with pytest.raises(TypeError, match="angle should be int or float"):
        F.rotate(tensor, "5")
    with pytest.raises(ValueError, match="does not match the number of channels"):
        F.rotate(tensor, 5, fill=(1, 2))
    with pytest.raises(ValueError, match="'bicubic' is not supported for tensors"):
        F.rotate(tensor, 5, Mode.BICUBIC)
    with pytest.raises(TypeError, match="interpolation should be"):
        T.RandomRotation(5, interpolation="nearest")


def test_perspective_takes_points_to_points():
    from dptrain.vision.transforms.functional.warp import perspective_coefficients

    start, end = [(0, 0), (23, 0), (23, 23), (0, 23)], [(2, 1), (20, 3), (22, 21), (1, 19)]
    a, b, c, d, e, f, g, h = perspective_coefficients(start, end)
    for (x, y), (u, v) in zip(start, end, strict=True):
        w = g * u + h * v + 1
        assert (a * u + b * v + c) / w == pytest.approx(x, abs=1e-6)
        assert (d * u + e * v + f) / w == pytest.approx(y, abs=1e-6)
    image, tensor = smooth_pair()
    assert np.array_equal(F.perspective(tensor, start, start).numpy(), tensor.numpy())
    ours = F.perspective(tensor, start, end).numpy().astype(int)
    theirs = F.pil_to_tensor(F.perspective(image, start, end)).numpy()
    assert np.median(np.abs(ours - theirs)) <= 2


# ---- what is drawn -------------------------------------------------------------------------------------


def test_draws_follow_the_seed():
    _, tensor = pair(20, 20)
    for transform in (
        T.RandomCrop(8),
        T.RandomResizedCrop(8),
        T.RandomRotation(40),
        T.RandomAffine(30, (0.2, 0.2), (0.5, 2), 10),
        T.RandomPerspective(p=1),
    ):
        results = []
        for seed in (1, 1, 2):
            dptrain.manual_seed(seed)
            results.append(transform(tensor).numpy())
        assert np.array_equal(results[0], results[1])
        assert not np.array_equal(results[0], results[2])


def test_random_crop_takes_every_place():
    rows = dptrain.arange(4).reshape(1, 4, 1).expand(1, 4, 4)
    tops = {int(T.RandomCrop((2, 4))(rows)[0, 0, 0]) for _ in range(60)}
    assert tops == {0, 1, 2}
    with pytest.raises(ValueError, match=r"\(5, 5\) is larger than input image size \(4, 4\)"):
        T.RandomCrop(5)(rows)
    assert T.RandomCrop(6, pad_if_needed=True, padding_mode="edge")(rows).shape == (1, 6, 6)
    assert T.RandomCrop(4, padding=2)(rows).shape == (1, 4, 4)
    image, _ = pair(9, 9)
    assert T.RandomCrop((12, 3), pad_if_needed=True)(image).size == (3, 12)


def test_random_resized_crop_keeps_to_its_ranges():
    image, _ = pair(40, 60)
    for _ in range(50):
        top, left, height, width = T.RandomResizedCrop.get_params(image, (0.2, 0.5), (0.5, 2.0))
        assert 0 <= top <= 40 - height
        assert 0 <= left <= 60 - width
        assert 0.17 < height * width / 2400 < 0.53
        assert 0.45 < width / height < 2.2
    # Nothing as narrow fits with this area: the middle with the nearest shape.
    assert T.RandomResizedCrop.get_params(image, (1, 1), (0.1, 0.1)) == (0, 28, 40, 4)
    assert T.RandomResizedCrop(7)(image).size == (7, 7)


def test_flips_happen_with_their_probability():
    x = dptrain.arange(4).reshape(1, 2, 2)
    for flip, never in ((T.RandomHorizontalFlip, x), (T.RandomVerticalFlip, x)):
        assert flip(0.0)(x) is never
        assert not dptrain.equal(flip(1.0)(x), x)
        share = np.mean([flip(0.25)(x) is not x for _ in range(400)])
        assert 0.15 < share < 0.35


def test_random_affine_keeps_to_its_ranges():
    for _ in range(50):
        angle, shift, scale, shear = T.RandomAffine.get_params(
            (-10, 20), (0.1, 0.5), (0.5, 0.7), (-1, 1, 4, 5), (100, 20)
        )
        assert -10 <= angle <= 20
        assert abs(shift[0]) <= 10
        assert abs(shift[1]) <= 10
        assert 0.5 <= scale <= 0.7
        assert -1 <= shear[0] <= 1
        assert 4 <= shear[1] <= 5
    with pytest.raises(ValueError, match="between 0 and 1"):
        T.RandomAffine(5, translate=(2, 0))
    with pytest.raises(ValueError, match="must be positive"):
        T.RandomRotation(-5)
    with pytest.raises(ValueError, match="length 2 or 4"):
        T.RandomAffine(5, shear=(1, 2, 3))
