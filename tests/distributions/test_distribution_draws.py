"""Draws: their moments, and their derivatives by the parameters."""

import math

import numpy as np
import pytest
from distribution_makers import MAKERS
from side_by_side import both, positive_values, values

import dptrain
from dptrain import distributions as d
from dptrain.core.ops.gamma_draws import draw_slope

COUNT = 20_000
#: Families without a variance, or with one that draws find too slowly.
HEAVY = {"Cauchy", "HalfCauchy", "Pareto", "InverseGamma", "StudentT", "FisherSnedecor"}
#: Families whose moments have no closed form.
WITHOUT = {
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "LogisticNormal",
    "tanh",
    "powers",
    "softplus",
    "sticks",
    "reshaped",
}


@pytest.mark.parametrize(
    "family", [f for f in MAKERS if f.split()[0] not in {*HEAVY, *WITHOUT, "Categorical"}]
)
def test_moments_of_draws_are_those_of_the_family(family):
    dptrain.manual_seed(3)
    made, _ = MAKERS[family](dptrain)
    one = made()
    mean, variance = one.mean, one.variance
    drawn = one.sample((COUNT,))
    error = (drawn.mean(0) - mean).abs()
    assert (error < 6 * (variance / COUNT).sqrt() + 1e-6).all()
    spread = (drawn.var(0) / variance - 1).abs()
    assert (spread < 0.25).all()


def test_categorical_frequencies():
    dptrain.manual_seed(1)
    one = d.Categorical(dptrain.tensor([[1.0, 2.0, 5.0], [0.0, 3.0, 1.0]]))
    drawn = one.sample((COUNT,))
    found = dptrain.stack([(drawn == k).double().mean(0) for k in range(3)], -1)
    assert (found - one.probs.double()).abs().max() < 0.02
    assert found[1, 0] == 0


@pytest.mark.parametrize("family", [f for f in MAKERS if f.split()[0] in HEAVY])
def test_distribution_of_draws_where_moments_do_not_help(family):
    """The median, and quartiles: the share of draws below a value is the probability up to there."""
    dptrain.manual_seed(2)
    made, _ = MAKERS[family](dptrain)
    one = made()
    drawn = one.sample((COUNT,))
    for share in (0.25, 0.5, 0.9):
        below = drawn.sort(0).values[int(share * COUNT)]
        near = drawn.sort(0).values[int(share * COUNT) + 400]
        try:
            found = one.cdf(below)
        except NotImplementedError:  # by the density, over the 1 % of draws between two values
            width = near - below
            middle = (one.log_prob((near + below) / 2).exp() * width)[:1]
            assert abs(middle.item() - 400 / COUNT) < 0.004
            continue
        assert (found - share).abs().max() < 0.02


@pytest.mark.oracle
def test_slope_of_gamma_draws_is_that_of_pytorch():
    def program(lib):
        a = lib.tensor(np.geomspace(0.05, 300, 24)).unsqueeze(-1)
        x = a * lib.tensor([0.2, 0.6, 1.0, 1.7, 3.0], dtype=lib.float64)
        if lib is dptrain:
            wide = a.expand(24, 5).numpy()
            return lib.tensor(draw_slope(wide, x.numpy()))
        return lib._standard_gamma_grad(a.expand(24, 5).contiguous(), x)

    both(program, tolerance=2e-3)  # PyTorch's own is a series and an asymptotic formula


def test_slope_of_gamma_draws_keeps_the_quantile():
    """P(a, x(a)) is constant: along the slope the distribution function does not change."""
    a, x, h = np.array([0.3, 1.0, 4.0, 50.0]), np.array([0.1, 2.0, 3.0, 60.0]), 1e-5
    step = draw_slope(a, x) * h

    def up_to(a, x):
        return dptrain.special.gammainc(dptrain.tensor(a), dptrain.tensor(x)).numpy()

    np.testing.assert_allclose(up_to(a + h, x + step), up_to(a - h, x - step), rtol=1e-9)


@pytest.mark.parametrize(
    ("made", "moment"),
    [
        (lambda p: d.Normal(p, p.exp()), lambda p: p),
        (lambda p: d.Gamma(p.exp(), 2 * p.exp()), lambda p: p * 0 + 0.5),
        (lambda p: d.Gamma(p.exp(), 1.0), lambda p: p.exp()),
        (lambda p: d.Beta(p.exp(), 1.5), lambda p: p.exp() / (p.exp() + 1.5)),
        (lambda p: d.Exponential(p.exp()), lambda p: (-p).exp()),
        (lambda p: d.Uniform(p - 1, p + p.exp()), lambda p: p + (p.exp() - 1) / 2),
        (lambda p: d.LogNormal(p, 0.5), lambda p: (p + 0.125).exp()),
        (lambda p: d.Laplace(p, p.exp()), lambda p: p),
    ],
)
def test_derivatives_of_draws_have_the_mean_of_the_derivative_of_the_mean(made, moment):
    dptrain.manual_seed(4)
    p = dptrain.tensor([-0.4, 0.3, 1.1], dtype=dptrain.float64, requires_grad=True)
    (by_draws,) = dptrain.autograd.grad(made(p).rsample((COUNT,)).mean(0).sum(), p)
    (exact,) = dptrain.autograd.grad(moment(p).sum(), p)
    assert (by_draws - exact).abs().max() < 0.1


