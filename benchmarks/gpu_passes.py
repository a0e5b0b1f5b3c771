"""Single passes on a GPU, forward and backward, beside PyTorch's: microseconds of both, and their ratio.

    python benchmarks/gpu_passes.py [--device cuda] [--dtype bfloat16] [--scale 1.0]

Both libraries take turns in one run; the figure is the median of the rounds. What is timed is a row of calls
without waiting in between, so that it is the GPU that is measured where a call takes it longer than Python.
"""

import argparse
import statistics
import time

import dptrain

try:
    import torch
except ImportError:
    torch = None

#: name: (shape, function of the library, its nn.functional and a tensor)
CASES = {
    "relu": ((64, 256, 56, 56), lambda lib, f, x: f.relu(x)),
    "add": ((64, 256, 56, 56), lambda lib, f, x: x + x),
    "gelu": ((8192, 3072), lambda lib, f, x: f.gelu(x)),
    "gelu tanh": ((8192, 3072), lambda lib, f, x: f.gelu(x, approximate="tanh")),
    "silu": ((8192, 3072), lambda lib, f, x: f.silu(x)),
    "to float32": ((8192, 3072), lambda lib, f, x: x.to(lib.float32)),
    "dropout": ((8192, 3072), lambda lib, f, x: f.dropout(x, 0.1)),
    "softmax": ((12288, 1024), lambda lib, f, x: f.softmax(x, -1)),
    "log_softmax": ((8192, 1000), lambda lib, f, x: f.log_softmax(x, -1)),
    "cross_entropy": (
        (4096, 50257),
        lambda lib, f, x: f.cross_entropy(x, lib.arange(len(x), device=x.device)),
    ),
    "layer_norm": ((8192, 768), lambda lib, f, x: f.layer_norm(x, (768,))),
    "batch_norm": ((64, 256, 56, 56), lambda lib, f, x: f.batch_norm(x, None, None, training=True)),
    "max_pool2d": ((64, 64, 112, 112), lambda lib, f, x: f.max_pool2d(x, 3, 2, 1)),
    "adaptive_avg_pool2d": ((256, 2048, 7, 7), lambda lib, f, x: f.adaptive_avg_pool2d(x, 1)),
    "embedding": (
        (50257, 768),
        lambda lib, f, x: f.embedding(lib.arange(8192, device=x.device) * 7919 % len(x), x),
    ),
}


def prepared(library, name, args):
    """A call of forward and backward."""
    shape, function = CASES[name]
    shape = (max(2, int(shape[0] * args.scale)), *shape[1:]) if name != "embedding" else shape
    x = library.randn(*shape, device=args.device).to(getattr(library, args.dtype))
    if len(shape) == 4:
        x = x.to(memory_format=library.channels_last)
    x.requires_grad_()
    grad = None

    def call():
        nonlocal grad
        x.grad = None
        out = function(library, library.nn.functional, x)
        if grad is None:
            grad = library.ones_like(out)
        out.backward(grad)

    return call


def timed(library, call, args):
    wait = library.cuda.synchronize if args.device != "cpu" else (lambda: None)
    wait()
    start = time.perf_counter()
    for _ in range(args.calls):
        call()
    wait()
    return (time.perf_counter() - start) / args.calls * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--scale", type=float, default=1.0, help="of the first size")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    args = parser.parse_args()
    libraries = [dptrain] if torch is None else [dptrain, torch]
    print(
        f"{args.device}, {args.dtype}: "
        + ", ".join(f"{m.__name__} {m.__version__}" for m in libraries)
    )
    for name in args.only:
        calls = [prepared(library, name, args) for library in libraries]
        times = [[] for _ in libraries]
        for turn in range(args.rounds + 1):
            for library, call, held in zip(libraries, calls, times, strict=True):
                took = timed(library, call, args)
                if turn:  # the first one compiles
                    held.append(took)
        medians = [statistics.median(held) for held in times]
        ratio = f"  {medians[0] / medians[1]:5.2f}" if len(medians) == 2 else ""
        print(f"{name:22s}" + "".join(f"{m:10.0f}" for m in medians) + ratio, flush=True)


if __name__ == "__main__":
    main()
