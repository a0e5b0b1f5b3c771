"""One training step in dptrain and in PyTorch: the same model, batch and optimizer, in turn.

    python benchmarks/step.py                          # both in this environment (extra `oracle`)
    python benchmarks/step.py --torch-python PATH      # PyTorch from another environment

Prints the medians with quartiles and the ratio of medians, for 1 and 2 threads. The losses of the
first steps are compared before any time is printed.
"""

import argparse
import statistics
import sys
import time

import numpy as np
from interleave import HEADER, Side, compare, serve


def layers(nn, model):
    if model == "mlp":
        return [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return [
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ]  # fmt: skip


def build(library, model, batch, optimizer, device="cpu"):
    """The same weights and data in either library; returns a function that makes one step."""
    nn, optim = library.nn, library.optim
    net = nn.Sequential(*layers(nn, model))
    stream = np.random.default_rng(0)
    with library.no_grad():
        for p in net.parameters():
            bound = 1 / np.sqrt(np.prod(p.shape[1:]) or p.shape[0])
            p.copy_(
                library.from_numpy(stream.uniform(-bound, bound, tuple(p.shape)).astype(np.float32))
            )
    net.to(device)
    shape = (batch, 784) if model == "mlp" else (batch, 1, 28, 28)
    x = library.from_numpy(stream.standard_normal(shape).astype(np.float32)).to(device)
    y = library.from_numpy(stream.integers(0, 10, batch)).to(device)
    make = {
        "sgd": lambda: optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
        "adam": lambda: optim.Adam(net.parameters(), lr=1e-3),
    }[optimizer]()
    criterion = nn.CrossEntropyLoss()

    def step():
        make.zero_grad()
        loss = criterion(net(x), y)
        loss.backward()
        make.step()
        return loss

    return step


def worker(args):
    if args.worker == "torch":
        import torch as library

        library.set_num_threads(args.threads)
    else:
        import dptrain as library
    step = build(library, args.model, args.batch, args.optimizer)
    losses = [step().item() for _ in range(5)]
    for _ in range(20):
        step()

    def measure():
        times = []
        for _ in range(args.steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return {"ms": statistics.median(times) * 1e3, "losses": losses}

    serve(args.address, measure)


CASES = [("mlp", 64, "sgd"), ("mlp", 64, "adam"), ("lenet", 64, "sgd")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40, help="steps per measurement")
    parser.add_argument("--model", default=None, choices=("mlp", "lenet"))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--optimizer")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--worker", choices=("torch", "dptrain"), help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
    else:
        run(args)


def run(args):
    print(HEADER)
    for model, batch, optimizer in CASES:
        if args.model not in (None, model):
            continue
        for threads in (1, 2):
            options = ["--model", model, "--batch", str(batch), "--optimizer", optimizer]
            options += ["--threads", str(threads), "--steps", str(args.steps)]
            sides = [
                Side(name, [python, __file__, "--worker", name, *options], threads)
                for name, python in (("dptrain", sys.executable), ("torch", args.torch_python))
            ]
            first, second = (np.array(side.measure()["losses"]) for side in sides)
            if not np.allclose(first, second, rtol=1e-4):
                raise SystemExit(f"{model}: the losses differ: {first} and {second}")
            print(
                compare(*sides, args.rounds).line(
                    f"{model} batch {batch} {optimizer}, {threads} thread(s)"
                ),
                flush=True,
            )
            for side in sides:
                side.close()


if __name__ == "__main__":
    main()
