"""Train a small CNN on the bundled handwritten digits, data-parallel.

python examples/quickstart.py                 # one process
dprun -n 2 examples/quickstart.py             # two ranks
mpirun -n 2 python examples/quickstart.py     # the same, by MPI's own launcher
"""

import argparse

from tqdm import tqdm

import dptrain
import dptrain.distributed as dist
import dptrain.nn.functional as F
from dptrain import metrics, nn, optim
from dptrain.data import DataLoader, DistributedSampler, TensorDataset
from dptrain.nn.parallel import DistributedDataParallel
from dptrain.profiler import RunTimes
from dptrain.vision.datasets import Digits


def build_model():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def run_epoch(model, batches, optimizer=None):
    """One pass; returns mean loss and accuracy over the samples of all ranks."""
    model.train(optimizer is not None)
    mean_loss, accuracy = metrics.Mean(), metrics.Accuracy()
    for images, labels in batches:
        with dptrain.set_grad_enabled(optimizer is not None):
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mean_loss.update(loss, len(labels))
        accuracy.update(logits, labels)
    return mean_loss.compute().item(), 100 * accuracy.compute().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64, help="of all ranks together")
    args = parser.parse_args()

    dist.init_process_group()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dptrain.manual_seed(0)

    train, test = (TensorDataset(*Digits(train=t).tensors()) for t in (True, False))
    sampler = DistributedSampler(train)
    loader = DataLoader(train, max(1, args.batch_size // world_size), sampler=sampler)
    # Nothing is padded for evaluation: every test sample counts once.
    test_loader = DataLoader(test, 256, sampler=DistributedSampler(test, shuffle=False, pad=False))

    model = DistributedDataParallel(build_model())
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)
    times = RunTimes(model, loader)

    for epoch in range(args.epochs):
        batches = tqdm(loader, desc=f"epoch {epoch}", disable=rank != 0, leave=False)
        with times:
            loss, accuracy = run_epoch(model, batches, optimizer)
        times.add_samples(len(sampler))
        scheduler.step()
        if rank == 0:
            print(f"epoch {epoch:2}  train loss {loss:.4f}  train accuracy {accuracy:.2f} %")

    _, accuracy = run_epoch(model, test_loader)
    table = times.table()
    if rank == 0:
        print(table)
        print(f"test accuracy {accuracy:.2f} %")


if __name__ == "__main__":
    main()
