"""Arguments that are unusual and yet taken: the values and types are PyTorch's, and so are the gradients."""

import numpy as np
import pytest

import dptrain

NAN = float("nan")


def bag(m, offsets, **options):
    return m.nn.functional.embedding_bag(
        m.tensor([0, 1, 2, 1, 0]), m.arange(6.0).reshape(3, 2), m.tensor(offsets), **options
    )


def cut(m, driver):
    a, b = m.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), m.tensor([[1.0], [2.0], [3.0]])
    return m.linalg.lstsq(a, b, 0.7, driver=driver)[0]


def labels(m):
    """A target with the blank among its labels."""
    probs = m.linspace(-2.0, 1.0, 24).reshape(6, 1, 4).log_softmax(2)
    return m.nn.functional.ctc_loss(probs, m.tensor([[1, 0, 2]]), (6,), (3,))


def nowhere(m, rank):
    """NaN pixels, looked at from far outside."""
    return m.nn.functional.grid_sample(
        m.full((1, 1, *[2] * rank), NAN), m.full((1, *[1] * rank, rank), 9.0), align_corners=False
    )


def two(m, *kinds):
    return [m.tensor([0.25, 0.75]).to(getattr(m, kind)) for kind in kinds]


F = "nn.functional"
CALLS = {
    "logit eps": lambda m: [m.logit(m.tensor([0.1, 0.9, NAN]), e) for e in (0.3, 0.6, 1.0, NAN)],
    "celu alpha": lambda m: m.nn.functional.celu(m.tensor([-1.0, 2.0]), -1.5),
    "chunk nothing": lambda m: [p.reshape(-1) for p in m.empty(0, 2).chunk(3)],
    "gradient spacing": lambda m: m.gradient(m.tensor([1.0, 4.0, 2.0]), spacing=0.0)[0],
    "cdist p=0": lambda m: m.cdist(m.tensor([[NAN, 1.0]]), m.tensor([[1.0, 1.0], [0.0, 2.0]]), 0.0),
    "lerp": lambda m: [
        m.lerp(m.zeros(2), m.ones(2), w)
        for w in (m.tensor(1), m.tensor(0.25, dtype=m.float64), np.float64(0.5), True)
    ],
    "bucketize": lambda m: [
        m.bucketize(v, m.tensor(line), right=right)
        for v, line in ((1.5, [1, 2, 3]), (2, [1.0, 2.0]))
        for right in (False, True)
    ],
    "index_fill nothing": lambda m: m.tensor(1.0).index_fill(0, m.empty(0, dtype=m.int64), 9.0),
    "index_copy vector": lambda m: m.tensor(1.0).index_copy(0, m.tensor([0]), m.tensor([5.0])),
    "index_copy number": lambda m: m.ones(3).index_copy(0, m.tensor([1]), m.tensor(5.0)),
    "diff n=0": lambda m: m.diff(m.ones(2), 0, 7),
    "ctc blank": labels,
    "grid_sample": lambda m: [nowhere(m, 2), nowhere(m, 3)],
    "lstsq gels": lambda m: [cut(m, "gels"), cut(m, "GELSD")],
    "cholesky_ex": lambda m: m.linalg.cholesky_ex(m.tensor([[1.0, 0.0], [NAN, 1.0]])).info,
    "addr types": lambda m: [
        m.addr(m.ones(2, 2), m.ones(2, dtype=m.float64), m.ones(2, dtype=m.int64)),
        m.addr(m.ones(2, 2, dtype=m.int64), m.ones(2), m.ones(2), beta=0.5),
    ],
    "embedding_bag end": lambda m: [
        bag(m, [0, 2, 3], mode=mode, include_last_offset=True) for mode in ("sum", "max")
    ],
    "embedding_bag sparse": lambda m: bag(m, [0, 2], sparse=True),
    "bool size": lambda m: m.ones(2, 1).expand((2, True)),
    "adaptive sizes": lambda m: [
        m.nn.functional.adaptive_max_pool2d(m.arange(16.0).reshape(1, 4, 4), size)
        for size in ((0, 2), (2, True))
    ],
    "loss types": lambda m: [
        getattr(m.nn.functional, name)(*two(m, *kinds), reduction=reduction)
        for name in ("huber_loss", "soft_margin_loss", "binary_cross_entropy_with_logits")
        for kinds in (("float32", "float64"), ("float64", "float32"))
        for reduction in ("none", "mean")
    ],
    "weight types": lambda m: [
        m.nn.functional.binary_cross_entropy(*two(m, "float32", "float32", "float64")),
        m.nn.functional.binary_cross_entropy_with_logits(
            *two(m, "float32", "float32", "float64"), reduction="none"
        ),
    ],
}


