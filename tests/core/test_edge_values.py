"""Values at the edges of what operations are made for: NaN, ties, 0 dimensions, nothing at all.

Each case is computed by both libraries; results and gradients are equal.
"""

import warnings

import numpy as np
import pytest

import dptrain

NAN = float("nan")
TIES = [1.0, 2.0, 2.0, 3.0, 2.0, 5.0]
SOME_NAN = [1.0, NAN, 2.0, NAN]
WINDOW = [[[1.0, NAN, 3.0, NAN, 0.0, 4.0]]]


def lower(m, values):
    return m.linalg.solve_triangular(values, m.ones(2, 1), upper=False)


#: name -> (values, what is computed of them; detached where PyTorch's own backward fails)
CASES = {
    "median of ties": (TIES, lambda m, x: m.median(x)),
    "nanmedian of ties": ([*TIES, NAN], lambda m, x: m.nanmedian(x)),
    "median of nan": (SOME_NAN, lambda m, x: x.median()),
    "max of nan": (SOME_NAN, lambda m, x: x.max()),
    "min of nan": (SOME_NAN, lambda m, x: m.min(x)),
    "max of one": (3.0, lambda m, x: m.max(x)),
    "max along a tensor": ([TIES], lambda m, x: m.max(x, m.tensor(1), True)),
    "max with a number tensor": ([TIES], lambda m, x: m.max(x, m.tensor(2))),
    "max dim by name": ([TIES], lambda m, x: m.max(x, dim=m.tensor(1))),
    "max_pool1d": (WINDOW, lambda m, x: m.nn.functional.max_pool1d(x, 3, return_indices=True)),
    "max_pool2d": ([WINDOW], lambda m, x: m.nn.functional.max_pool2d(x, (1, 3), 1)),
    "adaptive_max_pool1d": (
        WINDOW,
        lambda m, x: m.nn.functional.adaptive_max_pool1d(x, 2, return_indices=True),
    ),
    "vander": ([1.0, NAN], lambda m, x: m.vander(x.detach())),
    "matrix_power 0": ([[1.0, NAN], [2.0, 1.0]], lambda m, x: m.linalg.matrix_power(x, 0)),
    "the other triangle": ([[1.0, NAN], [2.0, 1.0]], lower),
    "multi_margin_loss": (
        [[1.0, NAN, 0.5]],
        lambda m, x: m.nn.functional.multi_margin_loss(x, m.tensor([0])),
    ),
    "multilabel_margin_loss": (
        [[1.0, NAN, 0.5]],
        lambda m, x: m.nn.functional.multilabel_margin_loss(x, m.tensor([[0, -1, 0]])),
    ),
    "multilabel_soft_margin_loss": (
        [[1.0, 2.0, 0.5]],
        lambda m, x: m.nn.functional.multilabel_soft_margin_loss(
            x, m.ones(2, 1, 3), reduction="none"
        ),
    ),
    "soft_margin_loss": (
        TIES,
        lambda m, x: m.nn.functional.soft_margin_loss(x, m.ones(1, dtype=m.int64)),
    ),
    "scatter at a 0-d index": (TIES, lambda m, x: m.zeros(4).scatter(0, m.tensor(2), x.detach())),
    "scatter_add at a 0-d index": (
        TIES,
        lambda m, x: m.zeros(4).scatter_add(0, m.tensor(2), x.detach()),
    ),
    "scatter_reduce at a 0-d index": (
        TIES,
        lambda m, x: m.ones(4).scatter_reduce(0, m.tensor(2), x.detach(), "prod"),
    ),
    "scatter into a 0-d tensor": (3.0, lambda m, x: x.scatter(0, m.tensor([0]), m.ones(1))),
    "scatter_add into a 0-d tensor": (
        [3.0, 4.0],
        lambda m, x: m.tensor(1.0).scatter_add(0, m.tensor([0, 0]), x),
    ),
    "scatter_reduce into a 0-d tensor": (
        [3.0, 4.0],
        lambda m, x: m.tensor(2.0).scatter_reduce(0, m.tensor([0, 0]), x, "amax"),
    ),
    "quantile of no q": ([TIES], lambda m, x: m.quantile(x, m.empty(0), 1)),
    "chunk of nothing": ([], lambda m, x: x.chunk(3)),
    "triangular_solve": (
        [[1.0, 2.0], [0.0, 1.0]],
        lambda m, x: m.triangular_solve(m.ones(2, 2, 1), x),
    ),
    "trapezoid over fewer dimensions": (
        [[[1.0, 2.0], [3.0, 4.0]]],
        lambda m, x: m.trapezoid(x, m.tensor([[1.0], [3.0]]), dim=1),
    ),
    "trapezoid over more dimensions": (
        [[1.0, 2.0], [3.0, 5.0]],
        lambda m, x: m.trapezoid(x, m.ones(1, 2, 1, 2).cumsum(1), dim=1),
    ),
    "trapezoid of nothing": ([], lambda m, x: m.trapezoid(x, m.empty(0))),
    "nuclear norm": ([[1.0, 2.0], [0.0, 1.0]], lambda m, x: m.norm(x, "nuc")),
}
#: Numbers that an unsigned type takes modulo its range.
WRAPPED = {
    "tensor": lambda m: m.tensor([-1, 2], dtype=m.uint8),
    "full": lambda m: m.full((2,), -3, dtype=m.uint8),
    "clamp": lambda m: m.tensor([1], dtype=m.uint8).clamp(-4),
    "fill_": lambda m: m.tensor([1], dtype=m.uint8).fill_(-3),
    "tensor of floats": lambda m: m.tensor([1.9, -1.9], dtype=m.int32),
    "float32 range": lambda m: m.tensor([1e60, 1.0]),
}


def flat(found):
    return found if isinstance(found, (tuple, list)) else [found]


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    values, compute = CASES[name]
    x, y = (m.tensor(values, dtype=m.float32, requires_grad=True) for m in (dptrain, torch))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's about older functions
        mine, theirs = flat(compute(dptrain, x)), flat(compute(torch, y))
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert str(a.dtype)[8:] == str(b.dtype)[6:]
            assert tuple(a.shape) == tuple(b.shape)
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-6)
        if not theirs[0].requires_grad:
            return
        mine[0].sum().backward()
        theirs[0].sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("name", WRAPPED)
def test_numbers_are_converted_as_in_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    mine, theirs = WRAPPED[name](dptrain), WRAPPED[name](torch)
    np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
