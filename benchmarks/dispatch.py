"""What an operation costs beside its arithmetic: a chain of additions of 4 elements, in turn with PyTorch.

    python benchmarks/dispatch.py                          # both in this environment (extra `oracle`)
    python benchmarks/dispatch.py --torch-python PATH      # PyTorch from another environment

Prints microseconds per operation (forward and backward together; recorded forward; forward under
`no_grad`), the medians with quartiles, and the ratio of the medians.
"""

import argparse
import sys
import time

import interleave
from interleave import Side, compare, serve

LENGTH = 100
WHAT = {
    "both": "forward + backward",
    "forward": "forward, recorded",
    "no_grad": "forward, no_grad",
}


def build(library, what):
    """A function that runs the chain once."""
    x, y, gradient = library.ones(4, requires_grad=True), library.ones(4), library.ones(4)

    def forward():
        total = x
        for _ in range(LENGTH):
            total = total + y
        return total

    if what == "both":
        return lambda: forward().backward(gradient)
    if what == "forward":
        return forward

    def unrecorded():
        with library.no_grad():
            forward()

    return unrecorded


def worker(args):
    if args.worker == "torch":
        import torch as library

        library.set_num_threads(1)
    else:
        import dptrain as library
    run = build(library, args.what)
    for _ in range(50):
        run()

    def measure():
        best = float("inf")  # others use the machine too: the least disturbed of ten chains
        for _ in range(10):
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
        return {"ms": best / LENGTH * 1e6}  # microseconds here

    serve(args.address, measure)


def main():
    parser = interleave.parser(__doc__, ("dptrain", "torch"), rounds=30)
    parser.add_argument("--what", choices=WHAT, default="both", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    print(f"{'':44} {'dptrain, us [quartiles]':26}   {'PyTorch, us [quartiles]':26}   ratio")
    for what, label in WHAT.items():
        job = [__file__, "--what", what, "--worker"]
        ours = Side("dptrain", [sys.executable, *job, "dptrain"], 1)
        theirs = Side("PyTorch", [args.torch_python, *job, "torch"], 1)
        print(compare(ours, theirs, args.rounds).line(label))
        ours.close()
        theirs.close()


if __name__ == "__main__":
    main()