FILLS = {
    "full": lambda m, x, v: m.full((1,), v, dtype=x.dtype),
    "full_like": lambda m, x, v: m.full_like(x, v),
    "new_full": lambda m, x, v: x.new_full((1,), v),
    "fill_": lambda m, x, v: x.fill_(v),
    "fill": lambda m, x, v: m.fill(x, v),
    "masked_fill": lambda m, x, v: x.masked_fill(m.tensor([True]), v),
    "index_fill": lambda m, x, v: x.index_fill(0, m.tensor([0]), v),
}
VALUES = [
    *[(v, "uint8") for v in (-8.5, 300, -1, -255, -256, 255.5, 7)],
    *[(v, "int32") for v in (1.5, -2.5, 2**31, NAN, True)],
    *[(v, "int64") for v in (float("inf"), 2**40)],
    *[(v, "float32") for v in (1e40, -1e40, float("inf"), NAN, 3)],
    *[(v, "float64") for v in (1e300, 2)],
    (3, "bool"),
]


@pytest.mark.oracle
@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize(("value", "kind"), VALUES)
def test_a_number_is_held_as_in_pytorch_or_refused(name, value, kind):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    found = []
    for m in (dptrain, torch):
        x = m.ones(1, dtype=getattr(m, kind))
        try:
            found.append(FILLS[name](m, x, value).numpy())
        except RuntimeError:
            found.append(None)
    assert (found[0] is None) == (found[1] is None), found
    if found[0] is not None:
        np.testing.assert_array_equal(*found)


def flat(found):
    if isinstance(found, (list, tuple)):
        return [part for f in found for part in flat(f)]
    return [found]


@pytest.mark.oracle
@pytest.mark.parametrize("name", CALLS)
def test_values_are_pytorchs(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ours, theirs = (flat(CALLS[name](m)) for m in (dptrain, torch))
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert str(mine.dtype).split(".")[-1] == str(other.dtype).split(".")[-1]
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=2e-5, atol=1e-6)


OLDER = {
    "add": lambda m, x, y: [m.add(x, 2, y), x.add(2, y), x.clone().add_(2, y)],
    "sub": lambda m, x, y: [m.sub(x, 2, y), x.sub(2.5, y)],
    "addcmul": lambda m, x, y: [m.addcmul(x, 2, x, y), x.addcdiv(3, y, x)],
    "addmm": lambda m, x, y: [
        m.addmm(2, x, 3, x, y),
        m.addmm(2, x, x, y),
        x.addmm(2, 3, x, y),
        x.clone().addmm_(2, x, y),
    ],
}


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:This overload:UserWarning")
@pytest.mark.parametrize("name", OLDER)
def test_factors_before_the_tensors_are_taken_with_a_warning(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    found = []
    for m in (dptrain, torch):
        x, y = m.tensor([[1.0, 2.0], [3.0, 4.0]]), m.tensor([[0.5, -1.0], [2.0, 5.0]])
        found.append([r.tolist() for r in OLDER[name](m, x, y)] if m is torch else [])
        if m is dptrain:
            with pytest.warns(UserWarning, match="deprecated"):
                found[-1] = [r.tolist() for r in OLDER[name](m, x, y)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: dptrain.add(x, x, 2),
        lambda x: dptrain.add(2, x, x),
        lambda x: dptrain.add(x, True, x),
        lambda x: dptrain.addmm(x, x, x, 2),
        lambda x: dptrain.add(x, 2, 3),
    ],
)
def test_other_orders_are_refused(call):
    with pytest.raises(TypeError, match="add"):
        call(dptrain.ones(2, 2))


