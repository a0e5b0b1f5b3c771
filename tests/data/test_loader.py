"""The DataLoader: batches, arguments, epochs, the end of a pass."""

import threading
from itertools import product

import numpy as np
import pytest

from dptrain.core.creation import tensor
from dptrain.core.random import Generator
from dptrain.core.tensor import Tensor
from dptrain.data import (
    BatchSampler,
    ChainDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    Sampler,
    Subset,
    TensorDataset,
    default_collate,
)
from dptrain.data.events import register_pass_end


class Squares(Dataset):
    """Sample i is (i, i * i); has no batch access."""

    def __init__(self, size):
        self.size = size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(f"there is no sample {index}")
        return index, float(index * index)

    def __len__(self):
        return self.size


def numbers(loader):
    """The sample numbers of one pass over a loader of Squares, by batch."""
    return [batch[0].tolist() for batch in loader]


def samples(loader):
    """The sample numbers of one pass over a loader of Squares."""
    return [number for batch in numbers(loader) for number in batch]


def array_backed(size=10):
    rng = np.random.default_rng(0)
    return TensorDataset(
        tensor(rng.standard_normal((size, 2, 3)).astype(np.float32)), tensor(list(range(size)))
    )


# ---- batches ----------------------------------------------------------------------------------------


def test_batches_are_collated_in_order():
    batches = list(DataLoader(Squares(5), batch_size=2))
    assert [batch[0].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch[1].tolist() for batch in batches] == [[0.0, 1.0], [4.0, 9.0], [16.0]]


@pytest.mark.parametrize(("drop_last", "batches"), [(False, 3), (True, 2)])
def test_length_counts_the_batches(drop_last, batches):
    loader = DataLoader(Squares(5), batch_size=2, drop_last=drop_last)
    assert len(loader) == len(list(loader)) == batches


def test_an_empty_dataset_gives_no_batches():
    assert list(DataLoader(Squares(0), batch_size=2)) == []


def test_shuffle_visits_every_sample_once_in_an_order_that_changes():
    loader = DataLoader(Squares(20), batch_size=3, shuffle=True, generator=Generator())
    first, second = samples(loader), samples(loader)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_a_sampler_and_a_batch_sampler_decide_the_order():
    assert numbers(DataLoader(Squares(9), batch_size=2, sampler=[8, 1, 5])) == [[8, 1], [5]]
    assert numbers(DataLoader(Squares(9), batch_sampler=[[3], [7, 2]])) == [[3], [7, 2]]


def test_batch_size_none_gives_single_converted_samples():
    loader = DataLoader([(np.float32(1), "a"), (np.float32(2), "b")], batch_size=None)
    samples = list(loader)
    assert [(s[0].item(), s[1]) for s in samples] == [(1.0, "a"), (2.0, "b")]
    assert isinstance(samples[0][0], Tensor)
    assert len(loader) == 2


def test_collate_fn_receives_the_samples():
    loader = DataLoader(array_backed(3), batch_size=2, collate_fn=lambda rows: [len(rows), *rows])
    count, first, second = next(iter(loader))
    assert (count, first[1].item(), second[1].item()) == (2, 0, 1)


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, [7, 3, 9, 1, 0])])
def test_whole_batches_are_those_that_collating_samples_gives(wrap):
    dataset = wrap(array_backed())
    fast = list(DataLoader(dataset, batch_size=3))
    slow = list(DataLoader(dataset, batch_size=3, collate_fn=lambda rows: default_collate(rows)))
    assert len(fast) == len(slow)
    for ours, expected in zip(fast, slow, strict=True):
        assert type(ours) is type(expected)
        for a, b in zip(ours, expected, strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert np.array_equal(a.numpy(), b.numpy())


def test_whole_batches_are_fetched_at_once():
    class Watched(TensorDataset):
        calls = 0

        def get_batch(self, indices):
            self.calls += 1
            return super().get_batch(indices)

    dataset = Watched(tensor([1, 2, 3, 4, 5]))
    list(DataLoader(dataset, batch_size=2))
    assert dataset.calls == 3


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(3))])
def test_a_subclass_that_changes_its_samples_is_not_bypassed(wrap):
    class Negated(TensorDataset):
        def __getitem__(self, index):
            return (-super().__getitem__(index)[0],)

    (batch,) = next(iter(DataLoader(wrap(Negated(tensor([1, 2, 3]))), batch_size=3)))
    assert batch.tolist() == [-1, -2, -3]


