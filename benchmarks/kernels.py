"""What the CPU kernels reach: GFLOP/s or GB/s, and the share of what this machine gives at best.

    python benchmarks/kernels.py [--threads N] [--seconds S]

The best is measured first, and again beside every kernel: for sums of products a register tile on
data in the first cache, for passes over memory a copy of 32 MB. A rate may exceed it: Winograd counts
the products of the plain sum, and small data lies in a cache.
"""

import argparse
import ctypes
import time

import numpy as np

import dptrain
from dptrain.core.conv_algo import pinned
from dptrain.core.kernels import native
from dptrain.core.kernels.memory import address
from dptrain.core.kernels.micro import TILE_ARGUMENTS, tile
from dptrain.core.kernels.target import target

CONVOLUTIONS = [  # images, channels, size, results, kernel, padding
    (64, 3, 32, 32, 5, 2), (64, 32, 16, 32, 5, 2), (64, 32, 8, 64, 5, 2),
    (64, 16, 32, 16, 3, 1), (64, 32, 16, 32, 3, 1), (64, 64, 8, 64, 3, 1),
    (36, 16, 14, 32, 5, 0), (4, 3, 32, 16, 5, 0), (16, 64, 56, 64, 1, 0),
]  # fmt: skip


def fastest(function, seconds):
    """The shortest time of a call, in seconds."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def values(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def peak_products(seconds):
    """GFLOP/s of one thread: a tile over data in the first cache."""
    rows, depth, repeats = target().most_rows(2), 128, 500
    columns = 2 * target().lanes(4)
    a, b, c = values(rows, depth), values(depth, columns), values(rows, columns)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(TILE_ARGUMENTS))(tile.address(np.float32))
    numbers = (
        *(rows, columns, address(c), columns * 4),
        *(address(a), depth * 4, 0, 0, 4, address(b), 0, 0, columns * 4),
        *(1, repeats, depth, address(c), columns * 4),
    )
    return 2 * rows * depth * repeats * columns / fastest(lambda: call(*numbers), seconds) / 1e9


def peak_memory(seconds):
    """GB/s of a copy, read and written, by one thread."""
    a, b = values(1 << 23), values(1 << 23)
    return 2 * a.nbytes / fastest(lambda: np.copyto(b, a), seconds) / 1e9


def convolutions():
    """(name, products counted twice, function)."""
    for n, c, h, o, k, p in CONVOLUTIONS:
        out = h + 2 * p - k + 1
        x, w, grad = values(n, h, h, c), values(o, c, k, k), values(n, out, out, o)
        g = (k, k, 1, 1, p, p, 1, 1)
        flops = 2 * n * out * out * o * c * k * k
        for algo in ("direct", "auto"):
            for what, function in (
                ("forward", lambda x=x, w=w, out=out, g=g: native.conv(x, w, None, out, out, g, 1)),
                ("input gradient", lambda x=x, w=w, grad=grad, g=g: native.conv_input_grad(grad, w, None, x.shape, g, 1)),
                ("weight gradient", lambda x=x, w=w, grad=grad, g=g: native.conv_weight_grad(x, grad, w.shape, g, 1)),
            ):  # fmt: skip
                yield f"{n},{c},{h},{o},{k},{p} {what}, {algo}", flops, algo, function


#: Rows, depth, columns: layers of a perceptron at batch 64, of a transformer of width 128, and a square.
PRODUCTS = [(64, 784, 512), (64, 512, 512), (512, 128, 384), (512, 128, 512), (512, 512, 128), (1024, 1024, 1024)]  # fmt: skip


def products():
    """(name, products counted twice, function): a layer forward, and the gradients of input and weight."""
    for rows, depth, columns in PRODUCTS:
        x, w, grad = values(rows, depth), values(columns, depth), values(rows, columns)
        bias, flops = values(columns), 2 * rows * depth * columns
        for what, function in (
            ("linear", lambda x=x, w=w, bias=bias: native.linear(x, w, bias)),
            ("input gradient", lambda w=w, grad=grad: native.matmul(grad, w)),
            ("weight gradient", lambda x=x, grad=grad: native.matmul(grad.T, x)),
        ):
            yield f"{rows} x {depth} x {columns} {what}", flops, "auto", function
    batch, heads, length, width = 8, 4, 64, 32
    parts = values(batch, length, 3, heads, width).transpose(2, 0, 3, 1, 4)
    scale, flops = width**-0.5, 4 * batch * heads * length * length * width
    out, kept = native.attention(*parts, scale, False)
    yield (
        f"attention {batch} x {heads} x {length} x {width}",
        flops,
        "auto",
        lambda: native.attention(*parts, scale, False),
    )
    yield (
        "attention, gradient",
        5 * flops // 2,
        "auto",
        lambda: native.attention_grad(out, *parts, out, kept, scale, False),
    )


def passes():
    """(name, bytes that must move, function)."""
    x, grad = values(64, 32, 32, 32), values(64, 32, 32, 32)
    half = (2, 2, 2, 2, 0, 0, 1, 1)
    best, where = native.max_pool(x, 16, 16, half)
    rows, grads, ones = x.reshape(-1, 32), grad.reshape(-1, 32), np.ones(32, np.float32)
    out, mean, _, rstd = native.batch_norm(rows, ones, ones, 1e-5)
    flat = [values(1 << 20) for _ in range(4)]
    rates = (1e-3, 0.9, 0.999, 1e-8, 0, 1e-3, 1.0, False, False)
    yield "max pool", x.nbytes + 2 * best.nbytes, lambda: native.max_pool(x, 16, 16, half)
    yield (
        "max pool, gradient",
        x.nbytes + 2 * best.nbytes,
        lambda: native.max_pool_scatter(best, where, x.shape, half),
    )
    yield "sum pool", x.nbytes + best.nbytes, lambda: native.sum_pool(x, 16, 16, half)
    yield "batch norm", 3 * x.nbytes, lambda: native.batch_norm(rows, ones, ones, 1e-5)
    yield (
        "batch norm, gradient",
        5 * x.nbytes,
        lambda: native.batch_norm_grad(grads, rows, ones, mean, rstd),
    )
    yield "relu", 2 * x.nbytes, lambda: native.relu(x)
    yield "relu, gradient", 3 * x.nbytes, lambda: native.relu_grad(grads, out)
    for name in ("gelu", "gelu_tanh", "silu", "sigmoid", "mish"):
        yield name, 2 * x.nbytes, lambda name=name: native.activation(name, x)
        yield (
            f"{name}, gradient",
            3 * x.nbytes,
            lambda name=name: native.activation_grad(name, grad, x),
        )
    wide, slopes, ones = values(8192, 256), values(8192, 256), np.ones(256, np.float32)
    _, centre, spread = native.layer_norm(wide, ones, ones, 1e-5)
    yield "layer norm", 2 * wide.nbytes, lambda: native.layer_norm(wide, ones, ones, 1e-5)
    yield (
        "layer norm, gradient",
        3 * wide.nbytes,
        lambda: native.layer_norm_grad(slopes, wide, ones, centre, spread),
    )
    soft, classes = native.softmax(wide), np.arange(8192) % 256
    yield "softmax", 2 * wide.nbytes, lambda: native.softmax(wide)
    yield "softmax, gradient", 3 * wide.nbytes, lambda: native.softmax_grad(slopes, soft)
    yield "cross entropy", 2 * wide.nbytes, lambda: native.cross_entropy(wide, classes)
    squares = np.abs(flat[3])
    yield (
        "adam, 1 M parameters",
        7 * flat[0].nbytes,
        lambda: native.adam(*flat[:3], squares, None, *rates),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="per measurement")
    args = parser.parse_args()
    dptrain.set_num_threads(args.threads)
    print(f"{target().name}, {args.threads} thread(s); share of {args.threads} x one thread's best")
    for name, flops, algo, function in (*products(), *convolutions()):
        with pinned(algo):
            function()
            seconds = fastest(function, args.seconds)
        best = peak_products(args.seconds / 4) * args.threads
        rate = flops / seconds / 1e9
        print(
            f"{name:44} {seconds * 1e3:8.3f} ms {rate:7.1f} GFLOP/s {rate / best:6.0%}", flush=True
        )
    for name, nbytes, function in passes():
        function()
        seconds = fastest(function, args.seconds)
        best = peak_memory(args.seconds / 4)
        rate = nbytes / seconds / 1e9
        print(
            f"{name:44} {seconds * 1e3:8.3f} ms {rate:7.1f} GB/s    {rate / best:6.0%}", flush=True
        )


if __name__ == "__main__":
    main()
