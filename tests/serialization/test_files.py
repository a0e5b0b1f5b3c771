"""`save` and `load` without PyTorch: what comes back, what a file carries, what is refused."""

import io
import os
import pickle
import threading
import types
import warnings

import numpy as np
import pytest

import dptrain
from dptrain.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
    load_file,
    safe_globals,
    save_file,
)


def round_trip(value, save_options=None, **options):
    file = io.BytesIO()
    dptrain.save(value, file, **(save_options or {}))
    file.seek(0)
    return dptrain.load(file, **options)


def size_of(value, **options):
    file = io.BytesIO()
    dptrain.save(value, file, **options)
    return len(file.getvalue())


def trained(layers=4, width=60):
    model = dptrain.nn.Sequential(*(dptrain.nn.Linear(width, width) for _ in range(layers)))
    optimizer = dptrain.optim.Adam(model.parameters())
    model(dptrain.ones(2, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_layer_of_flat_storage_does_not_carry_the_model():
    model, optimizer = trained()
    one = 60 * 61 * 4
    assert size_of(model[1].state_dict()) < one + 3000
    assert size_of(list(model[1].parameters())) < one + 3000
    assert size_of(model[1].weight.grad) < one + 3000
    assert size_of(model[1].weight.detach().t()) < one + 3000
    state = optimizer.state_dict()["state"][0]
    assert size_of(state) < 2 * one + 3000
    assert size_of(model.state_dict()) < 4 * one + 8000


def test_parts_of_freed_memory_are_forgotten():
    from dptrain.core.parts import _DIVIDED

    model, optimizer = trained()
    state = model.state_dict()
    assert len(_DIVIDED) >= 4
    before = len(_DIVIDED)
    del model, optimizer
    import gc

    gc.collect()
    assert len(_DIVIDED) < before
    assert size_of({"0.bias": state["0.bias"]}) < 2000  # the memory lives on in the state_dict


def test_views_of_one_parameter_share_after_loading():
    model, _ = trained(1)
    weight, row = round_trip([model[0].weight, model[0].weight.detach()[1]])
    with dptrain.no_grad():
        weight[1, 0] = 77.0
    assert row[0].item() == 77


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10)[::-1],
        np.arange(12, dtype=np.float32).reshape(3, 4)[::-1, ::2],
        np.frombuffer(b"x" + np.arange(4, dtype=np.int32).tobytes(), np.uint8)[1:].view(np.int32),
        np.frombuffer(np.arange(5, dtype=np.int16).tobytes(), np.uint8)[:8].view(np.int32),
        np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
        np.broadcast_to(np.float32(2), (3, 4)),
    ],
    ids=["backwards", "backwards2d", "odd", "rest", "fortran", "broadcast"],
)
def test_arrays_in_unusual_memory(array):
    array = array.copy() if not array.flags.writeable and array.ndim > 1 else array
    found = round_trip(dptrain.core.tensor.wrap(array))
    assert np.array_equal(found.numpy(), array)
    assert found.numpy().dtype == array.dtype


def test_a_whole_model_comes_back_with_what_it_computes():
    model, _ = trained(2)
    model.eval()
    found = round_trip(model, weights_only=False)
    x = dptrain.randn(3, 60)
    assert np.array_equal(found(x).numpy(force=True), model(x).numpy(force=True))
    assert repr(found) == repr(model)
    assert not found.training
    assert all(type(p) is dptrain.nn.Parameter and p.requires_grad for p in found.parameters())
    found(x).sum().backward()
    dptrain.optim.SGD(found.parameters(), lr=0.1).step()


def test_a_whole_model_is_refused_by_default():
    with pytest.raises(
        pickle.UnpicklingError, match=r"dptrain\.nn\..*Sequential.*add_safe_globals"
    ):
        round_trip(trained(1)[0])


