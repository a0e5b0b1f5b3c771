"""Evaluation of a model in dptrain and in PyTorch: `model.eval()` under `no_grad`, in turn.

    python benchmarks/evaluate.py                          # both in this environment (extra `oracle`)
    python benchmarks/evaluate.py --torch-python PATH      # PyTorch from another environment
    python benchmarks/evaluate.py --model mlp --batch 1

Measured is a turn of a loop over a test set: the call, the loss and the number of right answers, as Python
numbers. Losses are compared before any time is printed. Least times, medians of them over rounds.
"""

import sys
import time

import interleave
import models
import numpy as np
from interleave import HEADER, Side, compare, serve

MODELS, BATCHES = ("mlp", "lenet", "conv3", "resnet20", "gpt"), (1, 64, 256)


def worker(args):
    if args.worker == "torch":
        import torch as library
    else:
        import dptrain as library
    library.set_num_threads(args.threads)
    net = models.build(library, args.model).eval()
    x, y = models.data(library, args.model, args.batch)
    criterion = library.nn.CrossEntropyLoss()

    def turn():
        with library.no_grad():
            out = net(x)
            return criterion(out, y).item(), (out.argmax(1) == y).sum().item()

    losses = [turn()[0] for _ in range(12)]  # replayed by then

    def measure():
        best, end = float("inf"), time.perf_counter() + args.seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            turn()
            best = min(best, time.perf_counter() - start)
        return {"ms": best * 1e3, "losses": losses}

    serve(args.address, measure)


def main():
    parser = interleave.parser(__doc__, ("dptrain", "torch"), rounds=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a measurement")
    parser.add_argument("--model", choices=sorted(models.SAMPLES))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    print(HEADER)
    for model in MODELS if args.model is None else (args.model,):
        for batch in BATCHES if args.batch is None else (args.batch,):
            options = ["--model", model, "--batch", str(batch), "--threads", str(args.threads)]
            job = [__file__, *options, "--seconds", str(args.seconds), "--worker"]
            ours = Side("dptrain", [sys.executable, *job, "dptrain"], args.threads)
            theirs = Side("PyTorch", [args.torch_python, *job, "torch"], args.threads)
            losses = [side.measure()["losses"] for side in (ours, theirs)]
            if not np.allclose(*losses, rtol=2e-4):
                raise SystemExit(f"{model}: the losses differ: {losses}")
            print(compare(ours, theirs, args.rounds).line(f"{model} batch {batch}"), flush=True)
            ours.close()
            theirs.close()


if __name__ == "__main__":
    main()
