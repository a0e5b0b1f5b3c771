"""No kernel reads or writes beside its arrays and its scratch, or what was freed, or uses what nobody wrote.

Run as a program, this file computes each family of kernels in guarded memory (`guarded_memory`), over odd sizes.
"""

import faulthandler
import signal
import subprocess
import sys
from itertools import product

import numpy as np
import pytest

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba is not installed")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="guards memory as Linux does"),
    pytest.mark.timeout(520),  # the first run of all compiles for two minutes
]

DTYPES = np.float32, np.float64
#: Below, at and above a vector, and a tile, of every processor.
WIDTHS = 1, 5, 16, 37


def values(*shape, dtype):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def products(dtype):
    for m, k, n in [(3, 40, 1000), (70, 300, 65), (130, 65, 41), (9, 70, 130), (300, 1, 33)]:
        a, b, bias = (values(*s, dtype=dtype) for s in ((m, k), (k, n), (n,)))
        yield native.matmul(a, b)
        yield native.matmul(np.asfortranarray(a), b)
        yield native.matmul(np.stack([a, a]), np.asfortranarray(b))
        yield native.linear(a, np.ascontiguousarray(b.T), bias)
    for keys, depth, causal in product((1, 7, 70), (5, 16, 37), (False, True)):
        q, k, v = (values(2, 3, keys, depth, dtype=dtype) for _ in range(3))
        out, kept = native.attention(q, k, v, 0.3, causal)
        yield out
        yield from native.attention_grad(q, q, k, v, out, kept, 0.3, causal)


