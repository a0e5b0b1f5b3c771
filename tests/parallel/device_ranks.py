"""What ranks train in the tests of DistributedDataParallel on devices: `SCENARIOS`, functions of a place.

Each takes the rank's communicator and the device of its model, and returns arrays on the host, which have
to be the same wherever the model lives.
"""

import numpy as np

import dptrain
from dptrain import nn
from dptrain.parallel import DistributedDataParallel
from dptrain.parallel.comm_hooks import bf16_compress_hook, fp16_compress_hook
from dptrain.parallel.power_sgd import PowerSGDState, powerSGD_hook


class Branches(nn.Module):
    """Uses one of two layers; a third is used by nobody."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.never = (nn.Linear(6, 4) for _ in range(3))

    def forward(self, x, second):
        return (self.second if second else self.first)(x)


def batch(rank, place, count=6):
    stream = np.random.default_rng(rank)
    x, y = stream.standard_normal((count, 6)), stream.integers(0, 4, count)
    return dptrain.tensor(x).to(place), dptrain.tensor(y).to(place)


def mlp():
    dptrain.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).double()


def descend(model):
    with dptrain.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.1 * p.grad


def host(model):
    tensors = [*model.parameters(), *model.buffers()]
    grads = [p.grad for p in model.parameters()]
    return [None if t is None else t.detach().cpu().numpy().copy() for t in (*tensors, *grads)]


def step(model, rank, place, *more, count=6):
    x, y = batch(rank, place, count)
    model.zero_grad()
    nn.functional.cross_entropy(model(x, *more), y).backward()


def steps(comm, place, **options):
    model = DistributedDataParallel(mlp().to(place), bucket_cap_mb=[0.0001, 0.0003], **options)
    for k in range(3):
        step(model, comm.rank + 10 * k, place)
        descend(model)
    return host(model)


def plain(comm, place):
    return steps(comm, place)


def buffers_averaged(comm, place):
    return steps(comm, place, forward_sync_buffers="average")


def accumulated(comm, place):
    model = DistributedDataParallel(mlp().to(place))
    x, y = batch(comm.rank, place)
    with model.no_sync():
        nn.functional.cross_entropy(model(x), y).backward()
    nn.functional.cross_entropy(model(x * 2), y).backward()
    return host(model)


def unused(comm, place):
    model = DistributedDataParallel(Branches().double().to(place))
    step(model, comm.rank, place, comm.rank == 1)
    found = host(model)
    step(model, comm.rank, place, False)
    return found + host(model)


def weighted(comm, place):
    model = DistributedDataParallel(mlp().to(place), weighted=True)
    step(model, comm.rank, place, count=3 + 2 * comm.rank)
    return host(model)


def frozen(comm, place):
    model = mlp().to(place)
    model[0].weight.requires_grad = False
    wrapped = DistributedDataParallel(model)
    step(wrapped, comm.rank, place)
    model[0].weight.requires_grad = True
    step(wrapped, comm.rank, place)
    return host(wrapped)


def uneven(comm, place):
    model = DistributedDataParallel(mlp().to(place))
    with model.join():
        for k in range(2 + comm.rank):
            step(model, comm.rank + 10 * k, place)
            descend(model)
    return host(model)


def synchronised_statistics(comm, place):
    model = DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(mlp()).to(place))
    step(model, comm.rank, place, count=4 + comm.rank)
    return host(model)


def hooked(comm, place, state, hook):
    model = DistributedDataParallel(mlp().to(place))
    model.register_comm_hook(state, hook)
    for _ in range(2):
        step(model, comm.rank, place)
    return host(model)


def float16_hook(comm, place):
    return hooked(comm, place, None, fp16_compress_hook)


def bfloat16_hook(comm, place):
    return hooked(comm, place, None, bf16_compress_hook)


def low_rank_hook(comm, place):
    state = PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.1)
    model = DistributedDataParallel(mlp().to(place))
    model.register_comm_hook(state, powerSGD_hook)
    for _ in range(4):
        step(model, comm.rank, place)
    return host(model)


def reproducible(comm, place):
    dptrain.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double().to(place)
    wrapped = DistributedDataParallel(model, reproducible=4)
    x, y = batch(0, place, 8)
    wrapped.shard_backward(nn.functional.cross_entropy, x, y)
    return host(wrapped)


SCENARIOS = [
    plain,
    buffers_averaged,
    accumulated,
    unused,
    weighted,
    frozen,
    uneven,
    synchronised_statistics,
    float16_hook,
    bfloat16_hook,
    low_rank_hook,
    reproducible,
]
