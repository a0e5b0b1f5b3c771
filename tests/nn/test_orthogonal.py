"""The orthogonal parametrization against PyTorch, and what it promises."""

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.core.gradcheck import gradcheck, gradgradcheck
from dptrain.nn.utils.orthogonal import _cayley, _matrix_exp, _reflections
from dptrain.nn.utils.parametrizations import orthogonal
from dptrain.nn.utils.parametrize import remove_parametrizations

SHAPES = [(4, 4), (3, 5), (5, 3), (1, 1)]
MAPS = ["matrix_exp", "cayley", "householder", None]


def start(shape):
    """A matrix with orthonormal rows or columns."""
    draws = np.random.default_rng(0).standard_normal((max(shape), min(shape)))
    q = np.linalg.qr(draws)[0]
    return q if shape[0] >= shape[1] else q.T


@pytest.mark.oracle
@pytest.mark.parametrize("use_trivialization", [True, False])
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_gradients_and_state_are_those_of_pytorch(shape, name, use_trivialization):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    results, state = [], None
    for lib, apply in (
        (dptrain, orthogonal),
        (torch, torch.nn.utils.parametrizations.orthogonal),
    ):
        layer = lib.nn.Linear(shape[1], shape[0]).double()
        with lib.no_grad():
            layer.weight.copy_(lib.tensor(start(shape).copy()))
        apply(layer, orthogonal_map=name, use_trivialization=use_trivialization)
        first = layer.weight.detach().numpy().copy()
        if state is None:  # `base` has random columns where the matrix is not square
            state = {k: v.numpy().copy() for k, v in layer.state_dict().items()}
            noise = np.random.default_rng(1).standard_normal(shape)
            np.fill_diagonal(noise, 0)
            state["parametrizations.weight.original"] += noise
        layer.load_state_dict({k: lib.tensor(v) for k, v in state.items()})
        weight = layer.weight
        factor = lib.tensor(np.random.default_rng(5).standard_normal(shape))
        ((weight * factor).sum() + (weight * weight * weight).sum()).backward()
        grad = layer.parametrizations.weight.original.grad
        facts = list(layer.state_dict()), repr(layer)
        results.append(((first, weight.detach().numpy(), grad.numpy()), facts))
    (ours, facts), (theirs, expected) = results
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert facts == expected


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_stays_orthogonal_in_training_and_when_assigned(shape, name):
    layer = orthogonal(nn.Linear(shape[1], shape[0]).double(), orthogonal_map=name)
    o = dptrain.optim.SGD(layer.parameters(), lr=0.5)
    x = dptrain.rand(6, shape[1]).double()

    def assert_orthogonal():
        w = layer.weight.detach().numpy()
        gram = w @ w.T if shape[0] <= shape[1] else w.T @ w
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)

    for _ in range(3):
        o.zero_grad()
        (layer(x) ** 2).sum().backward()
        o.step()
        assert_orthogonal()
    layer.weight = dptrain.tensor(start(shape).copy())
    np.testing.assert_allclose(layer.weight.detach().numpy(), start(shape), atol=1e-12)
    assert_orthogonal()
    remove_parametrizations(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    assert_orthogonal()


@pytest.mark.parametrize("function", [_matrix_exp, _cayley, _reflections])
def test_derivatives_of_the_maps(function):
    draws = np.random.default_rng(2).standard_normal((2, 3, 3))
    x = dptrain.tensor(draws, dtype=dptrain.float64).requires_grad_()
    assert gradcheck(function, (x,))
    assert gradgradcheck(function, (x,))


def test_exponential_of_large_matrices():
    for size in (1e-9, 1.0, 30.0):
        a = np.array([[0.0, -size], [size, 0.0]])
        expected = [[np.cos(size), -np.sin(size)], [np.sin(size), np.cos(size)]]
        np.testing.assert_allclose(_matrix_exp(dptrain.tensor(a)).numpy(), expected, atol=1e-13)
    assert np.isnan(_matrix_exp(dptrain.full((2, 2), float("nan"))).numpy()).all()


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: orthogonal(nn.Linear(2, 2), "no"), ValueError, "no parameter or buffer with name"),
        (lambda: orthogonal(nn.Linear(2, 2), "bias"), ValueError, "Got a tensor of 1 dimensions"),
        (
            lambda: orthogonal(nn.Linear(2, 2), orthogonal_map="qr"),
            ValueError,
            "has to be one of .* Got: qr",
        ),
        (
            lambda: setattr(orthogonal(nn.Linear(2, 2)), "weight", dptrain.zeros(3, 3)),
            ValueError,
            "Expected a matrix or batch of matrices of shape",
        ),
        (
            lambda: setattr(
                orthogonal(nn.Linear(2, 2), use_trivialization=False), "weight", dptrain.zeros(2, 2)
            ),
            NotImplementedError,
            "not possible to assign",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
