"""On a GPU: products, convolutions and attention of every type against float64 on the host. `pytest -m gpu`."""

import ml_dtypes
import numpy as np
import pytest

import dptrain
from dptrain.core.arrays import namespace_on, to_host
from dptrain.core.cuda import probe, trouble
from dptrain.core.device import as_device
from dptrain.core.kernels import kernels_for
from dptrain.core.kernels.cuda import cudnn, cudnn_attention, gemm

REASON = trouble(probe())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
F = dptrain.nn.functional
PLACE = "cuda:0"

#: Name -> a step of the result's rounding, and of the sums.
STEPS = {
    "float16": (2.0**-10, 2.0**-13),
    "bfloat16": (2.0**-7, 2.0**-10),
    "float32": (2.0**-22, 2.0**-17),  # convolutions may be transformed
    "tf32": (2.0**-22, 2.0**-9),
    "float64": (2.0**-51, 2.0**-48),
}
TYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "tf32": np.float32,
    "float64": np.float64,
}
kinds = pytest.mark.parametrize("kind", STEPS)
#: Those that training uses.
few_kinds = pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])


@pytest.fixture(autouse=True)
def precision(request, monkeypatch):
    """float32 is multiplied as float32 unless the test is about TF32."""
    params = getattr(request.node, "callspec", None)
    fast = params is not None and params.params.get("kind") == "tf32"
    monkeypatch.setattr(dptrain.backends.cudnn, "allow_tf32", fast)
    dptrain.backends.cuda.matmul.allow_tf32 = fast
    yield
    dptrain.backends.cuda.matmul.allow_tf32 = False


def values(shape, kind, seed=0):
    """Numbers that the type holds."""
    return np.random.default_rng(seed).standard_normal(shape).astype(TYPES[kind])


def there(array):
    return dptrain.tensor(array).to(PLACE)


def double(tensor):
    return tensor.detach().cpu().to(dptrain.float64).numpy()


def check(found, exact, size, kind, name=""):
    """`size`: the sums of the absolute values of all terms."""
    rounding, sums = STEPS[kind]
    assert found.shape == exact.shape, name
    near = rounding * np.abs(exact) + sums * size + 1e-7 * (kind == "float16")
    wrong = ~(np.abs(found - exact) <= near)  # NaN too
    assert not wrong.any(), (name, int(wrong.sum()), found[wrong][:4], exact[wrong][:4])


def check_all(run, arrays, kind):
    """Results of `run(*leaves)` and gradients of all leaves against float64 on the host, by size too.

    What a linear operation adds up is what it makes of absolute values.
    """

    def both(leaves, weight):
        leaves = [t.requires_grad_() for t in leaves]
        out = run(*leaves)
        out.backward(weight)
        return [double(t) for t in (out, *(x.grad for x in leaves))]

    wide = [dptrain.tensor(a.astype(np.float64)) for a in arrays]
    shape = run(*wide).shape
    weight = values(tuple(shape), kind, 99)
    exact = both(wide, dptrain.tensor(weight.astype(np.float64)))
    size = both([w.detach().abs() for w in wide], dptrain.tensor(np.abs(weight).astype(np.float64)))
    found = both([there(a) for a in arrays], there(weight))
    for n, (ours, theirs, large) in enumerate(zip(found, exact, size, strict=True)):
        check(ours, theirs, large, kind, f"result {n}")


# ---- products ----------------------------------------------------------------------------------

PRODUCTS = {
    "square": lambda x, y: x @ y,
    "odd sizes": lambda x, y: x[:131, :77] @ y[:77, :53],
    "transposed left": lambda x, y: x.T @ y,
    "transposed right": lambda x, y: x @ y.T,
    "both transposed": lambda x, y: x.T @ y.T,
    "gaps": lambda x, y: x[::2, 1:130] @ y[3:132, 5:],
    "gaps, transposed": lambda x, y: x.T[::2, 1:130] @ y.T[3:132, 5:],
    "batch": lambda x, y: x.view(4, 48, 192) @ y.view(4, 192, 48),
    "batch of transposed": lambda x, y: x.view(4, 192, 48).mT @ y.view(4, 48, 192).mT,
    "batch and one": lambda x, y: x.view(4, 48, 192) @ y,
    "one and batch": lambda x, y: x @ y.view(4, 192, 48),
    "heads": lambda x, y: (
        x.view(2, 32, 12, 48).transpose(1, 2) @ y.view(2, 32, 12, 48).permute(0, 2, 3, 1)
    ),
    "broadcast": lambda x, y: x.view(4, 1, 48, 192) @ y.view(1, 3, 192, 64),
    "vectors": lambda x, y: x[0] @ y[:, 0],
    "a matrix and a vector": lambda x, y: x @ y[0],
    "a vector and a matrix": lambda x, y: x[:, 3] @ y,
    "a row": lambda x, y: x[:1] @ y,
    "a column": lambda x, y: x @ y[:, :1],
    "one term": lambda x, y: x[:, :1] @ y[:1],
    "addmm": lambda x, y: dptrain.addmm(x, x, y, beta=0.5, alpha=2),
    "baddbmm": lambda x, y: dptrain.baddbmm(y[:48, :48], x.view(4, 48, 192), y.view(4, 192, 48)),
    "einsum": lambda x, y: dptrain.einsum("bij,bkj->bik", x.view(4, 48, 192), y.view(4, 48, 192)),
}


