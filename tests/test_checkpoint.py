"""Checkpoints: what comes back, and what happens when writing is cut short."""

import json
from itertools import islice

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dptrain
import dptrain.data
from dptrain.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from dptrain.data import DistributedSampler


@pytest.fixture
def state():
    return {
        "model": {"w": dptrain.randn(2, 3), "scalar": dptrain.tensor(1.5, dtype=dptrain.float64)},
        "optimizer": {
            "state": {0: {"step": dptrain.tensor(3.0)}},
            "groups": [{"betas": (0.9, 0.999)}],
        },
        "array": np.arange(3, dtype=ml_dtypes.bfloat16),
        "flags": dptrain.tensor([True, False]),
        "none": None,
        "text": "epoch",
        "empty": dptrain.zeros(0, 2),
    }


def equal(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, (dptrain.Tensor, np.ndarray)):
        return (
            type(a) is type(b)
            and a.dtype == b.dtype
            and tuple(a.shape) == tuple(b.shape)
            and np.array_equal(a, b)
        )
    return type(a) is type(b) and a == b


def test_everything_comes_back_as_it_was(tmp_path, state):
    path = save_checkpoint(tmp_path, state, step=7)
    assert path.name == "step-000000007"
    assert equal(load_checkpoint(path), state)


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)


@given(
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_nested_plain_values_come_back(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("run")
    assert equal(load_checkpoint(save_checkpoint(folder, {"v": value}, 0))["v"], value)


def test_parameters_that_share_a_flat_buffer_are_saved_alone(tmp_path):
    model = dptrain.nn.Linear(100, 100)
    dptrain.optim.SGD(model.parameters(), lr=0.1)
    path = save_checkpoint(tmp_path, {"bias": model.bias.detach()}, 0)
    assert (path / "tensors.safetensors").stat().st_size < 1000


def test_only_the_newest_checkpoints_stay(tmp_path, state):
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, state, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002", "step-000000010"]
    assert latest_checkpoint(tmp_path).name == "step-000000010"


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, state):
    old = save_checkpoint(tmp_path, state, 1)
    with pytest.raises(TypeError, match=r"state\.model\.hook is a function"):
        save_checkpoint(tmp_path, {"model": {"hook": lambda: None}}, 2)
    assert [p.name for p in tmp_path.iterdir()] == [old.name]
    assert equal(load_checkpoint(latest_checkpoint(tmp_path)), state)


@pytest.mark.parametrize("name", ["tensors.safetensors", "manifest.json"])
@pytest.mark.parametrize("keep_bytes", [0, 20, -1])
def test_a_file_cut_short_is_named_and_the_old_one_is_used(tmp_path, state, name, keep_bytes):
    save_checkpoint(tmp_path, state, 1)
    newest = save_checkpoint(tmp_path, state, 2)
    damaged = newest / name
    damaged.write_bytes(damaged.read_bytes()[:keep_bytes])
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(newest)
    with pytest.warns(UserWarning, match="damaged"):
        assert latest_checkpoint(tmp_path).name == "step-000000001"


def test_a_changed_byte_is_noticed(tmp_path, state):
    file = save_checkpoint(tmp_path, state, 1) / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="digest"):
        load_checkpoint(file.parent)


def test_missing_files_and_other_formats_are_named(tmp_path, state):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none")
    assert latest_checkpoint(tmp_path / "none") is None
    path = save_checkpoint(tmp_path, state, 1)
    (path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="format 1"):
        load_checkpoint(path)
    (path / "tensors.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tensors.safetensors is missing"):
        load_checkpoint(path)


def training(seed):
    dptrain.manual_seed(seed)
    model = dptrain.nn.Sequential(dptrain.nn.Linear(3, 2), dptrain.nn.BatchNorm1d(2))
    optimizer = dptrain.optim.Adam(model.parameters(), lr=0.1)
    scheduler = dptrain.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    loader = dptrain.data.DataLoader(list(range(8)), 2, sampler=DistributedSampler(range(8)))
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}


def endless(loader):
    while True:
        yield from loader


def steps(run, batches, count):
    for x in islice(batches, count):
        run["optimizer"].zero_grad()
        run["model"](
            x.float()[:, None] * dptrain.tensor([1.0, 2.0, -1.0])
        ).square().sum().backward()
        run["optimizer"].step()
        run["scheduler"].step()


def test_whole_objects_are_saved_and_go_on_where_they_were(tmp_path):
    run = training(seed=0)
    batches = endless(run["loader"])
    steps(run, batches, 2)
    save_checkpoint(tmp_path, {**run, "epoch": 1}, 1)
    other = training(seed=1)
    assert load_checkpoint(tmp_path, into=other)["epoch"] == 1
    # The rest of the epoch, then a part of the next one.
    steps(run, batches, 3)
    steps(other, endless(other["loader"]), 3)
    for name in ("model", "optimizer", "scheduler"):
        assert equal(run[name].state_dict(), other[name].state_dict())


def test_a_name_that_was_not_saved_is_an_error_before_anything_is_loaded(tmp_path):
    run = training(seed=0)
    save_checkpoint(tmp_path, {"model": run["model"], "epoch": 3}, 1)
    other = training(seed=1)
    before = other["model"][0].weight.tolist()
    with pytest.raises(KeyError, match="holds no optimizer; it holds model, epoch"):
        load_checkpoint(tmp_path, into={"model": other["model"], "optimizer": other["optimizer"]})
    assert other["model"][0].weight.tolist() == before


def test_a_runs_folder_stands_for_its_newest_complete_checkpoint(tmp_path, state):
    with pytest.raises(FileNotFoundError, match="there is no complete checkpoint in"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, {"a": 1}, 1)
    newest = save_checkpoint(tmp_path, {"a": 2}, 2)
    assert load_checkpoint(tmp_path) == {"a": 2}
    (newest / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(tmp_path) == {"a": 1}
