"""Memory of a rank beside that of a single process: what data parallelism costs.

    python benchmarks/memory.py [--width 2048] [--ranks 2]

Prints the proportional set size (PSS: shared pages count by share) at the end of training steps of
an MLP with momentum, for one process without DistributedDataParallel and for every rank with it.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path


def pss_mib():
    """This process's proportional set size in MiB."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/smaps_rollup has no Pss line")


def worker(args):
    import dptrain
    import dptrain.distributed as dist
    from dptrain import nn, optim
    from dptrain.nn.parallel import DistributedDataParallel

    if args.ddp:
        dist.init_process_group()
    width = args.width
    model = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                          nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))  # fmt: skip
    if args.ddp:
        model = DistributedDataParallel(model)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = dptrain.randn(32, 784), dptrain.zeros(32, dtype=dptrain.int64)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    gc.collect()
    if args.ddp:
        dist.barrier()  # all ranks are measured at the same point
    found = [pss_mib()]
    if args.ddp:
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, found[0])
        found = ranks
    if not args.ddp or dist.get_rank() == 0:
        parameters = sum(p.numel() for p in model.parameters())
        print(json.dumps({"pss_mib": found, "parameters_mib": parameters * 4 / 2**20}))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ddp", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    options = [__file__, "--worker", "--width", str(args.width)]
    alone = [sys.executable, *options]
    ranks = [sys.executable, "-m", "dptrain.launch", "-n", str(args.ranks), *options, "--ddp"]
    # One BLAS thread on both sides: each further one has work space of its own.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    single, several = (
        json.loads(
            subprocess.run(
                c, stdout=subprocess.PIPE, text=True, check=True, env=environment
            ).stdout.splitlines()[-1]
        )
        for c in (alone, ranks)
    )
    one = single["pss_mib"][0]
    print(f"parameters            {single['parameters_mib']:8.1f} MiB")
    print(f"one process           {one:8.1f} MiB")
    for rank, value in enumerate(several["pss_mib"]):
        print(
            f"rank {rank} of {args.ranks}           {value:8.1f} MiB  ({value - one:+.1f} MiB, {value / one - 1:+.1%})"
        )


if __name__ == "__main__":
    main()
