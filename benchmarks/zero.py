"""Memory of a rank with Adam, undivided and divided among the ranks (ZeroRedundancyOptimizer).

    python benchmarks/zero.py [--parameters 50] [--ranks 1 2 4]

Prints, for a model of so many million float32 parameters, the proportional set size (PSS: shared pages
count by share) that building and training it adds to each rank, the highest over the ranks, beside what
parameters + gradients + state (/ ranks) take.
"""

import argparse
import gc
import json
import os
import subprocess
import sys

from memory import pss_mib

WIDTH = 1024


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
    before = pss_mib()
    layers = max(1, round(args.parameters * 1e6 / WIDTH**2))
    model = DistributedDataParallel(
        nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])
    )
    optimizer = (
        ZeroRedundancyOptimizer(model.parameters(), optim.Adam)
        if args.zero
        else optim.Adam(model.parameters())
    )
    x = dptrain.randn(4, WIDTH)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    gc.collect()
    dist.barrier()
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, pss_mib() - before)
    if dist.get_rank() == 0:
        size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
        print(json.dumps({"pss_mib": ranks, "parameters_mib": size}))
    dist.barrier()


def run(ranks, zero, parameters):
    options = [__file__, "--worker", "--parameters", str(parameters), *(["--zero"] if zero else [])]
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
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--zero", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    print("ranks  optimizer  PSS per rank  expected  (MiB)")
    for ranks in args.ranks:
        for zero in (False, True):
            found = run(ranks, zero, args.parameters)
            size = found["parameters_mib"]
            expected = 2 * size + 2 * size / (ranks if zero else 1)
            name = "divided" if zero else "Adam"
            print(f"{ranks:5d}  {name:9s}  {max(found['pss_mib']):12.0f}  {expected:8.0f}")


if __name__ == "__main__":
    main()
