"""SyncBatchNorm over thread ranks equals BatchNorm over the whole batch on one process."""

import numpy as np
import pytest
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
from dptrain import nn
from dptrain.data import DataLoader, TensorDataset
from dptrain.parallel import DistributedDataParallel

LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
CHANNELS = 3


def batch(dims, count=9, dtype=np.float64):
    stream = np.random.default_rng(dims)
    shape = (count, CHANNELS, 2, 3, 2)[:dims]
    x = (stream.standard_normal(shape) * 3 + 5).astype(dtype)
    return x, stream.standard_normal(shape).astype(dtype)


def filled(layer):
    """The layer in float64 with parameters that are not the initial ones."""
    layer = layer.to(dptrain.float64)
    with dptrain.no_grad():
        if layer.weight is not None:
            layer.weight.copy_(dptrain.tensor([0.5, 1.5, -2.0], dtype=dptrain.float64))
            layer.bias.copy_(dptrain.tensor([1.0, -1.0, 0.25], dtype=dptrain.float64))
    return layer


def run(layer, x, weights, steps=2):
    """Output, gradients and averages after some steps; the loss weighs every output differently."""
    found = []
    for _ in range(steps):
        layer.zero_grad()
        t = dptrain.tensor(x, requires_grad=True)
        out = layer(t)
        (out * dptrain.tensor(weights)).sum().backward()
        found.append((out.detach().numpy(), t.grad.numpy()))
    affine = [] if layer.weight is None else [layer.weight.grad.numpy(), layer.bias.grad.numpy()]
    tracked = [
        v.numpy()
        for v in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
        if v is not None
    ]
    return found, affine, tracked


@pytest.mark.parametrize("dims", [2, 3, 4, 5])
@pytest.mark.parametrize("cuts", [(9,), (4, 5), (1, 6, 2), (2, 0, 6, 1)])
def test_equals_batch_norm_over_the_whole_batch(dims, cuts):
    x, weights = batch(dims)
    outs, affine, tracked = run(filled(LAYERS[dims](CHANNELS)), x, weights)
    ends = np.cumsum([0, *cuts])

    def rank(comm):
        mine = slice(ends[comm.rank], ends[comm.rank + 1])
        return run(filled(nn.SyncBatchNorm(CHANNELS)), x[mine], weights[mine])

    results = on_ranks(len(cuts), rank)
    for step, (out, grad) in enumerate(outs):
        for which, whole in enumerate((out, grad)):
            parts = np.concatenate([r[0][step][which] for r in results])
            np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-12)
    for i, whole in enumerate(affine):  # each rank has its share of these sums
        np.testing.assert_allclose(sum(r[1][i] for r in results), whole, rtol=1e-12, atol=1e-12)
    for r in results:
        for found, whole in zip(r[2], tracked, strict=True):
            np.testing.assert_allclose(found, whole, rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"affine": False},
        {"momentum": None},
        {"track_running_stats": False},
        {"eps": 0.1, "momentum": 0.7},
    ],
)
def test_options_mean_what_they_mean_for_batch_norm(options):
    x, weights = batch(4)
    outs, affine, tracked = run(filled(nn.BatchNorm2d(CHANNELS, **options)), x, weights)

    def rank(comm):
        mine = slice(comm.rank * 4, 4 + comm.rank * 5)
        return run(filled(nn.SyncBatchNorm(CHANNELS, **options)), x[mine], weights[mine])

    results = on_ranks(2, rank)
    np.testing.assert_allclose(
        np.concatenate([r[0][1][1] for r in results]), outs[1][1], rtol=1e-12, atol=1e-12
    )
    for r in results:
        for found, whole in zip(r[2], tracked, strict=True):
            np.testing.assert_allclose(found, whole, rtol=1e-12)
    assert len(results[0][1]) == len(affine)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_large_offsets_do_not_cancel(dtype):
    """A mean far from 0 against the spread: what E[x^2] - E[x]^2 gets wrong."""
    x, _ = batch(2, 64)
    kind = getattr(dptrain, dtype)
    offset = {"float32": 10000.0, "float16": 300.0, "bfloat16": 30.0}[dtype]
    stored = dptrain.tensor(x + offset).to(kind)
    exact = stored.to(dptrain.float64).numpy()
    wanted = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)

    def rank(comm):
        mine = stored[comm.rank * 20 : 20 + comm.rank * 44]
        return nn.SyncBatchNorm(CHANNELS, affine=False)(mine).to(dptrain.float64).numpy()

    found = np.concatenate(on_ranks(2, rank))
    tolerance = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(found, wanted, atol=tolerance)


