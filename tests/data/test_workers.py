"""Worker processes: the same batches as without, errors, deaths, limits, reuse."""

import os
import random
import signal
import threading
import time
import warnings
from itertools import product

import numpy as np
import pytest
from worker_datasets import Asking, Drawing, Everything, Failing, Point, Stream

import dptrain
from dptrain.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
    get_worker_info,
)


@pytest.fixture(autouse=True)
def _many_workers_on_few_cores():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def plain(value):
    """The value with tensors as (dtype, nested list)."""
    if isinstance(value, dptrain.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def batches(dataset, seed=0, **kwargs):
    dptrain.manual_seed(seed)
    return [plain(batch) for batch in DataLoader(dataset, **kwargs)]


# ---- the same batches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"batch_size": 4, "shuffle": True},
        {"batch_size": 4, "drop_last": True},
        {"batch_size": None},
        {"batch_sampler": [[3], [7, 2, 5]]},
    ],
    ids=str,
)
def test_any_number_of_workers_gives_the_batches_of_none(kwargs):
    def of_dptrain(found):  # without workers, numpy and random are left alone
        return [batch[:2] for batch in found]

    expected = of_dptrain(batches(Drawing(11), **kwargs))
    one, two, three = (batches(Drawing(11), num_workers=n, **kwargs) for n in (1, 2, 3))
    assert of_dptrain(one) == expected
    assert one == two == three
    assert batches(Drawing(11), seed=1, num_workers=2, **kwargs) != one


def test_numpy_and_random_draw_differently_in_every_batch_and_pass():
    dptrain.manual_seed(0)
    loader = DataLoader(Drawing(8), 2, num_workers=2)
    seen = [number for _ in range(2) for b in loader for f in b[2:] for number in f.tolist()]
    assert len(set(seen)) == len(seen) == 32


def test_the_state_of_this_process_is_left_alone():
    np.random.seed(1)
    random.seed(1)
    before = np.random.get_state()[1].tolist(), random.getstate()
    list(DataLoader(Drawing(4), 2, num_workers=1))
    list(DataLoader([1, 2], 2))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


def test_whatever_a_batch_holds_comes_back_as_it_was():
    (ours,), (theirs,) = (list(DataLoader(Everything(), 3, num_workers=n)) for n in (1, 0))
    assert plain(ours) == plain(theirs)
    assert type(ours["point"]) is Point
    for name in ("large", "strided"):
        ours[name] += 1  # the memory is the receiver's


def test_batches_that_are_kept_are_not_written_over():
    data = dptrain.arange(40.0).reshape(40, 1).expand(40, 10000).clone()
    kept = list(DataLoader(TensorDataset(data), 1, num_workers=2))
    assert [batch[0][0, 0].item() for batch in kept] == list(range(40))
    views = [kept[i][0][0, 5:6] for i in range(40)]
    del kept
    list(DataLoader(TensorDataset(data), 1, num_workers=2))
    assert [view.item() for view in views] == list(range(40))


def test_memory_for_batches_is_used_again():
    from dptrain.data.channel import Segment

    data = dptrain.zeros(60, 10000)
    received = []
    original = Segment.received.__func__
    Segment.received = classmethod(lambda cls, *args: received.append(args) or original(cls, *args))
    try:
        for _ in DataLoader(TensorDataset(data), 1, num_workers=1):
            pass
    finally:
        Segment.received = classmethod(original)
    assert 1 <= len(received) <= 5


def test_many_large_tasks_and_answers_do_not_block_each_other():
    data = list(range(3000))
    loader = DataLoader(
        data,
        batch_sampler=[data[: 1000 + i % 7] for i in range(300)],
        num_workers=1,
        prefetch_factor=300,
        collate_fn=lambda samples: bytes(12000),
    )
    pass_ = iter(loader)
    time.sleep(0.2)
    assert sum(len(batch) for batch in pass_) == 300 * 12000


@pytest.mark.parametrize("in_order", [True, False])
def test_a_slow_sample_holds_up_the_others_only_in_order(in_order):
    class Uneven(Drawing):
        def __getitem__(self, index):
            time.sleep(0.6 if index == 0 else 0)
            return index

    loader = DataLoader(Uneven(8), 1, num_workers=2, in_order=in_order)
    found, places = [], []
    for batch in loader:
        found.append(batch.item())
        places.append(loader.state_dict()["samples_consumed"])
    assert sorted(found) == list(range(8))
    assert (found == list(range(8))) == in_order
    # Whoever resumes repeats what was handed out early, and misses nothing.
    for i, place in enumerate(places):
        assert set(range(place)) <= set(found[: i + 1])


def test_a_pass_with_workers_can_be_resumed_with_any_number_of_them():
    for before, after in product((0, 2), (0, 3)):
        dptrain.manual_seed(5)
        loader = DataLoader(Drawing(13), 2, shuffle=True, num_workers=before)
        pass_ = iter(loader)
        for _ in range(3):
            next(pass_)
        state = loader.state_dict()
        rest = [plain(batch)[:2] for batch in pass_]
        other = DataLoader(Drawing(13), 2, shuffle=True, num_workers=after)
        other.load_state_dict(state)
        assert [plain(batch)[:2] for batch in other] == rest


