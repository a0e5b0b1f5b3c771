"""Iterable datasets: batches, lengths, shares."""

import pytest

from dptrain.data import ChainDataset, DataLoader, IterableDataset, shard


class Stream(IterableDataset):
    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return iter(range(self.size))

    def __len__(self):
        return self.size


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_stream_is_cut_into_batches(batch_size, drop_last):
    if batch_size is None:
        assert list(DataLoader(Stream(4), batch_size=None)) == [0, 1, 2, 3]
        return
    loader = DataLoader(Stream(7), batch_size=batch_size, drop_last=drop_last)
    expected = [list(range(i, min(i + batch_size, 7))) for i in range(0, 7, batch_size)]
    if drop_last:
        expected = [batch for batch in expected if len(batch) == batch_size]
    assert [batch.tolist() for batch in loader] == expected
    assert len(loader) == len(expected)


def test_a_stream_that_gives_more_than_its_length_is_told_of():
    class Short(Stream):
        def __len__(self):
            return 2

    loader = DataLoader(Short(6), batch_size=2)
    assert len(loader) == 1
    with pytest.warns(
        UserWarning, match=r"Short was reported to be 1 batches.*2 have been fetched"
    ):
        assert len(list(loader)) == 3


def test_a_stream_begins_anew_at_every_pass_and_cannot_go_on_inside_one():
    loader = DataLoader(Stream(3), batch_size=2)
    pass_ = iter(loader)
    next(pass_)
    with pytest.raises(RuntimeError, match="an IterableDataset only begins anew"):
        loader.load_state_dict(loader.state_dict())
    assert [b.tolist() for b in loader] == [b.tolist() for b in loader] == [[0, 1], [2]]
    loader.load_state_dict(loader.state_dict())


def test_streams_are_chained():
    chained = Stream(2) + Stream(3)
    assert isinstance(chained, ChainDataset)
    assert (list(chained), len(chained)) == ([0, 1, 0, 1, 2], 5)
    with pytest.raises(AssertionError, match="only supports IterableDataset, got range"):
        list(ChainDataset([range(3)]))


def test_a_stream_has_to_be_iterated_over():
    with pytest.raises(TypeError, match="abstract"):
        IterableDataset()


def test_without_workers_and_ranks_a_share_is_the_whole():
    assert list(shard(range(5))) == [0, 1, 2, 3, 4]
