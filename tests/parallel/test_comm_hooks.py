"""Communication hooks: what they see, what the built-in ones make of it, PowerSGD step by step."""

import pickle

import numpy as np
import pytest
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
import dptrain.distributed as dist
from dptrain import nn, optim
from dptrain.data import DataLoader, TensorDataset
from dptrain.futures import Future, collect_all, wait_all
from dptrain.parallel import DistributedDataParallel
from dptrain.parallel.comm_hooks import (
    allreduce_hook,
    bf16_compress_hook,
    bf16_compress_wrapper,
    fp16_compress_hook,
    fp16_compress_wrapper,
    noop_hook,
)
from dptrain.parallel.power_sgd import PowerSGDState, batched_powerSGD_hook, powerSGD_hook


def net(dtype=dptrain.float64):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5, bias=False)).to(dtype)


def test_a_hook_finds_the_gradients_and_nothing_between_them():
    def run(comm):
        model = DistributedDataParallel(net())
        seen = []

        def signs(state, bucket):  # one-bit: the mean of the absolute values is the step
            buffer = bucket.buffer()
            seen.append((buffer.numel(), [g.numpy().copy() for g in bucket.gradients()]))
            return allreduce_hook(None, GradBucketOf(bucket, buffer.sign() * buffer.abs().mean()))

        model.register_comm_hook(None, signs)
        got = gradient(model, mine(comm))
        return got, seen

    class GradBucketOf:
        def __init__(self, bucket, buffer):
            self.index, self.buffer = bucket.index, lambda: buffer

    results = on_ranks(2, run)
    sums = 0
    for _, seen in results:
        ((count, parts),) = seen
        flat = np.concatenate([part.reshape(-1) for part in parts])
        assert count == flat.size == 6 * 8 + 8 + 8 * 5
        sums = sums + np.sign(flat) * np.abs(flat).mean()
    shapes = [(5, 8), (8,), (8, 6)]
    expected = np.split(sums / 2, np.cumsum([40, 8]))
    for got, _ in results:
        for g, e, shape in zip(reversed(got), expected, shapes, strict=True):
            np.testing.assert_allclose(g, e.reshape(shape), rtol=1e-12)


def mine(comm, step=0, dtype=np.float64):
    stream = np.random.default_rng((comm.rank, step))
    return dptrain.tensor(stream.standard_normal((3, 6)).astype(dtype))


def gradient(model, x):
    model.zero_grad()
    model(x).square().mean().backward()
    return [p.grad.numpy().copy() for p in model.parameters()]


@pytest.mark.parametrize("cap", [None, 0])
def test_a_hook_sees_every_bucket_once_in_order(cap):
    def rank(comm):
        model = DistributedDataParallel(net(), bucket_cap_mb=cap)
        seen = []

        def hook(state, bucket):
            assert state == "state"
            gradients, parameters = bucket.gradients(), bucket.parameters()
            assert [g.shape for g in gradients] == [p.shape for p in parameters]
            before = [g.numpy().copy() for g in gradients]
            bucket.buffer().mul_(2)
            for g, b in zip(gradients, before, strict=True):
                np.testing.assert_array_equal(g.numpy(), 2 * b)
            seen.append((bucket.index(), bucket.is_last(), len(parameters)))
            return allreduce_hook(None, bucket)

        model.register_comm_hook("state", hook)
        doubled = gradient(model, mine(comm))
        plain = DistributedDataParallel(net())
        plain.load_state_dict(model.state_dict())
        return seen, doubled, gradient(plain, mine(comm))

    for seen, doubled, plain in on_ranks(2, rank):
        count = len(seen)
        assert count == (1 if cap is None else 3)
        assert [s[:2] for s in seen] == [(i, i == count - 1) for i in range(count)]
        assert sum(s[2] for s in seen) == 3
        for a, b in zip(doubled, plain, strict=True):
            np.testing.assert_array_equal(a, 2 * b)


HOOKS = {
    "allreduce": (allreduce_hook, 0),
    "fp16": (fp16_compress_hook, 2e-3),
    "bf16": (bf16_compress_hook, 2e-2),
    "fp16 wrapper": (fp16_compress_wrapper(allreduce_hook), 2e-3),
    "bf16 wrapper": (bf16_compress_wrapper(allreduce_hook), 2e-2),
}


