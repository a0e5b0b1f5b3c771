"""Every family of dptrain.distributions against torch.distributions: numbers, shapes, errors, text."""

import pytest
from distribution_makers import MAKERS
from side_by_side import both, error_of

pytestmark = pytest.mark.oracle

#: Where PyTorch's own formula gives nan, or the method fails: what is right is tested below.
LEFT_OUT = {("Kumaraswamy", "mode"), ("Multinomial", "expand")}

every_family = pytest.mark.parametrize("family", MAKERS)


def outcome(use):
    """What a call gives, or the error that it raises."""
    try:
        return use()
    except Exception as error:
        return error


@every_family
def test_moments_shapes_and_support(family):
    def program(lib):
        made, value = MAKERS[family](lib)
        d = made()
        names = ["batch_shape", "event_shape", "mean", "mode", "variance", "stddev"]
        kept = [n for n in names if (family, n) not in LEFT_OUT]
        found = [outcome(lambda n=n: getattr(d, n)) for n in kept]
        found += [d.has_rsample, d.has_enumerate_support]
        found += [outcome(lambda: (d.support.is_discrete, d.support.event_dim))]
        return [
            *(tuple(f) if "Size" in type(f).__name__ else f for f in found),
            d.support.check(value),
        ]

    both(program, tolerance=1e-9)


@every_family
def test_probabilities_and_entropy(family):
    def program(lib):
        made, value = MAKERS[family](lib)
        d = made()
        return [
            outcome(use)
            for use in (
                lambda: d.log_prob(value),
                lambda: d.cdf(value),
                lambda: d.icdf(lib.tensor(0.37, dtype=lib.float64)),
                d.entropy,
                d.perplexity,
                d.enumerate_support,
                lambda: d.enumerate_support(expand=False),
            )
        ]

    both(program, tolerance=1e-6)  # PyTorch has some constants in single precision


@every_family
def test_draws_have_the_shapes_and_lie_in_the_support(family):
    def program(lib):
        made, _ = MAKERS[family](lib)
        d, found = made(), []
        for shape in ((), (2,), (2, 3)):
            x = d.sample(shape)
            inside = bool(d.support.check(x).all())
            found += [tuple(x.shape), str(x.dtype).split(".")[1], x.requires_grad, inside]
            found += [tuple(d.log_prob(x).shape)]
        return found

    both(program)


@every_family
def test_expanded_distributions(family):
    def program(lib):
        made, value = MAKERS[family](lib)
        d = made()
        wide = d.expand((5, *d.batch_shape))
        found = [
            tuple(wide.batch_shape),
            tuple(wide.sample().shape),
            outcome(lambda: wide.log_prob(value)),
        ]
        if (family, "expand") not in LEFT_OUT:
            found += [outcome(lambda: wide.mean), outcome(wide.entropy)]
        return found

    both(program, tolerance=1e-9)


@every_family
def test_divergences_within_a_family(family):
    def program(lib):
        made, _ = MAKERS[family](lib)
        divergence = lib.distributions.kl_divergence
        return [outcome(lambda k=k: divergence(made(), made(k))) for k in (0, 3)]

    both(program, tolerance=1e-9)


@every_family
def test_values_that_are_refused(family):
    def program(lib):
        made, value = MAKERS[family](lib)
        d = made()
        return [
            outcome(use)
            for use in (
                lambda: d.log_prob(value * float("nan")),
                lambda: d.log_prob(-value * 100 - 1000),
                lambda: d.log_prob(3.0),
                lambda: d.log_prob(lib.zeros(7, 5, dtype=lib.float64)),
            )
        ]

    both(program, tolerance=1e-9)


@pytest.mark.parametrize("family", [f for f in MAKERS if "Mixture" not in f])
def test_text(family):
    def program(lib):
        return repr(MAKERS[family](lib)[0]()).replace("dptrain", "torch")

    both(program)


