"""The kernels of convolution over volumes against their definition in float64, over random shapes and thread counts."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dptrain
from dptrain.core.conv_algo import pinned
from dptrain.core.kernels import reference

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba not installed")
from dptrain.core.kernels import memory, volume, volume_weight, volume_winograd  # noqa: E402


@st.composite
def cases(draw, most_channels=36):
    """Shapes of (x, weight), windows, result sizes, groups."""
    kernel, stride, dilation = (draw(st.tuples(*[st.integers(1, most)] * 3)) for most in (4, 3, 3))
    pad = draw(st.tuples(*[st.integers(0, 3)] * 3))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [max(1, s - 2 * p) for s, p in zip(spans, pad, strict=True)]
    sizes = [n + draw(st.integers(0, 5)) for n in least]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    inputs, outputs = draw(st.integers(1, most_channels)), draw(st.integers(1, most_channels))
    if draw(st.integers(0, 3)) == 0:  # as in depthwise convolutions
        groups, inputs, outputs = inputs, 1, 1
    out = tuple(
        (size + 2 * p - span) // s + 1
        for size, p, span, s in zip(sizes, pad, spans, stride, strict=True)
    )
    n = draw(st.integers(0, 3))
    x, w = (n, *sizes, inputs * groups), (outputs * groups, inputs, *kernel)
    return x, w, (kernel, stride, pad, dilation), out, groups


def values(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def results(provider, dtype, case):
    """Result, gradients of input, weight and bias, and what a transposed convolution gives."""
    x_shape, w_shape, windows, outs, groups = case
    x, w, b = (values(i, *s).astype(dtype) for i, s in enumerate((x_shape, w_shape, w_shape[:1])))
    grad = values(3, x_shape[0], *outs, w_shape[0]).astype(dtype)
    more = values(4, x_shape[4]).astype(dtype)
    return [
        provider.conv_volume(x, w, b, outs, windows, groups),
        provider.conv_volume_input_grad(grad, w, more, x_shape, windows, groups),
        *provider.conv_volume_weight_grad(x, grad, w_shape, windows, groups),
    ]


def products(case):
    """How many products are summed in each of `results`."""
    x_shape, w_shape, _, outs, _ = case
    taps, places = np.prod(w_shape[2:]), x_shape[0] * np.prod(outs)
    return [taps * w_shape[1], taps * w_shape[0], places, places]


@contextmanager
def budgets(small):
    """Small ones cut what is worked on at a time into planes, rows, places, rows of tiles, whose windows overlap."""
    held = volume._COPIED, volume_weight._REUSED, volume_winograd._BUDGET, volume_winograd._LEAST
    weights = volume._WEIGHTS
    plans = volume._forward, volume._backward, volume_weight._outer, volume_winograd._plan
    if small:
        volume._COPIED, volume_weight._REUSED, volume._WEIGHTS = 1 << 9, 1 << 9, 1 << 9
        volume_winograd._BUDGET, volume_winograd._LEAST = 1 << 12, 1
        for plan in plans:
            plan.cache_clear()
    try:
        yield
    finally:
        volume._COPIED, volume_weight._REUSED = held[:2]
        volume._WEIGHTS = weights
        volume_winograd._BUDGET, volume_winograd._LEAST = held[2:]
        if small:
            for plan in plans:
                plan.cache_clear()


@contextmanager
def on(threads):
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        yield
    finally:
        dptrain.set_num_threads(before)


@settings(max_examples=50, deadline=None)  # the first example compiles
@given(
    cases(), st.sampled_from([np.float32, np.float64]), st.sampled_from([1, 2, 4]), st.booleans()
)
def test_convolution_over_volumes_is_the_definition_to_rounding(case, dtype, threads, small):
    with on(threads), budgets(small), pinned("direct"):
        got = results(native, dtype, case)
    exact = results(reference, np.float64, case)
    for result, expected, number in zip(got, exact, products(case), strict=True):
        assert result.dtype == dtype
        # Products of standard normal numbers: the sum of their sizes grows with their number.
        bound = np.finfo(dtype).eps * (number + 4) * np.sqrt(number + 4) * 4
        np.testing.assert_allclose(result, expected, rtol=0, atol=max(bound, 1e-12 * number))


@pytest.mark.parametrize("threads", [2, 4])
def test_bits_do_not_depend_on_the_number_of_threads(threads):
    case = (
        (2, 6, 20, 21, 12),
        (40, 12, 3, 3, 3),
        ((3, 3, 3), (2, 1, 1), (1, 1, 1), (1, 1, 1)),
        (3, 20, 21),
        1,
    )
    with on(1):
        alone = results(native, np.float32, case)
    with on(threads):
        for got, expected in zip(results(native, np.float32, case), alone, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_what_lies_in_scratch_memory_takes_no_part(monkeypatch):
    """Borders, and what fills vectors up, are zeros whatever was there before."""
    case = (
        (2, 5, 7, 6, 3),
        (9, 3, 3, 3, 2),
        ((3, 3, 2), (1, 2, 1), (1, 1, 1), (1, 1, 2)),
        (5, 4, 6),
        1,
    )
    clean = results(native, np.float32, case)

    def dirty(nbytes):
        place = memory.scratch(nbytes)
        memory._scratch.held.fill(255)  # NaN in every type
        return place

    for module in (volume, volume_weight):
        monkeypatch.setattr(module, "scratch", dirty)
    for got, expected in zip(results(native, np.float32, case), clean, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_scratch_memory_holds_every_plane_that_is_copied():
    """Phases of an input's gradient may begin some planes apart from each other."""
    for kernel in range(1, 6):
        for stride in range(1, 5):
            for dilation in range(1, 6):
                outs, pad = 9, 2
                deep = max(1, (outs - 1) * stride + dilation * (kernel - 1) + 1 - 2 * pad)
                windows = ((kernel, 2, 3), (stride, 1, 1), (pad, 0, 1), (dilation, 1, 1))
                shape, grad = (1, deep, 4, 4, 2), (1, outs, 3, 4, 2)
                plan = volume._backward(grad, shape, windows, 1, np.dtype("f"))
                chunks = plan._phases[1]
                for chunk in range(chunks):
                    seen = set()
                    for p in plan._table:
                        z, end = chunk * p[0] // chunks, (chunk + 1) * p[0] // chunks
                        for row in range(z, end):
                            seen |= {p[7] + row * p[10] + tap * p[13] for tap in range(p[16])}
                    inside = [s for s in seen if 0 <= s < outs]
                    if inside:
                        held = plan._own // (3 * (4 + 2) * 2 * 4)
                        assert max(inside) - min(inside) + 1 <= max(held, 1)


