"""DistributedDataParallel over thread ranks: what the gradients, parameters and errors are."""

import numpy as np
import pytest
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
from dptrain import nn, optim
from dptrain.comm.communicator import ReduceOp
from dptrain.comm.errors import CollectiveMismatchError
from dptrain.data import DataLoader, TensorDataset
from dptrain.parallel import DistributedDataParallel


def mlp(dtype=dptrain.float64):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def inputs(count=12):
    stream = np.random.default_rng(5)
    return stream.standard_normal((count, 6)), stream.integers(0, 3, count)


def gradients(model):
    return [None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()]


def test_gradients_are_those_of_the_whole_batch():
    x, y = inputs()

    def rank(comm):
        model = DistributedDataParallel(mlp())
        mine = slice(comm.rank * 12 // comm.world_size, (comm.rank + 1) * 12 // comm.world_size)
        loss = nn.functional.cross_entropy(model(dptrain.tensor(x[mine])), dptrain.tensor(y[mine]))
        loss.backward()
        return gradients(model)

    (alone,) = on_ranks(1, rank)
    for world_size in (2, 3, 4):
        for found in on_ranks(world_size, rank):
            for a, b in zip(alone, found, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_parameters_and_buffers_come_from_rank_0():
    def rank(comm):
        dptrain.manual_seed(comm.rank)
        model = mlp()
        model.register_buffer("seen", dptrain.full((2,), float(comm.rank)))
        model[0].bias.requires_grad = False
        wrapped = DistributedDataParallel(model)
        return [v.numpy().copy() for v in wrapped.state_dict().values()]

    results = on_ranks(3, rank)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_buckets_are_launched_during_backward_and_in_order():
    """Many small buckets: all but the last are under way before the walk reaches the first layer."""

    def rank(comm):
        model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(6)])
        events = []
        model[0].weight.register_post_accumulate_grad_hook(
            lambda p: events.append("first layer done")
        )
        ddp = DistributedDataParallel(model, bucket_cap_mb=0.001)
        call = comm.all_reduce

        def recorded(array, op=ReduceOp.SUM, **options):
            events.append(options["name"])
            return call(array, op, **options)

        comm.all_reduce = recorded
        ddp(dptrain.ones(2, 16)).sum().backward()
        return events

    for events in on_ranks(2, rank):
        names = [e for e in events if e != "first layer done"]
        assert names == [f"DDP(Sequential) bucket {i}" for i in range(len(names))]
        assert len(names) == 6
        assert events.index("first layer done") >= 5


