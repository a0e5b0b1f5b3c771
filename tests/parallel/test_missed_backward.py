"""A rank whose backward does not reach the module: an error that names it, or numbers that are right."""

import time

import numpy as np
import pytest
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
from dptrain import nn, optim
from dptrain.comm.errors import CollectiveMismatchError
from dptrain.parallel import DistributedDataParallel

DTYPE = dptrain.float64
STEP = "step of an optimizer, but no backward of this rank since the last"


def made():
    dptrain.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(3, 2).to(DTYPE))
    return model, optim.SGD(model.parameters(), lr=0.1)


def batch(seed):
    return dptrain.tensor(np.random.default_rng(seed).standard_normal((4, 3)))


@pytest.mark.parametrize("how", ["another loss", "no backward", "no forward"])
@pytest.mark.parametrize("at_step", [0, 2])
def test_an_omission_ends_the_step_on_every_rank_and_names_both_sides(how, at_step):
    def rank(comm):
        model, optimizer = made()
        for step in range(4):
            optimizer.zero_grad()
            if comm.rank == 1 and step == at_step:
                if how != "no forward":
                    model(batch(0))
                if how == "another loss":
                    dptrain.zeros(1, requires_grad=True).backward()
            else:
                model(batch(step)).sum().backward()
            optimizer.step()

    began_s = time.monotonic()
    errors = errors_on_ranks(2, rank)
    assert time.monotonic() - began_s < 10  # Some milliseconds; but machines are shared.
    for number, (error, other) in enumerate(zip(errors, ("bucket 0", STEP), strict=True)):
        assert isinstance(error, CollectiveMismatchError)
        assert "this rank called" in str(error)
        assert f"rank {1 - number} called" in str(error)
        assert other in str(error)
        assert __file__ in str(error)


def test_a_rank_may_leave_out_a_batch_with_its_step():
    """Its next batch takes the place of that one; the replicas stay equal."""

    def rank(comm):
        model, optimizer = made()
        for seed in [1, 2, 3] if comm.rank == 0 else [None, 4, None, 5, 6]:
            if seed is None:
                continue
            optimizer.zero_grad()
            model(batch(seed)).square().sum().backward()
            optimizer.step()
        return [p.detach().numpy().copy() for p in model.parameters()]

    found = on_ranks(2, rank)
    dptrain.manual_seed(0)
    plain = nn.Linear(3, 2).to(DTYPE)
    optimizer = optim.SGD(plain.parameters(), lr=0.1)
    for seeds in ((1, 4), (2, 5), (3, 6)):
        optimizer.zero_grad()
        (sum(plain(batch(seed)).square().sum() for seed in seeds) / 2).backward()
        optimizer.step()
    for values in found:
        for value, wanted in zip(values, plain.parameters(), strict=True):
            np.testing.assert_allclose(value, wanted.detach().numpy(), rtol=1e-12)


def test_steps_without_a_backward_on_every_rank_are_no_error():
    def rank(comm):
        model, optimizer = made()
        optimizer.step()
        second = optim.SGD(model.parameters(), lr=0.1)
        model(batch(comm.rank)).sum().backward()
        for one in (optimizer, second, second):
            one.step()
        with model.no_sync():  # Steps of this rank alone.
            for _ in range(comm.rank):
                model(batch(0)).sum().backward()
                optimizer.step()
        model(batch(0)).sum().backward()
        optimizer.step()

    assert errors_on_ranks(2, rank) == [None, None]


def test_a_step_with_a_closure_makes_its_backward_itself():
    def rank(comm):
        model, optimizer = made()
        calls = []
        comm.add_listener(lambda work: calls.append(work.name))

        def closure():
            optimizer.zero_grad()
            loss = model(batch(comm.rank)).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.step(closure=closure)
        return calls

    for calls in on_ranks(2, rank):
        assert not [name for name in calls if name and STEP in name]


def test_a_dropped_wrapper_leaves_no_hook_behind():
    from dptrain.optim import hooks

    def rank(comm):
        before = len(hooks._all_step_pre_hooks)
        model, optimizer = made()
        during = len(hooks._all_step_pre_hooks)
        del model
        optimizer.step()
        return during - before, len(hooks._all_step_pre_hooks) - before

    assert on_ranks(1, rank) == [(1, 0)]
