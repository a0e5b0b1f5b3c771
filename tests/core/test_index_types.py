"""Indices and masks of other types, empty indices, in-place strides: as PyTorch takes them."""

import numpy as np
import pytest

import dptrain

USES = {
    "gather int32": lambda m, x: x.gather(1, m.tensor([[2, 0], [1, 1]]).int()),
    "gather of nothing": lambda m, x: x.gather(0, m.zeros(2, 0, 3).to(m.uint8)),
    "scatter int32": lambda m, x: x.scatter(1, m.tensor([[2], [1]]).int(), x),
    "scatter a number": lambda m, x: x.scatter(0, m.tensor([[1, 0, 1]]).int(), 2.5),
    "scatter_add int32": lambda m, x: x.scatter_add(1, m.tensor([[2, 2], [1, 0]]).int(), x),
    "scatter_reduce int32": lambda m, x: x.scatter_reduce(
        1, m.tensor([[2, 2], [1, 0]]).int(), x, "amax"
    ),
    "scatter_ of nothing": lambda m, x: x.clone().scatter_(0, m.zeros(2, 0, 1).to(m.uint8), x),
    "index_add wraps": lambda m, x: (
        x.abs().to(m.uint8).index_add(0, m.tensor([1]), m.ones(1, 3).to(m.uint8), alpha=-1)
    ),
    "as_strided_": lambda m, x: x.clone().as_strided_((2, 2), (1, 2), 1),
    "narrow from a tensor": lambda m, x: x.narrow(1, m.tensor(1), 2),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", USES)
def test_uses_equal_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    results = []
    for m in (dptrain, torch):
        out = USES[name](m, m.tensor([[0.5, -1.0, 2.0], [3.0, 0.0, -4.0]]))
        results.append((tuple(out.shape), str(out.dtype).split(".")[1], out.tolist()))
    assert results[0] == results[1]


@pytest.mark.oracle
@pytest.mark.parametrize("condition", ["uint8"])
def test_where_takes_bytes_with_a_warning(condition):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    results = []
    for m in (dptrain, torch):
        x = m.tensor([1.0, 2.0, 3.0])
        with pytest.warns(UserWarning, match="uint8 condition"):
            results.append(m.where(m.tensor([2, 0, 1]).to(getattr(m, condition)), x, -x).tolist())
    assert results[0] == results[1]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("form", ["scatter_reduce", "index_reduce"])
def test_products_with_zeros_have_derivatives(form, include_self):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    x = np.array([[2.0, 0.0], [0.0, 3.0], [1.5, 2.5]])
    src = np.array([[0.0, 2.0], [3.0, 0.0], [4.0, 5.0], [0.0, 0.5]])
    where = [0, 1, 0, 2]
    grads = []
    for m in (dptrain, torch):
        a, b = (m.tensor(v, requires_grad=True) for v in (x, src))
        index = m.tensor([[w, w] for w in where] if form == "scatter_reduce" else where)
        out = getattr(a, form)(0, index, b, "prod", include_self=include_self)
        out.backward(m.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=m.float64))
        grads.append((a.grad.tolist(), b.grad.tolist()))
    assert grads[0] == grads[1]


@pytest.mark.oracle
def test_the_gradient_of_ctc_loss_can_be_made_part_of_the_graph():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    values = np.log(np.random.default_rng(0).dirichlet(np.ones(4), (5, 2)))
    ends = []
    for m in (dptrain, torch):
        x = m.tensor(values, requires_grad=True)
        labels, frames = m.tensor([[1, 2], [3, 1]]), m.tensor([5, 4])
        loss = m.nn.functional.ctc_loss(x, labels, frames, m.tensor([2, 2]), reduction="sum")
        (grad,) = m.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="not implemented"):
            m.autograd.grad(grad.sum(), x)
        ends.append(grad.detach().numpy())
    np.testing.assert_allclose(*ends, atol=1e-12)


@pytest.mark.oracle
def test_embedding_bag_takes_the_older_order_of_arguments():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    table = np.arange(12.0).reshape(4, 3)
    ends = []
    for m in (dptrain, torch):
        with pytest.warns(UserWarning, match="Argument order"):
            out = m.nn.functional.embedding_bag(m.tensor(table), m.tensor([[1, 2], [3, 0]]))
        ends.append(out.tolist())
    assert ends[0] == ends[1]


def test_as_strided_scatter_has_the_gradient_of_what_is_kept():
    kept = dptrain.randn(3, 4, dtype=dptrain.float64, requires_grad=True)
    src = dptrain.randn(2, 2, dtype=dptrain.float64, requires_grad=True)
    assert dptrain.autograd.gradcheck(
        lambda a, b: dptrain.as_strided_scatter(a, b, (2, 2), (1, 5), 1), (kept, src)
    )


@pytest.mark.oracle
@pytest.mark.parametrize(
    "use",
    [
        lambda m, x, i: x.index_copy(0, i, x[:1]),
        lambda m, x, i: x.index_fill(0, i, 2.0),
        lambda m, x, i: x.clone().index_fill_(0, i, 2.0),
    ],
    ids=["index_copy", "index_fill", "index_fill_"],
)
def test_short_indices_are_refused_where_pytorch_refuses_them(use):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    kinds = []
    for m in (dptrain, torch):
        with pytest.raises((RuntimeError, IndexError), match=r"long|int64") as caught:
            use(m, m.ones(2, 3), m.zeros(1, dtype=m.int32))
        kinds.append(caught.type)
    assert issubclass(kinds[0], kinds[1])