def convolutions(dtype):
    from test_conv_kernels import Ungrouped, lowered, narrow, pinned, three, winograd

    for c, o, groups in [(5, 7, 1), (16, 37, 1), (37, 3, 1), (6, 10, 2), (37, 37, 37)]:
        for k, stride, pad, gap in [(3, 1, 1, 1), (2, 3, 0, 2), (5, 1, 2, 1), (1, 2, 0, 1)]:
            outs = tuple((s + 2 * pad - gap * (k - 1) - 1) // stride + 1 for s in (9, 7))
            geometry = (k, k, stride, stride, pad, pad, gap, gap)
            case = (2, 9, 7, c), (o, c // groups, k, k), geometry, outs, groups
            for algo in ("auto", "direct"):
                with pinned(algo):
                    yield from three(native, dtype, case)
            if groups == 1:
                yield from three(Ungrouped(lowered), dtype, case)
                if stride == 1:
                    yield from three(Ungrouped(narrow), dtype, case)
                if stride == 1 and k in winograd.SIZES and dtype is np.float32:
                    x, w, pads = (
                        values(2, 9, 7, c, dtype=dtype),
                        values(o, c, k, k, dtype=dtype),
                        (pad,) * 2,
                    )
                    out = winograd.conv(x, w, None, *outs, pads)
                    yield out
                    yield winograd.conv_input_grad(out, w, None, x.shape, pads)
                    yield from winograd.conv_weight_grad(x, out, w.shape, pads)


def convolutions_of_volumes(dtype):
    from test_volume_kernels import ByTransform, budgets, pinned, results

    for c, o, groups in [(5, 7, 1), (16, 37, 1), (6, 10, 2), (37, 37, 37)]:
        for k, stride, pad, gap in [(3, 1, 1, 1), (2, 3, 0, 2)]:
            outs = tuple((s + 2 * pad - gap * (k - 1) - 1) // stride + 1 for s in (4, 9, 7))
            windows = tuple((n,) * 3 for n in (k, stride, pad, gap))
            case = (2, 4, 9, 7, c), (o, c // groups, k, k, k), windows, outs, groups
            for small in (False, True):
                with budgets(small), pinned("direct"):
                    yield from results(native, dtype, case)
                    if k == 3 and groups == 1 and dtype is np.float32:
                        yield from results(ByTransform, dtype, case)


def windows(dtype):
    for c, (k, stride, pad) in product(WIDTHS, [(3, 2, 1), (2, 1, 0), (2, 3, 1)]):
        x, geometry = values(2, 9, 7, c, dtype=dtype), (k, k, stride, stride, pad, pad, 1, 1)
        outs = tuple((s + 2 * pad - k) // stride + 1 for s in (9, 7))
        best, where = native.max_pool(x, *outs, geometry)
        yield best
        yield native.max_pool_scatter(best, where, x.shape, geometry)
        yield native.sum_pool_scatter(native.sum_pool(x, *outs, geometry), x.shape, geometry)
        columns = native.im2col(x, *outs, geometry)
        yield native.col2im(columns, x.shape, *outs, geometry)
        yield native.row_major(np.moveaxis(native.channels_last(x), -1, 1))


def rows(dtype):
    for n, c in product((1, 3, 70), WIDTHS):
        x, grad, weight = (values(*s, dtype=dtype) for s in ((n, c), (n, c), (c,)))
        for norm, norm_grad in (
            (native.batch_norm, native.batch_norm_grad),
            (native.layer_norm, native.layer_norm_grad),
        ):
            out, mean, *_, rstd = norm(x, weight, weight, 1e-5)
            yield out
            yield from norm_grad(grad, x, weight, mean, rstd)
        image = values(3, n, 2 * c, dtype=dtype)
        out, mean, _, rstd = native.group_norm(image, 2, None, None, 1e-5)
        yield from native.group_norm_grad(out, image, None, mean, rstd)
        yield native.softmax_grad(grad, native.softmax(x))
        yield native.log_softmax_grad(grad, native.log_softmax(x))
        target = np.arange(n) % c
        loss, kept = native.cross_entropy(x, target)
        yield loss
        yield native.cross_entropy_grad(loss, x, kept, target, 0.5)
        yield native.column_sums(x)
        yield native.add_rows(x, target, c)
        taps = np.arange(0, c + 1), np.zeros(c, np.int64), values(c, dtype=np.float64)
        yield native.weighted_sums(x[..., None], *taps)
        yield native.prelu(x, weight)
        yield from native.prelu_grad(grad, x, weight)


def elements(dtype):
    from test_activation_kernels import CURVES

    for n in (1, 7, 16, 37, 1001):
        x = values(n, 3, dtype=dtype)
        for y in (x, x.T, x[:, 1]):
            yield native.add(y, y)
            yield native.add(y, np.ascontiguousarray(y)[:1])
            yield native.relu_grad(y, native.relu(y))
            clipped, inside = native.clip(y, -1, 1)
            yield native.pass_where(clipped, inside, 0.5)
            for name, (parameters, _) in CURVES.items():
                yield native.activation_grad(name, y, y, *parameters)
                yield native.activation(name, y, *parameters)
        p, g, m, v = (values(n, dtype=dtype) ** 2 for _ in range(4))
        native.sgd(p, g, m, 0.1, 0.9, 0, 0.01, False, False, False)
        native.adam(p, g, m, v, None, 0.1, 0.9, 0.99, 1e-8, 0.1, 0.1, 0.5, True, False)
        yield from (p, m, v)


def sequences(dtype):
    from test_recurrent_kernels import GATES, Case

    for mode, (hidden, width), reverse in product(GATES, [(5, 5), (37, 19)], (False, True)):
        yield from Case(mode, (4, 3, 1), hidden, width, dtype, reverse).results(native)


FAMILIES = products, convolutions, convolutions_of_volumes, windows, rows, elements, sequences


def ahead():
    """An address before that of the array."""
    from dptrain.core.kernels import elementwise, memory

    elementwise.address = lambda array: memory.address(array) - array.itemsize


def freed():
    """The address of a copy, which is gone by then."""
    from dptrain.core.kernels import elementwise, memory

    elementwise.address = lambda array: memory.address(array.copy())


def late():
    """Scratch that begins a line too late."""
    from dptrain.core.kernels import memory, winograd

    winograd.scratch = lambda nbytes: memory.scratch(nbytes) + memory.lines(1)


#: Where memory is guarded, the family that sees the fault and the file in which it is planted.
FAULTS = {
    ahead: ("before", "elements", "elementwise.py"),
    freed: ("before", "elements", "elementwise.py"),
    late: ("behind", "convolutions", "winograd.py"),
}


def run_as_program(where, *names):
    """Compute families, all of them unless some are named; names of faults plant them."""
    import guarded_memory

    import dptrain
    from dptrain.core.kernels import pool

    faulthandler.enable()
    guarded_memory.install(where)
    for fault in FAULTS:
        if fault.__name__ in names:
            fault()
    families = [f for f in FAMILIES if f.__name__ in names] or FAMILIES
    for threads, dtype, family in product((1, 3), DTYPES, families):
        dptrain.set_num_threads(threads)
        # Several workers, each with its scratch, for small arrays too.
        pool._WORTH_THREADS = 0 if threads > 1 else 1 << 18
        for number, result in enumerate(family(dtype)):
            assert np.isfinite(result).all(), f"result {number} of {family.__name__}, {dtype}"
    print("done")


def of_program(*args):
    return subprocess.run(
        [sys.executable, __file__, *args], capture_output=True, text=True, timeout=500
    )


@pytest.mark.parametrize("where", ["before", "behind"])
def test_no_kernel_leaves_its_arrays(where):
    done = of_program(where)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_ends_the_process(fault):
    where, family, file = FAULTS[fault]
    done = of_program(where, family, fault.__name__)
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert f"kernels/{file}" in done.stderr


if __name__ == "__main__":
    run_as_program(*sys.argv[1:])
