"""Draws into a tensor in place, and draws whose parameters are tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import (
    as_array,
    common_namespace,
    is_array,
    namespace_of,
    placed_beside,
)
from dptrain.core.export import export, public
from dptrain.core.op import Op
from dptrain.core.ops.compare import zeros_for
from dptrain.core.ops.inplace import _random, check_floating_fill
from dptrain.core.ops.rejection_draws import draw
from dptrain.core.pinning import pin_in_place
from dptrain.core.random import Generator, check_range, default_generator
from dptrain.core.tensor import Tensor, wrap


def _stream(generator: Generator | None) -> np.random.Generator:
    return (generator or default_generator()).stream()


def _exponential(self: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill with draws from the exponential distribution of rate `lambd`."""
    check_floating_fill(self, "exponential_")
    if lambd <= 0:
        raise RuntimeError(f"exponential_ expects lambda > 0.0, but found lambda={lambd}")
    draws = _stream(generator).standard_exponential(self._array.shape)
    return _random(self, "exponential_", as_array(draws) / lambd)


def _log_normal(
    self: Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill with exponentials of draws from the normal distribution (mean, std)."""
    check_floating_fill(self, "log_normal_")
    if std <= 0:
        raise RuntimeError(f"log_normal_ expects std > 0.0, but found std={std}")
    draws = as_array(_stream(generator).standard_normal(self._array.shape))
    return _random(self, "log_normal_", np.exp(draws * std + mean))


def _cauchy(
    self: Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill with draws from the Cauchy distribution."""
    check_floating_fill(self, "cauchy_")
    if sigma <= 0:
        raise RuntimeError(f"cauchy_ expects sigma > 0.0, but found sigma={sigma}")
    draws = as_array(_stream(generator).standard_cauchy(self._array.shape))
    return _random(self, "cauchy_", draws * sigma + median)


def _geometric(self: Tensor, p: float, *, generator: Generator | None = None) -> Tensor:
    """Fill with draws from the geometric distribution: trials up to the first success."""
    if not 0 < p < 1:
        raise RuntimeError(f"geometric_ expects p to be in (0, 1), but got p={p}")
    return _random(self, "geometric_", as_array(_stream(generator).geometric(p, self._array.shape)))


#: Largest number up to which a floating point type holds every integer, by NumPy's name of it.
_EXACT = {"float64": 2**53, "float32": 2**24, "float16": 2**11, "bfloat16": 2**8}


def _random_integers(
    self: Tensor,
    from_: int = 0,
    to: int | None = None,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Fill with integers: `random_()` over the type's range, `random_(to)`, `random_(from, to)`."""
    kind = self._array.dtype
    if to is None and from_ != 0:
        from_, to = 0, from_
    if to is None:
        if kind.name in _EXACT:
            to = _EXACT[kind.name] + 1
        else:
            to = 2 if kind == np.bool_ else int(np.iinfo(kind).max) + 1
            to = min(to, 2**63 - 1)
    if from_ >= to:
        raise RuntimeError(
            f"random_ expects 'from' to be less than 'to', but got from={from_} >= to={to}"
        )
    check_range("random_", from_, to, kind)
    draws = _stream(generator).integers(from_, to, self._array.shape)
    return _random(self, "random_", as_array(draws))


def _probabilities(p: Any, op: str, xp: Any = np) -> Any:
    array = p._array.astype(np.float64) if isinstance(p, Tensor) else xp.asarray(p, np.float64)
    if not ((array >= 0) & (array <= 1)).all():
        raise RuntimeError(f"{op} expects p to be in [0, 1], but got p={array.tolist()}")
    return array


def _bernoulli_in_place(
    self: Tensor, p: Any = 0.5, *, generator: Generator | None = None
) -> Tensor:
    """Fill with 1 with probability p (a number or a tensor that broadcasts), else 0."""
    xp = common_namespace([self._array, p._array] if isinstance(p, Tensor) else [self._array])
    chance = _probabilities(p, "bernoulli_", xp)
    draws = placed_beside(_stream(generator).random(self._array.shape), self._array)
    return _random(self, "bernoulli_", draws < chance)


class Bernoulli(Op):
    """Draws of 0 and 1; the gradient is 0."""

    def forward(self, input: Any, draws: Any, p: Any = None) -> Any:
        return (draws < (input if p is None else p)).astype(input.dtype)

    def backward(self, grad: Any) -> Any:
        return zeros_for(grad)


def _bernoulli(input: Any, p: Any = None, *, generator: Generator | None = None) -> Any:
    """1 with the probability that `input` holds (or `p`), else 0, in its shape and dtype."""
    if not isinstance(input, Tensor):
        raise TypeError(
            f"bernoulli(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}"
        )
    if p is None:
        check_floating_fill(input, "bernoulli")
    _probabilities(input if p is None else p, "bernoulli")
    draws = placed_beside(_stream(generator).random(input._array.shape), input._array)
    return Bernoulli.apply(input, draws, p)


def _refuse_weights(rows: Any) -> None:
    if not (np.isfinite(rows) & (rows >= 0)).all():
        raise RuntimeError(
            "multinomial: probability tensor contains either `inf`, `nan` or element < 0"
        )
    if not (rows.sum(axis=1) > 0).all():
        raise RuntimeError(
            "multinomial: invalid multinomial distribution (sum of probabilities <= 0)"
        )


def _multinomial(
    input: Any,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Generator | None = None,
) -> Any:
    """Indices drawn with the weights in (each row of) `input`, which need not add up to 1."""
    weights = input._array
    if not input.dtype.is_floating_point:
        raise RuntimeError(
            f"multinomial only supports floating-point dtypes for input, got: {input.dtype}"
        )
    if weights.ndim not in (1, 2):
        raise RuntimeError(f"multinomial: prob_dist must be 1 or 2 dim, got {weights.ndim}")
    if num_samples <= 0:
        raise RuntimeError(f"multinomial: cannot sample n_sample <= 0 samples, got {num_samples}")
    if not replacement and num_samples > weights.shape[-1]:
        raise RuntimeError(
            f"multinomial: cannot sample n_sample > prob_dist.size(-1) samples without replacement ({num_samples} > "
            f"{weights.shape[-1]})"
        )
    rows = (weights if weights.ndim == 2 else weights[None]).astype(np.float64)
    ladder = rows.cumsum(axis=1)
    # Finite sums are those of finite numbers; where in doubt these are looked at one by one.
    plain = rows.size and rows.min() >= 0
    if not (plain and ((ladder[:, -1] > 0) & (ladder[:, -1] < np.inf)).all()):
        _refuse_weights(rows)
    stream, xp = _stream(generator), namespace_of(rows)
    if replacement:
        draws = xp.asarray(stream.random((len(rows), num_samples))) * ladder[:, -1:]
        found = (draws[:, :, None] >= ladder[:, None, :]).sum(axis=2)
    else:
        if ((rows > 0).sum(axis=1) < num_samples).any():
            raise RuntimeError(
                "multinomial: invalid multinomial distribution (with replacement=False, not enough non-negative category "
                f"to sample {num_samples})"
            )
        # Exponential race: the k smallest of E_i / w_i are k draws without replacement.
        with np.errstate(divide="ignore"):
            times = xp.asarray(stream.standard_exponential(rows.shape)) / rows
        found = np.argsort(times, axis=1, kind="stable")[:, :num_samples]
    return wrap(found.astype(np.int64)[0] if weights.ndim == 1 else found.astype(np.int64))


class Draws(Op):
    """Draws through which no gradient passes."""

    differentiable = False


class Normal(Op):
    """Draws with given means and deviations; the gradient is 0, as PyTorch defines it."""

    num_tensors = 0

    def forward(self, mean: Any, std: Any, draws: Any, kind: Any) -> Any:
        tensors = [is_array(v) for v in (mean, std)]
        self.backward_name = f"NormalBackward{3 if all(tensors) else 1 if tensors[0] else 2}"
        return as_array(draws * std + mean).astype(kind)

    def backward(self, grad: Any) -> Any:
        return zeros_for(grad), zeros_for(grad)


def _number(name: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.ndim or value.requires_grad:
        raise TypeError(f"normal(): argument {name!r} must be Number beside size=, not Tensor")
    return value.item()


def _normal(
    mean: Any = 0.0,
    std: Any = 1.0,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Any:
    """Draws from normal distributions: numbers with `size`, or a tensor of means and/or deviations."""
    from dptrain.core.random_tensors import randn

    if size is not None:
        mean, std = _number("mean", mean), _number("std", std)
    low = std._array.min() if isinstance(std, Tensor) and std._array.size else std
    if not isinstance(low, Tensor) and not low >= 0:
        raise RuntimeError(f"normal expects all elements of std >= 0.0, but found std {low}")
    if not (isinstance(mean, Tensor) or isinstance(std, Tensor)):
        if size is None:
            raise TypeError("normal() needs size= where mean and std are numbers")
        shape = tuple(size) if not isinstance(size, int) else (size,)
        drawn = randn(
            shape,
            generator=generator,
            dtype=dtype,
            layout=layout,
            device=device,
            pin_memory=pin_memory,
        )
        made = (drawn * std + mean).requires_grad_(requires_grad)
        return pin_in_place(made) if pin_memory else made
    arrays = [v._array if isinstance(v, Tensor) else v for v in (mean, std)]
    kind = next(a.dtype for a in arrays if is_array(a))
    if kind.kind in "biu":
        raise NotImplementedError(f"normal expects floating point tensors, got {kind}")
    try:
        shape = np.broadcast_shapes(*(np.shape(a) for a in arrays))
    except ValueError:
        raise RuntimeError(
            f"normal: shapes {list(np.shape(arrays[0]))} and {list(np.shape(arrays[1]))} do not broadcast"
        ) from None
    draws = common_namespace(arrays).asarray(_stream(generator).standard_normal(shape))
    return Normal.apply(mean, std, draws, kind)


def _poisson(input: Any, generator: Generator | None = None) -> Any:
    """Draws from Poisson distributions with the rates in `input`."""
    check_floating_fill(input, "poisson")
    if (input._array < 0).any():
        raise RuntimeError("poisson: invalid Poisson rate, expected rate to be non-negative")
    draws = draw("poisson", generator, as_array(input._array).astype(np.float64))
    return wrap(draws.astype(input._array.dtype))


def binomial(count: Tensor, prob: Tensor, generator: Generator | None = None) -> Tensor:
    """Draws from binomial distributions: successes among `count` trials of probability `prob`.

    Raises:
        RuntimeError: counts that are negative, or probabilities outside of [0, 1].
    """
    trials, chance = as_array(count._array), _probabilities(prob, "binomial")
    if (trials < 0).any():
        raise RuntimeError("binomial: invalid count, expected counts to be non-negative")
    draws = draw("binomial", generator, trials.astype(np.int64), chance)
    return wrap(draws.astype(prob._array.dtype))


_METHODS: dict[str, Callable[..., Any]] = {
    "exponential_": _exponential,
    "log_normal_": _log_normal,
    "cauchy_": _cauchy,
    "geometric_": _geometric,
    "random_": _random_integers,
    "bernoulli_": _bernoulli_in_place,
}
for _name, _function in _METHODS.items():
    setattr(Tensor, _name, public(_function, name=_name))


export("bernoulli", methods=("bernoulli",), function=_bernoulli, kinds={"p": "Number"})(Bernoulli)
export("multinomial", methods=("multinomial",), function=_multinomial)(Draws)
export(
    "normal",
    function=_normal,
    kinds={"mean": "Tensor | Number", "std": "Tensor | Number", "size": "tuple of ints!"},
)(Draws)
export("poisson", function=_poisson)(Draws)