@st.composite
def transform_cases(draw):
    deep, taps = draw(st.integers(1, 4)), draw(st.sampled_from([3, 5]))
    kernel = (deep, taps, taps)
    pads = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    sizes = tuple(
        k + draw(st.integers(0, most)) for k, most in zip(kernel, (6, 12, 12), strict=True)
    )
    n, c, o = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    outs = tuple(s + 2 * p - k + 1 for s, p, k in zip(sizes, pads, kernel, strict=True))
    ones = (1, 1, 1)
    return (n, *sizes, c), (o, c, *kernel), (kernel, ones, pads, ones), outs, 1


class ByTransform:
    """`volume_winograd` under the names of a provider."""

    @staticmethod
    def conv_volume(x, w, b, outs, windows, groups):
        return volume_winograd.conv(x, w, b, outs, windows[2])

    @staticmethod
    def conv_volume_input_grad(grad, w, b, shape, windows, groups):
        return volume_winograd.conv_input_grad(grad, w, b, shape, windows[2])

    @staticmethod
    def conv_volume_weight_grad(x, grad, shape, windows, groups):
        return volume_winograd.conv_weight_grad(x, grad, shape, windows[2])


@settings(max_examples=30, deadline=None)
@given(transform_cases(), st.sampled_from([1, 2, 4]), st.booleans())
def test_fewer_products_give_the_definition_to_their_bound(case, threads, small):
    with on(threads), budgets(small):
        got = results(ByTransform, np.float32, case)
    exact = results(reference, np.float64, case)
    for result, expected, number, bound in zip(
        got, exact, products(case), (2e-5, 2e-5, 2e-4, 1e-5), strict=True
    ):
        # Relative to what is summed, which is more than what is left of it.
        scale = max(np.sqrt(number), np.abs(expected).max())
        np.testing.assert_allclose(result, expected, rtol=0, atol=bound * scale)


@pytest.mark.parametrize(
    ("shape", "o", "windows", "chosen"),
    [
        ((1, 8, 16, 16, 32), 32, ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)), True),
        ((1, 8, 16, 16, 3), 32, ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)), False),
        ((1, 8, 16, 16, 32), 32, ((3, 3, 3), (2, 1, 1), (1, 1, 1), (1, 1, 1)), False),
        ((1, 8, 16, 16, 32), 32, ((3, 3, 3), (1, 1, 1), (3, 1, 1), (1, 1, 1)), False),
        ((1, 2, 4, 4, 32), 32, ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)), False),
    ],
)
def test_fewer_products_are_chosen_where_they_serve_and_pay(shape, o, windows, chosen):
    kernel, stride, pads, _ = windows
    outs = [
        (s + 2 * p - k) // t + 1
        for s, k, t, p in zip(shape[1:4], kernel, stride, pads, strict=True)
    ]
    rest = (shape, (shape[0], *outs, o), windows, 1)
    assert volume._by_transform("auto", *rest, np.dtype("f")) is chosen
    assert not volume._by_transform("direct", *rest, np.dtype("f"))
    assert not volume._by_transform("auto", *rest, np.dtype("d"))


@pytest.mark.parametrize(
    ("shape", "weight", "geometry", "groups"),
    [
        ((2, 1, 6000, 32), (40, 32, 1, 3), (1, 3, 1, 2, 0, 4, 1, 3), 1),
        ((1, 70, 90, 36), (8, 18, 3, 3), (3, 3, 1, 1, 1, 1, 1, 1), 2),
        ((1, 1, 70000, 1), (17, 1, 1, 10), (1, 10, 1, 5, 0, 0, 1, 1), 1),
    ],
)
def test_images_that_no_cache_holds_have_their_weight_gradient_in_parts(
    shape, weight, geometry, groups
):
    kernel, stride, pad, gap = (geometry[i : i + 2] for i in range(0, 8, 2))
    outs = [
        (s + 2 * p - g * (k - 1) - 1) // t + 1
        for s, k, t, p, g in zip(shape[1:3], kernel, stride, pad, gap, strict=True)
    ]
    x, grad = values(0, *shape), values(1, shape[0], *outs, weight[0])
    single = x.astype("f"), grad.astype("f")
    assert volume_weight.pays(*single)
    with pinned("direct"):
        got = native.conv_weight_grad(*single, weight, geometry, groups)
    exact = reference.conv_weight_grad(x, grad, weight, geometry, groups)
    for result, expected in zip(got, exact, strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
