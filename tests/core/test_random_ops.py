"""Draws: distribution, reproducibility, dtype and shape."""

import math

import numpy as np
import pytest

import dptrain

N = 20_000


def filled(name, *args, dtype=dptrain.float64, **kwargs):
    dptrain.manual_seed(7)
    return getattr(dptrain.empty(N, dtype=dtype), name)(*args, **kwargs).numpy()


@pytest.mark.parametrize(
    ("name", "args", "mean", "std"),
    [
        ("exponential_", (2.0,), 0.5, 0.5),
        ("geometric_", (0.25,), 4.0, math.sqrt(12)),
        ("bernoulli_", (0.3,), 0.3, math.sqrt(0.21)),
        ("random_", (10,), 4.5, math.sqrt(8.25)),
        ("random_", (-5, 5), -0.5, math.sqrt(8.25)),
        ("log_normal_", (0.0, 0.25), math.exp(1 / 32), None),
    ],
)
def test_moments_are_those_of_the_distribution(name, args, mean, std):
    drawn = filled(name, *args)
    spread = drawn.std() if std is None else std
    assert abs(drawn.mean() - mean) < 5 * spread / math.sqrt(N)
    if std is not None:
        assert drawn.std() == pytest.approx(std, rel=0.05)
    assert (filled(name, *args) == drawn).all()


def test_cauchy_has_its_quartiles():
    drawn = filled("cauchy_", 1.0, 2.0)
    assert np.quantile(drawn, [0.25, 0.5, 0.75]) == pytest.approx([-1.0, 1.0, 3.0], abs=0.15)


def test_random_fills_the_range_of_the_type():
    assert filled("random_", dtype=dptrain.int8).max() == 127
    assert set(filled("random_", dtype=dptrain.bool)) == {False, True}
    largest = filled("random_", dtype=dptrain.float32).max()
    assert 2**23 < largest <= 2**24


def test_bernoulli_takes_probabilities_from_tensors():
    p = dptrain.tensor([0.1, 0.9]).expand(N, 2)
    assert dptrain.bernoulli(p).numpy().mean(axis=0) == pytest.approx([0.1, 0.9], abs=0.02)
    drawn = dptrain.empty(N, 2).bernoulli_(dptrain.tensor([0.1, 0.9]))
    assert drawn.numpy().mean(axis=0) == pytest.approx([0.1, 0.9], abs=0.02)


def test_normal_takes_means_and_deviations_from_tensors():
    mean, std = dptrain.tensor([1.0, -1.0]).expand(N, 2), dptrain.tensor([0.5, 2.0])
    drawn = dptrain.normal(mean, std).numpy()
    assert drawn.mean(axis=0) == pytest.approx([1.0, -1.0], abs=0.1)
    assert drawn.std(axis=0) == pytest.approx([0.5, 2.0], rel=0.05)
    assert dptrain.normal(mean).shape == (N, 2)
    assert dptrain.normal(0.0, std).shape == (2,)
    assert dptrain.normal(0.0, 1.0, (2, 3), dtype=dptrain.float64).dtype is dptrain.float64


@pytest.mark.parametrize("replacement", [True, False])
def test_multinomial_draws_by_weight(replacement):
    weights = dptrain.tensor([1.0, 0.0, 3.0, 4.0])
    rows = dptrain.multinomial(weights.expand(N, 4), 2, replacement).numpy()
    assert rows.shape == (N, 2)
    counts = np.bincount(rows[:, 0], minlength=4) / N
    assert counts == pytest.approx([0.125, 0.0, 0.375, 0.5], abs=0.02)
    if replacement:
        assert np.bincount(rows[:, 1], minlength=4) / N == pytest.approx(counts, abs=0.02)
    else:
        assert (rows[:, 0] != rows[:, 1]).all()
    single = dptrain.multinomial(weights, 3)
    assert sorted(single.tolist()) == [0, 2, 3]


def test_poisson_has_its_rate():
    drawn = dptrain.poisson(dptrain.full((N,), 3.0))
    assert drawn.dtype is dptrain.float32
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.08)


def test_generators_make_draws_repeatable():
    def draw(seed):
        generator = dptrain.Generator().manual_seed(seed)
        return [
            dptrain.empty(4).exponential_(generator=generator).tolist(),
            dptrain.multinomial(dptrain.ones(5), 3, generator=generator).tolist(),
            dptrain.normal(0.0, dptrain.ones(3), generator=generator).tolist(),
            dptrain.randint_like(dptrain.ones(3), 9, generator=generator).tolist(),
        ]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