@pytest.mark.parametrize("name", list(HOOKS))
@pytest.mark.parametrize("world_size", [1, 3])
def test_built_in_hooks_average(name, world_size):
    hook, tolerance = HOOKS[name]

    def rank(comm):
        model, plain = DistributedDataParallel(net()), DistributedDataParallel(net())
        plain.load_state_dict(model.state_dict())
        model.register_comm_hook(None, hook)
        return gradient(model, mine(comm)), gradient(plain, mine(comm))

    results = on_ranks(world_size, rank)
    for hooked, plain in results:
        for a, b, first in zip(hooked, plain, results[0][0], strict=True):
            np.testing.assert_array_equal(a, first)  # the same on every rank
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * abs(b).max())
    if tolerance:
        assert any((a != b).any() for a, b in zip(*results[0], strict=True)), "nothing was rounded"


def test_the_noop_hook_leaves_gradients_local():
    def rank(comm):
        model = DistributedDataParallel(net())
        model.register_comm_hook(None, noop_hook)
        found = gradient(model, mine(comm))
        with model.no_sync():
            return found, gradient(model, mine(comm))

    results = on_ranks(2, rank)
    for found, local in results:
        for a, b in zip(found, local, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (results[0][0][0] != results[1][0][0]).any()


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(3))

    def forward(self, x, which):
        return self.layers[which](x)


def test_unused_parameters_are_settled_with_a_hook_too():
    def rank(comm):
        model = DistributedDataParallel(Branches())
        model.register_comm_hook(None, allreduce_hook)
        model(dptrain.ones(1, 2), comm.rank).sum().backward()
        return [None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()]

    for one, two, none in on_ranks(2, rank):
        np.testing.assert_array_equal(np.concatenate([one, two]), np.full((2, 2), 0.5))
        assert none is None


@pytest.mark.parametrize("hook", [allreduce_hook, fp16_compress_hook, "power"])
def test_ranks_that_run_out_of_data_are_left_out_of_hooked_averages(hook):
    def rank(comm):
        model = DistributedDataParallel(net())
        state = PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.1)
        model.register_comm_hook(state, powerSGD_hook) if hook == "power" else (
            model.register_comm_hook(None, hook)
        )
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        stream = np.random.default_rng(comm.rank)
        data = TensorDataset(dptrain.tensor(stream.standard_normal((6 - 4 * comm.rank, 6))))
        for (x,) in DataLoader(data, batch_size=1):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return [p.detach().numpy().copy() for p in model.parameters()]

    first, second = on_ranks(2, rank)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- PowerSGD --------------------------------------------------------------------------------------


def orthonormal(matrix):
    q, r = np.linalg.qr(matrix)
    return q * np.sign(np.diag(r))  # as Gram-Schmidt has it


def direct(gradients, errors, q):
    """One step of algorithm 1 and 2 of the paper over the matrices of all ranks."""
    inputs = [g + e for g, e in zip(gradients, errors, strict=True)]
    q = orthonormal(q)
    p = orthonormal(sum(m @ q for m in inputs) / len(inputs))
    q = sum(m.T @ p for m in inputs) / len(inputs)
    found = p @ q.T
    return found, [m - found for m in inputs], q


