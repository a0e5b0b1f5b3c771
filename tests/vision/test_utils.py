"""Grids, boxes and masks: pixel for pixel against NumPy compositions."""

import numpy as np
import pytest

import dptrain
from dptrain.vision import io as vio
from dptrain.vision import utils

Image = pytest.importorskip("PIL.Image", reason="vision extra not installed")


def composed(images, nrow, padding, value):
    """The grid by its definition."""
    count, channels, height, width = images.shape
    columns = min(nrow, count)
    rows = -(-count // columns)
    shape = (channels, rows * (height + padding) + padding, columns * (width + padding) + padding)
    out = np.full(shape, value, images.dtype)
    for i, image in enumerate(images):
        top = padding + (i // columns) * (height + padding)
        left = padding + (i % columns) * (width + padding)
        out[:, top : top + height, left : left + width] = image
    return out


@pytest.mark.parametrize(
    ("nrow", "padding", "value"), [(8, 2, 0), (3, 1, 0.5), (2, 0, 0), (1, 4, 1)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_grid(nrow, padding, value, channels):
    x = dptrain.rand(5, channels, 4, 6)
    wide = np.repeat(x.numpy(), 3, 1) if channels == 1 else x.numpy()
    expected = composed(wide, nrow, padding, value)
    out = utils.make_grid(x, nrow, padding, pad_value=value)
    assert np.array_equal(out.numpy(), expected)
    assert np.array_equal(
        utils.make_grid(list(x), nrow, padding, pad_value=value).numpy(), expected
    )


def test_grid_of_one_and_of_bytes():
    x = dptrain.rand(4, 6)
    for image in (x, x[None], x[None, None]):
        assert np.array_equal(utils.make_grid(image).numpy(), np.stack([x.numpy()] * 3))
    raw = dptrain.arange(24, dtype=dptrain.uint8).reshape(2, 3, 2, 2)
    assert utils.make_grid(raw).dtype == dptrain.uint8
    with pytest.raises(TypeError, match="tensor or list of tensors expected"):
        utils.make_grid("images")


def test_normalised_grids():
    x = dptrain.randn(3, 3, 4, 4) * dptrain.tensor([1.0, 5.0, 9.0]).reshape(3, 1, 1, 1)
    before = x.clone()
    low, high = x.min().item(), x.max().item()
    unit = (x.numpy() - low) / (high - low)
    out = utils.make_grid(x, normalize=True, padding=0).numpy()
    np.testing.assert_allclose(out, composed(unit, 8, 0, 0), atol=1e-6)
    each = np.stack([(i - i.min()) / (i.max() - i.min()) for i in x.numpy()])
    out = utils.make_grid(x, normalize=True, scale_each=True, padding=0).numpy()
    np.testing.assert_allclose(out, composed(each, 8, 0, 0), atol=1e-6)
    cut = (x.numpy().clip(-1, 1) + 1) / 2
    out = utils.make_grid(x, normalize=True, value_range=(-1, 1), padding=0).numpy()
    np.testing.assert_allclose(out, composed(cut, 8, 0, 0), atol=1e-6)
    assert dptrain.equal(x, before)
    with pytest.raises(TypeError, match="has to be a tuple"):
        utils.make_grid(x, normalize=True, value_range=[0, 1])


def test_saved_grids_are_rounded(tmp_path):
    x = dptrain.rand(3, 1, 4, 5)
    utils.save_image(x, tmp_path / "a.png", nrow=2, pad_value=0.25)
    grid = composed(np.repeat(x.numpy(), 3, 1), 2, 2, 0.25)
    found = vio.read_image(tmp_path / "a.png").numpy()
    assert np.array_equal(found, np.floor(grid * np.float32(255) + np.float32(0.5)).clip(0, 255))
    with open(tmp_path / "b", "wb") as file:
        utils.save_image(x[0], file, format="PNG")
    assert vio.read_image(tmp_path / "b").shape == (3, 4, 5)


def outlined(image, box, color, width):
    """A box drawn by slices; both ends belong to it."""
    out = image.copy()
    left, top, right, bottom = box
    inside = out[:, top + width : bottom + 1 - width, left + width : right + 1 - width].copy()
    out[:, top : bottom + 1, left : right + 1] = np.reshape(color, (3, 1, 1))
    out[:, top + width : bottom + 1 - width, left + width : right + 1 - width] = inside
    return out


@pytest.mark.parametrize("width", [1, 2])
def test_boxes(width):
    image = dptrain.randint(0, 256, (3, 20, 24), dtype=dptrain.uint8)
    boxes = dptrain.tensor([[2, 3, 10, 12], [6.0, 1.0, 20.0, 18.0]])
    out = utils.draw_bounding_boxes(image, boxes, colors=["red", (1, 2, 3)], width=width)
    expected = outlined(image.numpy(), (2, 3, 10, 12), (255, 0, 0), width)
    expected = outlined(expected, (6, 1, 20, 18), (1, 2, 3), width)
    assert np.array_equal(out.numpy(), expected)
    floating = utils.draw_bounding_boxes(image / 255, boxes, colors="#010203", width=width)
    assert floating.dtype == dptrain.float32
    grey = utils.draw_bounding_boxes(image[:1], boxes, colors="blue")
    assert grey.shape == (3, 20, 24)
    filled = utils.draw_bounding_boxes(image, boxes[:1], colors="red", fill=True).numpy()
    middle = np.s_[:, 4:12, 3:10]
    mixed = image.numpy()[middle] * (155 / 255) + np.reshape([255, 0, 0], (3, 1, 1)) * (100 / 255)
    assert np.abs(filled[middle] - mixed).max() <= 1
    labelled = utils.draw_bounding_boxes(image, boxes[1:], labels=["a"], colors="red")
    assert (
        labelled.numpy() != utils.draw_bounding_boxes(image, boxes[1:], colors="red").numpy()
    ).any()


def test_refused_boxes():
    image = dptrain.zeros(3, 8, 8, dtype=dptrain.uint8)
    box = dptrain.tensor([[1, 1, 3, 3]])
    with pytest.warns(UserWarning, match="doesn't contain any box"):
        assert utils.draw_bounding_boxes(image, box[:0]) is image
    for message, kind, arguments in (
        ("Tensor expected", TypeError, (image.numpy(), box)),
        ("uint8 or float", ValueError, (image.long(), box)),
        ("not batches", ValueError, (image[None], box)),
        ("grayscale and RGB", ValueError, (image[:2], box)),
        ("xmin, ymin, xmax, ymax", ValueError, (image, box.flip(1) * dptrain.tensor([2, 1, 1, 1]))),
        ("labels \\(2\\) mismatch", ValueError, (image, box, ["a", "b"])),
        ("0 < 1", ValueError, (image, box, None, [])),
    ):
        with pytest.raises(kind, match=message):
            utils.draw_bounding_boxes(*arguments)


def test_masks():
    image = dptrain.randint(0, 256, (3, 6, 7), dtype=dptrain.uint8)
    masks = dptrain.zeros(2, 6, 7, dtype=dptrain.bool)
    masks[0, 1:4, 1:4] = True
    masks[1, 3:5, 3:6] = True
    out = utils.draw_segmentation_masks(image, masks, alpha=0.75, colors=["red", (0, 255, 9)])
    painted = image.numpy().copy()
    painted[:, 1:4, 1:4] = np.reshape([255, 0, 0], (3, 1, 1))
    painted[:, 3:5, 3:6] = np.reshape([0, 255, 9], (3, 1, 1))
    assert np.array_equal(out.numpy(), (image.numpy() * 0.25 + painted * 0.75).astype(np.uint8))
    assert utils.draw_segmentation_masks(image, masks[0]).shape == image.shape
    with pytest.warns(UserWarning, match="doesn't contain any mask"):
        utils.draw_segmentation_masks(image, masks & ~masks)
    with pytest.raises(ValueError, match="dtype bool"):
        utils.draw_segmentation_masks(image, masks.float())
    with pytest.raises(ValueError, match="same height and width"):
        utils.draw_segmentation_masks(image, masks[:, 1:])
