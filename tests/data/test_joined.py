"""Datasets made of others, and splits of one."""

import pytest

import dptrain
from dptrain.core.random import Generator
from dptrain.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    TensorDataset,
    random_split,
)


class Numbers(Dataset):
    def __init__(self, start, stop):
        self.values = range(start, stop)

    def __getitem__(self, index):
        return self.values[index]

    def __len__(self):
        return len(self.values)


def test_added_datasets_follow_one_another():
    joined = Numbers(0, 3) + Numbers(10, 11) + Numbers(20, 22)
    assert isinstance(joined, ConcatDataset)
    assert [joined[i] for i in range(len(joined))] == [0, 1, 2, 10, 20, 21]
    assert [joined[i] for i in range(-6, 0)] == [0, 1, 2, 10, 20, 21]
    assert [b.tolist() for b in DataLoader(joined, 4)] == [[0, 1, 2, 10], [20, 21]]
    with pytest.warns(DeprecationWarning, match="renamed"):
        assert ConcatDataset([[1, 2], [], [3]]).cummulative_sizes == [2, 2, 3]


class Twice(Dataset):
    """Has batch access, which counts its calls."""

    calls = 0

    def __getitem__(self, index):
        return 2 * index

    def __getitems__(self, indices):
        self.calls += 1
        return [2 * i for i in indices]

    def __len__(self):
        return 4


def test_stacked_datasets_stand_side_by_side():
    twice = Twice()
    rows = StackDataset(Numbers(0, 4), twice)
    assert (rows[3], len(rows)) == ((3, 6), 4)
    assert [[f.tolist() for f in b] for b in DataLoader(rows, 3)] == [
        [[0, 1, 2], [0, 2, 4]],
        [[3], [6]],
    ]
    assert twice.calls == 2
    named = StackDataset(a=Numbers(0, 4), b=TensorDataset(dptrain.arange(4.0)))
    assert named[1]["a"] == 1
    (batch,) = DataLoader(named, 4)
    assert batch["b"][0].tolist() == [0.0, 1.0, 2.0, 3.0]


def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Length of split")
@pytest.mark.parametrize(
    "lengths",
    [[3, 7], [0.5, 0.25, 0.25], [0.3, 0.3, 0.4], [1.0], [10], [0.1] * 10, [1, 1], [0.5, 0.25], [1.5, -0.5],
     [0.01, 0.99], [0, 10], []],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("size", [10, 1])
def test_splits_have_the_sizes_that_pytorch_gives(size, lengths):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")

    def sizes(library):
        return outcome(lambda: [len(part) for part in library.random_split(range(size), lengths)])

    assert sizes(dptrain.data) == sizes(torch_data)


def test_a_split_deals_every_sample_out_once_and_follows_the_generator():
    def split(seed):
        parts = random_split(range(30), [0.5, 0.5], generator=Generator().manual_seed(seed))
        return [list(part) for part in parts]

    assert sorted(i for part in split(1) for i in part) == list(range(30))
    assert split(1) == split(1) != split(2)
    with pytest.warns(UserWarning, match="split at index 1 is 0"):
        random_split(range(1), [0.5, 0.5])


@pytest.mark.oracle
@pytest.mark.parametrize(
    "make",
    [
        lambda d, s: d.ConcatDataset([]),
        lambda d, s: d.ConcatDataset([s]),
        lambda d, s: d.ConcatDataset([[1], [2]])[-3],
        lambda d, s: d.ConcatDataset([[1], [2]])[2],
        lambda d, s: d.StackDataset(),
        lambda d, s: d.StackDataset([1], a=[1]),
        lambda d, s: d.StackDataset([1], [1, 2]),
        lambda d, s: d.StackDataset(a=[1], b=[1, 2]),
        lambda d, s: d.StackDataset(s),
        lambda d, s: list(d.ChainDataset([[1]])),
        lambda d, s: len(d.ChainDataset([[1]])),
        lambda d, s: len(d.ChainDataset([s])),
        lambda d, s: s[0],
        lambda d, s: d.Dataset()[0],
        lambda d, s: len(d.Dataset()),
        lambda d, s: d.Dataset().__getitems__([0]),
    ],
)
def test_bad_use_raises_what_pytorch_raises(make):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")

    def of(library, base):
        class Stream(base):
            def __iter__(self):
                return iter([1])

        return outcome(lambda: make(library, Stream()))

    expected = of(torch_data, torch_data.IterableDataset)
    assert issubclass(expected, Exception)
    assert of(dptrain.data, IterableDataset) is expected
