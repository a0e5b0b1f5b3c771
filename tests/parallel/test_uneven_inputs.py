"""Ranks with different numbers and sizes of batches: what is averaged, and that nothing hangs."""

from itertools import pairwise

import numpy as np
import pytest
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
from dptrain import nn, optim
from dptrain.comm.errors import CommunicatorError
from dptrain.data import DataLoader, TensorDataset
from dptrain.parallel import DistributedDataParallel
from dptrain.parallel.comm_hooks import allreduce_hook
from dptrain.parallel.join import Join, Joinable, JoinHook

DTYPE = dptrain.float64
pytestmark = pytest.mark.timeout(60)


def samples(count):
    stream = np.random.default_rng(11)
    return stream.standard_normal((count, 4)), stream.integers(0, 3, count)


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(DTYPE)


def loss_of(model, x, y):
    return nn.functional.cross_entropy(model(dptrain.tensor(x)), dptrain.tensor(y))


def grads(module):
    return [p.grad.numpy().copy() for p in module.parameters()]


def values(module):
    return [p.detach().numpy().copy() for p in module.parameters()]


# ---- averages over samples ----------------------------------------------------------------------


@pytest.mark.parametrize("hook", [None, "allreduce"])
@pytest.mark.parametrize(
    "cuts",
    [[[9]], [[4], [5]], [[1], [6], [2]], [[2, 3], [4]], [[1, 1, 2], [3], [2]], [[5], [0], [4]]],
)
def test_weighted_gradients_are_those_of_the_whole_batch(cuts, hook):
    """`cuts`: for each rank the sizes of its micro-batches; they sum up to 9."""
    x, y = samples(9)
    starts = np.cumsum([0, *[size for rank in cuts for size in rank]])
    spans = [slice(a, b) for a, b in pairwise(starts)]

    def rank(comm):
        model = DistributedDataParallel(net(), weighted=True, bucket_cap_mb=0)
        if hook:
            model.register_comm_hook(None, allreduce_hook)
        before = sum(len(r) for r in cuts[: comm.rank])
        mine = spans[before : before + len(cuts[comm.rank])]
        found = []
        for _ in range(2):
            model.zero_grad()
            for i, span in enumerate(mine):
                with model.accumulate(i, len(mine)):
                    loss_of(model, x[span], y[span]).backward()
            found.append(grads(model))
        plain = model.module
        plain.zero_grad()
        alone = nn.Sequential(*plain)
        copied = net()
        copied.load_state_dict(alone.state_dict())
        loss_of(copied, x, y).backward()
        return found, grads(copied)

    for found, alone in on_ranks(len(cuts), rank):
        for step in found:
            for a, b in zip(step, alone, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_a_weight_may_be_told():
    """Tokens in place of samples: the mean over tokens of all ranks."""

    def rank(comm):
        model = DistributedDataParallel(nn.Linear(1, 1, bias=False).to(DTYPE), weighted=True)
        tokens = (2, 6)[comm.rank]
        model.weigh(tokens)
        (model(dptrain.ones(1, 1, dtype=DTYPE)) * (comm.rank + 1)).sum().backward()
        return grads(model)[0].item()

    assert on_ranks(2, rank) == [(2 * 1 + 6 * 2) / 8] * 2


def test_weights_that_mean_nothing_are_refused():
    def again(comm):
        model = DistributedDataParallel(nn.Linear(1, 1), weighted=True)
        for _ in range(2):
            model(dptrain.ones(1, 1)).sum().backward()

    def no_batch(comm):
        class Constant(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(dptrain.ones(1))

            def forward(self, scale):
                return self.w * scale

        model = DistributedDataParallel(Constant(), weighted=True)
        model(2.0).sum().backward()

    cases = [
        (again, RuntimeError, "still holds the average of an earlier backward"),
        (no_batch, RuntimeError, r"model.weigh(count)"),
        (
            lambda comm: DistributedDataParallel(nn.Linear(1, 1)).weigh(3),
            RuntimeError,
            "needs DistributedDataParallel(..., weighted=True)",
        ),
        (
            lambda comm: DistributedDataParallel(nn.Linear(1, 1), weighted=True).weigh(-1),
            ValueError,
            "finite number of 0 or more, got -1",
        ),
    ]
    for function, kind, words in cases:
        (error,) = errors_on_ranks(1, function)
        assert isinstance(error, kind)
        assert words in str(error)


@pytest.mark.parametrize("counts", [(7, 3), (0, 5), (2, 9, 4)])
def test_an_epoch_of_weighted_batches_is_that_of_one_process_with_the_same_global_batches(counts):
    """Every step's global batch is what the ranks still have; short last batches included."""
    x, y = samples(sum(counts))
    starts = np.cumsum([0, *counts])
    size = 2

    def rank(comm):
        model = DistributedDataParallel(net(), weighted=True)
        optimizer = optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        own = slice(starts[comm.rank], starts[comm.rank + 1])
        data = TensorDataset(dptrain.tensor(x[own]), dptrain.tensor(y[own]))
        for a, b in DataLoader(data, batch_size=size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(a), b).backward()
            optimizer.step()
        return values(model)

    def alone(comm):
        model = net()
        optimizer = optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        for step in range(-(-max(counts) // size)):
            rows = np.concatenate(
                [
                    np.arange(s + step * size, min(s + (step + 1) * size, s + c))
                    for s, c in zip(starts, counts, strict=False)
                    if step * size < c
                ]
            )
            optimizer.zero_grad()
            loss_of(model, x[rows], y[rows]).backward()
            optimizer.step()
        return values(model)

    (wanted,) = on_ranks(1, alone)
    for found in on_ranks(len(counts), rank):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)


# ---- a DataLoader's pass that ends early ---------------------------------------------------------


@pytest.mark.parametrize("counts", [(0, 3), (4, 0, 2), (0, 0)])
def test_a_rank_without_a_single_batch_waits_for_the_others(counts):
    def rank(comm):
        model = DistributedDataParallel(net())
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        x, y = samples(counts[comm.rank])
        loader = DataLoader(TensorDataset(dptrain.tensor(x), dptrain.tensor(y)), batch_size=1)
        for _ in range(2):
            for a, b in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(a), b).backward()
                optimizer.step()
        return values(model)

    results = on_ranks(len(counts), rank)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_accumulation_that_does_not_come_to_its_end():
    counts = (5, 0, 1)

    def rank(comm):
        model = DistributedDataParallel(nn.Linear(4, 1).to(DTYPE))
        steps = 0
        for step, x in enumerate(
            DataLoader(dptrain.tensor(samples(counts[comm.rank])[0]), batch_size=1)
        ):
            with model.accumulate(step, every=2) as update:
                model(x).square().sum().backward()
            if update:
                with dptrain.no_grad():
                    for p in model.parameters():
                        p -= 0.1 * p.grad
                model.zero_grad()
                steps += 1
        return values(model), steps

    results = on_ranks(3, rank)
    assert [steps for _, steps in results] == [2, 0, 0]
    for other, _ in results[1:]:
        for a, b in zip(results[0][0], other, strict=True):
            np.testing.assert_array_equal(a, b)


# ---- join ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_initial_world_size", [True, False])
@pytest.mark.parametrize("hooked", [False, True])
def test_join_divides_by_all_ranks_or_by_those_with_data(by_initial_world_size, hooked):
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(1, 1, bias=False).to(DTYPE))
        if hooked:
            model.register_comm_hook(None, allreduce_hook)
        found = []
        with model.join(divide_by_initial_world_size=by_initial_world_size):
            for step in range(comm.rank + 1):
                model.zero_grad()
                model(dptrain.full((1, 1), step + 1.0, dtype=DTYPE)).sum().backward()
                found.append(grads(model)[0].item())
        model.zero_grad()
        model(dptrain.ones(1, 1, dtype=DTYPE)).sum().backward()  # after it: the usual mean
        return found, grads(model)[0].item()

    results = on_ranks(3, rank)
    divisors = (3, 3, 3) if by_initial_world_size else (3, 2, 1)
    for r, (found, after) in enumerate(results):
        wanted = [(step + 1) * (3 - step) / divisors[step] for step in range(r + 1)]
        np.testing.assert_allclose(found, wanted, rtol=1e-15)
        assert after == 1.0


def test_after_join_all_ranks_have_what_the_last_one_had():
    def rank(comm):
        model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(DTYPE))
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with model.join():
            for _ in range(3 - comm.rank):
                optimizer.zero_grad()
                x, _ = samples(4)
                model(dptrain.tensor(x)).square().mean().backward()
                optimizer.step()
        moments = [s["momentum_buffer"].numpy() for s in optimizer.state_dict()["state"].values()]
        return values(model) + [b.numpy() for b in model.buffers()] + moments

    results = on_ranks(3, rank)
    assert results[0][6] == 3  # batches that the first rank, the last one, has tracked
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_early_termination_is_raised_on_every_rank():
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(1, 1))
        done = 0
        try:
            with model.join(throw_on_early_termination=True):
                for _ in range(2 + comm.rank):
                    model(dptrain.ones(1, 1)).sum().backward()
                    done += 1
        except RuntimeError as error:
            return done, str(error)
        return done, ""

    for r, (done, text) in enumerate(on_ranks(3, rank)):
        assert done == 2
        assert text.startswith(f"[rank {r}/3] Detected at least one rank that exhausted inputs")
    assert [t for _, t in on_ranks(1, rank)] == [""]


