"""Kullback-Leibler divergences between families that have a closed form.

Owns: `kl_divergence`, `register_kl` and the divergences of the families here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor
from dptrain.distributions.arguments import sum_rightmost
from dptrain.distributions.bernoulli import Bernoulli
from dptrain.distributions.beta import Beta
from dptrain.distributions.binomial import Binomial
from dptrain.distributions.categorical import Categorical
from dptrain.distributions.cauchy import Cauchy
from dptrain.distributions.dirichlet import Dirichlet
from dptrain.distributions.distribution import Distribution
from dptrain.distributions.exponential import Exponential
from dptrain.distributions.gamma import Gamma
from dptrain.distributions.geometric import Geometric
from dptrain.distributions.gumbel import Gumbel
from dptrain.distributions.half_normal import HalfNormal
from dptrain.distributions.independent import Independent
from dptrain.distributions.laplace import Laplace
from dptrain.distributions.multivariate_normal import MultivariateNormal, half_log_determinant
from dptrain.distributions.normal import Normal
from dptrain.distributions.one_hot_categorical import OneHotCategorical
from dptrain.distributions.pareto import Pareto
from dptrain.distributions.poisson import Poisson
from dptrain.distributions.transformed_distribution import TransformedDistribution
from dptrain.distributions.uniform import Uniform
from dptrain.nn.functional import softplus

_Divergence = Callable[[Any, Any], Tensor]
_REGISTRY: dict[tuple[type, type], _Divergence] = {}

where = FUNCTIONS["where"]


def register_kl(type_p: type, type_q: type) -> Callable[[_Divergence], _Divergence]:
    """Say how to compute the divergence of two families; a decorator.

    Raises:
        TypeError: something that is no family.
    """
    for name, family in (("type_p", type_p), ("type_q", type_q)):
        if not (isinstance(family, type) and issubclass(family, Distribution)):
            raise TypeError(f"Expected {name} to be a Distribution subclass but got {family}")

    def register(divergence: _Divergence) -> _Divergence:
        _REGISTRY[type_p, type_q] = divergence
        return divergence

    return register


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """The divergence of `p` from `q`, one number for each pair of a batch.

    Raises:
        NotImplementedError: no divergence is known for the families, nor for those that they derive from.
    """
    found = [
        (type(p).__mro__.index(a) + type(q).__mro__.index(b), divergence)
        for (a, b), divergence in _REGISTRY.items()
        if isinstance(p, a) and isinstance(q, b)
    ]
    if not found:
        raise NotImplementedError(
            f"No KL(p || q) is implemented for p type {type(p).__name__} and q type {type(q).__name__}"
        )
    return min(found, key=lambda pair: pair[0])[1](p, q)


@register_kl(Normal, Normal)
def _normal(p: Any, q: Any) -> Tensor:
    ratio = (p.scale / q.scale).pow(2)
    distance = ((p.loc - q.loc) / q.scale).pow(2)
    return 0.5 * (ratio + distance - 1 - ratio.log())


@register_kl(HalfNormal, HalfNormal)
def _half_normal(p: Any, q: Any) -> Tensor:
    return _normal(p.base_dist, q.base_dist)


@register_kl(Bernoulli, Bernoulli)
def _bernoulli(p: Any, q: Any) -> Tensor:
    one = p.probs * (softplus(-q.logits) - softplus(-p.logits))
    one = where(q.probs == 0, math.inf, one)
    one = where(p.probs == 0, 0.0, one)
    none = (1 - p.probs) * (softplus(q.logits) - softplus(p.logits))
    none = where(q.probs == 1, math.inf, none)
    return one + where(p.probs == 1, 0.0, none)


@register_kl(Binomial, Binomial)
def _binomial(p: Any, q: Any) -> Tensor:
    if (p.total_count < q.total_count).any():
        raise NotImplementedError(
            "KL between Binomials where q.total_count > p.total_count is not implemented"
        )
    each = p.total_count * (
        p.probs * (p.logits - q.logits) + (-p.probs).log1p() - (-q.probs).log1p()
    )
    return each.masked_fill(p.total_count > q.total_count, math.inf)


@register_kl(Categorical, Categorical)
def _categorical(p: Any, q: Any) -> Tensor:
    each = p.probs * (p.logits - q.logits)
    each = where((q.probs == 0).expand(each.shape), math.inf, each)
    each = where((p.probs == 0).expand(each.shape), 0.0, each)
    return each.sum(-1)


@register_kl(OneHotCategorical, OneHotCategorical)
def _one_hot_categorical(p: Any, q: Any) -> Tensor:
    return _categorical(p._categorical, q._categorical)


@register_kl(Dirichlet, Dirichlet)
def _dirichlet(p: Any, q: Any) -> Tensor:
    a, b = p.concentration, q.concentration
    total = a.sum(-1)
    normalisers = total.lgamma() - b.sum(-1).lgamma() - (a.lgamma() - b.lgamma()).sum(-1)
    return normalisers + ((a - b) * (a.digamma() - total.digamma().unsqueeze(-1))).sum(-1)


@register_kl(Beta, Beta)
def _beta(p: Any, q: Any) -> Tensor:
    return _dirichlet(p._dirichlet, q._dirichlet)


@register_kl(Gamma, Gamma)
def _gamma(p: Any, q: Any) -> Tensor:
    a, b = p.concentration, q.concentration
    return (
        b * (p.rate / q.rate).log()
        + b.lgamma()
        - a.lgamma()
        + (a - b) * a.digamma()
        + (q.rate - p.rate) * (a / p.rate)
    )


@register_kl(Exponential, Exponential)
def _exponential(p: Any, q: Any) -> Tensor:
    ratio = q.rate / p.rate
    return -ratio.log() + ratio - 1


@register_kl(Poisson, Poisson)
def _poisson(p: Any, q: Any) -> Tensor:
    return p.rate * (p.rate.log() - q.rate.log()) - (p.rate - q.rate)


@register_kl(Geometric, Geometric)
def _geometric(p: Any, q: Any) -> Tensor:
    return -p.entropy() - (-q.probs).log1p() / p.probs - q.logits


@register_kl(Laplace, Laplace)
def _laplace(p: Any, q: Any) -> Tensor:
    ratio, distance = p.scale / q.scale, (p.loc - q.loc).abs()
    return -ratio.log() + distance / q.scale + ratio * (-distance / p.scale).exp() - 1


@register_kl(Cauchy, Cauchy)
def _cauchy(p: Any, q: Any) -> Tensor:
    apart = (p.scale + q.scale).pow(2) + (p.loc - q.loc).pow(2)
    return apart.log() - (4 * p.scale * q.scale).log()


@register_kl(Gumbel, Gumbel)
def _gumbel(p: Any, q: Any) -> Tensor:
    ratio, to, by = p.scale / q.scale, q.loc / q.scale, p.loc / q.scale
    tilt = (to - by + (1 + ratio).lgamma()).exp()
    return by - ratio.log() - to + ratio * np.euler_gamma + tilt - (1 + np.euler_gamma)


@register_kl(Pareto, Pareto)
def _pareto(p: Any, q: Any) -> Tensor:
    ratio = q.alpha / p.alpha
    found = q.alpha * (p.scale / q.scale).log() - ratio.log() + ratio - 1
    return where(p.scale < q.scale, math.inf, found)


@register_kl(Uniform, Uniform)
def _uniform(p: Any, q: Any) -> Tensor:
    found = ((q.high - q.low) / (p.high - p.low)).log()
    return where((q.low > p.low) | (q.high < p.high), math.inf, found)


@register_kl(Uniform, Normal)
def _uniform_normal(p: Any, q: Any) -> Tensor:
    width = p.high - p.low
    distance = ((p.high + p.low - 2 * q.loc) / 2).pow(2)
    return (math.sqrt(2 * math.pi) * q.scale / width).log() + (width.pow(2) / 12 + distance) / (
        2 * q.scale.pow(2)
    )


@register_kl(Exponential, Normal)
def _exponential_normal(p: Any, q: Any) -> Tensor:
    variance = q.scale.pow(2)
    normaliser = 0.5 * (p.rate.pow(2) * variance * 2 * math.pi).log()
    mean = p.rate.reciprocal()
    return normaliser - 1 + (mean.pow(2) - mean * q.loc + 0.5 * q.loc.pow(2)) / variance


@register_kl(Exponential, Gamma)
def _exponential_gamma(p: Any, q: Any) -> Tensor:
    ratio, a = q.rate / p.rate, q.concentration
    return -a * ratio.log() + ratio + a.lgamma() + a * np.euler_gamma - (1 + np.euler_gamma)


@register_kl(Gamma, Exponential)
def _gamma_exponential(p: Any, q: Any) -> Tensor:
    return -p.entropy() - q.rate.log() + q.rate * p.concentration / p.rate


@register_kl(MultivariateNormal, MultivariateNormal)
def _multivariate_normal(p: Any, q: Any) -> Tensor:
    if p.event_shape != q.event_shape:
        raise ValueError(
            "KL-divergence between two Multivariate Normals with different event shapes cannot be computed"
        )
    mine, theirs = p._unbroadcasted_scale_tril, q._unbroadcasted_scale_tril
    log_ratio = half_log_determinant(theirs) - half_log_determinant(mine)
    solve = FUNCTIONS["linalg.solve_triangular"]
    # The trace of Q^-1 P is the squared length of L_q^-1 L_p.
    trace = solve(theirs, mine, upper=False).pow(2).sum((-2, -1))
    offset = solve(theirs, (q.loc - p.loc).unsqueeze(-1), upper=False)
    distance = offset.squeeze(-1).pow(2).sum(-1)
    return log_ratio + 0.5 * (trace + distance - p.event_shape[0])


@register_kl(Independent, Independent)
def _independent(p: Any, q: Any) -> Tensor:
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise NotImplementedError
    return sum_rightmost(kl_divergence(p.base_dist, q.base_dist), p.reinterpreted_batch_ndims)


@register_kl(TransformedDistribution, TransformedDistribution)
def _transformed(p: Any, q: Any) -> Tensor:
    if p.transforms != q.transforms or p.event_shape != q.event_shape:
        raise NotImplementedError
    return kl_divergence(p.base_dist, q.base_dist)
