"""Data-parallel training over 2 ranks: dptrain under dprun against PyTorch DDP (gloo) under torchrun.

    python benchmarks/ddp.py                           # both in this environment (extra `oracle`)
    python benchmarks/ddp.py --torch-python PATH       # PyTorch from another environment

Each side is one job that waits for its turn between measurements; prints the medians and the ratio.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import models
import numpy as np
from interleave import HEADER, Side, compare, serve


def job(args):
    """One rank of one side."""
    if args.worker == "torch":
        import torch as library
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        library.set_num_threads(1)
        dist.init_process_group("gloo")
    else:
        import dptrain as library
        import dptrain.distributed as dist
        from dptrain.comm.default import default_communicator
        from dptrain.nn.parallel import DistributedDataParallel

        dist.init_process_group()
    nn, optim = library.nn, library.optim
    library.manual_seed(0)
    model = DistributedDataParallel(models.build(library, args.model))
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    x, y = models.data(library, args.model, args.batch)

    def step():
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    nbytes = 25 * 2**20
    if args.worker == "dptrain" and args.what == "bucket":
        # Where DistributedDataParallel keeps gradients; gloo has no such memory.
        memory = default_communicator().allocate(nbytes)
        large = library.from_numpy(memory.view(np.float32))
    else:
        large = library.ones(nbytes // 4)

    def all_reduce():
        dist.all_reduce(large)
        large.fill_(1)

    turn = {"step": step, "all_reduce": all_reduce, "bucket": all_reduce}[args.what]
    for _ in range(10):
        turn()

    def measure():
        times = []
        for _ in range(args.steps):
            start = time.perf_counter()
            turn()
            times.append(time.perf_counter() - start)
        return {"ms": statistics.median(times) * 1e3}

    # Rank 0 is told when to measure and tells the others.
    flag = library.zeros(1)
    if dist.get_rank() == 0:

        def lead():
            flag.fill_(1)
            dist.broadcast(flag, 0)
            return measure()

        serve(args.address, lead)
        flag.fill_(0)
        dist.broadcast(flag, 0)
    else:
        while True:
            dist.broadcast(flag, 0)
            if flag.item() == 0:
                break
            measure()
    dist.destroy_process_group()


def side(name, args, what, model, batch):
    options = [
        "--worker",
        name,
        "--what",
        what,
        "--model",
        model,
        "--batch",
        str(batch),
        "--steps",
        str(args.steps),
    ]
    if name == "dptrain":
        command = [sys.executable, "-m", "dptrain.launch", "-n", "2", __file__, *options]
    else:
        command = [
            args.torch_python,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
        ]
        command += [__file__, *options]
    return Side(name, command, threads=1)


CASES = [
    ("step", "mlp", 32),
    ("step", "mlp", 64),
    ("step", "lenet", 32),
    ("all_reduce", "mlp", 1),
    ("bucket", "mlp", 1),
]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=30, help="steps per measurement")
    parser.add_argument(
        "--what", default="step", choices=("step", "all_reduce", "bucket"), help=argparse.SUPPRESS
    )
    parser.add_argument("--model", default="mlp", choices=("mlp", "lenet"), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=32, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=("torch", "dptrain"), help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        job(args)
    else:
        run(args)


def run(args):
    os.chdir(Path(__file__).parent)
    print(HEADER)
    for what, model, batch in CASES:
        sides = [side(name, args, what, model, batch) for name in ("dptrain", "torch")]
        label = {
            "step": f"{model}, 2 ranks, {batch} per rank",
            "all_reduce": "all_reduce of 25 MiB, any tensor",
            "bucket": "all_reduce of 25 MiB, gradient bucket",
        }[what]
        print(compare(*sides, args.rounds).line(label), flush=True)
        for s in sides:
            s.close()


if __name__ == "__main__":
    main()
