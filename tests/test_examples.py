"""The examples do what the README says, started in every way that it names."""

import gzip
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from dptrain.launch import mpirun
from launcher_environment import OPEN_MPI

from dptrain.checkpoint import latest_checkpoint, load_checkpoint

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
QUICKSTART = EXAMPLES / "quickstart.py"


def check_quickstart(done):
    assert done.returncode == 0, done.stderr
    *_, header, figures, last = done.stdout.splitlines()
    match = re.fullmatch(r"test accuracy (\d+\.\d\d) %", last)
    assert match, last
    assert float(match[1]) >= 97
    assert header.split("  ")[-1].strip() == "overlapped"
    for column in ("samples/s", "data s", "compute s", "communication s"):
        assert column in header
    assert figures.strip().endswith("%")
    return float(match[1])


@pytest.mark.parametrize("ranks", [2, 4])
def test_quickstart_under_dprun(dprun, ranks):
    done = dprun(ranks, QUICKSTART)
    check_quickstart(done)
    # One progress bar, and the losses of all ranks once.
    assert done.stdout.count("epoch  0 ") == 1
    others = [line for line in done.stderr.splitlines() if "[rank 1]" in line]
    assert not [line for line in others if "compiling CPU kernels" not in line]


def test_quickstart_alone_and_under_mpirun(job):
    check_quickstart(job([sys.executable, QUICKSTART]))
    try:
        found = mpirun.find()
    except mpirun.LaunchError as error:
        pytest.skip(str(error))
    check_quickstart(job([found, "-n", 2, sys.executable, QUICKSTART], **OPEN_MPI))


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def small_fashion_mnist(tmp_path):
    """Files of the real format whose classes differ by where the bright square stands."""
    stream = np.random.default_rng(0)
    for prefix, count in (("train", 600), ("t10k", 200)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = stream.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[row * 8 : row * 8 + 7, column * 7 : column * 7 + 6] += 150
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return tmp_path


def accuracy(done):
    assert done.returncode == 0, done.stderr
    return float(re.fullmatch(r"test accuracy (\d+\.\d\d) %", done.stdout.splitlines()[-1])[1])


def flat(state):
    """All tensors of a checkpoint, by path."""
    if isinstance(state, dict):
        return {f"{k}.{p}": v for k, s in state.items() for p, v in flat(s).items()}
    if isinstance(state, (list, tuple)):
        return {f"{k}.{p}": v for k, s in enumerate(state) for p, v in flat(s).items()}
    return {"": state.numpy() if hasattr(state, "numpy") else state}


@pytest.mark.timeout(240)
def test_fashion_mnist_learns_and_resumes_exactly(dprun, small_fashion_mnist, tmp_path):
    shown = find_spec("tensorboard") is not None

    def run(folder, epochs, *options):
        if shown:
            options = (*options, "--tensorboard", folder / "seen")
        return dprun(
            2, EXAMPLES / "fashion_mnist.py", "--data", small_fashion_mnist, "--model", "mlp", "--lr", "0.002",
            "--epochs", epochs, "--batch-size", "20", "--checkpoints", folder, *options,
        )  # fmt: skip

    assert accuracy(run(tmp_path / "whole", 3)) > 90
    # The schedule is fixed by the first run's --epochs, so stop the same run early by hand.
    run(tmp_path / "parts", 3, "--stop-after", "1")
    assert accuracy(run(tmp_path / "parts", 3, "--resume")) > 90
    whole, parts = (
        flat(load_checkpoint(latest_checkpoint(tmp_path / f))) for f in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        np.testing.assert_array_equal(value, parts[key], err_msg=key)
    if shown:
        curves = [_curves(tmp_path / folder / "seen") for folder in ("whole", "parts")]
        assert curves[0] == curves[1]
        assert [step for step, _ in curves[0]["accuracy/test"]] == [0, 1, 2]


def _curves(folder):
    """All scalars of a run as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder))
    seen.Reload()
    assert seen.Tags()["graph"]
    assert seen.Tags()["images"] == ["test images"]
    return {t: [(s.step, s.value) for s in seen.Scalars(t)] for t in seen.Tags()["scalars"]}


def test_fashion_mnist_names_what_is_missing(dprun, tmp_path):
    done = dprun(2, EXAMPLES / "fashion_mnist.py", "--data", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "train-images-idx3-ubyte" in done.stderr


def test_data_parallel_shows_the_share_of_each_device(job):
    done = job(
        [sys.executable, EXAMPLES / "data_parallel.py", "--samples", "40"], DPTRAIN_HOST_DEVICES="3"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "devices: cpu:0, cpu:1, cpu:2"
    inside = [line for line in lines if line.startswith("  in model")]
    outside = [line for line in lines if line.startswith("outside")]
    assert sorted(inside[:3]) == [
        f"  in model on cpu:{i}: input (10, 5), output (10, 2)" for i in range(3)
    ]
    assert sorted(inside[3:]) == [
        f"  in model on cpu:{i}: input ({n}, 5), output ({n}, 2)" for i, n in enumerate([4, 4, 2])
    ]
    assert [line.partition(", loss")[0] for line in outside] == [
        f"outside: input ({n}, 5), output ({n}, 2)" for n in (30, 10)
    ]
