"""Products on GPUs without a GPU: what is asked of cuBLAS, computed from its addresses by a stand-in."""

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace

import fake_cublas
import fake_cupy
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dptrain
from dptrain.core import kernels
from dptrain.core.kernels import reference
from dptrain.core.kernels.cuda import cublas, gemm, matrices

F = dptrain.nn.functional
relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KINDS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
#: Half a step of rounding; what float32 sums of these sizes lose.
NEAR = {np.float16: 1e-3, ml_dtypes.bfloat16: 8e-3, np.float32: 1e-5, np.float64: 1e-12}


@pytest.fixture
def blas(monkeypatch):
    with fake_cublas.installed(monkeypatch) as binding:
        yield binding


def values(shape, kind, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(kind)


@st.composite
def laid_out(draw, shape, kind, seed):
    """Values of that shape in memory of any order, with gaps, or repeated."""
    order = draw(st.permutations(range(len(shape))))
    inverse = np.argsort(order)
    gaps = [draw(st.integers(0, 2)) for _ in shape]
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1])) for _ in shape]
    inner = [shape[d] for d in order]
    whole = values([s * abs(t) + g for s, t, g in zip(inner, steps, gaps, strict=True)], kind, seed)
    cut = tuple(slice(0, s * abs(t), abs(t)) for s, t in zip(inner, steps, strict=True))
    found = whole[cut][tuple(slice(None, None, -1 if t < 0 else 1) for t in steps)]
    found = found.transpose(inverse)
    assert found.shape == tuple(shape)
    for d in range(len(shape)):
        if shape[d] > 1 and draw(st.integers(0, 7)) == 0:
            one = found[(slice(None),) * d + (slice(0, 1),)]
            found = np.broadcast_to(one, shape)
    return found


@st.composite
def factors(draw, kinds=KINDS):
    kind = draw(st.sampled_from(kinds))
    sizes = st.integers(0, 4) if draw(st.integers(0, 5)) == 0 else st.integers(1, 4)
    m, k, n = (draw(sizes) for _ in range(3))
    batch = draw(st.lists(st.integers(1, 3), max_size=3))
    parts = []
    for matrix in ([m, k], [k, n]):
        own = [1 if draw(st.integers(0, 3)) == 0 else s for s in batch]
        parts.append(own[draw(st.integers(0, len(own))) :] + matrix)
    a, b = (draw(laid_out(s, kind, i)) for i, s in enumerate(parts))
    if draw(st.integers(0, 4)) == 0 and a.ndim == 2 and m:
        a = a[0]
    if draw(st.integers(0, 4)) == 0 and b.ndim == 2 and n:
        b = b[:, 0]
    return a, b


def close(found, exact, kind):
    assert found.dtype == kind
    near = NEAR[kind]
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=near, atol=4 * near)


@relaxed
@given(factors())
def test_products_of_arrays_as_they_lie_in_memory(blas, pair):
    a, b = pair
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
    found = gemm.matmul(a, b)
    assert found.shape == exact.shape
    close(found, exact, a.dtype.type)


@relaxed
@given(factors(), st.data())
def test_products_are_written_where_they_are_wanted(blas, pair, data):
    a, b = pair
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
    out = np.array(data.draw(laid_out(exact.shape, a.dtype.type, 5)), order="K")
    if data.draw(st.booleans()) and out.ndim == 2:
        out = np.empty((out.shape[0], out.shape[1] + 3), a.dtype)[:, 1:-2]
    out[...] = np.nan  # which must not be looked at
    assert gemm.matmul(a, b, out) is out
    close(out, exact, a.dtype.type)


@relaxed
@given(factors((np.float16, np.float32)), st.sampled_from([0, 1, 0.5]), st.sampled_from([1, 2]))
def test_sums_with_products_are_rounded_once(blas, pair, beta, alpha):
    a, b = (x if x.ndim > 1 else x[None] for x in pair)
    if a.shape[-1] != b.shape[-2]:
        b = np.swapaxes(b, -1, -2)
    exact = alpha * np.matmul(a.astype(np.float64), b.astype(np.float64))
    input = values(exact.shape[-1:], a.dtype, 3) if beta else np.full(exact.shape, np.nan, a.dtype)
    found = gemm.add_product(input, a, b, beta, alpha)
    close(found, exact + (beta * input.astype(np.float64) if beta else 0), a.dtype.type)
    # Rounding twice, product and sum, would differ from float32's sum rounded once somewhere.
    wide = np.float32(alpha) * np.matmul(a.astype(np.float32), b.astype(np.float32))
    wide += np.float32(beta) * input.astype(np.float32) if beta else 0
    if a.dtype == np.float16 and a.shape[-1] <= 1:
        np.testing.assert_array_equal(found, wide.astype(a.dtype))


