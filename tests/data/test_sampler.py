"""Order and batches of the samplers of one process."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from dptrain.core.random import Generator, manual_seed, use_generator
from dptrain.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


def seeded(seed):
    return Generator().manual_seed(seed)


def test_sequential_sampler_counts_up():
    sampler = SequentialSampler("abcd")
    assert list(sampler) == [0, 1, 2, 3]
    assert len(sampler) == 4


@pytest.mark.parametrize("size", [1, 2, 37])
def test_random_sampler_yields_every_number_once(size):
    assert sorted(RandomSampler(range(size), generator=seeded(1))) == list(range(size))


def test_random_sampler_changes_its_order_from_pass_to_pass_and_repeats_it_from_a_seed():
    sampler = RandomSampler(range(50), generator=seeded(1))
    first, second = list(sampler), list(sampler)
    assert first != second
    again = RandomSampler(range(50), generator=seeded(1))
    assert [list(again), list(again)] == [first, second]
    assert list(RandomSampler(range(50), generator=seeded(2))) != first


def test_random_sampler_draws_from_the_default_generator():
    with use_generator(Generator()):
        manual_seed(7)
        first = list(RandomSampler(range(30)))
        manual_seed(7)
        assert list(RandomSampler(range(30))) == first


def test_random_sampler_with_its_own_generator_leaves_the_default_one_alone():
    with use_generator(Generator()) as default:
        before = default.get_state().tolist()
        list(RandomSampler(range(30), generator=seeded(1)))
        assert default.get_state().tolist() == before


def test_random_sampler_takes_whole_rounds_before_it_repeats_a_number():
    drawn = list(RandomSampler(range(5), num_samples=13, generator=seeded(3)))
    assert len(drawn) == 13
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == list(range(5))
    assert len(set(drawn[10:])) == 3


def test_random_sampler_with_replacement_is_uniform():
    sampler = RandomSampler(range(4), replacement=True, num_samples=40_000, generator=seeded(5))
    counts = Counter(sampler)
    # Binomial with mean 10,000 and standard deviation 87: six of them.
    assert all(abs(counts[i] - 10_000) < 520 for i in range(4))
    assert sum(counts.values()) == len(sampler) == 40_000


def test_random_sampler_repeats_a_saved_pass_once():
    sampler = RandomSampler(range(40), generator=seeded(1))
    first = list(sampler)
    state = sampler.state_dict()
    other = RandomSampler(range(40), generator=seeded(99))
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert list(other) == first
    assert list(other) == list(RandomSampler(range(40), generator=seeded(99)))


@pytest.mark.parametrize(
    ("kwargs", "error", "named"),
    [
        ({"replacement": 1}, TypeError, "replacement=1"),
        ({"num_samples": 0}, ValueError, "num_samples=0"),
        ({"num_samples": -3}, ValueError, "num_samples=-3"),
        ({"num_samples": 2.5}, ValueError, "num_samples=2.5"),
    ],
)
def test_random_sampler_names_a_bad_argument(kwargs, error, named):
    with pytest.raises(error, match=named):
        RandomSampler(range(3), **kwargs)


def test_random_sampler_refuses_an_empty_dataset():
    with pytest.raises(ValueError, match="num_samples=0"):
        RandomSampler([])


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "2", True, None])
def test_batch_sampler_names_a_batch_size_that_does_not_fit(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        BatchSampler(range(3), batch_size, False)


def test_batch_sampler_names_a_drop_last_that_is_no_bool():
    with pytest.raises(ValueError, match="drop_last=1"):
        BatchSampler(range(3), 2, 1)


def test_a_sampler_without_iter_says_so():
    with pytest.raises(NotImplementedError, match="Sampler must implement __iter__"):
        iter(Sampler())


@pytest.mark.oracle
def test_batches_are_those_of_pytorch():
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    for size, batch_size, drop_last in product(range(8), range(1, 6), (False, True)):
        ours = BatchSampler(range(size), batch_size, drop_last)
        theirs = torch_data.BatchSampler(range(size), batch_size, drop_last)
        assert list(ours) == list(theirs)
        assert len(ours) == len(theirs) == len(list(ours))


@pytest.mark.oracle
@pytest.mark.parametrize(
    "make",
    [
        lambda data: data.RandomSampler(range(3), replacement="no"),
        lambda data: data.RandomSampler(range(3), num_samples=0),
        lambda data: data.RandomSampler([]),
        lambda data: data.BatchSampler(range(3), 0, False),
        lambda data: data.BatchSampler(range(3), 1.5, False),
        lambda data: data.BatchSampler(range(3), 1, None),
    ],
)
def test_bad_arguments_raise_what_pytorch_raises(make):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    import dptrain.data

    with pytest.raises(Exception) as theirs:  # noqa: PT011
        make(torch_data)
    with pytest.raises(theirs.type) as ours:
        make(dptrain.data)
    assert str(ours.value) == str(theirs.value)


# ---- subsets and weights ----------------------------------------------------------------------------


def test_a_subset_comes_in_an_order_that_changes_and_can_be_repeated():
    sampler = SubsetRandomSampler([4, 8, 15, 16, 23, 42], generator=Generator())
    first, second = list(sampler), list(sampler)
    state = sampler.state_dict()
    assert sorted(first) == sorted(second) == [4, 8, 15, 16, 23, 42]
    assert first != second
    other = SubsetRandomSampler([4, 8, 15, 16, 23, 42])
    other.load_state_dict(state)
    assert list(other) == second
    assert len(other) == 6


def test_weights_are_probabilities():
    weights = [1, 0, 3, 6]
    sampler = WeightedRandomSampler(weights, 20000, generator=Generator())
    counts = np.bincount(list(sampler), minlength=4)
    assert len(sampler) == counts.sum() == 20000
    # Five standard deviations of a binomial count.
    expected = 20000 * np.array(weights) / 10
    assert (abs(counts - expected) <= 5 * np.sqrt(expected * (1 - expected / 20000))).all()


def test_weighted_without_replacement_repeats_nothing():
    sampler = WeightedRandomSampler([1, 0, 3, 6], 3, replacement=False, generator=Generator())
    for _ in range(20):
        assert sorted(sampler) == [0, 2, 3]
    for _ in range(20):  # as in PyTorch, what has no weight comes when nothing else is left
        assert list(WeightedRandomSampler([0, 1, 2], 3, False))[2] == 0
    heavy = WeightedRandomSampler([1, 1, 98], 1, replacement=False, generator=Generator())
    assert np.mean([next(iter(heavy)) == 2 for _ in range(200)]) > 0.9


@pytest.mark.oracle
@pytest.mark.parametrize(
    "args",
    [
        ([1, 2], 0),
        ([1, 2], 1.5),
        ([1, 2], True),
        ([1, 2], 2, 3),
        ([[1, 2]], 2),
        ([1, 2], 3, False),
        ([1, -2], 3),
        ([float("nan"), 1], 3),
        ([float("inf"), 1], 3),
        ([0, 0], 3),
        ([], 3),
        ("ab", 1),
    ],
    ids=str,
)
def test_bad_weights_raise_what_pytorch_raises(args):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        list(torch_data.WeightedRandomSampler(*args))
    with pytest.raises(theirs.type):
        list(WeightedRandomSampler(*args))


def test_batches_of_any_sampler():
    assert list(BatchSampler(iter([3, 1, 2]), 2, False)) == [[3, 1], [2]]
    weighted = WeightedRandomSampler([0, 1], 5)
    assert list(BatchSampler(weighted, 2, True)) == [[1, 1], [1, 1]]
    assert len(BatchSampler(weighted, 2, True)) == 2
