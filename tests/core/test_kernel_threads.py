"""No bit of a result depends on how many threads compute it."""

import threading

import numpy as np
import pytest

import dptrain
from dptrain.core.conv_algo import pinned
from dptrain.core.kernels import pool, reference

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba is not installed")
from dptrain.core.kernels.compiled import kernel  # noqa: E402
from dptrain.core.kernels.memory import address, array_at  # noqa: E402


def values(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def on(threads, function):
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        return function()
    finally:
        dptrain.set_num_threads(before)


def assert_same_bits(function):
    first = on(1, function)
    for threads in (2, 3, 5):
        for one, other in zip(first, on(threads, function), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("rows", "c"), [(2000, 333), (1030, 1001), (257, 4099)])
def test_of_sums_of_columns(rows, c):
    x = values(0, rows, c)
    assert on(2, lambda: pool.shares(c, x.nbytes)) > 1
    assert_same_bits(lambda: [native.column_sums(x)])


def test_of_a_sum():
    a, b = values(0, 5003, 77), values(1, 5003, 77)
    assert on(2, lambda: pool.shares(a.size, a.nbytes)) > 1
    assert_same_bits(
        lambda: [native.add(a, b), native.add(a.T, b.T), native.add(a[:, :5], b[:, :5])]
    )
    np.testing.assert_array_equal(on(2, lambda: native.add(a.T, b.T)), (a + b).T)


@pytest.mark.parametrize(("rows", "c"), [(4096, 64), (5001, 24), (700, 300)])
def test_of_batch_norm(rows, c):
    x, grad, weight = values(0, rows, c), values(1, rows, c), values(2, c)
    assert pool.blocks(rows, x.nbytes, 16 * c) > 2

    def run():
        out, mean, var, rstd = native.batch_norm(x, weight, weight, 1e-5)
        return (out, mean, var, rstd, *native.batch_norm_grad(grad, x, weight, mean, rstd))

    assert_same_bits(run)


@pytest.mark.parametrize(("rows", "c"), [(4096, 64), (1001, 257)])
def test_of_layer_norm(rows, c):
    x, grad, weight = values(0, rows, c), values(1, rows, c), values(2, c)

    def run():
        out, mean, rstd = native.layer_norm(x, weight, weight, 1e-5)
        return (out, mean, rstd, *native.layer_norm_grad(grad, x, weight, mean, rstd))

    assert_same_bits(run)


#: Images, filters, padding, groups; the wide ones have sums too large to be kept twice.
CONVOLUTIONS = [
    ((9, 20, 20, 24), (40, 24, 3, 3), 1, 1),
    ((5, 21, 19, 3), (20, 3, 5, 5), 0, 1),
    ((3, 9, 9, 160), (200, 160, 3, 3), 1, 1),
    ((3, 9, 9, 48), (48, 1, 3, 3), 1, 48),
    ((3, 7, 7, 512), (576, 512, 1, 1), 0, 1),
]


@pytest.mark.parametrize("algo", ["auto", "direct"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_of_convolution(case, algo):
    (n, h, w, c), weight_shape, padding, groups = case
    o, _, k, _ = weight_shape
    geometry = (k, k, 1, 1, padding, padding, 1, 1)
    out_h, out_w = h + 2 * padding - k + 1, w + 2 * padding - k + 1
    x, weight, grad = values(0, n, h, w, c), values(1, *weight_shape), values(2, n, out_h, out_w, o)

    def run():
        with pinned(algo):
            return (
                native.conv(x, weight, None, out_h, out_w, geometry, groups),
                native.conv_input_grad(grad, weight, None, x.shape, geometry, groups),
                *native.conv_weight_grad(x, grad, weight_shape, geometry, groups),
            )

    assert_same_bits(run)
    d_weight, d_bias = on(3, run)[2:]
    wide = [a.astype(np.float64) for a in (x, grad)]
    exact, exact_bias = reference.conv_weight_grad(*wide, weight_shape, geometry, groups)
    np.testing.assert_allclose(d_weight, exact, rtol=0, atol=1e-4 * np.abs(exact).max())
    np.testing.assert_allclose(d_bias, exact_bias, rtol=0, atol=1e-4 * np.abs(exact_bias).max())


def test_blocks_do_not_depend_on_the_threads_and_parts_across_do():
    wide, work = 10 << 20, 400 << 20
    for threads in (1, 2, 7):
        assert on(threads, lambda: pool.blocks(100, work, 1 << 12)) == 16
        assert on(threads, lambda: pool.blocks(100, work, wide)) == 1
        assert on(threads, lambda: pool.across(4, 1, work)) == min(4, threads)
        assert on(threads, lambda: pool.across(4, 16, work)) == 1


@kernel
def note_worker(args, share, shares, worker):
    array_at(args[0], (4,), np.int64)[worker] += 1


def test_a_worker_takes_no_share_of_a_job_that_has_no_scratch_for_it():
    """Whatever it saw of the job before: who may take a share is decided by the job that it is taken from."""
    counts, state = np.zeros(4, np.int64), np.zeros(pool._WORDS, np.int64)
    args = np.array([address(counts)])
    state[pool._FUNCTION], state[pool._ARGS] = note_worker.address(), address(args)
    state[pool._SHARES], state[pool._LIMIT] = 3, 2
    state[pool._TICKET] = (1 << pool._LEFT_BITS) + 3
    take = pool._take.made
    taken = [take(address(state), worker) for worker in (2, 1, 3, 0, 1, 0)]
    assert taken == [False, True, False, True, True, False]
    np.testing.assert_array_equal(counts, [1, 2, 0, 0])
    assert state[pool._DONE] == 3


def test_a_job_of_a_million_shares_ends():
    counts, shares = np.zeros(4, np.int64), (1 << 20) + 3
    job = threading.Thread(
        target=lambda: on(2, lambda: pool.run(note_worker.address(), [address(counts)], shares)),
        daemon=True,
    )
    job.start()
    job.join(60)
    assert not job.is_alive()
    assert counts.sum() == shares