def test_getitems_gives_the_samples_of_a_batch():
    class Batched(Squares):
        def __getitems__(self, indices):
            return [(index, 0.0) for index in indices]

    loader = DataLoader(Batched(3), batch_size=2)
    assert [batch[1].tolist() for batch in loader] == [[0.0, 0.0], [0.0]]


@pytest.mark.parametrize(
    ("dataset", "noted"),
    [
        (Squares(3), "raised by Squares.__getitem__ for sample 7"),
        (Subset(Squares(3), range(10)), "raised by Squares.__getitem__ for sample 7"),
        (array_backed(3), r"raised by TensorDataset for the samples \[1, 7\]"),
    ],
)
def test_an_error_of_the_dataset_names_the_sample(dataset, noted):
    with pytest.raises(IndexError, match=noted):
        list(DataLoader(dataset, batch_size=2, sampler=[1, 7]))


# ---- arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "2", True])
def test_a_batch_size_that_does_not_fit_is_named(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        DataLoader(Squares(3), batch_size=batch_size)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"num_workers": -1}, "num_workers option should be non-negative"),
        ({"timeout": -3}, "timeout option should be non-negative"),
        ({"multiprocessing_context": "spawn"}, "multi-process loading .* got num_workers=0"),
        ({"num_workers": 1, "multiprocessing_context": "x"}, r"valid start method in \['fork'"),
        (
            {"num_workers": 1, "prefetch_factor": -1},
            "prefetch_factor option should be non-negative",
        ),
        ({"prefetch_factor": 2}, "prefetch_factor"),
        ({"persistent_workers": True}, "persistent_workers option needs num_workers > 0"),
        ({"sampler": [0], "shuffle": True}, "mutually exclusive with shuffle"),
        ({"batch_sampler": [[0]], "batch_size": 2}, "batch_sampler option is mutually exclusive"),
        ({"batch_sampler": [[0]], "drop_last": True}, "batch_sampler option is mutually exclusive"),
        ({"batch_size": None, "drop_last": True}, "mutually exclusive with drop_last"),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(kwargs, named):
    with pytest.raises(ValueError, match=named):
        DataLoader(Squares(3), **kwargs)


def test_pin_memory_without_a_gpu_warns():
    loader = DataLoader(Squares(2), batch_size=2, pin_memory=True)
    with pytest.warns(UserWarning, match="pin_memory.*no accelerator"):
        assert numbers(loader) == [[0, 1]]


def test_a_batch_size_that_leaves_no_batch_warns():
    with pytest.warns(UserWarning, match=r"batch_size=4 with drop_last=True.*yields 3 samples"):
        loader = DataLoader(Squares(3), batch_size=4, drop_last=True)
    assert list(loader) == []
    DataLoader(Squares(0), batch_size=4, drop_last=True)
    DataLoader(Squares(4), batch_size=4, drop_last=True)


def test_something_without_getitem_is_no_dataset():
    with pytest.raises(TypeError, match=r"__getitem__.*got set"):
        DataLoader({1, 2})


@pytest.mark.parametrize(
    "name",
    ["batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers"],
)
def test_what_was_decided_at_construction_cannot_be_changed_silently(name):
    loader = DataLoader(Squares(3))
    with pytest.raises(ValueError, match=f"{name} attribute should not be set"):
        setattr(loader, name, None)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:batch_size=.*leaves no batch")