def test_evaluation_uses_the_averages_and_asks_nobody():
    x, _ = batch(4)

    def rank(comm):
        layer = filled(nn.SyncBatchNorm(CHANNELS)).eval()
        if comm.rank == 1:
            return None  # a collective would name the missing rank
        plain = filled(nn.BatchNorm2d(CHANNELS)).eval()
        return (layer(dptrain.tensor(x)) - plain(dptrain.tensor(x))).abs().max().item()

    assert on_ranks(2, rank)[0] == 0.0


def test_conversion_keeps_parameters_averages_and_mode():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1),
        nn.BatchNorm2d(3, eps=0.2, momentum=0.3),
        nn.Sequential(nn.BatchNorm1d(3, affine=False)),
    )
    model[1].running_mean.fill_(2.0)
    model.eval()
    old, state = model[1], model.state_dict()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model, process_group="a group")
    assert converted is model
    assert type(model[1]) is type(model[2][0]) is nn.SyncBatchNorm
    assert model[1].weight is old.weight
    assert model[1].running_mean is old.running_mean
    assert (model[1].eps, model[1].momentum, model[1].training) == (0.2, 0.3, False)
    assert model[1].process_group == "a group"
    assert list(model.state_dict()) == list(state)
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(2)), nn.SyncBatchNorm)


@pytest.mark.oracle
def test_text_and_state_are_pytorchs():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    for options in ({}, {"affine": False}, {"track_running_stats": False, "bias": False}):
        ours, theirs = nn.SyncBatchNorm(4, **options), torch.nn.SyncBatchNorm(4, **options)
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("counts", [(3, 1), (1, 2, 4)])
def test_ranks_that_run_out_of_data_count_as_empty_batches(counts):
    """With DistributedDataParallel: the steps that fewer ranks make use those ranks' batches alone."""
    x, _ = batch(2, 12)

    def train(comm, norm, rows):
        model = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), norm).to(dptrain.float64)
        ddp = DistributedDataParallel(model)
        dataset = TensorDataset(dptrain.tensor(x[rows]))
        for (part,) in DataLoader(dataset, batch_size=2):
            ddp(part).square().sum().backward()
        return [b.numpy().copy() for b in norm.buffers()], [
            p.detach().numpy().copy() for p in ddp.parameters()
        ]

    def rank(comm):
        # Batch number i of a rank: rows that depend on rank and i alone.
        rows = [6 * comm.rank % 12 + j for j in range(2 * counts[comm.rank])]
        return train(comm, nn.SyncBatchNorm(CHANNELS), np.array(rows) % 12)

    results = on_ranks(len(counts), rank)
    for buffers, parameters in results[1:]:
        for a, b in zip(buffers + parameters, results[0][0] + results[0][1], strict=True):
            np.testing.assert_array_equal(a, b)
    assert results[0][0][2] == max(counts)


def test_errors_are_named():
    def too_few(comm):
        nn.SyncBatchNorm(CHANNELS)(dptrain.ones(1 - comm.rank, CHANNELS))

    for error in errors_on_ranks(2, too_few):
        assert isinstance(error, ValueError)
        assert "Expected more than 1 value per channel" in str(error)

    def twice(comm):
        x = dptrain.ones(2, CHANNELS, requires_grad=True)
        nn.SyncBatchNorm(CHANNELS)(x).sum().backward(create_graph=True)

    for error in errors_on_ranks(2, twice):
        assert "SyncBatchNorm has no second derivative" in str(error)
    with pytest.raises(ValueError, match=r"expected at least 2D input \(got 1D input\)"):
        nn.SyncBatchNorm(CHANNELS)(dptrain.ones(CHANNELS))
    with pytest.raises(RuntimeError, match="init_process_group"):
        nn.SyncBatchNorm(CHANNELS)(dptrain.ones(2, CHANNELS))
    with pytest.raises(RuntimeError, match="expected 3 channels"):
        nn.SyncBatchNorm(CHANNELS)(dptrain.ones(2, 4))
    with pytest.raises(TypeError, match="process_group must be a process group, got str"):
        nn.SyncBatchNorm(CHANNELS, process_group="world")(dptrain.ones(2, CHANNELS))