CASES = [
    ("rows", (6, 8), lambda x: x),
    ("columns", (8, 6), lambda x: x.T),
    ("part of the rows", (9, 8), lambda x: x[1:-2]),
    ("part of the columns", (6, 11), lambda x: x[:, 2:-1]),
    ("columns, in part", (11, 7), lambda x: x.T[1:, 2:-1]),
    ("every second row", (12, 8), lambda x: x[::2]),
    ("batch", (3, 6, 8), lambda x: x),
    ("batch of transposed", (3, 8, 6), lambda x: x.swapaxes(1, 2)),
    ("two batch dimensions", (2, 3, 6, 8), lambda x: x),
    ("steps between rows", (6, 3, 8), lambda x: x.transpose(1, 0, 2)),
    ("a part of each", (2, 6, 3, 8), lambda x: x[:, :, 1]),
    ("repeated", (6, 8), lambda x: np.broadcast_to(x, (3, 6, 8))),
]


@pytest.mark.parametrize(("name", "shape", "view"), CASES, ids=[c[0] for c in CASES])
def test_what_cublas_can_take_is_not_copied(blas, name, shape, view):
    x = view(values(shape, np.float32))
    right = values((x.shape[-1], 5), np.float32, 1)
    left = values((4, x.shape[-2]), np.float32, 2)
    for a, b, at in ((x, right, "B"), (left, x, "A")):
        close(gemm.matmul(a, b), np.matmul(a.astype(float), b.astype(float)), np.float32)
        call = blas.calls.pop()
        assert not blas.calls
        assert getattr(call, at) == x.__array_interface__["data"][0]
        assert (
            getattr(call, "AB"["BA".index(at)])
            == (b if x is a else a).__array_interface__["data"][0]
        )


def test_a_batch_times_one_matrix_is_one_product_of_more_rows(blas):
    x, w = values((2, 3, 6, 8), np.float32), values((5, 8), np.float32)
    gemm.matmul(x, w.T)
    (call,) = blas.calls
    assert (call.count, call.sizes) == (1, (5, 36, 8))


def test_many_matrices_are_asked_for_in_parts(blas, monkeypatch):
    monkeypatch.setattr(gemm, "_MOST_MATRICES", 3)
    a, b = values((7, 2, 4), np.float64), values((7, 4, 3), np.float64, 1)
    close(gemm.matmul(a, b), a @ b, np.float64)
    assert [c.count for c in blas.calls] == [3, 3, 1]


def test_matrices_beyond_32_bits_are_refused(blas):
    zero = np.broadcast_to(np.float32(0), (1, 1))
    p = matrices.Plan((1, 1), sizes=(2**31, 1, 1))
    with pytest.raises(RuntimeError, match=r"matmul: cuBLAS multiplies .* got 2147483648 x 1"):
        gemm.cublas().multiply(p, zero, zero, zero, 1, 1)


def test_flags_choose_what_products_are_added_up_in(blas):
    flags, fast = dptrain.backends.cuda.matmul, blas.CUBLAS_COMPUTE_32F_FAST_TF32

    def asked(kind):
        gemm.matmul(values((2, 2), kind), values((2, 2), kind))
        call = blas.calls.pop()
        return call.compute, call.mode

    assert [asked(k) for k in KINDS] == [(68, 0), (68, 0), (68, 0), (70, 0)]
    try:
        flags.allow_tf32 = True
        assert dptrain.get_float32_matmul_precision() == "high"
        assert [asked(k)[0] for k in KINDS] == [68, 68, fast, 70]
        dptrain.set_float32_matmul_precision("highest")
        assert not flags.allow_tf32
        dptrain.set_float32_matmul_precision("medium")
        assert flags.allow_tf32
    finally:
        flags.allow_tf32 = False
    flags.allow_bf16_reduced_precision_reduction = False
    try:
        assert [asked(k)[1] for k in KINDS] == [0, 16, 0, 0]
        assert blas.mode == 0
    finally:
        flags.allow_bf16_reduced_precision_reduction = True


def test_other_types_are_multiplied_by_the_arrays_library(blas):
    for kind in (np.int32, np.complex64):
        a, b = values((2, 3), np.float64).astype(kind), values((3, 2), np.float64).astype(kind)
        np.testing.assert_array_equal(gemm.matmul(a, b), a @ b)
        np.testing.assert_array_equal(gemm.linear(a, b.T, None), a @ b)
    assert not blas.calls


