"""DataLoader(pin_memory=True) where a GPU is, over the stand-in for CuPy; and where none is."""

import gc
import os
import signal
import threading
import traceback
import warnings
from collections import OrderedDict, UserDict, namedtuple

import fake_cupy
import numpy as np
import pytest
from worker_datasets import Point, Refused, Slow, first

import dptrain
from dptrain.data import DataLoader, TensorDataset
from dptrain.data.pinning import pin


@pytest.fixture
def library(monkeypatch):
    with fake_cupy.installed(monkeypatch) as found:
        yield found


def pin_threads():
    return [t for t in threading.enumerate() if t.name == "dptrain-pin"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert pin_threads() == []


def numbered(size=10):
    return TensorDataset(dptrain.arange(size), dptrain.arange(float(size)).reshape(size, 1))


# ---- what is pinned ---------------------------------------------------------------------------------


class Own:
    """What pins itself."""

    def pin_memory(self):
        return "pinned by itself"


Pair = namedtuple("Pair", "a b")


class Frozen(tuple):
    """A tuple of a type of its own."""


@pytest.mark.oracle
def test_structures_are_those_that_pytorch_gives(library, monkeypatch):
    torch = pytest.importorskip("torch", reason="oracle extra not installed")
    theirs = pytest.importorskip(
        "torch.utils.data._utils.pin_memory", reason="oracle extra not installed"
    )
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())

    def batch(m):
        t = m.arange(2)
        return {
            "list": [t, 1, "text", b"bytes", None],
            "tuple": (t, (t, 2.5)),
            "named": Pair(t, [t]),
            "own tuple": Frozen((t, 1)),
            "ordered": OrderedDict(b=t, a=1),
            "user": UserDict(x=t),
            "range": range(3),
            "itself": Own(),
            "array": np.ones(2),
            "set": {1},
        }

    def shape(value, kind):
        """Types and values, with tensors told by their numbers."""
        if isinstance(value, kind):
            return "tensor", value.tolist()
        if isinstance(value, (dict, UserDict)):
            return type(value), [(k, shape(v, kind)) for k, v in value.items()]
        if isinstance(value, (list, tuple, range)):
            return type(value), [shape(v, kind) for v in value]
        return str(value)

    ours = pin(batch(dptrain))
    assert shape(ours, dptrain.Tensor) == shape(theirs.pin_memory(batch(torch)), torch.Tensor)
    assert ours["list"][0].is_pinned()
    assert ours["tuple"][1][0].is_pinned()
    assert ours["named"].b[0].is_pinned()
    assert ours["user"]["x"].is_pinned()


# ---- passes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("in_order", [True, False])
def test_batches_arrive_pinned(library, workers, in_order):
    kwargs = {"batch_size": 3, "num_workers": workers, "in_order": in_order}
    loader = DataLoader(numbered(), pin_memory=True, **kwargs)
    for _ in range(2):
        batches = list(loader)
        assert all(field.is_pinned() for batch in batches for field in batch)
        numbers = [batch[0].tolist() for batch in batches]
        assert (numbers if in_order else sorted(numbers)) == [
            [0, 1, 2],
            [3, 4, 5],
            [6, 7, 8],
            [9],
        ]
    assert not any(
        field.is_pinned() for batch in DataLoader(numbered(), **kwargs) for field in batch
    )


def test_the_position_is_that_of_the_batches_handed_out(library):
    loader = DataLoader(numbered(12), batch_size=2, num_workers=2, pin_memory=True)
    batches = iter(loader)
    seen = [next(batches)[0].tolist() for _ in range(3)]
    state = loader.state_dict()
    assert state["samples_consumed"] == 6
    fresh = DataLoader(numbered(12), batch_size=2, num_workers=2, pin_memory=True)
    fresh.load_state_dict(state)
    seen += [batch[0].tolist() for batch in fresh]
    assert seen == [[i, i + 1] for i in range(0, 12, 2)]


def test_one_thread_pins_beside_the_consumer_and_ends_with_the_pass(library, monkeypatch):
    pinned_by = []

    def noting(data):
        pinned_by.append((threading.current_thread().name, fake_cupy.current()))
        return pin(data)

    monkeypatch.setattr("dptrain.data.inbox.pin", noting)
    loader = DataLoader(numbered(8), batch_size=2, num_workers=1, pin_memory=True)
    with library.on(1):  # the GPU of the one who begins the pass
        batches = iter(loader)
        next(batches)
        assert len(pin_threads()) == 1
        assert len(list(batches)) == 3
    assert pinned_by == [("dptrain-pin", 1)] * 4
    assert pin_threads() == []


@pytest.mark.parametrize("persistent", [True, False])
def test_a_pass_that_is_left_leaves_no_thread(library, persistent):
    loader = DataLoader(
        Slow(), num_workers=1, pin_memory=True, persistent_workers=persistent, prefetch_factor=1
    )
    for _ in range(2):  # the workers that stay answer to one listener at a time
        for batch in loader:
            assert batch.tolist() == [[0.0, 0.0]]
            break
        del batch
        gc.collect()
        assert pin_threads() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_pinned_is_told_in_its_turn_and_the_pass_goes_on(library, workers):
    loader = DataLoader(
        Refused(), collate_fn=first, num_workers=workers, pin_memory=True, batch_size=1
    )
    batches = iter(loader)
    assert [next(batches).item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="not this one") as error:
        next(batches)
    told = "".join(traceback.format_exception(error.value))
    assert 'raise LookupError("not this one")' in told
    if workers:
        assert "Caught LookupError in pin memory thread for device 0." in told
    assert [batch.item() for batch in batches] == [4, 5]


def test_a_worker_that_dies_is_told_through_the_thread(library):
    loader = DataLoader(Slow(), num_workers=1, pin_memory=True)
    batches = iter(loader)
    next(batches)
    os.kill(batches._crew.pids[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker 0 .*is killed by signal: SIGKILL"):
        list(batches)
    with pytest.raises(RuntimeError, match="have ended"):
        next(batches)


def test_time_is_up_only_for_one_who_waits(library):
    loader = DataLoader(Slow(), num_workers=1, pin_memory=True, timeout=0.05)
    with pytest.raises(RuntimeError, match=r"timed out after 0\.05 seconds waiting for worker 0"):
        list(loader)


@pytest.mark.oracle
def test_without_a_gpu_the_warnings_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="oracle extra not installed")
    if torch.cuda.is_available() or dptrain.cuda.is_available():
        pytest.skip("there is a GPU")
    told = []
    for m in (dptrain, torch):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = m.utils.data.TensorDataset(m.arange(2))
            loader = m.utils.data.DataLoader(data, pin_memory=True, pin_memory_device="cuda")
            assert [batch[0].is_pinned() for batch in loader] == [False, False]
        told.append([(w.category, str(w.message)) for w in caught])
    assert told[0] == told[1]
    assert len(told[0]) == 2


def test_named_tuples_of_samples_are_pinned(library):
    samples = [Point(dptrain.tensor(float(i)), i) for i in range(4)]
    for batch in DataLoader(samples, batch_size=2, pin_memory=True):
        assert type(batch) is Point
        assert batch.x.is_pinned()
        assert batch.y.is_pinned()
