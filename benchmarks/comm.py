"""All-reduce over a sweep of sizes, from memory of `allocate` ("window") and from private arrays.

    python benchmarks/comm.py                                    # 2 ranks, 1 KiB to 100 MiB
    python benchmarks/comm.py -n 4 --sizes 25M
    python benchmarks/comm.py --against gloo --torch-python PATH # interleaved with PyTorch's gloo

Columns as in nccl-tests: the time of one call (median over rounds of the mean over calls), the
algorithm bandwidth size/time, and the bus bandwidth, which is that times 2(n-1)/n: what a link has
to carry at least, so that different numbers of ranks compare. Behind a ratio to gloo stands the least that is
asked for, where something is.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import interleave
import numpy as np
from interleave import Side, serve

UNITS = {"K": 2**10, "M": 2**20}
DEFAULT_SIZES = "1K,16K,64K,256K,1M,4M,25M,100M"
#: The least that gloo's time should be, as a multiple of ours.
WANTED = {("private", "1M"): 3, ("private", "25M"): 3, ("private", "100M"): 2, ("window", "25M"): 8}


def nbytes_of(text):
    """1024 for "1K", 26214400 for "25M"."""
    return int(text[:-1]) * UNITS[text[-1]] if text[-1] in UNITS else int(text)


def calls_per_measurement(nbytes):
    """Enough calls to outweigh the clock, few enough to take turns often."""
    return max(2, min(200, (64 << 20) // nbytes))


def timed(call, nbytes, meet):
    count = calls_per_measurement(nbytes)
    call()
    meet()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def dptrain_job(args):
    """One rank of our side."""
    from dptrain import comm as room
    from dptrain.core.kernels import prepare_sums

    prepare_sums()  # as training does
    comm = room.init(warn_after_s=None)
    arrays = {}
    for text in args.sizes.split(","):
        size = nbytes_of(text) // 4
        arrays["window", text] = comm.allocate(4 * size).view(np.float32)
        arrays["private", text] = np.zeros(size, np.float32)

    def measure():
        return {
            key: timed(lambda a=a: comm.all_reduce(a, async_op=False), a.nbytes, comm.barrier)
            for key, a in arrays.items()
        }

    turns = np.ones(1, np.int8)

    def lead():
        comm.broadcast(turns, async_op=False)
        return measure()

    if comm.rank == 0:
        serve(args.address, lead)
        turns[0] = 0
        comm.broadcast(turns, async_op=False)
    else:
        while comm.broadcast(turns, async_op=False).result[0]:
            measure()
    comm.close()


def gloo_job(args):
    """One rank of PyTorch's side."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    sizes = {text: nbytes_of(text) for text in args.sizes.split(",")}
    tensors = {text: torch.zeros(nbytes // 4) for text, nbytes in sizes.items()}

    def measure():
        return {
            ("gloo", text): timed(lambda t=t: dist.all_reduce(t), sizes[text], dist.barrier)
            for text, t in tensors.items()
        }

    turns = torch.ones(1)

    def lead():
        dist.broadcast(turns, 0)
        return measure()

    if dist.get_rank() == 0:
        serve(args.address, lead)
        turns.zero_()
        dist.broadcast(turns, 0)
    else:
        while True:
            dist.broadcast(turns, 0)
            if not turns.item():
                break
            measure()
    dist.destroy_process_group()


def side(name, args):
    """The job of one side, started."""
    options = [__file__, "--worker", name, "--sizes", args.sizes]
    if name == "gloo":
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(args.ranks)]
        return Side(name, [args.torch_python, "-m", *launcher, *options], threads=1)
    launcher = ["dptrain.launch", "-n", str(args.ranks)]
    return Side(name, [sys.executable, "-m", *launcher, *options], threads=1)


def print_table(found, args):
    """One row per size: times and bandwidths of each kind, and the ratios to gloo if it ran."""
    kinds = [kind for kind in ("window", "private", "gloo") if (kind, first_size(args)) in found]
    ours = [kind for kind in kinds if kind != "gloo"]
    head = "".join(f" |{kind + ' us':>12} {'algbw':>6} {'busbw':>6}" for kind in kinds)
    ratios = "".join(f" {'gloo/' + kind:>13}" for kind in ours) if "gloo" in kinds else ""
    print(f"{'size':>6}{head}{ratios}   (GB/s; {args.ranks} ranks)")
    for text in args.sizes.split(","):
        row = f"{text:>6}"
        for kind in kinds:
            seconds = statistics.median(found[kind, text])
            bandwidth = nbytes_of(text) / seconds / 1e9
            bus = bandwidth * 2 * (args.ranks - 1) / args.ranks
            row += f" |{seconds * 1e6:12.1f} {bandwidth:6.2f} {bus:6.2f}"
        if ratios:
            theirs = statistics.median(found["gloo", text])
            for kind in ours:
                wanted = WANTED.get((kind, text))
                asked = f" ({wanted})" if wanted else " " * 4
                row += f" {theirs / statistics.median(found[kind, text]):9.2f}{asked}"
        print(row)


def first_size(args):
    return args.sizes.split(",")[0]


def main():
    parser = interleave.parser(__doc__, ("dptrain", "gloo"), rounds=9)
    parser.add_argument("-n", "--ranks", type=int, default=2)
    parser.add_argument("--sizes", default=DEFAULT_SIZES, help="such as 1K,25M")
    parser.add_argument("--against", choices=("gloo",), help="measure this in the same run too")
    args = parser.parse_args()
    if args.worker:
        return {"dptrain": dptrain_job, "gloo": gloo_job}[args.worker](args)
    os.chdir(Path(__file__).parent)
    sides = [side(name, args) for name in ("dptrain", args.against) if name]
    found = {}
    for turn in range(args.rounds):
        for one in sides[:: 1 if turn % 2 else -1]:
            for key, seconds in one.measure().items():
                found.setdefault(key, []).append(seconds)
    for one in sides:
        one.close()
    print_table(found, args)
    return None


if __name__ == "__main__":
    main()
