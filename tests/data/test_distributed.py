"""DistributedSampler: which samples each rank gets."""

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.comm.thread import run_ranks
from dptrain.data import DistributedSampler

SIZES = st.integers(0, 40)
RANKS = st.integers(1, 6)


def shares(size, ranks, *, epoch=None, **kwargs):
    """What every rank gets in one pass."""
    samplers = [DistributedSampler(range(size), ranks, rank, **kwargs) for rank in range(ranks)]
    for sampler in samplers:
        if epoch is not None:
            sampler.set_epoch(epoch)
    result = [list(sampler) for sampler in samplers]
    assert [len(share) for share in result] == [len(sampler) for sampler in samplers]
    return result


def interleaved(parts):
    """The one order that was dealt out to `parts`."""
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


@given(SIZES, RANKS, st.booleans(), st.integers(0, 5))
def test_padding_covers_everything_in_equal_shares(size, ranks, shuffle, seed):
    parts = shares(size, ranks, shuffle=shuffle, seed=seed)
    assert len({len(part) for part in parts}) == 1
    order = interleaved(parts)
    assert sorted(order[:size]) == list(range(size))
    assert len(order) - size < ranks
    # The padding is the front of the order, repeated as often as necessary.
    assert order[size:] == (order[:size] * ranks)[: len(order) - size]


@given(SIZES, RANKS, st.booleans())
def test_drop_last_gives_equal_shares_without_repetition(size, ranks, shuffle):
    parts = shares(size, ranks, shuffle=shuffle, drop_last=True)
    order = interleaved(parts)
    assert len({len(part) for part in parts}) == 1
    assert len(set(order)) == len(order) == size // ranks * ranks


@given(SIZES, RANKS, st.booleans())
def test_without_padding_every_sample_comes_exactly_once(size, ranks, shuffle):
    parts = shares(size, ranks, shuffle=shuffle, pad=False)
    assert sorted(interleaved(parts)) == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_order_does_not_depend_on_the_number_of_ranks():
    orders = [interleaved(shares(24, ranks, seed=3, epoch=2)) for ranks in (1, 2, 3, 4)]
    assert all(order == orders[0] for order in orders)


def test_epochs_and_seeds_give_orders_of_their_own():
    orders = {
        (seed, epoch): tuple(shares(30, 1, seed=seed, epoch=epoch)[0])
        for seed, epoch in product(range(4), range(4))
    }
    assert len(set(orders.values())) == len(orders)  # also (0, 1) and (1, 0)


def test_an_epoch_is_repeatable():
    assert shares(30, 2, seed=1, epoch=5) == shares(30, 2, seed=1, epoch=5)


def test_first_places_are_uniform_over_the_samples():
    counts = Counter(shares(4, 1, epoch=epoch)[0][0] for epoch in range(4000))
    # Binomial with mean 1,000 and standard deviation 27: six of them.
    assert all(abs(counts[i] - 1000) < 165 for i in range(4))


def test_replicas_and_rank_come_from_the_default_communicator():
    def facts(communicator):
        sampler = DistributedSampler(range(10), shuffle=False)
        return sampler.num_replicas, sampler.rank, list(sampler)

    assert run_ranks(3, facts) == [
        (3, 0, [0, 3, 6, 9]),
        (3, 1, [1, 4, 7, 0]),
        (3, 2, [2, 5, 8, 1]),
    ]
    alone = DistributedSampler(range(10))
    assert (alone.num_replicas, alone.rank) == (1, 0)


def test_several_started_ranks_without_a_group_are_no_silent_worlds_of_one(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"\[rank 1/2\].*started 2.*init_process_group"):
        DistributedSampler(range(10))
    assert list(DistributedSampler(range(4), 2, 1, shuffle=False)) == [1, 3]


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"num_replicas": 2, "rank": 2}, r"Invalid rank 2, .* \[0, 1\]"),
        ({"num_replicas": 2, "rank": -1}, "Invalid rank -1"),
        ({"num_replicas": 0, "rank": 0}, "num_replicas=0"),
        ({"num_replicas": 1.5, "rank": 0}, "num_replicas=1.5"),
        (
            {"num_replicas": 2, "rank": 0, "drop_last": True, "pad": False},
            "drop_last=True.*pad=False",
        ),
    ],
)
def test_bad_arguments_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        DistributedSampler(range(10), **kwargs)


def test_state_restores_seed_and_epoch_on_another_number_of_ranks():
    saved = DistributedSampler(range(20), 2, 0, seed=4)
    saved.set_epoch(3)
    restored = [DistributedSampler(range(20), 4, rank, seed=0) for rank in range(4)]
    for sampler in restored:
        sampler.load_state_dict(saved.state_dict())
    assert interleaved([list(s) for s in restored]) == interleaved(shares(20, 2, seed=4, epoch=3))
    with pytest.raises(ValueError, match=r"shuffle=True.*shuffle=False"):
        DistributedSampler(range(20), 2, 0, shuffle=False).load_state_dict(saved.state_dict())


@given(SIZES, RANKS, RANKS, st.integers(0, 50), st.sampled_from(["pad", "drop", "exact"]))
def test_what_is_left_of_an_epoch_is_dealt_out_to_another_number_of_ranks(
    size, before, after, consumed, mode
):
    kwargs = {"drop_last": mode == "drop", "pad": mode != "exact", "seed": 1}
    whole = interleaved(shares(size, before, **kwargs))
    parts = []
    for rank in range(after):
        sampler = DistributedSampler(range(size), after, rank, **kwargs)
        sampler.samples_consumed = consumed
        parts.append(list(sampler))
        assert sampler.samples_consumed == 0  # the next pass is a whole one
        assert len(list(sampler)) == len(sampler)
    rest = interleaved(parts)
    left = max(0, size - consumed)
    dealt = {"pad": -(-left // after), "drop": left // after}.get(mode, 0) * after or (
        left if mode == "exact" else 0
    )
    assert len(rest) == dealt
    common = min(len(rest), max(0, len(whole) - consumed), left)
    assert rest[:common] == whole[consumed : consumed + common]
    if before == after and consumed % before == 0:
        assert rest == whole[consumed:]


def test_choosing_another_epoch_begins_it_at_its_first_sample():
    sampler = DistributedSampler(range(10), 1, 0, shuffle=False)
    sampler.samples_consumed = 4
    sampler.set_epoch(0)
    assert list(sampler) == [4, 5, 6, 7, 8, 9]
    sampler.samples_consumed = 4
    sampler.set_epoch(1)
    assert list(sampler) == list(range(10))


@pytest.mark.oracle
def test_shares_are_those_of_pytorch():
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    for size, ranks, drop_last in product(range(1, 24), range(1, 8), (False, True)):
        for rank in range(ranks):
            kwargs = {"num_replicas": ranks, "rank": rank, "shuffle": False, "drop_last": drop_last}
            theirs = torch_data.DistributedSampler(range(size), **kwargs)
            ours = DistributedSampler(range(size), **kwargs)
            assert list(ours) == list(theirs)
            assert (len(ours), ours.num_samples, ours.total_size) == (
                len(theirs),
                theirs.num_samples,
                theirs.total_size,
            )
