"""Recurrent layers: the compiled kernels against their definition, and the operations made of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dptrain
from dptrain.core.kernels import reference
from dptrain.core.ops.recurrence import GATES

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba not installed")

relaxed = settings(max_examples=30, deadline=None)
modes = st.sampled_from(sorted(GATES))


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = dptrain.get_num_threads()
    yield
    dptrain.set_num_threads(before)


def values(seed, *shape, dtype=np.float64):
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(dtype)


class Case:
    """A layer's arrays."""

    def __init__(self, mode, sizes, hidden, width, dtype, reverse, weights=True):
        self.mode, self.sizes, self.reverse = mode, sizes, reverse
        n, rows, blocks = sizes[0], sum(sizes), GATES[mode]
        width = width if mode == "LSTM" and weights else hidden
        self.gates = values(1, rows, blocks * hidden, dtype=dtype)
        self.w_hh = values(2, blocks * hidden, width, dtype=dtype) if weights else None
        self.bias = values(3, hidden, dtype=dtype) if weights and mode == "GRU" else None
        self.w_hr = values(4, width, hidden, dtype=dtype) if width != hidden else None
        self.start = (values(5, n, width, dtype=dtype),)
        if mode == "LSTM":
            self.start += (values(6, n, hidden, dtype=dtype),)
        self.grads = (values(7, rows, width, dtype=dtype),)
        self.grads += tuple(values(8, *part.shape, dtype=dtype) for part in self.start)
        self.kept = None if weights else values(9, rows, hidden, dtype=dtype)

    def forward(self, provider):
        kept = None if self.kept is None else self.kept.copy()
        return provider.recurrent(
            self.mode, self.gates.copy(), kept, self.w_hh, self.bias, self.w_hr, self.start,
            self.sizes, self.reverse,
        )  # fmt: skip

    def backward(self, provider, out, kept, grads=None):
        grad, *grad_last = grads or self.grads
        return provider.recurrent_grad(
            self.mode, grad, tuple(grad_last), out, kept, self.w_hh, self.w_hr, self.start,
            self.sizes, self.reverse,
        )  # fmt: skip

    def results(self, provider):
        out, last, kept = self.forward(provider)
        slopes, of_state, of_start, of_out = self.backward(provider, out, kept)
        of_start = of_start if self.w_hh is not None or self.mode == "GRU" else of_start[1:]
        found = [out, *last, slopes, of_state, *of_start]
        return found if of_out is None else [*found, of_out]


