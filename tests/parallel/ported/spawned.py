"""A training script in PyTorch's words, as its tutorials and ImageNet example have them, with mp.spawn.

The test runs it as it is, and with `torch` replaced by `dptrain` in the imports; both have to print the
same figures.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import torch.utils.data
import torch.utils.data.distributed
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def setup(rank, world_size, port):
    os.environ["MASTER_ADDR"] = "localhost"
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)


def cleanup():
    dist.destroy_process_group()


class ToyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.net1 = nn.Linear(10, 10)
        self.relu = nn.ReLU()
        self.net2 = nn.Linear(10, 5)

    def forward(self, x):
        return self.net2(self.relu(self.net1(x)))


def filled(model, scale=0.5):
    """The same parameters in every library."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-scale, scale, p.numel()).sin().view_as(p))
    return model


def figures(model):
    return [p.detach().double().sum().item() for p in model.parameters()]


def demo_basic(rank, world_size):
    model = filled(ToyModel()).to("cpu")
    ddp_model = DDP(model, device_ids=None)
    loss_fn = nn.MSELoss()
    optimizer = optim.SGD(ddp_model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        inputs = torch.linspace(-1, 1 + rank, 200).view(20, 10) + step
        outputs = ddp_model(inputs)
        labels = torch.ones(20, 5) * rank
        loss_fn(outputs, labels).backward()
        optimizer.step()
    return figures(ddp_model.module)


def demo_checkpoint(rank, world_size, folder):
    model = filled(ToyModel(), scale=0.1 + rank)
    ddp_model = DDP(model)
    path = os.path.join(folder, "model.checkpoint")
    if rank == 0:
        torch.save(ddp_model.state_dict(), path)
    dist.barrier()
    other = DDP(ToyModel())
    map_location = {"cuda:0": f"cuda:{rank}"}
    other.load_state_dict(torch.load(path, map_location=map_location, weights_only=True))
    optimizer = optim.SGD(other.parameters(), lr=0.001)
    optimizer.zero_grad()
    outputs = other(torch.ones(20, 10))
    nn.MSELoss()(outputs, torch.zeros(20, 5)).backward()
    optimizer.step()
    dist.barrier()
    if rank == 0:
        os.remove(path)
    return figures(other)


class AverageMeter:
    def __init__(self, name):
        self.name, self.val, self.avg, self.sum, self.count = name, 0, 0, 0, 0

    def update(self, val, n=1):
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count

    def all_reduce(self):
        total = torch.tensor([self.sum, self.count], dtype=torch.float32)
        dist.all_reduce(total, dist.ReduceOp.SUM, async_op=False)
        self.sum, self.count = total.tolist()
        self.avg = self.sum / self.count


def accuracy(output, target, topk=(1,)):
    with torch.no_grad():
        maxk = max(topk)
        batch_size = target.size(0)
        _, pred = output.topk(maxk, 1, True, True)
        pred = pred.t()
        correct = pred.eq(target.view(1, -1).expand_as(pred))
        res = []
        for k in topk:
            correct_k = correct[:k].reshape(-1).float().sum(0, keepdim=True)
            res.append(correct_k.mul_(100.0 / batch_size))
        return res


class Images(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        image = torch.arange(48, dtype=torch.float64).add(7 * i).sin().view(3, 4, 4)
        return image, i % 5


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def train(loader, model, criterion, optimizer):
    losses, top1 = AverageMeter("Loss"), AverageMeter("Acc@1")
    model.train()
    for images, target in loader:
        output = model(images)
        loss = criterion(output, target)
        acc1, _ = accuracy(output, target, topk=(1, 3))
        losses.update(loss.item(), images.size(0))
        top1.update(acc1[0].item(), images.size(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses.avg


def validate(loader, model, criterion, args, world_size):
    losses, top1, top3 = AverageMeter("Loss"), AverageMeter("Acc@1"), AverageMeter("Acc@3")

    def run_validate(loader):
        with torch.no_grad():
            for images, target in loader:
                output = model(images)
                loss = criterion(output, target)
                acc1, acc3 = accuracy(output, target, topk=(1, 3))
                losses.update(loss.item(), images.size(0))
                top1.update(acc1[0].item(), images.size(0))
                top3.update(acc3[0].item(), images.size(0))

    model.eval()
    run_validate(loader)
    for meter in (losses, top1, top3):
        meter.all_reduce()
    if len(loader.sampler) * world_size < len(loader.dataset):
        rest = range(len(loader.sampler) * world_size, len(loader.dataset))
        aux = DataLoader(Subset(loader.dataset, rest), batch_size=args.batch_size, shuffle=False)
        run_validate(aux)
    return [losses.avg, top1.avg, top3.avg]


def save_checkpoint(state, is_best, folder):
    filename = os.path.join(folder, "checkpoint.pth.tar")
    torch.save(state, filename)
    if is_best:
        shutil.copyfile(filename, os.path.join(folder, "model_best.pth.tar"))


def imagenet(rank, world_size, args, folder):
    batch_size = int(args.batch_size / world_size)
    model = DDP(filled(ConvNet()))
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.1)
    train_dataset, val_dataset = Images(30), Images(13)
    train_sampler = DistributedSampler(train_dataset, shuffle=False)
    val_sampler = torch.utils.data.distributed.DistributedSampler(
        val_dataset, shuffle=False, drop_last=True
    )
    train_loader = DataLoader(
        train_dataset,
        batch_size=batch_size,
        shuffle=(train_sampler is None),
        num_workers=0,
        pin_memory=False,
        sampler=train_sampler,
    )
    val_loader = DataLoader(val_dataset, batch_size=batch_size, sampler=val_sampler)
    found, best_acc1 = [], 0
    for epoch in range(args.epochs):
        train_sampler.set_epoch(epoch)
        loss = train(train_loader, model, criterion, optimizer)
        seen = validate(val_loader, model, criterion, args, world_size)
        scheduler.step()
        is_best, best_acc1 = seen[1] > best_acc1, max(seen[1], best_acc1)
        found += [loss, *seen, scheduler.get_last_lr()[0]]
        if rank == 0:
            state = {
                "epoch": epoch + 1,
                "arch": "convnet",
                "state_dict": model.state_dict(),
                "best_acc1": best_acc1,
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
            }
            save_checkpoint(state, is_best, folder)
    dist.barrier()
    # Go on from the file, as --resume does.
    checkpoint = torch.load(os.path.join(folder, "checkpoint.pth.tar"), weights_only=False)
    resumed = DDP(ConvNet())
    resumed.load_state_dict(checkpoint["state_dict"])
    optimizer = optim.SGD(resumed.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler = StepLR(optimizer, step_size=1, gamma=0.1)
    scheduler.load_state_dict(checkpoint["scheduler"])
    train_sampler.set_epoch(checkpoint["epoch"])
    found.append(train(train_loader, resumed, criterion, optimizer))
    return [*found, *figures(resumed), resumed.module.bn.running_mean.sum().item()]


def shuffled(rank, world_size):
    """The order of a shuffled sampler is a permutation in every epoch, another in each."""
    sampler = DistributedSampler(TensorDataset(torch.arange(11)), shuffle=True, seed=3)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        everyone = [None] * world_size
        dist.all_gather_object(everyone, list(sampler))
        orders.append(everyone)
    return [
        orders[0] != orders[1],
        [len({i for part in order for i in part}) for order in orders],
        len(sampler),
    ]


def main_worker(rank, world_size, port, args, folder):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    setup(rank, world_size, port)
    found = {
        "basic": demo_basic(rank, world_size),
        "checkpoint": demo_checkpoint(rank, world_size, folder),
        "imagenet": imagenet(rank, world_size, args, folder),
        "shuffled": shuffled(rank, world_size),
    }
    everyone = [None] * world_size if rank == 0 else None
    dist.gather_object(found, everyone, dst=0)
    if rank == 0:
        with open(os.path.join(folder, "found.json"), "w") as file:
            json.dump(everyone, file)
    cleanup()


def main():
    parser = argparse.ArgumentParser(description="Training in PyTorch's words")
    parser.add_argument("--epochs", default=2, type=int)
    parser.add_argument("-b", "--batch-size", default=8, type=int)
    parser.add_argument("--lr", "--learning-rate", default=0.1, type=float)
    parser.add_argument("--world-size", default=2, type=int)
    parser.add_argument("--port", default=12355, type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(
            main_worker,
            args=(args.world_size, args.port, args, folder),
            nprocs=args.world_size,
            join=True,
        )
        with open(os.path.join(folder, "found.json")) as file:
            sys.stdout.write(file.read())


if __name__ == "__main__":
    main()