@kinds
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_their_gradients(name, kind):
    check_all(PRODUCTS[name], [values((192, 192), kind, n) for n in range(2)], kind)


@kinds
@pytest.mark.parametrize("rows", [(7,), (256,), (4, 33), (), (0,)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_and_its_gradients(rows, bias, kind):
    arrays = [values((*rows, 200), kind), values((72, 200), kind, 1)]
    check_all(F.linear, arrays + ([values((72,), kind, 2)] if bias else []), kind)


@few_kinds
def test_linear_over_many_rows(kind):
    """As in a language model; the sums of a bias's gradient are long."""
    arrays = [values((16, 512, 256), kind), values((1024, 256), kind, 1), values(1024, kind, 2)]
    check_all(F.linear, arrays, kind)


@few_kinds
def test_a_bias_is_added_by_the_kernel_of_the_product(kind, monkeypatch):
    library, answers = gemm.cublas(), []
    add_bias = library.add_bias
    monkeypatch.setattr(library, "add_bias", lambda *a: answers.append(add_bias(*a)) or answers[-1])
    x, w, b = (values(s, kind, n) for n, s in enumerate([(2, 128, 256), (512, 256), (512,)]))
    found = double(F.linear(there(x), there(w), there(b)))
    assert answers == [True]
    x, w, b = (a.astype(np.float64) for a in (x, w, b))
    check(found, x @ w.T + b, np.abs(x) @ np.abs(w).T + np.abs(b), kind)


@few_kinds
def test_products_are_written_where_they_are_wanted(kind):
    a, b = (there(values((65, 65), kind, n))._array for n in range(2))
    exact = to_host(a).astype(np.float64) @ to_host(b).astype(np.float64)
    size = np.abs(to_host(a).astype(np.float64)) @ np.abs(to_host(b).astype(np.float64))
    xp = namespace_on(as_device(PLACE))
    for out in (
        xp.full((65, 65), np.nan, a.dtype),
        xp.full((65, 70), np.nan, a.dtype)[:, 2:-3],
        xp.full((65, 65), np.nan, a.dtype).T,
    ):
        assert kernels_for(a).matmul(a, b, out=out) is out
        check(to_host(out).astype(np.float64), exact, size, kind)


def test_sums_are_in_float32_and_tf32_is_what_it_says():
    ones = {k: there(np.ones((1, 4096), TYPES[k])) for k in ("float16", "bfloat16")}
    for x in ones.values():
        assert (x @ x.T).item() == 4096  # adding ones in 16 bits ends at 2048 or 256
    x = there(np.full((256, 256), 1 + 2.0**-13, np.float32))
    full = double(x @ x)
    dptrain.backends.cuda.matmul.allow_tf32 = True
    fast = double(x @ x)
    assert np.abs(full - 256 * (1 + 2.0**-13) ** 2).max() < 1e-3
    assert np.abs(fast - 256).max() < 1e-3


def test_the_reduction_flags_are_taken():
    flags = dptrain.backends.cuda.matmul
    arrays = [values((64, 8192), "bfloat16"), values((8192, 64), "bfloat16", 1)]
    exact = arrays[0].astype(np.float64) @ arrays[1].astype(np.float64)
    flags.allow_bf16_reduced_precision_reduction = False
    try:
        found = double(there(arrays[0]) @ there(arrays[1]))
    finally:
        flags.allow_bf16_reduced_precision_reduction = True
    assert (np.abs(found - exact) <= 2.0**-8 * np.abs(exact) + 1e-2).all()


def test_a_gradient_goes_into_its_slot_in_sixteen_bits():
    layer = dptrain.nn.Linear(128, 64).to(PLACE).to(dptrain.bfloat16)
    optimizer = dptrain.optim.SGD(layer.parameters(), lr=0.0)
    x = there(values((32, 128), "bfloat16"))
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).float().sum().backward()
        optimizer.step()
    expected = double(x).sum(axis=0)[None].repeat(64, 0)
    np.testing.assert_allclose(double(layer.weight.grad), expected, rtol=2e-2, atol=0.1)


@few_kinds
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 4096), (8192, 3), (8192, 768), (70_001, 36), (33, 130)]
)
def test_sums_of_columns(shape, kind):
    x = values(shape, kind)
    found = to_host(kernels_for(there(x)._array).column_sums(there(x)._array))
    wide = x.astype(np.float64)
    rounding = STEPS[kind][0]
    near = rounding * np.abs(wide.sum(0)) + 1e-6 * np.abs(wide).sum(0)
    assert found.dtype == x.dtype
    assert (np.abs(found.astype(np.float64) - wide.sum(0)) <= near).all()


