"""Train LeNet, a net of three convolutions or ResNet-20 on CIFAR-10, data-parallel, with checkpoints.

python examples/cifar10.py --data DIR                                   # one process
dprun -n 2 examples/cifar10.py --data DIR --model resnet20 --epochs 8   # two ranks
dprun -n 2 examples/cifar10.py --data DIR --model resnet20 --epochs 8 --resume

DIR holds the folder cifar-10-batches-py; --download fetches it.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

import dptrain
import dptrain.distributed as dist
import dptrain.nn.functional as F
from dptrain import metrics, nn, optim
from dptrain.checkpoint import load_checkpoint, save_checkpoint
from dptrain.data import DataLoader, DistributedSampler
from dptrain.nn.parallel import DistributedDataParallel
from dptrain.profiler import RunTimes
from dptrain.vision import transforms as T
from dptrain.vision.datasets import CIFAR10
from dptrain.vision.models import LeNet, resnet20


def conv3():
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


# How each model is built, and the highest learning rate of its schedule at 128 images per step.
MODELS = {
    "lenet": (lambda: LeNet(in_channels=3, padding=0), 0.05),
    "conv3": (conv3, 0.05),
    "resnet20": (resnet20, 0.4),
}


def load_data(folder, download):
    """The training images, cropped and mirrored anew in every epoch, and the test images."""
    normalize = [T.ToTensor(), T.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))]
    augment = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip()]
    train = CIFAR10(folder, transform=T.Compose(augment + normalize), download=download)
    return train, CIFAR10(folder, train=False, transform=T.Compose(normalize), download=download)


def train_epoch(model, batches, optimizer, scheduler):
    """One pass over the training images; returns the mean loss over the images of all ranks."""
    model.train()
    mean_loss = metrics.Mean()
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        mean_loss.update(loss, len(labels))
    return mean_loss.compute().item()


@dptrain.no_grad()
def evaluate(model, batches):
    """Accuracy in percent over the images of all ranks."""
    model.eval()
    accuracy = metrics.Accuracy()
    for images, labels in batches:
        accuracy.update(model(images), labels)
    return 100 * accuracy.compute().item()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of cifar-10-batches-py")
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    parser.add_argument("--model", choices=MODELS, default="lenet")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128, help="of all ranks together")
    parser.add_argument("--lr", type=float, help="the highest one; each model has its own default")
    parser.add_argument("--workers", type=int, default=1, help="loading processes of each rank")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/cifar10"))
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    args = parser.parse_args()

    dist.init_process_group()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dptrain.manual_seed(0)

    train, test = load_data(args.data, args.download)
    sampler = DistributedSampler(train)
    loader = DataLoader(
        train, args.batch_size // world_size, sampler=sampler, drop_last=True,
        num_workers=args.workers, persistent_workers=args.workers > 0,
    )  # fmt: skip
    # Nothing is padded for evaluation: every test image counts once.
    test_loader = DataLoader(
        test, 500, sampler=DistributedSampler(test, shuffle=False, pad=False), num_workers=args.workers
    )  # fmt: skip

    build, lr = MODELS[args.model]
    model = DistributedDataParallel(build())
    optimizer = optim.SGD(
        model.parameters(), lr=args.lr or lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    # Warm-up over the first fifth of the steps, then down along a cosine.
    scheduler = optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr or lr, epochs=args.epochs, steps_per_epoch=len(loader), pct_start=0.2
    )  # fmt: skip
    # All that a run is made of: what is saved of it, and what goes on from there.
    run = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    done = 0
    if args.resume:
        saved = load_checkpoint(args.checkpoints, into=run)
        if saved["epochs"] != args.epochs:
            raise SystemExit(
                f"--resume: this run's schedule is made for --epochs {saved['epochs']}"
            )
        dptrain.set_rng_state(saved["random"])
        done = saved["done"]
    times = RunTimes(model, loader)

    for epoch in range(done, args.epochs):
        batches = tqdm(loader, desc=f"epoch {epoch}", disable=rank != 0, leave=False)
        with times:
            loss = train_epoch(model, batches, optimizer, scheduler)
        times.add_samples(len(sampler))
        accuracy = evaluate(model, test_loader)
        # Last in the epoch: a pass over a loader draws random numbers too, that of the test images as well.
        random = dptrain.get_rng_state()
        state = {**run, "random": random, "done": epoch + 1, "epochs": args.epochs}
        save_checkpoint(args.checkpoints, state, step=epoch + 1)
        if rank == 0:
            print(f"epoch {epoch:2}  train loss {loss:.4f}  test accuracy {accuracy:.2f} %")

    accuracy, table = evaluate(model, test_loader), times.table()
    if rank == 0:
        print(table)
        print(f"test accuracy {accuracy:.2f} %")


if __name__ == "__main__":
    main()