def test_index_copy_of_a_vector_into_a_number_has_its_gradient():
    x, y = dptrain.tensor(1.0, requires_grad=True), dptrain.tensor([5.0], requires_grad=True)
    x.index_copy(0, dptrain.tensor([0]), y).backward()
    assert (x.grad.item(), y.grad.tolist()) == (0.0, [1.0])


@pytest.mark.parametrize("name", ["embedding", "embedding_bag"])
def test_sparse_gradients_are_refused_where_they_would_come(name):
    weight = dptrain.ones(3, 2, requires_grad=True)
    call = getattr(dptrain.nn.functional, name)
    with pytest.raises(ValueError, match="sparse"):
        call(dptrain.tensor([[0, 1]]), weight, sparse=True)
    with dptrain.no_grad():
        assert call(dptrain.tensor([[0, 1]]), weight, sparse=True).shape[-1] == 2


def squared(m, x):
    return m.nn.functional.lp_pool1d(m.cat([x[1:2], x[1:2], x[2:], x[2:]])[None], 2.0, 2)


#: Functions that are 0 around some element of x = -1, 0, 2, where the root that follows has no finite slope.
FLAT = {
    "clamp": lambda m, x: x.clamp(0),
    "clamp tensor": lambda m, x: x.clamp(m.tensor(0.0)),
    "maximum": lambda m, x: m.maximum(x, m.tensor(0.0)),
    "fmax": lambda m, x: m.fmax(x, m.tensor(0.0)),
    "relu": lambda m, x: m.relu(x),
    "relu6": lambda m, x: m.nn.functional.relu6(x),
    "threshold": lambda m, x: m.nn.functional.threshold(x, 0, 0),
    "hardshrink": lambda m, x: m.nn.functional.hardshrink(x, 1.5),
    "softshrink": lambda m, x: m.nn.functional.softshrink(x, 1.5),
    "hardsigmoid": lambda m, x: m.nn.functional.hardsigmoid(x * 3),
    "hardswish": lambda m, x: m.nn.functional.hardswish(x * 3),
    "masked_fill": lambda m, x: x.masked_fill(x <= 0, 0),
    "masked_scatter": lambda m, x: x.masked_scatter(x <= 0, m.zeros(3)),
    "where": lambda m, x: m.where(x > 0, x, 0.0),
    "index_fill": lambda m, x: x.index_fill(0, m.tensor([0, 1]), 0),
    "index_copy": lambda m, x: x.index_copy(0, m.tensor([0, 1]), m.zeros(2)),
    "index_put": lambda m, x: x.index_put((m.tensor([0, 1]),), m.zeros(2)),
    "scatter": lambda m, x: x.scatter(0, m.tensor([0, 1]), 0.0),
    "sign": lambda m, x: x.sign().clamp(0),
    "floor": lambda m, x: (x / 3).floor().clamp(0),
    "floor_divide": lambda m, x: m.div(x, 3, rounding_mode="floor").clamp(0),
    "lp_pool1d": squared,
}


@pytest.mark.oracle
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", FLAT)
def test_no_gradient_passes_where_a_function_is_flat(name, graph):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    found = []
    for m in (dptrain, torch):
        x = m.tensor([-1.0, 0.0, 2.0], requires_grad=True)
        y = FLAT[name](m, x)
        root = y if name == "lp_pool1d" else y.sqrt()
        found.append(m.autograd.grad(root.sum(), x, create_graph=graph)[0].tolist())
    np.testing.assert_allclose(*found, rtol=1e-6)