# ---- convolution -------------------------------------------------------------------------------


def conv(rank, **options):
    return lambda x, w, b: getattr(F, f"conv{rank}d")(x, w, b, **options)


def transposed(rank, **options):
    return lambda x, w, b: getattr(F, f"conv_transpose{rank}d")(x, w, b, **options)


#: Name -> run, shapes of input, weight and bias.
CONVOLUTIONS = {
    "line": (conv(1, padding=2), (4, 16, 50), (24, 16, 5), 24),
    "line, stride": (conv(1, stride=3), (4, 16, 50), (24, 16, 4), 24),
    "image": (conv(2, padding=1), (4, 16, 20, 18), (32, 16, 3, 3), 32),
    "few channels": (conv(2, stride=2, padding=3), (2, 3, 32, 32), (16, 3, 7, 7), 16),
    "odd channels": (conv(2), (2, 5, 11, 9), (7, 5, 3, 2), 7),
    "one by one": (conv(2), (4, 64, 14, 14), (32, 64, 1, 1), 32),
    "one by one, stride": (conv(2, stride=2), (4, 64, 14, 14), (32, 64, 1, 1), 32),
    "dilation": (conv(2, dilation=2, padding=(2, 1)), (2, 8, 17, 16), (8, 8, 3, 3), 8),
    "groups": (conv(2, groups=4, padding=1), (2, 32, 12, 12), (16, 8, 3, 3), 16),
    "depthwise": (conv(2, groups=16, padding=1), (2, 16, 12, 12), (16, 1, 3, 3), 16),
    "volume": (conv(3, padding=1), (2, 8, 7, 8, 6), (16, 8, 3, 3, 3), 16),
    "volume, stride": (conv(3, stride=(1, 2, 2)), (2, 8, 7, 8, 6), (16, 8, 2, 3, 3), 16),
    "transposed line": (transposed(1, stride=2), (3, 16, 20), (16, 8, 4), 8),
    "transposed image": (
        transposed(2, stride=2, padding=1, output_padding=1), (2, 16, 9, 8), (16, 8, 3, 3), 8,
    ),
    "transposed, groups": (transposed(2, groups=2, padding=1), (2, 16, 9, 8), (16, 4, 3, 3), 8),
    "transposed volume": (transposed(3, stride=2), (2, 8, 4, 5, 3), (8, 8, 2, 2, 2), 8),
}  # fmt: skip


@kinds
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients(name, kind):
    run, *shapes = CONVOLUTIONS[name]
    check_all(run, [values(s, kind, n) for n, s in enumerate(shapes)], kind)


@few_kinds
@pytest.mark.parametrize("name", ["line", "image", "groups", "volume", "transposed image"])
def test_convolutions_without_cudnn(name, kind, monkeypatch):
    monkeypatch.setattr(dptrain.backends.cudnn, "enabled", False)
    run, *shapes = CONVOLUTIONS[name]
    check_all(run, [values(s, kind, n) for n, s in enumerate(shapes)], kind)


@pytest.fixture
def served():
    reason = cudnn.trouble()
    if reason is not None:
        pytest.skip(f"no cuDNN: {reason}")
    found = cudnn.library()
    found._plans.clear()
    return found


@pytest.mark.parametrize("benchmark", [False, True])
@few_kinds
@pytest.mark.parametrize(
    "name", ["line", "image", "few channels", "one by one", "groups", "volume"]
)
def test_cudnn_serves_convolutions(name, kind, benchmark, served, monkeypatch):
    monkeypatch.setattr(dptrain.backends.cudnn, "benchmark", benchmark)
    run, *shapes = CONVOLUTIONS[name]
    check_all(run, [values(s, kind, n) for n, s in enumerate(shapes)], kind)
    without = [build.__name__ for (build, *_), plan in served._plans.items() if plan is None]
    assert (without, len(served._plans)) == ([], 3)


