"""Fixtures of the vision tests."""

import gzip
import struct

import numpy as np
import pytest


def idx_bytes(array, type_code=0x08):
    """The content of an idx file that holds `array`."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, type_code, array.ndim, *array.shape)
    return header + array.tobytes()


def write_dataset(folder, *, train=5, test=3, compressed=False, seed=0):
    """Write the four files of an MNIST-like dataset.

    Returns:
        Per part ("train", "t10k") the images and the labels that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    written = {}
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            name = f"{part}-{kind}-ubyte" + (".gz" if compressed else "")
            (folder / name).write_bytes(gzip.compress(content) if compressed else content)
        written[part] = images, labels
    return written


@pytest.fixture(name="idx_bytes", scope="session")
def idx_bytes_fixture():
    """Makes the content of an idx file."""
    return idx_bytes


@pytest.fixture(name="write_dataset", scope="session")
def write_dataset_fixture():
    """Writes the four files of a dataset."""
    return write_dataset
