"""Checkpoints of training cross between PyTorch and dptrain, and training goes on as if nothing was."""

import io

import numpy as np
import pytest

import dptrain
from dptrain.comm.default import default_communicator

pytestmark = pytest.mark.oracle


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch")


def moved(value, writer, reader, tmp_path, **options):
    path = tmp_path / "checkpoint.pth"
    writer.save(value, path, **options)
    return reader.load(path, weights_only=True)


def network(m):
    """Layers whose state_dicts have parameters, running statistics and counters, as a ResNet's."""

    class Block(m.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv1 = m.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.bn1 = m.nn.BatchNorm2d(channels)
            self.downsample = m.nn.Sequential(
                m.nn.Conv2d(channels, channels, 1), m.nn.BatchNorm2d(channels)
            )

        def forward(self, x):
            return m.relu(self.bn1(self.conv1(x)) + self.downsample(x))

    return m.nn.Sequential(
        m.nn.Conv2d(3, 4, 3), Block(4), m.nn.AdaptiveAvgPool2d(1), m.nn.Flatten(), m.nn.Linear(4, 5)
    )


def images(m):
    return m.tensor(np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_model_computes_the_same_with_the_others_weights(torch, tmp_path, legacy):
    options = {"_use_new_zipfile_serialization": not legacy}
    for writer, reader in ((torch, dptrain), (dptrain, torch)):
        source, target = network(writer), network(reader)
        source(images(writer))  # moves the running statistics
        found = moved(source.state_dict(), writer, reader, tmp_path, **options)
        assert list(found) == list(target.state_dict())
        assert not target.load_state_dict(found).missing_keys
        source.eval()
        target.eval()
        a, b = (f(images(m)).detach().numpy() for f, m in ((source, writer), (target, reader)))
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


OPTIMIZERS = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "centered": True}),
    ("Adagrad", {"lr": 0.01}),
]


def start(m, name, options):
    p = [
        m.nn.Parameter(m.arange(4.0, dtype=m.float64) / 3),
        m.nn.Parameter(m.ones(2, 2, dtype=m.float64)),
    ]
    optimizer = getattr(m.optim, name)(p, **options)
    return p, optimizer, m.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


def advance(p, optimizer, scheduler, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        ((p[0] ** 3).sum() + (p[1] * p[0].sum()).sum()).backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=[o[0] for o in OPTIMIZERS])
def test_training_goes_on_in_the_other_library(torch, tmp_path, name, options):
    straight = start(torch, name, options)
    advance(*straight, 6)
    for writer, reader in ((torch, dptrain), (dptrain, torch), (dptrain, dptrain)):
        p, optimizer, scheduler = start(writer, name, options)
        advance(p, optimizer, scheduler, 3)
        checkpoint = {
            "epoch": 3,
            "loss": (p[0] ** 2).sum(),  # no leaf: its values are saved, its history is not
            "params": {"p": p[0], "q": p[1].data},
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "best": [0.5, ("a", None)],
        }
        found = moved(checkpoint, writer, reader, tmp_path)
        assert found["epoch"] == 3
        assert found["loss"].item() == checkpoint["loss"].item()
        assert found["best"] == [0.5, ("a", None)]
        p, optimizer, scheduler = start(reader, name, options)
        with reader.no_grad():
            p[0].copy_(found["params"]["p"])
            p[1].copy_(found["params"]["q"])
        optimizer.load_state_dict(found["optimizer"])
        scheduler.load_state_dict(found["scheduler"])
        advance(p, optimizer, scheduler, 3)
        assert scheduler.get_last_lr() == straight[2].get_last_lr()
        for ours, theirs in zip(p, straight[0], strict=True):
            np.testing.assert_allclose(
                ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-12, atol=1e-12
            )


def test_loss_tensors_keep_requires_grad_as_in_pytorch(torch):
    for writer in (torch, dptrain):
        file = io.BytesIO()
        x = writer.ones(2, requires_grad=True)
        writer.save([(x * 2).sum(), x.detach()], file)
        for reader in (torch, dptrain):
            file.seek(0)
            loss, x = reader.load(file, weights_only=True)
            assert loss.requires_grad
            assert loss.is_leaf
            assert not x.requires_grad


def test_weights_of_a_distributed_model(torch, tmp_path):
    """A state_dict whose names start with `module.`, as DistributedDataParallel of PyTorch saves it."""
    source = network(torch)
    named = {f"module.{k}": v for k, v in source.state_dict().items()}
    found = moved(named, torch, dptrain, tmp_path)
    wrapped = dptrain.nn.parallel.DistributedDataParallel(
        network(dptrain), process_group=default_communicator()
    )
    wrapped.load_state_dict(found)
    stripped = dict(found)
    dptrain.nn.modules.utils.consume_prefix_in_state_dict_if_present(stripped, "module.")
    plain = network(dptrain)
    plain.load_state_dict(stripped)
    for name, value in source.state_dict().items():
        for model in (plain, wrapped.module):
            assert np.array_equal(model.state_dict()[name].numpy(), value.numpy())


def test_random_state_crosses(torch, tmp_path):
    """The bytes only: the libraries draw differently."""
    found = moved({"rng": torch.get_rng_state()}, torch, dptrain, tmp_path)
    assert found["rng"].dtype is dptrain.uint8
    assert np.array_equal(found["rng"].numpy(), torch.get_rng_state().numpy())