def test_divergences_between_families():
    def program(lib):
        d, t = lib.distributions, lib.tensor
        wide = d.Normal(t([0.3, -1.0]), t([1.5, 2.0]))
        gamma, falling = d.Gamma(t([1.5, 2.0]), t(1.3)), d.Exponential(t([0.7, 2.0]))
        return [
            d.kl_divergence(d.Uniform(-t([1.0, 2.0]), t([3.0, 1.0])), wide),
            d.kl_divergence(falling, wide),
            d.kl_divergence(falling, gamma),
            d.kl_divergence(gamma, falling),
            d.kl_divergence(d.Uniform(0.0, 1.0), d.Uniform(0.5, 2.0)),
            d.kl_divergence(d.Bernoulli(t([0.0, 1.0, 0.3])), d.Bernoulli(t([0.5, 0.0, 1.0]))),
            error_of(lambda: d.kl_divergence(wide, d.Poisson(1.0))),
        ]

    both(program, tolerance=1e-5)


MISUSES = {
    "negative scale": lambda d, t: d.Normal(0.0, -1.0),
    "nan": lambda d, t: d.Normal(t(float("nan")), 1.0),
    "words": lambda d, t: d.Normal("a", 1.0),
    "shapes": lambda d, t: d.Normal(t([0.0, 1]), t([1.0, 1, 1])),
    "probability above 1": lambda d, t: d.Bernoulli(1.5),
    "neither": lambda d, t: d.Bernoulli(),
    "both": lambda d, t: d.Bernoulli(0.5, 0.5),
    "no probabilities": lambda d, t: d.Categorical(),
    "negative probability": lambda d, t: d.Categorical(t([-1.0, 2])),
    "no events": lambda d, t: d.Categorical(t(0.5)),
    "zero probabilities": lambda d, t: d.Categorical(t([0.0, 0])),
    "empty interval": lambda d, t: d.Uniform(1.0, 0.0),
    "negative concentration": lambda d, t: d.Beta(-1.0, 1.0),
    "dimension": lambda d, t: d.Dirichlet(t(1.0)),
    "no covariance": lambda d, t: d.MultivariateNormal(t([0.0, 0])),
    "two covariances": lambda d, t: d.MultivariateNormal(t([0.0]), t([[1.0]]), t([[1.0]])),
    "not definite": lambda d, t: d.MultivariateNormal(t([0.0]), t([[-1.0]])),
    "zero rate": lambda d, t: d.Exponential(0.0),
    "negative rate": lambda d, t: d.Poisson(-1.0),
    "negative count": lambda d, t: d.Binomial(-1, 0.5),
    "no success": lambda d, t: d.Geometric(0.0),
    "too many dimensions": lambda d, t: d.Independent(d.Normal(0.0, 1.0), 1),
    "no mixture": lambda d, t: d.MixtureSameFamily(d.Normal(0.0, 1.0), d.Normal(0.0, 1.0)),
    "no transform": lambda d, t: d.TransformedDistribution(d.Normal(0.0, 1.0), 3),
    "no truth value": lambda d, t: d.Distribution.set_default_validate_args(3),
    "no enumeration": lambda d, t: d.Normal(0.0, 1.0).enumerate_support(),
    "no derivative": lambda d, t: d.Categorical(t([0.5, 0.5])).rsample(),
    "beyond the events": lambda d, t: d.Categorical(t([0.5, 0.5])).log_prob(t(2)),
    "between the events": lambda d, t: d.Categorical(t([0.5, 0.5])).log_prob(t(0.5)),
}


@pytest.mark.parametrize("use", MISUSES.values(), ids=MISUSES)
def test_misuse_is_the_error_of_pytorch(use):
    both(lambda lib: error_of(lambda: use(lib.distributions, lib.tensor)))


def test_arguments_are_not_checked_where_that_is_switched_off():
    def program(lib):
        d = lib.distributions.Normal(0.0, -1.0, validate_args=False)
        return [
            d.scale,
            lib.distributions.Uniform(0.0, 1.0, validate_args=False).log_prob(lib.tensor(2.0)),
        ]

    both(program)
