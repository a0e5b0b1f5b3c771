"""Trains on the digits for 20 steps and prints losses and a digest of the parameters as JSON.

Started by test_parity.py on several numbers of ranks; `--global-batch` stays the same.
"""

import argparse
import hashlib
import json

import dptrain
import dptrain.distributed as dist
import dptrain.nn.functional as F
from dptrain import nn, optim
from dptrain.nn.parallel import DistributedDataParallel
from dptrain.vision.datasets import Digits

parser = argparse.ArgumentParser()
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--dtype", default="float64")
args = parser.parse_args()

GLOBAL_BATCH, STEPS = 48, 20
dist.init_process_group()
rank, world_size = dist.get_rank(), dist.get_world_size()
dptrain.manual_seed(1)
dtype = getattr(dptrain, args.dtype)
images, labels = Digits(train=True).tensors()
images = images.to(dtype)
model = DistributedDataParallel(
    nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 10)
    ).to(dtype)
)  # fmt: skip
optimizer = optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
share = GLOBAL_BATCH // world_size
micro = share // args.accumulate
losses = []
for step in range(STEPS):
    start = step * GLOBAL_BATCH + rank * share
    optimizer.zero_grad()
    total = dptrain.zeros(1, dtype=dptrain.float64)
    for i in range(args.accumulate):
        rows = slice(start + i * micro, start + (i + 1) * micro)

        def backward(rows=rows, total=total):
            loss = F.cross_entropy(model(images[rows]), labels[rows]) / args.accumulate
            loss.backward()
            total += loss.item()

        if i + 1 < args.accumulate:
            with model.no_sync():
                backward()
        else:
            backward()
    optimizer.step()
    dist.all_reduce(total, dist.ReduceOp.AVG)
    losses.append(total.item())

digest = hashlib.sha256()
for p in model.parameters():
    digest.update(p.detach().numpy().tobytes())
digests = [None] * world_size
dist.all_gather_object(digests, digest.hexdigest())
if rank == 0:
    print(json.dumps({"losses": losses, "digests": digests}))
