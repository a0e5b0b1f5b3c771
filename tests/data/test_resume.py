"""Exact resume: stop anywhere, go on with any number of ranks, nothing lost and nothing twice."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.core.random import Generator
from dptrain.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler


class Numbers:
    """Sample i is i."""

    def __init__(self, size):
        self.size = size

    def __getitem__(self, index):
        return index

    def __len__(self):
        return self.size


def make_loaders(size, ranks, batch_size, **kwargs):
    dataset = Numbers(size)
    return [
        DataLoader(
            dataset, batch_size, sampler=DistributedSampler(dataset, ranks, rank, seed=5, **kwargs)
        )
        for rank in range(ranks)
    ]


def take(iterator, count):
    """The samples of up to `count` batches."""
    taken = []
    for _ in range(count):
        batch = next(iterator, None)
        taken += [] if batch is None else batch.tolist()
    return taken


def reloaded(state):
    return json.loads(json.dumps(state))


RANKS = st.integers(1, 5)


@given(st.integers(0, 50), RANKS, RANKS, st.integers(1, 7), st.integers(1, 7), st.integers(0, 6))
def test_on_another_number_of_ranks_every_sample_comes_exactly_once(
    size, before, after, batch_before, batch_after, steps
):
    loaders = make_loaders(size, before, batch_before, pad=False)
    seen = Counter()
    for loader in loaders:
        seen.update(take(iter(loader), steps))
    state = reloaded(loaders[0].state_dict())
    assert state["samples_consumed"] in (0, sum(seen.values()))  # 0 once the pass is over
    resumed = make_loaders(size, after, batch_after, pad=False)
    if state["epoch"] == 0:
        for loader in resumed:
            loader.load_state_dict(state)
            assert loader.state_dict() == state
            for batch in loader:
                seen.update(batch.tolist())
    assert seen == Counter(range(size))


@given(
    st.integers(0, 40),
    RANKS,
    st.integers(1, 6),
    st.integers(0, 30),
    st.sampled_from([{}, {"drop_last": True}, {"pad": False}]),
)
def test_on_the_same_number_of_ranks_the_batches_are_those_of_an_uninterrupted_run(
    size, ranks, batch_size, steps, kwargs
):
    def batches(loader, epochs):
        return [batch.tolist() for _ in range(epochs) for batch in loader]

    for rank in range(ranks):
        expected = batches(make_loaders(size, ranks, batch_size, **kwargs)[rank], 3)
        loader = make_loaders(size, ranks, batch_size, **kwargs)[rank]
        got, state, passes = [], loader.state_dict(), 3
        for step, batch in enumerate(batch for _ in range(3) for batch in loader):
            if step == steps:
                break
            got.append(batch.tolist())
            state = reloaded(loader.state_dict())
        resumed = make_loaders(size, ranks, batch_size, **kwargs)[rank]
        resumed.load_state_dict(state)
        passes -= state["epoch"]
        assert got + batches(resumed, passes) == expected


def test_all_ranks_agree_on_the_position_while_they_step_together():
    loaders = make_loaders(23, 4, 2, pad=False)
    passes = [iter(loader) for loader in loaders]
    for step in range(1, 4):
        for pass_ in passes:
            next(pass_, None)
        positions = {loader.state_dict()["samples_consumed"] for loader in loaders}
        assert positions == {min(step * 8, 23)}


def test_a_finished_pass_stands_at_the_beginning_of_the_next_epoch():
    (loader,) = make_loaders(5, 1, 2)
    pass_ = iter(loader)
    take(pass_, 3)
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples_consumed"]) == (0, 5)
    assert next(pass_, None) is None
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples_consumed"]) == (1, 0)


def test_set_epoch_with_the_saved_epoch_keeps_the_position_and_another_one_drops_it():
    def resumed():
        (loader,) = make_loaders(10, 1, 3)
        take(iter(loader), 2)
        (other,) = make_loaders(10, 1, 3)
        other.load_state_dict(loader.state_dict())
        return other

    same, other = resumed(), resumed()
    same.sampler.set_epoch(0)
    assert len(take(iter(same), 99)) == 4
    assert len(take(iter(same), 99)) == 10
    other.sampler.set_epoch(1)
    assert len(take(iter(other), 99)) == 10


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("steps", [0, 2, 4])
def test_loaders_without_ranks_resume_too(shuffle, steps):
    def make(seed):
        return DataLoader(Numbers(10), 3, shuffle=shuffle, generator=Generator().manual_seed(seed))

    loader = make(1)
    pass_ = iter(loader)
    before = take(pass_, steps)
    state = reloaded(loader.state_dict())
    resumed = make(2)
    resumed.load_state_dict(state)
    after = take(iter(resumed), 99)
    if steps:
        assert after == take(pass_, 99)
    assert sorted(before + after) == list(range(10))


def test_samplers_of_others_that_have_epochs_and_a_state_resume_too():
    class Rotating(Sampler):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([(i + self.epoch) % 5 for i in range(5)])

        def __len__(self):
            return 5

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    def resumed():
        loader = DataLoader(Numbers(5), 2, sampler=Rotating())
        list(loader)
        take(iter(loader), 1)
        other = DataLoader(Numbers(5), 2, sampler=Rotating())
        other.load_state_dict(loader.state_dict())
        return other

    loader = resumed()
    assert take(iter(loader), 99) == [3, 4, 0]  # the rest of epoch 1
    assert take(iter(loader), 99) == [2, 3, 4, 0, 1]
    loader = resumed()
    loader.sampler.set_epoch(3)  # another epoch begins at its first sample
    assert take(iter(loader), 99) == [3, 4, 0, 1, 2]


def test_a_batch_that_failed_was_not_consumed():
    class Flaky(Numbers):
        broken = True

        def __getitem__(self, index):
            if index == 4 and self.broken:
                raise OSError("disk")
            return index

    dataset = Flaky(8)
    loader = DataLoader(dataset, 2)
    pass_ = iter(loader)
    assert take(pass_, 2) == [0, 1, 2, 3]
    with pytest.raises(OSError, match="sample 4"):
        next(pass_)
    resumed = DataLoader(dataset, 2)
    resumed.load_state_dict(loader.state_dict())
    # Who goes on after the error has skipped the batch, and the position says so.
    assert next(pass_).tolist() == [6, 7]
    assert loader.state_dict()["samples_consumed"] == 8
    dataset.broken = False
    assert take(iter(resumed), 99) == [4, 5, 6, 7]


def test_batch_samplers_of_others_resume_by_whole_batches():
    batches = [[0, 1, 2], [3], [4, 5]]
    loader = DataLoader(Numbers(6), batch_sampler=batches)
    take(iter(loader), 2)
    state = loader.state_dict()
    assert state["samples_consumed"] == 4
    resumed = DataLoader(Numbers(6), batch_sampler=batches)
    resumed.load_state_dict(state)
    assert take(iter(resumed), 99) == [4, 5]
    other = DataLoader(Numbers(6), batch_sampler=[[0, 1, 2], [3, 4], [5]])
    other.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"4 samples into the epoch.*5 samples"):
        iter(other)


def test_a_sampler_that_may_not_repeat_its_order_is_refused_inside_an_epoch():
    class Unknown(Sampler):
        def __iter__(self):
            return iter([2, 0, 1])

        def __len__(self):
            return 3

    loader = DataLoader(Numbers(3), sampler=Unknown())
    pass_ = iter(loader)
    next(pass_)
    with pytest.raises(RuntimeError, match="1 samples into epoch 0: Unknown has no state_dict"):
        loader.load_state_dict(loader.state_dict())
    take(pass_, 99)
    loader.load_state_dict(loader.state_dict())
    assert loader.state_dict()["epoch"] == 1


def test_an_overridden_batch_sampler_is_not_taken_for_one_that_only_cuts():
    class Reversed(BatchSampler):
        def __iter__(self):
            return iter([batch[::-1] for batch in super().__iter__()])

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    def make():
        return DataLoader(Numbers(6), batch_sampler=Reversed(range(6), 2, False))

    loader = make()
    assert take(iter(loader), 1) == [1, 0]
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert take(iter(resumed), 99) == [3, 2, 5, 4]


def test_a_position_of_another_dataset_or_order_is_refused():
    (loader,) = make_loaders(10, 1, 3)
    take(iter(loader), 1)
    state = loader.state_dict()
    with pytest.raises(ValueError, match=r"10 samples, this one has 11"):
        make_loaders(11, 1, 3)[0].load_state_dict(state)
    with pytest.raises(ValueError, match="shuffle=True"):
        make_loaders(10, 1, 3, shuffle=False)[0].load_state_dict(state)


def test_random_sampler_state_is_of_the_pass_that_was_interrupted():
    sampler = RandomSampler(range(9), generator=Generator())
    loader = DataLoader(Numbers(9), 2, sampler=sampler)
    list(loader)
    pass_ = iter(loader)
    take(pass_, 1)
    other = DataLoader(Numbers(9), 2, shuffle=True, generator=Generator().manual_seed(3))
    other.load_state_dict(reloaded(loader.state_dict()))
    assert other.state_dict()["epoch"] == 1
    assert take(iter(other), 99) == take(pass_, 99)
