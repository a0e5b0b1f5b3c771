"""Random numbers: reproducible, restorable, separate by purpose and shard."""

import contextvars

import numpy as np
import pytest

import dptrain
from dptrain.core import random
from dptrain.core.ops.activation import Dropout


def masks(shard, seed=3):
    def draw():
        dptrain.manual_seed(seed)
        random.set_shard(shard)
        return Dropout.apply(dptrain.ones(64), 0.5).tolist()

    return contextvars.copy_context().run(draw)


def test_one_seed_gives_one_sequence():
    draws = []
    for _ in range(2):
        dptrain.manual_seed(7)
        draws.append(
            (dptrain.rand(3).tolist(), dptrain.randn(3).tolist(), dptrain.randperm(9).tolist())
        )
    assert draws[0] == draws[1]
    dptrain.manual_seed(8)
    assert dptrain.rand(3).tolist() != draws[0][0]


def test_state_restores_the_sequence():
    dptrain.manual_seed(1)
    dptrain.rand(5)
    Dropout.apply(dptrain.ones(3), 0.5)
    state = dptrain.get_rng_state()
    expected = (dptrain.rand(4).tolist(), Dropout.apply(dptrain.ones(50), 0.5).tolist())
    dptrain.manual_seed(99)
    dptrain.set_rng_state(state)
    assert (dptrain.rand(4).tolist(), Dropout.apply(dptrain.ones(50), 0.5).tolist()) == expected


@pytest.mark.parametrize("sizes", [(), (1,), (3,), (8,), (7, 2), (5, 4, 3, 6)])
@pytest.mark.parametrize("dtype", [dptrain.float32, dptrain.float64])
def test_another_shards_state_restores_the_place_in_this_shards_stream(sizes, dtype):
    """A checkpoint holds rank 0's state; dropout of the other ranks goes on as if never interrupted."""

    def run(shard, restored=None):
        def draw():
            random.set_shard(shard)
            dptrain.manual_seed(3)
            if restored is None:
                for size in sizes:
                    Dropout.apply(dptrain.ones(size, dtype=dtype), 0.5)
            else:
                dptrain.manual_seed(8)
                dptrain.set_rng_state(restored)
            state = dptrain.get_rng_state()
            return state, [
                Dropout.apply(dptrain.ones(n, dtype=dtype), 0.5).tolist() for n in (9, 64)
            ]

        return contextvars.copy_context().run(draw)

    state, first = run(0)
    assert run(0, state)[1] == first
    _, second = run(1)
    assert run(1, state)[1] == second != first


def test_foreign_state_is_refused():
    with pytest.raises(RuntimeError, match="get_state"):
        dptrain.set_rng_state(dptrain.zeros(4, dtype=dptrain.uint8))


def test_dropout_masks_follow_the_shard_and_the_users_draws_do_not():
    assert masks(0) == masks(0)
    assert masks(0) != masks(1)
    dptrain.manual_seed(3)
    alone = dptrain.rand(3).tolist()
    dptrain.manual_seed(3)
    Dropout.apply(dptrain.ones(10), 0.5)
    assert dptrain.rand(3).tolist() == alone


def test_dropout_drops_alike_in_both_precisions():
    dptrain.manual_seed(0)
    single = Dropout.apply(dptrain.ones(100), 0.3)
    dptrain.manual_seed(0)
    double = Dropout.apply(dptrain.ones(100, dtype=dptrain.float64), 0.3)
    assert ((single > 0) == (double > 0)).all()


def test_generator_objects_are_independent():
    g = dptrain.Generator().manual_seed(5)
    expected = dptrain.rand(3, generator=g).tolist()
    dptrain.rand(10)
    g.manual_seed(5)
    assert dptrain.rand(3, generator=g).tolist() == expected


def test_draws_have_the_distributions_they_claim():
    dptrain.manual_seed(0)
    u, n = dptrain.rand(100_000).numpy(), dptrain.randn(100_000).numpy()
    assert u.min() >= 0
    assert u.max() < 1
    # Five standard errors of each estimate.
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 1e5)
    assert abs(n.mean()) < 5 / np.sqrt(1e5)
    assert abs(n.var() - 1) < 5 * np.sqrt(2 / 1e5)
    counts = np.bincount(dptrain.randint(0, 4, (40_000,)).numpy(), minlength=4)
    assert abs(counts - 10_000).max() < 5 * np.sqrt(40_000 * 3 / 16)
    assert sorted(dptrain.randperm(50).tolist()) == list(range(50))