def test_draws_of_a_covariance_have_it():
    dptrain.manual_seed(5)
    factor = dptrain.tensor([[1.0, 0, 0], [0.5, 0.3, 0], [-0.2, 0.4, 2.0]])
    one = d.MultivariateNormal(dptrain.tensor([1.0, -1.0, 0.0]), factor @ factor.T)
    found = one.sample((COUNT,)).T.cov()
    assert (found - factor @ factor.T).abs().max() < 0.1


@pytest.mark.oracle
def test_gradients_of_probabilities_and_entropies():
    def program(lib):
        d, found = lib.distributions, []

        def go(build, params, value):
            leaves = [p.clone().requires_grad_() for p in params]
            one = build(*leaves)
            total = one.log_prob(value).sum()
            try:
                total = total + one.entropy().sum()
            except NotImplementedError:
                total = total * 2
            found.extend([total, *lib.autograd.grad(total, leaves)])

        def real(*shape):
            return values(lib, *shape)

        def positive(*shape, seed=0):
            return positive_values(lib, *shape, seed=seed)

        bits = lib.tensor([1.0, 0.0, 1.0], dtype=lib.float64)
        eye = lib.eye(3, dtype=lib.float64)
        vectors = values(lib, 2, 3, seed=7)
        go(d.Normal, [real(3), positive(3)], values(lib, 3, seed=4))
        go(d.Categorical, [positive(2, 4)], lib.tensor([1, 2]))
        go(lambda p: d.Categorical(logits=p), [real(2, 4)], lib.tensor([1, 2]))
        go(lambda p: d.Bernoulli(logits=p), [real(3)], bits)
        go(lambda p: d.Bernoulli(p.sigmoid()), [real(3)], bits)
        go(d.Gamma, [positive(3), positive(3, seed=2)], positive(3, seed=5))
        go(d.Beta, [positive(3), positive(3, seed=2)], real(3).sigmoid())
        go(d.Dirichlet, [positive(2, 4)], real(2, 4).softmax(-1))
        go(d.StudentT, [positive(3), real(3), positive(3)], values(lib, 3, seed=4))
        go(lambda m, f: d.MultivariateNormal(m, f @ f.T + eye), [real(3), real(3, 3)], vectors)
        go(
            lambda m, f: d.MultivariateNormal(m, precision_matrix=f @ f.T + eye),
            [real(3), real(3, 3)],
            vectors,
        )
        go(
            lambda m, s: d.TransformedDistribution(d.Normal(m, s), [d.TanhTransform()]),
            [real(3), positive(3)],
            values(lib, 3, seed=3).tanh(),
        )
        go(
            lambda w, m, s: d.MixtureSameFamily(d.Categorical(w), d.Normal(m, s)),
            [positive(4), real(4), positive(4)],
            real(5),
        )
        return found

    both(program, tolerance=1e-8)


def test_gradient_of_straight_through_draws_is_that_of_the_probabilities():
    logits = dptrain.tensor([0.1, 0.7, -0.4], requires_grad=True)
    weight = dptrain.tensor([1.0, 2.0, 3.0])
    one = d.OneHotCategoricalStraightThrough(logits=logits)
    drawn = one.rsample()
    assert sorted(drawn.detach().round().tolist()) == [0, 0, 1]
    (found,) = dptrain.autograd.grad((drawn * weight).sum(), logits)
    (expected,) = dptrain.autograd.grad((logits.softmax(-1) * weight).sum(), logits)
    assert dptrain.allclose(found, expected)


def test_same_seed_same_draws():
    for _ in range(2):
        dptrain.manual_seed(7)
        drawn = d.Normal(0.0, 1.0).sample((5,))
    dptrain.manual_seed(7)
    assert d.Normal(0.0, 1.0).sample((5,)).equal(drawn)


def test_mode_of_kumaraswamy_is_the_maximum():
    """PyTorch's formula is nan above 1."""
    one = d.Kumaraswamy(dptrain.tensor(2.0), dptrain.tensor(3.0))
    grid = dptrain.linspace(0.01, 0.99, 981)
    assert abs(grid[one.log_prob(grid).argmax()] - one.mode) < 2e-3


def test_entropy_of_an_expanded_multinomial():
    one = d.Multinomial(3, dptrain.tensor([0.2, 0.8]))
    expected = one.entropy()
    assert dptrain.allclose(one.expand((4,)).entropy(), expected.expand(4))
    chance = [math.comb(3, k) * 0.2**k * 0.8 ** (3 - k) for k in range(4)]
    assert math.isclose(expected.item(), -sum(c * math.log(c) for c in chance), rel_tol=1e-5)
