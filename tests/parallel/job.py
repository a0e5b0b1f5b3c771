"""What the main features give on real ranks, as JSON from rank 0; started by test_jobs.py.

The checks are made here, on every rank, so that a difference anywhere ends the job with an error.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import dptrain
import dptrain.distributed as dist
from dptrain import nn, optim
from dptrain.checkpoint import load_checkpoint, save_checkpoint
from dptrain.comm.default import default_communicator
from dptrain.data import DataLoader, DistributedSampler, TensorDataset
from dptrain.nn.parallel import DistributedDataParallel
from dptrain.parallel import ZeroRedundancyOptimizer
from dptrain.parallel.comm_hooks import fp16_compress_hook
from dptrain.parallel.power_sgd import PowerSGDState, powerSGD_hook
from dptrain.profiler import Timeline

DTYPE = dptrain.float64
dist.init_process_group(timeout=30.0)
RANK, SIZE = dist.get_rank(), dist.get_world_size()
COMM = default_communicator()
X = np.random.default_rng(0).standard_normal((4 * SIZE, 6))


def net(*layers):
    return nn.Sequential(*(layers or (nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))).to(DTYPE)


def values(module):
    return [p.detach().numpy().copy() for p in module.parameters()]


def equal_on_all_ranks(arrays):
    for others in COMM.all_gather_object(arrays):
        for a, b in zip(arrays, others, strict=True):
            np.testing.assert_array_equal(a, b)


def weighted():
    """Batches of 1, 2, ... samples, and of none: the gradient of the whole batch."""
    counts = [2] if SIZE == 1 else [(r + 1) % SIZE for r in range(SIZE)]
    start = sum(counts[:RANK])
    model = DistributedDataParallel(net(), weighted=True)
    model(dptrain.tensor(X[start : start + counts[RANK]])).square().mean().backward()
    plain = net()
    plain.load_state_dict(model.state_dict())
    plain(dptrain.tensor(X[: sum(counts)])).square().mean().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12, atol=1e-15)


def uneven():
    """Each rank has RANK batches; the ranks end equal."""
    model = DistributedDataParallel(net())
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for (x,) in DataLoader(TensorDataset(dptrain.tensor(X[:RANK])), batch_size=1):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    equal_on_all_ranks(values(model))


def joined():
    model = DistributedDataParallel(net())
    steps = 0
    with model.join(divide_by_initial_world_size=False):
        for row in range(RANK + 1):
            model.zero_grad()
            model(dptrain.tensor(X[row : row + 1])).square().mean().backward()
            with dptrain.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            steps += 1
    equal_on_all_ranks(values(model))
    assert steps == RANK + 1


def sync_batchnorm():
    layer = nn.SyncBatchNorm(6).to(DTYPE)
    plain = nn.BatchNorm1d(6).to(DTYPE)
    cuts = [0, *range(1, SIZE), 4 * SIZE]  # one sample each, and the rest for the last rank
    mine = slice(cuts[RANK], cuts[RANK + 1])
    weights = dptrain.tensor(np.random.default_rng(1).standard_normal(X.shape))
    x, whole = dptrain.tensor(X[mine], requires_grad=True), dptrain.tensor(X, requires_grad=True)
    out, wanted = layer(x), plain(whole)
    (out * weights[mine]).sum().backward()
    (wanted * weights).sum().backward()
    for a, b in ((out.detach(), wanted.detach()[mine]), (x.grad, whole.grad[mine])):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), plain.running_var.numpy(), rtol=1e-12)


def hooks():
    for state, hook in (
        (None, fp16_compress_hook),
        (PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.5), powerSGD_hook),
    ):
        model = DistributedDataParallel(net(nn.Linear(6, 6), nn.Linear(6, 3)), bucket_cap_mb=0)
        model.register_comm_hook(state, hook)
        for row in range(5):
            model.zero_grad()
            model(dptrain.tensor(X[row % 4 + RANK : row % 4 + RANK + 2])).square().mean().backward()
            equal_on_all_ranks([p.grad.numpy().copy() for p in model.parameters()])


def zero(scattered=False):
    model, plain = DistributedDataParallel(net()), DistributedDataParallel(net())
    plain.load_state_dict(model.state_dict())
    divided = ZeroRedundancyOptimizer(model.parameters(), optim.Adam, lr=0.01)
    if scattered:
        divided.reduce_scatter(model)
    whole = optim.Adam(plain.parameters(), lr=0.01)
    for row in range(4):
        for wrapped, optimizer in ((model, divided), (plain, whole)):
            optimizer.zero_grad()
            wrapped(dptrain.tensor(X[row + RANK : row + RANK + 1])).square().mean().backward()
            optimizer.step()
    for a, b in zip(values(model), values(plain), strict=True):
        np.testing.assert_array_equal(a, b)
    divided.consolidate_state_dict()
    if RANK == 0:
        wanted, found = whole.state_dict()["state"], divided.state_dict()["state"]
        assert list(found) == list(wanted)
        for i in wanted:
            for name, value in wanted[i].items():
                np.testing.assert_array_equal(found[i][name].numpy(), value.numpy())


def scattered():
    zero(scattered=True)


def timeline():
    model = DistributedDataParallel(net(), bucket_cap_mb=0)
    with Timeline(model) as recorded:
        for _ in range(3):
            model(dptrain.tensor(X)).sum().backward()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.json"
        recorded.write(path)
        if RANK == 0:
            events = json.loads(path.read_text())["traceEvents"]
            assert {e["pid"] for e in events} == set(range(SIZE))
            # Data of one call move on all ranks at about the same time, whatever their clocks say.
            firsts = [
                next(e for e in events if e["pid"] == r and e["name"].endswith("bucket 0"))
                for r in range(SIZE)
            ]
            begun = max(e["ts"] for e in firsts)
            assert all(e["ts"] + e["dur"] >= begun - 1000 for e in firsts)


def resumed():
    """A run that stops and goes on from its checkpoint has the bits of one that does not stop."""
    data = TensorDataset(dptrain.tensor(np.random.default_rng(2).standard_normal((24 * SIZE, 6))))

    def made():
        dptrain.manual_seed(5)
        model = DistributedDataParallel(
            net(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)),
            bucket_cap_mb=0,
        )
        optimizer = optim.AdamW(model.parameters(), lr=0.01)
        scheduler = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, seed=1))
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}

    def run(parts, passes, stop=None):
        """Train up to a pass's batch `stop`, or to the end."""
        steps = 0
        for _ in range(passes):
            for (x,) in parts["loader"]:
                parts["optimizer"].zero_grad()
                parts["model"](x).square().mean().backward()
                parts["optimizer"].step()
                steps += 1
                if steps == stop:
                    return
            parts["scheduler"].step()

    with tempfile.TemporaryDirectory() as folder:
        folder = COMM.broadcast_object(folder, 0)
        straight, first = made(), made()
        run(straight, 3)
        dptrain.manual_seed(5)
        run(first, 2, stop=9)  # in the middle of the second pass
        states = {name: part.state_dict() for name, part in first.items()}
        if RANK == 0:
            save_checkpoint(folder, {**states, "random": dptrain.get_rng_state()}, 9)
        dist.barrier()
        second = made()
        loaded = load_checkpoint(folder)
        for name, part in second.items():
            part.load_state_dict(loaded[name])
        dptrain.set_rng_state(loaded["random"])
        run(second, 2)
        dist.barrier()
    for a, b in zip(values(second["model"]), values(straight["model"]), strict=True):
        np.testing.assert_array_equal(a, b)
    second["model"].check_replicas()


def reproducible():
    """A digest that has to be the same on any number of ranks."""
    dptrain.manual_seed(3)
    layers = (nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 3))
    model = DistributedDataParallel(nn.Sequential(*layers), reproducible=6)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        stream = np.random.default_rng(step)
        x = dptrain.tensor(stream.standard_normal((24, 6)).astype(np.float32))
        y = dptrain.tensor(stream.integers(0, 3, 24))
        optimizer.zero_grad()
        model.shard_backward(nn.functional.cross_entropy, x, y)
        optimizer.step()
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


FEATURES = [
    weighted,
    uneven,
    joined,
    sync_batchnorm,
    hooks,
    zero,
    scattered,
    timeline,
    resumed,
    reproducible,
]
done = {f.__name__: f() for f in FEATURES if not sys.argv[1:] or f.__name__ in sys.argv[1:]}
if RANK == 0:
    print(json.dumps(done))
dist.destroy_process_group()
