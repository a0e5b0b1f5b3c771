"""Truncated, orthogonal, sparse and fixed initial values: their bounds, their structure, PyTorch's."""

import math
import warnings

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.nn import init


@pytest.fixture(autouse=True)
def _seed():
    dptrain.manual_seed(1234)


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"), [(0, 1, -2, 2), (0.5, 2, -1, 1), (0, 1, 1.5, 2.5), (2, 1, 0, 0.5)]
)
def test_truncated_draws_have_the_moments_of_the_cut_distribution(mean, std, a, b):
    values = init.trunc_normal_(dptrain.empty(20000), mean, std, a, b).numpy()
    assert values.min() >= a
    assert values.max() <= b
    x = np.linspace(a, b, 20001)
    density = np.exp(-0.5 * ((x - mean) / std) ** 2)
    expected = (x * density).sum() / density.sum()
    spread = math.sqrt((((x - expected) ** 2) * density).sum() / density.sum())
    assert values.mean() == pytest.approx(expected, abs=5 * spread / math.sqrt(20000))
    assert values.std() == pytest.approx(spread, rel=0.03)


def test_truncation_far_from_the_mean_is_warned_of():
    with pytest.warns(UserWarning, match="mean is more than 2 std from"):
        init.trunc_normal_(dptrain.empty(3), mean=9.0)


def test_draws_come_from_the_generator_that_is_given():
    for fill in (
        init.trunc_normal_,
        init.orthogonal_,
        lambda t, generator: init.sparse_(t, 0.3, generator=generator),
    ):
        g = dptrain.Generator().manual_seed(5)
        state = dptrain.get_rng_state().tolist()
        first = fill(dptrain.empty(4, 5), generator=g)
        assert dptrain.get_rng_state().tolist() == state
        g.manual_seed(5)
        assert fill(dptrain.empty(4, 5), generator=g).tolist() == first.tolist()


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (2, 3, 2)])
@pytest.mark.parametrize("kind", ["float64", "float32", "float16"])
def test_orthogonal_rows_or_columns(shape, kind):
    t = dptrain.empty(shape, dtype=getattr(dptrain, kind))
    assert init.orthogonal_(t, gain=2.0) is t
    m = t.double().numpy().reshape(shape[0], -1) / 2
    gram = m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol={"float64": 1e-12}.get(kind, 5e-3))


def test_nothing_is_orthogonal():
    assert init.orthogonal_(dptrain.empty(0, 3)).shape == (0, 3)


def test_sparse_columns():
    values = init.sparse_(dptrain.empty(10, 40), sparsity=0.25, std=2.0).numpy()
    assert ((values == 0).sum(axis=0) == 3).all()  # 2.5, rounded up
    assert values[values != 0].std() == pytest.approx(2.0, rel=0.15)
    assert len({tuple(column) for column in (values == 0).T}) > 5


def test_parameters_are_filled_without_recording():
    p = nn.Parameter(dptrain.zeros(3, 3))
    for fill in (init.eye_, init.orthogonal_, init.trunc_normal_):
        version = p._version_counter()[0]
        assert fill(p) is p
        assert p.is_leaf
        assert p._version_counter()[0] > version


@pytest.mark.oracle
def test_values_by_position_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for shape in [(3, 3), (2, 4), (4, 2)]:
        expected = torch.nn.init.eye_(torch.empty(shape))
        assert init.eye_(dptrain.empty(shape)).tolist() == expected.tolist()
    for shape, groups in [
        ((3, 2, 3), 1),
        ((4, 2, 2), 2),
        ((6, 3, 3, 4), 3),
        ((2, 5, 1, 2, 3), 1),
        ((4, 1, 3, 3), 4),
    ]:
        expected = torch.nn.init.dirac_(torch.empty(shape), groups)
        assert init.dirac_(dptrain.empty(shape), groups).tolist() == expected.tolist()


@pytest.mark.oracle
def test_every_name_of_pytorch_is_there():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert [n for n in torch.nn.init.__all__ if not hasattr(init, n)] == []


def test_old_names_warn_and_work():
    with pytest.warns(FutureWarning, match=r"`nn.init.constant` is now deprecated in favor of"):
        assert init.constant(dptrain.empty(2), 3.0).tolist() == [3, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert init.eye(dptrain.empty(2, 2)).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: init.eye_(dptrain.empty(3)), "Only tensors with 2 dimensions are supported"),
        (lambda: init.dirac_(dptrain.empty(3, 3)), "Only tensors with 3, 4, or 5 dimensions"),
        (lambda: init.dirac_(dptrain.empty(3, 3, 1), 2), "dim 0 must be divisible by groups"),
        (lambda: init.orthogonal_(dptrain.empty(3)), "Only tensors with 2 or more dimensions"),
        (lambda: init.sparse_(dptrain.empty(3), 0.1), "Only tensors with 2 dimensions"),
        (lambda: init.sparse_(dptrain.empty(3, 3), 1.5), "sparsity must be between 0 and 1"),
        (lambda: init.trunc_normal_(dptrain.empty(3), a=2.0, b=1.0), "expects a <= b and std > 0"),
        (lambda: init.trunc_normal_(dptrain.empty(3), std=0.0), "expects a <= b and std > 0"),
    ],
)
def test_what_has_no_meaning_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