# ---- operations --------------------------------------------------------------------------------


@pytest.fixture
def there(monkeypatch):
    """Tensors of a GPU whose products go to the stand-in for cuBLAS."""
    from fake_cupy import over_the_stand_in

    found = over_the_stand_in.__wrapped__("cuda")
    found.matmul, found.linear = gemm.matmul, gemm.linear
    with fake_cupy.installed(monkeypatch), fake_cublas.installed(monkeypatch) as binding:
        monkeypatch.setattr(kernels, "_cuda", lambda name: found)
        yield binding


OPS = {
    "matmul": (lambda x, w, v: x @ w.T, 1),
    "a batch": (lambda x, w, v: x.reshape(2, 3, 6) @ w.T, 1),
    "batches": (lambda x, w, v: x.reshape(2, 3, 6) @ x.reshape(2, 3, 6).mT, 1),
    "a vector": (lambda x, w, v: x @ v, 1),
    "a vector, batched": (lambda x, w, v: x.reshape(2, 3, 6) @ v, 1),
    "linear": (lambda x, w, v: F.linear(x, w), 1),
    "linear with bias": (lambda x, w, v: F.linear(x.reshape(2, 3, 6), w, v[:4]), 1),
    "linear of a vector": (lambda x, w, v: F.linear(x[0], w, v[:4]), 1),
    "addmm": (lambda x, w, v: dptrain.addmm(v[:4], x, w.T, beta=0.5, alpha=2), 1),
    "baddbmm": (lambda x, w, v: dptrain.baddbmm(v[:3], x.view(2, 3, 6), x.view(2, 3, 6).mT), 1),
    "einsum": (lambda x, w, v: dptrain.einsum("ij,kj->ik", x, w), 1),
}


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", OPS)
def test_operations_reach_tensor_cores_in_their_own_type(there, name, kind):
    make, forward_calls = OPS[name]
    arrays = [values(s, np.float32, i) for i, s in enumerate([(6, 6), (4, 6), (6,)])]

    def run(place, dtype):
        leaves = [dptrain.tensor(a).to(place, dtype).requires_grad_() for a in arrays]
        out = make(*leaves)
        assert out.dtype is dtype
        made = len(there.calls)
        out.backward(dptrain.ones(*out.shape).to(place, dtype))
        grads = [t.grad for t in leaves if t.grad is not None]
        return made, [t.detach().cpu().to(dptrain.float64).numpy() for t in (out, *grads)]

    dtype = getattr(dptrain, kind)
    _, expected = run("cpu", dtype)
    there.calls.clear()
    made, found = run("cuda:1", dtype)
    assert made == forward_calls
    assert len(there.calls) > made
    near = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-5}[kind]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=near, atol=near * 3)


def test_a_bias_costs_no_second_rounding(there):
    x, w = values((3, 64), np.float16), values((4, 64), np.float16, 1)
    bias = values(4, np.float16, 2) * np.float16(20)
    leaves = [dptrain.tensor(a).to("cuda") for a in (x, w, bias)]
    found = F.linear(*leaves).cpu().numpy()
    wide = x.astype(np.float32) @ w.T.astype(np.float32) + bias.astype(np.float32)
    np.testing.assert_array_equal(found, wide.astype(np.float16))


def test_a_gradient_is_written_into_its_slot(there):
    layer = dptrain.nn.Linear(6, 4).to("cuda:1")
    optimizer = dptrain.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        out = layer(dptrain.tensor(values((5, 6), np.float32)).to("cuda:1"))
        there.calls.clear()
        out.backward(dptrain.ones(5, 4).to("cuda:1"))
    slots = [c.C for c in there.calls]
    assert layer.weight.grad.data_ptr() in slots


def test_autocast_casts_a_weight_once_in_a_region_and_products_run_in_its_type(there):
    layer = dptrain.nn.Linear(6, 4).to("cuda:1")
    x = dptrain.tensor(values((5, 6), np.float32)).to("cuda:1")

    def casts(out):
        """The nodes that bring weight and bias to 16 bits."""
        return [node for node, _ in out.grad_fn.next_functions[1:]]

    with dptrain.autocast("cuda", dtype=dptrain.bfloat16):
        first, second = layer(x), layer(x)
        assert casts(first) == casts(second)
        assert len(casts(first)) == 2
    with dptrain.autocast("cuda", dtype=dptrain.bfloat16):
        third = layer(x)
        assert not set(casts(third)) & set(casts(first))
    assert first.dtype is dptrain.bfloat16
    (first + second).float().sum().backward()
    assert layer.weight.grad.dtype is dptrain.float32
    expected = 2 * x.cpu().to(dptrain.bfloat16).float().sum(0).expand(4, 6)
    np.testing.assert_allclose(layer.weight.grad.cpu().numpy(), expected.numpy(), rtol=1e-2)
    np.testing.assert_array_equal(layer.bias.grad.cpu().numpy(), np.full(4, 10, np.float32))