def test_ranks_with_workers_draw_what_one_process_would():
    def ranks(count, batch_size, workers):
        found = {}
        for rank in range(count):
            dptrain.manual_seed(3)
            sampler = DistributedSampler(range(12), count, rank, seed=1)
            for batch in DataLoader(Drawing(12), batch_size, sampler=sampler, num_workers=workers):
                found.update(zip(batch[0].tolist(), map(tuple, batch[1].tolist()), strict=True))
        return found

    assert ranks(2, 3, 2) == ranks(1, 4, 0)


def test_what_only_exists_here_travels():
    offset = 5

    class Local(Dataset):
        def __getitem__(self, index):
            return shift(index)

        def __len__(self):
            return 4

    def shift(index):
        return index + offset

    loader = DataLoader(Local(), 2, num_workers=1, collate_fn=lambda s: Local if 5 in s else s)
    assert list(loader) == [Local, [7, 8]]


def test_a_memory_mapped_file_is_opened_by_the_worker_and_other_arrays_are_shared(tmp_path):
    mapped = np.memmap(tmp_path / "data", np.int32, "w+", shape=(6, 100000))
    mapped[:] = np.arange(6)[:, None]
    mapped.flush()

    class Mapped(Dataset):
        def __init__(self):
            self.part = mapped[2:5]
            self.strided = mapped[:, ::2]
            self.array = np.arange(3.0).repeat(100000).reshape(3, 100000)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            with open("/proc/self/maps") as file:
                files = file.read()
            assert "memfd:dptrain" in files
            self.array[index] += 10  # of this worker alone
            return (
                int(self.part[index, 7]),
                int(self.strided[index, 3]),
                self.array[:, 5].tolist(),
                str(tmp_path / "data") in files,
            )

    dataset = Mapped()
    found = list(DataLoader(dataset, None, num_workers=3))
    assert [f[0] for f in found] == [2, 3, 4]
    assert [f[1] for f in found] == [0, 1, 2]
    assert [f[2] for f in found] == [[10, 1, 2], [0, 11, 2], [0, 1, 12]]
    assert all(f[3] for f in found)
    assert dataset.array[:, 5].tolist() == [0, 1, 2]


# ---- streams ----------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("kwargs", [{"batch_size": 3}, {"batch_size": 2, "drop_last": True}])
def test_streams_in_workers_are_as_in_pytorch(kwargs):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")

    class Theirs(torch_data.IterableDataset):
        def __iter__(self):
            return iter(range(7 + torch_data.get_worker_info().id))

    class Ours(IterableDataset):
        def __iter__(self):
            return iter(range(7 + get_worker_info().id))

    theirs = torch_data.DataLoader(
        Theirs(), num_workers=2, multiprocessing_context="fork", **kwargs
    )
    ours = DataLoader(Ours(), num_workers=2, **kwargs)
    assert [b.tolist() for b in ours] == [b.tolist() for b in theirs]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_dealt_stream_gives_every_sample_once(workers, persistent):
    loader = DataLoader(
        Stream(10, True),
        2,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
    )
    for _ in range(2):
        assert sorted(n for batch in loader for n in batch.tolist()) == list(range(10))


# ---- what a worker knows ----------------------------------------------------------------------------


def test_worker_init_fn_and_worker_info():
    def init(worker):
        info = get_worker_info()
        assert info.id == worker
        info.dataset.marks = 10 * worker
        np.random.seed(worker)
        with pytest.raises(AttributeError, match="cannot assign to field"):
            info.id = 3

    assert get_worker_info() is None
    found = [plain(b) for b in DataLoader(Asking(), 1, num_workers=2, worker_init_fn=init)]
    assert [[field[1][0] for field in batch] for batch in found] == [
        [0, 2, 0, 0],
        [1, 2, 0, 10],
        [0, 2, 0, 0],
        [1, 2, 0, 10],
    ]
    # With a worker_init_fn, numpy's state belongs to it.
    loader = DataLoader(Drawing(6), 1, num_workers=2, worker_init_fn=init)
    drawn = [batch[2].item() for batch in loader]
    for worker in range(2):
        assert drawn[worker::2] == np.random.RandomState(worker).rand(3).tolist()


def test_persistent_workers_stay_and_others_do_not():
    class Pid(Drawing):
        def __getitem__(self, index):
            return os.getpid()

    for persistent in (True, False):
        loader = DataLoader(Pid(4), 1, num_workers=2, persistent_workers=persistent)
        first, second = ({b.item() for b in loader} for _ in range(2))
        assert len(first) == 2
        assert (first == second) == persistent
        next(iter(loader))  # abandoned: its answers are not taken for the next pass's
        assert len(list(loader)) == 4


