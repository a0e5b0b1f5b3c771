"""Checkpoints: what comes back, and what happens when writing is cut short."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dptrain
from dptrain.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint


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
