"""Matrix products and attention on the register tile: the definition to the stated bounds, the same bits always."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dptrain
from dptrain.core.kernels import reference

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba not installed")

from dptrain.core.kernels import attention, gemm, packing  # noqa: E402  needs numba
from dptrain.core.kernels.target import target  # noqa: E402

relaxed = settings(max_examples=40, deadline=None)  # the first example compiles
dtypes = st.sampled_from([np.float32, np.float64])
threads = st.sampled_from([1, 2, 4])


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = dptrain.get_num_threads()
    yield
    dptrain.set_num_threads(before)


def values(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def laid_out(array, order):
    """The same values, in memory row by row, column by column, or with gaps between the numbers."""
    if order == "columns":
        return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)
    if order == "gaps":
        return np.repeat(np.repeat(array, 2, axis=-1), 3, axis=-2)[..., ::3, ::2]
    if order == "reversed":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    return array


orders = st.sampled_from(["rows", "columns", "gaps", "reversed"])
sides = st.one_of(st.integers(1, 40), st.sampled_from([48, 63, 64, 65, 128, 130]))


def assert_product(got, a, b, bias=0.0):
    """To the bound that `gemm` states."""
    wide = [np.asarray(v, np.float64) for v in (a, b, bias)]
    exact, size = wide[0] @ wide[1] + wide[2], np.abs(wide[0]) @ np.abs(wide[1]) + np.abs(wide[2])
    depth = a.shape[-1]
    factor = min(depth, 256) + depth / 256 + 2
    assert got.shape == exact.shape
    assert got.dtype == a.dtype
    assert (np.abs(got - exact) <= factor * np.finfo(a.dtype).eps * size).all()


@relaxed
@given(sides, st.one_of(sides, st.integers(250, 600)), sides, dtypes, orders, orders, threads)
def test_products_are_the_definition_to_their_bound(m, k, n, dtype, first, second, count):
    a = laid_out(values(1, m, k, dtype=dtype), first)
    b = laid_out(values(2, k, n, dtype=dtype), second)
    dptrain.set_num_threads(count)
    assert_product(native.matmul(a, b), a, b)
    out = np.full((m, n), np.nan, dtype)
    assert native.matmul(a, b, out) is out
    np.testing.assert_array_equal(out, native.matmul(a, b))


@relaxed
@given(sides, sides, sides, dtypes, st.booleans(), orders, threads)
def test_linear_is_the_definition_to_its_bound(
    rows, inputs, outputs, dtype, with_bias, order, count
):
    x = laid_out(values(1, rows, inputs, dtype=dtype), order)
    weight = values(2, outputs, inputs, dtype=dtype)
    bias = values(3, outputs, dtype=dtype) if with_bias else None
    dptrain.set_num_threads(count)
    got = native.linear(x, weight, bias)
    assert_product(got, x, weight.T, 0.0 if bias is None else bias)
    assert got.flags.c_contiguous


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([((2, 3), (2, 3)), ((2, 1), (1, 3)), ((4,), ()), ((), (5,)), ((2, 3), (3,)), ((2, 0), (1,))]),
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), dtypes, orders, orders, threads,
)  # fmt: skip
def test_batches_broadcast(batches, m, k, n, dtype, first, second, count):
    a = laid_out(values(1, *batches[0], m, k, dtype=dtype), first)
    b = laid_out(values(2, *batches[1], k, n, dtype=dtype), second)
    dptrain.set_num_threads(count)
    assert_product(native.matmul(a, b), a, b)


@pytest.mark.parametrize(
    "shapes",
    [((0, 4), (4, 3)), ((3, 0), (0, 5)), ((4,), (4,)), ((9, 4), (4,)), ((2, 3, 0), (0, 2))],
)
def test_empty_factors_and_vectors_follow_numpy(shapes):
    a, b = (values(i, *shape) for i, shape in enumerate(shapes))
    np.testing.assert_array_equal(native.matmul(a, b), np.matmul(a, b))


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(64, 784, 512), (512, 64, 784), (100, 300, 70), (33, 1030, 40)]
)
def test_neither_threads_nor_other_rows_change_a_bit(m, k, n, order):
    a, b = values(1, m, k), laid_out(values(2, k, n), order)
    dptrain.set_num_threads(1)
    first = native.matmul(a, b)
    for count in (2, 3, 4):
        dptrain.set_num_threads(count)
        np.testing.assert_array_equal(native.matmul(a, b), first)
    np.testing.assert_array_equal(native.matmul(a[5:29], b), first[5:29])
    np.testing.assert_array_equal(native.matmul(np.stack([a, a]), b)[1], first)
    # The other way round: the same sums, turned.
    np.testing.assert_array_equal(native.matmul(b.T, a.T), first.T)


@pytest.mark.parametrize(
    ("m", "k", "n"), [(4, 800, 1200), (3000, 500, 3), (4, 100_000, 6), (2, 300_000, 5), (0, 5, 3)]
)
def test_products_of_few_rows_or_columns_are_made_in_pieces(m, k, n):
    """Of which each is too small for the BLAS library to divide among threads; the bound is that of any order."""
    a, b, bias = values(1, m, k), values(2, k, n), values(3, n)
    exact = a.astype("d") @ b
    bound = k * np.finfo("f").eps * (np.abs(a).astype("d") @ np.abs(b)) + 1e-6
    assert (np.abs(native.matmul(a, b) - exact) <= bound).all()
    into = np.empty((m, n), "f")
    assert native.matmul(a, b, out=into) is into
    assert (np.abs(into - exact) <= bound).all()
    got = native.linear(a, np.ascontiguousarray(b.T), bias)
    assert got.flags.c_contiguous
    assert (np.abs(got - exact - bias) <= bound + 1e-5).all()


def test_what_is_no_number_stays_in_its_row_and_column():
    a, b = values(1, 70, 90), values(2, 90, 50)
    a[3, 4], b[7, 11] = np.nan, np.inf
    for second in (b, laid_out(b, "columns")):
        got = native.matmul(a, second)
        finite = np.isfinite(got)
        assert not finite[3].any()
        assert not finite[:, 11].any()
        assert np.delete(np.delete(finite, 3, 0), 11, 1).all()


def test_the_choice_is_a_pure_function():
    """Of shapes, strides and the type; a processor's vectors, and no timing."""

    def plan(m, k, n, turned=False, count=1):
        a, b = np.empty((m, k), "f"), np.empty((n, k), "f").T if turned else np.empty((k, n), "f")
        return gemm._plan(a.shape, a.strides, b.shape, b.strides, 4, count)

    assert plan(4, 1000, 1000) is None  # few rows: the BLAS library's
    assert plan(16, 16, 16) is None
    assert not plan(64, 512, 512).swapped
    assert plan(64, 512, 512, turned=True).swapped
    assert not plan(512, 512, 512, turned=True).swapped
    assert plan(64, 512, 512, count=4).shares > 1 == plan(64, 32, 32, count=4).shares


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
def test_squares_of_every_vector_unit_are_transposed(lanes):
    class Rows:
        """Stands for LLVM: vectors are lists."""

        def shuffle_vector(self, a, b, mask):
            return [(a + b)[k.constant] for k in mask.constant]

    emitter = type("", (), {"lanes": lanes, "builder": Rows()})()
    square = [[(r, c) for c in range(lanes)] for r in range(lanes)]
    assert packing._transposed(emitter, square) == [list(row) for row in zip(*square, strict=True)]