def test_tied_parameters_stay_tied():
    model = dptrain.nn.Sequential(dptrain.nn.Linear(3, 3), dptrain.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    found = round_trip(model, weights_only=False)
    assert found[0].weight is found[1].weight
    state = round_trip(model.state_dict())
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()


def test_state_dicts_keep_their_metadata():
    found = round_trip(dptrain.nn.BatchNorm1d(3).state_dict())
    assert found._metadata[""] == {"version": 2}


class Point:
    def __init__(self, x):
        self.x = x


class Slotted:
    __slots__ = ("x",)


@pytest.fixture
def no_additions():
    yield
    clear_safe_globals()


@pytest.mark.usefixtures("no_additions")
def test_allowed_classes_are_built():
    slotted = Slotted()
    slotted.x = 4
    with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL .*Point was not an allowed global"):
        round_trip(Point(3))
    with safe_globals([Point, Slotted]):
        assert round_trip(Point([1])).x == [1]
        assert round_trip(slotted).x == 4
        assert round_trip(Point(dptrain.ones(2)), {"pickle_protocol": 4}).x.sum() == 2
        assert get_safe_globals() == [Point, Slotted]
    assert get_safe_globals() == []
    add_safe_globals([(Point, f"{Point.__module__}.Point")])
    assert round_trip(Point(3)).x == 3
    clear_safe_globals()
    with pytest.raises(pickle.UnpicklingError):
        round_trip(Point(3))
    with pytest.raises(ValueError, match="length 2"):
        add_safe_globals([(Point,)])
    with pytest.raises(TypeError, match="to be str"):
        add_safe_globals([(Point, Point)])


def test_names_that_would_be_refused_are_listed():
    for protocol in (2, 4):
        file = io.BytesIO()
        value = [Point(1), np.float32(1), dptrain.ones(2), Point(2), Slotted]
        dptrain.save(value, file, pickle_protocol=protocol)
        file.seek(0)
        module = Point.__module__
        assert set(get_unsafe_globals_in_checkpoint(file)) >= {
            f"{module}.Point",
            f"{module}.Slotted",
            "numpy.dtype",
        }
    with pytest.raises(ValueError, match="zip format"):
        get_unsafe_globals_in_checkpoint(io.BytesIO(b"nothing"))


def test_mapped_files_are_read_and_never_written(tmp_path):
    path = tmp_path / "m.pt"
    dptrain.save({"w": dptrain.arange(1000), "e": dptrain.zeros(0, 2)}, path)
    before = path.read_bytes()
    found = dptrain.load(path, mmap=True)
    found["w"] += 1
    assert found["w"].tolist() == list(range(1, 1001))
    assert not found["w"].is_shared()
    assert found["e"].shape == (0, 2)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="file path"), path.open("rb") as file:
        dptrain.load(file, mmap=True)
    dptrain.save(dptrain.ones(1), path, _use_new_zipfile_serialization=False)
    with pytest.raises(RuntimeError, match="mmap can only be used"):
        dptrain.load(path, mmap=True)


def test_what_cannot_be_pickled_leaves_the_older_file_alone(tmp_path):
    path = tmp_path / "m.pt"
    dptrain.save([1], path)
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            dptrain.save([lambda: 1, threading.Lock()], path, **options)
        assert dptrain.load(path) == [1]


def test_virtual_devices_come_back_and_are_mapped(host_devices):
    host_devices(3)
    x = dptrain.arange(6.0, device="cpu:1")
    found = round_trip([x, x[2:], dptrain.ones(1, device="cpu:0")])
    assert [str(t.device) for t in found] == ["cpu:1", "cpu:1", "cpu:0"]
    found[0][2] = 9.0
    assert found[1][0].item() == 9
    assert round_trip(x, map_location="cpu").device == dptrain.device("cpu:0")
    assert round_trip(x, map_location={"cpu:1": "cpu:2"}).device == dptrain.device("cpu:2")
    with pytest.raises(RuntimeError, match=r"cpu:7.*was asked for"):
        round_trip(x, map_location="cpu:7")


def test_arguments_are_checked(tmp_path):
    with pytest.raises(AttributeError, match="'write' attribute"):
        dptrain.save(1, object())
    with pytest.raises(AttributeError, match="no attribute 'read'"):
        dptrain.load(object())
    with pytest.raises(FileNotFoundError):
        dptrain.load(tmp_path / "none.pt")
    with pytest.raises(RuntimeError, match=r"Parent directory .*none does not exist"):
        dptrain.save(1, tmp_path / "none" / "x.pt")
    with pytest.raises(IsADirectoryError):
        dptrain.load(tmp_path)
    with pytest.raises(RuntimeError, match="explicit pickle_module"):
        round_trip(1, pickle_module=pickle, weights_only=True)
    with pytest.warns(UserWarning, match="weights_only=False"):
        round_trip(1, encoding="latin1")
    with pytest.raises(TypeError, match="map_location"):
        round_trip(dptrain.ones(1), map_location=3)
    with pytest.raises(TypeError, match="has no Pickler"):
        dptrain.save(1, io.BytesIO(), pickle_module=os)
    read, write = os.pipe()
    os.write(write, b"x")
    os.close(write)
    with open(read, "rb") as pipe, pytest.raises(OSError, match="seekable"):
        dptrain.load(pipe)


