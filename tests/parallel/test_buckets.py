"""The bucket plan: a pure function that covers every parameter once, in order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.parallel.buckets import MIB, plan_buckets

SIZES = st.lists(st.integers(1, 4_000_000), min_size=1, max_size=40)


def bounds(sizes):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@given(SIZES, st.one_of(st.none(), st.floats(0.01, 30)))
def test_every_parameter_is_in_one_bucket_in_order(sizes, cap):
    plan = plan_buckets(bounds(sizes), 4, cap)
    assert [i for b in plan for i in range(b.first, b.last)] == list(range(len(sizes)))
    assert plan[0].start == 0
    assert plan[-1].stop == sum(sizes)
    assert all(a.stop == b.start for a, b in itertools.pairwise(plan))


@given(SIZES, st.floats(0.01, 30))
def test_a_bucket_is_closed_once_it_reaches_the_cap(sizes, cap):
    plan = plan_buckets(bounds(sizes), 4, cap)
    for bucket in plan:
        without_last = (bounds(sizes)[bucket.last - 1][0] - bucket.start) * 4
        assert without_last < cap * MIB
    for bucket in plan[:-1]:
        assert (bucket.stop - bucket.start) * 4 >= cap * MIB


def test_first_and_last_bucket_are_small_by_default():
    sizes = [200_000] * 100  # 76 MiB of float32
    plan = plan_buckets(bounds(sizes), 4)
    nbytes = [(b.stop - b.start) * 4 for b in plan]
    assert nbytes[0] <= 1.8 * MIB
    assert nbytes[-1] <= 1 * MIB
    assert max(nbytes) <= 26 * MIB
    assert len(plan) == 5


def test_small_models_are_one_bucket():
    assert len(plan_buckets(bounds([1000, 10, 20_000, 10]), 4)) == 1


@pytest.mark.parametrize("cap", [-1, [], [1, -2]])
def test_a_cap_that_is_none_is_named(cap):
    with pytest.raises(ValueError, match="bucket_cap_mb must be 0 or more"):
        plan_buckets([(0, 1)], 4, cap)


def test_a_cap_of_0_gives_every_parameter_its_own_bucket():
    assert len(plan_buckets(bounds([10, 10, 10]), 4, 0)) == 3


def test_a_list_of_caps_is_one_for_each_bucket_and_the_last_for_the_rest():
    """Parameters of 0.4 MiB: a bucket is closed by the first that reaches its cap."""
    plan = plan_buckets(bounds([100_000] * 12), 4, [0.3, 1.0, 0.7])
    assert [b.last - b.first for b in plan] == [1, 3, 2, 2, 2, 2]