class Branches(nn.Module):
    """Uses one of two layers, and never the third."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(3))
        self.to(dptrain.float64)

    def forward(self, x, which):
        return self.layers[which](x)


def test_unused_parameters_are_settled_in_the_same_step():
    def rank(comm):
        model = DistributedDataParallel(Branches())
        found = []
        for _ in range(2):  # a second step starts from the slots of the first
            model.zero_grad()
            model(dptrain.ones(1, 2, dtype=dptrain.float64), comm.rank).sum().backward()
            found.append(gradients(model))
        return found

    for steps in on_ranks(2, rank):
        for used_by_0, used_by_1, unused in steps:
            np.testing.assert_array_equal(used_by_0, [[0.5, 0.5]])
            np.testing.assert_array_equal(used_by_1, [[0.5, 0.5]])
            assert unused is None


def test_unused_parameters_are_not_moved_by_momentum_or_decay():
    def rank(comm):
        model = DistributedDataParallel(Branches())
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        before = model.module.layers[2].weight.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            model(dptrain.ones(1, 2, dtype=dptrain.float64), comm.rank).sum().backward()
            optimizer.step()
        return (model.module.layers[2].weight.detach() == before).all().item()

    assert all(on_ranks(2, rank))


@pytest.mark.parametrize("optimizer_first", [False, True])
def test_no_sync_accumulates_and_the_order_of_construction_does_not_matter(optimizer_first):
    x, y = inputs()

    def rank(comm, micro_batches):
        model = mlp()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9) if optimizer_first else None
        ddp = DistributedDataParallel(model)
        optimizer = optimizer or optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
        mine = np.arange(12).reshape(comm.world_size, micro_batches, -1)[comm.rank]
        for _ in range(3):
            optimizer.zero_grad()
            for i, rows in enumerate(mine):
                last = i == micro_batches - 1

                def step(rows=rows):
                    out = ddp(dptrain.tensor(x[rows]))
                    (
                        nn.functional.cross_entropy(out, dptrain.tensor(y[rows])) / micro_batches
                    ).backward()

                if last:
                    step()
                else:
                    with ddp.no_sync():
                        step()
            optimizer.step()
        return [p.detach().numpy().copy() for p in model.parameters()]

    (alone,) = on_ranks(1, rank, 1)
    for world_size, micro_batches in ((1, 3), (2, 1), (2, 2), (3, 2)):
        for found in on_ranks(world_size, rank, micro_batches):
            for a, b in zip(alone, found, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_two_backwards_in_one_step_average_the_sum():
    def rank(comm):
        model = DistributedDataParallel(Branches())
        for which in (0, 1):
            (
                model(dptrain.ones(1, 2, dtype=dptrain.float64), which) * (comm.rank + 1)
            ).sum().backward()
        return gradients(model)

    for first, second, _ in on_ranks(2, rank):
        np.testing.assert_array_equal(first, [[1.5, 1.5]])
        np.testing.assert_array_equal(second, [[1.5, 1.5]])


class RankDataset(TensorDataset):
    """Gives each rank its own number of samples."""

    def __init__(self, comm, counts):
        stream = np.random.default_rng(comm.rank)
        x = stream.standard_normal((counts[comm.rank], 6))
        super().__init__(
            dptrain.tensor(x), dptrain.tensor(stream.integers(0, 3, counts[comm.rank]))
        )


@pytest.mark.parametrize("counts", [(2, 5), (5, 2), (4, 1, 3), (3, 3)])
def test_ranks_that_run_out_of_batches_are_waited_for_and_end_equal(counts):
    def rank(comm):
        ddp = DistributedDataParallel(mlp())
        optimizer = optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
        loader = DataLoader(RankDataset(comm, counts), batch_size=1)
        for _ in range(3):
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(ddp(x), y).backward()
                optimizer.step()
        state = optimizer.state_dict()["state"]
        values = [p.detach().numpy().copy() for p in ddp.parameters()]
        return values + [np.asarray(s["momentum_buffer"].numpy()).copy() for s in state.values()]

    results = on_ranks(len(counts), rank)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_averages_divide_by_the_ranks_that_had_data():
    """Rank 1 has one batch: the second step's gradient is rank 0's alone, not half of it."""

    def rank(comm):
        model = nn.Linear(6, 1, bias=False).to(dptrain.float64)
        with dptrain.no_grad():
            model.weight.zero_()
        ddp = DistributedDataParallel(model)
        found = []
        for x, _ in DataLoader(RankDataset(comm, (2, 1)), batch_size=1):
            ddp.zero_grad()
            ddp(x).sum().backward()
            found.append(ddp.module.weight.grad.numpy().copy() - x.numpy())
        return found

    differences = on_ranks(2, rank)[0]
    assert abs(differences[0]).max() > 0.01
    np.testing.assert_array_equal(differences[1], np.zeros((1, 6)))


def test_an_evaluation_pass_on_one_rank_waits_for_nobody():
    def rank(comm):
        ddp = DistributedDataParallel(mlp())
        x, y = inputs(4)
        nn.functional.cross_entropy(ddp(dptrain.tensor(x)), dptrain.tensor(y)).backward()
        if comm.rank == 0:
            with dptrain.no_grad():
                return sum(
                    len(ddp(b))
                    for (b,) in DataLoader(TensorDataset(dptrain.tensor(x)), batch_size=2)
                )
        return 4

    assert on_ranks(2, rank) == [4, 4]


def test_state_dict_has_no_prefix_and_loads_both_kinds():
    def rank(comm):
        ddp = DistributedDataParallel(mlp())
        state = ddp.state_dict()
        assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        changed = {f"module.{k}": v + 1 for k, v in state.items()}
        ddp.load_state_dict(changed)
        return (ddp.module[0].bias.detach() == changed["module.0.bias"]).all().item()

    assert all(on_ranks(2, rank))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda r: nn.Linear(2, 3 + r),
            r"differ: rank 0 has parameter 'weight' float32\[3, 2\].*rank 1 has parameter 'weight' float32\[4, 2\]",
        ),
        (lambda r: nn.Linear(2, 3, bias=r == 0), "parameter 'bias'.*rank 1 has no such entry"),
        (
            lambda r: nn.Linear(2, 3).to((dptrain.float32, dptrain.float64)[r]),
            r"float32\[3, 2\].*float64\[3, 2\]",
        ),
        (
            lambda r: nn.Linear(2, 3).requires_grad_(r == 0),
            "requires_grad=True.*requires_grad=False",
        ),
    ],
)
def test_different_models_are_named_on_every_rank(build, words):
    found = errors_on_ranks(2, lambda comm: DistributedDataParallel(build(comm.rank)))
    for error in found:
        assert isinstance(error, RuntimeError)
        with pytest.raises(RuntimeError, match=words):
            raise error


def test_another_collective_in_the_step_is_an_error_that_names_both():
    def rank(comm):
        ddp = DistributedDataParallel(mlp())
        x, y = inputs(4)
        if comm.rank == 1:
            comm.all_reduce(np.ones(3), name="metrics").wait()
        else:
            nn.functional.cross_entropy(ddp(dptrain.tensor(x)), dptrain.tensor(y)).backward()

    for error in errors_on_ranks(2, rank):
        assert isinstance(error, CollectiveMismatchError)
        assert "metrics" in str(error)
        assert "DDP(Sequential) bucket 0" in str(error)


def test_use_without_a_group_or_without_gradients_is_named():
    with pytest.raises(RuntimeError, match="init_process_group"):
        DistributedDataParallel(mlp())
    (error,) = errors_on_ranks(1, lambda comm: DistributedDataParallel(mlp().requires_grad_(False)))
    assert "doesn't have any parameter" in str(error)
    (error,) = errors_on_ranks(1, lambda comm: DistributedDataParallel(mlp(), device_ids=[0]))
    assert "device_ids [0]" in str(error)


def test_a_converted_parameter_is_named():
    def rank(comm):
        ddp = DistributedDataParallel(mlp())
        ddp.module.to(dptrain.float32)
        ddp(dptrain.ones(1, 6)).sum().backward()

    for error in errors_on_ranks(1, rank):
        assert "convert the module first" in str(error)


def test_communication_is_measured():
    def rank(comm):
        ddp = DistributedDataParallel(mlp())
        for _ in range(3):
            ddp(dptrain.ones(2, 6, dtype=dptrain.float64)).sum().backward()
        return ddp.times

    for times in on_ranks(2, rank):
        assert times.steps == 3
        assert times.communication_s > 0
        assert 0 <= times.overlapped <= 1