def test_a_pickle_module_of_ones_own_means_trust():
    assert round_trip(Point(3), pickle_module=pickle).x == 3


def test_a_pickler_of_ones_own_writes_what_is_not_ours():
    class Pickler(pickle._Pickler):
        dispatch_table = types.MappingProxyType({Slotted: lambda value: (Point, (value.x,))})

    module = types.SimpleNamespace(Pickler=Pickler, Unpickler=pickle.Unpickler)
    slotted = Slotted()
    slotted.x = dptrain.ones(2)
    found = round_trip([slotted, dptrain.float32], {"pickle_module": module}, weights_only=False)
    assert type(found[0]) is Point
    assert found[0].x.tolist() == [1, 1]
    assert found[1] is dptrain.float32


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(EOFError):
        dptrain.load(io.BytesIO())
    for content in (b"hello world, this is text", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(300)):
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            dptrain.load(io.BytesIO(content))
    with pytest.raises(RuntimeError, match="magic number"):
        dptrain.load(io.BytesIO(pickle.dumps([1, 2], 2)))
    with pytest.raises(RuntimeError, match=r"\.tar format"):
        dptrain.load(io.BytesIO(bytes(257) + b"ustar" + bytes(1000)))


def test_safetensors_both_ways(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = {
        d.name: dptrain.arange(6).reshape(2, 3).to(d) for d in dptrain.core.dtypes.ALL_DTYPES
    }
    tensors |= {
        "t": dptrain.arange(6).reshape(2, 3).t(),
        "e": dptrain.zeros(0, 2),
        "s": dptrain.tensor(2.0),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    for found in (load_file(path), dptrain.load(path), dptrain.load(path, "cpu")):
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert found[name].dtype is tensor.dtype
            assert found[name].shape == tensor.shape
            assert np.array_equal(found[name].numpy(), tensor.numpy())
    x = dptrain.arange(4)
    with pytest.raises(RuntimeError, match="share memory"):
        save_file({"a": x, "b": x[1:]}, path)
    with pytest.raises(ValueError, match="dict of tensors"):
        save_file({"a": 1}, path)
    with pytest.raises(RuntimeError, match="map_location"):
        dptrain.load(path, {"cpu": "cpu"})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RuntimeError, match="safetensors"):
        load_file(path)
    model, _ = trained(2)
    save_file(model.state_dict(), path)
    assert model.load_state_dict(load_file(path))


@pytest.mark.oracle
def test_safetensors_cross_to_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    theirs = pytest.importorskip("safetensors.torch", reason="compares with PyTorch")
    path = tmp_path / "m.safetensors"
    for d in dptrain.core.dtypes.ALL_DTYPES:
        save_file({"x": dptrain.arange(5).to(d)}, path)
        found = theirs.load_file(path)["x"]
        assert str(found.dtype) == f"torch.{d.name}"
        assert found.double().tolist() == dptrain.load(path)["x"].double().tolist()
        theirs.save_file({"y": torch.arange(5).to(found.dtype)}, path)
        assert load_file(path)["y"].dtype is d
        assert (
            load_file(path)["y"].double().tolist()
            == torch.arange(5).to(found.dtype).double().tolist()
        )


def test_saving_does_not_change_what_is_saved():
    model, optimizer = trained(2)
    versions = [p._version_counter()[0] for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size_of([model, optimizer.state_dict()])
    assert [p._version_counter()[0] for p in model.parameters()] == versions


def test_texts_that_look_like_names_stay_as_they_are():
    value = ["cdptrain.serialization.names\ntorch:Size\n", dptrain.Size([1]), dptrain.float32]
    value.append("cdptrain.core.dtypes\nfloat32\n")
    found = round_trip(value)
    assert found == value
    assert found[2] is dptrain.float32


def test_functions_of_a_notebook_are_saved_by_cloudpickle():
    cloudpickle = pytest.importorskip("cloudpickle")
    found = round_trip(
        [lambda x: x + 1, dptrain.bool, dptrain.arange(3)],
        {"pickle_module": cloudpickle},
        weights_only=False,
    )
    assert found[0](found[2]).tolist() == [1, 2, 3]
    assert found[1] is dptrain.bool
    with pytest.raises(TypeError, match="not written in Python"):
        round_trip(1, {"pickle_module": cloudpickle, "pickle_protocol": 4})
