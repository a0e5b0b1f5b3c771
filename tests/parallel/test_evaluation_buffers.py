"""Evaluation has the first rank's buffers, as in PyTorch, and asks no other rank for them."""

import copy

import numpy as np
from thread_ranks import on_ranks

import dptrain
from dptrain import nn
from dptrain.parallel import DistributedDataParallel


def trained(comm, **options):
    """A step with different data on every rank, so that running statistics differ."""
    layers = (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = DistributedDataParallel(nn.Sequential(*layers).double(), **options)
    x = np.random.default_rng(comm.rank).standard_normal((6, 3)) + comm.rank
    model(dptrain.tensor(x)).square().sum().backward()
    return model


def evaluated(model):
    model.eval()
    with dptrain.no_grad():
        found = model(dptrain.ones(2, 3).double()).numpy().copy()
    model.train()
    return found


def test_a_rank_evaluates_with_the_first_ranks_statistics_even_alone():
    def rank(comm):
        model = trained(comm)
        own = model.module[1].running_mean.numpy().copy()
        # Each rank as often as it likes: no call here waits for another rank.
        found = [evaluated(model) for _ in range(comm.rank)] or [evaluated(model)]
        return own, found[0], model.module[1].running_mean.numpy().copy()

    results = on_ranks(3, rank)
    for own, output, after in results[1:]:
        assert not np.allclose(own, results[0][0])
        np.testing.assert_array_equal(after, results[0][0])
        np.testing.assert_array_equal(output, results[0][1])


def test_what_was_loaded_or_changed_since_stays():
    def rank(comm):
        model = trained(comm)
        state = {k: dptrain.full_like(v, 2) for k, v in model.state_dict().items()}
        model.load_state_dict(state)
        evaluated(model)
        loaded = model.module[1].running_var.tolist()
        model = trained(comm)
        model.module[1].running_mean.fill_(7.0)
        evaluated(model)
        return loaded, model.module[1].running_mean.tolist(), model.module[1].running_var.tolist()

    results = on_ranks(2, rank)
    for loaded, changed, untouched in results:
        assert loaded == [2.0] * 4
        assert changed == [7.0] * 4
        assert untouched == results[0][2]


def test_copies_and_ranks_that_keep_their_own_are_left_alone():
    def rank(comm):
        model = trained(comm)
        twin = copy.deepcopy(model)
        evaluated(twin)
        apart = trained(comm, forward_sync_buffers=False)
        before = apart.module[1].running_mean.tolist()
        evaluated(apart)
        own = twin.module[1].running_mean.tolist() == model.module[1].running_mean.tolist()
        return own, before == apart.module[1].running_mean.tolist(), before

    results = on_ranks(2, rank)
    assert all(own and kept for own, kept, _ in results)
    assert results[0][2] != results[1][2]
