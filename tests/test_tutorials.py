"""The examples that docs/tutorials.md walks through, on tiny data: alone, on ranks, resumed, misused."""

import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dptrain
from dptrain.checkpoint import load_checkpoint
from dptrain.vision import models

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def lines(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def figures(done, name):
    """The numbers that stand behind `name`, line by line."""
    return [float(m[1]) for line in lines(done) if (m := re.search(rf"{name} (\d+\.\d+)", line))]


def flat(state):
    """All values of a checkpoint, by path."""
    if isinstance(state, dict):
        return {f"{k}.{p}": v for k, s in state.items() for p, v in flat(s).items()}
    if isinstance(state, (list, tuple)):
        return {f"{k}.{p}": v for k, s in enumerate(state) for p, v in flat(s).items()}
    return {"": state.tolist() if hasattr(state, "tolist") else state}


def check_resume_is_exact(run, folder):
    """As if killed after the last but one checkpoint: what follows has the same bits."""
    lines(run("--checkpoints", folder))
    before, last = sorted(folder.iterdir())
    expected = flat(load_checkpoint(last))
    shutil.rmtree(last)
    lines(run("--checkpoints", folder, "--resume"))
    assert sorted(folder.iterdir()) == [before, last]
    got = flat(load_checkpoint(last))
    assert got.keys() == expected.keys()
    assert [key for key in got if got[key] != expected[key]] == []


@pytest.mark.parametrize("script", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_every_example_says_what_it_is(job, script):
    done = job([sys.executable, EXAMPLES / script, "--help"])
    assert lines(done)[0].startswith(f"usage: {script}")
    first = re.match(r'"""(.*)\n', (EXAMPLES / script).read_text())[1]
    assert first.split(",")[0] in " ".join(done.stdout.split())


# ---- cifar10.py -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory):
    """Files in CIFAR-10's format whose classes differ in colour."""
    root = tmp_path_factory.mktemp("cifar")
    folder, stream = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    colors = stream.integers(0, 200, (10, 3, 1))
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = (np.arange(40) % 10).tolist()
        images = colors[labels] + stream.integers(0, 56, (40, 3, 1024))
        batch = {b"data": images.reshape(40, 3072).astype(np.uint8), b"labels": labels}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {b"label_names": [b"color%d" % i for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


def test_cifar10_resumes_exactly(dprun, small_cifar, tmp_path):
    def run(*options):
        return dprun(
            2, EXAMPLES / "cifar10.py", "--data", small_cifar, "--model", "resnet20", "--epochs", 2,
            "--batch-size", 20, "--workers", 1, *options,
        )  # fmt: skip

    check_resume_is_exact(run, tmp_path)


@pytest.fixture(scope="module")
def cifar_alone(job, small_cifar, tmp_path_factory):
    """Losses and accuracies of the epochs of one process."""
    script, folder = EXAMPLES / "cifar10.py", tmp_path_factory.mktemp("alone")
    done = job([sys.executable, script, *cifar_options(small_cifar, folder, workers=0)])
    return figures(done, "train loss"), figures(done, "test accuracy")


def cifar_options(data, checkpoints, workers):
    return (
        "--data", data, "--epochs", 4, "--lr", 0.03, "--batch-size", 24, "--workers", workers,
        "--checkpoints", checkpoints,
    )  # fmt: skip


@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), (3, 0)])
def test_cifar10_learns_the_same_on_any_number_of_ranks(
    dprun, small_cifar, cifar_alone, tmp_path, ranks, workers
):
    losses, accuracies = cifar_alone
    assert losses[-1] < losses[0]
    assert accuracies[-1] >= 20  # of ten classes
    done = dprun(ranks, EXAMPLES / "cifar10.py", *cifar_options(small_cifar, tmp_path, workers))
    # 200 images are 8 steps of 24 and a rest, which is left out; rounding differs.
    np.testing.assert_allclose(figures(done, "train loss"), losses, atol=0.002)


def test_cifar10_says_what_is_missing_and_what_does_not_fit(dprun, small_cifar, tmp_path):
    script = EXAMPLES / "cifar10.py"
    done = dprun(2, script, "--data", tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path}/cifar-10-batches-py/data_batch_1 is not there" in done.stderr
    assert "download=True" in done.stderr
    done = dprun(2, script, "--data", small_cifar, "--batch-size", 1)
    assert done.returncode == 1
    assert "batch_size should be a positive integer value, but got batch_size=0" in done.stderr
    done = dprun(1, script, "--data", small_cifar, "--resume", "--checkpoints", tmp_path / "none")
    assert done.returncode == 1
    assert f"no checkpoint at {tmp_path}/none" in done.stderr


# ---- gpt.py -----------------------------------------------------------------------------------------

SMALL_GPT = ("--batch-size", 6, "--context", 32, "--width", 32, "--heads", 2, "--layers", 2)  # fmt: skip


def test_gpt_learns_letters_and_writes(job, tmp_path):
    done = job(
        [sys.executable, EXAMPLES / "gpt.py", *SMALL_GPT, "--steps", 120, "--every", 60, "--lr", 0.01,
         "--write", 50, "--checkpoints", tmp_path],
    )  # fmt: skip
    first, last = figures(done, "test loss")
    # 62 different characters; by their frequencies alone the loss is about 3.1.
    assert last < first < np.log(62)
    assert last < 3
    text = done.stdout.split("\n", 2)[2]
    assert text.startswith("THE SONNETS\nby W")
    assert len(text) == 16 + 50 + 1
    assert set(text) <= set((EXAMPLES / "sonnets.txt").read_text())


def test_gpt_resumes_exactly_inside_an_epoch_with_dropout(dprun, tmp_path):
    def run(*options):
        return dprun(
            2, EXAMPLES / "gpt.py", *SMALL_GPT, "--steps", 6, "--every", 3, "--write", 0, *options
        )

    check_resume_is_exact(run, tmp_path)


def test_gpt_refuses_what_does_not_fit_together(job, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("To be, or not to be")
    for options, complaint in (
        (("--width", 30, "--heads", 4), "--width 30 is no multiple of --heads 4"),
        (("--text", tmp_path / "none.txt"), f"--text: there is no file {tmp_path}/none.txt"),
        (("--text", short), "19 characters are too few for --context 128"),
    ):
        done = job([sys.executable, EXAMPLES / "gpt.py", *options])
        assert done.returncode > 0
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr


# ---- landmarks.py -----------------------------------------------------------------------------------


def test_landmarks_are_found_better_and_better_on_any_number_of_ranks(job, dprun, tmp_path):
    options = ("--data", tmp_path, "--epochs", 4, "--size", 32, "--batch-size", 12)
    alone = job([sys.executable, EXAMPLES / "landmarks.py", *options, "--make", 60])
    distances = figures(alone, "test distance")
    assert len(distances) == 4
    assert distances[-1] < 0.8 * distances[0]
    for ranks, workers in ((2, 1), (3, 0)):
        done = dprun(ranks, EXAMPLES / "landmarks.py", *options, "--workers", workers)
        np.testing.assert_allclose(figures(done, "test distance"), distances, atol=0.011)


def test_landmarks_says_what_is_missing(dprun, tmp_path):
    done = dprun(2, EXAMPLES / "landmarks.py", "--data", tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path}/landmarks.csv is not there; --make N draws a dataset" in done.stderr


# ---- transfer.py ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    """An ImageFolder of three easy classes."""
    root, stream = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 5)):
        for name in ("blue", "red", "striped"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                image = np.zeros((40 + i, 44, 3))
                image[..., {"blue": 2, "red": 0}.get(name, 1)] = 170
                image[:: 1 if name != "striped" else 6] += 40
                image += stream.integers(0, 30, image.shape)
                Image.fromarray(image.astype(np.uint8)).save(root / part / name / f"{i}.png")
    return root


def weights_of(build):
    """A state_dict whose statistics of batch norm fit its random weights, so that features differ."""
    dptrain.manual_seed(0)
    net = build()
    with dptrain.no_grad():
        for _ in range(8):
            net(dptrain.randn(4, 3, 32, 32))
    return net.state_dict()


def transfer(folder, weights, *options):
    return (
        EXAMPLES / "transfer.py", "--data", folder, "--weights", weights, "--size", 32,
        "--epochs", 3, "--batch-size", 6, "--lr", 0.02, *options,
    )  # fmt: skip


def test_transfer_learns_the_last_layer_alone_and_equally_on_two_ranks(
    job, dprun, small_folder, tmp_path
):
    weights, outs = tmp_path / "resnet18.pth", [tmp_path / "1.pth", tmp_path / "2.pth"]
    before = weights_of(models.resnet18)
    dptrain.save(before, weights)
    alone = job(
        [sys.executable, *transfer(small_folder, weights, "--out", outs[0], "--workers", 0)]
    )
    two = dprun(2, *transfer(small_folder, weights, "--out", outs[1]))
    for done in (alone, two):
        assert figures(done, "accuracy")[-1] > 90
    after = [dptrain.load(out) for out in outs]
    for state in after:
        assert state["fc.weight"].shape == (3, 512)
        assert [
            k for k in before if not k.startswith("fc.") and (state[k] != before[k]).any()
        ] == []
    np.testing.assert_allclose(after[1]["fc.weight"], after[0]["fc.weight"], atol=1e-5)


@pytest.mark.oracle
def test_transfer_takes_a_densenet_from_torch_on_several_devices_and_gives_it_back(
    job, small_folder, tmp_path
):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    weights, out = tmp_path / "densenet121.pth", tmp_path / "new.pth"
    state = weights_of(models.densenet121)
    torch.save({name: torch.from_numpy(value.numpy()) for name, value in state.items()}, weights)
    options = transfer(
        small_folder, weights, "--model", "densenet121", "--out", out, "--workers", 0
    )
    done = job([sys.executable, *options], DPTRAIN_HOST_DEVICES="2")
    assert figures(done, "accuracy")[-1] > 90
    saved = torch.load(out)
    assert saved.keys() == state.keys()
    assert saved["classifier.weight"].shape == (3, 1024)


def test_transfer_says_which_file_is_wrong(job, small_folder, tmp_path):
    damaged, other = tmp_path / "damaged.pth", tmp_path / "other.pth"
    damaged.write_text("no weights at all")
    dptrain.save({"weight": dptrain.zeros(1)}, other)
    for folder, file, complaint in (
        (small_folder, tmp_path / "none.pth", "none.pth' is neither a file nor one of the model's"),
        (small_folder, damaged, f"{damaged} is no file of weights"),
        (small_folder, other, f"{other} holds no weights of resnet18"),
        (tmp_path, other, f"{tmp_path}/train is not there; expected a folder with a folder of"),
    ):
        done = job([sys.executable, *transfer(folder, file)])
        assert done.returncode == 1
        assert complaint in done.stderr
