"""Data-parallel training over 2 ranks: dptrain under dprun against PyTorch DDP (gloo) under torchrun.

    python benchmarks/ddp.py                           # both in this environment (extra `oracle`)
    python benchmarks/ddp.py --torch-python PATH       # PyTorch from another environment
    python benchmarks/ddp.py --only speed|efficiency|memory|crowd

Each side is one job that waits for its turn between measurements. Prints, with the value that is asked
for behind each ratio:

speed       medians of a step (or an all-reduce) of both sides, and PyTorch's time / ours
efficiency  ours on one rank without DistributedDataParallel against 2 ranks, a thread each, the same
            batch per rank: 1 is as good as can be
memory      proportional set size (PSS) of one rank alone and of a rank of 2
crowd       4 ranks on however few cores there are: that they finish, and the time of a step
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import interleave
import models
import numpy as np
from interleave import HEADER, Side, compare, serve
from memory import pss_mib


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
    model = models.build(library, args.model)
    if args.worker != "alone":
        model = DistributedDataParallel(model)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    x, y = models.data(library, args.model, args.batch)

    def step():
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    large = None
    if args.what == "bucket" and args.worker == "dptrain":
        # Where DistributedDataParallel keeps gradients; gloo has no such memory.
        large = library.from_numpy(default_communicator().allocate(LARGE).view(np.float32))
        large.zero_()  # sums of zeros can go on for ever
    elif args.what != "step":
        large = library.zeros(LARGE // 4)

    def all_reduce():
        dist.all_reduce(large)

    turn = {"step": step, "all_reduce": all_reduce, "bucket": all_reduce}[args.what]
    for _ in range(10):
        turn()

    def measure():
        times = []
        for _ in range(args.steps):
            start = time.perf_counter()
            turn()
            times.append(time.perf_counter() - start)
        return {"ms": statistics.median(times) * 1e3, "pss_mib": pss_mib()}

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


def side(name, args, what, model, batch, ranks=2):
    options = [__file__, "--worker", name, "--what", what, "--model", model]
    options += ["--batch", str(batch), "--steps", str(args.steps)]
    launcher = {
        "dptrain": [sys.executable, "-m", "dptrain.launch", "-n", str(ranks)],
        "alone": [sys.executable],
        "torch": [
            *(args.torch_python, "-m", "torch.distributed.run"),
            *("--standalone", "--nproc-per-node", str(ranks)),
        ],
    }
    return Side(name, [*launcher[name], *options], threads=1)


LARGE = 25 * 2**20
#: What is compared, model, batch per rank, the ratio that is asked for.
SPEED = [
    ("step", "mlp", 32, 3.0),
    ("step", "mlp", 64, 3.0),
    ("step", "lenet", 32, 2.0),
    ("step", "conv3", 32, 1.5),
    ("step", "resnet20", 32, 1.3),
    ("all_reduce", "mlp", 1, 3.0),
    ("bucket", "mlp", 1, 8.0),
]
EFFICIENCY = [("mlp", 64, 0.8), ("lenet", 32, 0.9), ("conv3", 32, 0.9), ("resnet20", 32, 0.9)]
MEMORY = [("mlp", 64), ("resnet20", 32)]
CROWD = [("mlp", 64), ("lenet", 32)]


def main():
    parser = interleave.parser(__doc__, ("torch", "dptrain", "alone"), rounds=15)
    parser.add_argument("--steps", type=int, default=30, help="steps per measurement")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument(
        "--what", default="step", choices=("step", "all_reduce", "bucket"), help=argparse.SUPPRESS
    )
    parser.add_argument("--model", default="mlp", choices=models.SAMPLES, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=32, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        job(args)
        return
    os.chdir(Path(__file__).parent)
    for name, part in PARTS.items():
        if args.only in (None, name):
            part(args)


def speed(args):
    print(HEADER)
    for what, model, batch, wanted in SPEED:
        sides = [side(name, args, what, model, batch) for name in ("dptrain", "torch")]
        label = {
            "step": f"{model}, 2 ranks, {batch} per rank",
            "all_reduce": "all_reduce of 25 MiB, any tensor",
            "bucket": "all_reduce of 25 MiB, gradient bucket",
        }[what]
        print(f"{compare(*sides, args.rounds).line(label)}   ({wanted})", flush=True)
        for s in sides:
            s.close()


def efficiency(args):
    print(HEADER.replace("dptrain, ms", "2 ranks, ms").replace("PyTorch, ms", "alone, ms  "))
    for model, batch, wanted in EFFICIENCY:
        sides = [side(name, args, "step", model, batch) for name in ("dptrain", "alone")]
        line = compare(*sides, args.rounds).line(f"efficiency: {model}, {batch} per rank")
        print(f"{line}   ({wanted})", flush=True)
        for s in sides:
            s.close()


def memory(args):
    for model, batch in MEMORY:
        sides = [side(name, args, "step", model, batch) for name in ("dptrain", "alone")]
        ours, alone = (s.measure()["pss_mib"] for s in sides)
        for s in sides:
            s.close()
        print(
            f"memory: {model}, {batch} per rank: {ours:.0f} MiB a rank, alone {alone:.0f} MiB "
            f"(at most {1.05 * alone:.0f} and a bucket)",
            flush=True,
        )


def crowd(args):
    for model, batch in CROWD:
        four = side("dptrain", args, "step", model, batch, ranks=4)
        ms = statistics.median(four.measure()["ms"] for _ in range(3))
        four.close()
        print(f"4 ranks on {os.cpu_count()} cores: {model}, {batch} per rank: {ms:.2f} ms a step")


PARTS = {"speed": speed, "efficiency": efficiency, "memory": memory, "crowd": crowd}


if __name__ == "__main__":
    main()
