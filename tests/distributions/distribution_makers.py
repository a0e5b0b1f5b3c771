"""One distribution of each family, and a value to ask about, for either library."""

from side_by_side import values


def real(lib, *shape, seed=0):
    return values(lib, *shape, seed=seed)


def positive(lib, *shape, seed=0):
    return values(lib, *shape, seed=seed).abs() + 0.3


def unit(lib, *shape, seed=0):
    return values(lib, *shape, seed=seed).sigmoid()


def simplex(lib, *shape, seed=0):
    return values(lib, *shape, seed=seed).softmax(-1)


def factor(lib, seed=0):
    return real(lib, 3, 3, seed=seed).tril(-1) + lib.diag(positive(lib, 3, seed=seed + 1))


def counts(lib):
    return lib.tensor([0.0, 2.0, 5.0], dtype=lib.float64)


def bits(lib):
    return lib.tensor([0.0, 1.0, 1.0], dtype=lib.float64)


def simple(name, first, second=None, at=real, shape=(3,), more=0.0, **options):
    """A family of one or two parameters, each made by a function above."""

    def maker(lib):
        def made(seed=0):
            args = [first(lib, *shape, seed=seed) + more]
            if second is not None:
                args.append(second(lib, *shape, seed=seed + 1) + more)
            given = {k: v(lib) if callable(v) else v for k, v in options.items()}
            return getattr(lib.distributions, name)(*args, **given)

        return made, at(lib) if at in (counts, bits) else at(lib, *shape, seed=9)

    return maker


def by_logits(name, shape, value, *args):
    def maker(lib):
        def made(seed=0):
            return getattr(lib.distributions, name)(*args, logits=real(lib, *shape, seed=seed))

        return made, value(lib)

    return maker


def by_probs(name, shape, value, *args, make=positive):
    def maker(lib):
        def made(seed=0):
            return getattr(lib.distributions, name)(*args, probs=make(lib, *shape, seed=seed))

        return made, value(lib)

    return maker


def whole_numbers(lib):
    return lib.tensor([3, 1])


def unit_vectors(lib):
    return lib.eye(4, dtype=lib.float64)[:2]


def drawn_counts(lib):
    return lib.tensor([[1, 2, 2, 0], [0, 0, 5, 0]], dtype=lib.float64)


def uniform(lib):
    def made(seed=0):
        low = real(lib, 3, seed=seed) - 5 - seed
        return lib.distributions.Uniform(low, low + 10 + 2 * seed)

    return made, real(lib, 3, seed=9)


def multivariate(given):
    def maker(lib):
        def made(seed=0):
            f = factor(lib, seed)
            matrix = f if given == "scale_tril" else f @ f.T
            loc = real(lib, *((2, 3) if given == "scale_tril" else (3,)), seed=seed)
            return lib.distributions.MultivariateNormal(loc, **{given: matrix})

        return made, real(lib, 2, 3, seed=9)

    return maker


def mixture(lib):
    d = lib.distributions

    def made(seed=0):
        parts = d.Normal(real(lib, 2, 4, seed=seed), positive(lib, 2, 4, seed=seed + 1))
        return d.MixtureSameFamily(d.Categorical(positive(lib, 2, 4, seed=seed)), parts)

    return made, real(lib, 2, seed=9)


def mixture_of_vectors(lib):
    d = lib.distributions

    def made(seed=0):
        parts = d.MultivariateNormal(real(lib, 2, 3, seed=seed), scale_tril=factor(lib, seed))
        return d.MixtureSameFamily(d.Categorical(positive(lib, 2, seed=seed)), parts)

    return made, real(lib, 3, seed=9)


def independent(lib):
    d = lib.distributions

    def made(seed=0):
        base = d.Normal(real(lib, 2, 3, seed=seed), positive(lib, 2, 3, seed=seed + 1))
        return d.Independent(base, 1)

    return made, real(lib, 2, 3, seed=9)


def transformed(maps, value, shape=(3,), independent=0):
    def maker(lib):
        d = lib.distributions

        def made(seed=0):
            base = d.Normal(real(lib, *shape, seed=seed), positive(lib, *shape, seed=seed + 1))
            if independent:
                base = d.Independent(base, independent)
            return d.TransformedDistribution(base, maps(lib))

        return made, value(lib)

    return maker


def half(lib):
    return lib.tensor(0.7, dtype=lib.float64)


