"""CIFAR, SVHN, STL-10, EMNIST, KMNIST, folders and noise: written here in the documented formats."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from dptrain.data import DataLoader, TensorDataset
from dptrain.vision import datasets, transforms
from dptrain.vision.datasets.archive import extract_archive
from dptrain.vision.datasets.matlab import read_mat

Image = pytest.importorskip("PIL.Image", reason="vision extra not installed")
RNG = np.random.default_rng(0)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# ---- CIFAR --------------------------------------------------------------------------------------------


def write_cifar10(root, protocol=2, keys=bytes, count=3):
    """The layout of CIFAR-10 with `count` images in each batch."""

    def key(text):
        return text.encode() if keys is bytes else text

    folder = root / "cifar-10-batches-py"
    images, labels = {}, {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images[name] = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels[name] = RNG.integers(0, 10, count).tolist()
        batch = {key("data"): images[name], key("labels"): labels[name]}
        write(folder / name, pickle.dumps(batch, protocol))
    names = [key(f"class {i}") for i in range(10)]
    write(folder / "batches.meta", pickle.dumps({key("label_names"): names}, protocol))
    return images, labels


@pytest.mark.parametrize(("protocol", "keys"), [(2, bytes), (2, str), (5, str)])
def test_cifar10(tmp_path, protocol, keys):
    images, labels = write_cifar10(tmp_path, protocol, keys)
    train, test = datasets.CIFAR10(tmp_path), datasets.CIFAR10(str(tmp_path), train=False)
    assert (len(train), len(test)) == (15, 3)
    assert train.targets == [t for i in range(1, 6) for t in labels[f"data_batch_{i}"]]
    assert train.classes == [f"class {i}" for i in range(10)]
    assert train.class_to_idx["class 3"] == 3
    image, target = test[1]
    assert (image.mode, image.size, target) == ("RGB", (32, 32), labels["test_batch"][1])
    planes = images["test_batch"][1].reshape(3, 32, 32)
    assert np.array_equal(np.asarray(image), planes.transpose(1, 2, 0))
    x, y = test.tensors()
    np.testing.assert_allclose(x.numpy()[1], planes / 255.0, rtol=1e-6)
    assert y.tolist() == labels["test_batch"]
    loader = DataLoader(datasets.CIFAR10(tmp_path, transform=transforms.ToTensor()), batch_size=15)
    assert next(iter(loader))[0].shape == (15, 3, 32, 32)
    assert len(TensorDataset(x, y)) == 3


def test_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    for name in ("train", "test"):
        batch = {"data": RNG.integers(0, 256, (2, 3072), dtype=np.uint8), "fine_labels": [99, 5]}
        write(folder / name, pickle.dumps(batch))
    write(folder / "meta", pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    assert datasets.CIFAR100(tmp_path).targets == [99, 5]
    assert datasets.CIFAR100(tmp_path, train=False).classes[99] == "99"


class Evil:
    def __reduce__(self):
        return os.system, ("touch /nowhere/should-not-run",)


def test_malformed_batches_are_named_and_run_nothing(tmp_path):
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    good = batch.read_bytes()
    images = np.zeros((2, 3072), np.uint8)
    bad = {
        "which no batch needs": pickle.dumps({"data": Evil()}),
        "test_batch is no batch of CIFAR": good[: len(good) // 2],
        "holds a list": pickle.dumps([1]),
        "under 'data', found none": pickle.dumps({"labels": [1]}),
        "an array of float64": pickle.dumps({"data": images.astype(float), "labels": [1, 2]}),
        "images of 3072 bytes, found 5": pickle.dumps({"data": images[:, :5], "labels": [1, 2]}),
        "expected 2 labels": pickle.dumps({"data": images, "labels": [1]}),
        r"labels 1\.\.10, but names of 10": pickle.dumps({"data": images, "labels": [1, 10]}),
    }
    for message, content in bad.items():
        batch.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            datasets.CIFAR10(tmp_path, train=False)
    batch.unlink()
    with pytest.raises(
        RuntimeError, match=r"Dataset not found or corrupted.*test_batch is not there"
    ):
        datasets.CIFAR10(tmp_path, train=False)


def packed(source, name):
    """A tar.gz of the folder `source` and its MD5."""
    with tarfile.open(name, "w:gz") as tar:
        tar.add(source, source.name)
    return hashlib.md5(name.read_bytes()).hexdigest()


def test_cifar10_is_downloaded_and_unpacked(tmp_path, monkeypatch):
    _, labels = write_cifar10(tmp_path / "source")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    md5 = packed(tmp_path / "source" / "cifar-10-batches-py", mirror / "cifar-10-python.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "mirrors", [f"file://{mirror}/"])
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    root = tmp_path / "root"
    found = datasets.CIFAR10(root, train=False, download=True)
    assert found.targets == labels["test_batch"]
    # What is there is used as it is: no mirror is asked.
    monkeypatch.setattr(datasets.CIFAR10, "mirrors", [])
    assert len(datasets.CIFAR10(root, download=True)) == 15
    # An archive that was brought by hand is unpacked.
    brought = tmp_path / "brought"
    brought.mkdir()
    (mirror / "cifar-10-python.tar.gz").rename(brought / "cifar-10-python.tar.gz")
    assert len(datasets.CIFAR10(brought, download=True)) == 15


def test_archives_stay_in_their_folder(tmp_path):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("../outside")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(ValueError, match=r"bad\.tar does not unpack"):
        extract_archive(path, tmp_path / "in")
    assert not (tmp_path / "outside").exists()
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no\.zip does not unpack"):
        extract_archive(tmp_path / "no.zip", tmp_path)


# ---- SVHN ---------------------------------------------------------------------------------------------


def element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def mat(arrays, compressed):
    """A MATLAB file of version 5 with uint8 arrays."""
    out = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    for name, array in arrays.items():
        body = element(6, struct.pack("<II", 9, 0))  # flags: class uint8
        body += element(5, struct.pack(f"<{array.ndim}i", *array.shape))
        short = name.encode()
        body += struct.pack("<HH", 1, len(short)) + short.ljust(4, b"\0")  # a small element
        body += element(2, array.tobytes(order="F"))
        matrix = element(14, body)
        if compressed:
            packed = zlib.compress(matrix)
            matrix = struct.pack("<II", 15, len(packed)) + packed
        out += matrix
    return out


@pytest.mark.parametrize("compressed", [False, True])
def test_svhn(tmp_path, compressed):
    x = RNG.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    y = np.array([[1], [10], [9], [3], [10]], np.uint8)
    write(tmp_path / "test_32x32.mat", mat({"X": x, "y": y}, compressed))
    svhn = datasets.SVHN(tmp_path, split="test")
    assert svhn.labels.tolist() == [1, 0, 9, 3, 0]
    assert svhn.data.shape == (5, 3, 32, 32)
    image, target = svhn[1]
    assert np.array_equal(np.asarray(image), x[..., 1])
    assert target == 0
    assert "Split: test" in repr(svhn)
    with pytest.raises(RuntimeError, match=r"train_32x32\.mat is not there"):
        datasets.SVHN(tmp_path)
    with pytest.raises(ValueError, match=r"Unknown value 'val' for argument split"):
        datasets.SVHN(tmp_path, split="val")
    write(tmp_path / "train_32x32.mat", mat({"X": x, "y": y[:2]}, compressed))
    with pytest.raises(ValueError, match="5 images, but 2 labels"):
        datasets.SVHN(tmp_path)


def test_mat_files_that_are_none(tmp_path):
    good = mat({"X": np.arange(24, dtype=np.uint8).reshape(2, 3, 4)}, compressed=False)
    path = tmp_path / "a.mat"
    path.write_bytes(good)
    assert np.array_equal(read_mat(path)["X"], np.arange(24).reshape(2, 3, 4))
    for content in (b"short", b"\x89HDF\r\n\x1a\n" + bytes(200)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.mat is no MATLAB file of version 5"):
            read_mat(path)
    path.write_bytes(good[:-8])
    with pytest.raises(ValueError, match=r"a\.mat is damaged: an element of"):
        read_mat(path)
    broken = bytearray(mat({"X": np.zeros((9, 9), np.uint8)}, compressed=True))
    broken[-12] ^= 0xFF
    path.write_bytes(bytes(broken))
    with pytest.raises(ValueError, match=r"a\.mat is damaged"):
        read_mat(path)


# ---- STL-10 -------------------------------------------------------------------------------------------


def test_stl10(tmp_path):
    folder = tmp_path / "stl10_binary"
    images = {}
    for part, count in (("train", 4), ("test", 2), ("unlabeled", 3)):
        images[part] = RNG.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        write(folder / f"{part}_X.bin", images[part].tobytes())
        if part != "unlabeled":
            write(folder / f"{part}_y.bin", bytes(range(1, count + 1)))
    write(folder / "class_names.txt", b"airplane\nbird\n")
    write(folder / "fold_indices.txt", b"\n".join([b"0 2", b"1 3"] * 5))
    test = datasets.STL10(tmp_path, split="test")
    image, target = test[1]
    assert target == 1
    # Stored column by column.
    assert np.array_equal(np.asarray(image), images["test"][1].transpose(2, 1, 0))
    assert test.classes == ["airplane", "bird"]
    assert datasets.STL10(tmp_path, folds=1).labels.tolist() == [1, 3]
    both = datasets.STL10(tmp_path, split="train+unlabeled")
    assert both.labels.tolist() == [0, 1, 2, 3, -1, -1, -1]
    with pytest.raises(ValueError, match=r"range \[0, 10\)"):
        datasets.STL10(tmp_path, folds=10)
    write(folder / "test_X.bin", b"123")
    with pytest.raises(ValueError, match=r"test_X\.bin: 3 bytes are no whole number of images"):
        datasets.STL10(tmp_path, split="test")
    (folder / "train_y.bin").unlink()
    with pytest.raises(RuntimeError, match=r"train_y\.bin is not there"):
        datasets.STL10(tmp_path)


# ---- MNIST's relatives --------------------------------------------------------------------------------


def test_kmnist(tmp_path, write_dataset):
    images, _ = write_dataset(tmp_path / "KMNIST" / "raw")["train"]
    assert np.array_equal(datasets.KMNIST(tmp_path).data.numpy(), images)
    assert len(datasets.KMNIST.classes) == 10


@pytest.mark.parametrize(
    ("split", "classes"), [("byclass", 62), ("bymerge", 47), ("letters", 27), ("digits", 10)]
)
def test_emnist(tmp_path, idx_bytes, split, classes):
    images = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    raw = tmp_path / "EMNIST" / "raw"
    write(raw / f"emnist-{split}-train-images-idx3-ubyte", idx_bytes(images))
    write(raw / f"emnist-{split}-train-labels-idx1-ubyte", idx_bytes(np.arange(3, dtype=np.uint8)))
    found = datasets.EMNIST(tmp_path, split=split)
    assert np.array_equal(found.data.numpy(), images)
    assert len(found.classes) == classes
    assert found.class_to_idx[found.classes[1]] == 1
    with pytest.raises(RuntimeError, match=f"emnist-{split}-test-images"):
        datasets.EMNIST(tmp_path, split, train=False)


def test_emnist_is_downloaded(tmp_path, idx_bytes, monkeypatch):
    with pytest.raises(ValueError, match="Unknown value 'all' for argument split"):
        datasets.EMNIST(tmp_path, "all")
    name = tmp_path / "gzip.zip"
    with zipfile.ZipFile(name, "w") as archive:
        for part, array in (("images-idx3", np.zeros((1, 28, 28))), ("labels-idx1", np.zeros(1))):
            content = idx_bytes(array.astype(np.uint8))
            archive.writestr(f"gzip/emnist-digits-test-{part}-ubyte.gz", content)
    monkeypatch.setattr(datasets.EMNIST, "mirrors", [f"file://{tmp_path}/"])
    md5 = hashlib.md5(name.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.EMNIST, "archive", ("gzip.zip", md5))
    found = datasets.EMNIST(tmp_path / "root", "digits", train=False, download=True)
    assert len(found) == 1


# ---- folders ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name, colour in (
        ("b/1.PNG", 1),
        ("b/deep/0.png", 2),
        ("a/x.png", 3),
        ("a/notes.txt", None),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if colour is None:
            path.write_text("no image")
        else:
            Image.new("L", (4, 3), colour).save(path)
    return tmp_path


def test_image_folder(folder):
    found = datasets.ImageFolder(folder)
    assert found.classes == ["a", "b"]
    assert found.class_to_idx == {"a": 0, "b": 1}
    names = [os.path.relpath(path, folder) for path, _ in found.samples]
    assert names == ["a/x.png", "b/1.PNG", "b/deep/0.png"]
    assert found.targets == [0, 1, 1]
    assert found.imgs == found.samples
    image, target = found[2]
    assert (image.mode, image.size, image.getpixel((0, 0)), target) == ("RGB", (4, 3), (2, 2, 2), 1)
    tensors = datasets.ImageFolder(
        str(folder), transform=transforms.ToTensor(), target_transform=lambda t: t + 10
    )
    assert tensors[0][0].shape == (3, 3, 4)
    assert tensors[0][1] == 10


def test_folders_of_other_files(folder):
    texts = datasets.DatasetFolder(
        folder, loader=lambda path: Path(path).read_text(), extensions=(".txt",), allow_empty=True
    )
    assert [texts[i] for i in range(len(texts))] == [("no image", 0)]
    chosen = datasets.ImageFolder(folder, is_valid_file=lambda path: path.endswith(".png"))
    assert len(chosen) == 2
    with pytest.raises(FileNotFoundError, match=r"for the classes b in .*extensions are: \.txt"):
        datasets.DatasetFolder(folder, loader=open, extensions=(".txt",))
    with pytest.raises(ValueError, match="cannot be None or not None at the same time"):
        datasets.DatasetFolder(folder, loader=open)
    with pytest.raises(FileNotFoundError, match="Couldn't find any class folder"):
        datasets.ImageFolder(folder / "a")
    (folder / "c").mkdir()
    with pytest.raises(FileNotFoundError, match="for the classes c"):
        datasets.ImageFolder(folder)
    assert datasets.ImageFolder(folder, allow_empty=True).classes == ["a", "b", "c"]


# ---- noise, and what all have in common ---------------------------------------------------------------


def test_fake_data_is_the_same_in_every_run():
    data = datasets.FakeData(size=5, image_size=(3, 6, 7), num_classes=4)
    assert len(data) == 5
    image, target = data[2]
    assert image.size == (7, 6)
    again, _ = datasets.FakeData(size=5, image_size=(3, 6, 7))[2]
    assert np.array_equal(np.asarray(image), np.asarray(again))
    assert not np.array_equal(np.asarray(image), np.asarray(data[3][0]))
    assert 0 <= target < 4
    assert datasets.FakeData(2, (1, 3, 3))[0][0].mode == "L"
    with pytest.raises(IndexError):
        data[5]
    assert len(list(data)) == 5


def test_datasets_print_as_torchvisions(folder):
    transform = transforms.Compose([transforms.ToTensor()])
    data = datasets.ImageFolder(
        folder, transform=transform, target_transform=transforms.Lambda(int)
    )
    assert repr(data) == "\n".join(
        [
            "Dataset ImageFolder",
            "    Number of datapoints: 3",
            f"    Root location: {folder}",
            "    StandardTransform",
            "Transform: Compose(",
            "               ToTensor()",
            "           )",
            "Target transform: Lambda()",
        ]
    )
    assert repr(datasets.FakeData(3)) == "Dataset FakeData\n    Number of datapoints: 3"
    with pytest.raises(ValueError, match="Only transforms or transform/target_transform"):
        datasets.VisionDataset(folder, transforms=lambda x, y: (x, y), transform=str)
    both = datasets.VisionDataset(folder, transforms=lambda x, y: (y, x))
    assert both._transformed(1, 2) == (2, 1)