@pytest.mark.parametrize(("rank_of_matrix", "world_size"), [(1, 2), (2, 3), (4, 2)])
def test_power_sgd_is_the_papers_algorithm(rank_of_matrix, world_size):
    steps, begin = 5, 2

    def rank(comm):
        model = DistributedDataParallel(net())
        state = PowerSGDState(
            None, rank_of_matrix, start_powerSGD_iter=begin, min_compression_rate=0.01
        )
        model.register_comm_hook(state, powerSGD_hook)
        found, local, state_q = [], [], {}
        for step in range(steps):
            x = mine(comm, step)
            with model.no_sync():
                local.append(gradient(model, x))
            found.append(gradient(model, x))
            if step == begin:
                state_q = {k: v.copy() for k, v in state.q_memory_dict.items()}
        return found, local, state_q, state.compression_stats()

    results = on_ranks(world_size, rank)
    # The layout is reversed: place 0 in the bucket is the last weight, place 1 the first.
    for parameter, place in ((0, 1), (2, 0)):
        first = [r[1][begin][parameter] for r in results]
        # The random start is not prescribed, so the first step's Q is taken from the state; it has
        # to be what averaging makes of some orthonormal P.
        q = results[0][2][0, place]
        approximation = results[0][0][begin][parameter]
        mean = sum(first) / world_size
        p = approximation @ q @ np.linalg.pinv(q.T @ q)
        np.testing.assert_allclose(p.T @ p, np.eye(p.shape[1]), atol=1e-9)
        np.testing.assert_allclose(q, mean.T @ p, atol=1e-9)
        errors = [g - approximation for g in first]
        for step in range(begin + 1, steps):
            local = [r[1][step][parameter] for r in results]
            wanted, errors, q = direct(local, errors, q)
            for r in results:
                np.testing.assert_allclose(r[0][step][parameter], wanted, rtol=1e-8, atol=1e-10)
    for step in range(steps):  # vectors, and all before the start, are averaged as they are
        mean_bias = sum(r[1][step][1] for r in results) / world_size
        for r in results:
            np.testing.assert_allclose(r[0][step][1], mean_bias, rtol=1e-12, atol=1e-15)
    for parameter in (0, 1, 2):
        mean = sum(r[1][0][parameter] for r in results) / world_size
        np.testing.assert_allclose(results[0][0][0][parameter], mean, rtol=1e-12, atol=1e-15)
    rate, before, after = results[0][3]
    r = rank_of_matrix
    assert before == (steps - begin) * (48 + 8 + 40)
    assert after == (steps - begin) * ((6 + 8) * r + 8 + (8 + 5) * r)
    assert rate == before / after


