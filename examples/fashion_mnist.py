"""Train an MLP or LeNet on Fashion-MNIST, data-parallel, with checkpoints.

dprun -n 2 examples/fashion_mnist.py --data DIR --model lenet --epochs 5
dprun -n 2 examples/fashion_mnist.py --data DIR --model lenet --epochs 10 --resume
dprun -n 2 examples/fashion_mnist.py --data DIR --tensorboard runs/lenet     # then: tensorboard --logdir runs

DIR holds the four idx files, plain or gzipped; --download fetches them.
"""

import argparse
from pathlib import Path

from quickstart import run_epoch
from tqdm import tqdm

import dptrain
import dptrain.distributed as dist
from dptrain import nn, optim
from dptrain.checkpoint import load_checkpoint, save_checkpoint
from dptrain.data import DataLoader, DistributedSampler, TensorDataset
from dptrain.nn.parallel import DistributedDataParallel
from dptrain.profiler import RunTimes
from dptrain.tensorboard import SummaryWriter
from dptrain.vision.datasets import FashionMNIST


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )  # fmt: skip


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument(
        "--download", action="store_true", help="fetch the files if they are missing"
    )
    parser.add_argument("--model", choices=("mlp", "lenet"), default="lenet")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="of all ranks together")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/fashion_mnist"))
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument(
        "--stop-after", type=int, help="end after this many epochs; --resume goes on"
    )
    parser.add_argument("--tensorboard", type=Path, help="folder for TensorBoard (needs the extra)")
    args = parser.parse_args()

    dist.init_process_group()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dptrain.manual_seed(0)

    train, test = (
        TensorDataset(*FashionMNIST(args.data, train=t, download=args.download).tensors())
        for t in (True, False)
    )
    sampler = DistributedSampler(train)
    loader = DataLoader(train, max(1, args.batch_size // world_size), sampler=sampler)
    test_loader = DataLoader(test, 1000, sampler=DistributedSampler(test, shuffle=False, pad=False))

    model = DistributedDataParallel({"mlp": mlp, "lenet": lenet}[args.model]())
    optimizer = optim.Adam(model.parameters(), lr=args.lr)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)
    # All that a run is made of: what is saved of it, and what goes on from there.
    run = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    done = 0
    if args.resume:
        saved = load_checkpoint(args.checkpoints, into=run)
        dptrain.set_rng_state(saved["random"])
        done = saved["epochs"]
    times = RunTimes(model, loader)
    # Rank 0 writes; on the other ranks the calls do nothing. What comes after a resume replaces what
    # the stopped run wrote about the same epochs.
    writer = args.tensorboard and SummaryWriter(args.tensorboard, purge_step=done)
    if writer:
        images, _ = test[:16]
        writer.add_images("test images", images)
        writer.add_graph(model, images)

    for epoch in range(done, args.stop_after or args.epochs):
        batches = tqdm(loader, desc=f"epoch {epoch}", disable=rank != 0, leave=False)
        with times:
            loss, accuracy = run_epoch(model, batches, optimizer)
        times.add_samples(len(sampler))
        scheduler.step()
        _, test_accuracy = run_epoch(model, test_loader)
        state = {**run, "random": dptrain.get_rng_state(), "epochs": epoch + 1}
        save_checkpoint(args.checkpoints, state, step=epoch + 1)
        if writer:
            writer.add_scalar("loss/train", loss, epoch)
            writer.add_scalar("accuracy/train", accuracy, epoch)
            writer.add_scalar("accuracy/test", test_accuracy, epoch)
            writer.add_scalar("learning rate", scheduler.get_last_lr()[0], epoch)
            for name, parameter in model.module.named_parameters():
                writer.add_histogram(name, parameter, epoch)
        if rank == 0:
            print(
                f"epoch {epoch:2}  train loss {loss:.4f}  train accuracy {accuracy:.2f} %  "
                f"test accuracy {test_accuracy:.2f} %"
            )

    if writer:
        writer.close()
    _, accuracy = run_epoch(model, test_loader)
    table = times.table()
    if rank == 0:
        print(table)
        print(f"test accuracy {accuracy:.2f} %")


if __name__ == "__main__":
    main()
