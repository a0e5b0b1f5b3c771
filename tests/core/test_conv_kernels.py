"""The convolution kernels against their definition in float64, over random shapes and thread counts."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dptrain
from dptrain.core.conv_algo import pinned
from dptrain.core.kernels import reference

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba not installed")
from dptrain.core.kernels import (  # noqa: E402
    direct,
    lowered,
    memory,
    micro,
    narrow,
    weights,
    winograd,
)
from dptrain.core.kernels.convolution import Problem, algorithm  # noqa: E402
from dptrain.core.kernels.cook_toom import transforms  # noqa: E402
from dptrain.core.kernels.target import Target, target, target_of  # noqa: E402
from dptrain.core.kernels.transform import TILE  # noqa: E402

# The first example of a test compiles; timing says nothing about the code.
relaxed = settings(max_examples=60, deadline=None)


@st.composite
def cases(draw, most_channels=40):
    """Shapes of (x, weight), geometry, result sizes, groups."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pad = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [max(1, s - 2 * p) for s, p in zip(spans, pad, strict=True)]
    sizes = [n + draw(st.integers(0, 9)) for n in least]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    inputs, outputs = draw(st.integers(1, most_channels)), draw(st.integers(1, most_channels))
    if draw(st.booleans()):  # as in depthwise convolutions
        groups, inputs, outputs = inputs, 1, 1
    out = [
        (size + 2 * p - span) // s + 1
        for size, p, span, s in zip(sizes, pad, spans, stride, strict=True)
    ]
    n = draw(st.integers(0, 4))
    x, w = (n, *sizes, inputs * groups), (outputs * groups, inputs, *kernel)
    return x, w, (*kernel, *stride, *pad, *dilation), tuple(out), groups


