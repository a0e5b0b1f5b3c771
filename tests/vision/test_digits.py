"""The digits that the package ships."""

import subprocess
import sys

import numpy as np
import pytest

from dptrain.data import DataLoader, default_collate
from dptrain.vision.datasets import Digits


@pytest.fixture(scope="module")
def parts():
    return Digits(train=True), Digits(train=False)


def test_the_split_is_stratified_and_complete(parts):
    train, test = (np.bincount(part.targets.numpy(), minlength=10) for part in parts)
    assert sum(train) + sum(test) == 1797
    # Source: class distribution of the test file in the UCI repository's description.
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.all(np.abs(test - (train + test) / 5) < 1)


def test_no_image_is_in_both_parts(parts):
    train, test = ({image.tobytes() for image in part.data.numpy()} for part in parts)
    assert not train & test


def test_values_are_those_of_the_source(parts):
    for part in parts:
        assert part.data.numpy().dtype == np.uint8
        assert part.data.shape == (len(part), 8, 8)
        assert (part.data.numpy().min(), part.data.numpy().max()) == (0, 16)
        assert part.targets.numpy().dtype == np.int64
    # A zero is hollow and a one is not: means over the four middle pixels.
    middle = parts[0].data.numpy()[:, 3:5, 3:5].mean(axis=(1, 2))
    targets = parts[0].targets.numpy()
    assert middle[targets == 0].mean() < 2 < 12 < middle[targets == 1].mean()


def test_tensors_are_scaled_images_with_a_channel(parts):
    x, y = parts[1].tensors()
    assert x.shape == (len(parts[1]), 1, 8, 8)
    assert x.numpy().dtype == np.float32
    assert np.array_equal(x.numpy()[:, 0] * 16, parts[1].data.numpy())
    assert np.array_equal(y.numpy(), parts[1].targets.numpy())


def test_whole_batches_are_those_that_collating_samples_gives(parts):
    fast = DataLoader(parts[1], batch_size=50)
    slow = DataLoader(parts[1], batch_size=50, collate_fn=lambda samples: default_collate(samples))
    for a, b in zip(fast, slow, strict=True):
        assert [t.dtype for t in a] == [t.dtype for t in b]
        assert all(np.array_equal(s.numpy(), t.numpy()) for s, t in zip(a, b, strict=True))


def test_transforms_apply_to_samples_and_batches():
    dataset = Digits(train=False, transform=lambda x: x * 2, target_transform=lambda t: t + 100)
    plain = Digits(train=False)
    x, y = next(iter(DataLoader(dataset, batch_size=4)))
    assert np.array_equal(x.numpy(), plain.tensors()[0].numpy()[:4] * 2)
    assert np.array_equal(y.numpy(), plain.targets.numpy()[:4] + 100)
    assert dataset[3][1] == plain[3][1] + 100


def test_no_files_are_needed_where_the_script_runs(tmp_path):
    script = "from dptrain.vision.datasets import Digits; print(len(Digits()), len(Digits(False)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert sum(map(int, done.stdout.split())) == 1797
    assert not list(tmp_path.iterdir())