# ---- attention ------------------------------------------------------------------------------------


def heads(seed, batch, count, length, width, dtype, order):
    """(batch, heads, length, width), in memory as projections leave it, or plain, or by columns."""
    x = values(seed, batch, length, count, width, dtype=dtype).transpose(0, 2, 1, 3)
    return x if order == "gaps" else laid_out(np.ascontiguousarray(x), order)


lengths = st.one_of(st.integers(1, 20), st.sampled_from([47, 48, 49, 64, 97, 300]))


@relaxed
@given(
    st.integers(1, 3), st.integers(1, 3), lengths, lengths, st.integers(1, 40), st.integers(1, 40),
    dtypes, st.booleans(), orders, threads,
)  # fmt: skip
def test_attention_and_its_gradient_are_the_definition(
    batch, count, length, keys, depth, width, dtype, causal, order, workers
):
    q = heads(1, batch, count, length, depth, dtype, order)
    k = heads(2, batch, count, keys, depth, dtype, order)
    v = heads(3, batch, count, keys, width, dtype, order)
    grad = heads(4, batch, count, length, width, dtype, order)
    dptrain.set_num_threads(workers)
    out, kept = native.attention(q, k, v, 0.3, causal)
    got = (out, *native.attention_grad(grad, q, k, v, out, kept, 0.3, causal))
    q, k, v, grad = (a.astype(np.float64) for a in (q, k, v, grad))
    out, kept = reference.attention(q, k, v, 0.3, causal)
    exact = (out, *reference.attention_grad(grad, q, k, v, out, kept, 0.3, causal))
    for value, expected in zip(got, exact, strict=True):
        assert value.dtype == dtype
        bound = 100 * np.finfo(dtype).eps * max(1, np.abs(expected).max())
        np.testing.assert_allclose(value, expected, rtol=0, atol=bound)


