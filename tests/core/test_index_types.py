"""Indices and masks of other types, empty indices, in-place strides: as PyTorch takes them."""

from collections import deque
from contextlib import nullcontext

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
    "a range": lambda m, x: x[range(1)],
    "ranges and tensors": lambda m, x: x[range(2), m.tensor([2, 0])],
    "tuples in a tuple": lambda m, x: x[(0, 1), (1, 2)],
    "a deque": lambda m, x: x[deque([1, 0])],
    "floats without fractions": lambda m, x: x[[1.0, 0.0]],
    "a nested list in a tuple": lambda m, x: x[:, [[0, 1], [2, 0]]],
    "a nested array": lambda m, x: x[np.array([[0, 1], [1, 0]])],
    "nothing in a list": lambda m, x: x[[[]],],
}

#: Lists that stand for tuples.
LISTS = {
    "of tuples": lambda m: [(0, 1), (1, 2)],
    "of arrays": lambda m: [np.array([0, 1]), np.array([1, 1])],
    "with a slice": lambda m: [slice(0, 1), 1],
    "with an ellipsis": lambda m: [Ellipsis, 0],
    "of tensors": lambda m: [m.tensor(0), m.tensor(1)],
    "ragged": lambda m: [0, [1, 2]],
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
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_sequences_stands_for_a_tuple_with_a_warning(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    taken = []
    for m in (torch, dptrain):
        x, index = m.arange(12.0).reshape(3, 4), LISTS[name](m)
        # PyTorch may have told this process already.
        told = pytest.warns(UserWarning, match="for a tuple") if m is dptrain else nullcontext()
        with told:
            part = x[index]
            x[index] = -1.0
        taken.append((part.tolist(), x.tolist()))
    assert taken[0] == taken[1]


@pytest.mark.oracle
@pytest.mark.parametrize(
    "index",
    [
        lambda m: m.tensor(1),
        lambda m: m.tensor(1).int(),
        lambda m: np.array(1),
        lambda m: (slice(None), m.tensor(1)),
        lambda m: (m.tensor(0), m.tensor(1)),
        lambda m: (m.tensor(0), m.tensor([0, 1])),
        lambda m: m.tensor(True),
    ],
)
def test_a_tensor_of_one_number_selects_the_view_that_an_int_does(index):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    written = []
    for m in (torch, dptrain):
        w = m.ones(2, 2, requires_grad=True)
        x = w * 1
        x[index(m)].mul_(5.0)
        x.sum().backward()
        written.append((x.tolist(), w.grad.tolist()))
    assert written[0] == written[1]


@pytest.mark.oracle
@pytest.mark.parametrize("index", [1.0, {0}, "a", b"a", {0: 1}, ([0, [1, 2]],)], ids=repr)
def test_indices_that_are_none_are_refused_as_by_pytorch(index):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    with pytest.raises((IndexError, TypeError)) as expected:
        torch.ones(3, 4)[index]
    with pytest.raises(expected.type):
        dptrain.ones(3, 4)[index]


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


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("spoilt", ["", "ties", "nan", "inf"])
def test_the_first_of_a_long_line_are_those_of_all_in_order(largest, spoilt):
    x = np.random.default_rng(1).standard_normal((3, 600)).astype("f")
    if spoilt == "ties":
        x = np.round(x)
    elif spoilt:
        x[1, 5] = float(spoilt)
    for turned, dim in ((x, 1), (np.ascontiguousarray(x.T), 0)):
        t = dptrain.tensor(turned)
        for k in (1, 7, 75):
            values, places = t.topk(k, dim, largest)
            ordered, where = t.sort(dim, largest, stable=True)
            assert np.array_equal(values.numpy(), ordered.narrow(dim, 0, k).numpy(), equal_nan=True)
            assert np.array_equal(places.numpy(), where.narrow(dim, 0, k).numpy())


@pytest.mark.oracle
def test_parts_of_a_tensor_share_one_node_as_in_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    uses = {
        "some parts": lambda m, x: x.chunk(3, 1)[1].sum() * 2,
        "parts by size": lambda m, x: x.split([1, 0, 4], 1)[2].prod(1).sum(),
        "rows": lambda m, x: sum((i + 1) * row.pow(2).sum() for i, row in enumerate(x)),
        "a column": lambda m, x: x.unbind(1)[3].exp().sum(),
        "no part": lambda m, x: x.detach().split(2)[0].sum() + x.sum() * 0,
    }
    values = np.random.default_rng(2).standard_normal((4, 5))
    for name, use in uses.items():
        found = []
        for m in (dptrain, torch):
            x = m.tensor(values, requires_grad=True)
            (once,) = m.autograd.grad(use(m, x), x, create_graph=True)
            twice = m.zeros(4, 5).double()
            if once.requires_grad:
                (twice,) = m.autograd.grad(once.pow(2).sum(), x)
            parts = x.chunk(3, 1)
            facts = [(p.grad_fn is parts[0].grad_fn, p.output_nr, p._is_view()) for p in parts]
            found.append((once.detach().numpy(), twice.numpy(), facts))
        np.testing.assert_allclose(found[0][0], found[1][0], err_msg=name)
        np.testing.assert_allclose(found[0][1], found[1][1], err_msg=name)
        assert found[0][2] == found[1][2]
