"""The DataLoader, in turn with PyTorch's on the same data.

    python benchmarks/loader.py                          # both in this environment (extra `oracle`)
    python benchmarks/loader.py --torch-python PATH      # PyTorch from another environment
    python benchmarks/loader.py --what arrays jpeg       # some of the comparisons

Prints milliseconds per batch, the medians with quartiles, and the ratio of the medians; and for the memory
of workers their proportional share (PSS), over a dataset of `--dataset-mb`. dptrain's
transforms meet the steps of torchvision's, which are written here. The JPEG images are made here, of
CIFAR-10's size.
"""

import io
import os
import sys
import time

import interleave
import numpy as np
from interleave import HEADER, Side, compare, serve

BATCH = 64
MEAN, STD = 0.2860, 0.3530
WHAT = {
    "arrays": "array-backed, batch 64, 0 workers",
    "samples": "PIL, ToTensor, Normalize, 0 workers",
    "jpeg": "JPEG, crop, flip, normalise, 2 workers",
    "overhead": "a ready batch through 1 worker",
    "start": "one batch of 1 worker, started anew",
}


def libraries(name):
    """The library and its place of data loading."""
    if name == "torch":
        import torch

        torch.set_num_threads(1)
        return torch, torch.utils.data
    import dptrain

    return dptrain, dptrain.utils.data


def arrays(library, data):
    rng = np.random.default_rng(0)
    images = library.from_numpy(rng.random((60000, 1, 28, 28), dtype=np.float32))
    labels = library.from_numpy(rng.integers(10, size=60000))
    return data.DataLoader(data.TensorDataset(images, labels), BATCH, shuffle=True)


class TorchSteps:
    """What torchvision's transforms do, which is not in this environment's extras."""

    def __init__(self, mean, std):
        import torch

        self.torch, self.mean, self.std = torch, mean, std

    def normalised(self, image):
        """ToTensor and Normalize of a PIL image."""
        torch = self.torch
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        pixels = pixels.view(image.size[1], image.size[0], len(image.getbands()))
        image = pixels.permute((2, 0, 1)).contiguous().to(dtype=torch.get_default_dtype()).div(255)
        image = image.clone()
        mean = torch.as_tensor(self.mean, dtype=image.dtype)
        std = torch.as_tensor(self.std, dtype=image.dtype)
        if (std == 0).any():
            raise ValueError("std evaluated to zero")
        return image.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))

    def augmented(self, image):
        """RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize."""
        from PIL import Image, ImageOps

        image = ImageOps.expand(image, border=4)
        top, left = (self.torch.randint(0, 9, size=(1,)).item() for _ in range(2))
        image = image.crop((left, top, left + 32, top + 32))
        if self.torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.normalised(image)


class Transforms:
    """dptrain's transforms."""

    def __init__(self, mean, std):
        from dptrain.vision import transforms as T

        end = [T.ToTensor(), T.Normalize(mean, std)]
        self.normalised = T.Compose(end)
        self.augmented = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), *end])


def transforms(library, mean, std):
    return (TorchSteps if library.__name__ == "torch" else Transforms)(mean, std)


def samples(library, data):
    from PIL import Image

    images = np.random.default_rng(0).integers(256, size=(10000, 28, 28), dtype=np.uint8)
    transform = transforms(library, [MEAN], [STD])

    class Normalised(data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return transform.normalised(Image.fromarray(images[index])), index % 10

    return data.DataLoader(Normalised(), BATCH, shuffle=True)


def jpeg_files(count):
    """JPEG images of 32 x 32 with some structure."""
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(
            file, "JPEG", quality=90
        )
        files.append(file.getvalue())
    return files


def jpeg(library, data):
    from PIL import Image

    class Jpeg(data.Dataset):
        def __init__(self):
            self.files = jpeg_files(2560)
            self.transform = transforms(library, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            image = Image.open(io.BytesIO(self.files[index])).convert("RGB")
            return self.transform.augmented(image), index % 10

    return data.DataLoader(Jpeg(), BATCH, num_workers=2, persistent_workers=True)


class Ready:
    """The same batch again and again, so that only the way of a batch costs time."""

    def __init__(self, library, count):
        self.batch = [library.zeros(BATCH, 1, 28, 28), library.zeros(BATCH, dtype=library.int64)]
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.batch


def overhead(library, data):
    return data.DataLoader(
        Ready(library, 500), None, num_workers=1, persistent_workers=True, collate_fn=same
    )


def start(library, data):
    return data.DataLoader(Ready(library, 1), None, num_workers=1, collate_fn=same)


def same(batch):
    return batch


def timed(library, data, what):
    """A function that measures one pass in milliseconds per batch."""
    loader = globals()[what](library, data)
    limit = 150 if what in ("samples", "jpeg") else 1000

    def measure():
        best = float("inf")  # others use the machine too: the less disturbed of three
        for _ in range(3):
            begin, count = time.perf_counter(), 0
            for _ in loader:
                count += 1
                if count == limit:
                    break
            best = min(best, (time.perf_counter() - begin) / count)
        return {"ms": best * 1000}

    measure()
    return measure


def pss_mb(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


def memory(library, data, megabytes):
    """PSS of this process and of its four workers, each having read the whole dataset."""
    array = np.zeros((megabytes, 2**18), np.float32)
    array += 1

    class Large(data.Dataset):
        def __init__(self):
            self.array = array

        def __len__(self):
            return 64

        def __getitem__(self, index):
            return os.getpid(), float(self.array.sum(dtype=np.float64))

    loader = data.DataLoader(Large(), 1, num_workers=4, persistent_workers=True)
    pids = {pid.item() for pid, _ in loader}
    workers = sum(map(pss_mb, pids))
    return {"workers": workers, "all": workers + pss_mb(os.getpid())}


def worker(args):
    library, data = libraries(args.worker)
    if args.what[0] == "memory":
        serve(args.address, lambda: memory(library, data, args.dataset_mb))
    else:
        serve(args.address, timed(library, data, args.what[0]))


def main():
    parser = interleave.parser(__doc__, ("dptrain", "torch"), rounds=15)
    parser.add_argument("--what", nargs="+", choices=[*WHAT, "memory"], default=[*WHAT, "memory"])
    parser.add_argument("--dataset-mb", type=int, default=1024, help="for the memory of workers")
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    print(HEADER)
    for what in args.what:
        job = [__file__, "--what", what, "--dataset-mb", str(args.dataset_mb), "--worker"]
        if what == "memory":
            for label, python in (("dptrain", sys.executable), ("torch", args.torch_python)):
                side = Side(label, [python, *job, label], 1)
                found = side.measure()
                side.close()
                print(
                    f"PSS over {args.dataset_mb} MiB, {label}: 4 workers {found['workers']:.0f} MiB, "
                    f"with the training process {found['all']:.0f} MiB"
                )
            continue
        ours = Side("dptrain", [sys.executable, *job, "dptrain"], 1)
        theirs = Side("PyTorch", [args.torch_python, *job, "torch"], 1)
        print(compare(ours, theirs, args.rounds).line(WHAT[what]), flush=True)
        ours.close()
        theirs.close()


if __name__ == "__main__":
    main()
