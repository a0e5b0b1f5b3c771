"""Gradients that only the rank that updates their parameters gets: the same numbers, less to move."""

import numpy as np
import pytest
from test_zero import OPTIMIZERS, net, same, values
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
from dptrain import nn, optim
from dptrain.optim.grad_scaler import GradScaler
from dptrain.parallel import DistributedDataParallel, ZeroRedundancyOptimizer
from dptrain.parallel.comm_hooks import allreduce_hook

DTYPE = dptrain.float64


def backward(model, rank, number):
    x = dptrain.tensor(np.random.default_rng([rank, number]).standard_normal((4, 4)))
    model(x).square().mean().backward()


def divided(**options):
    model = DistributedDataParallel(net(), **options)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.Adam, lr=0.01)
    optimizer.reduce_scatter(model)
    return model, optimizer


@pytest.mark.parametrize(
    ("kind", "options"), OPTIMIZERS[:3], ids=lambda v: getattr(v, "__name__", "")
)
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("cap", [None, 0])
def test_the_bits_are_those_of_the_undivided_optimizer(kind, options, world_size, cap):
    def rank(comm):
        model = DistributedDataParallel(net(), bucket_cap_mb=cap)
        plain = DistributedDataParallel(net(), bucket_cap_mb=cap)
        plain.load_state_dict(model.state_dict())
        optimizer = ZeroRedundancyOptimizer(model.parameters(), kind, **options)
        optimizer.reduce_scatter(model)
        whole = kind(plain.parameters(), **options)
        kept = []
        for number in range(5):
            for one, stepper in ((model, optimizer), (plain, whole)):
                stepper.zero_grad()
                with one.no_sync():
                    backward(one, comm.rank, number)
                backward(one, comm.rank, number + 100)
            kept.append(
                [
                    None if p.grad is None else np.array_equal(p.grad.numpy(), q.grad.numpy())
                    for p, q in zip(model.parameters(), plain.parameters(), strict=True)
                ]
            )
            optimizer.step()
            whole.step()
        return values(model), values(plain), kept

    found = on_ranks(world_size, rank)
    for ours, theirs, _ in found:
        assert same(ours, theirs)
    for by_rank in zip(*[kept for _, _, kept in found], strict=True):
        for owners in zip(*by_rank, strict=True):  # Each gradient is on one rank, the average.
            assert sorted(owners, key=lambda v: v is None) == [True, *[None] * (world_size - 1)]


def test_parameters_that_some_or_no_ranks_use():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(4)).to(DTYPE)

        def forward(self, x, which):
            return sum(self.layers[i](x) for i in which)

    used = [({0}, {0}), ({1}, {2}), ({0, 1, 2}, {2}), ({2}, {0, 1})]

    def rank(comm):
        model, plain = (DistributedDataParallel(Branches()) for _ in range(2))
        plain.load_state_dict(model.state_dict())
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.SGD, **options)
        optimizer.reduce_scatter(model)
        whole = optim.SGD(plain.parameters(), **options)
        for by_rank in used:
            for one, stepper in ((model, optimizer), (plain, whole)):
                stepper.zero_grad()
                one(dptrain.ones(1, 2, dtype=DTYPE), by_rank[comm.rank]).sum().backward()
                stepper.step()
        return values(model), values(plain)

    for ours, theirs in on_ranks(2, rank):
        assert same(ours, theirs)


@pytest.mark.parametrize("order", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("scattered", [True, False])
def test_clipping_by_the_norm_of_all_gradients(order, scattered):
    def rank(comm):
        model, plain = (DistributedDataParallel(net()) for _ in range(2))
        plain.load_state_dict(model.state_dict())
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.SGD, lr=0.1)
        if scattered:
            optimizer.reduce_scatter(model)
        whole = optim.SGD(plain.parameters(), lr=0.1)
        for one in (model, plain):
            backward(one, comm.rank, 0)
        norms = (
            optimizer.clip_grad_norm_(0.01, order).item(),
            nn.utils.clip_grad_norm_(plain.parameters(), 0.01, order).item(),
        )
        optimizer.step()
        whole.step()
        return norms, values(model), values(plain)

    for norms, ours, theirs in on_ranks(3, rank):
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_norm_that_is_not_finite_may_be_refused():
    def rank(comm):
        model, optimizer = divided()
        backward(model, comm.rank, 0)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.fill_(float("nan"))
        with pytest.raises(RuntimeError, match="non-finite"):
            optimizer.clip_grad_norm_(1.0, error_if_nonfinite=True)

    on_ranks(2, rank)


def test_only_what_has_to_moves():
    def rank(comm):
        model, _ = divided(bucket_cap_mb=0)
        calls = []
        comm.add_listener(lambda work: calls.append((work.kind, work.nbytes)))
        backward(model, comm.rank, 0)
        return calls, sum(p.numel() for p in model.parameters()) * 8

    for calls, nbytes in on_ranks(2, rank):
        assert sum(n for kind, n in calls if kind == "reduce") >= nbytes
        assert sum(n for kind, n in calls if kind == "all_reduce") < 100  # who used what
        assert {kind for kind, _ in calls} == {"reduce", "all_reduce"}


def _clip(model, optimizer):
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def _unscale(model, optimizer):
    scaler = GradScaler(init_scale=2.0, device="cpu")
    scaler.scale(dptrain.ones(1))
    scaler.unscale_(optimizer)


def _again(model, optimizer):
    backward(model, 0, 1)


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (_clip, "clip them with the optimizer's clip_grad_norm_"),
        (_unscale, "divided among the ranks"),
        (_again, "still holds the average of an earlier backward"),
    ],
)
def test_what_would_give_other_numbers_on_each_rank_is_refused(misuse, words):
    def rank(comm):
        model, optimizer = divided()
        backward(model, comm.rank, 0)
        misuse(model, optimizer)

    for error in errors_on_ranks(2, rank):
        assert isinstance(error, RuntimeError)
        assert words in str(error) or "closed its communicator" in str(error)


@pytest.mark.parametrize("how", ["hook", "weighted", "reproducible", "other parameters"])
def test_models_that_average_in_another_way_are_refused(how):
    def rank(comm):
        options = {how: True} if how in ("weighted", "reproducible") else {}
        model = DistributedDataParallel(net(), **options)
        if how == "hook":
            model.register_comm_hook(None, allreduce_hook)
        params = list(model.parameters())[: -1 if how == "other parameters" else None]
        optimizer = ZeroRedundancyOptimizer(params, optim.SGD, lr=0.1)
        with pytest.raises(ValueError, match="reduce_scatter: "):
            optimizer.reduce_scatter(model)

    on_ranks(1, rank)