def values(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def three(provider, dtype, case):
    """Result, gradients of input, weight and bias, and what a transposed convolution gives."""
    x_shape, w_shape, geometry, out, groups = case
    x, w, b = (values(i, *s).astype(dtype) for i, s in enumerate((x_shape, w_shape, w_shape[:1])))
    grad = values(3, x_shape[0], *out, w_shape[0]).astype(dtype)
    more = values(4, x_shape[3]).astype(dtype)
    return [
        provider.conv(x, w, b, *out, geometry, groups),
        provider.conv_input_grad(grad, w, more, x_shape, geometry, groups),
        *provider.conv_weight_grad(x, grad, w_shape, geometry, groups),
    ]


def bounds(case):
    """How many products are summed in each of the results of `three`."""
    x_shape, w_shape, _, out, _ = case
    taps = w_shape[2] * w_shape[3]
    n = x_shape[0] * out[0] * out[1]
    return [taps * w_shape[1], taps * w_shape[0], n, n]


@relaxed
@given(cases(), st.sampled_from([np.float32, np.float64]), st.sampled_from([1, 2, 4]))
def test_direct_convolution_is_the_definition_to_rounding(case, dtype, threads):
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        with pinned("direct"):
            got = three(native, dtype, case)
    finally:
        dptrain.set_num_threads(before)
    exact = three(reference, np.float64, case)
    for result, expected, products in zip(got, exact, bounds(case), strict=True):
        assert result.dtype == dtype
        # Products of standard normal numbers: the sum of their sizes grows with their number.
        bound = np.finfo(dtype).eps * (products + 4) * np.sqrt(products + 4) * 4
        np.testing.assert_allclose(result, expected, rtol=0, atol=max(bound, 1e-12 * products))


class Ungrouped:
    """The functions of a module for convolutions of one group, as those of a provider."""

    def __init__(self, module):
        self.conv = lambda *args: module.conv(*args[:-1])
        self.conv_input_grad = lambda *args: module.conv_input_grad(*args[:-1])
        self.conv_weight_grad = lambda *args: module.conv_weight_grad(*args[:-1])


@st.composite
def of_one_group(draw, reversible):
    """`cases` for `Ungrouped`; if reversible, of stride 1 and no more padding than the filter reaches."""
    n, c, o = draw(st.integers(1, 6)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    gaps = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    spans = [d * (k - 1) for d, k in zip(gaps, kernel, strict=True)]
    steps, pads = (1, 1), tuple(draw(st.integers(0, span)) for span in spans)
    if not reversible:
        steps = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        pads = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    sizes = [span + 1 + draw(st.integers(0, 7)) for span in spans]
    out = [
        (size + 2 * p - span - 1) // s + 1
        for size, p, span, s in zip(sizes, pads, spans, steps, strict=True)
    ]
    return (n, *sizes, c), (o, c, *kernel), (*kernel, *steps, *pads, *gaps), tuple(out), 1


def assert_is_the_definition(module, dtype, case, threads):
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        got = three(Ungrouped(module), dtype, case)
    finally:
        dptrain.set_num_threads(before)
    exact = three(reference, np.float64, case)
    for result, expected, products in zip(got, exact, bounds(case), strict=True):
        assert result.dtype == dtype
        assert result.flags.c_contiguous
        bound = np.finfo(dtype).eps * (products + 4) * np.sqrt(products + 4) * 4
        np.testing.assert_allclose(result, expected, rtol=0, atol=max(bound, 1e-12 * products))


@relaxed
@given(of_one_group(False), st.sampled_from([np.float32, np.float64]), st.sampled_from([1, 2]))
def test_lowered_convolution_is_the_definition_to_rounding(case, dtype, threads):
    assert_is_the_definition(lowered, dtype, case, threads)


@relaxed
@given(of_one_group(True), st.sampled_from([np.float32, np.float64]), st.sampled_from([1, 2]))
def test_convolution_of_few_channels_is_the_definition_to_rounding(case, dtype, threads):
    assert_is_the_definition(narrow, dtype, case, threads)


@relaxed
@given(of_one_group(False), st.sampled_from([np.float32, np.float64]))
def test_the_gradient_of_images_of_few_channels_is_right_at_any_stride(case, dtype):
    x_shape, w_shape, geometry, out, _ = case
    w, grad = values(1, *w_shape).astype(dtype), values(3, x_shape[0], *out, w_shape[0])
    got = narrow.conv_input_grad(grad.astype(dtype), w, None, x_shape, geometry)
    wide = w.astype(np.float64)
    expected = reference.conv_input_grad(
        grad.astype(dtype).astype(np.float64), wide, None, x_shape, geometry, 1
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("threads", [1, 2])
def test_images_in_batches_and_blocks_of_many_channels_give_the_definition(threads):
    """Small images with many channels: several are worked on at a time, and blocks do not end evenly."""
    x_shape, w_shape = (37, 4, 5, 96), (160, 96, 3, 3)
    plain = (3, 3, 1, 1, 1, 1, 1, 1)
    before, steps = dptrain.get_num_threads(), (3, 3, 2, 2, 1, 1, 1, 1)
    dptrain.set_num_threads(threads)
    try:
        case = x_shape, w_shape, plain, (4, 5), 1
        pairs = zip(three_by_winograd(case), three(reference, np.float64, case), strict=True)
        for got, expected in pairs:
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        case = x_shape, w_shape, steps, (2, 3), 1
        pairs = zip(
            three(direct, np.float32, case), three(reference, np.float64, case), strict=True
        )
        for got, expected in pairs:
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    finally:
        dptrain.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_depthwise_bands_of_large_images_give_the_definition(threads):
    """Rows that fill a band by themselves, channels behind whole vectors, more taps than a tile has sums."""
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        for kernel, steps, pads, gaps in (
            ((3, 9), (1, 1), (1, 4), (1, 1)),
            ((3, 3), (2, 2), (1, 1), (1, 1)),
            ((2, 3), (1, 1), (3, 0), (2, 1)),
        ):
            geometry = (*kernel, *steps, *pads, *gaps)
            out = tuple(
                (size + 2 * p - d * (k - 1) - 1) // s + 1
                for size, k, s, p, d in zip((7, 41), kernel, steps, pads, gaps, strict=True)
            )
            case = (2, 7, 41, 517), (517, 1, *kernel), geometry, out, 517
            assert algorithm(Problem(2, 517, 517, *out, geometry, 517, True)) == "depthwise"
            pairs = zip(
                three(native, np.float32, case), three(reference, np.float64, case), strict=True
            )
            for got, expected in pairs:
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    finally:
        dptrain.set_num_threads(before)


def test_what_lies_in_scratch_memory_takes_no_part_in_sums(monkeypatch):
    """Nobody reads the padding of vectors, but subnormal numbers in it cost fifty times the time."""
    seen = []

    def dirty(nbytes):
        place = memory.scratch(nbytes)
        memory._scratch.held.fill(255)  # NaN in every type
        return place

    def watched(sums, *more):
        seen.append(sums.copy())
        weights.collected(sums, *more)

    monkeypatch.setattr(direct, "scratch", dirty)
    monkeypatch.setattr(direct, "collected", watched)
    x, grad = values(0, 2, 7, 7, 3).astype("f"), values(1, 2, 5, 5, 9).astype("f")
    direct.conv_weight_grad(x, grad, (9, 3, 3, 3), (3, 3, 1, 1, 0, 0, 1, 1), 1)
    (sums,) = seen
    assert sums.shape[-1] > 9, "this machine's vectors need no padding for 9 channels"
    assert not sums[..., 9:].any()


def test_shares_of_a_job_do_not_depend_on_who_computes_them():
    """Two threads that compute at once give what one gives alone."""
    from concurrent.futures import ThreadPoolExecutor

    case = ((8, 12, 12, 24), (40, 24, 3, 3), (3, 3, 1, 1, 1, 1, 1, 1), (12, 12), 1)
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(2)
    try:
        alone = three(native, np.float32, case)
        with ThreadPoolExecutor(3) as callers:
            for together in callers.map(lambda _: three(native, np.float32, case), range(30)):
                for got, expected in zip(together, alone, strict=True):
                    np.testing.assert_array_equal(got, expected)
    finally:
        dptrain.set_num_threads(before)


def test_a_spawned_and_a_forked_process_compute_too():
    code = """
import multiprocessing, os, sys
import numpy as np
sys.path.insert(0, "tests/core")
import dptrain
from dptrain.core.kernels import native

def work(_):
    x, w = np.ones((4, 9, 9, 8), "f"), np.ones((32, 8, 3, 3), "f")
    return float(native.conv(np.repeat(x, 8, 3), np.repeat(w, 8, 1), None, 7, 7, (3, 3, 1, 1, 0, 0, 1, 1), 1).sum())

if __name__ == "__main__":
    dptrain.set_num_threads(2)
    expected = work(0)
    for kind in ("spawn", "fork"):
        with multiprocessing.get_context(kind).Pool(2) as workers:
            assert workers.map(work, range(4), 1) == [expected] * 4
    print(expected)
"""
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(code)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", file.name],
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 4 * 32 * 49 * 64 * 9


@pytest.mark.parametrize(
    ("features", "architecture", "expected"),
    [
        ({"avx512f": True, "avx2": True}, "x86_64", Target("AVX-512", 64, 24)),
        ({"avx2": True}, "x86_64", Target("AVX2", 32, 12)),
        ({"neon": True}, "aarch64", Target("NEON", 16, 24)),
        ({}, "riscv64", Target("128-bit vectors", 16, 12)),
    ],
)
def test_tile_sizes_follow_from_the_processor(features, architecture, expected):
    found = target_of(features, architecture)
    assert found == expected
    # Sums, one row of the other factor and one spread number fit in the registers.
    registers = 32 if expected.accumulators == 24 else 16
    for vectors in (1, 2):
        assert found.most_rows(vectors) * vectors + vectors + 1 <= registers


def test_every_tile_size_computes_its_sums_and_writes_nothing_else():
    import ctypes

    from dptrain.core.kernels.memory import address
    from dptrain.core.kernels.micro import TILE_ARGUMENTS, tile

    for real in (np.float32, np.float64):
        lanes = target().lanes(np.dtype(real).itemsize)
        size = np.dtype(real).itemsize
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(TILE_ARGUMENTS))(
            tile.address(real)
        )
        for columns in range(1, 2 * lanes + 1):
            for rows in range(1, target().most_rows(1 if columns <= lanes else 2) + 1):
                a, b = values(1, 2, 3, rows, 5).astype(real), values(2, 2, 3, 5, 2 * lanes)
                b, start = b.astype(real), values(3, 2 * lanes).astype(real)
                c = np.full((rows + 1, 2 * lanes + 3), 7, real)
                s = [v // size * size for v in a.strides]
                t = b.strides
                function(
                    *(rows, columns, address(start), 0),
                    *(address(a), s[2], s[0], s[1], s[3], address(b), *t[:3]),
                    *(2, 3, 5, address(c), c.strides[0]),
                )
                expected = start + np.einsum("ijmk,ijkn->mn", a, b)
                np.testing.assert_allclose(
                    c[:rows, :columns], expected[:, :columns], atol=1e-4, rtol=1e-4
                )
                assert (c[:rows, columns:] == 7).all()
                assert (c[rows] == 7).all()


@st.composite
def winograd_cases(draw):
    taps = draw(st.sampled_from([3, 5]))
    pads = draw(st.tuples(st.integers(0, taps - 1), st.integers(0, taps - 1)))
    h, w = draw(st.integers(taps, 21)), draw(st.integers(taps, 21))
    n, c, o = draw(st.integers(1, 6)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
    out = (h + 2 * pads[0] - taps + 1, w + 2 * pads[1] - taps + 1)
    return (n, h, w, c), (o, c, taps, taps), (taps, taps, 1, 1, *pads, 1, 1), out, 1


def three_by_winograd(case):
    x_shape, w_shape, geometry, out, _ = case
    x, w, b = (
        values(i, *s).astype(np.float32) for i, s in enumerate((x_shape, w_shape, w_shape[:1]))
    )
    grad = values(3, x_shape[0], *out, w_shape[0]).astype(np.float32)
    more = values(4, x_shape[3]).astype(np.float32)
    pads = geometry[4:6]
    return [
        winograd.conv(x, w, b, *out, pads),
        winograd.conv_input_grad(grad, w, more, x_shape, pads),
        *winograd.conv_weight_grad(x, grad, w_shape, pads),
    ]


@settings(max_examples=30, deadline=None)
@given(winograd_cases(), st.sampled_from([1, 2, 4]))
def test_winograd_is_the_definition_to_its_bound(case, threads):
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        got = three_by_winograd(case)
    finally:
        dptrain.set_num_threads(before)
    for result, expected, bound in zip(
        got, three(reference, np.float64, case), (2e-5, 2e-5, 1e-4, 1e-5), strict=True
    ):
        np.testing.assert_allclose(result, expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("taps", winograd.SIZES)
def test_cook_toom_matrices_are_exact(taps):
    """In fractions: y = output @ ((taps @ g) * (image @ d)) is the correlation, for all unit vectors."""
    found = transforms(TILE, taps)
    size = TILE + taps - 1
    for g in range(taps):
        for d in range(size):
            product = [f[g] * i[d] for f, i in zip(found.taps, found.image, strict=True)]
            for y, row in enumerate(found.output):
                total = sum(p * c for p, c in zip(product, row, strict=True))
                assert total == int(y + g == d)


def test_the_choice_is_a_pure_function_and_can_be_pinned():
    plain = Problem(8, 16, 16, 8, 8, (3, 3, 1, 1, 1, 1, 1, 1), 1, True)
    assert algorithm(plain) == "winograd"
    for change in (
        {"float32": False},
        {"channels": 15},
        {"images": 1},
        {"groups": 2},
        {"geometry": (3, 3, 2, 2, 1, 1, 1, 1)},
        {"geometry": (3, 3, 1, 1, 1, 1, 2, 2)},
        {"geometry": (3, 5, 1, 1, 1, 1, 1, 1)},
    ):
        assert algorithm(plain._replace(**change)) == "direct"
    assert algorithm(plain._replace(groups=16)) == "depthwise"
    point = {"geometry": (1, 1, 2, 2, 0, 0, 1, 1)}
    for change in (point, {"images": 1, "channels": 256, "results": 512}):
        assert algorithm(plain._replace(**change)) == "lowered"
    assert algorithm(plain._replace(groups=2, **point)) == "direct"
    assert algorithm(plain._replace(images=0)) == "reference"
    dptrain.backends.conv_algo = "direct"
    try:
        assert dptrain.backends.conv_algo == "direct"
        assert algorithm(plain) == "direct"
    finally:
        dptrain.backends.conv_algo = "auto"
    with pytest.raises(ValueError, match="conv_algo must be one of auto, direct, got 'fast'"):
        dptrain.backends.conv_algo = "fast"


def planted(monkeypatch, old, new):
    """The tile with a fault in its generator, in the place of the right one."""
    import inspect

    from dptrain.core.kernels import code_files

    source = inspect.getsource(micro._emit_tile)
    assert old in source
    space = dict(vars(micro))
    exec(source.replace(old, new), space)
    monkeypatch.setattr(micro, "_emit_tile", space["_emit_tile"])
    faulty = type(micro.tile)(
        micro.tile._function,
        micro.tile._signature,
        {**micro.tile._options},
    )
    monkeypatch.setattr(
        faulty,
        "_make",
        lambda variant, names: code_files.link(faulty.compile(f"fault-{id(names)}", names)),
    )
    monkeypatch.setattr(direct, "tile", faulty)
    monkeypatch.setattr(direct, "tile_facts", direct.tile_facts.__wrapped__)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            'offsets = [b.mul(g["a_m"], ir.IntType(64)(m))',
            'offsets = [b.mul(g["a_m"], ir.IntType(64)(max(m - 1, 0)))',
        ),
        ('emitter.loop(g["size_j"]', 'emitter.loop(b.sub(g["size_j"], ir.IntType(64)(1))'),
        ("ir.IntType(64)(v * emitter.lanes)))", "ir.IntType(64)(v * emitter.lanes + 1)))"),
    ],
    ids=["a row read twice", "a missing tap", "a wrong edge"],
)
def test_faults_planted_in_the_generator_are_seen(monkeypatch, old, new):
    """What the comparison above is worth: it fails for each of these."""
    planted(monkeypatch, old, new)
    case = ((2, 6, 9, 7), (21, 7, 3, 3), (3, 3, 1, 1, 1, 1, 2, 2), (4, 7), 1)
    with pinned("direct"):
        got = three(native, np.float32, case)
    exact = three(reference, np.float64, case)
    wrong = [not np.allclose(g, e, atol=1e-3) for g, e in zip(got, exact, strict=True)]
    assert any(wrong)
