"""PrefetchLoader: plain moves without a GPU; over the stand-in for CuPy the order of copies, streams and events."""

import gc
import traceback
from collections import namedtuple

import fake_cupy
import numpy as np
import pytest
from worker_datasets import Stream

import dptrain
from dptrain.data import DataLoader, DistributedSampler, PrefetchLoader, TensorDataset
from dptrain.data.events import register_pass_end

LOG = fake_cupy.LOG
SIDE = 64  # the handle of streams that are made
Pair = namedtuple("Pair", "a b")


@pytest.fixture
def library(monkeypatch):
    with fake_cupy.installed(monkeypatch) as found:
        yield found


@pytest.fixture
def lagging(library, monkeypatch):
    """Copies of a side stream happen when somebody waits for an event behind them, not before.

    Gives the copies that did not happen yet.
    """
    waiting = []
    at_once, record, wait = (
        library.cupy.cuda.runtime.memcpyAsync,
        fake_cupy._Stream.record,
        fake_cupy._Stream.wait_event,
    )

    def copy(*args):
        waiting.append(args) if args[-1] == SIDE else at_once(*args)

    def recording(self, event=None):
        found = record(self, event)
        found.behind = list(waiting) if self.ptr == SIDE else []
        found.done = not found.behind
        return found

    def waits(self, event):
        wait(self, event)
        for args in event.behind:
            if args in waiting:
                waiting.remove(args)
                at_once(*args)
        event.done = True

    monkeypatch.setattr(library.cupy.cuda.runtime, "memcpyAsync", copy)
    monkeypatch.setattr(fake_cupy._Stream, "record", recording)
    monkeypatch.setattr(fake_cupy._Stream, "wait_event", waits)
    return waiting


def numbered(size):
    return TensorDataset(dptrain.arange(size), dptrain.arange(float(size)).reshape(size, 1))


def numbers(batches):
    return [batch[0].tolist() for batch in batches]


# ---- devices that are no GPU ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cpu:0", "cpu:1"])
def test_on_the_host_batches_are_moved_when_they_are_asked_for(place, host_devices):
    host_devices(2)
    asked = []

    def batches():
        for i in range(3):
            asked.append(i)
            yield {"x": dptrain.tensor([i]), "name": "text"}

    seen = []
    for batch in PrefetchLoader(batches(), place):
        assert asked == list(range(len(seen) + 1))
        assert batch["x"].device == dptrain.device(place)
        assert batch["name"] == "text"
        seen += batch["x"].tolist()
    assert seen == [0, 1, 2]


def test_without_a_gpu_the_device_is_refused():
    if dptrain.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="'cuda' was asked for, but"):
        PrefetchLoader([])


def test_length_passes_and_attributes_are_those_of_the_loader():
    loader = DataLoader(numbered(5), batch_size=2)
    ahead = PrefetchLoader(loader, "cpu")
    assert len(ahead) == 3
    assert ahead.dataset is loader.dataset
    for _ in range(2):
        assert numbers(ahead) == [[0, 1], [2, 3], [4]]
    with pytest.raises(TypeError):
        len(PrefetchLoader(iter([]), "cpu"))
    with pytest.raises(AttributeError, match="unheard_of"):
        _ = ahead.unheard_of


# ---- order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
def test_the_next_batch_is_copied_before_one_is_handed_out(library, index):
    batches = iter(PrefetchLoader([dptrain.arange(n + 1.0) for n in range(3)], f"cuda:{index}"))
    LOG.clear()

    def sent(n):
        """Behind the current stream's work so far, a copy on the side, and the event behind it."""
        copy = ("memcpy", 1, 4 * (n + 1), SIDE)
        pinned = ("pinned", 4 * (n + 1))
        return [pinned, ("record", index), ("wait", index, index), copy, ("record", index)]

    claimed = ("wait", index, index)
    expected = [[*sent(0), claimed, *sent(1)], [claimed, *sent(2)], [claimed]]
    for n, steps in enumerate(expected):
        batch = next(batches)
        assert steps == LOG
        LOG.clear()
        assert batch.device == dptrain.device("cuda", index)
        assert batch.tolist() == list(range(n + 1))
    assert next(batches, None) is None


def test_pinned_batches_are_copied_from_where_they_lie(library):
    loader = DataLoader(numbered(4), batch_size=2, pin_memory=True)
    assert numbers(PrefetchLoader(loader)) == [[0, 1], [2, 3]]
    made = [entry for entry in LOG if entry[0] == "pinned"]
    assert len(made) == 4  # by the DataLoader, two fields of two batches