def test_threads_change_no_bit_of_attention():
    q, k, v, grad = (heads(i, 3, 4, 100, 32, np.float32, "gaps") for i in range(4))
    results = []
    for count in (1, 2, 4):
        dptrain.set_num_threads(count)
        out, kept = native.attention(q, k, v, 0.2, True)
        results.append((out, kept, *native.attention_grad(grad, q, k, v, out, kept, 0.2, True)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_attention_reference_is_the_derivative_of_its_forward():
    q, k, v, grad = (values(i, 1, 2, 5, 3, dtype=np.float64) for i in range(4))
    out, kept = reference.attention(q, k, v, 0.7, True)
    slopes = reference.attention_grad(grad, q, k, v, out, kept, 0.7, True)
    for position, slope in enumerate(slopes):
        step = values(9 + position, 1, 2, 5, 3, dtype=np.float64)
        ahead, behind = (
            reference.attention(*[a + h * step * (i == position) for i, a in enumerate((q, k, v))], 0.7, True)[0]
            for h in (1e-6, -1e-6)
        )  # fmt: skip
        assert ((ahead - behind) / 2e-6 * grad).sum() == pytest.approx(
            (slope * step).sum(), rel=1e-6
        )


def test_later_keys_are_not_looked_at():
    q, k, v = (values(i, 1, 1, 60, 8) for i in range(3))
    before, _ = native.attention(q, k, v, 0.3, True)
    k[:, :, 50:], v[:, :, 50:] = np.inf, np.nan
    after, _ = native.attention(q, k, v, 0.3, True)
    np.testing.assert_array_equal(after[:, :, :48], before[:, :, :48])


# ---- what the comparisons are worth ---------------------------------------------------------------


def faulty_module(module, old, new):
    """The module's code with a fault in it, compiled without a cache."""
    source = inspect.getsource(module)
    assert old in source, f"{module.__name__} has changed: {old!r}"
    space = {"__name__": f"fault_{id(source)}", "__file__": module.__file__}
    exec(compile(source.replace(old, new), f"<{module.__name__} with a fault>", "exec"), space)
    return space


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (gemm, "start, start_m = (bias + n * bias_step, 0) if k == 0 else (to, c_m)", "start, start_m = bias + n * bias_step, 0"),
        (gemm, "used, here = min(wide, n_all - n), b", "used, here = min(wide, n_all - n) - 1, b"),
        (gemm, "a + m * a_m + k * a_k, a_m, 0, 0, a_k, panel + k * line", "a + m * a_m + k * a_k, a_m, 0, 0, a_k, panel"),
        (gemm, "place[n] = 0\n    lines_all", "place[n] = 1\n    lines_all"),
        (gemm, "for i in range(whole_m if j < whole_n else 0, rows)", "for i in range(whole_m, rows)"),
    ],
    ids=["a block of the sum lost", "a column lost", "a panel's first rows twice", "a wrong start", "an edge not written"],
)  # fmt: skip
def test_faults_planted_in_the_drivers_are_seen(monkeypatch, module, old, new):
    from dptrain.core.kernels import code_files
    from dptrain.core.kernels.compiled import Kernel

    def made(self, variant, names):
        return code_files.link(self.compile(f"fault-{id(names)}", names))

    monkeypatch.setattr(Kernel, "_make", made)
    space = faulty_module(module, old, new)
    wrong = False
    for m, k, n, order in ((64, 300, 75, "rows"), (70, 300, 140, "columns")):
        a, b = values(1, m, k), laid_out(values(2, k, n), order)
        wrong |= not np.allclose(space["matmul"](a, b), a.astype("d") @ b, atol=1e-3)
    assert wrong


def test_tiles_of_this_machine_cover_the_strip():
    """What `_columns` counts on: a strip is whole vectors and whole tiles."""
    for size in (4, 8):
        assert gemm._STRIP % target().lanes(size) == 0
    assert attention._BLOCK % target().most_rows(2) == 0


# ---- the operation --------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_attention_has_two_derivatives(causal):
    parts = [
        dptrain.tensor(values(i, 1, 2, 4, 3, dtype=np.float64), requires_grad=True)
        for i in range(3)
    ]

    def attend(q, k, v):
        return dptrain.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    assert dptrain.autograd.gradcheck(attend, parts)
    assert dptrain.autograd.gradgradcheck(attend, parts)


@pytest.mark.oracle
@pytest.mark.parametrize("beside", [False, True])
def test_attention_lies_in_memory_as_pytorch_lays_it(beside):
    torch = pytest.importorskip("torch", reason="PyTorch not installed")
    x = values(1, 2, 5, 3, 4, 8)

    def facts(library):
        made = library.tensor(x if beside else x.transpose(2, 0, 3, 1, 4).copy())
        parts = (made.permute(2, 0, 3, 1, 4) if beside else made).requires_grad_().unbind(0)
        out = library.nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        grads = library.autograd.grad((out * out).sum(), parts)
        name = out.grad_fn.name()
        return name, [(t.stride(), t.detach().numpy()) for t in (out, *grads)]

    (name, ours), (expected, theirs) = facts(dptrain), facts(torch)
    assert name == expected
    assert ours[0][0] == theirs[0][0]
    for (_, value), (_, their_value) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(value, their_value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [8, 13, 16, 31])
def test_few_rows_with_a_large_matrix_give_the_bits_of_many(rows):
    """Which driver runs changes no bit, and a row does not depend on the others."""
    rng = np.random.default_rng(rows)
    x, weight = (rng.normal(size=s).astype(np.float32) for s in ((40, 700), (400, 700)))
    bias = rng.normal(size=400).astype(np.float32)
    got, many = gemm.linear(x[:rows], weight, bias), gemm.linear(x, weight, bias)
    np.testing.assert_array_equal(got, many[:rows])
    exact = x[:rows].astype(np.float64) @ weight.T.astype(np.float64) + bias
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-3)
