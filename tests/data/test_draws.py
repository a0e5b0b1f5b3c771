"""Random draws in a dataset: whose they are, with any number of ranks and after a resume."""

import dptrain
from dptrain.data import DataLoader, Dataset, DistributedSampler, Subset


class Drawing(Dataset):
    """Sample i is (i, two numbers drawn)."""

    def __init__(self, size):
        self.size = size

    def __getitem__(self, index):
        return index, dptrain.rand(2)

    def __len__(self):
        return self.size


def drawn(loader):
    """What was drawn for each sample number, over a pass."""
    return {
        number: tuple(numbers)
        for batch in loader
        for number, numbers in zip(batch[0].tolist(), batch[1].tolist(), strict=True)
    }


def test_draws_belong_to_the_place_of_a_sample_and_not_to_the_batch_or_the_rank():
    def ranks(count, batch_size):
        found = {}
        for rank in range(count):
            dptrain.manual_seed(3)
            sampler = DistributedSampler(range(12), count, rank, seed=1)
            found |= drawn(DataLoader(Drawing(12), batch_size, sampler=sampler))
        return found

    expected = ranks(1, 4)
    assert len(set(expected.values())) == 12
    assert ranks(2, 3) == ranks(3, 2) == ranks(1, 12) == expected


def test_draws_differ_between_passes_and_follow_the_seed():
    dptrain.manual_seed(3)
    loader = DataLoader(Drawing(5), 2)
    first, second = drawn(loader), drawn(loader)
    assert not set(first.values()) & set(second.values())
    dptrain.manual_seed(3)
    again = DataLoader(Subset(Drawing(9), range(5)), 2)
    assert (drawn(again), drawn(again)) == (first, second)


def test_a_resumed_pass_draws_what_the_interrupted_one_would_have():
    dptrain.manual_seed(3)
    loader = DataLoader(Drawing(9), 2, shuffle=True)
    pass_ = iter(loader)
    next(pass_)
    state = loader.state_dict()
    rest = drawn(pass_)
    next_pass = drawn(loader)
    other = DataLoader(Drawing(9), 2, shuffle=True)
    dptrain.manual_seed(3)
    iter(other)
    before = dptrain.get_rng_state()
    other.load_state_dict(state)
    assert drawn(other) == rest
    # The pass itself took nothing from the generator, so that the next one is as in the whole run.
    assert dptrain.get_rng_state().tolist() == before.tolist()
    assert drawn(other) == next_pass


def test_who_seeds_in_the_dataset_gets_its_own_numbers():
    class Seeding(Drawing):
        def __getitem__(self, index):
            dptrain.manual_seed(7)
            return dptrain.rand(1)

    (batch,) = DataLoader(Seeding(3), 3)
    dptrain.manual_seed(7)
    assert batch.flatten().tolist() == [dptrain.rand(1).item()] * 3
