"""Memory of a rank with Adam, undivided and divided among the ranks (ZeroRedundancyOptimizer).

    python benchmarks/zero.py [--parameters 50] [--ranks 1 2 4]

Prints, for a model of so many million float32 parameters, the proportional set size (PSS: shared pages
count by share) that building and training it adds to each rank, the highest over the ranks, beside what
parameters + gradients + state (/ ranks) take, and the time of a step. "scattered" is `reduce_scatter`:
each averaged gradient goes to the rank that updates it alone.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time

from memory import pss_mib

WIDTH = 1024
HOW = ("whole", "divided", "scattered")


def worker(args):
    import dptrain
    import dptrain.distributed as dist
    from dptrain import nn, optim
    from dptrain.nn.parallel import DistributedDataParallel
    from dptrain.parallel import ZeroRedundancyOptimizer

    dist.init_process_group()
    warm = nn.Linear(8, 8)  # what the library itself needs is not what is measured
    optimizer = optim.Adam(warm.parameters())
    warm(dptrain.ones(1, 8)).sum().backward()
    optimizer.step()
    gc.collect()
    dist.barrier()  # what the ranks share counts for each by its share, once all have it
    before = pss_mib()
    layers = max(1, round(args.parameters * 1e6 / WIDTH**2))
    model = DistributedDataParallel(
        nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])
    )
    if args.how == "whole":
        optimizer = optim.Adam(model.parameters())
    else:
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.Adam)
    if args.how == "scattered":
        optimizer.reduce_scatter(model)
    x = dptrain.randn(4, WIDTH)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    gc.collect()
    dist.barrier()
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, pss_mib() - before)
    if dist.get_rank() == 0:
        size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
        ms = statistics.median(times[1:]) * 1e3
        print(json.dumps({"pss_mib": ranks, "parameters_mib": size, "ms": ms}))
    dist.barrier()


def run(ranks, how, parameters):
    options = [__file__, "--worker", how, "--parameters", str(parameters)]
    done = subprocess.run(
        [sys.executable, "-m", "dptrain.launch", "-n", str(ranks), *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=50.0, help="in millions")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--worker", dest="how", choices=HOW, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.how:
        worker(args)
        return
    print("ranks  optimizer  PSS per rank, MiB  expected  ms per step")
    for ranks in args.ranks:
        for how in HOW:
            found = run(ranks, how, args.parameters)
            size = found["parameters_mib"]
            expected = 2 * size + 2 * size / (1 if how == "whole" else ranks)
            print(
                f"{ranks:5d}  {how:9s}  {max(found['pss_mib']):17.0f}  {expected:8.0f}  {found['ms']:11.1f}"
            )


if __name__ == "__main__":
    main()