@pytest.mark.parametrize("pin_memory", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_values_are_right_though_copies_lag_and_memory_changes(lagging, pin_memory, workers):
    loader = DataLoader(numbered(400), batch_size=4, num_workers=workers, pin_memory=pin_memory)
    seen = []
    for number, squares in PrefetchLoader(loader):
        assert len(lagging) == (2 if len(seen) < 99 else 0)  # what comes next, and nothing else
        assert squares.reshape(4).tolist() == number.tolist()
        seen.append(number.tolist())
    assert seen == [list(range(i, i + 4)) for i in range(0, 400, 4)]


def test_a_batch_that_is_reused_by_its_maker_may_be_overwritten(lagging):
    memory = np.zeros(3)

    def batches():
        for i in range(100):
            memory[:] = i
            yield dptrain.from_numpy(memory)

    assert [b.tolist() for b in PrefetchLoader(batches())] == [[float(i)] * 3 for i in range(100)]


def test_structures_and_what_is_no_plain_tensor(library):
    weight = dptrain.nn.Parameter(dptrain.ones(2))
    there = dptrain.ones(2).cuda()
    image = dptrain.zeros(2, 3, 4, 5).to(memory_format=dptrain.channels_last)
    given = {
        "pair": Pair(dptrain.tensor(1), [dptrain.zeros(0), "text"]),
        "tuple": (weight, there, None, 3),
        "image": image,
    }
    (batch,) = PrefetchLoader([given])
    assert type(batch["pair"]) is Pair
    assert batch["pair"].a.item() == 1
    assert batch["pair"].b[0].shape == (0,)
    assert batch["pair"].b[1] == "text"
    moved, same, *rest = batch["tuple"]
    assert same is there
    assert rest == [None, 3]
    moved.sum().backward()
    assert weight.grad.tolist() == [1.0, 1.0]
    assert batch["image"].is_contiguous(memory_format=dptrain.channels_last)
    tensors = [batch["pair"].a, batch["pair"].b[0], moved, batch["image"]]
    assert all(t.is_cuda for t in tensors)
    assert given["pair"].a.device.type == "cpu"


# ---- ends -------------------------------------------------------------------------------------------


def test_a_pass_that_is_left_waits_for_what_is_on_its_way(lagging):
    for batch in PrefetchLoader(DataLoader(numbered(6), batch_size=2)):
        assert batch[0].tolist() == [0, 1]
        assert len(lagging) == 2
        break
    gc.collect()
    assert lagging == []  # the current stream waits, and its memory is not used anew before


def test_an_error_comes_in_its_turn_and_what_can_go_on_does(library):
    class Loader:
        at = -1

        def __iter__(self):
            return self

        def __next__(self):
            self.at += 1
            if self.at == 2:
                raise LookupError("no second batch")
            if self.at == 4:
                raise StopIteration
            return dptrain.tensor(self.at)

    batches = iter(PrefetchLoader(Loader()))
    assert [next(batches).item() for _ in range(2)] == [0, 1]
    with pytest.raises(LookupError) as error:
        next(batches)
    assert 'raise LookupError("no second batch")' in "".join(
        traceback.format_exception(error.value)
    )
    assert [b.item() for b in batches] == [3]
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("wrapped", [True, False])
def test_who_is_told_of_the_end_of_a_pass_has_had_the_last_batch(library, wrapped):
    class Bar:
        """As progress bars are: has a length, gives what another gives."""

        def __init__(self, loader):
            self.loader = loader

        def __len__(self):
            return len(self.loader)

        def __iter__(self):
            yield from self.loader

    loader, seen, ended = DataLoader(numbered(6), batch_size=2), [], []
    handle = register_pass_end(lambda loader, first: ended.append(len(seen)))
    ahead = PrefetchLoader(Bar(loader) if wrapped else loader)
    for _ in range(2):
        seen.clear()
        for batch in ahead:
            seen.append(batch[0].tolist())
            # What follows in the loop's body is the last batch's.
            assert ended == [] or ended[-1] == 3
    handle.remove()
    assert ended == [3, 3]
    assert loader.last_pass_length == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_streams_of_samples_end_once(library, workers):
    loader = DataLoader(Stream(5, dealt=False), batch_size=2, num_workers=workers, pin_memory=True)
    ahead = PrefetchLoader(loader)
    for epoch in range(2):
        batches = iter(ahead)
        assert [b.tolist() for b in batches] == [[0, 1], [2, 3], [4]]
        assert next(batches, None) is None
        assert loader.state_dict()["epoch"] == epoch + 1


@pytest.mark.parametrize("workers", [0, 1])
def test_the_position_is_that_of_the_batch_handed_out(library, workers):
    def fresh():
        data = numbered(12)
        sampler = DistributedSampler(data, num_replicas=1, rank=0, seed=3)
        return DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers)

    whole = numbers(fresh())
    ahead = PrefetchLoader(fresh())
    batches = iter(ahead)
    for n in range(1, 7):
        next(batches)
        state = ahead.state_dict()
        assert state["samples_consumed"] == 2 * n
        resumed = PrefetchLoader(fresh())
        resumed.load_state_dict(state)
        if n in (1, 3, 5):
            assert numbers(resumed) == whole[n:]
    assert next(batches, None) is None
    assert ahead.state_dict()["epoch"] == 1


def test_ranks_use_their_own_gpus(library):
    for index in (0, 1):
        with library.on(index):
            ahead = PrefetchLoader(DataLoader(numbered(4), batch_size=2, pin_memory=True))
            assert ahead.device == dptrain.device("cuda", index)
            for number, values in ahead:
                assert number.get_device() == values.get_device() == index
