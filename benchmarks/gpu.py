"""On a GPU: dptrain beside PyTorch, one table. Losses and results are compared before any time counts.

    python benchmarks/gpu.py                     # everything
    python benchmarks/gpu.py --only steps conv   # some sections
    python benchmarks/gpu.py --device cpu        # the same calls on the host, to try the script

Each line is the median over rounds of both libraries in turn, and PyTorch's over ours (above 1: dptrain is
faster). Without a PyTorch that sees the GPU, dptrain alone is timed. Single passes are in
`gpu_passes`, training steps in `gpu_steps`.
"""

import argparse
import statistics
import time

import gpu_passes
import gpu_steps
import models
import numpy as np

import dptrain


def peers(device):
    """The libraries that can be timed there."""
    found = {"dptrain": dptrain}
    try:
        import torch
    except ImportError:
        return found
    if device == "cpu" or torch.cuda.is_available():
        found["torch"] = torch
    return found


class Clock:
    """Times calls on a device: by events on a GPU, by the wall clock on the host."""

    def __init__(self, library, device):
        self.library, self.gpu = library, device != "cpu"

    def __call__(self, function, calls):
        """Milliseconds of one call, from `calls` in a row."""
        if not self.gpu:
            start = time.perf_counter()
            for _ in range(calls):
                function()
            return (time.perf_counter() - start) * 1e3 / calls
        cuda = self.library.cuda
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda.synchronize()
        start.record()
        for _ in range(calls):
            function()
        end.record()
        cuda.synchronize()
        return start.elapsed_time(end) / calls


def array(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def on(library, device, *arrays):
    return [library.from_numpy(a).to(device) for a in arrays]


def dispatch(device):
    """Small operations: what a call costs."""

    def make(library):
        (x,) = on(library, device, array((8, 8)))
        return lambda: x + x

    yield "add 8x8", make

    def chain(library):
        (x,) = on(library, device, array((64, 64)))
        x.requires_grad_()
        return lambda: (x @ x).relu().sum().backward()

    yield "matmul-relu-sum, backward", chain


def conv(device):
    """Convolutions, forward and backward."""
    n = 64 if device != "cpu" else 2
    for c, o, size, kernel in (
        (3, 64, 32, 3),
        (64, 64, 32, 3),
        (128, 128, 16, 3),
        (256, 256, 8, 1),
    ):

        def make(library, c=c, o=o, size=size, kernel=kernel):
            x, w = on(library, device, array((n, c, size, size)), array((o, c, kernel, kernel), 1))
            w.requires_grad_()
            x.requires_grad_()
            convolve = library.nn.functional.conv2d
            return lambda: convolve(x, w, padding=kernel // 2).sum().backward()

        yield f"conv2d {c}->{o} {size}x{size} k{kernel}", make


def optimizers(device):
    """One step over many parameters."""
    count = 100 if device != "cpu" else 10
    for name in ("SGD", "Adam", "AdamW", "RMSprop"):

        def make(library, name=name):
            params = [
                library.nn.Parameter(p)
                for p in on(library, device, *[array(100_000, k) for k in range(count)])
            ]
            for p in params:
                p.grad = library.ones_like(p)
            return getattr(library.optim, name)(params, lr=1e-3).step

        yield f"{name} {count} x 100k", make


def graphs(device):
    """A forward pass as it is called and as a replayed CUDA graph."""
    if device == "cpu":
        return
    for replayed in (False, True):

        def make(library, replayed=replayed):
            net = models.build(library, "mlp").to(device)
            (x,) = on(library, device, array((128, 784)))
            with library.no_grad():
                for _ in range(3):
                    net(x)
                if not replayed:
                    return lambda: net(x)
                library.cuda.synchronize()
                graph = library.cuda.CUDAGraph()
                with library.cuda.graph(graph):
                    net(x)
            return graph.replay

        yield f"mlp forward, {'graph' if replayed else 'calls'}", make


SECTIONS = [
    dispatch,
    gpu_passes.passes,
    conv,
    optimizers,
    graphs,
    *gpu_steps.SECTIONS,
]


def check(label, losses, tolerance):
    if len(losses) > 1:
        ours, theirs = map(np.asarray, losses.values())
        if not abs(ours - theirs).max() <= tolerance * abs(theirs).max():
            raise RuntimeError(f"{label}: the first losses differ: {losses}")


def compare(label, make, libraries, args):
    """Print the line of one case; a section that trains also gives its memory."""
    calls = {name: make(library) for name, library in libraries.items()}
    check(label, getattr(make, "losses", {}), getattr(make, "tolerance", 0))
    clocks = {name: Clock(library, args.device) for name, library in libraries.items()}
    count = getattr(make, "calls", args.calls)
    for name, call in calls.items():
        clocks[name](call, 3)  # compiled, planned, cached
    rounds = {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            rounds[name].append(clocks[name](call, count))
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    ours, theirs = medians["dptrain"], medians.get("torch")
    beside = " " * 20 if theirs is None else f" {theirs:11.4f} {theirs / ours:8.2f}"
    memory = [f"{peak / 2**20:.0f}" for peak in getattr(make, "peaks", {}).values()]
    print(f"{label:40} {ours:11.4f}{beside}   {' / '.join(memory)}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", choices=[s.__name__ for s in SECTIONS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--tf32", action="store_true", help="allow 10 bits of mantissa in products")
    args = parser.parse_args()
    if args.device != "cpu":
        dptrain.cuda.init()  # or the reason why not
        print(f"{dptrain.cuda.get_device_name()}, cuDNN {dptrain.backends.cudnn.version()}")
    libraries = peers(args.device)
    for library in libraries.values():
        # float32 means float32 on both sides; --tf32 changes both.
        library.backends.cudnn.allow_tf32 = library.backends.cuda.matmul.allow_tf32 = args.tf32
    print(f"{'':40} {'dptrain ms':>11} {'torch ms':>11} {'ratio':>8}   most MiB allocated")
    for section in SECTIONS:
        if args.only and section.__name__ not in args.only:
            continue
        print(f"-- {section.__doc__.splitlines()[0]}")
        for label, make in section(args.device):
            try:
                compare(label, make, libraries, args)
            except Exception as error:  # one case that fails does not hide the others
                print(f"{label:40} failed: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