MAKERS = {
    "Normal": simple("Normal", real, positive),
    "Normal of numbers": lambda lib: (lambda _=0: lib.distributions.Normal(0.0, 1.0), lib.tensor(0.3)),
    "Uniform": uniform,
    "Bernoulli": by_probs("Bernoulli", (3,), bits, make=unit),
    "Bernoulli logits": by_logits("Bernoulli", (3,), bits),
    "Geometric": by_probs("Geometric", (3,), counts, make=unit),
    "Categorical": by_probs("Categorical", (2, 4), whole_numbers),
    "Categorical logits": by_logits("Categorical", (2, 4), whole_numbers),
    "OneHotCategorical": by_probs("OneHotCategorical", (2, 4), unit_vectors),
    "Gamma": simple("Gamma", positive, positive, positive),
    "Chi2": simple("Chi2", positive, None, positive),
    "InverseGamma": simple("InverseGamma", positive, positive, positive, more=2.0),
    "Dirichlet": simple("Dirichlet", positive, None, simplex, (2, 4), more=1.0),
    "Beta": simple("Beta", positive, positive, unit),
    "Exponential": simple("Exponential", positive, None, positive),
    "Laplace": simple("Laplace", real, positive),
    "Cauchy": simple("Cauchy", real, positive),
    "Poisson": simple("Poisson", positive, None, counts, more=2.0),
    "Binomial": by_probs("Binomial", (3,), counts, 6, make=unit),
    "Binomial logits": by_logits("Binomial", (3,), counts, 6),
    "Multinomial": by_probs("Multinomial", (2, 4), drawn_counts, 5),
    "NegativeBinomial": by_probs("NegativeBinomial", (3,), counts, 4, make=unit),
    "MultivariateNormal factor": multivariate("scale_tril"),
    "MultivariateNormal covariance": multivariate("covariance_matrix"),
    "MultivariateNormal precision": multivariate("precision_matrix"),
    "StudentT": simple("StudentT", positive, None, more=2.0, loc=half, scale=half),
    "FisherSnedecor": simple("FisherSnedecor", positive, positive, positive, more=5.0),
    "LogNormal": simple("LogNormal", real, positive, positive),
    "HalfNormal": simple("HalfNormal", positive, None, positive),
    "HalfCauchy": simple("HalfCauchy", positive, None, positive),
    "Gumbel": simple("Gumbel", real, positive),
    "Pareto": simple("Pareto", unit, positive, lambda lib, *s, seed: positive(lib, *s, seed=seed) + 4, more=2.1),
    "Weibull": simple("Weibull", positive, positive, positive),
    "Kumaraswamy": simple("Kumaraswamy", positive, positive, unit, more=1.0),
    "RelaxedBernoulli": lambda lib: (
        lambda seed=0: lib.distributions.RelaxedBernoulli(half(lib), unit(lib, 3, seed=seed)),
        unit(lib, 3, seed=9),
    ),
    "RelaxedOneHotCategorical": lambda lib: (
        lambda seed=0: lib.distributions.RelaxedOneHotCategorical(half(lib), simplex(lib, 2, 4, seed=seed)),
        simplex(lib, 2, 4, seed=9),
    ),
    "MixtureSameFamily": mixture,
    "MixtureSameFamily of vectors": mixture_of_vectors,
    "Independent": independent,
    "LogisticNormal": simple("LogisticNormal", real, positive, lambda lib, *s, seed: simplex(lib, 2, 4, seed=seed), (2, 3)),
    "tanh": transformed(
        lambda lib: [lib.distributions.TanhTransform(cache_size=1), lib.distributions.AffineTransform(0.5, -2.0)],
        lambda lib: real(lib, 3, seed=9).tanh() * 1.8 + 0.5,
    ),
    "powers of vectors": transformed(
        lambda lib: [lib.distributions.ExpTransform(), lib.distributions.PowerTransform(half(lib))],
        lambda lib: positive(lib, 2, 3, seed=9), (2, 3), 1,
    ),
    "softplus": transformed(lambda lib: lib.distributions.SoftplusTransform(), lambda lib: positive(lib, 3, seed=9)),
    "sticks": transformed(
        lambda lib: lib.distributions.StickBreakingTransform(), lambda lib: simplex(lib, 2, 4, seed=9), (2, 3)
    ),
    "reshaped": transformed(
        lambda lib: lib.distributions.ReshapeTransform((6,), (2, 3)), lambda lib: real(lib, 2, 2, 3, seed=9), (2, 6)
    ),
}  # fmt: skip