def test_join_may_be_switched_off():
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(1, 1))
        with model.join(enable=False):
            for _ in range(2):
                model(dptrain.ones(1, 1)).sum().backward()
        return True

    assert all(on_ranks(2, rank))


class Counter(Joinable):
    """PyTorch's example of a joinable of the user's own: counts the steps of all ranks."""

    def __init__(self, comm):
        self.comm, self.total, self.last = comm, 0, None

    def step(self, mine=1):
        if mine:
            Join.notify_join_context(self)
        t = np.array([mine])
        self.comm.all_reduce(t, async_op=False)
        self.total += int(t[0])

    def join_hook(self, **kwargs):
        counter, grace = self, kwargs.get("grace", 0)

        class Hook(JoinHook):
            def main_hook(self):
                counter.step(0)

            def post_hook(self, is_last_joiner):
                counter.last = is_last_joiner
                counter.total += grace

        return Hook()

    @property
    def join_device(self):
        return dptrain.device("cpu")

    @property
    def join_process_group(self):
        return self.comm


def test_a_joinable_of_the_users_own():
    def rank(comm):
        counter = Counter(comm)
        with Join([counter], grace=100):
            for _ in range(comm.rank + 2):
                counter.step()
        return counter.total, counter.last

    assert on_ranks(3, rank) == [(109, False), (109, False), (109, True)]


