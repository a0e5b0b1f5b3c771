"""Teach a trained ResNet or DenseNet new classes: its weights stay, the last layer is learnt anew.

python examples/transfer.py --weights resnet18.pth --data DIR
dprun -n 2 examples/transfer.py --weights densenet121.pth --model densenet121 --data DIR
DPTRAIN_HOST_DEVICES=2 python examples/transfer.py ...      # one process, two virtual devices

The weights are a state_dict in PyTorch's format with torchvision's names, such as those that
torchvision publishes. DIR holds the folders train and val, in each a folder of images per class.
"""

import argparse
from pathlib import Path

import dptrain
import dptrain.distributed as dist
import dptrain.nn.functional as F
from dptrain import metrics, nn, optim
from dptrain.data import DataLoader, DistributedSampler
from dptrain.nn.parallel import DistributedDataParallel
from dptrain.vision import transforms as T
from dptrain.vision.datasets import ImageFolder
from dptrain.vision.models import get_model, list_models

MODELS = list_models(include=["resnet18", "resnet34", "resnet50", "resnet101", "densenet*"])


def load_data(folder, size):
    """Training images, cut out and mirrored at random, and the images to check with."""
    normalize = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    augment = [T.RandomResizedCrop(size, scale=(0.5, 1)), T.RandomHorizontalFlip()]
    whole = [T.Resize(size * 8 // 7), T.CenterCrop(size)]
    train = ImageFolder(folder / "train", T.Compose(augment + normalize))
    val = ImageFolder(folder / "val", T.Compose(whole + normalize))
    if train.classes != val.classes:
        raise SystemExit(f"{folder}: train has the classes {train.classes}, val {val.classes}")
    return train, val


def new_classifier(net, classes):
    """Freeze `net` but for a new last layer, which is returned."""
    net.requires_grad_(False)
    name = "fc" if hasattr(net, "fc") else "classifier"
    layer = nn.Linear(getattr(net, name).in_features, classes)
    setattr(net, name, layer)
    return layer


@dptrain.no_grad()
def evaluate(model, batches):
    """Accuracy in percent over the images of all ranks."""
    accuracy = metrics.Accuracy()
    for images, labels in batches:
        accuracy.update(model(images), labels)
    return 100 * accuracy.compute().item()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="a .pth or .safetensors file")
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--data", type=Path, required=True, help="folder of train and val")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16, help="of all ranks together")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side that the net sees")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--workers", type=int, default=1, help="loading processes of each rank")
    parser.add_argument("--out", type=Path, help="write the new weights there, for PyTorch too")
    args = parser.parse_args()

    dist.init_process_group()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dptrain.manual_seed(0)

    train, val = load_data(args.data, args.size)
    loader = DataLoader(
        train, args.batch_size // world_size, sampler=DistributedSampler(train),
        num_workers=args.workers,
    )  # fmt: skip
    val_loader = DataLoader(
        val, 32, sampler=DistributedSampler(val, shuffle=False, pad=False), num_workers=args.workers
    )

    net = get_model(args.model, weights=args.weights)
    classifier = new_classifier(net, len(train.classes))
    # Several ranks: one replica each. One process: a replica on each of its devices.
    model = DistributedDataParallel(net) if world_size > 1 else nn.DataParallel(net)
    # Statistics of batch norm are the trained ones, in training too.
    model.eval()
    optimizer = optim.SGD(classifier.parameters(), lr=args.lr, momentum=0.9)

    for epoch in range(args.epochs):
        mean_loss = metrics.Mean()
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean_loss.update(loss, len(labels))
        loss, accuracy = mean_loss.compute().item(), evaluate(model, val_loader)
        if rank == 0:
            print(f"epoch {epoch:2}  train loss {loss:.4f}  accuracy {accuracy:.2f} %")

    if args.out and rank == 0:
        dptrain.save(net.state_dict(), args.out)
        print(f"classes {', '.join(train.classes)}: weights in {args.out}")


if __name__ == "__main__":
    main()
