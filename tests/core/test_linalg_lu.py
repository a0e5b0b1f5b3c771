"""What is solved with factors, decompositions that fail, random low-rank decompositions."""

import numpy as np
import pytest

import dptrain
from dptrain.autograd import gradcheck, gradgradcheck
from dptrain.core.random import numpy_stream


def draw(*shape):
    return numpy_stream(7, *shape).standard_normal(shape)


@pytest.mark.oracle
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("adjoint", [True, False])
def test_lu_solve_equals_pytorch_with_derivatives(left, adjoint):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ends = []
    for m in (dptrain, torch):
        a, b = (
            m.tensor(draw(*s), requires_grad=True)
            for s in ((2, 3, 3), (2, 3, 4) if left else (2, 4, 3))
        )
        lu, pivots = m.linalg.lu_factor(a)
        out = m.linalg.lu_solve(lu, pivots, b, left=left, adjoint=adjoint)
        out.square().sum().backward()
        ends.append([t.detach().numpy() for t in (out, a.grad, b.grad)])
    for found, expected in zip(*ends, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [1, 2, 5, 12, 70])
def test_symmetric_factors_and_solutions_equal_pytorchs(size):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    matrices = draw(2, size, size)
    matrices[0] -= np.diag(np.diag(matrices[0]))  # asks for pivots of two rows
    matrices[:, 0, 0] += 1
    ends = []
    for m in (dptrain, torch):
        a, b = m.tensor(matrices), m.tensor(draw(2, size, 3))
        ld, pivots = m.linalg.ldl_factor(a)
        assert pivots.dtype is m.int32
        out = m.linalg.ldl_solve(ld, pivots, b)
        ends.append([t.numpy() for t in (ld, pivots, out)])
    for found, expected in zip(*ends, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    symmetric = np.tril(matrices) + np.swapaxes(np.tril(matrices, -1), -1, -2)
    assert size < 5 or (ends[0][1] < 0).any()
    np.testing.assert_allclose(symmetric @ ends[0][2], draw(2, size, 3), atol=1e-7)


def test_solving_with_symmetric_factors_has_derivatives():
    ld, pivots = dptrain.linalg.ldl_factor(dptrain.tensor(draw(4, 4)))
    b = dptrain.tensor(draw(4, 2), requires_grad=True)
    assert gradcheck(lambda t: dptrain.linalg.ldl_solve(ld, pivots, t), b)


@pytest.mark.parametrize("p", ["fro", 1, float("inf")])
def test_condition_numbers_have_derivatives(p):
    a = dptrain.tensor(draw(2, 3, 3), requires_grad=True)
    assert gradcheck(lambda t: dptrain.linalg.cond(t, p), a)


@pytest.mark.parametrize("increasing", [True, False])
def test_columns_of_powers_have_derivatives(increasing):
    x = dptrain.tensor(draw(4), requires_grad=True)
    assert gradcheck(lambda t: dptrain.vander(t, 5, increasing), x)


@pytest.mark.oracle
@pytest.mark.parametrize("upper", [True, False])
def test_solving_with_a_cholesky_factor_has_pytorchs_gradients(upper):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    factor = (np.triu if upper else np.tril)(draw(2, 3, 3)) + 2 * np.eye(3)
    ends = []
    for m in (dptrain, torch):
        b, t = (m.tensor(v, requires_grad=True) for v in (draw(2, 3, 2), factor))
        out = m.cholesky_solve(b, t, upper)
        (out.square().sum() + m.cholesky_inverse(t, upper).square().sum()).backward()
        ends.append([v.detach().numpy() for v in (out, b.grad, t.grad)])
    for found, expected in zip(*ends, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_factors_without_exchanges():
    a = dptrain.tensor(draw(3, 3) + 3 * np.eye(3))
    p, lower, upper = dptrain.linalg.lu(a, pivot=False)
    assert p.numel() == 0
    np.testing.assert_allclose((lower @ upper).numpy(), a.numpy(), atol=1e-12)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:torch.lu_solve is deprecated")
def test_older_forms_take_the_factors():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ends = []
    for m in (dptrain, torch):
        a, b = m.tensor(draw(2, 4, 4)), m.tensor(draw(2, 4, 1))
        lu, pivots = m.linalg.lu_factor(a)
        parts = m.lu_unpack(lu, pivots)
        assert m.lu_unpack(lu, pivots, unpack_data=False)[1].numel() == 0
        ends.append([m.lu_solve(b, lu, pivots), b.lu_solve(lu, pivots), *parts])
    for found, expected in zip(*ends, strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 3), (3, 5)])
def test_lu_factors_have_both_derivatives(shape):
    a = dptrain.tensor(draw(*shape), requires_grad=True)
    assert gradcheck(lambda t: dptrain.linalg.lu_factor(t)[0], a)
    assert gradgradcheck(lambda t: dptrain.linalg.lu_factor(t)[0], a)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("call", "kept"),
    [
        (lambda m, a: m.linalg.inv_ex(a), "inverse"),
        (lambda m, a: m.linalg.solve_ex(a, a), "result"),
        (lambda m, a: m.linalg.cholesky_ex(a), "L"),
    ],
)
def test_failures_are_numbered_as_in_pytorch(call, kept):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    matrices = np.stack([2 * np.eye(3), np.ones((3, 3)), np.diag([1.0, 0.0, 2.0])])
    ends = []
    for m in (dptrain, torch):
        found = call(m, m.tensor(matrices))
        assert found.info.dtype is m.int32
        ends.append((found.info.tolist(), getattr(found, kept)[0].tolist()))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("name", ["cholesky_ex", "inv_ex", "lu_factor_ex"])
def test_check_errors_raises(name):
    with pytest.raises(dptrain.linalg.LinAlgError, match=r"linalg\."):
        getattr(dptrain.linalg, name)(dptrain.zeros(2, 2), check_errors=True)


@pytest.mark.parametrize("shape", [(9, 5), (2, 4, 8)])
def test_low_rank_decompositions_recover_a_matrix_of_that_rank(shape):
    *batch, m, n = shape
    a = dptrain.tensor(draw(*batch, m, 2)) @ dptrain.tensor(draw(*batch, 2, n))
    u, s, v = dptrain.svd_lowrank(a, q=3)
    np.testing.assert_allclose((u * s.unsqueeze(-2) @ v.mT).numpy(), a.numpy(), atol=1e-10)
    u, s, v = dptrain.pca_lowrank(a, q=3)
    centred = a - a.mean(-2, keepdim=True)
    np.testing.assert_allclose((u * s.unsqueeze(-2) @ v.mT).numpy(), centred.numpy(), atol=1e-10)


def test_the_older_svd_gives_v_itself():
    a = dptrain.tensor(draw(2, 4, 3))
    u, s, v = dptrain.svd(a)
    np.testing.assert_allclose((u * s.unsqueeze(-2) @ v.mT).numpy(), a.numpy(), atol=1e-12)
    assert dptrain.svd(a, some=False).U.shape == (2, 4, 4)
