"""`torch.distributions`' names: families of probability distributions, one in each file.

Draws come from dptrain's own generators; everything else has PyTorch's numbers.
"""

from dptrain.distributions import constraint_registry, constraints, kl, transforms
from dptrain.distributions.bernoulli import Bernoulli
from dptrain.distributions.beta import Beta
from dptrain.distributions.binomial import Binomial
from dptrain.distributions.categorical import Categorical
from dptrain.distributions.cauchy import Cauchy
from dptrain.distributions.chi2 import Chi2
from dptrain.distributions.constraint_registry import biject_to, transform_to
from dptrain.distributions.dirichlet import Dirichlet
from dptrain.distributions.distribution import Distribution, ExponentialFamily
from dptrain.distributions.exponential import Exponential
from dptrain.distributions.fishersnedecor import FisherSnedecor
from dptrain.distributions.gamma import Gamma
from dptrain.distributions.geometric import Geometric
from dptrain.distributions.gumbel import Gumbel
from dptrain.distributions.half_cauchy import HalfCauchy
from dptrain.distributions.half_normal import HalfNormal
from dptrain.distributions.independent import Independent
from dptrain.distributions.inverse_gamma import InverseGamma
from dptrain.distributions.kl import kl_divergence, register_kl
from dptrain.distributions.kumaraswamy import Kumaraswamy
from dptrain.distributions.laplace import Laplace
from dptrain.distributions.log_normal import LogNormal
from dptrain.distributions.logistic_normal import LogisticNormal
from dptrain.distributions.mixture_same_family import MixtureSameFamily
from dptrain.distributions.multinomial import Multinomial
from dptrain.distributions.multivariate_normal import MultivariateNormal
from dptrain.distributions.negative_binomial import NegativeBinomial
from dptrain.distributions.normal import Normal
from dptrain.distributions.one_hot_categorical import (
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
)
from dptrain.distributions.pareto import Pareto
from dptrain.distributions.poisson import Poisson
from dptrain.distributions.relaxed_bernoulli import RelaxedBernoulli
from dptrain.distributions.relaxed_categorical import RelaxedOneHotCategorical
from dptrain.distributions.student_t import StudentT
from dptrain.distributions.transformed_distribution import TransformedDistribution
from dptrain.distributions.transforms import *  # noqa: F403 - PyTorch has its transforms here too
from dptrain.distributions.transforms import __all__ as _transforms
from dptrain.distributions.uniform import Uniform
from dptrain.distributions.weibull import Weibull

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Cauchy",
    "Chi2",
    "Dirichlet",
    "Distribution",
    "Exponential",
    "ExponentialFamily",
    "FisherSnedecor",
    "Gamma",
    "Geometric",
    "Gumbel",
    "HalfCauchy",
    "HalfNormal",
    "Independent",
    "InverseGamma",
    "Kumaraswamy",
    "Laplace",
    "LogNormal",
    "LogisticNormal",
    "MixtureSameFamily",
    "Multinomial",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "OneHotCategoricalStraightThrough",
    "Pareto",
    "Poisson",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "StudentT",
    "TransformedDistribution",
    "Uniform",
    "Weibull",
    "biject_to",
    "constraint_registry",
    "constraints",
    "kl",
    "kl_divergence",
    "register_kl",
    "transform_to",
    "transforms",
]
__all__ += _transforms
