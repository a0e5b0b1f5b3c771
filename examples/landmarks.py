"""Train a small net to find landmarks on images: a dataset and transforms of one's own, data-parallel.

python examples/landmarks.py --data DIR --make 400     # draw 400 faces into DIR, then train
dprun -n 2 examples/landmarks.py --data DIR            # train on what is there, two ranks

DIR holds landmarks.csv (a line per image: file name, x0, y0, x1, y1, ...; below a line of titles)
and the folder images.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import dptrain
import dptrain.distributed as dist
import dptrain.nn.functional as F
from dptrain import metrics, nn, optim
from dptrain.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    random_split,
)
from dptrain.nn.parallel import DistributedDataParallel
from dptrain.vision import transforms as T


class LandmarksDataset(Dataset):
    """Samples are dicts: "image", a PIL image, and "landmarks", an array of (x, y) in pixels."""

    def __init__(self, folder, transform=None):
        self.images, self.transform = Path(folder) / "images", transform
        table = Path(folder) / "landmarks.csv"
        if not table.is_file():
            raise FileNotFoundError(f"{table} is not there; --make N draws a dataset of N images")
        with table.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        self.names = [row[0] for row in rows]
        self.landmarks = np.array([row[1:] for row in rows], np.float32).reshape(len(rows), -1, 2)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        image = Image.open(self.images / self.names[index]).convert("RGB")
        sample = {"image": image, "landmarks": self.landmarks[index]}
        return self.transform(sample) if self.transform else sample


class Rescale:
    """Makes the shorter side `size` pixels long; the landmarks follow."""

    def __init__(self, size):
        self.size = size

    def __call__(self, sample):
        image, landmarks = sample["image"], sample["landmarks"]
        resized = T.functional.resize(image, self.size)
        return {
            "image": resized,
            "landmarks": landmarks * np.divide(resized.size, image.size, dtype="f"),
        }


class RandomCrop:
    """Cuts a square of `size` pixels out anywhere; the landmarks follow."""

    def __init__(self, size):
        self.size = size

    def __call__(self, sample):
        width, height = sample["image"].size
        # Draws from dptrain's generator: the same crops with any number of workers and ranks.
        top = dptrain.randint(0, height - self.size + 1, ()).item()
        left = dptrain.randint(0, width - self.size + 1, ()).item()
        image = T.functional.crop(sample["image"], top, left, self.size, self.size)
        return {"image": image, "landmarks": sample["landmarks"] - np.float32([left, top])}


class ToTensor:
    """Image (3, H, W) in 0..1; landmarks as shares of the image's width and height."""

    def __call__(self, sample):
        landmarks = dptrain.from_numpy(sample["landmarks"] / np.float32(sample["image"].size))
        return {"image": T.functional.to_tensor(sample["image"]), "landmarks": landmarks}


def draw_faces(folder, count):
    """Write a dataset of drawn faces, whose landmarks are both eyes and the mouth."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    with (folder / "landmarks.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "left_x", "left_y", "right_x", "right_y", "mouth_x", "mouth_y"])
        for i in range(count):
            width, height = draws.integers(56, 80, 2).tolist()
            x, y, r = (
                width * draws.uniform(0.4, 0.6),
                height * draws.uniform(0.4, 0.6),
                draws.uniform(14, 22),
            )
            points = [(x - r / 2, y - r / 3), (x + r / 2, y - r / 3), (x, y + r / 2)]
            image = Image.new("RGB", (width, height), tuple(draws.integers(0, 100, 3).tolist()))
            pen = ImageDraw.Draw(image)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(230, 190, 150))
            for px, py in points[:2]:
                pen.ellipse((px - 2, py - 2, px + 2, py + 2), fill=(20, 40, 90))
            pen.ellipse((x - 5, points[2][1] - 2, x + 5, points[2][1] + 2), fill=(180, 30, 40))
            image.save(folder / "images" / f"{i:05}.png")
            table.writerow(
                [f"{i:05}.png", *(round(float(v), 2) for point in points for v in point)]
            )


def regressor(outputs):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, outputs), nn.Unflatten(1, (-1, 2)),
    )  # fmt: skip


@dptrain.no_grad()
def distance(model, batches, size):
    """Mean distance of the landmarks found from the true ones, in pixels, over all ranks."""
    model.eval()
    apart = metrics.Mean()
    for batch in batches:
        apart.update((model(batch["image"]) - batch["landmarks"]).norm(dim=-1) * size)
    return apart.compute().item()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of landmarks.csv and images"
    )
    parser.add_argument("--make", type=int, metavar="N", help="draw N faces into it first")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32, help="of all ranks together")
    parser.add_argument("--size", type=int, default=48, help="pixels of a side that the net sees")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=0, help="loading processes of each rank")
    args = parser.parse_args()

    dist.init_process_group()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dptrain.manual_seed(0)
    if args.make:
        if rank == 0:
            draw_faces(args.data, args.make)
        dist.barrier()

    transform = T.Compose([Rescale(args.size + args.size // 6), RandomCrop(args.size), ToTensor()])
    data = LandmarksDataset(args.data, transform)
    train, test = random_split(data, [0.8, 0.2])
    loader = DataLoader(
        train, args.batch_size // world_size, sampler=DistributedSampler(train),
        num_workers=args.workers,
    )  # fmt: skip
    # Nothing is padded for evaluation: every test image counts once.
    test_loader = DataLoader(test, 64, sampler=DistributedSampler(test, shuffle=False, pad=False))

    net = regressor(outputs=2 * data.landmarks.shape[1])
    net(dptrain.zeros(1, 3, args.size, args.size))  # tells the lazy layer its size
    model = DistributedDataParallel(net)
    optimizer = optim.Adam(model.parameters(), lr=args.lr)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)

    for epoch in range(args.epochs):
        model.train()
        mean_loss = metrics.Mean()
        for batch in loader:
            loss = F.smooth_l1_loss(model(batch["image"]), batch["landmarks"], beta=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean_loss.update(loss, len(batch["image"]))
        scheduler.step()
        loss, apart = mean_loss.compute().item(), distance(model, test_loader, args.size)
        if rank == 0:
            print(f"epoch {epoch:2}  train loss {loss:.4f}  test distance {apart:.2f} pixels")


if __name__ == "__main__":
    main()