@relaxed
@given(
    modes, st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 75), st.integers(1, 40),
    st.sampled_from([np.float32, np.float64]), st.booleans(), st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_layers_and_their_gradients_are_the_definition(
    mode, sizes, hidden, width, dtype, reverse, threads
):
    sizes = tuple(sorted(sizes, reverse=True))
    dptrain.set_num_threads(threads)
    got = Case(mode, sizes, hidden, width, dtype, reverse).results(native)
    if mode == "RNN_RELU" and dtype == np.float32:
        return  # what is just above zero on one side may be just below it on the other
    expected = Case(mode, sizes, hidden, width, np.float64, reverse)
    exact = Case(mode, sizes, hidden, width, dtype, reverse)
    for name in ("gates", "w_hh", "bias", "w_hr"):
        value = getattr(exact, name)
        setattr(expected, name, None if value is None else value.astype(np.float64))
    expected.start = tuple(p.astype(np.float64) for p in exact.start)
    expected.grads = tuple(g.astype(np.float64) for g in exact.grads)
    for value, wanted in zip(got, expected.results(reference), strict=True):
        assert value.dtype == dtype
        # Rounding grows with the steps, by the size of the weights' product at most.
        bound = 1e4 * np.finfo(dtype).eps * max(1, np.abs(wanted).max())
        np.testing.assert_allclose(value, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gates_without_products_are_the_definition(mode, dtype):
    case = Case(mode, (5,), 37, 37, dtype, False, weights=False)
    for value, wanted in zip(case.results(native), case.results(reference), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("mode", sorted(GATES))
def test_threads_change_no_bit(mode):
    found = []
    for threads in (1, 2, 3):
        dptrain.set_num_threads(threads)
        found.append(Case(mode, (23, 23, 20, 9, 2), 64, 24, np.float32, True).results(native))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_gates_keep_their_ends_and_what_is_no_number():
    far = np.array([[-1e30, -100, -1e-30, 0, 1e-30, 100, 1e30, np.inf, -np.inf, np.nan]])
    for dtype in (np.float32, np.float64):
        x = np.tile(far, 4).astype(dtype)
        start = (np.zeros((1, 10), dtype), np.ones((1, 10), dtype))
        for provider in (native, reference):
            out, last, (gates, _) = provider.recurrent(
                "LSTM", x.copy(), None, None, None, None, start, (1,), False
            )
            sigmoid, tanh = gates[0, :10], gates[0, 20:30]
            np.testing.assert_allclose(
                sigmoid, [0, 0, 0.5, 0.5, 0.5, 1, 1, 1, 0, np.nan], atol=1e-30
            )
            expected = np.array([-1, -1, -1e-30, 0, 1e-30, 1, 1, 1, -1, np.nan])
            np.testing.assert_allclose(tanh, expected, rtol=1e-6)
            np.testing.assert_array_equal(
                np.isnan([out[0], last[1][0]]), [[False] * 9 + [True]] * 2
            )


@pytest.mark.parametrize("mode", sorted(GATES))
@pytest.mark.parametrize("reverse", [False, True])
def test_the_definition_is_the_derivative_of_its_forward(mode, reverse):
    case = Case(mode, (4, 3, 3, 1), 5, 3, np.float64, reverse)
    out, _, kept = case.forward(reference)
    slopes, _, of_start, _ = case.backward(reference, out, kept)

    def loss():
        out, last, _ = case.forward(reference)
        return sum((g * v).sum() for g, v in zip(case.grads, (out, *last), strict=True))

    for array, slope in zip((case.gates, *case.start), (slopes, *of_start), strict=True):
        step = values(11, *array.shape)
        array += 1e-6 * step
        above = loss()
        array -= 2e-6 * step
        below = loss()
        array += 1e-6 * step
        assert (above - below) / 2e-6 == pytest.approx((slope * step).sum(), rel=1e-6, abs=1e-8)


# ---- the operations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"bidirectional": True}),
        ("LSTM", {"proj_size": 2}),
        ("GRU", {"num_layers": 2}),
        ("GRU", {"bias": False}),
        ("RNN", {}),
    ],
)
def test_layers_have_two_derivatives(kind, options):
    dptrain.manual_seed(3)
    net = getattr(dptrain.nn, kind)(2, 3, **options).double()
    x = dptrain.tensor(values(1, 3, 2, 2), requires_grad=True)
    weights = list(net.parameters())

    def run(x, *weights):
        out, last = dptrain.func.functional_call(
            net, dict(zip((n for n, _ in net.named_parameters()), weights, strict=True)), (x,)
        )
        return out, *(last if kind == "LSTM" else (last,))

    assert dptrain.autograd.gradcheck(run, (x, *weights))
    assert dptrain.autograd.gradgradcheck(run, (x, *weights))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_packed_layers_have_two_derivatives_and_tied_states(kind):
    rnn = dptrain.nn.utils.rnn
    net = getattr(dptrain.nn, kind)(2, 3, bidirectional=True).double()
    x = dptrain.tensor(values(1, 3, 4, 2), requires_grad=True)
    start = dptrain.tensor(values(2, 2, 3, 3), requires_grad=True)

    def run(x, start):
        packed = rnn.pack_padded_sequence(x, [4, 2, 1], batch_first=True)
        out, last = net(packed, (start, start) if kind == "LSTM" else start)
        return out.data, *(last if kind == "LSTM" else (last,))

    assert dptrain.autograd.gradcheck(run, (x, start))
    assert dptrain.autograd.gradgradcheck(run, (x, start))


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_have_two_derivatives(kind):
    cell = getattr(dptrain.nn, kind)(2, 3).double()
    x, h = (dptrain.tensor(values(i, 2, 1 + i), requires_grad=True) for i in (1, 2))

    def run(x, h):
        state = (h, h * 2) if kind == "LSTMCell" else h
        for _ in range(2):
            state = cell(x, state)
        return state

    assert dptrain.autograd.gradcheck(run, (x, h))
    assert dptrain.autograd.gradgradcheck(run, (x, h))


def test_a_changed_output_is_an_error_of_use():
    out, _ = dptrain.nn.GRU(3, 4)(dptrain.rand(5, 2, 3))
    loss = out.sum()
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_one_of_the_results_alone_is_enough(kind):
    torch = pytest.importorskip("torch", reason="PyTorch not installed")
    x, found = values(1, 1, 2, 3), []
    nets = [getattr(lib.nn, kind)(3, 4, 2, bidirectional=True).double() for lib in (dptrain, torch)]
    for name, weight in nets[1].named_parameters():
        nets[0].get_parameter(name).data.copy_(dptrain.from_numpy(weight.detach().numpy()))
    for which in ("out", "h", "c" if kind == "LSTM" else "h"):
        for lib, net in zip((dptrain, torch), nets, strict=True):
            net.zero_grad()
            out, last = net(lib.tensor(x))
            h, c = last if kind == "LSTM" else (last, last)
            ({"out": out, "h": h, "c": c}[which] ** 2).sum().backward()
            found.append([p.grad.numpy() for p in net.parameters()])
        for got, expected in zip(*found[-2:], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