def test_passes_at_the_same_time_do_not_mix():
    for persistent in (False, True):
        loader = DataLoader(range(6), 2, num_workers=1, persistent_workers=persistent)
        pairs = list(zip(loader, loader, strict=True))
        assert [[a.tolist(), b.tolist()] for a, b in pairs] == [[[i, i + 1]] * 2 for i in (0, 2, 4)]
        nested = [(a.item(), b.item()) for a in DataLoader([1, 2], num_workers=1) for b in
                  DataLoader([3, 4], num_workers=1)]  # fmt: skip
        assert nested == [(1, 3), (1, 4), (2, 3), (2, 4)]


def test_a_worker_may_have_a_loader_with_workers():
    class Inner(Drawing):
        def __getitem__(self, index):
            return sum(b.item() for b in DataLoader([index, 10], 1, num_workers=1))

    assert [b.tolist() for b in DataLoader(Inner(2), 2, num_workers=1)] == [[10, 11]]


def test_a_loader_in_a_thread():
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(b.item() for b in DataLoader(range(4), 1, num_workers=2))
    )
    thread.start()
    thread.join(30)
    assert found == [0, 1, 2, 3]


def test_the_worker_has_the_folder_and_the_environment_of_now(tmp_path, monkeypatch):
    class Here(Drawing):
        def __getitem__(self, index):
            return os.getcwd(), os.environ.get("LATER"), os.environ.get("OMPI_COMM_WORLD_RANK")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATER", "yes")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")  # or an MPI library would take it for the rank
    (found,) = DataLoader(Here(1), num_workers=1, collate_fn=lambda samples: samples[0])
    assert found == (str(tmp_path), "yes", None)


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("sample", [1, 3, 5, 7])
def test_an_error_of_the_dataset_is_the_one_that_pytorch_raises(sample):
    wrapper = pytest.importorskip("torch._utils", reason="oracle extra not installed")
    try:
        Failing(8)[sample]
    except Exception:  # what PyTorch's worker does
        wrapped = wrapper.ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        wrapped.reraise()
    with pytest.raises(theirs.type) as ours:
        list(DataLoader(Failing(8), sampler=[sample], num_workers=1))
    assert type(ours.value) is theirs.type
    text = str(ours.value)
    assert text.splitlines()[:2] == str(theirs.value).splitlines()[:2]
    assert "raise self.errors[index // 2]" in text
    assert f"raised by Failing.__getitem__ for sample {sample}" in text


def test_after_an_error_the_pass_goes_on_with_the_next_batch():
    pass_ = iter(DataLoader(Failing(3), 1, num_workers=2))
    assert next(pass_).item() == 0
    with pytest.raises(KeyError):
        next(pass_)
    assert next(pass_).item() == 2
    assert next(pass_, None) is None


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("worker_init_fn", "in initializing DataLoader worker process 0"),
        ("collate_fn", "in DataLoader worker process 0"),
        ("unpickling", "in initializing DataLoader worker process 0"),
    ],
)
def test_errors_elsewhere_in_the_worker_arrive_too(part, named):
    def fail(*_):
        raise LookupError("on purpose")

    class Unpickling(Drawing):
        def __setstate__(self, state):
            fail()

    dataset, kwargs = Drawing(2), {}
    if part == "unpickling":
        dataset = Unpickling(2)
    else:
        kwargs[part] = fail
    with pytest.raises(LookupError, match=f"{named}(.|\n)*on purpose"):
        next(iter(DataLoader(dataset, num_workers=1, **kwargs)))


def test_a_dataset_that_cannot_be_pickled_says_so():
    dataset = Drawing(2)
    dataset.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"pickle.*lock"):
        iter(DataLoader(dataset, num_workers=1))


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit"])
def test_a_worker_that_dies_is_named(how):
    class Dying(Drawing):
        def __getitem__(self, index):
            if index == 3:  # of the second worker, while the first is waited for
                os._exit(3) if how == "exit" else os.kill(os.getpid(), getattr(signal, how))
            time.sleep(10 if index == 2 else 0)
            return index

    start = time.monotonic()
    pass_ = iter(DataLoader(Dying(8), 1, num_workers=2))
    named = "exited unexpectedly with status 3" if how == "exit" else f"killed by signal: {how}"
    with pytest.raises(RuntimeError, match=rf"worker 1 \(pid \d+\) .*{named}"):
        list(pass_)
    assert time.monotonic() - start < 5
    with pytest.raises(RuntimeError, match=r"the workers of this pass .* have ended"):
        next(pass_)


def test_a_batch_that_takes_too_long_names_the_worker():
    class Slow(Drawing):
        def __getitem__(self, index):
            time.sleep(0 if index == 0 else 20)
            return index

    loader = DataLoader(Slow(2), 1, num_workers=2, timeout=60)
    pass_ = iter(loader)
    assert next(pass_).item() == 0
    loader.timeout = 0.3
    with pytest.raises(RuntimeError, match=r"timed out after 0.3 seconds .* worker 1 \(pid \d+\)"):
        next(pass_)


def test_a_pass_cannot_be_pickled():
    import pickle

    with pytest.raises(NotImplementedError):
        pickle.dumps(iter(DataLoader([1])))