@kinds
@pytest.mark.parametrize(
    "shape", [(2, 3, 33, 65), (3, 100, 31, 7), (64, 64, 3, 3), (2, 40, 5, 6, 7)]
)
def test_images_come_to_the_order_of_the_kernels(shape, kind):
    x = values(shape, kind)
    found = kernels_for(there(x)._array).channels_last(there(x)._array)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(to_host(found), np.moveaxis(x, 1, -1))


@few_kinds
def test_channels_last_weights_and_images(kind, served):
    def run(x, w, b):
        last = dptrain.channels_last
        x, w = x.contiguous(memory_format=last), w.contiguous(memory_format=last)
        out = F.conv2d(x, w, b, padding=1)
        assert out.device.type == "cpu" or out.is_contiguous(memory_format=last)
        return out

    _, *shapes = CONVOLUTIONS["image"]
    check_all(run, [values(s, kind, n) for n, s in enumerate(shapes)], kind)


# ---- attention ---------------------------------------------------------------------------------


def attention(q, k, v, causal):
    """softmax(q k^T / sqrt(E)) v by plain operations."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        hidden = dptrain.ones(*scores.shape[-2:], dtype=dptrain.bool).tril().logical_not()
        scores = scores.masked_fill(hidden, -np.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize(
    ("kind", "fused"),
    [("float16", True), ("bfloat16", True)]
    + [(kind, False) for kind in ("float16", "bfloat16", "float32", "float64")],
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", ["rows", "parts of one projection", "few keys"])
def test_attention_and_its_gradients(layout, kind, causal, fused, request, monkeypatch):
    if fused:
        request.getfixturevalue("served")
    monkeypatch.setattr(cudnn_attention, "enabled", fused)
    n, heads, length, size = 2, 4, 128, 64
    few = 2 if layout == "few keys" else heads
    array = values((n, length, heads + 2 * few, size), kind)
    weight = values((n, length, heads * size), kind, 1)

    def run(x, grad, host):
        q, k, v = (p.transpose(1, 2) for p in x.split([heads, few, few], dim=2))
        if layout == "rows":
            q, k, v = (p.contiguous() for p in (q, k, v))
        if host:
            k, v = (p.repeat_interleave(heads // few, 1) for p in (k, v))
            out = attention(q, k, v, causal)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=few != heads)
        flat = out.transpose(1, 2).reshape(n, length, heads * size)
        flat.backward(grad)
        return [double(t) for t in (flat, x.grad)]

    exact = run(
        dptrain.tensor(array.astype(np.float64)).requires_grad_(),
        dptrain.tensor(weight.astype(np.float64)),
        True,
    )
    found = run(there(array).requires_grad_(), there(weight), False)
    near = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-5, "float64": 1e-13}[kind]
    for ours, theirs in zip(found, exact, strict=True):
        assert np.abs(ours - theirs).max() <= near * max(1, np.abs(theirs).max())
        assert np.abs(ours - theirs).mean() <= near / 8 * np.abs(theirs).mean() + near / 32
    if fused:
        assert None not in cudnn.library()._plans.values()
        assert len(cudnn.library()._plans) == 2


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["keys", "numbers", "nowhere", "odd"])
def test_masked_attention_and_its_gradients(name, kind, served, monkeypatch):
    monkeypatch.setattr(cudnn_attention, "enabled", True)
    length = 77 if name == "odd" else 128
    row, column = np.arange(length)[:, None], np.arange(length)
    mask = {
        "keys": column < np.array([length, 40])[:, None, None, None],
        "odd": column < np.array([length, 40])[:, None, None, None],
        "numbers": np.where(row >= column, 0.5, -np.inf),
        "nowhere": row > column,
    }[name]
    arrays = [values((2, 4, length, 64), kind, n) for n in range(4)]

    def run(place, dtype):
        *leaves, weight = (dptrain.tensor(a).to(place, dtype) for a in arrays)
        leaves = [t.requires_grad_() for t in leaves]
        given = dptrain.tensor(mask).to(place)
        given = given if given.dtype is dptrain.bool else given.to(dtype)
        out = F.scaled_dot_product_attention(*leaves, attn_mask=given)
        out.backward(weight)
        return [double(t) for t in (out, *(x.grad for x in leaves))]

    near = {"float16": 5e-3, "bfloat16": 4e-2}[kind]
    found = run(PLACE, getattr(dptrain, kind))
    for ours, theirs in zip(found, run("cpu", dptrain.float64), strict=True):
        assert np.abs(ours - theirs).max() <= near * max(1, np.abs(theirs).max())
    assert None not in served._plans.values()


def test_dropped_attention_weights(served, monkeypatch):
    """The gradients belong to the weights that forward dropped, a quarter of them, and a seed repeats them."""
    monkeypatch.setattr(cudnn_attention, "enabled", True)
    length = 128
    q, k = (there(values((2, 4, length, 64), "bfloat16", n)) for n in range(2))
    # Of the unit vectors as values the results are the weights.
    v = dptrain.eye(length).to(dptrain.bfloat16).expand(2, 4, length, length).contiguous().to(PLACE)
    q.requires_grad_(), v.requires_grad_()
    runs = []
    for seed in (1, 1, 2):
        dptrain.manual_seed(seed)
        runs.append(F.scaled_dot_product_attention(q, k, v, dropout_p=0.25))
    first, again, other = map(double, runs)
    np.testing.assert_array_equal(first, again)
    dropped = first == 0
    assert abs(dropped.mean() - 0.25) < 0.01
    assert 0.3 < (dropped != (other == 0)).mean() < 0.45
    weights = attention(*(dptrain.tensor(double(t)) for t in (q, k, v)), False).numpy()
    kept = np.where(dropped, 0, 1 / 0.75)
    np.testing.assert_allclose(first, weights * kept, rtol=5e-2, atol=2e-3)
    grad = values((2, 4, length, length), "bfloat16", 7)
    runs[1].backward(there(grad))
    expected = (weights * kept).swapaxes(2, 3) @ grad.astype(np.float64)
    np.testing.assert_allclose(double(v.grad), expected, rtol=5e-2, atol=2e-2)
    slopes = grad.astype(np.float64) * kept
    slopes = weights * (slopes - (slopes * weights).sum(-1, keepdims=True)) / 8
    np.testing.assert_allclose(double(q.grad), slopes @ double(k), rtol=5e-2, atol=5e-2)


def test_attention_under_autocast_and_without_gradients(served, monkeypatch):
    monkeypatch.setattr(cudnn_attention, "enabled", True)
    q, k, v = (there(values((2, 4, 128, 64), "float32", n)) for n in range(3))
    with dptrain.no_grad(), dptrain.autocast("cuda", dtype=dptrain.bfloat16):
        out = F.scaled_dot_product_attention(q, k, v)
    assert out.dtype is dptrain.bfloat16
    ((key, plan),) = served._plans.items()
    assert plan is not None
    assert not key[1].recorded
    exact = attention(*(dptrain.tensor(double(t)) for t in (q, k, v)), False)
    np.testing.assert_allclose(double(out), exact.numpy(), rtol=5e-2, atol=2e-2)


# ---- a captured step ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_a_captured_step_of_products_and_convolutions_runs_again(kind, monkeypatch):
    monkeypatch.setattr(cudnn_attention, "enabled", cudnn.trouble() is None)
    cuda, dtype = dptrain.cuda, getattr(dptrain, kind)
    layers = dptrain.nn.ModuleDict(
        {"conv": dptrain.nn.Conv2d(8, 16, 3, padding=1), "linear": dptrain.nn.Linear(16, 3 * 64)}
    )
    net = layers.to(PLACE).to(dtype)
    x = there(values((2, 8, 16, 16), kind))

    def step():
        for p in net.parameters():
            p.grad = None
        rows = net["conv"](x).flatten(2).mT
        q, k, v = net["linear"](rows).view(2, 256, 3, 1, 64).permute(2, 0, 3, 1, 4).unbind(0)
        loss = F.scaled_dot_product_attention(q, k, v).float().square().mean()
        loss.backward()
        return [loss, *(p.grad for p in net.parameters())]

    side = cuda.Stream()
    with cuda.stream(side):
        step(), step()  # handles, plans, kernels
    side.synchronize()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        held = step()
    x.copy_(there(values((2, 8, 16, 16), kind, 5)))
    graph.replay()
    cuda.synchronize()
    found = [double(t) for t in held]
    expected = [double(t) for t in step()]
    for ours, theirs in zip(found, expected, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-2 * scale)


def test_cublas_is_what_multiplies():
    """CuPy's own products would hide a mistake here."""
    before = gemm.cublas().multiply
    calls = []
    try:
        gemm.cublas().multiply = lambda *args: calls.append(args) or before(*args)
        x = there(values((8, 8), "bfloat16"))
        _ = x @ x
    finally:
        del gemm.cublas().multiply
    assert len(calls) == 1