@pytest.mark.parametrize("by_all", [True, False])
def test_a_model_and_a_joinable_of_the_users_own_in_one_loop(by_all):
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(1, 1, bias=False).double())
        counter, seen = Counter(comm), []
        both = Join([model, counter], divide_by_initial_world_size=by_all, grace=100)
        with both:
            for _ in range(comm.rank + 1):
                model.zero_grad()
                model(dptrain.full((1, 1), 6.0 * (comm.rank + 1)).double()).sum().backward()
                seen.append(model.module.weight.grad.item())
                counter.step()
        return seen, counter.total

    # Of the ranks' 6, 12 and 18 the first leaves after a step, and the second after two.
    sums, counts = [36, 30, 18], [3, 2, 1]
    wanted = [total / (3 if by_all else n) for total, n in zip(sums, counts, strict=True)]
    for r, (seen, total) in enumerate(on_ranks(3, rank)):
        assert seen == pytest.approx(wanted[: r + 1], rel=1e-12)
        assert total == 106


def test_contexts_that_cannot_work_are_refused():
    class Silent(Counter):
        def join_hook(self, **kwargs):
            return JoinHook()

    def mixed(comm):
        Join([Silent(comm), Counter(comm)])

    def groups(comm):
        Join([Counter(comm), Counter(comm.split(0))])

    for function, words in (
        (mixed, "Silent are answered by the communicator"),
        (groups, "multiple process groups"),
        (lambda comm: Join([]), "at least one joinable"),
    ):
        for error in errors_on_ranks(1, function):
            assert isinstance(error, ValueError)
            assert words in str(error)


def test_an_error_in_the_loop_is_the_users_and_nothing_hangs():
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(1, 1))
        with model.join():
            for step in range(3):
                if comm.rank == 1 and step == 1:
                    raise KeyError("of the user")
                model(dptrain.ones(1, 1)).sum().backward()

    errors = errors_on_ranks(2, rank)
    assert isinstance(errors[1], KeyError)
    assert isinstance(errors[0], CommunicatorError)
    assert "rank 1" in str(errors[0])


def test_a_collective_of_the_users_own_beside_join_is_an_error_that_names_both():
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(1, 1))
        with model.join():
            for _ in range(comm.rank + 1):
                model(dptrain.ones(1, 1)).sum().backward()
                comm.all_reduce(np.ones(1), name="metrics", async_op=False)

    for error in errors_on_ranks(2, rank):
        assert isinstance(error, CommunicatorError)
        assert "metrics" in str(error)
        assert "join" in str(error)


@pytest.mark.parametrize("by_initial_world_size", [True, False])
def test_join_around_loops_over_loaders_of_different_lengths(by_initial_world_size):
    """The end of a pass and the end of the context both wait; the context decides what divides."""

    def rank(comm):
        model = DistributedDataParallel(nn.Linear(1, 1, bias=False).to(DTYPE))
        found = []
        with model.join(divide_by_initial_world_size=by_initial_world_size):
            for _ in range(2):
                data = TensorDataset(dptrain.ones(comm.rank + 1, 1, dtype=DTYPE))
                for (x,) in DataLoader(data, batch_size=1):
                    model.zero_grad()
                    model(x).sum().backward()
                    found.append(grads(model)[0].item())
        return found

    first, second = on_ranks(2, rank)
    assert first == [1.0, 1.0]
    assert second == [1.0, 0.5, 1.0, 0.5] if by_initial_world_size else second == [1.0] * 4
