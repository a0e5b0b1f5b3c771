"""Ranks that train on one device against one process on the whole batch: `job BACKEND DEVICE [FEATURE ...]`.

Started by test_shared_gpu.py. The checks are made on every rank, each against its own training alone; rank 0
prints how far the two were apart at most.
"""

import json
import sys

import numpy as np

import dptrain
import dptrain.distributed as dist
from dptrain import nn, optim
from dptrain.nn.parallel import DistributedDataParallel
from dptrain.parallel import ZeroRedundancyOptimizer

backend, PLACE, *wanted = sys.argv[1:]
dptrain.backends.cudnn.allow_tf32 = False
dist.init_process_group(backend, timeout=60.0, device_id=0 if backend == "nccl" else None)
RANK, SIZE = dist.get_rank(), dist.get_world_size()
SHARE, STEPS = 6, 5
NEAR = {dptrain.float64: 1e-9, dptrain.float32: 1e-4}
# Adam divides by the gradient's size: what is nothing but rounding must not become a step.
ADAM = {"lr": 0.01, "eps": 1e-4}


def net(dtype):
    dptrain.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 5),
    ).to(dtype).to(PLACE)  # fmt: skip


def train(model, optimizer, dtype, mine):
    """Some steps; `mine` are the samples of each global batch that this process takes."""
    for number in range(STEPS):
        stream = np.random.default_rng(number)
        x = dptrain.tensor(stream.standard_normal((SHARE * SIZE, 1, 8, 8))[mine], dtype=dtype)
        y = dptrain.tensor(stream.integers(0, 5, SHARE * SIZE)[mine])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.to(PLACE)), y.to(PLACE)).backward()
        optimizer.step()
    return [p.detach().cpu().numpy() for p in model.parameters()]


def compared(make, dtype):
    """Train on all ranks, and alone on the whole batches; the largest difference."""
    mine = slice(RANK * SHARE, (RANK + 1) * SHARE)
    model = DistributedDataParallel(net(dtype))
    found = train(model, make(model), dtype, mine)
    alone = net(dtype)
    before = [p.detach().cpu().numpy().copy() for p in alone.parameters()]
    expected = train(alone, optim.Adam(alone.parameters(), **ADAM), dtype, slice(None))
    for a, b, c in zip(found, expected, before, strict=True):
        assert np.abs(b - c).max() > 1e-3, "nothing was learnt"
        np.testing.assert_allclose(a, b, rtol=NEAR[dtype], atol=NEAR[dtype])
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


def whole(model):
    return optim.Adam(model.parameters(), **ADAM)


def divided(model):
    return ZeroRedundancyOptimizer(model.parameters(), optim.Adam, **ADAM)


def scattered(model):
    optimizer = divided(model)
    optimizer.reduce_scatter(model)
    return optimizer


def ddp():
    return [compared(whole, dtype) for dtype in NEAR]


def zero():
    return [compared(make, dtype) for dtype in NEAR for make in (divided, scattered)]


def collectives():
    """Of `dptrain.distributed`, over tensors of the device."""
    x = dptrain.arange(1000.0).to(PLACE) + RANK
    total = x.clone()
    dist.all_reduce(total)
    expected = np.arange(1000.0) * SIZE + SIZE * (SIZE - 1) // 2
    assert total.device == x.device
    np.testing.assert_array_equal(total.cpu().numpy(), expected)
    parts = [dptrain.zeros_like(x) for _ in range(SIZE)]
    dist.all_gather(parts, x)
    for rank, part in enumerate(parts):
        np.testing.assert_array_equal(part.cpu().numpy(), np.arange(1000.0) + rank)
    dist.broadcast(x, SIZE - 1)
    np.testing.assert_array_equal(x.cpu().numpy(), np.arange(1000.0) + SIZE - 1)
    if SIZE > 1:
        work = dist.isend(x + RANK, (RANK + 1) % SIZE)
        dist.recv(x, (RANK - 1) % SIZE)
        work.wait()
        assert x[0].item() == SIZE - 1 + (RANK - 1) % SIZE


FEATURES = (collectives, ddp, zero)
done = {f.__name__: f() for f in FEATURES if not wanted or f.__name__ in wanted}
if RANK == 0:
    print(json.dumps(done))
dist.destroy_process_group()