def test_batches_are_those_of_pytorch():
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    for size, batch_size, drop_last in product((0, 1, 5, 8), (1, 3, 8, 9), (False, True)):
        kwargs = {"batch_size": batch_size, "drop_last": drop_last}
        ours, theirs = (
            DataLoader(Squares(size), **kwargs),
            torch_data.DataLoader(Squares(size), **kwargs),
        )
        assert len(ours) == len(theirs)
        assert [[f.tolist() for f in batch] for batch in ours] == [
            [f.tolist() for f in batch] for batch in theirs
        ]


@pytest.mark.oracle
@pytest.mark.parametrize(
    "kwargs",
    [
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"num_workers": -1},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"persistent_workers": True},
        {"sampler": [0], "shuffle": True},
        {"batch_sampler": [[0]], "shuffle": True},
        {"batch_size": None, "drop_last": True},
        {"multiprocessing_context": "spawn"},
        {"num_workers": 1, "multiprocessing_context": "thread"},
        {"num_workers": 1, "multiprocessing_context": 3},
        {"num_workers": 1, "prefetch_factor": -1},
        {"dataset": "stream", "shuffle": True},
        {"dataset": "stream", "sampler": [0]},
        {"dataset": "stream", "batch_sampler": [[0]]},
        {"dataset": "stream", "batch_size": None, "drop_last": True},
    ],
    ids=str,
)
def test_bad_arguments_raise_what_pytorch_raises(kwargs):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    kwargs = dict(kwargs)
    stream = kwargs.pop("dataset", None) is not None
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        torch_data.DataLoader(torch_data.ChainDataset([]) if stream else Squares(3), **kwargs)
    with pytest.raises(theirs.type):
        DataLoader(ChainDataset([]) if stream else Squares(3), **kwargs)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "kwargs",
    [
        {"timeout": 3},
        {"worker_init_fn": print},
        {"in_order": False},
        {"pin_memory_device": "cuda"},
        {"num_workers": 2, "prefetch_factor": 0},
        {"num_workers": 1, "multiprocessing_context": "fork"},
        {"dataset": "stream", "shuffle": False},
    ],
    ids=str,
)
def test_arguments_that_pytorch_takes_are_taken(kwargs):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    kwargs = dict(kwargs)
    stream = kwargs.pop("dataset", None) is not None
    theirs = torch_data.DataLoader(torch_data.ChainDataset([]) if stream else Squares(3), **kwargs)
    ours = DataLoader(ChainDataset([]) if stream else Squares(3), **kwargs)
    for name in ("prefetch_factor", "num_workers", "timeout", "in_order", "persistent_workers"):
        assert getattr(ours, name) == getattr(theirs, name)


# ---- epochs -----------------------------------------------------------------------------------------


def epoch_orders(epochs, size=12):
    sampler = DistributedSampler(range(size), 1, 0, seed=1)
    orders = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


def make_loader(size=12, batch_sampler=False):
    dataset = Squares(size)
    sampler = DistributedSampler(dataset, 1, 0, seed=1)
    if batch_sampler:
        return DataLoader(dataset, batch_sampler=BatchSampler(sampler, 5, False)), sampler
    return DataLoader(dataset, batch_size=5, sampler=sampler), sampler


@pytest.mark.parametrize("batch_sampler", [False, True])
def test_a_forgotten_set_epoch_is_made_up_for(batch_sampler):
    loader, _ = make_loader(batch_sampler=batch_sampler)
    assert [samples(loader) for _ in range(3)] == epoch_orders([0, 1, 2])


def test_a_chosen_epoch_is_used_and_counted_on_from():
    loader, sampler = make_loader()
    orders = [samples(loader)]
    for epoch in (0, 7):  # 0: the user may want an order again
        sampler.set_epoch(epoch)
        orders.append(samples(loader))
    orders.append(samples(loader))
    assert orders == epoch_orders([0, 0, 7, 8])


def test_an_epoch_chosen_before_the_first_pass_is_used():
    loader, sampler = make_loader()
    sampler.set_epoch(4)
    assert samples(loader) == epoch_orders([4])[0]