# ---- the binding -------------------------------------------------------------------------------


def asked_for():
    """(name, number of arguments or None) for all that `gemm` uses of the binding."""
    for node in ast.walk(ast.parse(Path(gemm.__file__).read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("blas."):
            assert not node.keywords
            yield node.func.attr, len(node.args)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("blas", "binding"):
            yield node.attr, None


def test_calls_and_constants_are_those_of_cupys_binding():
    cuda = pytest.importorskip("cupy.cuda", reason="CuPy is not installed (extra cuda13)")
    try:
        real = cuda.cublas
    except ImportError as error:
        pytest.skip(f"no libcublas: {error}")
    declared = {"gemmEx": cublas._GEMM, "gemmStridedBatchedEx": cublas._BATCHED}
    for name, count in asked_for():
        if name.isupper():
            assert (
                getattr(real, name)
                == getattr(cublas.Library, name)
                == getattr(fake_cublas.Binding, name)
            )
        if count is not None:
            line = getattr(real, name).__doc__.splitlines()[0]
            names = [
                part.split()[-1] for part in line[line.index("(") + 1 : line.index(")")].split(",")
            ]
            assert len(names) == count == len(declared.get(name, "hm"))
            ours = list(inspect.signature(getattr(fake_cublas.Binding, name)).parameters)[1:]
            assert names == ours
    for name in vars(fake_cublas.RUNTIME):
        assert getattr(cuda.runtime, name) == getattr(fake_cublas.RUNTIME, name)


class Functions:
    """libcublas, which notes what it is told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, args))
            if name == "cublasCreate_v2":
                args[0]._obj.value = 77
            return 0 if name != "cublasSetMathMode" else 13

        setattr(self, name, call)
        return call


class FakeStream:
    def __init__(self, ptr, capturing=False):
        self.ptr, self.capturing = ptr, capturing

    def is_capturing(self):
        return self.capturing


def test_a_handle_is_on_the_current_stream_with_a_workspace_of_that_stream_or_of_the_graph():
    stream, given = FakeStream(5), []

    def empty(size, kind):
        given.append(SimpleNamespace(data=SimpleNamespace(ptr=1000 + len(given)), size=size))
        return given[-1]

    cupy = SimpleNamespace(
        empty=empty,
        cuda=SimpleNamespace(
            runtime=SimpleNamespace(getDevice=lambda: 0),
            Device=lambda index: SimpleNamespace(compute_capability="90"),
            get_current_stream=lambda: stream,
        ),
    )
    functions = Functions()
    library = cublas.Library(cupy, functions)

    def told():
        library.handle()
        seen = [(name, *args[1:]) for name, args in functions.calls if "Set" in name]
        functions.calls.clear()
        return seen

    size = 32 << 20
    first = [("cublasSetStream_v2", 5), ("cublasSetWorkspace_v2", 1000, size)]
    assert told() == first
    assert told() == []
    stream = FakeStream(6)
    assert told() == [("cublasSetStream_v2", 6), ("cublasSetWorkspace_v2", 1001, size)]
    stream = FakeStream(5)
    assert told() == first  # the memory of that stream again
    stream = FakeStream(5, capturing=True)
    assert told() == [("cublasSetStream_v2", 5), ("cublasSetWorkspace_v2", 1002, size)]
    stream = FakeStream(5)
    assert told() == first
    with pytest.raises(
        RuntimeError, match="cublasSetMathMode failed: status 13, CUBLAS_STATUS_EXECUTION_FAILED"
    ):
        library.setMathMode(77, 0)


def test_the_linear_twin_takes_what_the_definition_takes(blas):
    x, w, b = values((2, 5, 6), np.float32), values((4, 6), np.float32, 1), values(4, np.float32, 2)
    for bias in (None, b):
        for rows in (x, x[0], x[0, 0], x[:0]):
            expected = reference.linear(rows, w, bias)
            np.testing.assert_allclose(gemm.linear(rows, w, bias), expected, rtol=1e-5, atol=1e-5)
