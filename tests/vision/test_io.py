"""Image files: against pillow and round trips."""

import io

import numpy as np
import pytest

import dptrain
from dptrain.vision import io as vio

Image = pytest.importorskip("PIL.Image", reason="vision extra not installed")
Mode = vio.ImageReadMode


def picture(channels=3):
    y, x = np.mgrid[:16, :20]
    planes = [(x * 9 + y * 3 * k) % 256 for k in range(1, channels + 1)]
    return dptrain.tensor(np.stack(planes).astype(np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_lossless(tmp_path, channels):
    x = picture(channels)
    vio.write_png(x, str(tmp_path / "a.png"), compression_level=9)
    assert dptrain.equal(vio.read_image(tmp_path / "a.png"), x)
    assert dptrain.equal(vio.decode_png(vio.encode_png(x)), x)
    assert dptrain.equal(vio.decode_image(vio.read_file(tmp_path / "a.png")), x)
    assert len(vio.encode_png(x, 9)) < len(vio.encode_png(x, 0))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == {1: "L", 3: "RGB"}[channels]


def test_jpeg_is_pillows(tmp_path):
    x = picture()
    vio.write_jpeg(x, tmp_path / "a.jpg", quality=90)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(vio.read_image(tmp_path / "a.jpg").numpy(), expected)
    assert np.array_equal(vio.decode_jpeg(vio.encode_jpeg(x, 90)).numpy(), expected)
    flat = dptrain.full((3, 16, 16), 77, dtype=dptrain.uint8)
    first, second = vio.encode_jpeg([flat, x])
    assert np.abs(vio.decode_jpeg(first).numpy().astype(int) - 77).max() <= 1
    assert len(second) > len(first)


@pytest.mark.parametrize(
    ("mode", "pil", "channels"),
    [(Mode.GRAY, "L", 1), (Mode.GRAY_ALPHA, "LA", 2), ("RGB", "RGB", 3), ("rgb_alpha", "RGBA", 4)],
)
@pytest.mark.parametrize("source", ["L", "RGB", "RGBA", "P", "1"])
def test_modes(mode, pil, channels, source):
    image = Image.fromarray(picture().numpy().transpose(1, 2, 0)).convert(source)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    raw = dptrain.tensor(np.frombuffer(buffer.getvalue(), np.uint8))
    out = vio.decode_image(raw, mode)
    assert out.shape == (channels, 16, 20)
    expected = np.asarray(image.convert(pil)).reshape(16, 20, channels)
    assert np.array_equal(out.numpy(), expected.transpose(2, 0, 1))
    unchanged = {"L": 1, "RGB": 3, "RGBA": 4, "P": 3, "1": 1}[source]
    assert vio.decode_image(raw).shape[0] == unchanged


def test_exif_orientation(tmp_path):
    image = Image.fromarray(picture().numpy().transpose(1, 2, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    plain = vio.read_image(tmp_path / "a.png")
    turned = vio.read_image(tmp_path / "a.png", apply_exif_orientation=True)
    assert np.array_equal(turned.numpy(), np.rot90(plain.numpy(), -1, (1, 2)))


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"a\.png is no image that can be decoded"):
        vio.read_image(tmp_path / "a.png")
    png = vio.encode_png(picture())
    with pytest.raises(RuntimeError, match="is no JPEG that can be decoded"):
        vio.decode_jpeg(png)
    with pytest.raises(RuntimeError, match="can be decoded"):
        vio.decode_image(png[: len(png) // 2])
    with pytest.raises(FileNotFoundError, match="none"):
        vio.read_image(tmp_path / "none.png")
    Image.fromarray(np.full((2, 2), 3000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(RuntimeError, match="more than eight bits"):
        vio.read_image(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="mode 'CMYK' is none of"):
        vio.decode_image(png, "CMYK")
    with pytest.raises(RuntimeError, match="1-dimensional uint8"):
        vio.decode_image(picture())


def test_what_cannot_be_written():
    with pytest.raises(RuntimeError, match="dtype should be uint8"):
        vio.encode_png(picture().float())
    with pytest.raises(RuntimeError, match="3-dimensional tensor"):
        vio.encode_png(picture()[0])
    with pytest.raises(RuntimeError, match="channels should be 1 or 3, got: 2"):
        vio.encode_jpeg(picture(2))
    with pytest.raises(RuntimeError, match="between 0 and 9"):
        vio.encode_png(picture(), 10)
    with pytest.raises(ValueError, match="between 1 and 100"):
        vio.encode_jpeg(picture(), 0)


def test_without_pillow_the_extra_is_named(monkeypatch):
    import sys

    png = vio.encode_png(picture())
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r'reading image files needs pillow.*"dptrain\[vision\]"'):
        vio.decode_image(png)
