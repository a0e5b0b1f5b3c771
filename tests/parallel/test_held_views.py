"""Views and gradients that the user holds, where ranks average: they show what they would in one process."""

import numpy as np
import pytest
from thread_ranks import on_ranks

import dptrain
from dptrain import nn, optim
from dptrain.parallel import DistributedDataParallel, ZeroRedundancyOptimizer


def net():
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).to(dptrain.float64)


def loss_of(model, step):
    stream = np.random.default_rng(step)
    return model(dptrain.tensor(stream.standard_normal((4, 4)))).square().mean()


def trained(model, optimizer, seen, kept):
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        kept += [p.grad for p in model.parameters()]
        optimizer.step()
    return [t.numpy().copy() for t in (*seen, *kept)]


@pytest.mark.parametrize("sharded", [False, True])
def test_views_follow_and_gradients_stay_on_every_rank(sharded):
    """The views are on one rank only: what the ranks send each other does not depend on them."""

    def rank(comm):
        model = net()
        first, last = model[0].weight, model[2].bias
        seen = [first.detach().view(-1), last.detach()[1:]] if comm.rank == 0 else []
        wrapped = DistributedDataParallel(model)
        params = wrapped.parameters()
        optimizer = (
            ZeroRedundancyOptimizer(params, optim.Adam, lr=0.1)
            if sharded
            else optim.Adam(params, lr=0.1)
        )
        seen = [*seen, first.detach(), last.detach()]
        found = trained(wrapped, optimizer, seen, [])
        assert [t.data_ptr() for t in seen[-2:]] == [first.data_ptr(), last.data_ptr()]
        return found

    def alone():
        model = net()
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        found = trained(model, optimizer, [], [])
        first, last = model[0].weight.detach().numpy(), model[2].bias.detach().numpy()
        return [first.reshape(-1), last[1:], first, last, *found]

    results = on_ranks(2, rank)
    dptrain.manual_seed(0)
    expected = alone()
    for found, wanted in zip(results, (expected, expected[2:]), strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
