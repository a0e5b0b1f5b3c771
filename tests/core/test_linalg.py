"""Linear algebra beyond single samples: what does not depend on signs, singular cases, named results."""

from itertools import pairwise

import numpy as np
import pytest

import dptrain
from dptrain.autograd import gradcheck, gradgradcheck
from dptrain.core.kernels import kernels_for, reference


def draw(*shape, seed=0, grad=True):
    values = np.random.default_rng(seed).standard_normal(shape)
    return dptrain.tensor(values, requires_grad=grad)


def symmetric(a):
    return a + a.mT


def definite(lib, a):
    return a @ a.mT + lib.eye(a.shape[-1], dtype=lib.float64)


#: Functions of any matrix that do not change with the signs of the vectors inside.
INVARIANTS = {
    "cholesky": lambda lib, a: lib.linalg.cholesky(definite(lib, a)),
    "cholesky upper": lambda lib, a: lib.linalg.cholesky(definite(lib, a), upper=True),
    "eigenvalues": lambda lib, a: lib.linalg.eigvalsh(symmetric(a)),
    "eigenvectors": lambda lib, a: lib.linalg.eigh(symmetric(a)).eigenvectors ** 2,
    "eigh rebuilt": lambda lib, a: (lambda w, v: (v * w.unsqueeze(-2).exp()) @ v.mT)(
        *lib.linalg.eigh(symmetric(a))
    ),
    "svd vectors": lambda lib, a: lib.linalg.svd(a, full_matrices=False).U ** 2,
    "svd right vectors": lambda lib, a: lib.linalg.svd(a, full_matrices=False).Vh ** 2,
    "svd product": lambda lib, a: (lambda u, s, vh: (u * s.unsqueeze(-2).square()) @ vh)(
        *lib.linalg.svd(a, full_matrices=False)
    ),
    "svd full": lambda lib, a: (lambda u, s, vh: u[..., : s.shape[-1]] ** 2 @ s.unsqueeze(-1))(
        *lib.linalg.svd(a)
    ),
    "qr": lambda lib, a: lib.linalg.qr(a).Q ** 2,
    "qr of r": lambda lib, a: lib.linalg.qr(a).R ** 2,
}
SHAPES = {"square": (4, 4), "batch": (2, 3, 3), "tall": (4, 3), "wide": (3, 5)}
CASES = [
    (name, shape)
    for name in INVARIANTS
    for shape in SHAPES
    if shape in ("square", "batch") or name.startswith(("svd", "qr"))
]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_derivatives_of_decompositions(name, shape):
    def function(a):
        return INVARIANTS[name](dptrain, a)

    a = draw(*SHAPES[shape], seed=3)
    assert gradcheck(function, [a])
    assert gradgradcheck(function, [a])


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_decompositions_equal_pytorch(name, shape):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    values = np.random.default_rng(4).standard_normal(SHAPES[shape])
    results = []
    for lib in (dptrain, torch):
        a = lib.tensor(values, requires_grad=True)
        out = INVARIANTS[name](lib, a)
        (out * lib.arange(out.numel()).reshape(out.shape)).sum().backward()
        results.append((out.detach().numpy(), a.grad.numpy()))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (2, 4, 3)])
def test_factors_multiply_to_the_matrix(shape):
    a = draw(*shape, grad=False)
    q, r = dptrain.linalg.qr(a)
    u, s, vh = dptrain.linalg.svd(a, full_matrices=False)
    whole_q, whole_r = dptrain.linalg.qr(a, "complete")
    for product in (q @ r, whole_q @ whole_r, (u * s.unsqueeze(-2)) @ vh):
        np.testing.assert_allclose(product.numpy(), a.numpy(), atol=1e-12)
    assert whole_q.shape[-2:] == (shape[-2], shape[-2])
    assert dptrain.linalg.svd(a).Vh.shape[-2:] == (shape[-1], shape[-1])
    empty, only_r = dptrain.linalg.qr(a, mode="r")
    assert empty.numel() == 0
    np.testing.assert_allclose(only_r.numpy(), r.numpy())


def test_results_have_names():
    a = draw(3, 3)
    for result, names in (
        (dptrain.linalg.qr(a), "Q R"),
        (dptrain.linalg.svd(a), "U S Vh"),
        (dptrain.linalg.eigh(symmetric(a)), "eigenvalues eigenvectors"),
        (dptrain.linalg.slogdet(a), "sign logabsdet"),
        (dptrain.linalg.lstsq(a, a), "solution residuals rank singular_values"),
    ):
        assert all(getattr(result, n) is v for n, v in zip(names.split(), result, strict=True))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_determinant_has_a_derivative_at_singular_matrices(rank):
    rows = [[1.0, 2.0, 4.0], [2.0, 4.0, 8.0], [0.0, 1.0, 3.0]]
    a = dptrain.tensor(rows, dtype=dptrain.float64) * (rank > 0)
    if rank == 1:
        a[2] = a[0]
    a.requires_grad_()
    dptrain.det(a).backward()
    minors = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            rest = np.delete(np.delete(a.detach().numpy(), i, 0), j, 1)
            minors[i, j] = (-1) ** (i + j) * np.linalg.det(rest)
    np.testing.assert_allclose(a.grad.numpy(), minors, atol=1e-12)


def test_logdet_of_negative_and_zero_determinants():
    a = dptrain.tensor(
        [[[0.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]]]
    )
    negative, zero, positive = dptrain.logdet(a).tolist()
    assert np.isnan(negative)
    assert zero == -np.inf
    assert positive == pytest.approx(np.log(6))


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 2, 3, float("inf")])
def test_the_derivative_of_a_norm_at_zero_is_zero(p):
    x = dptrain.zeros(3, dtype=dptrain.float64, requires_grad=True)
    dptrain.linalg.vector_norm(x, p).backward()
    assert x.grad.tolist() == [0.0] * 3


def test_equal_extremes_share_the_gradient_of_the_largest_norm():
    x = dptrain.tensor([2.0, -2.0, 1.0], requires_grad=True)
    x.norm(float("inf")).backward()
    assert x.grad.tolist() == [0.5, -0.5, 0.0]


def test_multi_dot_takes_the_cheapest_order():
    sizes = (10, 100, 5, 50)
    chain = [draw(*s, seed=i) for i, s in enumerate(pairwise(sizes))]
    out = dptrain.linalg.multi_dot(chain)
    # (A B) C costs 7,500 multiplications, A (B C) 75,000: the last product has a 10 x 5 operand.
    last = out._node.edges[0][0]
    assert last.edges[0][0].outs[0][0] == (10, 5)
    np.testing.assert_allclose(
        out.detach().numpy(), np.linalg.multi_dot([c.detach().numpy() for c in chain])
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_function_of_both_providers(dtype):
    x = np.concatenate([np.linspace(-7, 7, 1401), [0.0, np.inf, -np.inf, np.nan]]).astype(dtype)
    np.testing.assert_allclose(
        kernels_for(x.dtype).erf(x), reference.erf(x), rtol=4 * np.finfo(dtype).eps, atol=0
    )
    # erf(x) = 2 / sqrt(pi) * integral of exp(-t^2): Gauss-Legendre with 60 nodes.
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for end in (0.3, 1.0, 2.5, 4.5):
        t = (nodes + 1) * end / 2
        integral = (weights * np.exp(-t * t)).sum() * end / np.sqrt(np.pi)
        np.testing.assert_allclose(
            reference.erf(np.array([end], dtype)),
            [integral],
            rtol=max(1e-14, 4 * np.finfo(dtype).eps),
        )
