"""Reproducible mode: the same bits on any number of ranks, and sums that are exact."""

import math

import numpy as np
import pytest
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
from dptrain import nn, optim
from dptrain.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from dptrain.parallel import DistributedDataParallel
from dptrain.parallel.reproducible import exact_mean

SHARDS = 6


def net():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(48, 10),
        nn.Linear(10, 4),
    )


def batch(step, size=24):
    stream = np.random.default_rng(step)
    x = dptrain.tensor(stream.standard_normal((size, 1, 6, 6)).astype(np.float32))
    return x, dptrain.tensor(stream.integers(0, 4, size))


def train(comm, steps=5, first=0, state=None):
    model = DistributedDataParallel(net(), reproducible=SHARDS)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    if state is not None:
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        model.shard_steps = first
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        losses.append(model.shard_backward(nn.functional.cross_entropy, *batch(step)).item())
        optimizer.step()
    return losses, model.state_dict(), optimizer.state_dict()


def bits(result):
    losses, state, _ = result
    return [np.array(losses), *[v.numpy() for v in state.values()]]


def assert_equal_bits(one, other):
    for a, b in zip(bits(one), bits(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_says_where_random_numbers_stand(tmp_path):
    def run(comm, steps, folder=None):
        model = DistributedDataParallel(net(), reproducible=SHARDS)
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        objects, first = {"model": model, "optimizer": optimizer}, 0
        if folder is not None and latest_checkpoint(folder):
            first = load_checkpoint(folder, into=objects)["step"]
        for step in range(first, steps):
            optimizer.zero_grad()
            model.shard_backward(nn.functional.cross_entropy, *batch(step))
            optimizer.step()
        if folder is not None and comm.rank == 0:
            save_checkpoint(folder, {**objects, "step": steps}, steps)
        comm.barrier()
        return [], model.state_dict(), optimizer.state_dict()

    whole = on_ranks(2, run, 5)[0]
    on_ranks(3, run, 2, tmp_path)
    assert_equal_bits(on_ranks(1, run, 5, tmp_path)[0], whole)


def test_one_to_eight_ranks_give_the_same_bits():
    """With dropout and batch norm, in float32; also with more ranks than shards."""
    (alone,) = on_ranks(1, train)
    assert len(set(alone[0])) == 5
    for world_size in (2, 3, 4, 8):
        for found in on_ranks(world_size, train):
            assert_equal_bits(found, alone)


def test_a_run_goes_on_with_the_same_bits_on_another_number_of_ranks():
    (whole,) = on_ranks(1, train, 6)
    half = on_ranks(3, train, 3)[0]
    rest = on_ranks(2, train, 3, 3, half[1:])[1]
    assert half[0] + rest[0] == whole[0]
    for a, b in zip(rest[1].values(), whole[1].values(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_shards_draw_different_masks_in_every_step():
    def rank(comm):
        model = DistributedDataParallel(
            nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), reproducible=4
        )
        masks = []

        def loss(out):
            masks.append(tuple((out != 0).reshape(-1).tolist()))
            return out.sum()

        for _ in range(2):
            model.shard_backward(loss, dptrain.ones(64, 4))
        return masks

    (alone,) = on_ranks(1, rank)
    assert len(set(alone)) == 8
    first, second = on_ranks(2, rank)
    assert first[:2] + second[:2] + first[2:] + second[2:] == alone


def test_gradients_are_those_of_the_global_batch():
    def rank(comm):
        torso = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dptrain.float64)
        model = DistributedDataParallel(torso, reproducible=True)
        stream = np.random.default_rng(0)
        x, y = (
            dptrain.tensor(stream.standard_normal((16, 5))),
            dptrain.tensor(stream.integers(0, 3, 16)),
        )
        model.shard_backward(nn.functional.cross_entropy, x, y)
        loss = model.shard_backward(nn.functional.cross_entropy, x, y)  # adds up, as backward does
        ours = [p.grad.numpy() / 2 for p in model.parameters()]
        plain = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dptrain.float64)
        plain.load_state_dict(model.state_dict())
        wanted = nn.functional.cross_entropy(plain(x), y)
        wanted.backward()
        return ours, [p.grad.numpy() for p in plain.parameters()], loss.item() - wanted.item()

    for ours, wanted, difference in on_ranks(3, rank):
        assert abs(difference) < 1e-14
        for a, b in zip(ours, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_means_are_exact_to_the_last_bit_of_the_scale(dtype):
    """Summands over many decades that cancel, against math.fsum."""
    stream = np.random.default_rng(2)
    scale = 10.0 ** stream.uniform(-4, 4, (SHARDS, 200))
    terms = (stream.standard_normal((SHARDS, 200)) * scale).astype(dtype)
    terms[SHARDS // 2 :] = -terms[: SHARDS // 2] * dtype(1 + 2**-8)
    wanted = np.array([math.fsum(column) / SHARDS for column in terms.astype(np.float64).T])

    def rank(comm):
        mine = list(np.array_split(terms, comm.world_size)[comm.rank])
        return exact_mean([mine[::-1]], [terms[0]], SHARDS, comm, "test")[0]

    results = [r for n in (1, 2, 5) for r in on_ranks(n, rank)]
    for found in results:
        np.testing.assert_array_equal(found, results[0])
    step = float(np.abs(terms).max()) * 2.0**-58 + float(np.finfo(dtype).smallest_subnormal)
    error = np.abs(results[0].astype(np.float64) - wanted)
    assert (error <= SHARDS * step + np.abs(wanted) * float(np.finfo(dtype).eps)).all()


def test_values_that_are_not_finite_are_not_lost():
    def rank(comm):
        term = np.array([1.0, np.inf, np.nan, 2.0]) if comm.rank else np.array([3.0, 1.0, 1.0, 4.0])
        empty, zero = np.zeros((0, 2)), np.zeros(3)
        return exact_mean([[term], [empty], [zero]], [term, empty, zero], 2, comm, "test")

    for values, empty, zero in on_ranks(2, rank):
        np.testing.assert_array_equal(values, [2.0, np.nan, np.nan, 3.0])
        assert empty.shape == (0, 2)
        np.testing.assert_array_equal(zero, np.zeros(3))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(3))

    def forward(self, x):
        return self.layers[int(x[0, 0].item()) % 2](x)


def test_parameters_that_no_shard_used_have_no_gradient():
    def rank(comm):
        model = DistributedDataParallel(Branches(), reproducible=2)
        model.shard_backward(lambda out: out.mean(), dptrain.tensor([[0.0, 2.0], [1.0, 4.0]]))
        return [None if p.grad is None else p.grad.tolist() for p in model.parameters()]

    for world_size in (1, 2):
        for found in on_ranks(world_size, rank):
            assert found == [[[0.0, 1.0]], [[0.5, 2.0]], None]


def test_errors_are_named_and_leave_gradients_as_they_were():
    def made(reproducible=4):
        return DistributedDataParallel(nn.Linear(2, 1), reproducible=reproducible)

    def fails(comm):
        model = made()
        model.shard_backward(lambda out: out.sum(), dptrain.ones(4, 2))
        before = model.module.weight.grad.numpy().copy()
        with pytest.raises(ZeroDivisionError):
            model.shard_backward(lambda out: 1 / 0, dptrain.ones(4, 2))
        np.testing.assert_array_equal(model.module.weight.grad.numpy(), before)
        model.eval()
        assert model(dptrain.ones(3, 2)).shape == (3, 1)
        raise KeyError("to the end")

    cases = [
        (lambda comm: made()(dptrain.ones(2, 2)), RuntimeError, "made with reproducible=4"),
        (
            lambda comm: made(False).shard_backward(None, dptrain.ones(2, 2)),
            RuntimeError,
            "needs DistributedDataParallel(..., reproducible=",
        ),
        (
            lambda comm: made().shard_backward(None, dptrain.ones(6, 2)),
            ValueError,
            r"a multiple of reproducible=4 samples, got tensors of shapes [[6, 2]]",
        ),
        (
            lambda comm: made().shard_backward(None, dptrain.ones(4, 2), dptrain.ones(8)),
            ValueError,
            "[[4, 2], [8]]",
        ),
        (lambda comm: made().shard_backward(None, 3), TypeError, "tensors with a first dimension"),
        (lambda comm: made(-1), ValueError, "got -1"),
        (fails, KeyError, "to the end"),
    ]
    for function, kind, words in cases:
        (error,) = errors_on_ranks(1, function)
        assert isinstance(error, kind), error
        assert words in str(error)
