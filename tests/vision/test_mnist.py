"""MNIST and Fashion-MNIST: where files are found, what a sample is, downloads."""

import hashlib
import sys
from types import ModuleType

import numpy as np
import pytest

from dptrain.comm.thread import run_ranks
from dptrain.data import DataLoader, TensorDataset
from dptrain.vision.datasets import MNIST, FashionMNIST


@pytest.fixture
def fake_pillow(monkeypatch):
    """A stand-in for pillow whose images are the arrays they were made from."""
    image = ModuleType("PIL.Image")
    image.fromarray = lambda pixels: ("PIL image", pixels)
    package = ModuleType("PIL")
    package.Image = image
    monkeypatch.setitem(sys.modules, "PIL", package)
    monkeypatch.setitem(sys.modules, "PIL.Image", image)


@pytest.mark.parametrize("cls", [MNIST, FashionMNIST])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("plain_folder", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_files_are_found_in_both_layouts(
    tmp_path, write_dataset, cls, compressed, plain_folder, train
):
    folder = tmp_path if plain_folder else tmp_path / cls.__name__ / "raw"
    images, labels = write_dataset(folder, compressed=compressed)["train" if train else "t10k"]
    dataset = cls(tmp_path, train=train)
    assert np.array_equal(dataset.data.numpy(), images)
    assert dataset.data.numpy().dtype == np.uint8
    assert np.array_equal(dataset.targets.numpy(), labels)
    assert dataset.targets.numpy().dtype == np.int64
    assert len(dataset) == len(images)
    assert ("Train" if train else "Test") in repr(dataset)


def test_torchvisions_layout_comes_first(tmp_path, write_dataset):
    write_dataset(tmp_path, seed=1)
    expected = write_dataset(tmp_path / "MNIST" / "raw", seed=2)["train"][0]
    assert np.array_equal(MNIST(str(tmp_path)).data.numpy(), expected)


def test_tensors_are_scaled_images_with_a_channel(tmp_path, write_dataset):
    images, labels = write_dataset(tmp_path)["train"]
    x, y = MNIST(tmp_path).tensors()
    assert x.shape == (5, 1, 28, 28)
    assert x.numpy().dtype == np.float32
    np.testing.assert_allclose(x.numpy()[:, 0], images.astype(np.float64) / 255, rtol=1e-7)
    batches = list(DataLoader(TensorDataset(x, y), batch_size=3))
    assert [b[1].tolist() for b in batches] == [labels[:3].tolist(), labels[3:].tolist()]


@pytest.mark.usefixtures("fake_pillow")
def test_a_sample_is_a_pil_image_and_an_int_with_transforms_applied(tmp_path, write_dataset):
    images, labels = write_dataset(tmp_path)["train"]
    (kind, pixels), target = MNIST(tmp_path)[2]
    assert kind == "PIL image"
    assert np.array_equal(pixels, images[2])
    assert target == labels[2]
    assert type(target) is int
    dataset = MNIST(tmp_path, transform=lambda image: image[1].max(), target_transform=str)
    assert dataset[4] == (images[4].max(), str(labels[4]))


def test_samples_are_images_of_pillow(tmp_path, write_dataset):
    image_module = pytest.importorskip("PIL.Image", reason="vision extra not installed")
    images, _ = write_dataset(tmp_path)["train"]
    image, _ = MNIST(tmp_path)[1]
    assert isinstance(image, image_module.Image)
    assert (image.mode, image.size) == ("L", (28, 28))
    assert np.array_equal(np.asarray(image), images[1])


def test_a_sample_without_pillow_names_the_extra(tmp_path, write_dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    write_dataset(tmp_path)
    with pytest.raises(ImportError, match=r"dptrain\[vision\].*tensors\(\)"):
        MNIST(tmp_path)[0]


def test_classes_and_targets_belong_together():
    for cls in (MNIST, FashionMNIST):
        assert len(set(cls.classes)) == 10


def test_a_missing_file_is_named_with_its_size_and_the_places_searched(tmp_path, write_dataset):
    write_dataset(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert len(MNIST(tmp_path)) == 5
    with pytest.raises(RuntimeError, match="Dataset not found: t10k-labels-idx1-ubyte") as error:
        FashionMNIST(tmp_path, train=False)
    for part in ("10,008 bytes", str(tmp_path / "FashionMNIST" / "raw"), "download=True"):
        assert part in str(error.value)


def test_a_truncated_file_is_named_with_its_size(tmp_path, write_dataset):
    write_dataset(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    nbytes = 16 + 5 * 28 * 28
    with pytest.raises(
        ValueError, match=f"train-images.*expected {nbytes:,} .*found {nbytes - 1:,}"
    ):
        MNIST(tmp_path)


def test_images_and_labels_that_do_not_match_are_refused(tmp_path, write_dataset, idx_bytes):
    write_dataset(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match=r"5 images.*4 labels"):
        MNIST(tmp_path)


# ---- downloads, from folders in place of servers ----------------------------------------------------


@pytest.fixture
def mirrored(tmp_path, write_dataset, monkeypatch):
    """MNIST with a broken and a good mirror; returns what the good one holds."""
    mirror, broken = tmp_path / "mirror", tmp_path / "broken"
    written = write_dataset(mirror, compressed=True)
    write_dataset(broken, compressed=True, seed=9)
    names = [name for name, _ in MNIST.resources]
    sums = [hashlib.md5((mirror / name).read_bytes()).hexdigest() for name in names]
    monkeypatch.setattr(MNIST, "resources", list(zip(names, sums, strict=True)))
    monkeypatch.setattr(
        MNIST, "mirrors", [f"file://{folder}/" for folder in (tmp_path / "none", broken, mirror)]
    )
    return written


def test_download_takes_the_first_mirror_with_the_right_content(tmp_path, mirrored):
    dataset = MNIST(tmp_path / "data", download=True)
    assert np.array_equal(dataset.data.numpy(), mirrored["train"][0])
    raw = tmp_path / "data" / "MNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(
        name for name, _ in MNIST.resources
    )
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in raw.iterdir())
    assert len(MNIST(tmp_path / "data", train=False)) == 3


def test_files_that_are_there_are_used_as_they_are(tmp_path, mirrored, write_dataset, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", [])
    own = write_dataset(tmp_path / "own", seed=5)["train"][0]
    assert not np.array_equal(own, mirrored["train"][0])
    assert np.array_equal(MNIST(tmp_path / "own", download=True).data.numpy(), own)


def test_only_missing_files_are_downloaded(tmp_path, mirrored, write_dataset):
    own = write_dataset(tmp_path / "own", seed=5)
    (tmp_path / "own" / "train-labels-idx1-ubyte").unlink()
    dataset = MNIST(tmp_path / "own", download=True)
    assert np.array_equal(dataset.data.numpy(), own["train"][0])
    assert np.array_equal(dataset.targets.numpy(), mirrored["train"][1])


@pytest.mark.usefixtures("mirrored")
def test_a_failed_download_names_the_file_to_bring_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", MNIST.mirrors[:2])
    with pytest.raises(
        RuntimeError, match=r"could not download train-images-idx3-ubyte\.gz"
    ) as error:
        MNIST(tmp_path / "data", download=True)
    raw = tmp_path / "data" / "MNIST" / "raw"
    md5 = dict(MNIST.resources)["train-images-idx3-ubyte.gz"]
    for part in (
        "none/train-images",
        f"expected MD5 {md5}",
        str(raw / "train-images-idx3-ubyte.gz"),
    ):
        assert part in str(error.value)
    assert list(raw.iterdir()) == []


def test_one_rank_downloads_and_all_read(tmp_path, mirrored, monkeypatch):
    import dptrain.vision.datasets.mnist as module

    downloaded = []
    download_file = module.download_file

    def counted(urls, target, *args):
        downloaded.append(target.name)
        return download_file(urls, target, *args)

    monkeypatch.setattr(module, "download_file", counted)

    def work(communicator):
        return MNIST(tmp_path / "data", download=True).data.numpy()

    for images in run_ranks(3, work):
        assert np.array_equal(images, mirrored["train"][0])
    assert sorted(downloaded) == sorted(name for name, _ in MNIST.resources)


@pytest.mark.usefixtures("mirrored")
def test_a_failed_download_reaches_every_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", [])

    def work(communicator):
        with pytest.raises(RuntimeError, match="could not download train-images") as error:
            MNIST(tmp_path / "data", download=True)
        return str(error.value)

    texts = run_ranks(2, work)
    assert texts[1].startswith("[rank 1/2] downloading MNIST failed on rank 0")