def test_a_loader_made_anew_every_epoch_goes_on_as_well():
    sampler = DistributedSampler(range(12), 1, 0, seed=1)
    orders = [samples(DataLoader(Squares(12), batch_size=5, sampler=sampler)) for _ in range(3)]
    assert orders == epoch_orders([0, 1, 2])


def test_an_abandoned_pass_counts_as_one():
    loader, _ = make_loader()
    next(iter(loader))
    assert samples(loader) == epoch_orders([1])[0]


def test_samplers_of_others_that_have_epochs_are_advanced_too():
    class Rotating(Sampler):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([(i + self.epoch) % 3 for i in range(3)])

        def __len__(self):
            return 3

    sampler = Rotating()
    loader = DataLoader(Squares(3), batch_size=3, sampler=sampler)
    orders = [*numbers(loader), *numbers(loader)]
    sampler.set_epoch(0)
    orders += [*numbers(loader), *numbers(loader)]
    assert orders == [[0, 1, 2], [1, 2, 0], [0, 1, 2], [1, 2, 0]]


# ---- the end of a pass ------------------------------------------------------------------------------


@pytest.fixture
def ends():
    """(loader, position) at every end of a pass in this thread."""
    seen = []
    handle = register_pass_end(
        lambda loader, _: seen.append((loader, loader.state_dict()["epoch"]))
    )
    yield seen
    handle.remove()


def test_the_end_of_a_pass_is_announced_once_after_the_last_batch(ends):
    loader = DataLoader(Squares(4), batch_size=2)
    pass_ = iter(loader)
    next(pass_)
    next(pass_)
    assert ends == []
    assert next(pass_, None) is None
    assert ends == [(loader, 1)]
    assert next(pass_, None) is None
    assert len(ends) == 1


def test_an_abandoned_pass_has_no_end_and_an_empty_one_has(ends):
    for _ in DataLoader(Squares(4)):
        break
    assert ends == []
    empty = DataLoader(Squares(0))
    list(empty)
    assert ends == [(empty, 1)]


def test_callbacks_run_in_order_until_removed():
    seen = []
    handles = [register_pass_end(lambda *_, name=name: seen.append(name)) for name in "abc"]
    loader = DataLoader(Squares(1))
    list(loader)
    handles[1].remove()
    handles[1].remove()
    list(loader)
    for handle in handles:
        handle.remove()
    list(loader)
    assert seen == ["a", "b", "c", "a", "c"]


def test_callbacks_belong_to_the_thread_that_registered_them(ends):
    other = threading.Thread(target=lambda: list(DataLoader(Squares(2))))
    other.start()
    other.join()
    assert ends == []


def test_what_a_callback_raises_leaves_the_loop():
    def fail(loader, time_ns):
        raise RuntimeError("the ranks disagree")

    handle = register_pass_end(fail)
    try:
        with pytest.raises(RuntimeError, match="the ranks disagree"):
            list(DataLoader(Squares(2)))
    finally:
        handle.remove()


def test_the_time_of_the_first_batch_lies_between_the_neighbouring_ones():
    from time import perf_counter_ns

    times = []
    handle = register_pass_end(lambda _, time_ns: times.append(time_ns))
    pass_ = iter(DataLoader(Squares(2)))
    before = perf_counter_ns()
    next(pass_)
    after = perf_counter_ns()
    list(pass_)
    handle.remove()
    assert before <= times[0] <= after


def test_data_time_covers_the_dataset_and_not_the_loop_body():
    from time import perf_counter

    inside = []

    class Timed(Squares):
        def __getitem__(self, index):
            start = perf_counter()
            sample = super().__getitem__(index), np.linalg.svd(np.ones((60, 60)))[1]
            inside.append(perf_counter() - start)
            return sample

    loader = DataLoader(Timed(6), batch_size=2)
    start = perf_counter()
    body = 0.0
    for _ in loader:
        body_start = perf_counter()
        np.linalg.svd(np.ones((200, 200)))
        body += perf_counter() - body_start
    whole = perf_counter() - start
    assert sum(inside) <= loader.data_time_s <= whole - body