def test_full_rank_power_sgd_is_the_average():
    def rank(comm):
        model = DistributedDataParallel(net())
        plain = DistributedDataParallel(net())
        plain.load_state_dict(model.state_dict())
        state = PowerSGDState(None, 8, start_powerSGD_iter=2, min_compression_rate=0)
        model.register_comm_hook(state, powerSGD_hook)
        return [(gradient(model, mine(comm, s)), gradient(plain, mine(comm, s))) for s in range(4)]

    for steps in on_ranks(2, rank):
        for ours, plain in steps:
            for a, b in zip(ours, plain, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_a_batched_bucket_of_full_rank_is_the_average():
    """96 elements in a square of 10 x 10; the bucket's padding makes it larger."""

    def rank(comm):
        model, plain = DistributedDataParallel(net()), DistributedDataParallel(net())
        plain.load_state_dict(model.state_dict())
        state = PowerSGDState(None, 16, start_powerSGD_iter=2)
        model.register_comm_hook(state, batched_powerSGD_hook)
        found = [(gradient(model, mine(comm, s)), gradient(plain, mine(comm, s))) for s in range(4)]
        return found, state.total_numel_before_compression

    for steps, count in on_ranks(2, rank):
        assert count >= 2 * 96
        for ours, plain in steps:
            for a, b in zip(ours, plain, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [{}, {"warm_start": False}, {"use_error_feedback": False}, {"matrix_approximation_rank": 2}],
)
@pytest.mark.parametrize("wrapper", [None, fp16_compress_wrapper, bf16_compress_wrapper])
def test_power_sgd_trains_a_small_task(options, wrapper):
    """Linear regression: rank 1 of a 6 x 5 gradient is enough to bring the loss near that of SGD."""

    def rank(comm):
        teacher = np.random.default_rng(3).standard_normal((6, 5))
        model = DistributedDataParallel(nn.Linear(6, 5, bias=False))
        hook = powerSGD_hook if wrapper is None else wrapper(powerSGD_hook)
        state = PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=1.0, **options)
        model.register_comm_hook(state, hook)
        optimizer = optim.SGD(model.parameters(), lr=0.15)
        losses = []
        for step in range(150):
            x = np.random.default_rng((comm.rank, step)).standard_normal((16, 6))
            out = model(dptrain.tensor(x).float())
            loss = nn.functional.mse_loss(out, dptrain.tensor(x @ teacher).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses[0], np.mean(losses[-10:]), model.module.weight.detach().numpy().copy()

    results = on_ranks(2, rank)
    for first, last, weight in results:
        assert last < 0.02 * first
        np.testing.assert_array_equal(weight, results[0][2])


def test_power_sgd_refuses_to_start_too_early_and_survives_pickling():
    with pytest.raises(ValueError, match="Expect `start_powerSGD_iter` > 1"):
        PowerSGDState(None, start_powerSGD_iter=1)
    state = PowerSGDState(
        "group", start_powerSGD_iter=0, use_error_feedback=False, warm_start=False
    )
    state.iter = 7
    twin = pickle.loads(pickle.dumps(state))
    assert (twin.iter, twin.process_group, twin.warm_start) == (7, None, False)


# ---- errors ----------------------------------------------------------------------------------------


def test_bad_hooks_are_named():
    def register(hook, count=1):
        def rank(comm):
            model = DistributedDataParallel(net())
            for _ in range(count):
                model.register_comm_hook(None, hook)
            gradient(model, mine(comm))

        return errors_on_ranks(2, rank)

    def annotated(state, bucket: int):
        return allreduce_hook(None, bucket)

    def returns_the_bucket(state, bucket):
        return bucket

    def returns_too_little(state, bucket):
        future = Future()
        future.set_result(dptrain.zeros(3))
        return future

    def fails_later(state, bucket):
        return allreduce_hook(None, bucket).then(lambda done: 1 / 0)

    cases = [
        (register(3), TypeError, "must be callable"),
        (register(annotated), ValueError, "bucket annotation should be dist.GradBucket"),
        (register(allreduce_hook, 2), RuntimeError, "can only be called once"),
        (
            register(returns_the_bucket),
            TypeError,
            "returns_the_bucket must return a dptrain.futures.Future",
        ),
        (register(returns_too_little), ValueError, "elements, like the bucket, got 3"),
        (register(fails_later), ZeroDivisionError, "division"),
    ]
    for errors, kind, words in cases:
        for error in errors:
            assert isinstance(error, kind)
            assert words in str(error)


# ---- futures ---------------------------------------------------------------------------------------


def test_futures_chain_and_carry_errors():
    future = Future()
    doubled = future.then(lambda done: 2 * done.value())
    failed = doubled.then(lambda done: done.value() / 0)
    seen = []
    future.add_done_callback(lambda done: seen.append(done.value()))
    assert not future.done()
    with pytest.raises(RuntimeError, match="before there was a value"):
        future.value()
    future.set_result(3)
    assert (future.wait(), doubled.wait(), seen) == (3, 6, [3])
    with pytest.raises(ZeroDivisionError):
        failed.wait()
    with pytest.raises(ZeroDivisionError):
        failed.then(lambda done: done.value()).wait()
    with pytest.raises(RuntimeError, match="only once"):
        future.set_result(4)
    with pytest.raises(TypeError, match="not an Exception"):
        Future().set_exception(3)
    assert wait_all([future, doubled]) == [3, 6]
    assert collect_all([future, failed]).wait() == [future, failed]
    with pytest.raises(ZeroDivisionError):
        wait_all([future, failed])


def test_a_driven_future_runs_where_it_is_waited_for():
    ran = []
    future = Future.driven(lambda: ran.append("work") or 5)
    chained = future.then(lambda done: ran.append("then") or done.value() + 1)
    assert ran == []
    assert chained.wait() == 6
    assert ran == ["work", "then"]
    assert future.wait() == 5


def test_a_hook_in_pytorchs_words():
    """Futures of collectives over tensors, chained with `then`, over a group of some ranks."""

    def rank(comm):
        group = dist.new_group([0, 1])
        if comm.rank == 2:
            return None
        model = DistributedDataParallel(net(), process_group=group, bucket_cap_mb=0)
        plain = DistributedDataParallel(net(), process_group=group)
        plain.load_state_dict(model.state_dict())

        def hook(state, bucket: dist.GradBucket) -> Future:
            work = dist.all_reduce(bucket.buffer(), group=state, async_op=True)
            size = dist.get_world_size(state)
            return work.get_future().then(lambda done: done.value()[0].div_(size))

        model.register_comm_hook(group, hook)
        return gradient(model, mine(comm)), gradient(plain, mine(comm))

    results = on_ranks(3, rank)
    for hooked, plain in results[:2]:
        for a, b in zip(hooked, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
